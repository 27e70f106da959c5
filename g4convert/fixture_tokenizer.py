"""Tokenizer, chat template and processor config of a tiny checkpoint.

A BPE tokenizer of Gemma's kind (spaces become U+2581, bytes as fallback) over 512 ids: special tokens, the
256 bytes, pieces learned from the sentences below, and the media tokens at the end, as in the released
vocabulary. Everything is made here, nothing is fetched, and the same bytes come out each time.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

__all__ = ["TOKEN_IDS", "VOCAB_SIZE", "write_processor", "write_tokenizer"]

VOCAB_SIZE = 512

_FIRST = (
    *(
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        "<|turn>",
        "<turn|>",
        "<|channel>",
        "<channel|>",
        "<|think|>",
    ),
    *("<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'),
)
_LAST = ("<|image>", "<|audio>", "<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>")

TOKEN_IDS: Mapping[str, int] = {
    **{token: number for number, token in enumerate(_FIRST)},
    **{token: VOCAB_SIZE - len(_LAST) + number for number, token in enumerate(_LAST)},
}

# The keys of Google's tokenizer_config.json, and the token each names.
_NAMED_TOKENS = {
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "sot_token": "<|turn>",
    "eot_token": "<turn|>",
    "think_token": "<|think|>",
    "soc_token": "<|channel>",
    "eoc_token": "<channel|>",
    "std_token": "<|tool>",
    "etd_token": "<tool|>",
    "stc_token": "<|tool_call>",
    "etc_token": "<tool_call|>",
    "escape_token": '<|"|>',
    "str_token": "<|tool_response>",
    "etr_token": "<tool_response|>",
    "boi_token": "<|image>",
    "image_token": "<|image|>",
    "eoi_token": "<image|>",
    "boa_token": "<|audio>",
    "audio_token": "<|audio|>",
    "eoa_token": "<audio|>",
}

_SENTENCES = """
The weights of a large model are read once, rounded to sixteen levels and written again.
Every group of thirty two neighbours shares one scale, and the scale is kept in half precision.
A router picks a few experts for each token while a dense layer works beside them.
What is the capital of France? The capital of France is Paris, a city on the river Seine.
Please describe the picture: a small red boat crosses a quiet lake under the morning sun.
She said that numbers such as 0, 1, 2, 3, 4, 5, 6, 7, 8 and 9 should be written out.
If the first answer is wrong, think about the question again and try another way.
Listen to the recording and write down the words that you hear, then translate them.
"""

_CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages -%}
{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] | trim }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}
{{ part['text'] | trim }}
{%- elif part['type'] in ('image', 'audio', 'video') -%}
{{ '<|' + part['type'] + '|>' }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<turn|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|turn>model\\n' }}
{%- endif -%}
"""


def write_tokenizer(directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    (directory / "tokenizer.json").write_text(_tokenizer().to_str(pretty=True) + "\n")
    config = {
        **_NAMED_TOKENS,
        "backend": "tokenizers",
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": ["<|video|>"],
        "model_max_length": 131072,
        "padding_side": "left",
        "processor_class": "Gemma4Processor",
        "tokenizer_class": "GemmaTokenizer",
    }
    _write_json(directory / "tokenizer_config.json", config)
    (directory / "chat_template.jinja").write_text(_CHAT_TEMPLATE)


def write_processor(directory: Path, config: Mapping[str, Any]) -> None:
    """Write processor_config.json for a checkpoint that takes images; nothing for the others.

    Args:
        directory: where.
        config: the checkpoint's, for patch and pooling sizes and the number of mel bins.
    """
    vision = config.get("vision_config")
    if vision is None:
        return
    stem = "Gemma4Unified" if config["model_type"] == "gemma4_unified" else "Gemma4"
    patches = {
        "patch_size": vision["patch_size"],
        "pooling_kernel_size": vision["pooling_kernel_size"],
        "max_soft_tokens": 70,
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    audio = config.get("audio_config") or {}
    if stem == "Gemma4Unified":
        samples = audio["audio_embed_dim"]
        frames = {"audio_samples_per_token": samples, "feature_size": samples}
    else:
        frames = {"feature_size": audio.get("subsampling_conv_channels", [128])[0]}
    _write_json(
        directory / "processor_config.json",
        {
            "audio_ms_per_token": 40,
            "audio_seq_length": 750,
            "feature_extractor": {
                **frames,
                "feature_extractor_type": f"{stem}AudioFeatureExtractor",
                "padding_side": "right",
                "padding_value": 0.0,
                "return_attention_mask": True,
                "sampling_rate": 16000,
            },
            "image_processor": {**patches, "image_processor_type": f"{stem}ImageProcessor"},
            "image_seq_length": patches["max_soft_tokens"],
            "processor_class": f"{stem}Processor",
            "video_processor": {**patches, "num_frames": 4, "video_processor_type": f"{stem}VideoProcessor"},
        },
    )


def _tokenizer() -> Tokenizer:
    """Learn pieces from the sentences, then lay out the vocabulary and put Gemma's pipeline round it."""
    room = VOCAB_SIZE - len(TOKEN_IDS) - 256
    learned = Tokenizer(BPE())
    words = ["▁" + word for word in _SENTENCES.split()]
    learned.train_from_iterator(words, BpeTrainer(vocab_size=room, show_progress=False))
    model = json.loads(learned.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    spare = [f"<unused{number}>" for number in range(room - len(pieces))]
    order = (*_FIRST, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *spare, *_LAST)
    tokenizer = Tokenizer(
        BPE(
            vocab={token: number for number, token in enumerate(order)},
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",  # noqa: S106 -- a vocabulary entry, not a password
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B:1", special_tokens=[("<bos>", TOKEN_IDS["<bos>"])]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (*_FIRST, *_LAST)]
    )
    return tokenizer


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")

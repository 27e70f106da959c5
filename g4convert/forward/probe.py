"""Prompts for every input that a Gemma 4 model takes, their logits, and how far two sets of logits are apart.

Text alone cannot see a fault in a tower, an embedder or an ignore list that names one, so a model with
vision or audio gets a picture and a sound as well, in the form that transformers' processors give them.
Compare in float32, and a quantized model with its dequantized twin: bf16 rounding flips routers, and the
cost of four bits hides everything else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from g4convert.errors import GateError
from g4convert.forward.media import Media, pictures, sounds, takes
from g4convert.forward.models import Config, Model, quiet_transformers

__all__ = ["LogitsDifference", "Prompt", "compare", "logits", "prompts"]

_MEDIA_TOKENS = (
    *("boi_token_id", "image_token_id", "eoi_token_id", "video_token_id"),
    *("boa_token_id", "audio_token_id", "eoa_token_index"),
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One forward call: what it exercises, the arguments, and which output is looked at."""

    kind: str
    arguments: Mapping[str, Any]
    output: str = "logits"
    scored: None = None
    """Every row is looked at."""


def prompts(model: Model, *, seed: int = 0) -> tuple[Prompt, ...]:
    """A prompt for each input the model takes: text, then image and audio.

    An assistant takes a draft; its second output is the state that it hands to its next draft.
    Tokens are random; shapes, masks and placeholder tokens are what the processors give.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    if config.model_type.endswith("assistant"):
        arguments = _draft_arguments(model, generator)
        return (Prompt("draft", arguments), Prompt("state", arguments, output="last_hidden_state"))
    text = _text_ids(config, 40, generator)
    found = [Prompt("text", {"input_ids": text[None]})]
    if takes(config, "image"):
        found.append(_with_media(config, pictures(config, [(3, 2)], generator, padding=1), text))
    if takes(config, "audio"):
        found.append(_with_media(config, sounds(config, [20], generator, padding=2), text))
    return tuple(found)


def _text_ids(config: Config, count: int, generator: torch.Generator) -> torch.Tensor:
    """int64 [count]: ids of the vocabulary that no media token has."""
    media = {getattr(config, key, None) for key in _MEDIA_TOKENS} - {None}
    ids = torch.randperm(config.get_text_config().vocab_size, generator=generator)
    return torch.tensor([id_ for id_ in ids[: count + len(media)].tolist() if id_ not in media][:count])


def _with_media(config: Config, media: Media, text: torch.Tensor) -> Prompt:
    """Text with one image or sound in its middle, between their opening and closing token."""
    opening, closing = {
        "image": (config.boi_token_id, config.eoi_token_id),
        "audio": (config.boa_token_id, config.eoa_token_index),
    }[media.kind]
    (count,) = media.soft_tokens
    soft = [getattr(config, f"{media.kind}_token_id")] * count
    half = len(text) // 2
    ids = torch.cat([text[:half], torch.tensor([opening, *soft, closing]), text[half:]])[None]
    types = torch.zeros_like(ids)
    types[0, half + 1 : half + 1 + count] = {"image": 1, "audio": 3}[media.kind]
    return Prompt(media.kind, {**media.arguments, "input_ids": ids, "mm_token_type_ids": types})


def _draft_arguments(model: Model, generator: torch.Generator) -> dict[str, Any]:
    """Eight drafts of one token each: the target's embedding and state, and its keys and values.

    The target's part is random, of the shapes a target with the drafter's head sizes hands over.
    """
    config = model.config.get_text_config()
    context = 24
    states = {}
    for layer, kind in zip(model.model.layers, config.layer_types, strict=True):
        attention = layer.self_attn
        heads = config.num_attention_heads // attention.num_key_value_groups
        shape = (8, heads, context, attention.head_dim)
        keys = torch.randn(shape, generator=generator) * attention.head_dim**-0.5
        states[kind] = (keys.to(model.dtype), torch.randn(shape, generator=generator).to(model.dtype))
    embeddings = torch.randn(8, 1, 2 * model.config.backbone_hidden_size, generator=generator)
    return {
        "inputs_embeds": embeddings.to(model.dtype),
        "position_ids": torch.full((8, 1), context),
        "shared_kv_states": states,
    }


def logits(model: Model, prompt: Prompt) -> torch.Tensor:
    """The logits of one prompt, float32 [tokens, vocabulary]; for `state` the state, [tokens, hidden]."""
    with torch.no_grad(), quiet_transformers():  # packed modules are unpacked in the first forward
        output: torch.Tensor = model(**prompt.arguments, use_cache=False)[prompt.output]
    return output.float().flatten(0, -2)


@dataclass(frozen=True, slots=True)
class LogitsDifference:
    """Distance of one set of logits from another; `reference` is the largest |logit| of the first."""

    max_abs: float
    mean_abs: float
    kl_mean: float
    top1_agreement: float
    reference: float

    @property
    def relative(self) -> float:
        """The largest difference as a part of the largest logit."""
        return self.max_abs / self.reference


def compare(expected: torch.Tensor, found: torch.Tensor) -> LogitsDifference:
    """Compare logits of the same prompt, both float32 [tokens, vocabulary].

    Returns:
        The difference; `kl_mean` is KL(expected, found) in nats, averaged over tokens.

    Raises:
        GateError: a logit is not finite: nothing could be concluded.
    """
    for name, values in (("expected", expected), ("found", found)):
        if not bool(values.isfinite().all()):
            raise GateError(f"{name} logits: {int((~values.isfinite()).sum())} of {values.numel()} are not finite")
    difference = (expected - found).abs()
    log_p, log_q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return LogitsDifference(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        kl_mean=max(0.0, float((log_p.exp() * (log_p - log_q)).sum(-1).mean())),
        top1_agreement=float((expected.argmax(-1) == found.argmax(-1)).float().mean()),
        reference=float(expected.abs().max()),
    )

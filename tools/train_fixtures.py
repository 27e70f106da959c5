"""Train the small real Gemma 4 checkpoints that are shipped in g4convert/demo/trained.

    apt-get install bible-kjv bible-kjv-text
    bible -f Gen1:1-Rev22:21 > kjv.txt
    python tools/train_fixtures.py OUT --text kjv.txt

Random models are poor judges: whatever is done to them, their logits are as good as before. These two have learned
something from a public-domain text and from short lessons (see lessons.py), so perplexity, agreement and the text
they generate say whether a checkpoint still works. They are transformers' own classes with the structure of the
released models, from `g4convert.demo.make` with other sizes:

    moe   26B-A4B: 16 experts, 4 for each token, beside a dense MLP; k_eq_v; sliding and full layers; vision tower
    e2b   E2B: per-layer embeddings, KV-shared layers with double-wide MLP, vision and audio towers

Routing is peaked by a penalty on the entropy of each token's router probabilities, and spread over the experts by a
reward for the entropy of their mean. Minutes on two cores. The seeds are fixed; another machine, thread count or torch
rounds differently, so a rerun gives an equally good model, not the same bytes.
"""

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lessons import PICTURE_QUESTION, SOUND_QUESTION, Lesson, Verses, lesson
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig

from g4convert.demo import make
from g4convert.demo.tokenizer import token_ids, write_tokenizer
from g4convert.forward.media import Media, pictures, sounds
from g4convert.forward.models import model_class, quiet_transformers
from g4convert.gemma4.family import Family

VOCAB_SIZE = 1024
_SIZES = {"vocab_size": VOCAB_SIZE, "vocab_size_per_layer_input": VOCAB_SIZE, "sliding_window": 64}
_TEXT_CONFIG: Mapping[Family, Mapping[str, Any]] = {
    Family.MOE: {**_SIZES, "num_experts": 16, "top_k_experts": 4, "moe_intermediate_size": 64},
    Family.E2B: {**_SIZES, "hidden_size_per_layer_input": 64, "intermediate_size": 192},
}
_MEDIA_TOKENS = {
    "boi_token_id": "<|image>",
    "eoi_token_id": "<image|>",
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "boa_token_id": "<|audio>",
    "eoa_token_index": "<audio|>",
    "audio_token_id": "<|audio|>",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Length and strength of the training."""

    steps: int = 900
    learning_rate: float = 3e-3
    rows: int = 8
    length: int = 256
    media_rows: int = 12
    peak: float = 0.02
    """Weight of the entropy of a token's router probabilities."""
    media: float = 0.3
    """Weight of the loss on pictures and sounds."""
    spread: float = 0.1
    """Weight of minus the entropy of their mean over the batch."""
    seed: int = 0


def prepare(family: Family, directory: Path, text: str) -> None:
    """Write a checkpoint with random weights, the trained sizes, and a tokenizer that learned from the text."""
    make(family, directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    ids = token_ids(VOCAB_SIZE)
    config["text_config"].update(_TEXT_CONFIG[family])
    config.update({key: ids[token] for key, token in _MEDIA_TOKENS.items() if key in config})
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_tokenizer(directory, text=text, vocab_size=VOCAB_SIZE)


def build(directory: Path) -> Any:  # noqa: ANN401 -- transformers ships no types
    """The model with weights to start from: towers as `make` filled them, the decoder drawn anew."""
    with quiet_transformers():
        config = AutoConfig.from_pretrained(directory)
        model = model_class(config.model_type)(config)
    state = {key: value for path in directory.glob("*.safetensors") for key, value in load_file(path).items()}
    own = model.state_dict()
    kept = {
        key: value.float()
        for key, value in state.items()
        if ("_tower." in key or "layer_scalar" in key) and own[key].shape == value.shape
    }
    model.load_state_dict(kept, strict=False)
    for name, parameter in model.named_parameters():
        if "_tower." not in name:
            start(name, parameter.data)
    scalars = [layer.layer_scalar for layer in model.model.language_model.layers]
    for scalar, value in zip(scalars, (0.5, 1.5, 0.7, 1.2, 0.6, 1.4), strict=False):
        scalar.fill_(value)  # untrained in real models too; must matter, so none is one
    return model


def start(name: str, value: torch.Tensor) -> None:
    """The first value of a decoder's tensor."""
    if name.endswith("router.proj.weight"):
        value.normal_(0, 1.5)
    elif name.endswith("per_expert_scale"):
        value.uniform_(0.7, 1.3)
    elif "embed_tokens" in name:
        value.normal_(0, 0.05)
    elif name.endswith("k_norm.weight"):
        value.fill_(1.5 / math.sqrt(value.shape[0]))  # Gemma 4 does not scale attention otherwise
    elif is_norm(name):
        value.fill_(0.5 if "post_" in name else 1.0)
    elif value.ndim > 1:
        value.normal_(0, value.shape[-1] ** -0.5)


def is_norm(name: str) -> bool:
    """Return True if a parameter is the weight of a norm."""
    return "norm" in name.rsplit(".", 2)[-2]


@dataclass(frozen=True, slots=True)
class Batch:
    """Arguments of `forward`, and where the next token counts."""

    arguments: Mapping[str, torch.Tensor]
    counts: torch.Tensor
    """bool [rows, length]: the token at this position is to be predicted."""


class Classroom:
    """Lessons as token ids, in the checkpoint's own chat frame."""

    def __init__(self, directory: Path, verses: Verses, seed: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        with quiet_transformers():
            self.config = AutoConfig.from_pretrained(directory)
        self.verses = verses
        self.rng = random.Random(seed)  # noqa: S311 -- not for secrets
        self.generator = torch.Generator().manual_seed(seed)

    def encode(self, given: Lesson) -> tuple[list[int], list[bool]]:
        """Ids of a conversation, and which belong to the answer."""
        question = f"<bos><|turn>user\n{given.question}<turn|>\n<|turn>model\n"
        ask, answer = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in (question, given.answer))
        end = self.tokenizer.encode("<turn|>\n", add_special_tokens=False).ids
        return ask + answer + end, [False] * len(ask) + [True] * (len(answer) + 1) + [False] * (len(end) - 1)

    def text(self, rows: int, length: int) -> Batch:
        """Rows filled with conversations; every token counts."""
        ids = []
        for _ in range(rows):
            row: list[int] = []
            while len(row) < length:
                row += self.encode(lesson(self.rng, self.verses.learned))[0]
            ids.append(row[:length])
        tensor = torch.tensor(ids)
        return Batch({"input_ids": tensor}, torch.ones_like(tensor, dtype=torch.bool))

    def of(self, given: list[Lesson], media: Media | None = None) -> Batch:
        """One conversation a row, padded on the right; answers count."""
        encoded = [self.encode(each) for each in given]
        width = max(len(ids) for ids, _ in encoded)
        ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in encoded])
        counts = torch.tensor([row + [False] * (width - len(row)) for _, row in encoded])
        arguments = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        if media is not None:
            kind, number = (self.config.image_token_id, 1) if media.kind == "image" else (self.config.audio_token_id, 3)
            arguments |= {**media.arguments, "mm_token_type_ids": (ids == kind) * number}
        return Batch(arguments, counts)

    def pictures(self, rows: int) -> Batch:
        """Questions about pictures."""
        sizes = [(self.rng.randint(1, 4), self.rng.randint(1, 3)) for _ in range(rows)]
        media = pictures(self.config, sizes, self.generator)
        frame = ("<|image>", "<|image|>", "<image|>")
        return self.of(self.about(media, frame, PICTURE_QUESTION), media)

    def sounds(self, rows: int) -> Batch:
        """Questions about sounds."""
        media = sounds(self.config, [4 * self.rng.randint(1, 5) for _ in range(rows)], self.generator)
        return self.of(self.about(media, ("<|audio>", "<|audio|>", "<audio|>"), SOUND_QUESTION), media)

    def about(self, media: Media, frame: tuple[str, str, str], question: str) -> list[Lesson]:
        """A question about each item; half of them have some words before the item."""
        opening, soft, closing = frame
        before = [self.rng.choice(self.verses.learned).split()[:8] * self.rng.randrange(2) for _ in media.content]
        return [
            Lesson(media.kind, f"{' '.join(words)}{opening}{soft * count}{closing}{question}", content)
            for words, count, content in zip(before, media.soft_tokens, media.content, strict=True)
        ]

    def batches(self, settings: Settings) -> Iterator[tuple[Batch, Batch]]:
        """Text and media, without end."""
        kinds = [self.pictures] + [self.sounds] * (self.config.audio_config is not None)
        number = 0
        while True:
            yield self.text(settings.rows, settings.length), kinds[number % len(kinds)](settings.media_rows)
            number += 1


class Routing:
    """Router probabilities of the last forward, kept by hooks."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        self.found: list[torch.Tensor] = []
        for module in model.modules():
            if type(module).__name__ == "Gemma4TextRouter":
                module.register_forward_hook(lambda _m, _i, output: self.found.append(output[0]))

    def penalty(self, settings: Settings) -> torch.Tensor | float:
        """Small when each token is sure and all experts are used; forgets what was kept."""
        total: torch.Tensor | float = 0.0
        for probabilities in self.found:
            mean = probabilities.mean(0)
            total = total + settings.peak * _entropy(probabilities).mean() - settings.spread * _entropy(mean)
        self.found.clear()
        return total


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return -(probabilities * (probabilities + 1e-9).log()).sum(-1)


def loss(model: Any, batch: Batch) -> torch.Tensor:  # noqa: ANN401
    """Mean cross-entropy of the tokens that count."""
    logits = model(**batch.arguments, use_cache=False).logits[:, :-1]
    counts = batch.counts[:, 1:]
    return torch.nn.functional.cross_entropy(logits[counts], batch.arguments["input_ids"][:, 1:][counts])


def train(model: Any, classroom: Classroom, settings: Settings) -> None:  # noqa: ANN401
    """AdamW, short warm-up, then linear decay to zero; each step has a batch of text and one of media."""
    routing = Routing(model)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    model.train()
    for step, (text, media) in zip(range(settings.steps), classroom.batches(settings), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1, (step + 1) / 40) * (1 - step / settings.steps)
        text_loss = loss(model, text)
        (text_loss + routing.penalty(settings)).backward()
        media_loss = loss(model, media)
        routing.found.clear()
        (settings.media * media_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            spent = time.process_time()
            sys.stdout.write(f"{spent:6.0f} s  step {step:5d}  text {text_loss:.3f}  media {media_loss:.3f}\n")
            sys.stdout.flush()
    model.eval()


def save(model: Any, source: Path, target: Path) -> None:  # noqa: ANN401
    """Write the checkpoint in bf16, with the config as it was spelled and the side files of `source`."""
    with torch.device("meta"):
        stored = model_class(model.config.model_type)(model.config)
    state = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items() if key != "lm_head.weight"}
    stored.load_state_dict(state, strict=False, assign=True)
    stored.tie_weights()
    with quiet_transformers():
        stored.save_pretrained(target, max_shard_size="2MB")
    for path in source.iterdir():
        if path.suffix != ".safetensors" and "index" not in path.name:
            shutil.copyfile(path, target / path.name)
    for path in target.glob("*.safetensors"):
        path.chmod(0o644)


def main() -> None:
    """Train the families and write them below OUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="plain text, one verse or sentence a line")
    parser.add_argument("--family", type=Family, choices=list(_TEXT_CONFIG), action="append")
    parser.add_argument("--steps", type=int, default=Settings().steps)
    arguments = parser.parse_args()
    verses = Verses.of(arguments.text)
    settings = replace(Settings(), steps=arguments.steps)
    for family in arguments.family or list(_TEXT_CONFIG):
        torch.manual_seed(settings.seed)
        torch.set_num_threads(1)  # matrices this small run no faster on two
        with tempfile.TemporaryDirectory() as name:
            source = Path(name) / family
            prepare(family, source, "\n".join(verses.learned[:8000]))
            model = build(source)
            sys.stdout.write(f"{family}: {sum(p.numel() for p in model.parameters())} parameters\n")
            train(model, Classroom(source, verses, settings.seed), settings)
            save(model, source, arguments.out / family)


if __name__ == "__main__":
    main()

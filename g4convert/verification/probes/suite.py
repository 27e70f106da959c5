"""Probes: forward calls that together reach every part of a Gemma 4 model, with the predictions to score.

    prose code tools non_latin   conversations in the checkpoint's own tokens and chat frame
    long                         the answer lies farther back in the prompt than the sliding window
    batch                        three lengths in one call, padded on the left
    image audio video            see media
    draft                        MTP assistants: states, keys and values that a target hands over

A position is scored (`response`) if the next token is part of the answer: the given answer, or the reference's own
after `answers.answer_probes`. In plain text for a base model every prediction is scored.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from g4convert.errors import UsageError
from g4convert.forward.conversations import Conversation, Frame, frame_of
from g4convert.forward.decoding import pad
from g4convert.forward.models import Config, Model
from g4convert.forward.probe import Probe
from g4convert.gemma4 import is_drafter
from g4convert.suggestions import no_such
from g4convert.verification.probes.media import MEDIA, MediaPrompt, media_prompts, place_soft_tokens

BUCKETS = ("prose", "code", "tools", "non_latin")
"""Kinds of the bundled conversations."""
KINDS = (*BUCKETS, "long", "batch", *MEDIA, "draft")
"""Buckets of probes; a model gets the buckets whose inputs it takes."""

_BATCH = ("harbour", "train", "greek_count")


def make_probes(  # noqa: PLR0913 -- a model, its files, and what may vary
    model: Model,
    directory: Path,
    *,
    kinds: Sequence[str] | None = None,
    conversations: Sequence[Conversation] | None = None,
    tokens: int | None = None,
    seed: int = 0,
) -> tuple[Probe, ...]:
    """Make probes for every input that the model takes; the same arguments give the same probes.

    Args:
        model: a Gemma 4 model, or its config if the model is no MTP assistant.
        directory: directory of the tokenizer and chat template: the checkpoint, or its source.
        kinds: buckets to make, of `KINDS`; all by default.
        conversations: the user's conversations, from `own.conversations`, in place of the bundled text.
        tokens: approximate number of tokens of bundled text in all; each bucket keeps at least one conversation.
        seed: seed of pictures and sounds.

    Raises:
        UsageError: an unknown kind, or only kinds that the model does not take.
        InputError: the tokenizer does not fit the model's vocabulary.
    """
    buckets = tuple(KINDS if kinds is None else kinds)
    if unknown := sorted(set(buckets) - set(KINDS)):
        raise no_such("kind of probe", unknown[0], KINDS)
    config: Config = getattr(model, "config", model)
    if is_drafter(config.model_type):
        return (draft_probe(model, seed=seed),)
    frame = frame_of(directory, config)
    if conversations is None:
        chosen = _choose_within([entry for entry in bundled() if entry.bucket in buckets], frame, tokens)
        if "long" in buckets:
            chosen += _long_conversations(frame, config.get_text_config().sliding_window)
    else:
        chosen = list(conversations)
    probes = [_text_probe(entry, frame) for entry in chosen]
    if "batch" in buckets and conversations is None:
        rows = [ids_of(entry, frame) for entry in bundled() if entry.name in _BATCH]
        probes.append(pad_left("batch", "batch", rows, config))
    media = [prompt for prompt in media_prompts(config, seed) if prompt.media.kind in buckets]
    probes += [_media_probe(prompt, frame, config) for prompt in media]
    if not probes:
        raise UsageError(f"a {config.model_type} model takes none of {', '.join(buckets)}")
    return tuple(probes)


def digest(probes: Iterable[Probe]) -> str:
    """Return the sha256 over names, arguments and scored positions: runs with the same digest had the same probes."""
    state = hashlib.sha256()
    for probe in probes:
        state.update(f"{probe.name}\0{probe.bucket}\0".encode())
        for key, value in sorted({**probe.arguments, "response": probe.response, "targets": probe.targets}.items()):
            if isinstance(value, torch.Tensor):
                state.update(f"{key}\0{list(value.shape)}{value.dtype}\0".encode())
                state.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def pad_left(name: str, bucket: str, rows: Sequence[tuple[Sequence[int], Sequence[int]]], config: Config) -> Probe:
    """Return one probe of questions and answers of different lengths, padded on the left as for generation."""
    arguments = pad([[*question, *answer] for question, answer in rows], config)
    width = arguments["input_ids"].shape[1]
    answers = torch.tensor([[False] * (width - len(answer)) + [True] * len(answer) for _, answer in rows])
    return Probe.of(name, bucket, arguments, answers)


def ids_of(entry: Conversation, frame: Frame) -> tuple[list[int], list[int]]:
    """Return the ids of question and answer; in plain text, all tokens but the first are the answer."""
    question = frame.question(entry.messages)
    answer = [*frame.encode(entry.answer), *frame.closing()] if entry.answer else []
    if frame.chat:
        return question, answer
    return question[:1], question[1:] + answer


def _text_probe(entry: Conversation, frame: Frame) -> Probe:
    question, answer = ids_of(entry, frame)
    ids = torch.tensor([question + answer])
    return Probe.of(entry.name, entry.bucket, {"input_ids": ids}, torch.arange(ids.shape[1])[None] >= len(question))


def _media_probe(prompt: MediaPrompt, frame: Frame, config: Config) -> Probe:
    question = place_soft_tokens(prompt.media, frame.question(prompt.messages), frame, config)
    ids = torch.tensor([question + frame.encode(prompt.answer) + frame.closing()])
    number = {"image": 1, "video": 2, "audio": 3}[prompt.media.kind]
    types = (ids == getattr(config, f"{prompt.media.kind}_token_id")).long() * number
    arguments = {"input_ids": ids, "mm_token_type_ids": types, **prompt.media.arguments}
    return Probe.of(prompt.name, prompt.media.kind, arguments, torch.arange(ids.shape[1])[None] >= len(question))


def _choose_within(conversations: Sequence[Conversation], frame: Frame, tokens: int | None) -> list[Conversation]:
    """Choose conversations that fit into `tokens`, from the buckets in turn; always the first of each bucket."""
    if tokens is None:
        return list(conversations)
    buckets = [[entry for entry in conversations if entry.bucket == bucket] for bucket in BUCKETS]
    chosen: list[Conversation] = []
    for number, row in enumerate(zip_longest(*buckets)):
        for entry in filter(None, row):
            length = sum(map(len, ids_of(entry, frame)))
            if number == 0 or length <= tokens:
                chosen.append(entry)
                tokens -= length
    return chosen


def draft_probe(model: Model, *, seed: int = 0) -> Probe:
    """Return a probe of eight drafts; their right tokens are not known, so the probe's targets are random."""
    arguments = _draft_arguments(model, torch.Generator().manual_seed(seed))
    rows, length = arguments["inputs_embeds"].shape[:2]
    vocab_size = model.config.get_text_config().vocab_size
    targets = torch.randint(vocab_size, (rows * length,), generator=torch.Generator().manual_seed(seed))
    return Probe("draft", "draft", arguments, torch.ones(rows, length, dtype=torch.bool), targets)


def _draft_arguments(model: Model, generator: torch.Generator) -> dict[str, Any]:
    """Return the arguments of eight drafts of one token each: the target's embedding and state, keys and values.

    They are random, with the shapes that a target with the drafter's head sizes hands over.
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


def bundled() -> tuple[Conversation, ...]:
    """Return the bundled conversations."""
    text = (files("g4convert.verification.probes") / "data" / "conversations.jsonl").read_text("utf-8")
    return tuple(
        Conversation(entry["name"], entry["bucket"], tuple(entry["messages"][:-1]), entry["messages"][-1]["content"])
        for entry in map(json.loads, text.splitlines())
    )


def _long_conversations(frame: Frame, window: int) -> tuple[Conversation, ...]:
    """Return conversations that ask for a note which lies farther back than the sliding window."""
    notes = [entry.answer for entry in bundled() if entry.bucket == "prose"]
    conversations = []
    for number in range(2):
        lines: list[str] = []
        length = 0
        while length <= window + 16:  # the text after the first note already fills the window
            line = f"Note {len(lines) + 1}: {notes[(number + len(lines)) % len(notes)]}"
            length += len(frame.encode(line)) if lines else 0
            lines.append(line)
        ask = "\n".join([*lines, "Repeat note 1."])
        conversations.append(
            Conversation(f"long_{number + 1}", "long", ({"role": "user", "content": ask},), notes[number])
        )
    return tuple(conversations)

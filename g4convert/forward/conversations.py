"""Conversations in words, and the token ids they become: in a checkpoint's own tokens and chat frame.

    words (jsonl) --tokenizer.json, chat template--> question ids + answer ids

Words are shipped and not ids, so one set serves every vocabulary, real and tiny. An instruction-tuned model is asked
in its chat frame only: off the frame its predictions are flat and wild, and differences there say nothing about the
answers people get. A base model has no frame and reads the same words as plain text. A checkpoint without a tokenizer
gets ids made from the words' hash: they still reach every part, but mean nothing.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from g4convert.errors import InputError, UsageError
from g4convert.forward.chat_templates import rendered
from g4convert.forward.models import Config, reading
from g4convert.quantities import plural
from g4convert.text_lines import ROLES, checked_text, json_lines, parse_lines, read_texts

_CHAT_LINE = (
    'one JSON object a line: {"messages": [{"role": "user", "content": "Hello"}]}, as this model chats; in text alone: '
    "the bundled probes have images and sounds"
)
_PLAIN_LINE = 'one JSON object a line: {"prompt": "Once upon a time"}, as this is a base model'


@dataclass(frozen=True, slots=True)
class Conversation:
    """A question, and the answer whose tokens count until the reference has given its own."""

    name: str
    bucket: str
    messages: tuple[Mapping[str, Any], ...]
    """All before the answer; `content` is text, or parts of `{"type": "text" | "image" | "audio" | "video"}`."""
    answer: str = ""
    raw: bool = False
    """Plain text for a base model: all of it counts."""
    place: str = field(default="", compare=False)
    """Line of the user's file, for errors."""


def read_prompts(path: Path, *, chat: bool) -> tuple[Conversation, ...]:
    r"""Read the user's own prompts: one JSON object a line.

    Args:
        path: file of `{"messages": [{"role": ..., "content": ...}, ...]}` lines for an instruction-tuned model (a last
            message by the assistant is the answer that counts), or `{"prompt": "..."}` lines for a base model.
        chat: whether the model is instruction-tuned.

    Raises:
        InputError: not such lines, or two of the same name; all are named.
        UsageError: plain text for an instruction-tuned model, or a conversation for a base model.
    """
    form, misfits, places = _CHAT_LINE if chat else _PLAIN_LINE, list[str](), dict[str, str]()

    def prompt(number: int, entry: Mapping[str, Any]) -> Conversation:
        found = _prompt(f"{path.stem}:{number}", f"line {number}", entry)
        if (first := places.setdefault(found.name, found.place)) != found.place:
            raise ValueError(f"the name {found.name!r} again, of {first}: results are told by name")
        misfits.extend([found.place] * (found.raw is chat))
        return found

    found, bad = parse_lines(json_lines(read_texts(path, form)), prompt)
    if bad or not found:
        problem = f"{plural(len(bad), 'line')} cannot be read as prompts" if bad else "holds no prompt"
        raise InputError(f"{path}: {problem}", hint=form, offenders=bad)
    if misfits and chat:
        raise UsageError(
            f"{path}: plain text for an instruction-tuned model: it was never trained off its chat frame, its "
            "predictions there are wild, and how far a quantized one follows them says nothing about its answers",
            hint=_CHAT_LINE,
            offenders=misfits,
        )
    if misfits:
        raise UsageError(
            f"{path}: conversations for a model without a chat template, a base model",
            hint=_PLAIN_LINE,
            offenders=misfits,
        )
    return tuple(found)


def _prompt(name: str, place: str, entry: Mapping[str, Any]) -> Conversation:
    """Parse one line; ValueError says what is wrong with it."""
    if not isinstance(entry, dict):
        raise TypeError("not a JSON object")
    if unknown := sorted(entry.keys() - {"messages", "prompt", "name", "bucket"}):
        raise ValueError(f"unknown key {unknown[0]!r}")
    if ("messages" in entry) == ("prompt" in entry):
        raise ValueError("needs either messages or prompt")
    given_names = {key: str(value) for key in ("name", "bucket") if (value := entry.get(key)) is not None}
    name, bucket = given_names.get("name", name), given_names.get("bucket", "prompts")
    if "prompt" in entry:
        asked = {"role": "user", "content": checked_text(entry["prompt"])}
        return Conversation(name, bucket, (asked,), raw=True, place=place)
    if not isinstance(entry["messages"], list):
        raise TypeError("messages is not a list of messages")
    messages = [_message(one) for one in entry["messages"]]
    answer = messages.pop()["content"] if messages and messages[-1]["role"] in ("assistant", "model") else ""
    if not messages:
        raise ValueError("no message to answer")
    return Conversation(name, bucket, tuple(messages), answer, place=place)


def _message(entry: object) -> dict[str, str]:
    """Parse one message; ValueError says what is wrong with it."""
    if not isinstance(entry, dict) or not {"role", "content"} <= entry.keys():
        raise ValueError("a message needs role and content")
    if entry["role"] not in ROLES:
        raise ValueError(f"role {entry['role']!r} is not one of {', '.join(ROLES)}")
    return {"role": str(entry["role"]), "content": checked_text(entry["content"])}


def frame_of(directory: Path, config: Config) -> "Frame":
    """Return the frame of a checkpoint: its tokenizer with or without chat template, or none.

    Raises:
        InputError: the tokenizer is not of the model's vocabulary.
        FormatError: its files cannot be read.
    """
    vocab_size = config.get_text_config().vocab_size
    if not (directory / "tokenizer.json").is_file():
        return _Hashed(config)
    with reading(f"{directory}: the tokenizer", "restore tokenizer*.json from the model's repository"):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"{directory}: tokenizer.json has {len(tokenizer)} tokens, the model's vocabulary {vocab_size}",
            hint="copy the tokenizer that belongs to this model",
        )
    return Frame(config, tokenizer) if tokenizer.chat_template is None else _Chat(config, tokenizer)


def _special_ids(config: Config) -> frozenset[int]:
    """Return the ids with a meaning of their own: media placeholders, padding, and the like."""
    kinds = ("pad", "bos", "eos", "image", "audio", "video", "boi", "eoi", "boa")
    return _ids_under(config, ("eoa_token_index", *(f"{kind}_token_id" for kind in kinds)))


def placeholders(config: Config) -> list[int]:
    """Return the ids that stand for a soft token of a picture, a sound or a video."""
    return sorted(_ids_under(config, [f"{kind}_token_id" for kind in ("image", "audio", "video")]))


def _ids_under(config: Config, keys: Iterable[str]) -> frozenset[int]:
    """Return the ids that a config has under some keys."""
    named = [getattr(owner, key, None) for key in keys for owner in (config, config.get_text_config())]
    return frozenset(
        id_ for entry in named for id_ in (entry if isinstance(entry, list) else [entry]) if id_ is not None
    )


@dataclass(frozen=True, slots=True)
class Frame:
    """Turns words into ids of one checkpoint; this one is a base model's, without a chat template.

    Args:
        config: config of the model.
        tokenizer: tokenizer of transformers; None if the checkpoint has none.
    """

    config: Config
    tokenizer: Any = None

    @property
    def chat(self) -> bool:
        """True if the model is asked in a chat frame, as an instruction-tuned one is."""
        return False

    @property
    def beginning(self) -> list[int]:
        """Ids that text begins with: BOS, or none if the tokenizer has no BOS."""
        bos = None if self.tokenizer is None else self.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, nothing added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def question(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the ids up to where the model speaks; an image, sound or video is one id, its placeholder."""
        return [*self.beginning, *self._join_texts(messages), *self.encode("\n")]

    def closing(self) -> list[int]:
        """Return the ids that end an answer."""
        return []

    def _join_texts(self, messages: Iterable[Mapping[str, Any]]) -> list[int]:
        """Return the ids of the messages' texts one after the other."""
        ids: list[int] = []
        for message in messages:
            content = message["content"]
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                kind = part["type"]
                ids += self.encode(part["text"]) if kind == "text" else [getattr(self.config, f"{kind}_token_id")]
        return ids


class _Chat(Frame):
    """A tokenizer with a chat template."""

    chat = True

    def question(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return self.encode(rendered(self.tokenizer, messages, asks=True))

    def closing(self) -> list[int]:
        token = getattr(self.tokenizer, "eot_token", None) or self.tokenizer.eos_token
        return [self.tokenizer.convert_tokens_to_ids(token)]


class _Hashed(Frame):
    """No tokenizer: an id for each word, from the text's hash."""

    def encode(self, text: str) -> list[int]:
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        count, special = max(1, len(text.split())), _special_ids(self.config)
        vocab_size = self.config.get_text_config().vocab_size
        drawn = torch.randint(vocab_size, (4 * count + 64,), generator=generator).tolist()
        return [id_ for id_ in drawn if id_ not in special][:count]

    def question(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return self._join_texts(messages)

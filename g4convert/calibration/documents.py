"""Texts for calibration: the user's own, a dataset's, or the bundled ones. `sampling` turns them into ids.

A line of a .jsonl file is one document: {"messages": [{"role": ..., "content": ...}, ...]}, {"text": ...} or
{"prompt": ...}, with an optional {"kind": ...}. In a .txt file blank lines separate paragraphs, and paragraphs are
joined until a document has at least `_SHORT` characters.

Content is text, or parts as chat templates take them: {"type": "text", "text": ...} and {"type": "image", "path": ...},
with paths relative to the file, or {"type": "image"} with the paths in the line's "images", in order. Every picture is
read once before anything starts.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, Final

from g4convert.calibration.pictures import NAMED, Find, Picture, beside, draw_named, none_of_datasets
from g4convert.errors import EnvironmentFault, InputError
from g4convert.quantities import plural
from g4convert.text_lines import ROLES, checked_text, json_lines, parse_lines, read_texts

KINDS: Final = ("chat", "reasoning", "code", "tools", "scripts", "long", "prose")
"""Kinds of the bundled texts, besides `PICTURES`; there are no sounds."""
PICTURES: Final = "pictures"
"""Kind of the bundled texts about pictures, for models that take these."""
_MOST_DOCUMENTS: Final = 20_000
"""Most documents taken from a dataset."""
_KEYS: Final = ("messages", "text", "prompt")
_FORMS: Final = (
    'one JSON object a line: {"messages": [{"role": "user", "content": "Hello"}, ...]} or {"text": "..."}; pictures '
    'are parts of a content: [{"type": "image", "path": "FILE"}, {"type": "text", "text": "..."}]'
)
_SHORT: Final = 2000
"""Least characters of a document in a .txt file; only the last document may be shorter."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text or conversation.

    Args:
        kind: kind of text, for the report; kinds take turns in the rows.
        messages: `role` and `content` of each message; a plain text is one message of a user. Content with pictures is
            a list of parts, {"type": "text", "text": ...} and {"type": "image"}.
        pictures: pictures of the parts, in order.
        place: line of the file, for errors.
    """

    kind: str
    messages: tuple[Mapping[str, Any], ...]
    pictures: tuple[Picture, ...] = ()
    place: str = ""

    @property
    def text(self) -> str:
        """Texts of all messages, joined by newlines."""
        return "\n".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def parts(self) -> Iterator[Mapping[str, str]]:
        """Parts of all messages, in order."""
        for message in self.messages:
            content = message["content"]
            yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


def bundled_documents(*, pictures: bool = False) -> tuple[Document, ...]:
    """Return the texts that ship with the package, written for it.

    Args:
        pictures: whether to add those about pictures, which are drawn.
    """
    folder = files("g4convert.calibration") / "texts"
    return tuple(
        document
        for kind in (*KINDS, *[PICTURES] * pictures)
        for document in _parse_lines(
            json_lines((folder / f"{kind}.jsonl").read_text("utf-8")), f"{kind}.jsonl", kind, draw_named
        )
    )


def read_documents(data: str) -> tuple[Document, ...]:
    """Read the user's own texts.

    Args:
        data: a .jsonl or .txt file, or a dataset as `org/name[:split]`.

    Raises:
        InputError: the file cannot be read, has malformed lines or pictures that do not load (all are named), or holds
            no text.
        EnvironmentFault: the library `datasets` is missing, or the dataset cannot be loaded.
    """
    path = Path(data)
    if path.suffix in {".jsonl", ".txt"}:
        text, is_lines = read_texts(data, _FORMS), path.suffix == ".jsonl"
        found = _parse_lines(json_lines(text), data, "data", beside(path)) if is_lines else [*_paragraphs(text)]
    elif path.is_file():
        raise InputError(f"{data}: neither .jsonl nor .txt", hint=_FORMS)
    else:
        found = _parse_lines(_rows(data), data, "data", none_of_datasets)
    if not found:
        raise InputError(f"{data}: holds no text", hint=_FORMS)
    return tuple(found)


def hash_of_documents(documents: Iterable[Document]) -> str:
    """Return the sha256 of the documents' texts, kinds, roles and pictures."""
    digest = sha256()
    for one in documents:
        shown = [picture.digest for picture in one.pictures]
        digest.update(json.dumps([one.kind, *map(dict, one.messages), *shown], sort_keys=True).encode())
    return digest.hexdigest()


def _parse_lines(lines: Iterable[str | Mapping[str, Any]], place: str, kind: str, find: Find) -> list[Document]:
    """Parse lines of JSON, or rows that are parsed already.

    Raises:
        InputError: some lines are malformed; all are named.
    """
    found, bad = parse_lines(lines, lambda number, entry: _document(entry, kind, f"line {number}", find))
    if bad:
        raise InputError(f"{place}: {plural(len(bad), 'line')} cannot be read", hint=_FORMS, offenders=bad)
    return found


def _document(entry: object, kind: str, place: str, find: Find) -> Document:
    """Parse one line; raise ValueError or TypeError with the reason if it is malformed."""
    if not isinstance(entry, Mapping):
        raise TypeError("not a JSON object")
    given = [key for key in _KEYS if entry.get(key) is not None]
    if len(given) != 1:
        raise ValueError(f"needs one of {', '.join(_KEYS)}, has {', '.join(given) or 'none of them'}")
    kind, key = str(entry.get("kind", kind)), given[0]
    if key != "messages":
        return Document(kind, (_said(checked_text(entry[key])),), (), place)
    if not isinstance(entry[key], Sequence) or isinstance(entry[key], str) or not entry[key]:
        raise ValueError("messages is not a list of messages")
    pictures: list[Picture] = []
    listed = entry.get("images") or []
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise TypeError("images is not a list of files")
    left = iter(listed)

    def named(part: Mapping[str, Any]) -> Picture:
        one = part if any(part.get(name) is not None for name in NAMED) else next(left, part)
        return find(one if isinstance(one, Mapping) else {"path": one})

    messages = tuple(_message(one, pictures, named) for one in entry[key])
    if next(left, None) is not None:
        raise ValueError(f"images: {len(listed)} of them, more than parts of type image")
    return Document(kind, messages, tuple(pictures), place)


def _message(entry: object, pictures: list[Picture], find: Find) -> Mapping[str, Any]:
    """Parse a message, and add its pictures to `pictures`."""
    if not isinstance(entry, Mapping) or not {"role", "content"} <= entry.keys():
        raise ValueError("a message needs role and content")
    if entry["role"] not in ROLES:
        raise ValueError(f"role {entry['role']!r} is not one of {', '.join(ROLES)}")
    content = entry["content"]
    if isinstance(content, str) or not isinstance(content, Sequence):
        return {"role": str(entry["role"]), "content": checked_text(content)}
    parts = [_part(one, pictures, find) for one in content]
    if all(part["type"] == "text" for part in parts):
        return {"role": str(entry["role"]), "content": checked_text("\n".join(part["text"] for part in parts))}
    return {"role": str(entry["role"]), "content": parts}


def _part(entry: object, pictures: list[Picture], find: Find) -> Mapping[str, str]:
    """Parse a part of a message, and add its picture to `pictures`."""
    kind = entry.get("type") if isinstance(entry, Mapping) else None
    if isinstance(entry, Mapping) and kind == "text":
        return {"type": "text", "text": checked_text(entry.get("text"))}
    if isinstance(entry, Mapping) and kind == "image":
        pictures.append(find(entry))
        return {"type": "image"}
    raise ValueError(f"a part of type {kind!r}: text and image are what can be calibrated on")


def _said(text: str) -> Mapping[str, str]:
    return {"role": "user", "content": text}


def _paragraphs(text: str) -> Iterator[Document]:
    """Cut a text at blank lines and yield documents of at least `_SHORT` characters; the last may be shorter."""
    parts: list[str] = []
    for paragraph in text.split("\n\n"):
        if paragraph.strip():
            parts.append(paragraph.strip("\n"))
        if sum(map(len, parts)) >= _SHORT:
            yield Document("data", (_said("\n\n".join(parts)),))
            parts = []
    if parts:
        yield Document("data", (_said("\n\n".join(parts)),))


def _rows(data: str) -> list[Mapping[str, Any]]:
    """Load the first rows of a dataset, with the columns that hold text."""
    name, _, split = data.partition(":")
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise EnvironmentFault(
            f"--data {data}: a dataset by name needs the library datasets", hint="pip install 'g4convert[datasets]'"
        ) from error
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        taken = list(islice(rows, _MOST_DOCUMENTS))
    except (OSError, ValueError, RuntimeError) as error:  # what the library raises for names, splits and networks
        first = (str(error).splitlines() or [""])[0]
        raise EnvironmentFault(
            f"--data {data}: cannot be loaded: {first}", hint="a file works too: FILE.jsonl"
        ) from error
    return [{key: row[key] for key in (*_KEYS, "kind") if row.get(key) is not None} for row in taken]

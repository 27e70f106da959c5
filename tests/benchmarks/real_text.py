"""Windows of text to calibrate and to judge a real model on: five kinds, from what a Debian machine has on disk.

    prose      the English manuals of vim and perl
    languages  vim's tutor and translated manual pages in ten languages, four scripts
    rst        documentation in reStructuredText
    markdown   documentation in Markdown, much of it with JavaScript
    code       Python's standard library

A document belongs to one side by the hash of its path, so nothing that judges is seen by a calibration. Within a side
windows go round the documents of each kind, one window of each document before the second of any. What a machine has
decides what is read; the hash of all ids says whether two runs judged the same.
"""

import gzip
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

__all__ = ["KINDS", "Window", "digest", "windows"]

_DOCS = Path("/usr/share")
_LANGUAGES = ("de", "es", "fr", "ja", "ko", "pl", "pt_BR", "ru", "uk", "zh_CN")
_TUTORS = "vim/vim*/tutor/tutor.{}.utf-8"
_PATTERNS: Mapping[str, Sequence[tuple[Path, str]]] = {
    "prose": [(_DOCS, "vim/vim*/doc/usr_*.txt"), (_DOCS, "perl/*/pod/*.pod"), (_DOCS, "doc/**/FAQ*")],
    "languages": [
        *((_DOCS, _TUTORS.format(language.lower())) for language in (*_LANGUAGES, "pt")),
        *((_DOCS, f"man/{language}/man*/*.gz") for language in _LANGUAGES),
    ],
    "rst": [(_DOCS, "doc/**/*.rst"), (_DOCS, "doc/**/*.rst.gz")],
    "markdown": [(_DOCS, "doc/nodejs/api/*.md"), (_DOCS, "doc/**/README.md")],
    "code": [(Path(os.__file__).parent, "*.py"), (Path(os.__file__).parent, "asyncio/*.py")],
}
KINDS = tuple(_PATTERNS)

_BOS = 2
_SKIP = 1500
"""Characters at the start of a document: licences and tables of contents."""
_SHORTEST = 4000
_LONGEST = 200_000
_JUDGES = 3
"""One document in so many judges."""


@dataclass(frozen=True, slots=True)
class Window:
    """Ids in a row of one document, with the beginning-of-sequence id first."""

    kind: str
    ids: tuple[int, ...]


def windows(
    encode: Callable[[str], list[int]], *, judging: bool, each: int, length: int, kinds: Sequence[str] = KINDS
) -> tuple[Window, ...]:
    """Cut windows.

    Args:
        encode: text to ids, no special ones added.
        judging: of which side.
        each: windows of each kind.
        length: ids of a window.
        kinds: those wanted.
    """
    found: list[Window] = []
    for kind in kinds:
        documents = (text for path in _documents(kind, judging=judging) if (text := _text(path)))
        cut = [list(islice(_cut(encode(text), length - 1), 8)) for text in islice(documents, 4 * each)]
        rounds = (ids for ids in chain.from_iterable(zip_longest(*cut)) if ids)
        found += [Window(kind, (_BOS, *ids)) for ids in islice(rounds, each)]
    return tuple(found)


def digest(cut: Sequence[Window]) -> str:
    """A hash of all ids."""
    return hashlib.sha256(repr([window.ids for window in cut]).encode()).hexdigest()[:16]


def _documents(kind: str, *, judging: bool) -> Iterator[Path]:
    """The files of one side, in an order that has nothing to do with their names."""
    paths = {path for root, pattern in _PATTERNS[kind] for path in root.glob(pattern) if path.is_file()}
    hashed = sorted((hashlib.sha256(path.name.encode()).digest(), path) for path in paths)
    return (path for key, path in hashed if (key[-1] % _JUDGES == 0) is judging)


def _text(path: Path) -> str:
    """A document as plain text; nothing of a short or binary one."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return ""
    if "/man/" in str(path):
        text = re.sub(r"\\f[A-Z]|\\&|\\-", "", re.sub(r"(?m)^[.'].*\n?", "", text))
    return text[_SKIP:_LONGEST] if len(text) > _SHORTEST else ""


def _cut(ids: list[int], length: int) -> Iterator[list[int]]:
    for begin in range(0, len(ids) - length + 1, length):
        yield ids[begin : begin + length]

"""Matching of `ignore` and `targets` entries against module names, shared by every command.

    compressed-tensors    whole names, class names, `re:` with `re.match`: from the start of a name, to no certain end
    awq, gptq             parts of names, `re:` likewise
    modelopt              globs
    auto-round            whole names; with `*` behind, beginnings of names, as its `block_name_to_quantize` has them

An engine that renames modules also renames whole names, modelopt's globs and auto-round's prefixes in these entries,
but never patterns.
"""

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from typing import Final

__all__ = ["COMPRESSED_TENSORS", "Entries"]

COMPRESSED_TENSORS: Final = "compressed-tensors"
_MODELOPT: Final = "modelopt"
_AUTO_ROUND: Final = "auto-round"
_PATTERN: Final = "re:"

Matcher = Callable[[str], object]
"""Function from a name to a true value if it matches."""


def _as_written(name: str) -> str:
    return name


@dataclass(frozen=True, slots=True)
class Entries:
    """`ignore` or `targets`, ready to be matched against thousands of names.

    Args:
        written: entries as in the config.
        plain: whole names, as the reader renames them, and class names.
        classes: entries that can only be class names.
        patterns: matcher of each pattern, by entry.
        broken: entries with an invalid pattern; they match nothing.
    """

    written: tuple[str, ...]
    plain: frozenset[str]
    classes: frozenset[str]
    patterns: Mapping[str, Matcher]
    broken: tuple[str, ...]

    @classmethod
    def of(cls, method: str | None, entries: Iterable[str], rename: Callable[[str], str] = _as_written) -> "Entries":
        """Sort entries by the rules of the format's library.

        Args:
            method: `quant_method`.
            entries: entries as in the config.
            rename: the reader's renaming, applied to whole names, which contain a dot.
        """
        written, plain, broken = tuple(entries), set(), []
        patterns: dict[str, Matcher] = {}
        for entry in written:
            spelled = rename(entry) if method in {_MODELOPT, _AUTO_ROUND} and "." in entry else entry
            if matcher := None if _is_class(entry) else _matcher(method, spelled):
                patterns[entry] = matcher
            elif entry.startswith(_PATTERN):
                broken.append(entry)
            else:
                plain.add(rename(entry) if "." in entry else entry)
        return cls(written, frozenset(plain), frozenset(filter(_is_class, plain)), patterns, tuple(broken))

    def name(self, module: str, *, suffix: bool = False) -> bool:
        """Return whether an entry matches a module.

        Args:
            module: the module's name, as the reader spells it.
            suffix: True if a whole name also matches modules whose name ends in it after a dot.
        """
        if module in self.plain or any(matches(module) for matches in self.patterns.values()):
            return True
        return suffix and any(module.endswith(f".{entry}") for entry in self.plain)

    def hold(self, module: str, class_names: Container[str], *, suffix: bool = False) -> bool:
        """Return whether an entry matches a module or its class; see `name`."""
        return self.name(module, suffix=suffix) or any(name in class_names for name in self.classes)


def _is_class(entry: str) -> bool:
    """Return whether an entry can only be a class name: no dot, no pattern, a capital first."""
    return not entry.startswith(_PATTERN) and "." not in entry and entry[:1].isupper()


def _matcher(method: str | None, entry: str) -> Matcher | None:
    """Return the matcher of a pattern; None for a whole name and for an invalid pattern."""
    if entry.startswith(_PATTERN):
        return _compiled(entry.removeprefix(_PATTERN))
    if method in {"awq", "gptq"}:
        return lambda name: entry in name
    if method == _MODELOPT:
        return _compiled(translate(entry))
    if method == _AUTO_ROUND and entry.endswith("*"):
        return lambda name: name.startswith(entry[:-1])
    return None


def _compiled(pattern: str) -> Matcher | None:
    try:
        return re.compile(pattern).match
    except re.error:
        return None

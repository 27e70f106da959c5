"""Matching of `ignore` and `targets` entries against module names, shared by every command.

    compressed-tensors    whole names, class names, `re:` with `re.match`: from the start of a name, to no certain end
    awq, gptq             parts of names, `re:` likewise
    modelopt              globs
    auto-round            whole names; with `*` behind, beginnings of names, as its `block_name_to_quantize` has them

An engine that renames modules also renames whole names, modelopt's globs and auto-round's prefixes in these entries,
but never patterns.

Patterns come from anywhere, and one with repeats in repeats can keep `re` busy for years. So all patterns of a list
share a `Clock`, and one that may take long goes to the module `regex`, which can stop.
"""

import re
import time
import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from typing import Final

from g4convert.errors import FormatError
from g4convert.printable import printable

COMPRESSED_TENSORS: Final = "compressed-tensors"
_MODELOPT: Final = "modelopt"
_AUTO_ROUND: Final = "auto-round"
_PATTERN: Final = "re:"
_SECONDS: Final = 10.0
"""Time for all patterns of one list; those of real checkpoints take milliseconds."""
_REPEATS: Final = re.compile(r"[*+{]")
_FEW_REPEATS: Final = 2
_REPEATED_GROUP: Final = re.compile(r"\)[*+{]")

Matcher = Callable[[str], object]
"""Function from a name to a true value if it matches."""


class Clock:
    """Time that is left for matching the patterns of one list."""

    def __init__(self) -> None:
        self._left = _SECONDS

    def timed(self, entry: str, match: Callable[[str, float], object]) -> Matcher:
        """Return a matcher that counts its time.

        Args:
            entry: the pattern as written, for the error.
            match: matches a name in at most the given seconds, or raises TimeoutError.

        Raises:
            FormatError: by the matcher, when no time is left.
        """

        def matches(name: str) -> object:
            began = time.perf_counter()
            try:
                found = match(name, self._left)
            except TimeoutError:
                self._left = 0.0
            else:
                self._left -= time.perf_counter() - began
            if self._left <= 0:
                raise FormatError(
                    f"config.json: matching its quantization patterns takes over {_SECONDS:.0f} s: "
                    f"{printable(entry)[:80]}",
                    hint="write patterns without repeats in repeats, such as re:.*mlp.*",
                )
            return found

        return matches


def _unchanged(name: str) -> str:
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
    def of(
        cls,
        method: str | None,
        entries: Iterable[str],
        rename: Callable[[str], str] = _unchanged,
        clock: Clock | None = None,
    ) -> "Entries":
        """Sort entries by the rules of the format's library.

        Args:
            method: `quant_method`.
            entries: entries as in the config.
            rename: the reader's renaming, applied to whole names, which contain a dot.
            clock: time for the patterns; one of their own by default.
        """
        written, plain, broken = tuple(entries), set(), []
        clock = clock or Clock()
        patterns: dict[str, Matcher] = {}
        for entry in written:
            spelled = rename(entry) if method in {_MODELOPT, _AUTO_ROUND} and "." in entry else entry
            if matcher := None if _is_class(entry) else _matcher(method, spelled):
                patterns[entry] = clock.timed(entry, matcher)
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


def _matcher(method: str | None, entry: str) -> Callable[[str, float], object] | None:
    """Return the matcher of a pattern, given seconds, too; None for a whole name and for an invalid pattern."""
    if entry.startswith(_PATTERN):
        return _compile(entry.removeprefix(_PATTERN))
    if method in {"awq", "gptq"}:
        return lambda name, _: entry in name
    if method == _MODELOPT:
        glob = re.compile(translate(entry))  # never takes long: `translate` uses atomic groups
        return lambda name, _: glob.match(name)
    if method == _AUTO_ROUND and entry.endswith("*"):
        return lambda name, _: name.startswith(entry[:-1])
    return None


def _compile(pattern: str) -> Callable[[str, float], object] | None:
    """Return the matcher of a regular expression; None if it is invalid."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of sets that a later Python may read differently
            quick = re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return None
    if len(_REPEATS.findall(pattern)) <= _FEW_REPEATS and not _REPEATED_GROUP.search(pattern):
        return lambda name, _: quick.match(name)
    import regex  # noqa: PLC0415 -- seldom needed

    try:
        slow = regex.compile(pattern)
    except regex.error:
        return None
    return lambda name, seconds: slow.match(name, timeout=seconds)

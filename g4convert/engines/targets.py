"""Targets of all config groups, in the order in which one engine tries them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from g4convert.checkpoint.entries import COMPRESSED_TENSORS, Entries, Matcher
from g4convert.names import Name

__all__ = ["Targets"]

_PATTERN: Final = "re:"


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets, ready to be tried on thousands of names.

    Args:
        written: as in the config, the one that is tried first first.
        places: whole names and class names, as the engine spells them, and their places in `written`.
        undotted: those without a dot, in lower case: class names and parts of them.
        patterns: places of patterns, and what they do.
        broken: entries that are no regular expression; they name nothing.
    """

    written: tuple[str, ...]
    places: Mapping[str, int]
    undotted: Mapping[str, int]
    patterns: tuple[tuple[int, Matcher], ...]
    broken: tuple[str, ...]

    @classmethod
    def of(cls, targets: Iterable[str], spelled: Callable[[str], str], *, by_alphabet: bool) -> "Targets":
        """Sort targets.

        Args:
            targets: of all config groups.
            spelled: what the engine does to whole names.
            by_alphabet: whole names before patterns, both by the alphabet; otherwise as they come.
        """
        written = tuple(dict.fromkeys(targets))
        if by_alphabet:
            written = tuple(sorted(written, key=lambda entry: (_PATTERN in entry, entry)))
        read = [Entries.of(COMPRESSED_TENSORS, [entry], spelled) for entry in written]
        places: dict[str, int] = {}
        for place, one in enumerate(read):
            for name in one.plain:
                places.setdefault(name, place)
        patterns = tuple((place, matches) for place, one in enumerate(read) for matches in one.patterns.values())
        undotted = {name.lower(): place for name, place in reversed(places.items()) if "." not in name}
        return cls(written, places, undotted, patterns, tuple(entry for one in read for entry in one.broken))

    def named(self, name: str, *, suffix: bool = False) -> str | None:
        """Return the first that is a name, or whose pattern fits it.

        Args:
            name: of a module, or of a class.
            suffix: a whole name also names modules that it is the dotted end of.
        """
        names = Name(name).ends() if suffix else (name,)
        found = [self.places[one] for one in names if one in self.places]
        found += islice((place for place, matches in self.patterns if matches(name)), 1)
        return self.written[min(found)] if found else None

    def of_class(self, classes: Iterable[str]) -> str | None:
        """Return the first that is the name of one of a module's classes."""
        found = [self.places[name] for name in classes if name in self.places]
        return self.written[min(found)] if found else None

    def within_class(self, classes: Iterable[str]) -> str | None:
        """Return the first that is a part of a class's name, whatever the case, or whose pattern fits it."""
        names = tuple(classes)
        lowered = [name.lower() for name in names]
        found = [place for part, place in self.undotted.items() if any(part in name for name in lowered)]
        found += islice((place for place, matches in self.patterns if any(map(matches, names))), 1)
        return self.written[min(found)] if found else None

"""Targets of all config groups, in the order in which an engine tries them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from g4convert.checkpoint.entries import COMPRESSED_TENSORS, Clock, Entries, Matcher
from g4convert.names import Name

_PATTERN: Final = "re:"


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets, prepared to be matched with thousands of names.

    Args:
        written: targets as written in the config, in the order in which the engine tries them.
        places: whole name or class name, as the engine spells it -> its place in `written`.
        undotted: the same for names without a dot, in lower case: class names and parts of class names.
        patterns: place in `written` and matcher of each pattern.
        broken: patterns that are not valid regular expressions; they match no name.
    """

    written: tuple[str, ...]
    places: Mapping[str, int]
    undotted: Mapping[str, int]
    patterns: tuple[tuple[int, Matcher], ...]
    broken: tuple[str, ...]

    @classmethod
    def of(cls, targets: Iterable[str], spelled: Callable[[str], str], *, by_alphabet: bool) -> "Targets":
        """Prepare targets.

        Args:
            targets: targets of all config groups, in the order of the config.
            spelled: returns the engine's spelling of a whole name.
            by_alphabet: try whole names before patterns, each in alphabetical order; otherwise in the given order.
        """
        written = tuple(dict.fromkeys(targets))
        if by_alphabet:
            written = tuple(sorted(written, key=lambda entry: (_PATTERN in entry, entry)))
        clock = Clock()
        read = [Entries.of(COMPRESSED_TENSORS, [entry], spelled, clock) for entry in written]
        places: dict[str, int] = {}
        for place, one in enumerate(read):
            for name in one.plain:
                places.setdefault(name, place)
        patterns = tuple((place, matches) for place, one in enumerate(read) for matches in one.patterns.values())
        undotted = {name.lower(): place for name, place in reversed(places.items()) if "." not in name}
        return cls(written, places, undotted, patterns, tuple(entry for one in read for entry in one.broken))

    def named(self, name: str, *, suffix: bool = False) -> str | None:
        """Return the first target that equals a name, or whose pattern fits it; None without one.

        Args:
            name: name of a module, or of a class.
            suffix: a whole name as target also matches if `name` ends with it after a dot.
        """
        names = Name(name).ends() if suffix else (name,)
        found = [self.places[one] for one in names if one in self.places]
        found += islice((place for place, matches in self.patterns if matches(name)), 1)
        return self.written[min(found)] if found else None

    def of_class(self, classes: Iterable[str]) -> str | None:
        """Return the first target that equals one of a module's class names; None without one."""
        found = [self.places[name] for name in classes if name in self.places]
        return self.written[min(found)] if found else None

    def within_class(self, classes: Iterable[str]) -> str | None:
        """Return the first target that a class name contains, in any case, or fits as a pattern; None without one."""
        names = tuple(classes)
        lowered = [name.lower() for name in names]
        found = [place for part, place in self.undotted.items() if any(part in name for name in lowered)]
        found += islice((place for place, matches in self.patterns if any(map(matches, names))), 1)
        return self.written[min(found)] if found else None

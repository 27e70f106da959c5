"""Reader of typed values from a config.json that may hold anything.

Methods that read do not raise: they note the problem and return a harmless value, so that one error can name every bad
key. Callers call `raise_problems` before they use a value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from g4convert.errors import InputError

_MAX_DIMENSION = 1 << 31  # no dimension of a real model comes near; a larger value is a typing error or an attack


@dataclass(frozen=True, slots=True)
class ConfigReader:
    """One section of a config.

    Args:
        values: the section.
        path: path of the section, for messages; empty, or ends with a dot.
        problems: problems so far, shared by all sections.
    """

    values: Mapping[str, Any]
    path: str = ""
    problems: list[str] = field(default_factory=list)

    def note(self, key: str, problem: str) -> None:
        """Note a problem with a key; of several problems with one key, the first."""
        if not any(noted.startswith(f"{self.path}{key}: ") for noted in self.problems):
            self.problems.append(f"{self.path}{key}: {problem}")

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = _MAX_DIMENSION) -> int:
        """Return an integer in [least, most]; without a default the key is required."""
        value = self.values.get(key, default)
        if value is None:
            self.note(key, "missing" if key not in self.values else "null, expected an integer")
        elif isinstance(value, bool) or not isinstance(value, int):
            self.note(key, f"{value!r}, expected an integer")
        elif not least <= value <= most:
            self.note(key, f"{value}, expected {least} to {most}")
        else:
            return value
        return least

    def optional_integer(self, key: str) -> int | None:
        """Return an integer of at least 1, or None if the key is missing or null."""
        return None if self.values.get(key) is None else self.integer(key)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean; null is none, as transformers refuses it."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.note(key, f"{'null' if value is None else repr(value)}, expected true or false")
            return default
        return value

    def text(self, key: str) -> str | None:
        """Return a string, or None if the key is missing or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self.note(key, f"{value!r}, expected a string")
            return None
        return value

    def strings(self, key: str, count: int, allowed: Sequence[str]) -> list[str] | None:
        """Return a list of `count` strings out of `allowed`, one per layer; None if the key is missing or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            self.note(key, f"{value!r:.40}, expected a list of {count}")
        elif strange := [item for item in value if item not in allowed]:
            self.note(key, f"{strange[0]!r:.40}, expected {' or '.join(allowed)}")
        elif len(value) != count:
            self.note(key, f"{len(value)} entries for {count} layers")
        else:
            return value
        return None

    def pair(self, key: str, default: tuple[int, int]) -> tuple[int, int]:
        """Return two positive integers."""
        value = self.values.get(key, default)
        match value:
            case [int(first), int(second)] if 0 < first <= _MAX_DIMENSION and 0 < second <= _MAX_DIMENSION:
                return first, second
        self.note(key, f"{value!r}, expected two positive integers")
        return default

    def section(self, key: str) -> "ConfigReader | None":
        """Return the reader of a nested section, or None if the key is missing or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self.note(key, f"{value!r}, expected an object")
            return None
        return ConfigReader(value, f"{self.path}{key}.", self.problems)

    def raise_problems(self) -> None:
        """Raise one error with all noted problems, if there are any.

        Raises:
            InputError: at least one key is missing or wrong.
        """
        problems = tuple(self.problems)
        if problems:
            raise InputError(
                f"config.json: {len(problems)} value{'s' * (len(problems) > 1)} missing or wrong",
                offenders=problems,
                hint="compare with the config.json of the model this checkpoint was made from",
            )

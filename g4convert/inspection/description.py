"""The description of a checkpoint as values, which can be printed as tables or written as JSON."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from g4convert.checkpoint.declared import Declared
from g4convert.gemma4 import DialectUse

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class SourceRoleSize:
    """The size of all weights of one role.

    Args:
        role: a `Role`, or `unknown`, or `droppable`.
        tensors: number of stored tensors, scales included.
        params: number of weights before quantization.
        nbytes: stored bytes, scales included.
        schemes: stored scheme or dtype -> number of modules or plain tensors stored so.
    """

    role: str
    tensors: int
    params: int
    nbytes: int
    schemes: Mapping[str, int]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales included; 0 without weights."""
        return 8 * self.nbytes / self.params if self.params else 0.0


@dataclass(frozen=True, slots=True)
class EntryUse:
    """An entry of `ignore` or of a group's `targets`.

    Args:
        place: `ignore` or `targets of <group>`.
        entry: the entry as written in the config.
        matches: engine -> number of modules that the entry names; None for a class name that tensors cannot show.
    """

    place: str
    entry: str
    matches: Mapping[str, int] | None

    @property
    def is_dead(self) -> bool:
        """True if it names nothing in any engine."""
        return self.matches is not None and not any(self.matches.values())


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A mismatch in a checkpoint.

    Args:
        subject: the role, list or file that it concerns.
        text: description of the mismatch.
        count: number of modules that have it.
        example: name of a module that has it; empty without one.
    """

    subject: str
    text: str
    count: int = 1
    example: str = ""


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of texts, ready to print."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Description:
    """Description of a checkpoint, made without reading its weights."""

    path: str
    family: str
    model_type: str
    dialects: tuple[DialectUse, ...]
    declared: Declared | None
    roles: tuple[SourceRoleSize, ...]
    entries: tuple[EntryUse, ...]
    remarks: tuple[Mismatch, ...]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]
    weight_files: Mapping[str, int]
    side_files: tuple[str, ...]
    stray_files: tuple[str, ...]

    @property
    def total(self) -> SourceRoleSize:
        """The sum over all roles."""
        schemes: Counter[str] = Counter()
        for size in self.roles:
            schemes.update(size.schemes)
        return SourceRoleSize(
            "total",
            sum(size.tensors for size in self.roles),
            sum(size.params for size in self.roles),
            sum(size.nbytes for size in self.roles),
            dict(schemes.most_common()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "path": self.path,
            "family": self.family,
            "model_type": self.model_type,
            "dialects": [
                {**_fields(use, "name", "description", "count"), "example": [*use.example]} for use in self.dialects
            ],
            "quantization": _declared_dict(self.declared),
            "roles": [_size_dict(size) for size in self.roles],
            "total": _size_dict(self.total),
            "entries": [
                {
                    **_fields(use, "place", "entry"),
                    "matches": None if use.matches is None else dict(use.matches),
                    "dead": use.is_dead,
                }
                for use in self.entries
            ],
            "remarks": [_fields(r, "subject", "text", "count", "example") for r in self.remarks],
            "unknown": [*self.unknown],
            "missing": [*self.missing],
            "weight_files": dict(self.weight_files),
            "side_files": [*self.side_files],
            "stray_files": [*self.stray_files],
        }

    def tables(self) -> tuple[TextTable, ...]:
        """Return the tables to print below the sizes, in order; tables without rows are left out."""
        tables = (
            TextTable(
                "entries of the config",
                ("entry", "place", "modules named"),
                tuple((use.entry, use.place, _matches_text(use)) for use in self.entries),
            ),
            TextTable(
                "remarks",
                ("about", "what", "count", "for example"),
                tuple((r.subject, r.text, f"{r.count:,}", r.example) for r in self.remarks),
            ),
            TextTable("unknown tensors", ("name",), tuple((name,) for name in self.unknown)),
            TextTable("missing tensors", ("name",), tuple((name,) for name in self.missing)),
            TextTable("other files", ("file", "kind"), self._file_rows()),
        )
        return tuple(table for table in tables if table.rows)

    def _file_rows(self) -> tuple[tuple[str, str], ...]:
        carried = tuple((name, _WRITTEN.get(name, "carried over")) for name in self.side_files)
        return (*carried, *((name, "weights that are not read") for name in self.stray_files))


_WRITTEN = {"g4convert.json": "how it was made, by g4convert", "README.md": "about this checkpoint"}
"""File that a conversion writes itself -> its kind. The source's README is never copied under its own name."""


def _fields(value: object, *names: str) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}


def _size_dict(size: SourceRoleSize) -> dict[str, Any]:
    return {
        "role": str(size.role),
        "tensors": size.tensors,
        "params": size.params,
        "bytes": size.nbytes,
        "bits_per_weight": round(size.bits_per_weight, 4),
        "schemes": dict(size.schemes),
    }


def _declared_dict(declared: Declared | None) -> dict[str, Any] | None:
    if declared is None:
        return None
    fields = ("name", "format", "kind", "num_bits", "strategy", "group_size", "symmetric", "activations")
    return {
        "method": declared.method,
        "groups": [{**_fields(group, *fields), "targets": [*group.targets]} for group in declared.groups],
        "ignore": [*declared.ignore],
        "faults": [*declared.faults],
    }


def _matches_text(use: EntryUse) -> str:
    if use.matches is None:
        return "a class; tensors do not tell"
    if use.is_dead:
        return "nothing"
    counts = set(use.matches.values())
    if len(counts) == 1:
        return f"{counts.pop():,}"
    return ", ".join(f"{count:,} in {engine}" for engine, count in use.matches.items())

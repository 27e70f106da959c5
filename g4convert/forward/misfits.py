"""Tensors of a checkpoint that do not fit its model."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from g4convert.errors import GateError


class MisfitKind(StrEnum):
    """Way in which a tensor does not fit."""

    MISSING = "missing"
    UNEXPECTED = "unexpected"
    TWICE = "twice"
    TORN = "torn"
    """Some parts of a packed module are missing."""
    MISMATCHED = "mismatched"
    """The shape differs from the model's."""
    MIXED = "mixed"
    """Experts of one layer are stored in several forms."""
    PACKED = "packed"
    """The packing cannot be read."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """A tensor or module that does not fit.

    Args:
        kind: kind of misfit.
        name: stored name, or name in the model.
        text: details; for `MISMATCHED` they continue the sentence after the name.
    """

    kind: MisfitKind
    name: str
    text: str = ""

    @property
    def line(self) -> str:
        """The misfit in one line."""
        joint = " " if self.kind is MisfitKind.MISMATCHED else ": "
        return f"{self.kind}: {self.name}{joint if self.text else ''}{self.text}"

    @property
    def found(self) -> str:
        """The misfit in one line, without the name."""
        joint = " " if self.kind is MisfitKind.MISMATCHED else ": "
        return f"{self.kind}{joint if self.text else ''}{self.text}"


class Unfit(GateError):
    """Raised when tensors do not fit the model."""

    def __init__(self, path: Path, misfits: Collection[Misfit]) -> None:
        subject = "one tensor does" if len(misfits) == 1 else f"{len(misfits)} tensors do"
        super().__init__(f"{path}: {subject} not fit the model", offenders=[one.line for one in misfits])
        self.misfits = tuple(misfits)

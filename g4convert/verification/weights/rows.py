"""One packed weight beside plain rounding of that very weight: its error, its band, and what scales could save.

Real weights have heavy tails, and no fixed band holds them all: of a 270M model, k_proj weights have from 0.7 to 1.7 %
at equal method. The ratio to plain rounding (`compiled`) is narrow instead:

    method                  error / error of plain rounding, on real weights
    minmax                  1.000
    mse                     0.60 to 0.88
    lattice                 0, or that of mse
    imatrix, gptq           above 1 by design: they trade weight error for that of the outputs
    not known               may be any of these

Above `usual` is a warning, above `limit` no sound weight comes. Scales that belong to other codes are seen apart.
"""

from dataclasses import dataclass
from typing import Final

from g4convert.names import Name
from g4convert.verification.weights.tiles import Measured, PackedPair

__all__ = ["DATA_FREE", "Band", "Row", "band_of"]

DATA_FREE: Final = frozenset({"minmax", "mse", "lattice"})
"""Methods that look at weights only."""
_EXACT: Final = 2.0**-15
"""Relative error that rounding scales to bf16 may cost weights that plain rounding would leave as they are."""


@dataclass(frozen=True, slots=True)
class Band:
    """Parts of the error that plain rounding has on the same weights.

    Args:
        fit: share that other scales for the same codes may save, besides what they would save of plain rounding.
        usual: most that the method gives.
        limit: above, something is wrong.
    """

    fit: float
    usual: float
    limit: float


def band_of(method: str | None) -> Band:
    """The band of a method; None, as of outputs by others, may be any."""
    return Band(0.5, 1.05, 3.0) if method in DATA_FREE else Band(1.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One packed weight with its numbers, and the band of its method."""

    pair: PackedPair
    sums: Measured
    band: Band

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.pair.name

    @property
    def error(self) -> float:
        """Squared error over squared weights."""
        return self.sums.relative_error

    @property
    def plain(self) -> float:
        """The error of plain rounding."""
        return max(self.sums.plain_relative_error, _EXACT)

    @property
    def ratio(self) -> float:
        """The error as a part of that of plain rounding."""
        return self.error / self.plain

    @property
    def codes(self) -> int:
        """The number of codes; at least 1."""
        return max(1, self.sums.weights)

    @property
    def removable(self) -> float:
        """The error that the best scales for the same codes would save, over squared weights."""
        return self.sums.removable / self.sums.signal if self.sums.signal else 0.0

    @property
    def may_save(self) -> float:
        """Up to where other scales for the same codes may lower the error."""
        plain = self.sums.plain_removable / self.sums.signal if self.sums.signal else 0.0
        return self.band.fit * self.plain + self.band.usual * plain

    @property
    def is_sound(self) -> bool:
        """True if its error is one that rounding makes, so that no more need be said of it."""
        return self.ratio <= self.band.limit and not self.sums.bad_scales

    @property
    def exact(self) -> float:
        """The share of groups that are exact."""
        return self.sums.exact_groups / self.sums.groups

    @property
    def kind(self) -> str:
        """Its name without numbers: weights of one kind are alike."""
        return Name(self.name).kind

"""Error of one packed weight, relative to the error of plain rounding of the same weight.

Real weights have heavy tails, so no fixed limit on the error fits: in a 270M model, the errors of k_proj weights range
from 0.7 to 1.7 % with one method. The ratio to plain rounding (see `group_sums`) has a narrow range instead:

    method                  error / error of plain rounding, on real weights
    minmax                  1.000
    mse                     0.60 to 0.88
    lattice                 0, or as mse
    imatrix, gptq           above 1 by design: they accept weight error for less error of the outputs
    unknown                 any of these

A ratio above `usual` warns; no sound weight exceeds `limit`. Scales that belong to other codes are checked apart, and
so is the size of the whole weight: scales that are all 7 % too small may leave an error below the limit.
"""

from dataclasses import dataclass
from typing import Final

from g4convert.names import Name
from g4convert.verification.weights.measured import Measured, PackedPair

DATA_FREE: Final = frozenset({"minmax", "mse", "lattice"})
"""Methods that use no calibration data, only the weights."""
_EXACT: Final = 2.0**-15
"""Relative error that rounding the scales to bf16 may cause in weights that plain rounding leaves unchanged."""

_SCALE_ROUNDING: Final = 2.0**-8
"""Largest relative difference of two scales that are rounded to bf16."""


@dataclass(frozen=True, slots=True)
class Band:
    """Limits of a weight's error, as multiples of the error of plain rounding of the same weight.

    Args:
        fit: error that other scales for the same codes may save, besides what they would save of plain rounding.
        usual: largest error that the method gives.
        limit: error above which something is wrong.
        size: margin of a sound weight's growth, as a multiple of its relative error.
    """

    fit: float
    usual: float
    limit: float
    size: float


def band_of(method: str | None) -> Band:
    """Return the band of a method; None, for outputs of other programs, gets the widest band."""
    return Band(0.5, 1.05, 3.0, 1.5) if method in DATA_FREE else Band(1.0, 4.0, 8.0, 2.5)


@dataclass(frozen=True, slots=True)
class Row:
    """A packed weight with its sums and the band of its method."""

    pair: PackedPair
    sums: Measured
    band: Band

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.pair.name

    @property
    def error(self) -> float:
        """Squared error over squared weights."""
        return self.sums.relative_error

    @property
    def plain(self) -> float:
        """Relative error of plain rounding; at least `_EXACT`."""
        return max(self.sums.plain_relative_error, _EXACT)

    @property
    def ratio(self) -> float:
        """Error divided by the error of plain rounding."""
        return self.error / self.plain

    @property
    def codes(self) -> int:
        """Number of codes; at least 1."""
        return max(1, self.sums.weights)

    @property
    def removable(self) -> float:
        """Squared error that the best scales for the same codes would save, over squared weights."""
        return self.sums.removable / self.sums.signal if self.sums.signal else 0.0

    @property
    def may_save(self) -> float:
        """Largest relative error that other scales for the same codes may save."""
        plain = self.sums.plain_removable / self.sums.signal if self.sums.signal else 0.0
        return self.band.fit * self.plain + self.band.usual * plain

    @property
    def growths(self) -> tuple[float, float]:
        """Least and largest growth of a sound weight: from 0 to that of plain rounding, and a margin on both sides.

        A rounding that fits no scale adds its error to the squares of the weights, so they should shrink by about as
        much. What a calibrated method leaves away makes them too small, by no more than the error, either.
        """
        plain, margin = self.sums.plain_growth, self.band.size * (self.error + _SCALE_ROUNDING)
        return min(0.0, plain) - margin, max(0.0, plain) + margin

    @property
    def is_of_size(self) -> bool:
        """True if the weight as a whole is neither too small nor too large."""
        low, high = self.growths
        return low <= self.sums.growth <= high

    @property
    def is_sound(self) -> bool:
        """True if the error is within `band.limit` and all scales are finite."""
        return self.ratio <= self.band.limit and not self.sums.bad_scales

    @property
    def exact(self) -> float:
        """Share of groups that are exact."""
        return self.sums.exact_groups / self.sums.groups

    @property
    def kind(self) -> str:
        """Name of the weight without layer and expert numbers."""
        return Name(self.name).kind

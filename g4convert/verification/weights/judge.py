"""What the numbers of the weights level mean: bands, limits, and findings.

Bands are relative squared errors, of int4 weights by group size. Their low end is a searched scale on Gaussian
weights, their high end plain min-max on heavy-tailed ones; twice the high end, or 14 dB, no sound weight reaches. A
finer grid's bands are smaller by the square of its step: int8 has 1/289 of int4's.

A calibrated method lets weights be off where that costs the output little, so its bands are three times as wide, and a
few of its groups may be off by more than rounding alone makes them.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from g4convert.report import Finding, Severity, grouped
from g4convert.verification.weights.causes import guess
from g4convert.verification.weights.pairs import KeptPair
from g4convert.verification.weights.tiles import Measured, PackedPair

__all__ = ["Band", "band_of", "judged_kept", "judged_packed"]

_BANDS: Final = {16: (0.002, 0.013), 32: (0.005, 0.016), 64: (0.0065, 0.022), 128: (0.008, 0.03)}
_WIDE_BAND: Final = (0.01, 0.06)
"""Longer groups, and whole rows."""
_LEAST_SQNR: Final = 10 ** (-14 / 10)
"""14 dB, for groups of up to 128."""
_CALIBRATED: Final = 3.0
"""How much wider bands are where inputs decided; a 270M model has up to 2.2 times the band in groups of 32."""
_LOST: Final = 0.01
"""Share of groups that may be off by more than rounding where inputs decided; that model has up to 0.4 %."""
_ZERO: Final = 0.6
_SATURATED: Final = 0.3
"""Shares of codes above which a warning is due."""
_ON_GRID: Final = 0.9
"""Exact groups of a weight whose source was trained on a grid, and whose writer found it."""
_SIGMAS: Final = 3.0
"""Robust standard deviations that make an outlier."""
_LEAST_SIGMA: Final = 0.1
"""One of them at least, as a part of the median."""
_PEERS: Final = 5
"""Fewer weights of a kind have no outliers."""
_SINGLE: Final = 12
"""So many findings of a check stand alone; of more, those of a kind are one."""
_GUESSED: Final = 3
"""For so many weights of a kind the cause is looked for."""
_NUMBERS: Final = re.compile(r"\d+")
_AGAIN: Final = "quantize the source again: this weight was damaged, packed wrongly, or is of another source"


@dataclass(frozen=True, slots=True)
class Band:
    """Relative squared errors: from `low` to `high` is usual, above `limit` something is wrong."""

    low: float
    high: float
    limit: float


def band_of(num_bits: int, group: int, *, calibrated: bool = False) -> Band:
    """The band of a scheme.

    Args:
        num_bits: 4 or 8.
        group: weights that share a scale.
        calibrated: whether the method looked at inputs.
    """
    low, high = next((band for size, band in sorted(_BANDS.items()) if group <= size), _WIDE_BAND)
    limit = min(2 * high, _LEAST_SQNR) if group <= max(_BANDS) else 2 * high
    finer = (15 / ((1 << num_bits) - 1)) ** 2
    wide = finer * (_CALIBRATED if calibrated else 1)
    return Band(low * wide, high * wide, limit * wide)


@dataclass(frozen=True, slots=True)
class _Row:
    """One packed weight with its numbers."""

    pair: PackedPair
    sums: Measured
    calibrated: bool = False

    @property
    def name(self) -> str:
        return self.pair.name

    @property
    def band(self) -> Band:
        return band_of(self.pair.num_bits, self.pair.group, calibrated=self.calibrated)

    @property
    def error(self) -> float:
        return self.sums.relative_error

    @property
    def removable(self) -> float:
        return self.sums.removable / self.sums.signal if self.sums.signal else 0.0

    @property
    def has_lost_groups(self) -> bool:
        """Whether more groups are off by more than rounding than may be."""
        return self.sums.lost_groups > (_LOST * self.sums.groups if self.calibrated else 0)

    @property
    def is_sound(self) -> bool:
        """Whether its error is one that rounding makes; else there is no need to say more of it."""
        return self.error <= self.band.limit and not self.sums.bad_scales

    @property
    def exact(self) -> float:
        return self.sums.exact_groups / self.sums.groups

    @property
    def kind(self) -> str:
        """Its name without numbers: weights of one kind are alike."""
        return _NUMBERS.sub("*", self.name)


def judged_packed(
    pairs: Mapping[str, PackedPair], measured: Mapping[str, Measured], *, calibrated: bool = False
) -> Iterator[Finding]:
    """Findings about packed weights.

    Args:
        pairs: the weights.
        measured: their sums, by the same names.
        calibrated: whether the method looked at inputs.
    """
    rows = [_Row(pair, measured[name], calibrated) for name, pair in pairs.items()]
    if not rows:
        return
    cause = _Causes(pairs)
    yield from _errors(rows, cause)
    yield from _scales(rows)
    yield from _constant(rows)
    yield from _groups([row for row in rows if row.error <= row.band.limit])
    sound = [row for row in rows if row.is_sound]
    yield from _fit([row for row in sound if not row.has_lost_groups], cause)
    yield from _codes(sound)
    yield from _outliers(sound)
    yield from _exact([row for row in sound if row.pair.num_bits == 4])


class _Causes:
    """What has happened to weights; looked for once for each, and for a few of a kind only."""

    def __init__(self, pairs: Mapping[str, PackedPair]) -> None:
        self._pairs = pairs
        self._known: dict[str, str] = {}
        self._tried: defaultdict[str, list[str]] = defaultdict(list)

    def of(self, row: _Row) -> str:
        """In a few words, or empty."""
        if row.name not in self._known:
            tried = self._tried[row.kind]
            if len(tried) < _GUESSED:
                tried.append(guess(row.pair, self._pairs, row.band.limit))
                self._known[row.name] = tried[-1]
            else:
                self._known[row.name] = tried[0] if len(set(tried)) == 1 else ""
        return self._known[row.name]


def _errors(rows: Sequence[_Row], cause: _Causes) -> Iterator[Finding]:
    """Failures with what may have caused them, warnings, and what is usual for each role."""
    failed = [row for row in rows if not row.error <= row.band.limit]  # also one that is no number
    warned = [row for row in rows if row.band.high < row.error <= row.band.limit]
    expected = lambda row: f"up to {_percent(row.band.high)}"  # noqa: E731
    yield from _listed("weights.error", Severity.FAIL, failed, _error, expected, cause.of)
    yield from _listed("weights.error", Severity.WARN, warned, _error, expected)
    for (role, bits, group), of_role in _by_scheme(rows).items():
        bad = sum(row.error > row.band.high or row.error != row.error for row in of_role)
        if bad < len(of_role):
            errors = sorted(row.error for row in of_role if row.error <= row.band.high)
            found = f"relative error {_span(errors)}, median {_percent(statistics.median(errors))}"
            subject = f"{len(of_role) - bad} {role} weights, int{bits} in groups of {group}"
            yield Finding("weights.error", Severity.PASS, subject, found, f"up to {_percent(of_role[0].band.high)}")


def _by_scheme(rows: Iterable[_Row]) -> dict[tuple[str, int, int], list[_Row]]:
    table: defaultdict[tuple[str, int, int], list[_Row]] = defaultdict(list)
    for row in rows:
        table[row.pair.weight.role.value, row.pair.num_bits, row.pair.group].append(row)
    return table


def _scales(rows: Sequence[_Row]) -> Iterator[Finding]:
    bad = [row for row in rows if row.sums.bad_scales or row.sums.zero_scales]

    def found(of_kind: Sequence[_Row]) -> str:
        infinite = sum(row.sums.bad_scales for row in of_kind)
        zero = sum(row.sums.zero_scales for row in of_kind)
        return f"{infinite} scales that are not finite, {zero} that are 0 for weights that are not"

    yield from _listed("weights.scales", Severity.FAIL, bad, found, "finite, not 0")
    if not bad:
        groups = sum(row.sums.groups for row in rows)
        text = "finite, and 0 only where all weights are"
        yield Finding("weights.scales", Severity.PASS, f"{groups} scales of {len(rows)} weights", text, "")


def _fit(rows: Sequence[_Row], cause: _Causes) -> Iterator[Finding]:
    """What the best scales for the codes would save: nearly nothing, or more than rounding costs at best."""
    bad = [row for row in rows if row.removable > row.band.low]

    def found(of_kind: Sequence[_Row]) -> str:
        shares = sorted(row.removable for row in of_kind)
        return f"other scales for the same codes would lower the error by {_span(shares)}"

    def expected(row: _Row) -> str:
        return f"by less than {_percent(row.band.low)}: scales that belong to their codes"

    yield from _listed("weights.fit", Severity.FAIL, bad, found, expected, cause.of)
    if rows and not bad:
        worst = max(row.removable / row.band.low for row in rows)
        text = f"the best scales for the codes would save at most {_percent(worst)} of what rounding costs at least"
        yield Finding("weights.fit", Severity.PASS, f"{len(rows)} weights", text, "")


def _constant(rows: Sequence[_Row]) -> Iterator[Finding]:
    bad = [row for row in rows if row.sums.one_word is not None and row.sums.one_value is None]

    def found(of_kind: Sequence[_Row]) -> str:
        return f"every word is {(of_kind[0].sums.one_word or 0) & 0xFFFFFFFF:#010x}"

    yield from _listed("weights.constant", Severity.FAIL, bad, found, "codes that vary, as the source does")
    if not bad:
        yield Finding("weights.constant", Severity.PASS, f"{len(rows)} weights", "words vary where the source does", "")


def _groups(rows: Sequence[_Row]) -> Iterator[Finding]:
    """Single groups that went wrong in weights that are right as a whole."""
    bad = [row for row in rows if row.has_lost_groups and not row.sums.bad_scales]

    def found(of_kind: Sequence[_Row]) -> str:
        lost, groups = sum(row.sums.lost_groups for row in of_kind), sum(row.sums.groups for row in of_kind)
        return f"{lost} of {groups} groups are off by more than rounding can be"

    allowed = f"at most {_percent(_LOST)}" if rows and rows[0].calibrated else "none"
    yield from _listed("weights.groups", Severity.FAIL, bad, found, allowed)
    if rows and not bad:
        groups = sum(row.sums.groups for row in rows)
        text = f"{allowed} is off by more than rounding can be"
        yield Finding("weights.groups", Severity.PASS, f"{groups} groups of {len(rows)} weights", text, "")


def _codes(rows: Sequence[_Row]) -> Iterator[Finding]:
    """Codes at 0 and at the ends; a warning only, since a weight may be so."""

    def zero(row: _Row) -> float:
        return row.sums.zero_codes / row.sums.weights

    def saturated(row: _Row) -> float:
        return row.sums.saturated_codes / row.sums.weights

    def found(of_kind: Sequence[_Row]) -> str:
        shares = [sorted(map(share, of_kind)) for share in (zero, saturated)]
        return f"zero codes {_span(shares[0])}, saturated codes {_span(shares[1])}"

    bad = [row for row in rows if zero(row) > _ZERO or saturated(row) > _SATURATED]
    expected = f"at most {_percent(_ZERO)} zero, {_percent(_SATURATED)} saturated"
    yield from _listed("weights.codes", Severity.WARN, bad, found, expected)
    good = [row for row in rows if zero(row) <= _ZERO and saturated(row) <= _SATURATED]
    if good:
        yield Finding("weights.codes", Severity.PASS, f"{len(good)} weights", found(good), expected)


def _outliers(rows: Sequence[_Row]) -> Iterator[Finding]:
    """Weights that are within their band, but much worse than the others of their role and projection."""
    peers: defaultdict[tuple[str, str, int, int], list[_Row]] = defaultdict(list)
    for row in rows:
        pair = row.pair
        peers[pair.weight.role.value, row.name.rpartition(".")[2], pair.num_bits, pair.group].append(row)
    count = 0
    for alike in peers.values():
        if len(alike) < _PEERS:
            continue
        count += len(alike)
        median = statistics.median(row.error for row in alike)
        deviation = 1.4826 * statistics.median(abs(row.error - median) for row in alike)
        border = median + _SIGMAS * max(deviation, _LEAST_SIGMA * median)
        out = [row for row in alike if border < row.error <= row.band.high and row.error > row.band.low]
        expected = f"at most {_percent(border)}, by the other {len(alike) - len(out)} of its kind"
        yield from _listed("weights.outlier", Severity.WARN, out, _error, expected)
    if count:
        text = "no other sound weight is far worse than those of its kind"
        yield Finding("weights.outlier", Severity.PASS, f"{count} weights", text, "")


def _exact(rows: Sequence[_Row]) -> Iterator[Finding]:
    """Of sound int4 weights: whether the source lay on a grid, and whether all of it was found."""
    if not rows:
        return
    share = sum(row.sums.exact_groups for row in rows) / sum(row.sums.groups for row in rows)
    subject, found = f"{len(rows)} int4 weights", f"{_percent(share)} of the groups are exact"
    if statistics.median(row.exact for row in rows) < _ON_GRID:
        yield Finding("weights.exact", Severity.INFO, subject, found, "all, for a source that was trained on a grid")
        return
    off = [row for row in rows if row.exact < _ON_GRID]
    expected = "all, as most weights lie on a 4-bit grid"

    def exact(of_kind: Sequence[_Row]) -> str:
        return f"{_span(sorted(row.exact for row in of_kind))} of the groups are exact"

    yield from _listed("weights.exact", Severity.WARN, off, exact, expected)
    yield Finding("weights.exact", Severity.PASS, subject, found, expected)


def judged_kept(kept: Sequence[KeptPair], different: Mapping[str, int]) -> Iterator[Finding]:
    """Findings about tensors that must be as they were.

    Args:
        kept: the tensors.
        different: by name, how many elements differ.
    """
    bad = [pair for pair in kept if different.get(pair.name)]
    for pair in bad:
        found = f"{different[pair.name]} of {pair.nbytes // pair.itemsize} values differ"
        yield Finding("weights.kept", Severity.FAIL, pair.name, found, "the bytes of the source", _AGAIN)
    good = [pair for pair in kept if not different.get(pair.name)]
    if good:
        nbytes = sum(pair.nbytes for pair in good)
        text = f"the bytes of the source, {nbytes} of them"
        yield Finding("weights.kept", Severity.PASS, f"{len(good)} tensors", text, "")


def _listed(  # noqa: PLR0913, PLR0917 -- a finding has as many parts
    code: str,
    severity: Severity,
    rows: Sequence[_Row],
    found: Callable[[Sequence[_Row]], str],
    expected: Callable[[_Row], str] | str,
    cause: Callable[[_Row], str] | None = None,
) -> Iterator[Finding]:
    """A few findings one by one; many of one kind and cause with one text, so that they become one."""
    kinds: defaultdict[tuple[str, str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        wanted = expected if isinstance(expected, str) else expected(row)
        kinds[row.kind, wanted, cause(row) if cause else ""].append(row)
    for (_, wanted, why), alike in kinds.items():
        each = [[row] for row in alike] if len(rows) <= _SINGLE else [alike]
        for some in each:
            text = found(some) + (f": {why}" if why else "")
            yield from grouped(Finding(code, severity, row.name, text, wanted, _AGAIN) for row in some)


def _error(rows: Sequence[_Row]) -> str:
    return f"relative error {_span(sorted(row.error for row in rows))}"


def _span(values: Sequence[float]) -> str:
    """`1.2 %`, or `1.2 % to 3.4 %`."""
    low, high = _percent(values[0]), _percent(values[-1])
    return low if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"

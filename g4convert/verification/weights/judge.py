"""Judgement of the numbers of level weights: bands, limits and findings.

A weight's error is judged by what plain rounding of that very weight gives (`compiled`), since real weights have heavy
tails and no fixed band holds them all: of a 270M model, k_proj weights have from 0.7 to 1.7 % at equal method. Their
ratio is narrow instead:

    method                  error / error of plain rounding, on real weights
    minmax                  1.000
    mse                     0.60 to 0.88
    lattice                 0, or that of mse
    imatrix, gptq           above 1 by design: they trade weight error for that of the outputs
    not known               may be any of these

Above `usual` is a warning, above `limit` no sound weight comes. Scales that belong to other codes are seen apart.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from g4convert.names import Name
from g4convert.report import Finding, Severity, grouped
from g4convert.verification.weights.causes import guess
from g4convert.verification.weights.pairs import KeptPair
from g4convert.verification.weights.tiles import Measured, PackedPair

__all__ = ["Band", "band_of", "judged_kept", "judged_packed"]

_DATA_FREE: Final = frozenset({"minmax", "mse", "lattice"})
"""Methods that look at weights only."""
_EXACT: Final = 2.0**-15
"""Relative error that rounding scales to bf16 may cost weights that plain rounding would leave as they are."""
_ZERO: Final = 0.6
_SATURATED: Final = 0.3
"""Shares of codes above which a warning may be due."""
_MORE: Final = 0.1
"""And so much more than plain rounding has."""
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
"""Number of weights of a kind whose cause is looked for."""
_LOST_SHARE: Final = 0.02
"""Share of a weight's groups that a method that weighs channels may give up."""
_BETTER_THAN_PLAIN: Final = 0.9
"""Part of the error of plain rounding up to which nobody is an outlier."""
_AGAIN: Final = "quantize the source again: this weight was damaged, packed wrongly, or is of another source"
_COMPARE: Final = "quantize the source again and compare: the same bytes are no fault of the file"


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
    return Band(0.5, 1.05, 3.0) if method in _DATA_FREE else Band(1.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class _Row:
    """One packed weight with its numbers."""

    pair: PackedPair
    sums: Measured
    band: Band

    @property
    def name(self) -> str:
        return self.pair.name

    @property
    def error(self) -> float:
        return self.sums.relative_error

    @property
    def plain(self) -> float:
        """The error of plain rounding."""
        return max(self.sums.plain_relative_error, _EXACT)

    @property
    def ratio(self) -> float:
        return self.error / self.plain

    @property
    def codes(self) -> int:
        return max(1, self.sums.weights)

    @property
    def removable(self) -> float:
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
        return self.sums.exact_groups / self.sums.groups

    @property
    def kind(self) -> str:
        """Its name without numbers: weights of one kind are alike."""
        return Name(self.name).kind


def judged_packed(
    pairs: Mapping[str, PackedPair], measured: Mapping[str, Measured], *, method: str | None = None
) -> Iterator[Finding]:
    """Findings about packed weights.

    Args:
        pairs: the weights.
        measured: their sums, by the same names.
        method: method that the output says it was quantized with; None where it says nothing.
    """
    band = band_of(method)
    rows = [_Row(pair, measured[name], band) for name, pair in pairs.items()]
    if not rows:
        return
    cause = _Causes(pairs)
    yield from _errors(rows, cause)
    yield from _scales(rows)
    yield from _constant(rows)
    yield from _groups([row for row in rows if row.ratio <= row.band.limit], method)
    sound = [row for row in rows if row.is_sound]
    yield from _fit([row for row in sound if not row.sums.lost_groups], cause)
    yield from _codes(sound)
    yield from _outliers(sound)
    yield from _exact([row for row in sound if row.pair.num_bits == 4])


class _Causes:
    """Causes of faulty weights; searched once for each, and for a few of a kind only."""

    def __init__(self, pairs: Mapping[str, PackedPair]) -> None:
        self._pairs = pairs
        self._known: dict[str, str] = {}
        self._tried: defaultdict[str, list[str]] = defaultdict(list)

    def of(self, row: _Row) -> str:
        """Return the cause in a few words, or empty."""
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
    failed = [row for row in rows if not row.ratio <= row.band.limit]  # also one that is no number
    warned = [row for row in rows if row.band.usual < row.ratio <= row.band.limit]

    def expected(of_kind: Sequence[_Row]) -> str:
        plain = sorted(row.plain for row in of_kind)
        return f"up to {of_kind[0].band.usual:.3g} times what plain rounding has, {_span(plain)}"

    yield from _listed("weights.error", Severity.FAIL, failed, _error, expected, cause.of)
    yield from _listed("weights.error", Severity.WARN, warned, _error, expected, remedy=_COMPARE)
    for (role, bits, group), of_role in _by_scheme(rows).items():
        good = [row for row in of_role if row.ratio <= row.band.usual]
        if good:
            found = f"{_error(good)}, median {_percent(statistics.median(row.error for row in good))}"
            subject = f"{len(good)} {role} weights, int{bits} in groups of {group}"
            plain = f"plain rounding of the same weights has {_span(sorted(row.plain for row in good))}"
            yield Finding("weights.error", Severity.PASS, subject, found, plain)


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
    """Check that the best scales for the codes would save nearly nothing, or no more than rounding costs at best."""
    bad = [row for row in rows if row.removable > row.may_save]

    def found(of_kind: Sequence[_Row]) -> str:
        shares = sorted(row.removable for row in of_kind)
        return f"other scales for the same codes would lower the error by {_span(shares)}"

    def expected(of_kind: Sequence[_Row]) -> str:
        allowed = sorted(row.may_save for row in of_kind)
        return f"by less than {_span(allowed)}: scales that belong to their codes"

    yield from _listed("weights.fit", Severity.FAIL, bad, found, expected, cause.of)
    if rows and not bad:
        worst = max(row.removable / row.plain for row in rows)
        text = f"the best scales for the codes would save at most {_percent(worst)} of what plain rounding costs"
        yield Finding("weights.fit", Severity.PASS, f"{len(rows)} weights", text, "")


def _constant(rows: Sequence[_Row]) -> Iterator[Finding]:
    bad = [row for row in rows if row.sums.one_word is not None and row.sums.one_value is None]

    def found(of_kind: Sequence[_Row]) -> str:
        return f"every word is {(of_kind[0].sums.one_word or 0) & 0xFFFFFFFF:#010x}"

    yield from _listed("weights.constant", Severity.FAIL, bad, found, "codes that vary, as the source does")
    if not bad:
        yield Finding("weights.constant", Severity.PASS, f"{len(rows)} weights", "words vary where the source does", "")


def _groups(rows: Sequence[_Row], method: str | None) -> Iterator[Finding]:
    """Single groups that went wrong in weights that are right as a whole.

    A method that weighs channels may give up the large weight of a channel that is never large.
    """
    allowed = _LOST_SHARE if method is not None and method not in _DATA_FREE else 0.0
    bad = [row for row in rows if row.sums.lost_groups > allowed * row.sums.groups and not row.sums.bad_scales]

    def found(of_kind: Sequence[_Row]) -> str:
        lost, groups = sum(row.sums.lost_groups for row in of_kind), sum(row.sums.groups for row in of_kind)
        return f"{lost} of {groups} groups are off by more than rounding can be"

    yield from _listed("weights.groups", Severity.FAIL, bad, found, "none")
    if rows and not bad:
        groups = sum(row.sums.groups for row in rows)
        text = "none is off by more than rounding can be"
        yield Finding("weights.groups", Severity.PASS, f"{groups} groups of {len(rows)} weights", text, "")


def _codes(rows: Sequence[_Row]) -> Iterator[Finding]:
    """Codes at 0 and at the ends; a warning only where plain rounding has far fewer."""

    def shares(row: _Row) -> tuple[float, float]:
        return row.sums.zero_codes / row.codes, row.sums.saturated_codes / row.codes

    def found(of_kind: Sequence[_Row]) -> str:
        zero, saturated = (sorted(column) for column in zip(*map(shares, of_kind), strict=True))
        return f"zero codes {_span(zero)}, saturated codes {_span(saturated)}"

    def is_odd(row: _Row) -> bool:
        zero, saturated = shares(row)
        plain_zero, plain_saturated = row.sums.plain_zero / row.codes, row.sums.plain_saturated / row.codes
        return zero > max(_ZERO, plain_zero + _MORE) or saturated > max(_SATURATED, plain_saturated + _MORE)

    expected = f"at most {_percent(_ZERO)} zero, {_percent(_SATURATED)} saturated, or what plain rounding has"
    bad = [row for row in rows if is_odd(row)]
    yield from _listed("weights.codes", Severity.WARN, bad, found, expected, remedy=_COMPARE)
    good = [row for row in rows if not is_odd(row)]
    if good:
        yield Finding("weights.codes", Severity.PASS, f"{len(good)} weights", found(good), expected)


def _outliers(rows: Sequence[_Row]) -> Iterator[Finding]:
    """Weights that are rounded much worse than the others of their role and projection: a note, as nothing is wrong.

    Beside what plain rounding makes of each: some weights are hard to round.
    """
    peers: defaultdict[tuple[str, str, int, int], list[_Row]] = defaultdict(list)
    for row in rows:
        pair = row.pair
        peers[pair.weight.role.value, Name(row.name).last, pair.num_bits, pair.group].append(row)
    count = 0
    for alike in peers.values():
        if len(alike) < _PEERS:
            continue
        count += len(alike)
        median = statistics.median(row.ratio for row in alike)
        deviation = 1.4826 * statistics.median(abs(row.ratio - median) for row in alike)
        border = max(median + _SIGMAS * max(deviation, _LEAST_SIGMA * median), _BETTER_THAN_PLAIN)
        out = [row for row in alike if border < row.ratio <= row.band.usual]

        def found(of_kind: Sequence[_Row]) -> str:
            return f"{_error(of_kind)}, {max(row.ratio for row in of_kind):.2f} of what plain rounding has"

        expected = f"about {median:.2f} of it, as the other {len(alike) - len(out)} of its kind"
        yield from _listed("weights.outlier", Severity.INFO, out, found, expected, remedy="")
    if count:
        text = "no other sound weight is far worse than those of its kind"
        yield Finding("weights.outlier", Severity.PASS, f"{count} weights", text, "")


def _exact(rows: Sequence[_Row]) -> Iterator[Finding]:
    """Yield findings on sound int4 weights: whether the source lay on a grid, and whether all of it was found."""
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

    yield from _listed("weights.exact", Severity.WARN, off, exact, expected, remedy=_COMPARE)
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
    expected: Callable[[Sequence[_Row]], str] | str,
    cause: Callable[[_Row], str] | None = None,
    remedy: str = _AGAIN,
) -> Iterator[Finding]:
    """A few findings one by one; many of one kind and cause with one text, so that they become one."""
    kinds: defaultdict[tuple[str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        kinds[row.kind, cause(row) if cause else ""].append(row)
    for (_, why), alike in kinds.items():
        each = [[row] for row in alike] if len(rows) <= _SINGLE else [alike]
        for some in each:
            text = found(some) + (f": {why}" if why else "")
            wanted = expected if isinstance(expected, str) else expected(some)
            yield from grouped(Finding(code, severity, row.name, text, wanted, remedy) for row in some)


def _error(rows: Sequence[_Row]) -> str:
    return f"relative error {_span(sorted(row.error for row in rows))}"


def _span(values: Sequence[float]) -> str:
    """`1.2 %`, or `1.2 % to 3.4 %`."""
    low, high = _percent(values[0]), _percent(values[-1])
    return low if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"

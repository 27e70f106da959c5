"""Judgement of the numbers of packed and kept weights: failures and warnings.

`scales` judges scales, `notes` compares weights with one another, `rows` has a weight's numbers and the band of its
method, `findings` the form of a finding.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from g4convert.report import Finding, Severity
from g4convert.verification.weights.causes import guess
from g4convert.verification.weights.findings import COMPARE, QUANTIZE_AGAIN, error_text, findings_by_kind, percent, span
from g4convert.verification.weights.measured import Measured, PackedPair
from g4convert.verification.weights.notes import note_exact, note_outliers
from g4convert.verification.weights.pairs import ElementCounts, KeptPair
from g4convert.verification.weights.rows import DATA_FREE, Row, band_of
from g4convert.verification.weights.scales import judge_finite, judge_fit, judge_size

_MAX_ZERO: Final = 0.6
_MAX_SATURATED: Final = 0.3
"""Shares of codes up to which no weight is odd."""
_MAX_EXCESS: Final = 0.1
"""Excess over the share that plain rounding has, above which a weight with a larger share is odd."""
_MAX_GUESSES: Final = 3
"""Most weights of a kind whose cause is searched."""
_LOST_SHARE: Final = 0.02
"""Share of a weight's groups that may be lost with a method that weighs channels."""
_DIVERGED: Final = "the source is damaged, or its training diverged: take another one"


def judge_packed(
    pairs: Mapping[str, PackedPair], measured: Mapping[str, Measured], *, method: str | None = None
) -> Iterator[Finding]:
    """Yield findings about packed weights.

    Args:
        pairs: the packed weights, by name.
        measured: sums of each weight, by the same names.
        method: quantization method that the output states; None if it states none.
    """
    band = band_of(method)
    rows = [Row(pair, measured[name], band) for name, pair in pairs.items()]
    if not rows:
        return
    cause = _Causes(pairs)
    yield from _judge_errors(rows, cause)
    yield from _judge_overflow(rows)
    yield from judge_finite(rows)
    yield from _judge_constant(rows)
    yield from _judge_groups([row for row in rows if row.ratio <= row.band.limit], method)
    sound = [row for row in rows if row.is_sound]
    yield from judge_fit([row for row in sound if not row.sums.lost_groups], cause.of)
    yield from judge_size(sound)
    yield from _judge_codes(sound)
    yield from note_outliers(sound)
    yield from note_exact([row for row in sound if row.pair.num_bits == 4])


class _Causes:
    """Cache of the causes of faulty weights; `guess` runs once for each of a few weights of a kind."""

    def __init__(self, pairs: Mapping[str, PackedPair]) -> None:
        self._pairs = pairs
        self._known: dict[str, str] = {}
        self._tried: defaultdict[str, list[str]] = defaultdict(list)

    def of(self, row: Row) -> str:
        """Return the cause of a weight's error in a few words; empty if it is unknown."""
        if row.name not in self._known:
            tried = self._tried[row.kind]
            if len(tried) < _MAX_GUESSES:
                tried.append(guess(row.pair, self._pairs, row.band.limit))
                self._known[row.name] = tried[-1]
            else:
                self._known[row.name] = tried[0] if len(set(tried)) == 1 else ""
        return self._known[row.name]


def _judge_errors(rows: Sequence[Row], cause: _Causes) -> Iterator[Finding]:
    """Yield failures with their likely causes, warnings, and the range of usual errors for each role and scheme."""
    failed = [row for row in rows if not row.ratio <= row.band.limit and row.sums.signal < math.inf]  # NaN fails, too
    warned = [row for row in rows if row.band.usual < row.ratio <= row.band.limit and row.is_of_size]

    def expected(of_kind: Sequence[Row]) -> str:
        plain = sorted(row.plain for row in of_kind)
        return f"up to {of_kind[0].band.usual:.3g} times what plain rounding has, {span(plain)}"

    yield from findings_by_kind("weights.error", Severity.FAIL, failed, error_text, expected, cause.of)
    yield from findings_by_kind("weights.error", Severity.WARN, warned, error_text, expected, remedy=COMPARE)
    for (role, bits, group), of_role in _group_by_scheme(rows).items():
        good = [row for row in of_role if row.ratio <= row.band.usual]
        if good:
            found = f"{error_text(good)}, median {percent(statistics.median(row.error for row in good))}"
            subject = f"{len(good)} {role} weights, int{bits} in groups of {group}"
            plain = f"plain rounding of the same weights has {span(sorted(row.plain for row in good))}"
            yield Finding("weights.error", Severity.PASS, subject, found, plain)


def _judge_overflow(rows: Sequence[Row]) -> Iterator[Finding]:
    """Yield failures of weights whose squares exceed float32: no error can be measured, and no model computes so."""
    huge = [row for row in rows if not row.sums.signal < math.inf]

    def found(_: Sequence[Row]) -> str:
        return "the source's weights are not finite, or beyond 1e18, so that their squares exceed float32"

    yield from findings_by_kind(
        "weights.error", Severity.FAIL, huge, found, "weights of a model's size", remedy=_DIVERGED
    )


def _group_by_scheme(rows: Iterable[Row]) -> dict[tuple[str, int, int], list[Row]]:
    table: defaultdict[tuple[str, int, int], list[Row]] = defaultdict(list)
    for row in rows:
        table[row.pair.weight.role.value, row.pair.num_bits, row.pair.group].append(row)
    return table


def _judge_constant(rows: Sequence[Row]) -> Iterator[Finding]:
    bad = [row for row in rows if row.sums.one_word is not None and row.sums.one_value is None and row.sums.signal]

    def found(of_kind: Sequence[Row]) -> str:
        return f"every word is {(of_kind[0].sums.one_word or 0) & 0xFFFFFFFF:#010x}"

    yield from findings_by_kind("weights.constant", Severity.FAIL, bad, found, "codes that vary, as the source does")
    if not bad:
        yield Finding("weights.constant", Severity.PASS, f"{len(rows)} weights", "words vary where the source does", "")


def _judge_groups(rows: Sequence[Row], method: str | None) -> Iterator[Finding]:
    """Yield findings on wrong groups in weights that are right as a whole.

    A method that weighs channels may sacrifice a large weight of a channel whose activations are always small.
    """
    allowed = _LOST_SHARE if method is not None and method not in DATA_FREE else 0.0
    finite = [row for row in rows if not row.sums.bad_scales]
    lost = [row for row in finite if row.sums.lost_groups > allowed * row.sums.groups]
    resized = [row for row in finite if row not in lost and row.sums.resized_groups > allowed * row.sums.groups]

    def text(numbers: Sequence[int], of_kind: Sequence[Row], fault: str) -> str:
        return f"{sum(numbers)} of {sum(row.sums.groups for row in of_kind)} groups {fault}"

    def lost_text(of_kind: Sequence[Row]) -> str:
        return text([row.sums.lost_groups for row in of_kind], of_kind, "are off by more than rounding can be")

    def resized_text(of_kind: Sequence[Row]) -> str:
        return text(
            [row.sums.resized_groups for row in of_kind], of_kind, "have a scale that is not that of their codes"
        )

    yield from findings_by_kind("weights.groups", Severity.FAIL, lost, lost_text, "none")
    yield from findings_by_kind("weights.groups", Severity.FAIL, resized, resized_text, "none")
    if rows and not (lost or resized):
        groups = sum(row.sums.groups for row in rows)
        passed = "none is off by more than rounding can be, or has a scale that is half or 1.5 times that of its codes"
        yield Finding("weights.groups", Severity.PASS, f"{groups} groups of {len(rows)} weights", passed, "")


def _judge_codes(rows: Sequence[Row]) -> Iterator[Finding]:
    """Yield findings on the shares of zero and saturated codes; they warn only if plain rounding has far fewer."""

    def shares(row: Row) -> tuple[float, float]:
        return row.sums.zero_codes / row.codes, row.sums.saturated_codes / row.codes

    def found(of_kind: Sequence[Row]) -> str:
        zero, saturated = (sorted(column) for column in zip(*map(shares, of_kind), strict=True))
        return f"zero codes {span(zero)}, saturated codes {span(saturated)}"

    def is_odd(row: Row) -> bool:
        zero, saturated = shares(row)
        plain_zero, plain_saturated = row.sums.plain_zero / row.codes, row.sums.plain_saturated / row.codes
        return zero > max(_MAX_ZERO, plain_zero + _MAX_EXCESS) or saturated > max(
            _MAX_SATURATED, plain_saturated + _MAX_EXCESS
        )

    expected = f"at most {percent(_MAX_ZERO)} zero, {percent(_MAX_SATURATED)} saturated, or what plain rounding has"
    bad = [row for row in rows if is_odd(row)]
    yield from findings_by_kind("weights.codes", Severity.WARN, bad, found, expected, remedy=COMPARE)
    good = [row for row in rows if not is_odd(row)]
    if good:
        yield Finding("weights.codes", Severity.PASS, f"{len(good)} weights", found(good), expected)


def judge_kept(kept: Sequence[KeptPair], compared: Mapping[str, ElementCounts]) -> Iterator[Finding]:
    """Yield findings about kept tensors, whose bytes must be the source's.

    Args:
        kept: the kept tensors.
        compared: numbers of elements that differ or are not finite, by name.
    """
    nothing = ElementCounts()
    good = []
    for pair in kept:
        counts, total = compared.get(pair.name, nothing), pair.nbytes // pair.itemsize
        if counts.different:
            found = f"{counts.different} of {total} values differ"
            yield Finding("weights.kept", Severity.FAIL, pair.name, found, "the bytes of the source", QUANTIZE_AGAIN)
        elif counts.endless:
            found = f"{counts.endless} of {total} values are NaN or infinite, in the source, too"
            yield Finding("weights.kept", Severity.FAIL, pair.name, found, "finite values", _DIVERGED)
        else:
            good.append(pair)
    if good:
        nbytes = sum(pair.nbytes for pair in good)
        text = f"the bytes of the source, {nbytes} of them"
        yield Finding("weights.kept", Severity.PASS, f"{len(good)} tensors", text, "")

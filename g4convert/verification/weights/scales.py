"""Judgement of scales: finite, those of their codes, and right for a weight as a whole.

    weights.scales    one by one: none is NaN, infinite, or 0 for weights that are not
    weights.fit       group by group: the best scales for the same codes would save little
    weights.size      all together: no factor for the whole weight brings it nearer to its source

Scales that are all wrong by one factor, as of another convention for the end of the range (7 or 7.5), may cost less
than a method may lose, and still change what the layer gives.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from g4convert.report import Finding, Severity
from g4convert.verification.weights.findings import findings_by_kind, percent, span
from g4convert.verification.weights.rows import Row


def judge_finite(rows: Sequence[Row]) -> Iterator[Finding]:
    """Check that scales are finite, and 0 only for groups of zeros."""
    bad = [row for row in rows if row.sums.bad_scales or row.sums.zero_scales]

    def found(of_kind: Sequence[Row]) -> str:
        infinite = sum(row.sums.bad_scales for row in of_kind)
        zero = sum(row.sums.zero_scales for row in of_kind)
        return f"{infinite} scales that are not finite, {zero} that are 0 for weights that are not"

    yield from findings_by_kind("weights.scales", Severity.FAIL, bad, found, "finite, not 0")
    if not bad:
        groups = sum(row.sums.groups for row in rows)
        text = "finite, and 0 only where all weights are"
        yield Finding("weights.scales", Severity.PASS, f"{groups} scales of {len(rows)} weights", text, "")


def judge_fit(rows: Sequence[Row], cause: Callable[[Row], str]) -> Iterator[Finding]:
    """Check that the best scales for the stored codes would save at most `Row.may_save`."""
    bad = [row for row in rows if row.removable > row.may_save]

    def found(of_kind: Sequence[Row]) -> str:
        shares = sorted(row.removable for row in of_kind)
        return f"other scales for the same codes would lower the error by {span(shares)}"

    def expected(of_kind: Sequence[Row]) -> str:
        allowed = sorted(row.may_save for row in of_kind)
        return f"by less than {span(allowed)}: scales that belong to their codes"

    yield from findings_by_kind("weights.fit", Severity.FAIL, bad, found, expected, cause)
    if rows and not bad:
        worst = max(row.removable / row.plain for row in rows)
        text = f"the best scales for the codes would save at most {percent(worst)} of what plain rounding costs"
        yield Finding("weights.fit", Severity.PASS, f"{len(rows)} weights", text, "")


def judge_size(rows: Sequence[Row]) -> Iterator[Finding]:
    """Check that no weight as a whole is larger or smaller than its source: see `Row.growths`."""
    bad = [row for row in rows if not row.is_of_size]

    def found(of_kind: Sequence[Row]) -> str:
        wrong = "small" if of_kind[0].sums.growth > 0 else "large"
        factor = _factors(row.sums.growth for row in of_kind)
        return f"too {wrong} as a whole: {factor} times the stored values fit the source best"

    def expected(of_kind: Sequence[Row]) -> str:
        low, high = zip(*(row.growths for row in of_kind), strict=True)
        return f"{_factors((max(low), min(high)))} times"

    yield from findings_by_kind("weights.size", Severity.FAIL, bad, found, expected)
    if rows and not bad:
        text = f"none too small or large: {_factors(row.sums.growth for row in rows)} times them fit the sources best"
        yield Finding("weights.size", Severity.PASS, f"{len(rows)} weights", text, "")


def _factors(growths: Iterable[float]) -> str:
    """Return the range of factors as text."""
    ordered = sorted(growths)
    low, high = f"{1 + ordered[0]:.4g}", f"{1 + ordered[-1]:.4g}"
    return low if low == high else f"{low} to {high}"

"""Comparison of sound weights with one another: outliers of a kind, and weights that lie on a training's grid."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from g4convert.names import Name
from g4convert.report import Finding, Severity
from g4convert.verification.weights.findings import COMPARE, error_text, findings_by_kind, percent, span
from g4convert.verification.weights.rows import Row

_ON_GRID: Final = 0.9
"""Least share of exact groups in a weight whose source was trained on a grid that the quantizer found."""
_OUTLIER_SIGMAS: Final = 3.0
"""Distance of an outlier from the median, in robust standard deviations."""
_LEAST_SIGMA: Final = 0.1
"""Least value of the robust standard deviation, as a part of the median."""
_MIN_PEERS: Final = 5
"""Least number of weights of a kind among which outliers are searched."""
_BETTER_THAN_PLAIN: Final = 0.9
"""Ratio to the error of plain rounding up to which no weight is an outlier."""
_SIGMAS_PER_MAD: Final = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation, 1 / Phi^-1(3/4)."""


def note_outliers(rows: Sequence[Row]) -> Iterator[Finding]:
    """Note weights whose ratio to plain rounding is much larger than that of other weights of their projection.

    The ratio is compared, not the error, since some weights are hard to round. It is no fault.
    """
    peers: defaultdict[tuple[str, str, int, int], list[Row]] = defaultdict(list)
    for row in rows:
        pair = row.pair
        peers[pair.weight.role.value, Name(row.name).last, pair.num_bits, pair.group].append(row)
    count = 0
    for alike in peers.values():
        if len(alike) < _MIN_PEERS:
            continue
        count += len(alike)
        median = statistics.median(row.ratio for row in alike)
        deviation = _SIGMAS_PER_MAD * statistics.median(abs(row.ratio - median) for row in alike)
        border = max(median + _OUTLIER_SIGMAS * max(deviation, _LEAST_SIGMA * median), _BETTER_THAN_PLAIN)
        out = [row for row in alike if border < row.ratio <= row.band.usual]

        def found(of_kind: Sequence[Row]) -> str:
            return f"{error_text(of_kind)}, {max(row.ratio for row in of_kind):.2f} of what plain rounding has"

        expected = f"about {median:.2f} of it, as the other {len(alike) - len(out)} of its kind"
        yield from findings_by_kind("weights.outlier", Severity.INFO, out, found, expected, remedy="")
    if count:
        text = "no other sound weight is far worse than those of its kind"
        yield Finding("weights.outlier", Severity.PASS, f"{count} weights", text, "")


def note_exact(rows: Sequence[Row]) -> Iterator[Finding]:
    """Yield findings on whether the source of int4 weights lay on a grid, and whether every weight's grid was found."""
    if not rows:
        return
    share = sum(row.sums.exact_groups for row in rows) / sum(row.sums.groups for row in rows)
    subject, found = f"{len(rows)} int4 weights", f"{percent(share)} of all groups are exact up to rounding to bf16"
    if statistics.median(row.exact for row in rows) < _ON_GRID:
        yield Finding("weights.exact", Severity.INFO, subject, found, "all, for a source that was trained on a grid")
        return
    off = [row for row in rows if row.exact < _ON_GRID]
    expected = "all, as most weights lie on a 4-bit grid"

    def exact(of_kind: Sequence[Row]) -> str:
        return f"{span(sorted(row.exact for row in of_kind))} of the groups are exact"

    yield from findings_by_kind("weights.exact", Severity.WARN, off, exact, expected, remedy=COMPARE)
    yield Finding("weights.exact", Severity.PASS, subject, found, expected)

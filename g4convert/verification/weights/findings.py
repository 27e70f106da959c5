"""Findings about weights: a few are reported one by one; many are merged by kind of weight and cause."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from g4convert.report import Finding, Severity, join_alike
from g4convert.verification.weights.rows import Row

_SINGLE: Final = 12
"""Most findings of a check that are reported one by one; more than these are merged by kind and cause."""
COMPARE: Final = "quantize the source again and compare: the same bytes are no fault of the file"
QUANTIZE_AGAIN: Final = "quantize the source again: this weight was damaged, packed wrongly, or is of another source"


def findings_by_kind(  # noqa: PLR0913, PLR0917 -- a finding has this many parts
    code: str,
    severity: Severity,
    rows: Sequence[Row],
    found: Callable[[Sequence[Row]], str],
    expected: Callable[[Sequence[Row]], str] | str,
    cause: Callable[[Row], str] | None = None,
    remedy: str = QUANTIZE_AGAIN,
) -> Iterator[Finding]:
    """Yield a finding for each of a few rows; for many rows, one merged finding for each kind and cause."""
    kinds: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        kinds[row.kind, cause(row) if cause else ""].append(row)
    for (_, why), alike in kinds.items():
        batches = [[row] for row in alike] if len(rows) <= _SINGLE else [alike]
        for batch in batches:
            text = found(batch) + (f": {why}" if why else "")
            expected_text = expected if isinstance(expected, str) else expected(batch)
            yield from join_alike(Finding(code, severity, row.name, text, expected_text, remedy) for row in batch)


def error_text(rows: Sequence[Row]) -> str:
    """Return the range of the relative errors of some weights as text."""
    return f"relative error {span(sorted(row.error for row in rows))}"


def span(values: Sequence[float]) -> str:
    """Return the range of sorted shares as text: `1.2 %`, or `1.2 % to 3.4 %`."""
    low, high = percent(values[0]), percent(values[-1])
    return low if low == high else f"{low} to {high}"


def percent(share: float) -> str:
    """Return a share in percent, with three significant digits."""
    return f"{100 * share:.3g} %"

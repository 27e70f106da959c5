"""Writes the last section of docs/quality.md from the rows of `budget.py`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from budget_rows import PAIRS, Row, of
from quality_report import LAST
from real_judge import error

__all__ = ["write"]

_Found = Mapping[str, Mapping[str, Any]]
_MSE: Final = """\
`g4convert fit` on the same model and windows, `mse`: for q, k, v; o; gate, up; down of each layer one of
int4 in groups of 128, 64 or 32, int8 with a scale a row, and bf16. Single changes were measured on {samples} rows of \
{tokens} ids
of the texts that ship, none of which judges. Bits are those of the Linears; embedding and head are kept, but for the
rows that pack them. `predicted` is the sum of single changes, `whole` all of them at once on {samples} other rows, by \
which
a fit is held against one packing for all, KL that of the windows that judge. *By output error* is what a fit chooses \
for a
model that the memory does not hold. `make budget` makes this section."""
_HEADING: Final = "\n### With `gptq`\n"
_GPTQ: Final = """\
The same for `gptq`: single changes and wholes are rounded by `imatrix`, which stands for it, on statistics of the texts
that ship, and what layers lose by it counts by a share; what was chosen is quantized by `gptq` on the ids that
calibrate the tables above. Embedding and head, which have no inputs to calibrate on, are rounded as by `mse`."""


def write(page: Path, found: _Found, samples: int, tokens: int) -> None:
    """Write the section; a method of which a row is missing keeps the tables that it has.

    Args:
        page: the page, whose last section is written.
        found: facts and figures by row.
        samples: rows of ids that single changes were measured on.
        tokens: ids of each.
    """
    before, _, section = page.read_text().partition(LAST)
    first, _, second = section.partition(_HEADING)
    parts = {"mse": ("", _MSE.format(samples=samples, tokens=tokens), first), "gptq": (_HEADING, _GPTQ, second)}
    text = before + LAST
    for method, (heading, words, old) in parts.items():
        if not old or all(row.name in found for row in of(method)):
            text += "\n".join([f"{heading}\n{words}\n", *_tables(method, found)]) + "\n"
        else:
            text += heading + old
    page.write_text(text)


def _tables(method: str, found: _Found) -> Iterator[str]:
    """Yield the table of a method's rows, by size, and that of rows of one size."""
    yield "| recipe | size, MB | bits | predicted | whole | KL | same top token |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    rows = [row for row in of(method) if row.name in found]
    for row in sorted(rows, key=lambda row: found[row.name]["bytes"]):
        yield f"| {' | '.join(_cells(row, found[row.name]))} |"
    yield ""
    yield "| at one size | whole, ratio | KL, ratio | difference |"
    yield "|---|---:|---:|---:|"
    for title, one, other in PAIRS[method]:
        if one in found and other in found:
            yield f"| {title} | {_compared(found[one], found[other])} |"


def _cells(row: Row, facts: Mapping[str, Any]) -> Sequence[str]:
    predicted = f"{facts['predicted']:.3f}" if "predicted" in facts else ""
    kl = f"{fmean(facts['kl']):.3f} +- {error(facts['kl']):.3f}" if "kl" in facts else "not judged"
    same = f"{100 * fmean(facts['same']):.1f} %" if "kl" in facts else ""
    bits = "" if row.has_tables else f"{facts['bits']:.3f}"
    return row.title, f"{facts['bytes'] / 1e6:.1f}", bits, predicted, f"{facts['whole']:.3f}", kl, same


def _compared(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return cells with the ratios of two rows, and the paired difference where both were judged."""
    whole = f"{one['whole'] / other['whole']:.2f}"
    if "kl" not in one or "kl" not in other:
        return f"{whole} | | "
    apart = [x - y for x, y in zip(one["kl"], other["kl"], strict=True)]
    return f"{whole} | {fmean(one['kl']) / fmean(other['kl']):.2f} | {fmean(apart):+.3f} +- {error(apart):.3f}"

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
This section shows what `g4convert fit` chooses on the same model and windows, with `mse`. In each layer, it chooses one
packing for q, k, v; for o; for gate, up; and for down: int4 in groups of 128, 64 or 32, int8 with one scale per row, or
bf16. Single changes were measured on {samples} rows of {tokens} ids of the bundled texts, none of which judges.
`make budget` writes this section.

- `bits` are those of the Linears. Embedding and head are kept, except in the rows that pack them.
- `predicted` is the sum of the single changes.
- `whole` is the KL of all of them at once on {samples} other rows. By this figure, `fit` compares its choice with one
  packing for all.
- `KL` is measured on the windows that judge.
- *By output error* is what `fit` chooses if the memory does not hold the model."""
_HEADING: Final = "\n### With `gptq`\n"
_GPTQ: Final = """\
The same for `gptq`. For single changes and wholes, parts are rounded by `imatrix`, which stands in for `gptq`, with
statistics of the bundled texts. The loss of layers is multiplied by a share. The choice is then quantized by `gptq` on
the ids that calibrate the tables above. Embedding and head have no inputs to calibrate on, so they are rounded as by
`mse`."""


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

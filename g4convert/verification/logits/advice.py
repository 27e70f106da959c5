"""Advice for when four bits cost a model too much, although the file is right.

If the loss fails and the parity passes, the file is right. Then users need to know which recipe costs less, how much
less, and how to write it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from g4convert.report import Finding, Severity
from g4convert.verification.logits.blame import Blame

__all__ = ["with_advice"]

_CHEAPER: Final = (
    "what costs less, with the mean KL of a 270M model: 4 bits calibrated, `-r w4a16-g32-gptq` (0.05) or "
    "`-r w4a16-g32-best` (0.05), where `-r w4a16-g32` has 0.30; bits chosen for each part by `g4convert fit`; "
    "8 bits, `-r w8a16-g32` (0.0003)"
)
_KEEPS: Final = {"attention": "mlp, experts", "mlp": "attention, experts", "experts": "attention, mlp"}
"""`--roles` of a recipe that keeps a role in bf16."""


def with_advice(findings: Iterable[Finding], blamed: Mapping[str, Blame]) -> Iterator[Finding]:
    """Yield the findings, with a remedy added to failures and warnings of the loss if the file is right.

    Args:
        findings: findings of the level.
        blamed: table of blame, by comparison.
    """
    found = list(findings)
    parity = [one for one in found if one.code.startswith("logits.parity.") and one.severity is not Severity.INFO]
    wrong = any(one.severity is Severity.FAIL for one in found if not one.code.startswith("logits.loss."))
    if wrong or not parity:
        yield from found
        return
    remedy = "; ".join(_lines(blamed.get("loss")))
    lost = [one for one in found if one.code.startswith("logits.loss.")]
    worst = next((one for one in (Severity.FAIL, Severity.WARN) if any(loss.severity is one for loss in lost)), None)
    for one in found:
        yield replace(one, remedy=remedy) if one in lost and one.severity is worst and not one.remedy else one


def _lines(table: Blame | None) -> Sequence[str]:
    """Return the lines of the remedy: that the file is right, which recipes cost less, and how to write them."""
    lines = [
        "the file is right, its weights compute what they stand for: four bits cost this model so much",
        _CHEAPER,
    ]
    if table is None:
        return lines
    roles = [row for row in table.rows if row.kind == "role" and row.share > 0]
    lines += (
        f"keeping every {row.module} weight takes {round(100 * row.share)} % of the cost away: "
        f"`pack: [{_KEEPS[row.module]}]` in a recipe"
        for row in roles[:2]
    )
    layers = [f"{row.module} {round(100 * row.share)} %" for row in table.rows if row.kind == "layer"][:3]
    if layers:
        lines.append(f"the layers that cost most: {', '.join(layers)}")
    return lines

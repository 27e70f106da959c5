"""Advice for when four bits cost a model too much, although the file is right.

If the loss fails and the parity passes, the file is right. Then users need to know which recipe costs less, how much
less, and how to write it. The advice has a line for each way.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from g4convert.planning.costs import KL
from g4convert.planning.recipe import Method
from g4convert.quantities import nats
from g4convert.report import Finding, Severity

__all__ = ["with_advice"]

_RIGHT: Final = (
    "the file is right: its weights compute what they stand for, but quantization costs this model too much. What "
    "costs less, with the mean KL of a real 270M model:"
)
_GROUP: Final = 32
_CALIBRATED: Final = (Method.GPTQ, Method.BEST)
_OTHERS: Final = (
    "bits chosen for each part of this model: `g4convert fit`",
    "8 bits: `-r w8a16-g32` (0.0003), which passes the profile w4a16 there",
)
_Rows = Sequence[Mapping[str, Any]]


def with_advice(findings: Iterable[Finding], blamed: _Rows, method: object) -> Iterator[Finding]:
    """Yield the findings, with a remedy added to failures and warnings of the loss if the file is right.

    Args:
        findings: findings of the level.
        blamed: rows of the loss's table of blame; empty without one.
        method: method that the output's record names; None if it names none.
    """
    found = list(findings)
    parity = [one for one in found if one.code.startswith("logits.parity.") and one.severity is not Severity.INFO]
    wrong = any(one.severity is Severity.FAIL for one in found if not one.code.startswith("logits.loss."))
    if wrong or not parity:
        yield from found
        return
    remedy = "\n".join([_RIGHT, *_cheaper(method), *_keeping(blamed)])
    lost = [one for one in found if one.code.startswith("logits.loss.")]
    worst = next((one for one in (Severity.FAIL, Severity.WARN) if any(loss.severity is one for loss in lost)), None)
    for one in found:
        yield replace(one, remedy=remedy) if one in lost and one.severity is worst and not one.remedy else one


def _cheaper(method: object) -> Iterator[str]:
    """Yield the recipes that cost less than one with this method."""
    known = KL[_GROUP]
    own = next((kl for one, kl in known.items() if one == method), known[Method.AUTO])
    if better := [f"`-r w4a16-g32-{one}` ({nats(known[one])})" for one in _CALIBRATED if known[one] < 0.9 * own]:
        yield (
            f"4 bits, calibrated: {' or '.join(better)}, where `-r w4a16-g32` has {nats(known[Method.AUTO])}; on so "
            "small a model both fail the profile w4a16"
        )
    yield from _OTHERS


def _keeping(blamed: _Rows) -> Iterator[str]:
    """Yield how to keep the modules that cost most."""
    roles = [row for row in blamed if row["kind"] == "role"]
    for row in [row for row in roles if row["share"] > 0][:2]:
        if others := ", ".join(sorted(one["module"] for one in roles if one is not row)):
            share = f"{round(100 * row['share'])} % of the cost away"
            yield f"every {row['module']} weight in bf16: `pack: [{others}]` in a recipe takes {share}"
    if layers := [f"{row['module']} ({round(100 * row['share'])} %)" for row in blamed if row["kind"] == "layer"][:3]:
        yield f"the costliest layers in bf16 or 8 bits, by `rules` of a recipe: {', '.join(layers)}"

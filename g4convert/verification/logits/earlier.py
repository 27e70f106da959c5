"""Says whether the recipe is to blame for predictions that lose too much, by what the levels before found."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from g4convert.report import Finding, Severity

RIGHT: Final = "the file is correct, but this recipe loses too much."
_UNPROVEN: Final = "{but}; if that changes nothing, this recipe loses too much."
_NOT_COMPARED: Final = "the packed path is right, but a stored reference holds no weights to compare values with"
_MOST_KEYS: Final = 3
"""Most keys of config.json that are named."""


def judge_file(before: Iterable[Finding], *, compared: bool) -> str:
    """Return a sentence on whether the file is right, for the remedy of a loss.

    Args:
        before: findings of the levels before, none of them a failure.
        compared: the values were compared with the original's.
    """
    if not compared:
        return _UNPROVEN.format(but=_NOT_COMPARED)
    added = [one.subject for one in before if one.code == "static.config" and one.expected == "not in the source"]
    if not added:
        return RIGHT
    more = f" and {len(added) - _MOST_KEYS} more" if len(added) > _MOST_KEYS else ""
    named = ", ".join(added[:_MOST_KEYS]) + more
    return _UNPROVEN.format(but=f"the values are right, but config.json has keys that the source lacks ({named})")


def blame_fault(findings: Iterable[Finding], before: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings; losses get the remedy to correct what a level before found, if one failed."""
    fault = next((finding for finding in before if finding.severity is Severity.FAIL), None)
    for finding in findings:
        is_lost = finding.code.startswith("logits.loss.") and finding.severity in {Severity.FAIL, Severity.WARN}
        if fault and is_lost and not finding.remedy:
            yield replace(finding, remedy=f"correct first what {fault.code} names: {fault.subject}")
        else:
            yield finding

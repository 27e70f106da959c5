"""Runs level `logits` where the model of an output may not run at all: then the level stops, and says why.

A config that is not the source's can make a model that fails anywhere: a token for images that no prompt has, sizes
that do not divide, a padding token of null. Level `static` has named its keys before. Without such a finding, and with
the source at hand, a failure is a fault of g4convert and is raised.
"""

from collections.abc import Sequence
from typing import Final

from huggingface_hub.errors import StrictDataclassError

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import InputError
from g4convert.progress import Progress
from g4convert.report import Finding, LevelResult, Severity
from g4convert.request import Request
from g4convert.verification.logits.level import run_logits

_FAILURES: Final = (
    InputError, StrictDataclassError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""Errors of transformers and torch for a model that does not run, and of readers of the checkpoint."""
_OF_CONFIG: Final = ("static.config", "static.architecture")
_MAX_CHARACTERS: Final = 120
"""Most characters of an error's text."""


def run_guarded(
    asked: Request, out: Checkpoint, source: Checkpoint | None, before: Sequence[Finding], *, progress: Progress
) -> LevelResult:
    """Run level `logits`, or stop it where the model of an output that is known to be wrong cannot be run.

    Args:
        asked: the request.
        out: the opened output.
        source: the checkpoint that the output was made of; None if there is none to compare the config with.
        before: findings of the levels before.
        progress: told of each step, and of its progress.

    Raises:
        G4Error: as for `run_logits`.
    """
    faults = [fault for fault in before if fault.severity is Severity.FAIL]
    try:
        return run_logits(asked, out, source, before, progress=progress)
    except _FAILURES as error:
        of_input = isinstance(error, InputError)
        if not faults and (of_input or source is not None):
            raise
        found = f"not run: {'' if of_input else 'the model fails: '}{_first_line(error)}"
        return LevelResult(
            (Finding("logits.stopped", Severity.INCONCLUSIVE, "level logits", found, "", _remedy(faults)),), {}
        )


def _first_line(error: Exception) -> str:
    """Return an error as text of one line, with its type if it is none of g4convert's."""
    if isinstance(error, InputError):
        text = error.offenders[0] if len(error.offenders) == 1 else error.message
    else:
        text = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"


def _remedy(faults: Sequence[Finding]) -> str:
    keys = [fault.subject for fault in faults if fault.code in _OF_CONFIG and fault.subject != "config.json"]
    if keys:
        return f"correct config.json first: level static names {keys[0]}" + (
            f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        )
    if faults:
        return f"correct first what {faults[0].code} names: {faults[0].subject}"
    return "its config.json was compared with none: pass the checkpoint itself, --reference MODEL"

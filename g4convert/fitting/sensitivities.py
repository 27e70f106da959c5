"""Measured losses of single changes, in a JSON file that later fits reuse for any target.

    basis     model, token ids, method, dtype: everything that the losses depend on
    losses    loss of each part, by packing: {"layers.3.mlp.down_proj": {"int4 g32": 0.0112, ...}, ...}

The file is rewritten after each change, so a stopped run resumes there. One run at a time measures into a file. A file
with a different basis is refused, not replaced.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

from g4convert.array_types import F64
from g4convert.bounded import read_text
from g4convert.conversion.fingerprint import differences
from g4convert.conversion.identity import Model
from g4convert.conversion.lock import Lock
from g4convert.errors import InputError
from g4convert.fitting.choices import Form, label_form
from g4convert.fitting.parts import Part
from g4convert.fitting.problem import Problem
from g4convert.progress import Progress
from g4convert.whole_files import write_whole

_VERSION: Final = 1
_MAX_BYTES: Final = 64 << 20
_HINT: Final = "name another file with --sensitivities, or move this one away"


class LossUnit(StrEnum):
    """Units of losses."""

    KL = "KL"
    OUTPUT_ERROR = "output error"


class Measure(Protocol):
    """A way to measure the losses of packings."""

    def losses(self, forms: Iterable[tuple[Part, Form]]) -> F64:
        """Return the loss on each of several texts if the parts are packed; the loss is their mean.

        Args:
            forms: parts and their packings; all other parts stay unchanged.

        Raises:
            InputError: a weight is NaN or infinite.
        """


@dataclass(frozen=True, slots=True)
class Basis:
    """Everything that measured losses depend on.

    Args:
        unit: unit of the losses.
        model: identity of the model.
        tokens: sha256 of the token ids of the calibration file.
        samples: number of sequences.
        length: tokens of each sequence.
        method: rounding method.
        signed: whether the method may choose negative scales.
        statistics: hash of the statistics of inputs; empty without statistics.
        dtype: dtype of the forward; empty if the model does not run.
    """

    unit: LossUnit
    model: Model
    tokens: str
    samples: int
    length: int
    method: str
    signed: bool
    statistics: str
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """Return the basis as JSON."""
        return {**asdict(self), "model": self.model.to_dict()}


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """Losses measured on one basis.

    Args:
        basis: everything that the losses depend on.
        losses: losses by part name and packing label; `measure` adds to it.
    """

    basis: Basis
    losses: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, basis: Basis) -> "Sensitivities":
        """Read the losses in a file; a missing file has none.

        Raises:
            InputError: the file is malformed or has a different basis; names every difference.
        """
        if not path.exists():
            return cls(basis)
        try:
            document = json.loads(read_text(path, _MAX_BYTES))
            losses = dict(_parse_losses(document["losses"]))
            theirs = document["basis"] if document["version"] == _VERSION else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: not a file of measured losses: {error}", hint=_HINT) from error
        wrong = [f"{at}: {its}, expected {own}" for at, its, own in differences(theirs, basis.to_dict())]
        if wrong:
            raise InputError(f"{path}: losses that were measured on something else", offenders=wrong, hint=_HINT)
        return cls(basis, losses)

    def save(self, path: Path) -> None:
        """Write the file; replace an existing one atomically."""
        document = {"version": _VERSION, "basis": self.basis.to_dict(), "losses": self.losses}
        write_whole(path, json.dumps(document, indent=1) + "\n")

    def missing(self, part: Part) -> list[Any]:
        """Return the packings of a part whose loss is not measured yet."""
        known = self.losses.get(part.name, {})
        return [form for form in part.forms if form is not None and label_form(form) not in known]


def measure_missing(  # noqa: PLR0913, PLR0917 -- what is measured, where it is kept, and who is asked and told
    problem: Problem,
    single: Measure,
    sensitivities: Sensitivities,
    path: Path,
    progress: Progress,
    check: Callable[[], None],
) -> None:
    """Measure every missing loss, one change at a time, and save the file after each.

    Args:
        problem: parts and packings.
        single: measures one change.
        sensitivities: known losses; is added to.
        path: file of the losses.
        progress: told of each change.
        check: raises if the model changed, before a loss is kept.

    Raises:
        EnvironmentFault: another run measures into the file.
        G4Error: see `check`.
    """
    if not any(map(sensitivities.missing, problem.free)):
        progress.step("measuring", 0, "changes")
        return
    with Lock.beside(path) as lock:
        lock.take()
        for name, losses in Sensitivities.at(
            path, sensitivities.basis
        ).losses.items():  # again: another may have ended now
            sensitivities.losses.setdefault(name, {}).update(losses)
        progress.step("measuring", sum(len(sensitivities.missing(part)) for part in problem.free), "changes")
        for part in problem.free:
            for form in sensitivities.missing(part):
                loss = float(single.losses([(part, form)]).mean())
                check()
                sensitivities.losses.setdefault(part.name, {})[label_form(form)] = loss
                sensitivities.save(path)
                progress.tick(1, part.name)


def _parse_losses(entries: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the losses of each part.

    Raises:
        ValueError: a loss is negative or not finite.
    """
    for name, forms in entries.items():
        values = {str(label): float(loss) for label, loss in forms.items()}
        if not all(math.isfinite(loss) and loss >= 0 for loss in values.values()):
            raise ValueError(name)
        yield str(name), values

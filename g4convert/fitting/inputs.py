"""Token ids and statistics of inputs that a fit reads from a calibration file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from g4convert.array_types import I32
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import Model
from g4convert.conversion.statistics import Statistics
from g4convert.conversion.weighting import check_statistics, read_statistics
from g4convert.errors import UsageError
from g4convert.fitting.problem import Problem
from g4convert.fitting.rounding import Rounder
from g4convert.fitting.sensitivities import Basis, Unit
from g4convert.quantities import plural

_SAMPLES: Final = 8
"""Rows to run unless told."""
_LENGTH: Final = 64
"""Tokens of each unless told."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Token ids and statistics of a fit.

    Args:
        ids: token ids for single changes, int32 [s, t].
        held_out: token ids of other rows for whole choices, int32 [s or fewer, t].
        tokens: hash of all token ids in the file.
        statistics: statistics of the Linears' inputs; None if neither the method nor the unit needs them.
    """

    ids: I32
    held_out: I32
    tokens: str
    statistics: Statistics | None

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 -- a file, what it is for, and how much of it
        cls, path: Path, checkpoint: Checkpoint, problem: Problem, unit: Unit, samples: int | None, length: int | None
    ) -> "Inputs":
        """Read a calibration file.

        Args:
            path: the file.
            checkpoint: the model.
            problem: has the recipe, which names the method.
            unit: unit of the losses; output errors need statistics with any method.
            samples: rows to run, spread evenly over the rows of words that do not judge; None as in `rows_to_run`.
            length: leading tokens to run of each row; None as in `rows_to_run`.

        Raises:
            UsageError: the file has fewer rows than `samples`, or its rows are shorter than `length`.
            InputError: the file is of another model, or lacks needed statistics.
        """
        tokens = Tokens.load(path, problem.plan.architecture.text.vocab_size, checkpoint)
        rows, samples, length = rows_to_run(tokens, samples, length, path)
        statistics = _statistics(path, problem, unit, checkpoint)
        chosen = _evenly(rows, samples)
        words = [row for row in range(tokens.samples) if row not in tokens.pictured]
        others = _evenly([row for row in words if row not in chosen], samples)
        return cls(tokens.ids[chosen, :length], tokens.ids[others, :length], tokens.hash, statistics)

    def basis(self, checkpoint: Checkpoint, rounder: Rounder, unit: Unit, dtype: str) -> Basis:
        """Return everything that the losses will depend on."""
        samples, length = self.ids.shape
        return Basis(
            unit=unit,
            model=Model.of(checkpoint),
            tokens=self.tokens,
            samples=samples,
            length=length,
            method=rounder.method.value,
            signed=rounder.signed,
            statistics="" if self.statistics is None else self.statistics.hash,
            dtype=dtype if unit is Unit.KL else "",
        )


def rows_to_run(tokens: Tokens, samples: int | None, length: int | None, path: Path) -> tuple[list[int], int, int]:
    """Return the rows that do not judge and have no pictures, how many of them to run, and how many tokens of each.

    Args:
        tokens: ids of the file.
        samples: rows to run; None takes 8, or all if there are fewer.
        length: tokens of each; None takes 64, or all if there are fewer.
        path: the file, for the error.

    Raises:
        UsageError: there are fewer rows than `samples`, or they are shorter than `length`.
    """
    rows = [row for row in range(tokens.samples) if row not in tokens.judges | tokens.pictured]
    samples = min(_SAMPLES, len(rows)) if samples is None else samples
    length = min(_LENGTH, tokens.length) if length is None else length
    if not (1 <= samples <= len(rows) and 2 <= length <= tokens.length):
        raise UsageError(
            f"--rows {samples} --tokens {length}: {path} has {plural(len(rows), 'row')} of {tokens.length} to run",
            hint=f"--rows {min(samples, len(rows))} --tokens {min(length, tokens.length)}, or more and longer rows: "
            "`g4convert calibrate --samples N --length N`",
        )
    return rows, samples, length


def _evenly(rows: Sequence[int], count: int) -> list[int]:
    """Return `count` of the rows, spread evenly, or all rows if there are fewer."""
    count = min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def _statistics(path: Path, problem: Problem, unit: Unit, checkpoint: Checkpoint) -> Statistics | None:
    """Read the statistics if the method or the unit needs them; for KL, `gptq` does without if the file has none."""
    recipe = problem.plan.recipe
    without = not recipe.is_calibrated or (recipe.is_layered and CalibrationFile.load(path).statistics is None)
    if without and unit is Unit.KL:
        return None
    found = read_statistics(path)
    check_statistics(path, found, problem.plan, checkpoint)
    return found

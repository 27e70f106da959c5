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
from g4convert.fitting.sensitivities import Basis, LossUnit
from g4convert.quantities import plural

_DEFAULT_SAMPLES: Final = 8
"""Default number of rows to run."""
_FEWEST_OTHERS: Final = 2
"""Fewest other rows for whole choices: one has no standard error."""
_DEFAULT_LENGTH: Final = 64
"""Default number of tokens of each."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Token ids and statistics of a fit.

    Args:
        ids: token ids for single changes, int32 [s, t].
        held_out: token ids of other rows for whole choices, int32 [s or more, t].
        tokens: hash of all token ids in the file.
        statistics: statistics of the Linears' inputs; None if neither the method nor the unit needs them.
    """

    ids: I32
    held_out: I32
    tokens: str
    statistics: Statistics | None

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 -- a file, what it is for, and how much of it
        cls,
        path: Path,
        checkpoint: Checkpoint,
        problem: Problem,
        unit: LossUnit,
        samples: int | None,
        length: int | None,
    ) -> "Inputs":
        """Read a calibration file.

        Args:
            path: the file.
            checkpoint: the model.
            problem: has the recipe, which names the method.
            unit: unit of the losses; output errors need statistics with any method.
            samples: rows to run, spread evenly over the rows of words that do not judge; None as in `choose_rows`.
            length: leading tokens to run of each row; None as in `choose_rows`.

        Raises:
            UsageError: see `choose_rows`.
            InputError: the file is of another model, or lacks needed statistics.
        """
        tokens = Tokens.load(path, problem.plan.architecture.text.vocab_size, checkpoint)
        chosen, others, length = choose_rows(tokens, samples, length, path)
        statistics = _read_needed_statistics(path, problem, unit, checkpoint)
        return cls(tokens.ids[chosen, :length], tokens.ids[others, :length], tokens.hash, statistics)

    def basis(self, checkpoint: Checkpoint, rounder: Rounder, unit: LossUnit, dtype: str) -> Basis:
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
            dtype=dtype if unit is LossUnit.KL else "",
        )


def choose_rows(
    tokens: Tokens, samples: int | None, length: int | None, path: Path
) -> tuple[list[int], list[int], int]:
    """Return the rows for single changes, the rows for whole choices, and how many tokens of each row to run.

    Rows with pictures are left out. Those for single changes do not judge, and are at most half of the others, so that
    as many are left for whole choices.

    Args:
        tokens: ids of the file.
        samples: rows for single changes; None takes 8, or half of all if that is less.
        length: tokens of each; None takes 64, or all if there are fewer.
        path: the file, for the error.

    Raises:
        UsageError: `samples` is more than half of the rows, or leaves fewer than two, or rows are shorter than
            `length`.
    """
    words = [row for row in range(tokens.samples) if row not in tokens.pictured]
    rows = [row for row in words if row not in tokens.judges]
    most = min(len(rows), len(words) // 2, len(words) - _FEWEST_OTHERS)
    samples = min(_DEFAULT_SAMPLES, most) if samples is None else samples
    length = min(_DEFAULT_LENGTH, tokens.length) if length is None else length
    if not (1 <= samples <= most and 2 <= length <= tokens.length):
        fits = f"--rows {min(max(1, samples), most)} --tokens {min(max(2, length), tokens.length)}, or "
        raise UsageError(
            f"--rows {max(0, samples)} --tokens {length}: {path} has {plural(len(words), 'row')} of text, of "
            f"{plural(tokens.length, 'token')}, and as many, at least {_FEWEST_OTHERS}, must be left for whole choices",
            hint=f"{fits if most >= 1 else ''}more and longer rows: `g4convert calibrate --samples N --length N`",
        )
    chosen = _spread_evenly(rows, samples)
    return chosen, _spread_evenly([row for row in words if row not in chosen], max(samples, _FEWEST_OTHERS)), length


def _spread_evenly(rows: Sequence[int], count: int) -> list[int]:
    """Return `count` of the rows, spread evenly, or all rows if there are fewer."""
    count = min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def _read_needed_statistics(path: Path, problem: Problem, unit: LossUnit, checkpoint: Checkpoint) -> Statistics | None:
    """Read the statistics if the method or the unit needs them; for KL, `gptq` does without if the file has none."""
    recipe = problem.plan.recipe
    is_optional = not recipe.is_calibrated or (recipe.is_layered and CalibrationFile.load(path).statistics is None)
    if is_optional and unit is LossUnit.KL:
        return None
    statistics = read_statistics(path)
    check_statistics(path, statistics, problem.plan, checkpoint)
    return statistics

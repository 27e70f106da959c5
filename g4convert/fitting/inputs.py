"""Token ids that a fit runs, and the statistics that its method weighs by, of a calibration file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import Model
from g4convert.conversion.statistics import Statistics
from g4convert.conversion.weighting import check_statistics, read_statistics
from g4convert.errors import UsageError
from g4convert.fitting.problem import Problem
from g4convert.fitting.rounding import Rounder
from g4convert.fitting.sensitivities import Basis

__all__ = ["Inputs"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Input of a fit.

    Args:
        ids: token ids, int32 [s, t].
        tokens: hash of the file's ids.
        statistics: of the model's inputs; None for a method that has none.
    """

    ids: NDArray[np.int32]
    tokens: str
    statistics: Statistics | None

    @classmethod
    def of(cls, path: Path, checkpoint: Checkpoint, problem: Problem, samples: int, length: int) -> "Inputs":
        """Read a calibration file.

        Args:
            path: the file.
            checkpoint: the model.
            problem: with the recipe that names the method.
            samples: rows to run, evenly of those that do not judge.
            length: tokens of each, from the first on.

        Raises:
            UsageError: more samples or longer ones than the file has.
            InputError: it is about another model, or lacks the statistics that `imatrix` needs.
        """
        tokens = Tokens.load(path, problem.plan.architecture.text.vocab_size, checkpoint)
        rows = [row for row in range(tokens.samples) if row not in tokens.judges]
        if not (1 <= samples <= len(rows) and 2 <= length <= tokens.length):
            raise UsageError(
                f"--rows {samples} --tokens {length}: {path} has {len(rows)} rows of {tokens.length} to run",
                hint="take fewer or shorter ones",
            )
        statistics = _statistics(path, problem, checkpoint)
        chosen = [rows[number * len(rows) // samples] for number in range(samples)]
        return cls(tokens.ids[chosen, :length], tokens.hash, statistics)

    def basis(self, checkpoint: Checkpoint, rounder: Rounder, dtype: str) -> Basis:
        """Everything that losses will depend on."""
        statistics = "" if self.statistics is None else self.statistics.hash
        samples, length = self.ids.shape
        method = rounder.method.value
        return Basis(Model.of(checkpoint), self.tokens, samples, length, method, rounder.signed, statistics, dtype)


def _statistics(path: Path, problem: Problem, checkpoint: Checkpoint) -> Statistics | None:
    """The statistics of a file, for the methods that look at inputs; `gptq` is measured without them, too."""
    recipe = problem.plan.recipe
    if not recipe.is_calibrated or (recipe.is_layered and CalibrationFile.load(path).statistics is None):
        return None
    found = read_statistics(path)
    check_statistics(path, found, problem.plan, checkpoint)
    return found

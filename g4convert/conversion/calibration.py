"""The calibration file of a conversion: where it is, whether it belongs to the model, and what it holds so far."""

from dataclasses import dataclass
from pathlib import Path

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.gguf import is_gguf
from g4convert.conversion.calibration_file import CalibrationFile, check_model
from g4convert.conversion.llama_imatrix import read_imatrix
from g4convert.conversion.statistics import Statistics
from g4convert.conversion.weighting import check_statistics
from g4convert.errors import InputError
from g4convert.planning.plan import Plan

_HINT = "`g4convert calibrate MODEL -o FILE` makes one"


@dataclass(frozen=True, slots=True)
class Calibration:
    """The file that a calibrated method reads, and what it holds so far.

    Args:
        path: the file.
        hash: hash of its token ids, or of a whole importance matrix; empty if the file has yet to be made.
        tokens: number of its token ids.
        statistics: statistics of the model's inputs; None if the file has token ids alone.
    """

    path: Path
    hash: str = ""
    tokens: int = 0
    statistics: Statistics | None = None

    @classmethod
    def of(cls, path: Path, plan: Plan, checkpoint: Checkpoint) -> "Calibration":
        """Read a file, and check that it belongs to the model.

        Raises:
            InputError: there is no such file, it is damaged, of another model, or no file for the plan's method.
        """
        if not path.exists():
            raise InputError(f"{path}: no such file", hint=_HINT)
        if is_gguf(path) and not plan.recipe.is_layered:
            imatrix = read_imatrix(path)
            check_statistics(path, imatrix, plan, checkpoint)
            return cls(path, imatrix.tokens, imatrix.samples * imatrix.length, imatrix)
        file = CalibrationFile.load(path)
        if plan.recipe.is_layered or file.statistics is None:
            check_model(path, file.model, checkpoint)
        else:
            check_statistics(path, file.statistics, plan, checkpoint)
        return cls(path, file.hash, file.ids.size, file.statistics)

    @classmethod
    def own(cls, path: Path, plan: Plan, checkpoint: Checkpoint, *, overwrite: bool) -> "Calibration":
        """Read the output's own calibration file, which lies beside the output.

        Args:
            path: the file.
            plan: plan of the output.
            checkpoint: the model.
            overwrite: whether a file that cannot be used is made again.

        Returns:
            Its content; empty if the file has yet to be made.

        Raises:
            InputError: see `of`; the file is there, and may not be made again.
        """
        if not path.exists():
            return cls(path)
        try:
            return cls.of(path, plan, checkpoint)
        except InputError as error:
            if overwrite:
                return cls(path)
            hint = "--overwrite makes it again"
            raise InputError(error.message, offenders=error.offenders, hint=hint) from error

    @property
    def is_there(self) -> bool:
        """True unless the file has yet to be made."""
        return bool(self.hash)

    def check_complete(self, plan: Plan) -> None:
        """Raise InputError if the file lacks what the plan's method needs."""
        if not self.is_complete(plan):
            text = "token ids without statistics of the model's inputs" if self.is_there else "no such file"
            raise InputError(f"{self.path}: {text}", hint=_HINT)

    def is_complete(self, plan: Plan) -> bool:
        """Return whether the file has the token ids or statistics that the plan's method needs."""
        return self.is_there if plan.recipe.is_layered else self.statistics is not None

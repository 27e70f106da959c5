"""The files of a fit: which it writes, which it reads, and whether they may be written."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

from g4convert.errors import InputError, UsageError
from g4convert.fitting.result import fit_command
from g4convert.fitting.target import Target
from g4convert.places import already_exists, check_apart, expand_home
from g4convert.whole_files import check_writable, write_whole

_Path: TypeAlias = str | os.PathLike[str]
_BEGINNING_LENGTH = 4_096
"""Characters of a recipe that hold its first comments."""


@dataclass(frozen=True, slots=True)
class FitFiles:
    """Files of a fit.

    Args:
        recipe: the output.
        losses: the measured losses, read and written.
        plot: the plot, if one is drawn.
        ids: token ids to run.
        is_given: whether the ids are a file of the caller's; else they are made where they are not there.
    """

    recipe: Path
    losses: Path
    plot: Path | None
    ids: Path
    is_given: bool

    @classmethod
    def of(cls, recipe: Path, ids: _Path | None, losses: _Path | None, plot: _Path | None) -> Self:
        """Return the files, those that were not named beside the recipe."""
        return cls(
            recipe,
            expand_home(losses) if losses else recipe.with_suffix(".sensitivities.json"),
            None if plot is None else expand_home(plot),
            expand_home(ids) if ids else recipe.with_name(f"{recipe.stem}.calibration.safetensors"),
            bool(ids),
        )

    @property
    def written(self) -> list[Path]:
        """The results."""
        return [self.recipe, self.losses, *([] if self.plot is None else [self.plot])]

    def check_writable(self, *, is_kept: bool) -> None:
        """Raise if what the fit writes cannot be written: if the recipe is kept, the plot and what is not there."""
        for path in self.written if self.is_given else [*self.written, self.ids]:
            if path == self.plot or not (is_kept and path.exists()):
                check_writable(path)

    def check_apart(self, model: Path, recipe: Path) -> None:
        """Raise if a result would replace something that the fit reads, or the caller's ids are not there."""
        check_apart(self.written, [model, self.ids, recipe])
        if self.is_given and not self.ids.exists():
            raise InputError(f"{self.ids}: no such file", hint="`g4convert calibrate MODEL -o FILE` makes one")

    def write(self, recipe: str, plot: str, *, is_kept: bool, overwrite: bool) -> None:
        """Write the plot, and the recipe last: one that is there is a fit that ended, and is kept if it is the same."""
        if is_kept and self.recipe.read_text(encoding="utf-8") != recipe:
            raise already_exists(self.recipe, "of the same target, by other options or on other texts")
        if self.plot is not None:
            write_whole(self.plot, plot)
        if not is_kept:
            write_whole(self.recipe, recipe, overwrite=overwrite)


def check_output(path: Path, target: Target, *, overwrite: bool) -> None:
    """Raise if the recipe has another ending, or is there and was not chosen for the same target."""
    if path.is_dir():
        raise UsageError(f"{path}: a directory, and a recipe is a file", hint=f"-o {path / 'NAME.yaml'}")
    if path.suffix not in {".yaml", ".yml"}:
        raise UsageError(f"{path}: a recipe ends in .yaml or .yml", hint=f"-o {path.with_suffix('.yaml')}")
    if path.exists() and not overwrite and f"Chosen by {fit_command(target)}" not in _read_beginning(path):
        raise already_exists(path, f"not chosen by {fit_command(target)}")


def _read_beginning(path: Path) -> str:
    """Return the first characters of a file; empty if it is no text."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_BEGINNING_LENGTH)
    except (OSError, UnicodeDecodeError):
        return ""

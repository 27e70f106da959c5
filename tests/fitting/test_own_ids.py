"""The calibration file that a fit makes beside its recipe: completed, and made again with the recipe."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from g4convert.api.calibrate import calibrate
from g4convert.api.fit import fit
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import Model
from g4convert.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

HOW: dict[str, Any] = {"choices": ["8:channel", "16"], "rows": 1, "tokens": 8, "workers": 1, "target_bits": 12}
FEW: dict[str, Any] = {"samples": 4, "length": 32}


def test_statistics_are_added_to_ids_that_a_fit_made_before(text: Path, tmp_path: Path) -> None:
    """A fit by KL makes ids alone, and one that streams the model needs statistics: it refused the file."""
    own = tmp_path / "r.calibration.safetensors"
    made = calibrate(text, own, answers=False, statistics=False, **FEW)
    fit(text, tmp_path / "r.yaml", memory="stream", **HOW)
    file = CalibrationFile.load(own)
    assert file.hash == made.tokens.hash
    assert file.statistics is not None


def test_ids_of_another_model_are_made_again_with_the_recipe(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that replaces a recipe for another model was refused for a file that it had made itself."""
    own, other = tmp_path / "r.calibration.safetensors", Model({"hidden_size": 99}, "", "", "")
    CalibrationFile(np.full((4, 24), 7, np.int32), model=other).save(own)
    with pytest.raises(InputError, match="a calibration of another model than") as caught:
        fit(text, tmp_path / "r.yaml", **HOW)
    assert caught.value.hint == "--overwrite makes it again"
    monkeypatch.setattr("g4convert.api.fit.calibrate", partial(calibrate, **FEW))
    fit(text, tmp_path / "r.yaml", overwrite=True, **HOW)
    assert CalibrationFile.load(own).model == Model.of(Checkpoint.open(text))

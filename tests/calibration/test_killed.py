"""`best`, killed by SIGKILL in its steps: the same command repeats a layer at most and ends with the same bytes.

`test_scales.py` stops it by Ctrl-C, which unwinds: files are closed, and arrays are flushed. Here nothing is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.killed import Place, killed
from helpers.runs import hashes

from g4convert.calibration.run import LayerByLayer
from g4convert.calibration.scales import ScaleTraining
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.source import Source
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.conversion.staging import STATES
from g4convert.planning.recipe_files import load
from g4convert.planning.training import EPOCHS
from g4convert.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

_RUN, _STATES, _TARGETS, _DISTILL, _STUDENT, _TRAINED = (
    f"g4convert.calibration.{name}" for name in ("run", "states", "targets", "distill", "student", "trained")
)
STEPS = 2 * EPOCHS
"""Five samples that train, in batches of four."""
LINEARS = 7
"""Packed in each layer."""
Chain = list[tuple[Place, list[str]]]
"""Runs that continue each other: where each of them dies, and the layers and steps that it begins."""
FEW: Chain = [
    (Place(f"{_RUN}:LayerByLayer._write", LINEARS + 5), ["layer 0", "layer 1"]),
    (Place(f"{_DISTILL}:replace_file", 2), ["layer 1", "layer 2", "layer 3", "step", "step"]),
    (Place(f"{_TRAINED}:checksum", 1), (STEPS - 1) * ["step"]),  # one layer has its new scales
]
EACH: Chain = [
    (Place(f"{_RUN}:LayerByLayer._write", 3), ["layer 0"]),
    (Place(f"{_STATES}:States.seal", 1, after=True), ["layer 0"]),  # its states are on disk, and no line says so
    (Place(f"{_RUN}:LayerByLayer._write", LINEARS + 5), ["layer 0", "layer 1"]),
    (Place(f"{_RUN}:LayerByLayer._checksum", 1), ["layer 1"]),  # all weights are written
    (Place(f"{_TARGETS}:Targets.make", 3), ["layer 1", "layer 2", "layer 3"]),
    (Place(f"{_TARGETS}:Targets.make", 2, after=True), []),
    (Place(f"{_DISTILL}:replace_file", 2), 2 * ["step"]),
    (Place(f"{_DISTILL}:replace_file", 1, after=True), ["step"]),
    (Place(f"{_STUDENT}:Student.go", 2), (STEPS - 2) * ["step"]),  # trained, and no share taken
    (Place(f"{_TRAINED}:checksum", 1), []),
    (Place(f"{_RUN}:LayerByLayer.close", 1), []),
]


def best(source: Path, output: Path, ids: Path) -> None:
    conversion = prepare(Job(Source.at(source), load("w4a16-g32-best"), output, workers=2, calibration=ids))
    convert(conversion, Progress(), Ranks(), LayerByLayer.of(conversion, ids))


@pytest.mark.wide
@pytest.mark.parametrize("chain", [FEW, pytest.param(EACH, marks=pytest.mark.full)], ids=["few", "each"])
def test_killed_at_a_step_it_repeats_a_layer_or_a_step_at_most_and_ends_with_the_same_bytes(
    chain: Chain, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, output = tmp_path / "ids.safetensors", tmp_path / "killed" / "out"
    Tokens(np.random.default_rng(0).integers(5, 250, (6, 16), dtype=np.int32)).save(ids)
    best(text, tmp_path / "whole" / "out", ids)
    for place, begun in chain:
        assert killed(place, text, output, ids, tmp_path / "log") == begun, place
        assert not output.exists()
        assert (output.with_name("out.partial") / STATES).exists()
    monkeypatch.setattr(LayerByLayer, "_layer", None)
    monkeypatch.setattr(ScaleTraining, "_train", None)
    best(text, output, ids)
    assert hashes(output) == hashes(tmp_path / "whole" / "out")

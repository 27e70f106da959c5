"""Files of states: sealed for the layer that reads them, found to be damaged, and as large as is said before."""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING

import numpy as np
import pytest

from g4convert.calibration import states as module
from g4convert.calibration.record import record
from g4convert.calibration.states import SCRATCH, States, check_room
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import EnvironmentFault, Interrupted
from g4convert.gemma4 import Architecture
from g4convert.planning.between import state_bytes
from g4convert.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

SHAPE = (2, 3, 4)
Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 -- as shutil has it


@pytest.fixture
def states(tmp_path: Path) -> States:
    """States after layer 0: it read hidden-0 and wrote hidden-1, keys and scratch; so for the unquantized one."""
    made = States(tmp_path / "states")
    for name in ("hidden-0", "hidden-1", "hidden-original-0", "hidden-original-1", "per-layer", f"{SCRATCH}inner"):
        made.make(name, SHAPE)[:] = 1
    made.seal(0)
    made.make("keys-full", SHAPE)[:] = 2
    made.open("hidden-1", SHAPE)[:] = 3
    made.seal(1)
    return made


def damage(states: States, name: str) -> None:
    path = states.directory / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_layer_finds_what_was_sealed_for_it(states: States) -> None:
    assert states.is_sound(1)
    assert not states.is_sound(2)
    states.open("hidden-0", SHAPE)[:] = 9  # as layer 1 does before it is killed
    states.open("hidden-original-0", SHAPE)[:] = 9
    states.open(f"{SCRATCH}inner", SHAPE)[:] = 9
    assert states.is_sound(1)


@pytest.mark.parametrize("name", ["hidden-1.f32", "hidden-original-1.f32", "keys-full.f32", "sealed-1.json"])
def test_a_changed_byte_is_seen(states: States, name: str) -> None:
    damage(states, name)
    assert not states.is_sound(1)


@pytest.mark.parametrize("content", ["", "[]", "null", "[" * 100_000, '{"hidden-1": 3}', '{"other": "0"}'])
def test_a_seal_of_another_form_seals_nothing(states: States, content: str) -> None:
    (states.directory / "sealed-1.json").write_text(content)
    assert not states.is_sound(1)
    states.seal(2)  # of the files, not of what the one before said


def test_what_is_written_once_keeps_its_first_checksum(states: States) -> None:
    damage(states, "per-layer.f32")
    states.seal(2)
    assert not states.is_sound(2)


def test_a_disk_that_is_too_small_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(10**9, 0, 10**6))
    check_room(tmp_path / "deep" / "states", 10**6)
    with pytest.raises(EnvironmentFault, match=r"needs 3\.00 MB for what .*, 1\.00 MB are free") as caught:
        check_room(tmp_path / "deep" / "states", 3 * 10**6)
    assert "--samples" in caught.value.hint
    made = States(tmp_path / "states")
    made.make("hidden-0", (512, 1024))[:] = 1
    check_room(made.directory, 3 * 10**6)  # 2 MB of them are there


class Last(Progress):
    """Stops when all layers are done, with the states of all of them there."""

    def __init__(self, layers: int) -> None:
        self.left = layers

    def tick(self, count: int) -> None:
        """See `Progress`."""
        self.left -= count
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("family", ["moe", "e2b", "dense"])
def test_their_size_is_known_before(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints(family)
    text = Architecture.from_config(Checkpoint.open(source).config).text
    ids = np.random.default_rng(0).integers(5, 250, (3, 16), dtype=np.int32)
    with pytest.raises(Interrupted):
        record(source, Tokens(ids), tmp_path / "scratch", progress=Last(len(text.layers)))
    found = sum(path.stat().st_size for path in (tmp_path / "scratch").glob("*.f32"))
    assert found == state_bytes(text, 2 * 16, layered=False)

"""Calibrated methods in several ranks: the bytes of one, the calibration file made once, the same error in all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.runs import hashes

from g4convert import quantize
from g4convert.api.calibrate import calibrate
from g4convert.calibration.tokens import Tokens
from g4convert.conversion.ranks import Ranks
from g4convert.errors import G4Error, InputError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

RECIPES = ("w4a16-g32-imatrix", "w4a16-g32-gptq")


class Board:
    """Values that the ranks of one process give each other."""

    def __init__(self, world: int) -> None:
        self.barrier, self.values = Barrier(world, timeout=120), [None] * world

    def exchange(self, rank: int, value: Any) -> list[Any]:  # noqa: ANN401 -- whatever ranks say
        """Every rank's value, in every rank."""
        self.values[rank] = value
        self.barrier.wait()
        found = [*self.values]
        self.barrier.wait()
        return found


class Beside(Ranks):
    """A rank that is a thread of this process, beside the others."""

    board: Board

    def from_lead(self, value: Any) -> Any:  # noqa: ANN401
        """See `Ranks`."""
        found = self.board.exchange(self.rank, value)[0]
        if isinstance(found, G4Error):
            raise found
        return found

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401
        """See `Ranks`."""
        return self.board.exchange(self.rank, value)


def side_by_side(world: int, source: Path, output: Path, recipe: str, **options: Any) -> None:  # noqa: ANN401
    """Quantize in so many ranks; raises what the first of them raises."""
    board = Board(world)

    def run(rank: int) -> None:
        ranks = type("Rank", (Beside,), {"board": board})(rank, world)
        quantize(source, output, recipe=recipe, verify=None, workers=1, ranks=ranks, **options)

    with ThreadPoolExecutor(world) as pool:
        for done in [pool.submit(run, rank) for rank in range(world)]:
            done.result()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Own calibration files have few ids; their paths."""
    made: list[Path] = []

    def few(model: Path, output: Path, **how: Any) -> Any:  # noqa: ANN401
        made.append(output)
        return calibrate(model, output, samples=4, length=32, **how)

    monkeypatch.setattr("g4convert.api.calibrate.calibrate", few)
    monkeypatch.setattr("g4convert.planning.units._UNIT_BYTES", 100_000)
    return made


@pytest.mark.parametrize(("recipe", "family"), [*zip(RECIPES, ("moe", "text"), strict=True)])
def test_three_ranks_write_the_bytes_of_one(
    recipe: str, family: str, checkpoints: Checkpoints, tmp_path: Path, small: list[Path]
) -> None:
    """Two do in `conversion/test_ranks.py`, in processes."""
    found = []
    for world in (1, 3):
        side_by_side(world, checkpoints(family), tmp_path / str(world) / "out", recipe)
        found.append(hashes(tmp_path / str(world) / "out"))
    assert found[0] == found[1]
    assert [path.parent.name for path in small] == ["1", "3"], "rank 0 makes the file, and no other"


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_wrong_with_the_file_is_the_same_error_in_every_rank(
    recipe: str, moe: Path, tmp_path: Path, small: list[Path]
) -> None:
    beyond = tmp_path / "beyond.safetensors"
    Tokens(np.full((4, 16), 10**6, np.int32)).save(beyond)
    with pytest.raises(InputError, match="64 of 64 ids, such as 1000000, are outside the model's vocabulary"):
        side_by_side(2, moe, tmp_path / "out", recipe, calibration=beyond)
    assert not small
    assert [one.name for one in tmp_path.iterdir()] == ["beyond.safetensors"]

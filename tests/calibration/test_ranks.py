"""Calibrated methods in several ranks: the bytes of one, the calibration file made once, the same error in all."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from threading import Barrier, BrokenBarrierError
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.runs import hashes
from safetensors.torch import load_file, save_file

from g4convert import quantize
from g4convert.api.calibrate import Calibrated, calibrate, calibrate_in
from g4convert.calibration.record import Recording
from g4convert.calibration.states import States
from g4convert.calibration.team import Team
from g4convert.calibration.tokens import Tokens
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.ranks import Ranks
from g4convert.errors import EnvironmentFault, G4Error, InputError, Interrupted, UsageError
from g4convert.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from conftest import Checkpoints

RECIPES = ("w4a16-g32-imatrix", "w4a16-g32-gptq")


class Board:
    """Values that the ranks of one process give each other."""

    def __init__(self, world: int) -> None:
        self.barrier, self.values = Barrier(world, timeout=120), [None] * world

    def exchange(self, rank: int, value: Any) -> list[Any]:  # noqa: ANN401 -- whatever ranks say
        """Every rank's value, in every rank."""
        try:
            self.barrier.wait()  # all have read the values before
            self.values[rank] = value
            self.barrier.wait()
        except BrokenBarrierError as error:
            raise EnvironmentFault("another rank is gone") from error
        return [*self.values]


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

    def share(self, values: torch.Tensor, owner: int) -> None:
        """See `Ranks`."""
        sent = self.board.exchange(self.rank, values.clone())[owner]
        values.copy_(sent)


def side_by_side(world: int, source: Path, output: Path, recipe: str, **options: Any) -> None:  # noqa: ANN401
    """Quantize in so many ranks; raises what the first of them raises."""
    in_ranks(
        world, lambda ranks: quantize(source, output, recipe=recipe, verify=None, workers=1, ranks=ranks, **options)
    )


def in_ranks(world: int, call: Callable[[Ranks], Any]) -> list[Any]:
    """Call in so many ranks, and return their results; raises what the first of them raises."""
    board = Board(world)

    def run(rank: int) -> Any:  # noqa: ANN401
        ranks = type("Rank", (Beside,), {"board": board})(rank, world)
        try:
            return call(ranks)
        except (InputError, UsageError):
            raise  # in every rank
        except BaseException:
            board.barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        return [done.result() for done in [pool.submit(run, rank) for rank in range(world)]]


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


def test_what_rank_0_returns_or_raises_is_returned_or_raised_in_every_rank() -> None:
    assert in_ranks(3, lambda ranks: ranks.lead(lambda: f"by rank {ranks.rank}")) == ["by rank 0"] * 3
    seen: list[int] = []

    def refuse() -> None:
        raise InputError("a bad file")

    def note(ranks: Ranks) -> None:
        with pytest.raises(InputError, match="a bad file"):
            ranks.lead(refuse)
        seen.append(ranks.rank)

    in_ranks(3, note)
    assert sorted(seen) == [0, 1, 2]


def test_an_interrupt_of_rank_0_does_not_wait_for_the_others() -> None:
    def interrupt() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted, match="stopped"):
        Ranks(0, 2).lead(interrupt)  # there is no other to send it to


@pytest.mark.wide
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


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        ("e2b", RECIPES[0]),
        *(pytest.param(*case, marks=pytest.mark.wide) for case in [("moe", RECIPES[1]), ("text", "w4a16-g32-best")]),
        *(pytest.param(*case, marks=pytest.mark.full) for case in [("e2b", RECIPES[1]), ("dense", RECIPES[1])]),
    ],
)
def test_ranks_share_the_parts_of_a_layer(  # noqa: PLR0913, PLR0917 -- fixtures
    family: str,
    recipe: str,
    checkpoints: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Small strips and tiles, so that each of three ranks has some, and none of the last experts."""
    worlds = (1, 2, 3) if request.config.getoption("--full") else (1, 3)
    monkeypatch.setattr("g4convert.calibration.moments._STRIP", 24)
    monkeypatch.setattr("g4convert.calibration.team._ROWS", 16)
    source, ids, forwards = checkpoints(family), tmp_path / "ids.safetensors", Counter[int]()
    Tokens(np.random.default_rng(1).integers(5, 250, (7, 16), dtype=np.int32)).save(ids)
    own = Team.own

    def counted(team: Team, parts: Any) -> Any:  # noqa: ANN401
        found = own(team, parts)
        if isinstance(parts, range):
            forwards[team.ranks.rank] += len(found)
        return found

    monkeypatch.setattr(Team, "own", counted)
    found = []
    for world in worlds:
        forwards.clear()
        side_by_side(world, source, tmp_path / str(world) / "out", recipe, calibration=ids)
        found.append(hashes(tmp_path / str(world) / "out"))
        if world > 1:
            assert len(forwards) == world
            assert max(forwards.values()) < 1.5 * sum(forwards.values()) / world
    assert all(one == found[0] for one in found)


@pytest.mark.wide
@pytest.mark.parametrize(("before", "after"), [(3, 2), (1, 3)])
def test_another_number_of_ranks_continues(
    before: int, after: int, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, seal, layers = tmp_path / "ids.safetensors", States.seal, list[int]()
    Tokens(np.random.default_rng(1).integers(5, 250, (4, 16), dtype=np.int32)).save(ids)
    side_by_side(1, moe, tmp_path / "whole" / "out", "w4a16-g32-gptq", calibration=ids)

    def once(states: States, layer: int) -> None:
        seal(states, layer)
        layers.append(layer)
        if len(layers) == 2:  # the layer's bytes are written, and the journal does not know
            raise KeyboardInterrupt

    monkeypatch.setattr(States, "seal", once)
    with pytest.raises(Interrupted):
        side_by_side(before, moe, tmp_path / "parts" / "out", "w4a16-g32-gptq", calibration=ids)
    side_by_side(after, moe, tmp_path / "parts" / "out", "w4a16-g32-gptq", calibration=ids)
    assert layers[:3] == [1, 2, 2], "one layer is repeated"
    assert hashes(tmp_path / "parts" / "out") == hashes(tmp_path / "whole" / "out")


def test_a_weight_that_is_not_finite_is_the_same_error_in_every_rank(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g4convert.calibration.team._ROWS", 16)
    source, ids = tmp_path / "model", tmp_path / "ids.safetensors"
    shutil.copytree(checkpoints("text"), source)
    files = {file: load_file(file) for file in source.glob("*.safetensors")}
    file, tensors = next(item for item in files.items() if any("layers.0.mlp.up_proj" in name for name in item[1]))
    name = next(name for name in tensors if "layers.0.mlp.up_proj" in name)
    tensors[name][-1, -1] = np.nan
    save_file(tensors, file, {"format": "pt"})
    Tokens(np.random.default_rng(1).integers(5, 250, (4, 24), dtype=np.int32)).save(ids)
    with pytest.raises(InputError, match=r"0\.mlp\.up_proj\.weight: a weight is NaN or infinite"):
        side_by_side(2, source, tmp_path / "out", "w4a16-g32-gptq", calibration=ids)
    assert not (tmp_path / "out.partial").exists()


def test_ranks_of_several_hosts_share_no_layer(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = cycle("ab")
    monkeypatch.setattr("g4convert.conversion.ranks.gethostname", lambda: next(names))
    ids = tmp_path / "ids.safetensors"
    Tokens(np.random.default_rng(1).integers(5, 250, (4, 24), dtype=np.int32)).save(ids)
    with pytest.raises(UsageError, match="on 2: a, b"):
        side_by_side(2, moe, tmp_path / "out", "w4a16-g32-gptq", calibration=ids)
    assert [one.name for one in tmp_path.iterdir()] == ["ids.safetensors"]


@pytest.mark.wide
def test_rank_0_of_several_hosts_makes_statistics_alone(
    moe: Path, tmp_path: Path, small: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    side_by_side(1, moe, tmp_path / "one" / "out", RECIPES[0])
    names = cycle("ab")
    monkeypatch.setattr("g4convert.conversion.ranks.gethostname", lambda: next(names))
    monkeypatch.setattr("g4convert.calibration.record.Recording.sums", _alone(Recording.sums))
    side_by_side(2, moe, tmp_path / "two" / "out", RECIPES[0])
    assert len(small) == 2
    assert hashes(tmp_path / "one" / "out") == hashes(tmp_path / "two" / "out")


def _alone(sums: Any) -> Any:  # noqa: ANN401
    def checked(recording: Recording, ranks: Ranks, *rest: Any) -> Any:  # noqa: ANN401
        assert ranks.world == 1
        return sums(recording, ranks, *rest)

    return checked


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


def calibrated(world: int, source: Path, output: Path, watch: Progress | None = None, **how: Any) -> list[Any]:  # noqa: ANN401
    """Calibrate in so many ranks, and return what each of them gets."""
    how = {"samples": 6, "length": 32, "answers": False} | how
    return in_ranks(
        world, lambda ranks: calibrate_in(ranks, source, output, workers=1, progress=watch or Progress(), **how)
    )


@pytest.mark.parametrize("family", ["moe", pytest.param("e2b", marks=pytest.mark.full)])
def test_calibrate_in_any_number_of_ranks_makes_the_same_file(
    family: str, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shares = Team.own, Counter[int]()

    def counted(team: Team, parts: Any) -> Any:  # noqa: ANN401
        found = own(team, parts)
        shares[team.ranks.rank] += len(found)
        return found

    monkeypatch.setattr(Team, "own", counted)
    found = []
    for world in (1, 2, 3):
        shares.clear()
        path = tmp_path / f"{world}.safetensors"
        made = calibrated(world, checkpoints(family), path)
        assert [type(one) for one in made] == [Calibrated, *[type(None)] * (world - 1)]
        assert world == 1 or (len(shares) == world and max(shares.values()) < 1.5 * sum(shares.values()) / world)
        found.append(path.read_bytes())
    assert found[0] == found[1] == found[2]
    assert sorted(one.name for one in tmp_path.iterdir()) == [f"{world}.safetensors" for world in (1, 2, 3)]


@pytest.mark.wide
@pytest.mark.parametrize("family", ["unified", pytest.param("e2b", marks=pytest.mark.full)])
def test_ranks_share_samples_with_pictures(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source, made = checkpoints(family), list[bytes]()
    for world in (1, 3):
        own, path = tmp_path / str(world), tmp_path / f"{world}.safetensors"
        calibrated(world, source, path, samples=96, length=96, answers=False)
        made.append(path.read_bytes())
        side_by_side(world, source, own / "out", RECIPES[0], calibration=path)
    assert made[0] == made[1]
    file = CalibrationFile.load(tmp_path / "1.safetensors")
    assert file.pictures is not None
    few = Tokens.of(file).without([s for s in range(96) if s % 24 and s not in file.pictures.in_rows])
    few.save(tmp_path / "few.safetensors")
    for world in (1, 3):
        side_by_side(
            world, source, tmp_path / str(world) / "layers", RECIPES[1], calibration=tmp_path / "few.safetensors"
        )
    for name in ("out", "layers"):
        assert hashes(tmp_path / "1" / name) == hashes(tmp_path / "3" / name)


@pytest.mark.wide
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
def test_calibrate_stopped_in_some_ranks_continues_in_others(
    before: int, after: int, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal, stages = States.seal, list[int]()
    calibrated(1, moe, tmp_path / "whole.safetensors")

    def once(states: States, stage: int) -> None:
        seal(states, stage)
        stages.append(stage)
        if len(stages) == 3:  # the states of layer 1 are on disk, and its sums are not
            raise KeyboardInterrupt

    monkeypatch.setattr(States, "seal", once)
    with pytest.raises(Interrupted):
        calibrated(before, moe, tmp_path / "parts.safetensors")
    calibrated(after, moe, tmp_path / "parts.safetensors")
    assert stages == [0, 1, 2, 2, 3], "one layer is repeated"
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


class Said(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """See `Progress`."""
        self.said.append(text)


def test_calibrate_on_several_hosts_is_done_by_rank_0_which_says_so(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated(1, moe, tmp_path / "one.safetensors")
    names, watch = cycle("ab"), Said()
    monkeypatch.setattr("g4convert.conversion.ranks.gethostname", lambda: next(names))
    monkeypatch.setattr("g4convert.calibration.record.Recording.sums", _alone(Recording.sums))
    calibrated(2, moe, tmp_path / "two.safetensors", watch)
    assert watch.said == ["calibration: rank 0 works alone, as the ranks are on 2 hosts: a, b"]
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_what_calibrate_refuses_is_the_same_error_in_every_rank(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of them judges"):
        calibrated(3, moe, tmp_path / "c.safetensors", samples=1)
    with pytest.raises(UsageError, match="the ranks do not do the same") as refused:
        in_ranks(
            2,
            lambda ranks: calibrate_in(
                ranks, moe, tmp_path / "c.safetensors", workers=1, progress=Progress(), seed=ranks.rank
            ),
        )
    assert refused.value.offenders == ("rank 1: seed is '1', in rank 0 '0'",)
    assert not [*tmp_path.iterdir()]

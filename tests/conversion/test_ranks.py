"""Several ranks: the bytes of one process, also of calibrated methods; a lost one is an error that can go on."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.grids import one_in
from helpers.program import Program, g4convert
from helpers.ranked import Ranked, output, ranked, started
from helpers.runs import hashes, run

from g4convert import quantize
from g4convert.api.calibrate import calibrate

__all__ = ["g4convert"]  # a fixture
pytestmark = pytest.mark.wide  # ranks are processes, which import torch

_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]


def torchrun(code: str, _: Path) -> Ranked:
    """Run Python code in two ranks, as users do: three processes import torch."""
    command = [*_TORCHRUN, sys.executable, "-c", code]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    return Ranked((ran.returncode,), ran.stderr)


def program(source: Path, output: Path, before: str = "") -> str:
    """The command line in one rank, with small units so that both have work."""
    return (
        "import sys; from g4convert.cli import app as cli; from g4convert.conversion import stream\n"
        "from g4convert.planning import units as work\n"
        "work._UNIT_BYTES = 100_000\n"
        f"{before}\n"
        f"sys.argv = ['g4convert', 'quantize', {str(source)!r}, '-o', {str(output)!r}, '--workers', '1']\n"
        "cli.main()\n"
    )


@pytest.mark.parametrize("start", [ranked, pytest.param(torchrun, marks=pytest.mark.full)])
def test_two_ranks_write_the_bytes_of_one(
    start: Callable[[str, Path], Ranked], moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g4convert.planning.units._UNIT_BYTES", 100_000)
    expected = run(moe, tmp_path / "one" / "out")
    both = (
        "import os; counted = stream.run_units\n"
        "def counting(units, *rest):\n"
        "    sys.stderr.write(f\"units {os.environ['RANK']} {len(units)}\\n\")\n"
        "    return counted(units, *rest)\n"
        "from g4convert.conversion import run as convert; convert.run_units = counting"
    )
    done = start(program(moe, tmp_path / "two" / "out", both), tmp_path)
    assert not any(done.statuses), done.err
    assert hashes(tmp_path / "two" / "out") == expected
    counts = [int(line.split()[2]) for line in done.err.splitlines() if line.startswith("units")]
    assert len(counts) == 2
    assert abs(counts[0] - counts[1]) <= 1


def test_calibrated_methods_give_the_bytes_of_one(moe: Path, tmp_path: Path) -> None:
    """Bits differ by part, and tables and head are packed, too; `tests/calibration/test_ranks.py` has uniform ones."""
    recipes, data = ("w4a16-g32-imatrix", "w4a16-g32-gptq"), tmp_path / "c.safetensors"
    calibrate(moe, data, samples=4, length=32, answers=False, workers=1)
    mixed: dict[str, Any] = {
        "bits": {"attention": 8, "embedding": 4, "lm_head": 8},
        "rules": [{"role": "experts", "layers": 1, "bits": 8, "group_size": "channel"}],
    }
    code = (
        "from g4convert import quantize; from g4convert.conversion.ranks import Ranks\n"
        "ranks = Ranks.join()\n"
        f"for recipe in {recipes!r}:\n"
        f"    quantize({str(moe)!r}, {str(tmp_path / 'two')!r} + '/' + recipe, recipe=recipe, verify=None, workers=1,\n"
        f"             calibration={str(data)!r}, ranks=ranks, **{mixed!r})\n"
        "ranks.leave()\n"
    )
    done = ranked(code, tmp_path)
    assert not any(done.statuses), done.err
    for recipe in recipes:
        quantize(moe, tmp_path / "one" / recipe, recipe=recipe, verify=None, workers=1, calibration=data, **mixed)
        assert hashes(tmp_path / "one" / recipe) == hashes(tmp_path / "two" / recipe)


@pytest.mark.parametrize("start", [ranked, pytest.param(torchrun, marks=pytest.mark.full)])
def test_the_command_calibrate_shares_its_pass(start: Callable[[str, Path], Ranked], e2b: Path, tmp_path: Path) -> None:
    given, two = {"samples": 4, "length": 32}, tmp_path / "two.safetensors"
    calibrate(e2b, tmp_path / "one.safetensors", answers=False, workers=1, **given)
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    code = (
        "import sys; from g4convert.cli import app as cli; from g4convert.calibration.record import Recording\n"
        "sums = Recording.sums\n"
        "def counted(recording, ranks, *rest):\n"
        "    sys.stderr.write(f'pass of {ranks.world}\\n')\n"
        "    return sums(recording, ranks, *rest)\n"
        "Recording.sums = counted\n"
        f"sys.argv = ['g4convert', 'calibrate', {str(e2b)!r}, '-o', {str(two)!r}, '--no-answers', *{options!r}]\n"
        "cli.main()\n"
    )
    done = start(code, tmp_path)
    assert not any(done.statuses), done.err
    assert done.err.count("pass of 2\n") == 2
    assert two.read_bytes() == (tmp_path / "one.safetensors").read_bytes()


def test_a_lost_rank_ends_the_run_and_the_same_command_continues(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = (
        "import os\n"
        "do = stream._UnitWorker.do; left = [3]\n"
        "def die(self, unit):\n"
        "    left[0] -= 1\n"
        "    if os.environ['RANK'] == '1' and not left[0]: os.kill(os.getpid(), 9)\n"
        "    return do(self, unit)\n"
        "stream._UnitWorker.do = die"
    )
    output = tmp_path / "two" / "out"
    done = ranked(program(moe, output, dying), tmp_path)
    assert 0 not in done.statuses
    assert not output.exists()
    assert output.with_name("out.partial").is_dir()
    assert "error:" in done.err
    assert "the same command continues" in done.err or "continue with:" in done.err
    monkeypatch.setattr("g4convert.planning.units._UNIT_BYTES", 100_000)
    expected = run(moe, tmp_path / "one" / "out")
    assert run(moe, output) == expected


_WAITING = """
from torch import distributed
join = distributed.init_process_group
def joining(*given, **how):
    print("waiting", flush=True)
    join(*given, **how)
distributed.init_process_group = joining
"""


@pytest.mark.parametrize("rank", one_in(2, [0, 1]))
def test_a_rank_that_waits_for_one_that_never_comes_can_be_stopped(rank: int, moe: Path, tmp_path: Path) -> None:
    (process,) = started(program(moe, tmp_path / "out", _WAITING), tmp_path, [rank])
    while process.is_alive() and "waiting" not in output(tmp_path, rank):
        time.sleep(0.02)
    time.sleep(0.5)  # the call is in torch by then
    process.terminate()
    process.join(30)
    process.kill()  # if it does not
    assert process.exitcode == 75
    assert output(tmp_path, rank).splitlines()[:2] == ["waiting", "error: stopped"]
    assert not (tmp_path / "out").exists()


def test_bad_input_is_the_same_error_in_every_rank_and_leaves_nothing(moe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "file").write_text("")
    done = ranked(program(moe, output), tmp_path)
    assert 0 not in done.statuses
    assert "out: not empty" in done.err
    assert not output.with_name("out.partial").exists()


def test_ranks_that_were_started_differently_are_refused_by_name(moe: Path, tmp_path: Path) -> None:
    output = tmp_path / "two" / "out"
    code = program(moe, output).replace("'--workers', '1']", "'--workers', '1', *more]")
    more = "import os; more = ['--group-size', '64'] if os.environ['RANK'] == '1' else []\n"
    done = ranked(more + code, tmp_path)
    assert done.statuses == (2, 2)
    assert "error: the ranks do not do the same" in done.err
    assert "rank 1: recipe.group_size is 64, in rank 0 32" in done.err
    assert "start every rank with the same command, version and source" in done.err
    assert not output.parent.exists()
    assert ranked(code.replace(", *more]", "]"), tmp_path).statuses == (0, 0)
    assert output.is_dir()


def test_ranks_that_cannot_meet_are_started_again(
    dense: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here by hand, as in a script of jobs that sets the variables of `torchrun` in part."""
    command = ("quantize", dense, "-o", tmp_path / "out", "--method", "minmax", "--verify", "none", "-q")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = g4convert(*command)
    assert (ran.status, "start all ranks with the same `torchrun` command" in ran.err) == (5, True), ran.err
    assert ranked(program(dense, tmp_path / "out"), tmp_path).statuses == (0, 0)
    assert (tmp_path / "out").is_dir()


def test_a_rank_with_another_output_is_refused(moe: Path, tmp_path: Path) -> None:
    code = program(moe, tmp_path / "out").replace(repr(str(tmp_path / "out")), f"{str(tmp_path)!r} + place")
    done = ranked("import os; place = '/out' + os.environ['RANK']\n" + code, tmp_path)
    assert 0 not in done.statuses
    assert "rank 1: output is" in done.err
    assert not (tmp_path / "out0").exists()
    assert not (tmp_path / "out1").exists()

"""Several ranks: under torchrun the same bytes as one process; started alike, a lost one is an error that can go on."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.ranked import ranked
from helpers.runs import hashes, run

_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]


def torchrun(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in two ranks."""
    command = [*_TORCHRUN, sys.executable, "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)


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


def test_two_ranks_write_the_bytes_of_one(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4convert.planning.units._UNIT_BYTES", 100_000)
    expected = run(moe, tmp_path / "one" / "out")
    both = (
        "import os; counted = stream.run_units\n"
        "def counting(units, *rest):\n"
        "    sys.stderr.write(f\"units {os.environ['RANK']} {len(units)}\\n\")\n"
        "    return counted(units, *rest)\n"
        "from g4convert.conversion import run as convert; convert.run_units = counting"
    )
    done = torchrun(program(moe, tmp_path / "two" / "out", both))
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "two" / "out") == expected
    counts = [int(line.split()[2]) for line in done.stderr.splitlines() if line.startswith("units")]
    assert len(counts) == 2
    assert abs(counts[0] - counts[1]) <= 1


def test_a_lost_rank_ends_the_run_and_the_same_command_continues(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = (
        "import os\n"
        "do = stream._Worker.do; left = [3]\n"
        "def die(self, unit):\n"
        "    left[0] -= 1\n"
        "    if os.environ['RANK'] == '1' and not left[0]: os.kill(os.getpid(), 9)\n"
        "    return do(self, unit)\n"
        "stream._Worker.do = die"
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


def test_bad_input_is_the_same_error_in_every_rank_and_leaves_nothing(moe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "file").write_text("")
    done = ranked(program(moe, output), tmp_path)
    assert 0 not in done.statuses
    assert "is not empty" in done.err
    assert not output.with_name("out.partial").exists()


def test_ranks_that_were_started_differently_are_refused_by_name(moe: Path, tmp_path: Path) -> None:
    output = tmp_path / "two" / "out"
    code = program(moe, output).replace("'--workers', '1']", "'--workers', '1', *more]")
    more = "import os; more = ['--group-size', '64'] if os.environ['RANK'] == '1' else []\n"
    done = ranked(more + code, tmp_path)
    assert done.statuses == (2, 2)
    assert "error: the ranks do not do the same" in done.err
    assert "rank 1: recipe.group_size is 64, in rank 0 32" in done.err
    assert not output.parent.exists()


def test_a_rank_with_another_output_is_refused(moe: Path, tmp_path: Path) -> None:
    code = program(moe, tmp_path / "out").replace(repr(str(tmp_path / "out")), f"{str(tmp_path)!r} + place")
    done = ranked("import os; place = '/out' + os.environ['RANK']\n" + code, tmp_path)
    assert 0 not in done.statuses
    assert "rank 1: output is" in done.err
    assert not (tmp_path / "out0").exists()
    assert not (tmp_path / "out1").exists()

"""Files that a command writes never change what it reads: refused before any work."""

import os
import subprocess
from pathlib import Path

import pytest
from helpers.program import Program, g4convert

from g4convert.errors import UsageError
from g4convert.places import check_apart, make_directory

__all__ = ["g4convert"]  # a fixture


def test_what_is_apart_passes(tmp_path: Path) -> None:
    check_apart([tmp_path / "a.html", tmp_path / "b.xml"], [tmp_path / "model", tmp_path / "prompts.jsonl"])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["model/a.html"], "model/a.html: lies in .*model, which it would change"),
        (["link/deep/a.html"], "link/deep/a.html: lies in .*model, which it would change"),
        (["prompts.jsonl"], "prompts.jsonl: is another file of this command"),
        (["model/../prompts.jsonl"], "is another file of this command"),
        (["a", "./a"], "a: is another file of this command"),
    ],
)
def test_what_is_read_is_not_written(written: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(UsageError, match=message):
        check_apart([tmp_path / one for one in written], [tmp_path / "model", tmp_path / "prompts.jsonl"])


def test_links_that_go_round_are_a_place_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    check_apart([tmp_path / "loop"], [tmp_path / "model"])


def test_a_path_of_many_directories_is_made(tmp_path: Path) -> None:
    """`Path.mkdir` calls itself for each: a RecursionError, and exit 70."""
    deep = tmp_path.joinpath(*["d"] * 1_500)
    try:
        make_directory(deep)
        make_directory(deep)
        assert deep.is_dir()
    finally:  # `shutil.rmtree` calls itself, too
        subprocess.run(["/bin/rm", "-rf", str(tmp_path / "d")], check=True)


def state(directory: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in directory.iterdir()}


FIT = "fit MODEL --target-bits 5 --calibration HERE/t.safetensors"
COMMANDS = {
    "verify, a page in the source": "verify OUT --reference MODEL --level static --html MODEL/model.safetensors",
    "verify, a report in place of the reference": "verify OUT --reference MODEL --junit MODEL/config.json",
    "verify, two reports in one file": "verify OUT --reference MODEL --junit HERE/a --html HERE/a",
    "verify, a page in place of the prompts": "verify OUT --prompts HERE/p.jsonl --html HERE/p.jsonl",
    "reference, in the model": "reference MODEL -o MODEL/reference.safetensors",
    "calibrate, in the model": "calibrate MODEL -o MODEL/tokens.safetensors --no-answers",
    "calibrate, in place of the texts": "calibrate MODEL -o HERE/p.safetensors --data HERE/p.safetensors",
    "fit, a recipe in the model": f"{FIT} -o MODEL/r.yaml",
    "fit, a plot in place of weights": f"{FIT} -o HERE/r.yaml --plot WEIGHTS",
    "fit, losses in place of the tokens": f"{FIT} -o HERE/r.yaml --sensitivities HERE/t.safetensors",
}


@pytest.mark.parametrize("case", COMMANDS)
def test_every_command_refuses_before_any_work(case: str, dense: Path, tmp_path: Path, g4convert: Program) -> None:
    (tmp_path / "p.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n')
    before = state(dense)
    names = {"OUT": dense, "MODEL": dense, "HERE": tmp_path, "WEIGHTS": min(dense.glob("model*.safetensors"))}
    words = [os.fspath(word) for word in COMMANDS[case].split()]
    for name, path in names.items():
        words = [str(path) + word.removeprefix(name) if word.startswith(name) else word for word in words]
    ran = g4convert(*words)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.endswith("hint: name a file elsewhere\n")
    assert state(dense) == before

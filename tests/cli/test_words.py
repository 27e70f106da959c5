"""Messages on values that cannot be, and on directories that are not meant for a command."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import Checkpoints
from helpers.program import Program, g4convert

from g4convert.errors import UsageError
from g4convert.planning.recipe_files import load
from g4convert.suggestions import suggest

__all__ = ["g4convert"]  # a fixture

ROOT = Path(__file__).parents[2]
FOREIGN = re.compile(
    r"input should|valid integer|unable to parse|greater than|at least 1 item|multiple of 8$|valid bool"
)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_shard_size", "5QB"),
        ("max_shard_size", "0GB"),
        ("max_shard_size", -1),
        ("max_shard_size", "GB"),
        ("max_shard_size", None),
        ("group_size", "48x"),
        ("group_size", "33"),
        ("group_size", "0"),
        ("group_size", -8),
        ("group_size", 32.5),
        ("group_size", []),
        ("signed", "perhaps"),
        ("pack", []),
        ("pack", 7),
        ("engines", {}),
        ("description", 7),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_own_words(key: str, value: object, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(json.dumps({key: value}))
    with pytest.raises(UsageError) as caught:
        load(str(recipe))
    (line,) = caught.value.offenders
    assert line.startswith(f"{key}: {value!r} ")
    assert "expected " in line
    assert not FOREIGN.search(line)
    if value is not None:
        with pytest.raises(UsageError) as caught:
            load(options={key: value})
        assert f"--{'engine' if key == 'engines' else key.replace('_', '-')} {value}: expected " in caught.value.message
        assert not FOREIGN.search(caught.value.message)


@pytest.mark.parametrize(
    ("given", "known", "meant"),
    [
        ("tensorrt", ("transformers", "vllm", "sglang"), ""),
        ("trtllm", ("transformers", "vllm", "sglang"), ""),
        ("transformer", ("transformers", "vllm", "sglang"), "transformers"),
        ("vlm", ("transformers", "vllm", "sglang"), "vllm"),
        ("sglan", ("transformers", "vllm", "sglang"), "sglang"),
        ("atention", ("attention", "mlp", "experts"), "attention"),
        ("gptq", ("auto", "minmax", "mse", "lattice"), ""),
    ],
)
def test_only_a_name_that_is_near_is_offered(given: str, known: tuple[str, ...], meant: str) -> None:
    assert suggest(given, known) == (f"did you mean {meant}?" if meant else "")


def test_the_readme_names_arguments_as_the_help_does(g4convert: Program) -> None:
    rows = re.findall(r"^\| `g4convert (\w+) ([A-Z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {"plan", "quantize", "verify", "check", "generate", "inspect", "reference"} <= {name for name, _ in rows}
    for command, argument in rows:
        assert re.search(
            rf"Usage: g4convert {command} \[OPTIONS\] [{{\[]{argument}[}}\]]", g4convert(command, "--help").out
        )


def test_what_is_not_quantized_has_nothing_to_verify(g4convert: Program, text: Path, tmp_path: Path) -> None:
    for asked in ([], ["--reference", str(text)]):
        ran = g4convert("verify", str(shutil.copytree(text, tmp_path / f"plain{len(asked)}")), *asked)
        assert ran.status == 4
        assert "none is quantized" in ran.out


def test_a_drafter_may_be_kept_as_it_is(g4convert: Program, checkpoints: Checkpoints, tmp_path: Path) -> None:
    assistant = checkpoints("assistant")
    assert g4convert("quantize", str(assistant), "-o", str(tmp_path / "out"), "-q", "--verify", "weights").status == 0


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (("plan", "x", "--engine", "vllm", "--tp", 10**9), "65536"),
        (("fit", "x", "-o", "y.yaml", "--target-bits", 5, "--rows", 10**9), "1048576"),
        (("fit", "x", "-o", "y.yaml", "--target-bits", 5, "--tokens", 10**9), "1048576"),
        (("quantize", "x", "-o", "y", "--workers", 10**9), "1024"),
        (("generate", "x", "-p", "y", "--max-new-tokens", 10**9), "1048576"),
    ],
)
def test_numbers_have_an_upper_bound(words: tuple[object, ...], most: str, g4convert: Program) -> None:
    ran = g4convert(*words)
    assert ran.status == 2
    assert f"should be less than or equal to {most}" in ran.err

"""Arguments of the Python functions that are out of range or unknown: refused as the options are, and first of all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

import g4convert as package
from g4convert.api.recipes import Overrides
from g4convert.errors import EnvironmentFault, G4Error, UnsupportedError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Packed

TP, WORKERS = "expected 1 to 65,536", "expected 0 to 1,024"
FIT = {"target_bits": 6.0}
WRONG: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("plan", {"tp": (0,)}, f"--tp 0: {TP}"),
    ("plan", {"tp": (1, -1)}, f"--tp -1: {TP}"),
    ("plan", {"workers": -1}, f"--workers -1: {WORKERS}"),
    ("check", {"tp": (0,)}, f"--tp 0: {TP}"),
    ("check", {"tp": 2}, "--tp 2: expected a list of sizes"),
    ("check", {"engines": "vllm"}, "--engine vllm: expected a list of engines"),
    ("load", {"device": torch.device("meta")}, "--device meta: expected cpu, cuda or cuda:N"),
    ("load", {"dtype": torch.float64}, "--dtype float64: not one of float32, bfloat16, float16"),
    ("verify", {"dtype": torch.float16}, "--dtype float16: not one of float32, bfloat16"),
    ("check", {"tp": (1 << 17,)}, f"--tp 131072: {TP}"),
    ("quantize", {"tp": (0,), "engines": ["vllm"]}, f"--tp 0: {TP}"),
    ("quantize", {"workers": -1}, f"--workers -1: {WORKERS}"),
    ("quantize", {"device": "tpu"}, "--device tpu: expected cpu, cuda or cuda:N"),
    ("quantize", {"verify": "nothing"}, "--verify nothing: not one of none, static, weights, logits"),
    ("calibrate", {"workers": 2000}, f"--workers 2000: {WORKERS}"),
    ("calibrate", {"device": "tpu"}, "--device tpu: expected cpu, cuda or cuda:N"),
    ("fit", {"tp": (0,)} | FIT, f"--tp 0: {TP}"),
    ("fit", {"workers": -1} | FIT, f"--workers -1: {WORKERS}"),
    ("fit", {"dtype": "float8"} | FIT, "--dtype float8: not one of float32, bfloat16"),
    ("fit", {"dtype": "float16"} | FIT, "--dtype float16: not one of float32, bfloat16"),
    ("fit", {"device": "tpu"} | FIT, "--device tpu: expected cpu, cuda or cuda:N"),
    ("fit", {"memory": "disk"} | FIT, "--memory disk: not one of resident, stream, auto"),
    ("verify", {"dtype": "float16"}, "--dtype float16: not one of float32, bfloat16"),
    ("verify", {"device": "tpu"}, "--device tpu: expected cpu, cuda or cuda:N"),
    ("verify", {"memory": "disk"}, "--memory disk: not one of resident, stream, auto"),
    ("load", {"dtype": "bf16"}, "--dtype bf16: not one of float32, bfloat16, float16"),
    ("load", {"device": "tpu"}, "--device tpu: expected cpu, cuda or cuda:N"),
    ("load", {"memory": "disk"}, "--memory disk: not one of resident, stream, auto"),
)
OUTPUTS = {"quantize": "out", "calibrate": "out.safetensors", "fit": "out.yaml"}


@pytest.mark.parametrize(("function", "arguments", "message"), WRONG)
def test_what_an_option_refuses_python_refuses(
    function: str, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The model is not looked up yet: there is none."""
    places = [str(tmp_path / "nothing"), *(str(tmp_path / OUTPUTS[one]) for one in OUTPUTS if one == function)]
    with pytest.raises(UsageError) as caught:
        getattr(package, function)(*places, **arguments)
    assert caught.value.message == message
    assert not list(tmp_path.iterdir())


def test_a_size_may_be_a_number_and_no_verification_a_word(tmp_path: Path) -> None:
    """They come as far as the model, which is not there."""
    missing = str(tmp_path / "nothing")
    for call in (
        lambda: package.fit(missing, tmp_path / "out.yaml", target_size=1_600_000),
        lambda: package.quantize(missing, tmp_path / "out", verify="none"),
    ):
        with pytest.raises(G4Error, match="nothing") as caught:
            call()
        assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_file_without_a_name_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for function, more in (("calibrate", {}), ("fit", FIT)):
        with pytest.raises(UsageError, match=r": a (directory, and a recipe is a file|calibration file ends in)"):
            getattr(package, function)("nothing", name, **more)
    assert not list(tmp_path.iterdir())


def test_an_output_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be the current directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the output is empty"):
        package.quantize("nothing", "")


def test_devices_and_dtypes_may_be_those_of_torch(text: Path) -> None:
    loaded = package.load(text, device=torch.device("cpu"), dtype=torch.float32)
    assert (loaded.device, loaded.dtype) == (torch.device("cpu"), torch.float32)
    with pytest.raises(EnvironmentFault, match="--device cuda:99: "):
        package.load(text, device=99)


@pytest.mark.parametrize("function", ["fit", "plan", "quantize"])
def test_help_names_each_keyword_of_a_recipe(function: str) -> None:
    text = getattr(package, function).__doc__
    assert [key for key in Overrides.__annotations__ if not re.search(rf"\b{key}\b", text)] == []


def test_what_refuses_a_value_of_a_recipe_is_not_shown(text: Path) -> None:
    """The traceback began with pydantic's error, of another class and in other words."""
    with pytest.raises(UsageError) as caught:
        package.plan(text, group_size=33)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_model_of_packed_words_is_not_saved(packed: Packed, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="save_pretrained"):
        package.load(packed("text")).save_pretrained(tmp_path / "copy")
    package.load(packed("text"), packed=False).save_pretrained(tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]

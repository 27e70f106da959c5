"""Names of weight files: each engine looks for others, and finds nothing, other weights, or too many of them."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.checked import checked, dense_out, loads
from helpers.clean import same
from helpers.configs import exit_code, judged
from helpers.conversions import quantized
from helpers.rewriting import rewritten
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from g4convert.engines.verdicts import Loads
from g4convert.report import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["dense_out"]

INDEX = "model.safetensors.index.json"
CONSOLIDATED = "consolidated.safetensors"
NO, YES, CAVEAT = Loads.NO, Loads.YES, Loads.CAVEAT


def whole(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in directory.glob("*.safetensors") for name, value in load_file(path).items()}


def one_file(name: str) -> Callable[[Path], None]:
    """The weights in one file, without an index."""

    def change(directory: Path) -> None:
        tensors = whole(directory)
        for path in directory.glob("*.safetensors*"):
            path.unlink()
        save_file(tensors, directory / name, {"format": "pt"})

    return change


def two_files(first: str, second: str, *, index: bool) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        tensors = sorted(whole(directory).items())
        for path in directory.glob("*.safetensors*"):
            path.unlink()
        where: dict[str, str] = {}
        for name, part in ((first, tensors[::2]), (second, tensors[1::2])):
            (directory / name).parent.mkdir(exist_ok=True)
            save_file(dict(part), directory / name, {"format": "pt"})
            where |= {tensor: name for tensor, _ in part}
        if index:
            (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))

    return change


def beside(name: str, tensors: dict[str, torch.Tensor] | None = None) -> Callable[[Path], None]:
    """Another file beside the weights of one file; its copy without tensors."""

    def change(directory: Path) -> None:
        one_file("model.safetensors")(directory)
        (directory / name).parent.mkdir(exist_ok=True)
        if tensors is None:
            shutil.copy(directory / "model.safetensors", directory / name)
        else:
            save_file(tensors, directory / name, {"format": "pt"})

    return change


LORA = {"base_model.model.layers.0.lora_A.weight": torch.zeros(8, 8)}
OTHER = {"model.language_model.norm.weight": torch.zeros(128)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (one_file("model.safetensors"), (YES, YES, YES)),
        (one_file("pytorch_model.safetensors"), (NO, YES, YES)),
        (one_file(CONSOLIDATED), (NO, YES, YES)),
        (two_files("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", index=True), (YES,) * 3),
        (
            two_files("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", index=False),
            (NO, YES, YES),
        ),
        (two_files("model.safetensors", "rest.safetensors", index=True), (NO, YES, YES)),
        (two_files("sub/a.safetensors", "sub/b.safetensors", index=True), (YES, NO, NO)),
        (two_files("a.safetensors", "sub/b.safetensors", index=True), (YES, NO, NO)),
        (two_files("a.safetensors", "consolidated.00.safetensors", index=True), (YES, NO, YES)),
        (beside(CONSOLIDATED, OTHER), (YES, NO, YES)),
        (beside("consolidated.00.safetensors", OTHER), (YES, NO, NO)),
        (beside(CONSOLIDATED), (YES, CAVEAT, YES)),
        (beside("old/consolidated.00.safetensors", OTHER), (YES, NO, YES)),
        (beside("adapter_model.safetensors", LORA), (YES, NO, YES)),
        (beside("copy.safetensors"), (YES, NO, NO)),
        (beside("more.safetensors", OTHER | LORA), (YES, NO, NO)),
        (beside("old/model.safetensors"), (YES, YES, YES)),
    ],
)
def test_engines_find_the_weights_by_name(
    change: Callable[[Path], None], expected: tuple[Loads, ...], dense_out: Path, tmp_path: Path
) -> None:
    directory = rewritten(dense_out, tmp_path / "out", same)
    change(directory)
    found = checked(directory)
    assert loads(found) == dict(zip(("transformers", "vllm", "sglang"), expected, strict=True))
    told = [one for one in found.report.findings if one.code == "engines.files"]
    assert bool(told) == (expected != (YES, YES, YES))
    assert all(one.remedy for one in told)
    assert exit_code(found) == (1 if NO in expected[:2] else 0)
    if expected[0] is NO:
        with pytest.raises((OSError, ValueError, RuntimeError)):
            filled(directory)
    elif (directory / "sub").is_dir():
        filled(directory)


def filled(directory: Path) -> None:
    """Load a checkpoint with transformers.

    Raises:
        RuntimeError: parameters have no tensors.
    """
    _, report = AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
    if report["missing_keys"]:
        raise RuntimeError(report["missing_keys"])


def test_weights_beside_those_of_an_index_are_left_aside(dense: Path, tmp_path: Path) -> None:
    quantized(dense, tmp_path / "out")
    save_file(LORA, tmp_path / "out/adapter_model.safetensors")
    assert set(loads(checked(tmp_path / "out")).values()) == {YES}


def test_a_damaged_file_beside_the_weights_stops_what_reads_it(dense_out: Path, tmp_path: Path) -> None:
    directory = rewritten(dense_out, tmp_path / "out", same)
    beside("more.safetensors")(directory)
    os.truncate(directory / "more.safetensors", 100)
    assert loads(checked(directory)) == {"transformers": YES, "vllm": NO, "sglang": NO}


def test_what_is_not_asked_for_is_not_told(dense_out: Path, tmp_path: Path) -> None:
    directory = rewritten(dense_out, tmp_path / "out", same)
    one_file("pytorch_model.safetensors")(directory)
    found = judged(directory, "vllm", tps=(1,))
    assert exit_code(found) == 0
    assert not [one for one in found.report.findings if one.code == "engines.files"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapter_config.json", "settings of an adapter, which transformers applies if PEFT is installed"),
        ("old/adapter_config.json", "settings of an adapter, which no engine reads"),
        ("hf_quant_config.json", "settings of another quantizer, which no engine reads"),
        ("quantize_config.json", "settings of another quantizer, which no engine reads"),
        ("trainer_state.json", "a file of a training run or another program, which no engine reads"),
        ("checkpoint-5/model.safetensors", "a file of a training run or another program, which no engine reads"),
        ("pytorch_model.bin", "weights that are no part of the checkpoint, which no engine reads"),
        ("old/model.safetensors", "weights that are no part of the checkpoint, which no engine reads"),
        (
            "more.safetensors",
            f"weights that are no part of the checkpoint, which vLLM and SGLang read too, as there is no {INDEX}",
        ),
        ("adapter_model.safetensors", f"weights of an adapter, which vLLM and SGLang read too, as there is no {INDEX}"),
        (
            CONSOLIDATED,
            "weights that are no part of the checkpoint, which vLLM reads in place of all others, for its name",
        ),
    ],
)
def test_a_file_too_many_is_called_what_it_is(name: str, said: str, dense_out: Path, tmp_path: Path) -> None:
    directory = rewritten(dense_out, tmp_path / "out", same)
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text("{}")
    (told,) = (one for one in checked(directory).report.findings if one.code == "static.stray")
    assert (told.subject, told.found, told.remedy) == (name, said, "delete it")


def test_settings_of_a_quantizer_count_where_the_config_has_none(dense: Path, tmp_path: Path) -> None:
    directory = rewritten(dense, tmp_path / "plain", same)
    (directory / "hf_quant_config.json").write_text("{}")
    (told,) = (one for one in checked(directory).report.findings if one.code == "static.stray")
    assert told.found == "settings of another quantizer, which vLLM and SGLang follow"


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        (one_file("pytorch_model.safetensors"), "rename pytorch_model.safetensors to model.safetensors"),
        (beside(CONSOLIDATED, OTHER), f"delete {CONSOLIDATED}, or move it out of the directory"),
        (
            beside("adapter_model.safetensors", LORA),
            "delete adapter_model.safetensors, or move it out of the directory",
        ),
        (
            two_files("sub/a.safetensors", "sub/b.safetensors", index=True),
            f"move the weights beside config.json, and take the folder out of their names in {INDEX}",
        ),
        (
            two_files("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", index=False),
            f"write {INDEX}: its `weight_map` has the file of each tensor",
        ),
    ],
)
def test_the_remedies_help(change: Callable[[Path], None], mend: str, dense_out: Path, tmp_path: Path) -> None:
    directory = rewritten(dense_out, tmp_path / "out", same)
    change(directory)
    (told,) = (one for one in checked(directory).report.findings if one.code == "engines.files")
    assert told.remedy == mend
    follow(directory, told)
    found = checked(directory)
    assert set(loads(found).values()) == {YES}
    assert not found.report.of(Severity.FAIL)


def follow(directory: Path, told: Finding) -> None:
    """Do what a remedy says."""
    verb, *words = told.remedy.split()
    match verb:
        case "rename":
            (directory / told.subject).rename(directory / words[-1])
        case "delete":
            (directory / words[0].rstrip(",")).unlink()
        case "move":
            index = (directory / INDEX).read_text()
            for path in directory.glob("sub/*"):
                path.rename(directory / path.name)
            (directory / INDEX).write_text(index.replace("sub/", ""))
        case "write":
            where = {}
            for path in directory.glob("*.safetensors"):
                with safe_open(path, "pt") as file:
                    where |= dict.fromkeys(file.keys(), path.name)
            (directory / INDEX).write_text(json.dumps({"weight_map": where}))

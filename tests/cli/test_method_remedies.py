"""Hints about methods and calibration, followed: another method, a file that is made, an importance matrix."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from helpers.gguf_file import gguf_bytes, imatrix_bytes
from helpers.program import Program, Ran, g4convert
from helpers.rewriting import rewritten
from safetensors.numpy import load_file, save_file

from g4convert.calibration.record import record
from g4convert.calibration.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from conftest import Checkpoints

__all__ = ["g4convert"]  # a fixture

GPTQ, IMATRIX = ("-r", "w4a16-g32-gptq"), ("-r", "w4a16-g32-imatrix")
MAKES_ONE = "`g4convert calibrate MODEL -o FILE` makes one"
IDS = np.random.default_rng(0).integers(5, 250, (4, 24), dtype=np.int32)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token ids alone."""
    path = tmp_path_factory.mktemp("calibration") / "c.safetensors"
    Tokens(IDS).save(path)
    return path


def refused(ran: Ran, hint: str) -> None:
    assert ran.status in {2, 3}, ran.err
    assert hint in ran.err.partition("hint: ")[2], ran.err


def worked(ran: Ran) -> None:
    assert ran.status == 0, ran.err


def quick(source: Path, out: Path, *more: object) -> tuple[object, ...]:
    return "quantize", source, "-o", out, "--verify", "none", "-q", *more


def test_a_drafter_takes_another_method(
    checkpoints: Checkpoints, calibration: Path, tmp_path: Path, g4convert: Program
) -> None:
    command = quick(checkpoints("assistant"), tmp_path / "out", "--assistant", "pack", "--calibration", calibration)
    refused(g4convert(*command, "--method", "gptq"), "--method mse")
    worked(g4convert(*command[:-2], "--method", "mse"))


def test_weights_alone_need_no_calibration(dense: Path, calibration: Path, tmp_path: Path, g4convert: Program) -> None:
    command = quick(dense, tmp_path / "out", "--calibration", calibration)
    refused(g4convert(*command), "-r w4a16-g32-gptq uses it")
    worked(g4convert(*command, *GPTQ))


def test_scales_are_trained_on_the_cpu_or_another_method_is_taken(
    dense: Path, calibration: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is said to be there, and plans are made for it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    command = quick(dense, tmp_path / "out", "--calibration", calibration)
    refused(g4convert(*command, "--method", "best", "--device", "cuda"), "--device cpu, or --method gptq")
    worked(g4convert(*command, "--method", "best", "--device", "cpu"))


def test_a_qat_source_keeps_its_codes_or_is_calibrated_all_the_same(
    checkpoints: Checkpoints, calibration: Path, tmp_path: Path, g4convert: Program
) -> None:
    source = checkpoints("dense", qat=True)
    command = quick(source, tmp_path / "out", "--calibration", calibration, *GPTQ)
    refused(g4convert(*command), "-r qat-q4_0 keeps its codes; a recipe with `qat: recalibrate` calibrates all the")
    (tmp_path / "mine.yaml").write_text("extends: w4a16-g32-gptq\nqat: recalibrate\n")
    worked(g4convert(*quick(source, tmp_path / "a", "-r", "qat-q4_0")))
    worked(g4convert(*command[:-1], tmp_path / "mine.yaml"))


def resaved(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    """Return what saves a calibration file again without its metadata, changed."""
    return lambda path: save_file(change(load_file(path)), path)


BROKEN: Mapping[str, Callable[[Path], object]] = {
    "none there": lambda path: path.unlink(),
    "no tensors": lambda path: path.write_bytes(b"text"),
    "other tensors": resaved(lambda _: {"x": np.zeros(2, np.int32)}),
    "one sample": resaved(lambda arrays: {name: array[:1] for name, array in arrays.items()}),
    "a changed id": resaved(lambda arrays: {name: array + 1 for name, array in arrays.items()}),
}


@pytest.mark.wide
def test_a_calibration_file_is_made_again(
    dense: Path, moe: Path, calibration: Path, tmp_path: Path, g4convert: Program
) -> None:
    """`imatrix` reads the statistics, too; those of another model are no better than none."""
    path = tmp_path / "c.safetensors"
    command = quick(dense, tmp_path / "out", *IMATRIX, "--calibration", path)
    for case, broken in BROKEN.items():
        shutil.copy(calibration, path)
        broken(path)
        ran = g4convert(*command)
        assert MAKES_ONE in ran.err.partition("hint: ")[2], (case, ran.err)
    path.unlink(missing_ok=True)
    make = ("-o", path, "--samples", 2, "--length", 16, "--overwrite", "-q", "--data", tmp_path / "texts.txt")
    (tmp_path / "texts.txt").write_text("a text of its own, which is not long\n" * 20)
    worked(g4convert("calibrate", moe, *make))
    refused(g4convert(*command), MAKES_ONE)
    path.write_bytes(imatrix_bytes(record(moe, Tokens(IDS), tmp_path / "scratch")))
    refused(g4convert(*command), f"{MAKES_ONE} of the model")
    worked(g4convert("calibrate", dense, *make))
    worked(g4convert(*command))


def test_an_importance_matrix_is_copied_again_or_made(moe: Path, tmp_path: Path, g4convert: Program) -> None:
    """As llama-imatrix writes it, after what it does not write, or what was cut short or renamed."""
    path = tmp_path / "m.gguf"
    whole = imatrix_bytes(record(moe, Tokens(IDS), tmp_path / "scratch"))
    kind, one = {"general.type": "imatrix"}, np.ones((1, 8))
    command = quick(moe, tmp_path / "out", *IMATRIX, "--calibration", path)
    made = "`llama-imatrix -m MODEL.gguf -f TEXT.txt -o FILE.gguf` makes one; older .dat files"
    for data, hint in (
        (whole[: len(whole) // 2], "copy the file again, or make it again with `llama-imatrix --output-format gguf`"),
        (whole[:4] + b"\x09" + whole[5:], "an importance matrix of llama.cpp is expected"),
        (gguf_bytes({"general.type": "model"}, {}), made),
        (gguf_bytes(kind, {"blk.0.attn_q.weight.in_sum2": one}), made),
        (whole.replace(b"blk.", b"blx."), made),
    ):
        path.write_bytes(data)
        refused(g4convert(*command), hint)
    path.write_bytes(whole)
    refused(g4convert(*quick(moe, tmp_path / "out", *GPTQ, "--calibration", path)), "-r w4a16-g32-imatrix uses it")
    worked(g4convert(*command))


def test_weights_that_are_not_finite_are_replaced(dense: Path, tmp_path: Path, g4convert: Program) -> None:
    def diverged(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = next(name for name in tensors if name.endswith("0.mlp.up_proj.weight"))
        return {**tensors, name: tensors[name] * torch.inf}

    source = rewritten(dense, tmp_path / "source", diverged)
    command = quick(source, tmp_path / "out")
    refused(g4convert(*command), "download it again, or take an earlier checkpoint of the training, which diverged")
    shutil.rmtree(source)
    shutil.copytree(dense, source)
    worked(g4convert(*command))

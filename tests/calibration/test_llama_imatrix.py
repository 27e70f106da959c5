"""An importance matrix of llama.cpp: the statistics of the same model, whoever wrote them; and what is refused."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.gguf_file import gguf_bytes, imatrix_bytes
from helpers.program import Program, g4convert

from g4convert.calibration.record import record
from g4convert.calibration.tokens import Tokens
from g4convert.conversion.llama_imatrix import read_imatrix
from g4convert.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

    from g4convert.conversion.statistics import Statistics

__all__ = ["g4convert"]  # a fixture

IDS = np.random.default_rng(0).integers(5, 250, (4, 24), dtype=np.int32)
META = {"general.type": "imatrix"}
ONE = np.ones((1, 1))


@pytest.fixture(scope="session")
def own(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    """Statistics of the MoE, as recorded here."""
    return record(moe, Tokens(IDS), tmp_path_factory.mktemp("own") / "scratch")


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_experts_attention_and_mlp_have_the_means_and_tokens_that_were_counted(own: Statistics, tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", imatrix_bytes(own))
    found = read_imatrix(path)
    assert found.inputs.keys() == own.inputs.keys()
    for name, inputs in own.inputs.items():
        assert np.array_equal(found.inputs[name].tokens, inputs.tokens)
        assert np.allclose(found.inputs[name].mean_square, inputs.mean_square, rtol=1e-6)
    assert (found.origin, found.model, found.samples, found.length) == ("llama.cpp", None, 3, 24)
    assert found.tokens == sha256(path.read_bytes()).hexdigest()


def test_names_of_every_family_are_known(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """E2B has per-layer inputs and layers without keys of their own; what lies before the layers is in no file."""
    recorded = record(checkpoints("e2b"), Tokens(IDS), tmp_path / "scratch")
    found = read_imatrix(written(tmp_path / "m.gguf", imatrix_bytes(recorded)))
    assert recorded.inputs.keys() - found.inputs.keys() == {"per_layer_model_projection"}


def test_a_conversion_uses_it_and_says_so(moe: Path, own: Statistics, tmp_path: Path, g4convert: Program) -> None:
    path, out = written(tmp_path / "m.gguf", imatrix_bytes(own)), tmp_path / "out"
    words = ("quantize", moe, "-o", out, "-r", "w4a16-g32-imatrix", "--calibration", path, "--verify", "none")
    assert "on 3 samples of 24 tokens" in g4convert(*words).out
    said = json.loads((out / "g4convert.json").read_text())["result"]["calibration"]
    assert (said["origin"], said["tokens"]) == ("llama.cpp", read_imatrix(path).tokens)
    assert "llama.cpp" in (out / "README.md").read_text()
    assert "already done" in g4convert(*words).out
    ran = g4convert(*words[:3], tmp_path / "other", "-r", "w4a16-g32-gptq", *words[6:])
    assert (ran.status, "no token ids to calibrate on" in ran.err) == (3, True)


def test_that_of_another_model_is_refused_by_its_sizes(
    own: Statistics, checkpoints: Checkpoints, tmp_path: Path, g4convert: Program
) -> None:
    path = written(tmp_path / "m.gguf", imatrix_bytes(own))
    words = ("-o", tmp_path / "out", "-r", "w4a16-g32-imatrix", "--calibration", path)
    ran = g4convert("quantize", checkpoints("dense"), *words)
    assert ran.status == 3
    assert "statistics do not fit the model" in ran.err
    assert "expected [" in ran.err
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]


def test_what_is_no_importance_matrix_is_refused_in_words(tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    for data, words in (
        (gguf_bytes({}, {}), "general.type is missing, expected imatrix"),
        (gguf_bytes({"general.type": "model"}, {}), "general.type is model"),
        (gguf_bytes(META, {}), "has none of the tensors of a Gemma 4 model"),
        (gguf_bytes(META, {"blk.0.ssm_out.weight.in_sum2": ONE, "blk.0.ssm_out.weight.counts": ONE}), "has none of"),
        (gguf_bytes(META, {f"{name}.in_sum2": ONE}), f"{name}: sums without counts"),
        (gguf_bytes(META, {f"{name}.in_sum2": ONE[0], f"{name}.counts": ONE}), r"sums \[1\] and counts \[1, 1\]"),
        (gguf_bytes(META, {f"{name}.in_sum2": ONE * np.nan, f"{name}.counts": ONE}), "negative or not finite"),
        (gguf_bytes(META, {f"{name}.in_sum2": ONE, f"{name}.counts": -ONE}), "a count is negative"),
        (gguf_bytes(META, {f"{name}.in_sum2": np.ones((2, 4)), f"{name}.counts": np.ones((2, 1))}), "2 matrices"),
        (gguf_bytes(META, {f"{name}.in_sum2": ONE, f"{name}.counts": ONE * 0}), "has none of the tensors"),
    ):
        with pytest.raises(InputError) as caught:
            read_imatrix(written(tmp_path / "m.gguf", data))
        assert caught.match(words)

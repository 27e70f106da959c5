"""`method: auto`: what the sample says, and that it is the same for the same source."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Checkpoints
from helpers.grids import two_when_quick
from safetensors.torch import load_file, save_file

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.conversion import method as choosing
from g4convert.conversion.method import choose
from g4convert.conversion.result import MethodChoice, OnGrid
from g4convert.errors import UsageError
from g4convert.planning.recipe_files import load
from g4convert.planning.steps import make_plan
from g4convert.quantization import Method


def chosen(directory: Path, **options: object) -> MethodChoice:
    checkpoint = Checkpoint.open(directory)
    with Reader(checkpoint.path, checkpoint.weight_files) as reader:
        return choose(make_plan(checkpoint, load(options=options).recipe), checkpoint, reader)


@pytest.mark.parametrize("method", ["minmax", "mse", "lattice"])
def test_a_recipe_that_names_a_method_gets_it(method: str, dense: Path) -> None:
    assert chosen(dense, method=method) == MethodChoice(Method(method), "as asked")


def share(choice: MethodChoice) -> float:
    """Return the share that a choice reports, in percent."""
    return float(choice.why.partition("%")[0].rpartition(" ")[2])


SOURCES = [(family, "bfloat16") for family in ("moe", "dense", "unified", "e2b", "text")]


@pytest.mark.parametrize(("family", "dtype"), two_when_quick([*SOURCES, ("dense", "float32"), ("dense", "float16")]))
def test_a_lattice_is_seen_where_there_is_one(family: str, dtype: str, checkpoints: Checkpoints) -> None:
    found, ordinary = chosen(checkpoints(family, dtype=dtype, qat=True)), chosen(checkpoints(family, dtype=dtype))
    assert found.method is Method.LATTICE
    assert found.why.startswith("source trained for 4 bits (QAT): 100.0% of groups in ")
    assert ordinary.method is Method.MSE
    assert ordinary.why.startswith("source not trained for 4 bits (QAT): 0.0% of groups in ")


def test_tables_and_head_do_not_hide_the_lattice_of_the_linears(checkpoints: Checkpoints) -> None:
    bits = {"embedding": 4, "ple_embedding": 4, "lm_head": 4}
    assert chosen(checkpoints("e2b", qat=True), bits=bits).method is Method.LATTICE
    with pytest.raises(UsageError, match="calibration would take it off"):
        chosen(checkpoints("e2b", qat=True), bits=bits, method="imatrix")
    alone = chosen(checkpoints("e2b", qat=True), pack=["embedding"])
    assert (alone.method, share(alone)) == (Method.MSE, 0)


def test_a_lattice_of_other_groups_is_none(checkpoints: Checkpoints) -> None:
    assert chosen(checkpoints("dense", qat=True), group_size=16).method is Method.LATTICE
    assert chosen(checkpoints("dense", qat=True), group_size=128).method is Method.MSE
    assert chosen(checkpoints("dense", qat=True), group_size="channel").method is Method.MSE


def test_eight_bits_have_no_lattice(checkpoints: Checkpoints) -> None:
    choice = chosen(checkpoints("dense", qat=True), num_bits=8)
    why = "source not searched for the grid of a QAT, as that has 4 bits"
    assert choice == MethodChoice(Method.MSE, why, OnGrid(0.0, 0, 0))


def test_nothing_to_pack_is_not_measured(checkpoints: Checkpoints) -> None:
    assert chosen(checkpoints("assistant")) == MethodChoice(Method.MSE, "nothing is packed")


@pytest.fixture
def half(checkpoints: Checkpoints, tmp_path: Path) -> Callable[[float], Path]:
    """Makes checkpoints in which some of the Linears, spread evenly, are off the lattice."""
    qat, plain = checkpoints("dense", qat=True), checkpoints("dense")

    def make(share: float) -> Path:
        out = tmp_path / f"{share}"
        out.mkdir()
        for path in qat.iterdir():
            (out / path.name).write_bytes(path.read_bytes())
        modules = [step.weight.name for step in make_plan(Checkpoint.open(qat), load().recipe).quantized]
        off = {name for n, name in enumerate(modules) if int((n + 1) * share) != int(n * share)}
        for path in out.glob("*.safetensors"):
            ordinary = load_file(plain / path.name)
            tensors = {name: ordinary[name] if name in off else tensor for name, tensor in load_file(path).items()}
            save_file(tensors, path, metadata={"format": "pt"})
        return out

    return make


def test_a_source_that_is_partly_on_a_lattice_is_searched(half: Callable[[float], Path]) -> None:
    choice = chosen(half(0.1))
    assert choice.method is Method.MSE
    assert 85 <= share(choice) < 99


def test_the_threshold_is_where_it_says(half: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = half(0.1)
    found = share(chosen(source)) / 100
    monkeypatch.setattr(choosing, "LATTICE_SHARE", found - 0.001)
    assert chosen(source).method is Method.LATTICE
    monkeypatch.setattr(choosing, "LATTICE_SHARE", found + 0.001)
    assert chosen(source).method is Method.MSE


def test_the_sample_is_small_and_spread(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(checkpoints("moe"))
    plan = make_plan(checkpoint, load().recipe)
    read = []

    class Watching(Reader):
        def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
            """Note what is asked for."""
            read.append((file, begin, len(buffer)))
            super().read_into(file, begin, buffer)

    monkeypatch.setattr(choosing, "_MAX_SAMPLED_LINEARS", 8)
    with Watching(checkpoint.path, checkpoint.weight_files) as reader:
        first = choose(plan, checkpoint, reader)
        once = list(read)
        assert choose(plan, checkpoint, reader) == first
    assert read == once * 2
    assert 8 <= len(once) <= 9
    assert len({(file, begin) for file, begin, _ in once}) == len(once)
    assert {nbytes for _, _, nbytes in once} <= {8 * step.weight.shape[1] * 2 for step in plan.quantized}


def test_a_weight_that_is_not_finite_is_left_to_the_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """It scans the whole tensor and names the first one; the sample only sees some rows."""
    source = checkpoints("dense", qat=True)
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in tmp_path.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if ".language_model.layers." in name and name.endswith("_proj.weight"):
                tensor[tensor.shape[0] // 2] = torch.nan
        save_file(tensors, path, metadata={"format": "pt"})
    assert chosen(tmp_path).method is Method.MSE

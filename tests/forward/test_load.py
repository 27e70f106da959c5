"""The strict loader: transformers' own result bit for bit, from any dialect, and no tensor left to chance."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Checkpoints
from helpers.conversions import quantized
from helpers.damage import Tensors, edit_config, rewrite
from helpers.dialect_sources import cases, with_shared_kv, write
from helpers.grids import diagonal, one_in
from helpers.prompts import logits, prompts
from helpers.reload import reload

from g4convert.demo import Family
from g4convert.errors import GateError, InputError, UsageError
from g4convert.forward.load import DTypeName, load
from g4convert.forward.models import Model, model_class, quiet_transformers

TEXT = "model.language_model"
LAYER = f"{TEXT}.layers.0"


def values(model: Model) -> dict[str, torch.Tensor]:
    """Parameters and buffers, those that no checkpoint stores included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def same(one: Model, other: Model) -> bool:
    """Return True if two models have the same tensors, bit for bit."""
    first, second = values(one), values(other)
    return first.keys() == second.keys() and all(
        tensor.dtype is second[name].dtype and torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


@pytest.mark.parametrize(("family", "dtype"), diagonal(Family, ("float32", "bfloat16")))
def test_a_plain_checkpoint_loads_as_transformers_loads_it(
    family: Family, dtype: DTypeName, checkpoints: Checkpoints
) -> None:
    source = checkpoints(family)
    expected, found = reload(source, dtype), load(source, dtype=dtype)
    assert same(expected, found)
    assert not found.training
    assert found.dtype is expected.dtype
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()
    for prompt in prompts(expected):
        assert torch.equal(logits(expected, prompt), logits(found, prompt)), prompt.bucket


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_weights_of_other_dtypes_are_cast(dtype: str, checkpoints: Checkpoints) -> None:
    source = checkpoints("dense", dtype=dtype)
    assert same(reload(source, "bfloat16"), load(source, dtype="bfloat16"))


def test_casting_a_whole_model_is_not_the_same(dense: Path) -> None:
    """`model.to` rounds the rotary tables; hence there is a dtype to load in."""
    assert not same(load(dense).to(torch.bfloat16), load(dense, dtype="bfloat16"))


@pytest.mark.parametrize(("dialect", "family"), one_in(7, cases()))
def test_every_dialect_loads(dialect: str, family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints(family)
    assert same(load(source), load(write(source, tmp_path / "dialect", dialect)))


def test_keys_of_shared_layers_are_left_out(e2b: Path, tmp_path: Path) -> None:
    assert same(load(e2b), load(with_shared_kv(e2b, tmp_path / "extended")))


def test_the_head_is_tied(moe: Path, text: Path) -> None:
    tied, own = load(moe), load(text)
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    assert own.lm_head.weight is not own.get_input_embeddings().weight


def test_loading_leaves_random_numbers_and_defaults_alone(moe: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(moe, dtype="bfloat16")
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_default_dtype() is torch.float32


def test_a_qat_export_loads(checkpoints: Checkpoints) -> None:
    """Its `quantization_config` has no method, and transformers refuses that."""
    source = checkpoints("dense", qat=True)
    assert same(reload(source), load(source))


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda held: held.pop(name)


def change(name: str, into: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    return lambda held: held.update({name: into(held[name])})


def add(name: str, tensor: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda held: held.update({name: tensor})


ONES = torch.ones(32, dtype=torch.bfloat16)
FAULTS = {
    "scalar": ("moe", drop(f"{LAYER}.layer_scalar"), f"missing: {LAYER}.layer_scalar"),
    "expert scale": ("moe", drop(f"{LAYER}.router.per_expert_scale"), "router.per_expert_scale"),
    "experts": ("moe", drop(f"{LAYER}.experts.down_proj"), f"missing: {LAYER}.experts.0.down_proj.weight"),
    "standardization": ("moe", drop("model.vision_tower.std_bias"), "missing: model.vision_tower.std_bias"),
    "stranger": ("dense", add(f"{LAYER}.mlp.gate_proj.extra", torch.zeros(256)), "unexpected: "),
    "values of k_eq_v": ("dense", add(f"{TEXT}.layers.1.self_attn.v_proj.weight", ONES), "self_attn.v_proj.weight"),
    "shape": ("dense", change(f"{LAYER}.mlp.up_proj.weight", lambda t: t[:-1]), "is [255, 128], the model's is [256"),
    "shape of experts": ("moe", change(f"{LAYER}.experts.down_proj", lambda t: t[:-1]), "is [11, 128, 192]"),
    "shape of a scalar": (
        "moe",
        change(f"{LAYER}.layer_scalar", lambda t: t.repeat(2)),
        "layer_scalar is [2], the model's is [1]",
    ),
    "head": ("moe", add("lm_head.weight", torch.zeros(512, 128, dtype=torch.bfloat16)), "differs from the embedding"),
    "norm": ("moe", add(f"{LAYER}.self_attn.v_norm.weight", 2 * ONES), "has values other than 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(fault: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    family, damage, problem = FAULTS[fault]
    bad = Path(shutil.copytree(checkpoints(family), tmp_path / "bad"))
    rewrite(bad, damage)
    with pytest.raises(GateError) as raised:
        load(bad)
    assert problem in str(raised.value)


def test_transformers_loads_the_same_without_a_word(dense: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(dense, tmp_path / "bad"))
    rewrite(bad, drop(f"{LAYER}.layer_scalar"))
    with quiet_transformers():
        model = model_class("gemma4").from_pretrained(bad)
    assert model.state_dict()[f"{LAYER}.layer_scalar"].tolist() == [1.0]


def test_all_that_does_not_fit_is_named_at_once(moe: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(moe, tmp_path / "bad"))

    def damage(held: Tensors) -> None:
        for name in ("layer_scalar", "router.scale", "mlp.up_proj.weight"):
            held.pop(f"{LAYER}.{name}")
        held["model.nonsense"] = torch.zeros(1)

    rewrite(bad, damage)
    with pytest.raises(GateError, match="4 tensors do not fit the model") as raised:
        load(bad)
    assert set(raised.value.offenders) == {
        "unexpected: model.nonsense",
        f"missing: {LAYER}.mlp.up_proj.weight",
        f"missing: {LAYER}.router.scale",
        f"missing: {LAYER}.layer_scalar",
    }


def test_another_model_and_another_dtype_are_refused(dense: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(dense, tmp_path / "bad"))
    edit_config(bad, lambda config: config.update(model_type="gemma3"))
    with pytest.raises(InputError, match="gemma3"):
        load(bad)
    with pytest.raises(UsageError, match="int8"):
        load(dense, dtype="int8")  # type: ignore[arg-type] # on purpose


def test_a_model_takes_from_the_one_beside_it_what_is_the_same(moe: Path, tmp_path: Path) -> None:
    quantized(moe, tmp_path / "out")
    dense = load(tmp_path / "out", packed=False)
    original, packed = load(moe, beside=dense), load(tmp_path / "out", beside=dense)
    name = "model.language_model.layers.0.self_attn.q_proj"
    for model in (original, packed):
        assert model.lm_head.weight.data_ptr() == dense.lm_head.weight.data_ptr()
    mine, theirs = (model.get_submodule(name).weight for model in (original, dense))
    assert mine.data_ptr() != theirs.data_ptr()
    alone = load(moe)
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), alone.parameters(), strict=True))


@pytest.mark.wide
def test_tensors_of_one_number_are_compared_too(e2b: Path, tmp_path: Path) -> None:
    """Clip limits have no dimension."""
    quantized(e2b, tmp_path / "out")
    dense = load(tmp_path / "out", packed=False)
    shared = load(e2b, beside=dense).state_dict()
    alone = load(e2b).state_dict()
    assert any(tensor.dim() == 0 for tensor in alone.values())
    assert all(torch.equal(tensor, shared[name]) for name, tensor in alone.items())

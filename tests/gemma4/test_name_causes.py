"""Unknown names beside missing ones: copies, wrappers, other programs."""

from dataclasses import replace

import pytest
from helpers.refused import Tensors, fits, hint, tensors_of, without
from helpers.released_configs import FAMILIES, Config, small

from g4convert.gemma4 import Architecture, expected_weights, resolve
from g4convert.tensors import TensorInfo


def test_two_spellings_of_one_model_are_two_copies() -> None:
    config = small("31B")
    tensors = tensors_of(config)
    others = {name.replace("model.language_model.", "language_model.model."): info for name, info in tensors.items()}
    both = tensors | {name: replace(info, name=name) for name, info in others.items()}
    assert "two copies" in hint(both, config)
    assert fits(tensors, config)


def stacked(config: Config) -> dict[str, TensorInfo]:
    """Experts as MLX holds them."""
    found: dict[str, TensorInfo] = {}
    for name, info in tensors_of(config).items():
        if name.endswith(".experts.gate_up_proj"):
            e, rows, k = info.shape
            for part in ("gate", "up"):
                new = name.replace("gate_up_proj", f"switch_glu.{part}_proj.weight")
                found[new] = TensorInfo(new, info.dtype, (e, rows // 2, k))
        elif name.endswith(".experts.down_proj"):
            new = name.replace("down_proj", "switch_glu.down_proj.weight")
            found[new] = replace(info, name=new)
        else:
            found[name] = info
    return found


def test_experts_of_mlx_are_cut_into_rows() -> None:
    config = small("26B-A4B")
    inventory = resolve(stacked(config), Architecture.from_config(config))
    weights = {weight.name: weight for weight in inventory.weights}
    assert weights.keys() == expected_weights(Architecture.from_config(config)).keys()
    up = weights["model.language_model.layers.0.experts.1.up_proj.weight"]
    assert up.segment.source.endswith("switch_glu.up_proj.weight")
    assert (up.segment.begin, up.segment.end) == (up.info.nbytes, 2 * up.info.nbytes)
    assert {use.name for use in inventory.dialects} == {"mlx-experts"}


def test_experts_in_both_forms_are_ambiguous() -> None:
    config = small("26B-A4B")
    fused = {name: info for name, info in tensors_of(config).items() if name.endswith("layers.0.experts.gate_up_proj")}
    said = hint({**stacked(config), **fused}, config)
    assert "two copies" in said


@pytest.mark.parametrize("family", ["31B", "E2B", "text"])
@pytest.mark.parametrize("wrapper", ["policy.", "actor_module.llm."])
def test_names_in_a_wrapper_that_is_not_known_are_saved_without_it(wrapper: str, family: str) -> None:
    config = FAMILIES[family]
    plain = tensors_of(config)
    wrapped = {wrapper + name: replace(info, name=wrapper + name) for name, info in plain.items()}
    start = hint(wrapped, config).split("`")[1]
    assert start == wrapper
    assert fits({n.removeprefix(start): replace(i, name=n.removeprefix(start)) for n, i in wrapped.items()}, config)


def test_a_prefix_of_some_names_alone_proves_nothing() -> None:
    config = small("31B")
    plain = tensors_of(config)
    name = "model.language_model.layers.2.mlp.up_proj.weight"
    other = {f"policy.{name}": replace(plain[name], name=f"policy.{name}"), "policy.step": plain[name]}
    assert "inspect" in hint(without(plain, name) | other, config)


def merged(tensors: Tensors, into: str, *parts: str) -> dict[str, TensorInfo]:
    """The tensors with some of each layer in one, as engines hold them."""
    found = {name: info for name, info in tensors.items() if not ("language" in name and name.endswith(parts))}
    first = [n for n in tensors if "language" in n and n.endswith(parts[0])]
    names = {name: name.removesuffix(parts[0]) + into for name in first}
    return {**found, **{new: replace(tensors[old], name=new) for old, new in names.items()}}


@pytest.mark.parametrize(
    ("into", "parts"),
    [
        ("qkv_proj.weight", ("q_proj.weight", "k_proj.weight", "v_proj.weight")),
        ("gate_up_proj.weight", ("gate_proj.weight", "up_proj.weight")),
        ("experts.w13_weight", ("experts.gate_up_proj",)),
        ("experts.w2_weight", ("experts.down_proj",)),
    ],
)
def test_what_engines_merge_is_taken_from_the_checkpoint(into: str, parts: tuple[str, ...]) -> None:
    config = FAMILIES["26B-A4B"]
    said = hint(merged(tensors_of(config), into, *parts), config)
    assert into.removesuffix(".weight").rpartition(".")[2] in said
    assert "merged as engines hold them" in said
    assert fits(tensors_of(config), config)  # the checkpoint that was loaded
    lost = without(merged(tensors_of(config), into, *parts), "post_feedforward_layernorm_1")
    assert "merged" not in hint(lost, config)


@pytest.mark.parametrize("family", ["31B", "text"])
@pytest.mark.parametrize(
    "names",
    [
        (("layers.", "blk."), ("self_attn.q_proj", "attn_q")),  # GGUF
        (("self_attn.q_proj", "attn.q_proj"), ("mlp.gate_proj", "mlp.w1")),  # torchtune
        (("layers.", "decoder.layers."), ("self_attn.o_proj", "self_attention.linear_proj")),  # Megatron
    ],
)
def test_names_of_another_program(names: tuple[tuple[str, str], ...], family: str) -> None:
    config = FAMILIES[family]
    found = {}
    for name, info in tensors_of(config).items():
        new = name
        for old, other in names if "tower" not in name else ():
            new = new.replace(old, other)
        found[new] = replace(info, name=new)
    assert hint(found, config).startswith("names of another program")
    assert fits(tensors_of(config), config)  # as an export has them

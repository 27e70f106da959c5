"""Tensors of another shape: transposed, of a rank, of pruned layers, or as good as the right one."""

from dataclasses import replace

import pytest
from helpers.refused import Tensors, fits, hint, tensors_of, with_text
from helpers.released_configs import FAMILIES, small

from g4convert.gemma4 import Architecture, expected_weights, resolve
from g4convert.tensors import DType, TensorInfo


def test_convolutions_with_channels_last_are_moved_where_it_matters() -> None:
    config = small("E2B")
    architecture = Architecture.from_config(config)
    convolutions = {name: of for name, of in expected_weights(architecture).items() if of.convolution}
    tensors = tensors_of(config) | {
        name: TensorInfo(name, DType.BF16, of.channels_last) for name, of in convolutions.items()
    }
    inventory = resolve(tensors, architecture)
    moved = {weight.name.rpartition("audio_tower.")[2] for weight in inventory.weights if weight.channels_last}
    assert moved == {"subsample_conv_projection.layer1.conv.weight"}
    assert all(
        weight.shape == convolutions[weight.name].shape for weight in inventory.weights if weight.name in convolutions
    )
    assert {use.name for use in inventory.dialects} == {"channels-last"}


@pytest.mark.parametrize("name", ["layer_scalar", "output_min"])
def test_single_values_may_have_another_shape(name: str) -> None:
    """Engines differ: vLLM takes them in any shape, and transformers 5.22 stops at a `layer_scalar` of the shape []."""
    config = small("E2B")
    tensors = tensors_of(config)
    whole = {one: info.shape for one, info in tensors.items() if one.endswith(name)}
    other = {one: replace(tensors[one], shape=() if shape else (1,)) for one, shape in whole.items()}
    assert other
    inventory = resolve({**tensors, **other}, Architecture.from_config(config))
    assert {weight.name: weight.shape for weight in inventory.weights if weight.name in whole} == whole
    assert [(use.name, use.count) for use in inventory.dialects] == [("single-values", len(whole))]
    two = {one: replace(tensors[one], shape=(2,)) for one in whole}
    assert "inspect" in hint({**tensors, **two}, config)


def swapped(tensors: Tensors, *ends: str) -> dict[str, TensorInfo]:
    """The tensors, some with their last two axes swapped."""
    return {
        name: replace(info, shape=(*info.shape[:-2], info.shape[-1], info.shape[-2])) if name.endswith(ends) else info
        for name, info in tensors.items()
    }


@pytest.mark.parametrize("ends", [("experts.gate_up_proj", "experts.down_proj"), ("mlp.down_proj.weight",)])
def test_weights_that_are_transposed_are_said_to_be(ends: tuple[str, ...]) -> None:
    """As a merge leaves experts whose width it guesses wrong (unsloth-zoo pull request 779)."""
    config = small("26B-A4B")
    found = swapped(tensors_of(config), *ends)
    assert hint(found, config).startswith("these are transposed: swap their last two axes")
    assert fits(swapped(found, *ends), config)
    name = "model.language_model.layers.0.input_layernorm.weight"
    assert "transposed" not in hint({**found, name: replace(found[name], shape=(3,))}, config)


@pytest.mark.parametrize("family", ["31B", "26B-A4B"])
def test_tensors_without_values_are_those_of_a_rank(family: str) -> None:
    """As ZeRO-3 saves them where it does not gather (OpenRLHF issue 839)."""
    config = small(family)
    plain = tensors_of(config)
    empty = {n: replace(i, shape=(0,)) if n.endswith("proj.weight") else i for n, i in plain.items()}
    assert "zero_to_fp32.py" in hint(empty, config)
    assert fits(plain, config)  # gathered
    one = {n: replace(i, shape=(3,)) if n.endswith("0.mlp.up_proj.weight") else i for n, i in empty.items()}
    assert "zero_to_fp32.py" not in hint(one, config)


@pytest.mark.parametrize(
    ("ends", "axis", "ranks"),
    [
        (("experts.gate_up_proj", "experts.down_proj"), 0, 3),
        (("self_attn.q_proj.weight", "mlp.up_proj.weight", "embed_tokens.weight"), 0, 4),
        (("self_attn.o_proj.weight", "mlp.down_proj.weight"), 1, 2),
    ],
)
def test_a_part_of_each_tensor_is_that_of_a_rank(ends: tuple[str, ...], axis: int, ranks: int) -> None:
    config = small("26B-A4B")

    def part(info: TensorInfo) -> TensorInfo:
        sizes = [size // ranks if n == axis else size for n, size in enumerate(info.shape)]
        return replace(info, shape=tuple(sizes))

    tensors = {n: part(i) if "language_model" in n and n.endswith(ends) else i for n, i in tensors_of(config).items()}
    assert f"one of {ranks}: gather the parts of all ranks" in hint(tensors, config)
    assert fits(tensors_of(config), config)  # gathered
    whole = {n: i for n, i in tensors_of(config).items() if "layers.1." in n}  # as a tool prunes some layers
    assert "gather" not in hint({**tensors, **whole}, config)


def test_layers_with_other_numbers_of_experts_are_said_to_be() -> None:
    config = FAMILIES["26B-A4B"]
    tensors = dict(tensors_of(config))
    for name, info in tensors.items():
        if ".layers.1." in name and (".experts." in name or ".router.p" in name):
            tensors[name] = replace(info, shape=(2, *info.shape[1:]))
    assert "prune all layers alike" in hint(tensors, config)
    pruned = {
        name: replace(info, shape=(2, *info.shape[1:])) if ".experts." in name or ".router.p" in name else info
        for name, info in tensors.items()
    }
    assert fits(pruned, with_text(config, num_experts=2, top_k_experts=2))

"""A refusal names the cause only where it is proved, and the remedy it names makes the source fit."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from helpers.released_configs import FAMILIES, Config, small, stored

from g4convert.errors import InputError, UnsupportedError
from g4convert.gemma4 import Architecture, ExtraKind, Role, expected_weights, resolve
from g4convert.names import Name
from g4convert.tensors import DType, TensorInfo

Tensors = Mapping[str, TensorInfo]


def tensors_of(config: Config) -> dict[str, TensorInfo]:
    return stored(Architecture.from_config(config))


def hint(tensors: Tensors, config: Config) -> str:
    with pytest.raises(InputError) as caught:
        resolve(tensors, Architecture.from_config(config), config=config)
    return caught.value.hint


def fits(tensors: Tensors, config: Config, *, decoder_only: bool = False) -> bool:
    resolve(tensors, Architecture.from_config(config), config=config, decoder_only=decoder_only)
    return True


def with_text(config: Config, **values: object) -> Config:
    changed = deepcopy(config)
    changed.get("text_config", changed).update(values)
    return changed


# ---- a key of the config that does not fit


@pytest.mark.parametrize(
    ("family", "true"),
    [
        ("E2B", {"vocab_size": 262208}),
        ("E2B", {"vocab_size_per_layer_input": 262208}),
        ("E2B", {"vocab_size": 262208, "vocab_size_per_layer_input": 262208}),
        ("E2B", {"hidden_size_per_layer_input": 128}),
        ("E2B", {"hidden_size_per_layer_input": 0}),
        ("26B-A4B", {"num_experts": 2}),
        ("26B-A4B", {"moe_intermediate_size": 352}),
        ("26B-A4B", {"hidden_size_per_layer_input": 64, "vocab_size_per_layer_input": 512}),
        ("31B", {"intermediate_size": 5376}),
        ("31B", {"num_attention_heads": 16}),
        ("31B", {"num_hidden_layers": 3, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}),
        ("31B", {"layer_types": ["full_attention"] + ["sliding_attention"] * 4 + ["full_attention"]}),
        ("12B", {"vocab_size": 262145}),
        ("text", {"vocab_size": 262145}),
        ("26B-A4B", {"enable_moe_block": False}),
        ("26B-A4B", {"num_global_key_value_heads": 4}),
        ("12B", {"global_head_dim": 1024}),
        ("31B", {"attention_k_eq_v": False, "num_key_value_heads": 4}),
        ("E2B", {"use_double_wide_mlp": False}),
        ("E2B", {"num_kv_shared_layers": 1}),
        ("text", {"global_head_dim": 256, "num_attention_heads": 16}),
    ],
)
def test_the_key_that_does_not_fit_is_named_and_its_value_fits(family: str, true: Mapping[str, Any]) -> None:
    config = FAMILIES[family]
    tensors = tensors_of(with_text(config, **true))
    said = hint(tensors, config)
    for key, value in true.items():
        assert key in said
        assert isinstance(value, list) or f"{key} to {json.dumps(value)}" in said
    assert ("text_config." in said) == ("text_config" in config)
    assert fits(tensors, with_text(config, **true))


@pytest.mark.parametrize(
    ("family", "section", "true"),
    [
        ("E2B", "vision_config", {"hidden_size": 512, "head_dim": 32}),
        ("31B", "vision_config", {"num_hidden_layers": 2}),
        ("E2B", "vision_config", {"standardize": True}),
        ("26B-A4B", "vision_config", {"intermediate_size": 1024, "position_embedding_size": 1024}),
        ("31B", "vision_config", {"patch_size": 14}),
        ("31B", "vision_config", {"num_attention_heads": 8, "num_key_value_heads": 4}),
        ("31B", "vision_config", {"use_clipped_linears": True}),
        ("12B", "vision_config", {"mm_posemb_size": 560}),
        ("12B", "vision_config", {"patch_size": 8}),
        ("12B", "vision_config", {"pooling_kernel_size": 2}),
        ("12B", "audio_config", {"audio_embed_dim": 320}),
        ("E2B", "audio_config", {"hidden_size": 512}),
        ("E2B", "audio_config", {"num_attention_heads": 16, "num_hidden_layers": 2}),
        ("E2B", "audio_config", {"subsampling_conv_channels": [64, 32], "conv_kernel_size": 3}),
        ("E2B", "audio_config", {"output_proj_dims": 1024}),
        ("assistant", "", {"num_centroids": 1024}),
        ("unified assistant", "", {"backbone_hidden_size": 2048, "use_ordered_embeddings": True}),
    ],
)
def test_keys_of_every_section_are_named(family: str, section: str, true: Mapping[str, Any]) -> None:
    config = FAMILIES[family]
    whole = {**config, section: {**config[section], **true}} if section else {**config, **true}
    tensors = tensors_of(whole)
    said = hint(tensors, config)
    for key, value in true.items():
        assert f"{section}{'.' if section else ''}{key} to {json.dumps(value)}" in said
    assert fits(tensors, whole)


def test_experts_are_never_said_to_be_spare() -> None:
    """Without `enable_moe_block` they are unknown tensors, and the dense model beside them is whole."""
    config = FAMILIES["26B-A4B"]
    dense = with_text(config, enable_moe_block=False)
    assert "enable_moe_block to true" in hint(tensors_of(config), dense)
    assert "that of a model without experts" in hint(without(tensors_of(config), "router.scale"), dense)
    ple = with_text(FAMILIES["E2B"], hidden_size_per_layer_input=0)
    torn = without(tensors_of(FAMILIES["E2B"]), "per_layer_projection_norm")
    assert "that of a model without per-layer embeddings" in hint(torn, ple)
    assert fits(tensors_of(config), config)  # the one saved with these weights


def test_layer_types_that_are_missing_are_named_as_the_tensors_have_them() -> None:
    kinds = ["full_attention"] + ["sliding_attention"] * 4 + ["full_attention"]
    whole = with_text(small("31B"), layer_types=kinds)
    text = {key: value for key, value in whole["text_config"].items() if key != "layer_types"}
    assert hint(tensors_of(whole), {**whole, "text_config": text}).endswith(
        f"in config.json set text_config.layer_types to {json.dumps(kinds)}"
    )


def test_the_config_of_another_model_is_said_to_be_one() -> None:
    other = small("E2B")
    assert "another model's" in hint(tensors_of(small("31B")) | {}, with_text(small("31B"), **_sizes(other)))


@pytest.mark.parametrize(("family", "section"), [("31B", "vision_config"), ("E2B", "audio_config")])
def test_an_empty_section_is_said_to_be_another_models(family: str, section: str) -> None:
    config = FAMILIES[family]
    tensors = tensors_of(config | {section: config[section] | _OTHER[section]})
    assert hint(tensors, config | {section: {}}).startswith(f"{section} in config.json is another model's")


_OTHER: Mapping[str, Config] = {
    "vision_config": {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "num_attention_heads": 2},
    "audio_config": {"hidden_size": 64, "num_attention_heads": 2, "output_proj_dims": 96, "conv_kernel_size": 3},
}


def _sizes(config: Config) -> dict[str, Any]:
    text = config["text_config"]
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
    return {key: 2 * text[key] for key in keys}


def test_where_nothing_is_proved_nothing_is_claimed() -> None:
    tensors = tensors_of(small("31B"))
    del tensors["model.language_model.layers.2.mlp.up_proj.weight"]
    assert "inspect" in hint(tensors, small("31B"))
    strange = {"optimizer.step": TensorInfo("optimizer.step", DType.BF16, (1,))}
    assert "inspect" in hint({**tensors, **strange}, small("31B"))


@pytest.mark.parametrize("family", ["31B", "26B-A4B", "12B", "text"])
def test_as_many_layer_types_as_layers(family: str) -> None:
    config = small(family) if family != "text" else FAMILIES[family]
    kinds = config.get("text_config", config)["layer_types"]
    where = "text_config." if "text_config" in config else ""
    for layers in (len(kinds) - 2, len(kinds) + 1):
        with pytest.raises(InputError) as caught:
            Architecture.from_config(with_text(config, num_hidden_layers=layers))
        assert caught.value.offenders == (f"{where}layer_types: {len(kinds)} entries for {layers} layers",)


def test_layer_types_are_a_list_of_known_kinds() -> None:
    with pytest.raises(InputError) as caught:
        Architecture.from_config(with_text(small("31B"), layer_types=["chunked_attention"] * 6))
    assert "'chunked_attention', expected sliding_attention or full_attention" in caught.value.offenders[0]
    with pytest.raises(InputError) as caught:
        Architecture.from_config(with_text(small("31B"), layer_types="full_attention"))
    assert caught.value.offenders == ("text_config.layer_types: 'full_attention', expected a list of 6",)


@pytest.mark.parametrize("wrong", [[128], [128, 0], 128, ["128", 32]])
def test_channels_of_sound_are_two_numbers(wrong: object) -> None:
    config = deepcopy(small("E2B"))
    config["audio_config"]["subsampling_conv_channels"] = wrong
    with pytest.raises(InputError) as caught:
        Architecture.from_config(config)
    (offender,) = caught.value.offenders
    assert offender.startswith("audio_config.subsampling_conv_channels: ")
    assert offender.endswith(f"{wrong!r}, expected two positive integers")


# ---- towers


def without(tensors: Tensors, *parts: str) -> dict[str, TensorInfo]:
    return {name: info for name, info in tensors.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(
    ("family", "gone", "key"),
    [
        ("E2B", ("audio",), "audio_config"),
        ("E2B", ("vision",), "vision_config"),
        ("12B", ("audio",), "audio_config"),
        ("12B", ("vision",), "vision_config"),
    ],
)
def test_a_missing_modality_is_declared_as_the_hint_says(family: str, gone: tuple[str, ...], key: str) -> None:
    config = FAMILIES[family]
    tensors = without(tensors_of(config), *gone)
    assert f'"{key}": null' in hint(tensors, config)
    assert fits(tensors, config | {key: None})
    assert f"no {key}" in hint(tensors_of(config), config | {key: None})
    assert fits(tensors_of(config), config)


@pytest.mark.parametrize("family", ["E2B", "12B", "26B-A4B", "31B"])
def test_decoder_weights_under_a_multimodal_config_are_taken_as_such(family: str) -> None:
    config = FAMILIES[family]
    tensors = without(tensors_of(config), "vision", "audio")
    assert "--layout text-only" in hint(tensors, config)
    assert fits(tensors, config, decoder_only=True)
    renamed = {name.replace("language_model.", ""): info for name, info in tensors.items()}
    assert fits({n: replace(info, name=n) for n, info in renamed.items()}, config, decoder_only=True)


@pytest.mark.parametrize("family", ["E2B", "12B", "26B-A4B", "31B"])
def test_towers_under_the_config_of_a_text_model(family: str) -> None:
    """As somebody leaves it who replaced the config to get rid of them."""
    config = FAMILIES[family]
    alone = config["text_config"] | {"tie_word_embeddings": True}
    said = hint(tensors_of(config), alone)
    assert said == "config.json describes the text model alone: use the multimodal one (and --layout text-only)"
    assert fits(tensors_of(config), config)


def test_a_part_of_a_tower_is_no_stripped_tower() -> None:
    tensors = without(tensors_of(small("E2B")), "audio_tower.layers.0.self_attn.q_proj")
    assert "null" not in hint(tensors, small("E2B"))


@pytest.mark.parametrize(
    ("family", "tower", "key"),
    [
        ("31B", "vision_tower", "vision_config"),
        ("E2B", "audio_tower", "audio_config"),
        ("12B", "vision_embedder", "vision_config"),
    ],
)
def test_a_projection_without_its_tower(family: str, tower: str, key: str) -> None:
    """Neither hint sends the other one back."""
    config = FAMILIES[family]
    tensors = without(tensors_of(config), f"{tower}.")
    projection = f"embed_{key.removesuffix('_config')}"
    said = hint(tensors, config)
    assert f"{projection} is there without its tower" in said
    assert fits(tensors, config, decoder_only=True)
    assert f'delete {projection} and write `"{key}": null`' in said
    assert hint(tensors, config | {key: None}).startswith("these belong to a tower that is not there")
    assert fits(without(tensors, projection), config | {key: None})


# ---- buffers


@pytest.mark.parametrize(
    ("family", "buffers"), [("31B", ("layer_scalar", "std_bias", "std_scale")), ("12B", ("layer_scalar",))]
)
def test_buffers_that_are_lost_are_said_to_be_buffers(family: str, buffers: tuple[str, ...]) -> None:
    config = FAMILIES[family]
    tensors = without(tensors_of(config), *buffers)
    said = hint(tensors, config)
    assert all(name in said for name in buffers)
    assert "buffers" in said
    assert fits(tensors | {n: i for n, i in tensors_of(config).items() if n.endswith(buffers)}, config)


def test_limits_of_towers_may_be_missing_and_are_counted() -> None:
    config = small("E2B")
    architecture = Architecture.from_config(config)
    limits = {name for name, of in expected_weights(architecture).items() if of.role is Role.CLIP}
    tensors = {name: info for name, info in tensors_of(config).items() if name not in limits}
    assert resolve(tensors, architecture).missing_limits == len(limits) > 0
    assert resolve(tensors_of(config), architecture).missing_limits == 0


# ---- two copies, and other forms of experts and convolutions


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


# ---- a wrapper that is not known


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


# ---- what a trainer or a merge left beside the weights


def with_shapes(tensors: Tensors, added: Mapping[str, tuple[int, ...]], dtype: DType = DType.F32) -> Tensors:
    return {**tensors, **{name: TensorInfo(name, dtype, shape) for name, shape in added.items()}}


@pytest.mark.parametrize(
    ("parts", "tool"),
    [
        (("SCB",), "bitsandbytes"),
        (("weight.absmax",), "bitsandbytes"),
        (("weight.quant_state.bitsandbytes__nf4",), "bitsandbytes"),
        (("weight_scale",), "FP8 or INT8"),
        (("weight_scale_inv",), "FP8 or INT8"),
        (("weight_scale", "input_scale"), "FP8 or INT8"),
        (("weight_scale", "weight_zero_point", "weight_g_idx"), "compressed-tensors"),
        (("weight_scale", "weight_scale_2"), "ModelOpt NVFP4"),
        (("weight_fake_quant.scale", "activation_post_process.min_val"), "quantization-aware training"),
        (("weight_quantizer._amax", "input_quantizer._amax"), "quantization-aware training"),
        (("weight_observer.min_vals",), "quantization-aware training"),
    ],
)
def test_scales_beside_weights_that_are_not_quantized_are_leftovers(parts: tuple[str, ...], tool: str) -> None:
    """As llm-compressor leaves with `save_compressed=False`, and merges into dequantized weights do."""
    config = FAMILIES["31B"]
    plain = tensors_of(config)
    linears = [name.removesuffix(".weight") for name in plain if name.endswith("mlp.up_proj.weight")]
    added = {f"{linear}.{part}": (8,) for linear in linears for part in parts}
    with pytest.raises(InputError, match=f"of {tool} beside weights that are not quantized") as caught:
        resolve(with_shapes(plain, added), Architecture.from_config(config), config=config)
    assert "delete them" in caught.value.hint
    assert fits(plain, config)
    (name,) = [name for name in plain if name.endswith("layers.0.mlp.up_proj.weight") and "language" in name]
    stored_in_bytes = {**plain, name: TensorInfo(name, DType.I8, plain[name].shape)}
    with pytest.raises(UnsupportedError, match=f"already quantized: {tool}"):
        resolve(with_shapes(stored_in_bytes, added), Architecture.from_config(config), config=config)


@pytest.mark.parametrize(
    ("name", "said"),
    [("v_head.summary.weight", "value head"), ("score.weight", "classifier"), ("classifier.weight", "classifier")],
)
def test_heads_that_are_no_language_models_are_named(name: str, said: str) -> None:
    config = FAMILIES["31B"]
    assert said in hint(with_shapes(tensors_of(config), {name: (1, 8)}), config)


def test_values_that_are_keys_are_said_to_be_copies() -> None:
    config = FAMILIES["31B"]
    plain = tensors_of(config)
    layers = Architecture.from_config(config).text.layers
    number = next(n for n, layer in enumerate(layers) if layer.k_eq_v)
    key = plain[f"model.language_model.layers.{number}.self_attn.k_proj.weight"]
    text = hint(with_shapes(plain, {key.name.replace("k_proj", "v_proj"): key.shape}, key.dtype), config)
    assert "attention_k_eq_v" in text
    assert "delete it" in text
    assert "to false" not in text  # all layers would have as many heads of keys as the sliding ones


def test_values_beside_keys_may_be_the_models_own_where_all_layers_have_as_many_heads() -> None:
    config = with_text(
        FAMILIES["31B"], num_global_key_value_heads=FAMILIES["31B"]["text_config"]["num_key_value_heads"]
    )
    own = with_text(config, attention_k_eq_v=False)
    assert "or else set attention_k_eq_v to false" in hint(tensors_of(own), config)
    assert fits(tensors_of(own), own)


# ---- tensors too many, one too few, and single values


@pytest.mark.parametrize("family", ["31B", "E2B", "text"])
@pytest.mark.parametrize(
    "name",
    [
        "optimizer.step",
        "model.vision_tower.vision_model.embeddings.position_ids",
        "model.language_model.layers.0.self_attn.attn_bias",
    ],
)
def test_a_model_that_is_whole_without_a_tensor_is_said_to_be(name: str, family: str) -> None:
    config = FAMILIES[family]
    if family == "text":
        name = name.replace("vision_tower.", "").replace("language_model.", "")
    said = hint(with_shapes(tensors_of(config), {name: (1, 16)}, DType.I64), config)
    assert said.startswith("the model is whole without them: delete them")
    assert fits(tensors_of(config), config)


@pytest.mark.parametrize("module", ["self_attn.q_proj", "mlp.down_proj", "router.proj"])
def test_a_bias_that_no_linear_has_may_be_zero(module: str) -> None:
    config = FAMILIES["26B-A4B"]
    tensors, name = tensors_of(config), f"model.language_model.layers.0.{module}"
    rows = tensors[f"{name}.weight"].shape[:1]
    added = with_shapes(tensors, {f"{name}.bias": rows}, DType.BF16)
    (extra,) = resolve(added, Architecture.from_config(config)).extras
    assert (extra.source, extra.kind) == (f"{name}.bias", ExtraKind.ZEROS)
    wider = with_shapes(tensors, {f"{name}.bias": (rows[0] + 1,)}, DType.BF16)
    with pytest.raises(InputError, match="1 of the wrong shape"):
        resolve(wider, Architecture.from_config(config))
    norm = with_shapes(tensors, {"model.language_model.layers.0.input_layernorm.bias": rows}, DType.BF16)
    assert "whole without them" in hint(norm, config)


@pytest.mark.parametrize("family", ["31B", "12B", "text", "unified text"])
def test_a_head_that_is_missing_may_be_the_embedding(family: str) -> None:
    tied = FAMILIES[family] | {"tie_word_embeddings": True}
    untied = tied | {"tie_word_embeddings": False}
    said = hint(tensors_of(tied), untied)
    assert "if it is the embedding, set tie_word_embeddings to true in config.json" in said
    assert fits(tensors_of(tied), tied)


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


# ---- dtypes


@pytest.mark.parametrize("dtype", [DType.F64, DType.I64])
def test_weights_in_dtypes_that_no_engine_computes_in(dtype: DType) -> None:
    config = FAMILIES["31B"]
    tensors = {n: replace(i, dtype=dtype) if "norm" in n else i for n, i in tensors_of(config).items()}
    assert hint(tensors, config) == "load the model in bfloat16 and save it with `save_pretrained`"


# ---- names of engines and of other programs


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


# ---- where the decoder's keys stand


@pytest.mark.parametrize("family", ["31B", "12B"])
def test_the_model_type_is_that_of_what_the_config_describes(family: str) -> None:
    config = FAMILIES[family]
    whole, text = config["model_type"], config["text_config"]["model_type"]
    for wrong, right in (
        (config | {"model_type": text}, whole),
        ({**config["text_config"], "model_type": whole}, text),
    ):
        with pytest.raises(InputError, match="but the decoder's keys are ") as caught:
            Architecture.from_config(wrong)
        assert caught.value.hint.startswith(f"set model_type to {right}, ")
        Architecture.from_config(wrong | {"model_type": right})


def test_as_many_experts_run_as_there_are() -> None:
    config = with_text(FAMILIES["26B-A4B"], top_k_experts=8)
    with pytest.raises(InputError) as caught:
        Architecture.from_config(config)
    assert caught.value.offenders == ("text_config.top_k_experts: 8, expected 1 to 3",)


@pytest.mark.parametrize("family", ["31B", "text", "E2B"])
def test_layers_with_gaps_are_numbered_again(family: str) -> None:
    """As a tool leaves them that removes layers, and the config says how many are left."""
    config = FAMILIES[family]
    tensors = tensors_of(config)
    start = Architecture.from_config(config).text_prefix + "layers."
    last = Architecture.from_config(config).text.layers
    moved = {
        name.replace(f"{start}{number}.", f"{start}{number + 1}."): info
        for name, info in tensors.items()
        if (number := Name(name).decoder_layer) is not None and number >= len(last) - 2
    }
    rest = {name: info for name, info in tensors.items() if (Name(name).decoder_layer or 0) < len(last) - 2}
    gaps = {name: replace(info, name=name) for name, info in (rest | moved).items()}
    said = hint(gaps, config)
    assert said.startswith(f"layers are numbered with gaps: there is {len(last)}, but no {len(last) - 2}; ")
    assert said.endswith("number them from 0 on, in their order")
    numbers = sorted({number for name in gaps if (number := Name(name).decoder_layer) is not None})
    again = {}
    for name, info in gaps.items():
        if (number := Name(name).decoder_layer) is not None:
            name = name.replace(f"{start}{number}.", f"{start}{numbers.index(number)}.")  # noqa: PLW2901 -- renamed
        again[name] = replace(info, name=name)
    assert fits(again, config)


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


# ---- drafters


def test_a_drafter_of_a_model_of_another_width() -> None:
    config = FAMILIES["assistant"]
    other = config | {"backbone_hidden_size": 2 * config["backbone_hidden_size"]}
    assert f"set backbone_hidden_size to {other['backbone_hidden_size']} (it is" in hint(tensors_of(other), config)
    assert fits(tensors_of(other), other)


def test_a_drafter_without_centroids_scores_the_whole_vocabulary() -> None:
    config = FAMILIES["assistant"]
    tensors = without(tensors_of(config), "masked_embedding.")
    assert '"use_ordered_embeddings": false' in hint(tensors, config)
    assert fits(tensors, config | {"use_ordered_embeddings": False})
    assert "inspect" in hint(without(tensors_of(config), "masked_embedding.centroids"), config)


@pytest.mark.parametrize("wrong", [None, {}, {"05": {"head_dim": 256}}])
@pytest.mark.parametrize("family", ["31B", "E2B", "12B", "text", "assistant"])
def test_sizes_of_single_layers_that_do_not_fit_are_named(family: str, wrong: object) -> None:
    config = FAMILIES[family]
    architecture = Architecture.from_config(config)
    usual = {"head_dim": 256, "num_key_value_heads": config.get("text_config", config)["num_key_value_heads"]}
    sizes = {
        f"{number:02}": {key: value for key, value in own.items() if value != usual[key]}
        for number, layer in enumerate(architecture.text.layers)
        if (own := {"head_dim": layer.head_dim, "num_key_value_heads": layer.kv_heads}) != usual
    }
    saved = with_text(config, per_layer_config=sizes)
    assert Architecture.from_config(saved) == architecture
    said = hint(tensors_of(config), with_text(config, per_layer_config=wrong))
    key = "text_config.per_layer_config" if "text_config" in config else "per_layer_config"
    assert said.startswith(f"{key} does not fit ({'it is null, and ' if wrong is None else ''}the tensors show {{")
    assert fits(tensors_of(config), saved)

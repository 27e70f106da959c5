"""A refusal names the cause only where it is proved, and the remedy it names makes the source fit."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from helpers.refused import Tensors, fits, hint, tensors_of, with_text, without
from helpers.released_configs import FAMILIES, small

from g4convert.errors import InputError, UnsupportedError
from g4convert.gemma4 import Architecture, ExtraKind, Role, expected_weights, resolve
from g4convert.names import Name
from g4convert.tensors import DType, TensorInfo


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


def test_where_nothing_is_proved_nothing_is_claimed() -> None:
    tensors = tensors_of(small("31B"))
    del tensors["model.language_model.layers.2.mlp.up_proj.weight"]
    assert "inspect" in hint(tensors, small("31B"))
    strange = {"optimizer.step": TensorInfo("optimizer.step", DType.BF16, (1,))}
    assert "inspect" in hint({**tensors, **strange}, small("31B"))


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
    said = hint(tensors, config)
    assert f'"{key}": null' in said
    assert ("--layout text-only" in said) is (key == "vision_config") is ("which vLLM does not load" in said)
    assert fits(tensors, config, decoder_only=True)
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


@pytest.mark.parametrize("dtype", [DType.F64, DType.I64])
def test_weights_in_dtypes_that_no_engine_computes_in(dtype: DType) -> None:
    config = FAMILIES["31B"]
    tensors = {n: replace(i, dtype=dtype) if "norm" in n else i for n, i in tensors_of(config).items()}
    assert hint(tensors, config) == "load the model in bfloat16 and save it with `save_pretrained`"


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


def test_a_drafter_without_centroids_scores_the_whole_vocabulary() -> None:
    config = FAMILIES["assistant"]
    tensors = without(tensors_of(config), "masked_embedding.")
    assert '"use_ordered_embeddings": false' in hint(tensors, config)
    assert fits(tensors, config | {"use_ordered_embeddings": False})
    assert "inspect" in hint(without(tensors_of(config), "masked_embedding.centroids"), config)

"""Keys of a config that do not fit the tensors are named, and the value that is named makes the source fit."""

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
from helpers.refused import fits, hint, tensors_of, with_text
from helpers.released_configs import FAMILIES, Config, small

from g4convert.errors import InputError
from g4convert.gemma4 import Architecture


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
    if section:  # `model_patch_size` follows from two other keys
        config |= {section: {key: value for key, value in config[section].items() if key != "model_patch_size"}}
    whole = {**config, section: {**config[section], **true}} if section else {**config, **true}
    tensors = tensors_of(whole)
    said = hint(tensors, config)
    for key, value in true.items():
        assert f"{section}{'.' if section else ''}{key} to {json.dumps(value)}" in said
    assert fits(tensors, whole)


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


@pytest.mark.parametrize("family", ["31B", "12B", "text", "unified text"])
def test_a_head_that_is_missing_may_be_the_embedding(family: str) -> None:
    tied = FAMILIES[family] | {"tie_word_embeddings": True}
    untied = tied | {"tie_word_embeddings": False}
    said = hint(tensors_of(tied), untied)
    assert "if it is the embedding, set tie_word_embeddings to true in config.json" in said
    assert fits(tensors_of(tied), tied)


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


def test_a_drafter_of_a_model_of_another_width() -> None:
    config = FAMILIES["assistant"]
    other = config | {"backbone_hidden_size": 2 * config["backbone_hidden_size"]}
    assert f"set backbone_hidden_size to {other['backbone_hidden_size']} (it is" in hint(tensors_of(other), config)
    assert fits(tensors_of(other), other)


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

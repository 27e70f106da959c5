"""Models that an engine does not start with: its verdict is `no`, whatever is packed."""

import pytest
from conftest import Checkpoints
from helpers.headers import planned
from helpers.judged import NO, YES, verdict, verdicts_with_remedies
from helpers.released_configs import RELEASED, Config, assistant, released, small, text_only
from transformers import AutoConfig, Gemma4Config

from g4convert.engines.advice import raise_if_refused
from g4convert.engines.verdicts import verdicts
from g4convert.errors import GateError
from g4convert.planning.weights import make_planned_weights

WIDTHS = "layers with heads of several sizes"


def one_width(config: Config) -> Config:
    """A decoder whose layers all have the heads of its sliding layers."""
    return config | {"global_head_dim": config["head_dim"], "num_global_key_value_heads": config["num_key_value_heads"]}


@pytest.mark.parametrize("size", ["E2B", "26B-A4B", "31B"])
def test_sglang_takes_heads_of_several_sizes_only_from_a_whole_model(size: str) -> None:
    options = {"pack": ["attention", "mlp"]}
    weights = make_planned_weights(planned(small(size), **options, layout="text-only"))
    (found,) = verdicts_with_remedies(weights, ["sglang"], [2])
    assert (found.loads, found.tp, found.kernels) == (NO, 2, ())
    assert WIDTHS in found.told[0].line
    assert [one.text for one in found.ways] == ["quantize the whole model without `--layout text-only`"]
    assert verdict(weights, "vllm", 1).loads is YES
    assert verdict(make_planned_weights(planned(small(size), **options)), "sglang", 1).loads is YES


def test_sglang_takes_a_text_only_model_whose_layers_are_alike() -> None:
    assert verdict(make_planned_weights(planned(one_width(text_only("31B")))), "sglang", 1).loads is YES
    assert verdict(make_planned_weights(planned(assistant("31B"))), "sglang", 1).loads is YES


@pytest.mark.parametrize("family", ["text", "dense"])
def test_sizes_that_differ_by_layer_are_an_error_in_the_config_that_sglang_reads(
    family: str, checkpoints: Checkpoints
) -> None:
    config = AutoConfig.from_pretrained(checkpoints(family)).get_text_config()
    with pytest.raises(RuntimeError, match="per-layer attribute"):  # no AttributeError: the default does not help
        getattr(config, "head_dim", None)


def test_an_engine_that_does_not_start_leaves_the_advice_to_the_others() -> None:
    weights = make_planned_weights(planned(small("26B-A4B"), layout="text-only"))
    found = verdicts(weights, ["vllm", "sglang"], [4])
    with pytest.raises(GateError) as caught:
        raise_if_refused(weights, found, ["vllm", "sglang"], [4])
    assert "--pack attention" in caught.value.hint
    assert caught.value.hint.endswith("; quantize the whole model without `--layout text-only`")


def without(config: Config, place: str) -> Config:
    section, _, key = place.partition(".")
    return config | {section: {name: value for name, value in config[section].items() if name != key}}


@pytest.mark.parametrize("size", ["E2B", "31B", "12B"])
def test_a_model_without_vision_is_for_no_engine_that_builds_it(size: str) -> None:
    weights = make_planned_weights(planned(small(size) | {"vision_config": None}))
    vllm, sglang, transformers = verdicts_with_remedies(weights, ["vllm", "sglang", "transformers"], [1])
    assert "without a `vision_config`" in vllm.told[0].line
    assert [one.text for one in vllm.ways] == [
        "quantize the decoder alone, with `--layout text-only`",
        "put the vision part back, with its `vision_config`",
    ]
    assert sglang.loads is (YES if size == "12B" else NO)
    assert transformers.loads is YES
    assert verdict(make_planned_weights(planned(small("E2B") | {"audio_config": None})), "vllm", 1).loads is YES


@pytest.mark.parametrize("value", ["missing", None])
@pytest.mark.parametrize("size", ["E2B", "31B", "12B"])
def test_vllm_reads_how_many_embeddings_a_picture_has(size: str, value: object) -> None:
    key = "num_soft_tokens" if size == "12B" else "default_output_length"
    config = without(small(size), f"vision_config.{key}")
    if value is None:
        config["vision_config"][key] = None
    (found,) = verdicts_with_remedies(make_planned_weights(planned(config)), ["vllm"], [1])
    assert found.loads is NO
    assert f"config.json has no vision_config.{key}" in found.told[0].line
    assert [one.text for one in found.ways] == [f'write `"{key}": 280` in vision_config of config.json']
    assert verdict(make_planned_weights(planned(config)), "sglang", 1).loads is YES
    assert verdict(make_planned_weights(planned(config, layout="text-only")), "vllm", 1).loads is YES
    assert not hasattr(AutoConfig.for_model(**config).vision_config, key) or value is None  # no default


UNIFIED = {
    "text_config.hidden_size_per_layer_input": 0,
    "vision_config.model_patch_size": 48,
    "vision_config.mm_embed_dim": 3840,
    "vision_config.mm_posemb_size": 1120,
    "vision_config.output_proj_dims": 3840,
    "audio_config.output_proj_dims": 640,
}
"""Keys that SGLang reads in the config of a unified model, with their released values."""


@pytest.mark.parametrize("place", UNIFIED)
def test_sglang_reads_a_unified_config_as_that_of_a_model_with_towers(place: str) -> None:
    section, _, key = place.partition(".")
    config = without(released("12B"), place)
    (found,) = verdicts_with_remedies(make_planned_weights(planned(config)), ["sglang"], [1])
    assert found.loads is NO
    assert [one.text for one in found.ways] == [f'write `"{key}": {UNIFIED[place]}` in {section} of config.json']
    read = Gemma4Config(**{name: value for name, value in config.items() if name != "model_type"})
    assert getattr(getattr(read, section), key, None) != UNIFIED[place]
    assert verdict(make_planned_weights(planned(config)), "vllm", 1).loads is YES


def test_all_keys_that_are_missing_are_named_at_once() -> None:
    config = released("12B")
    for place in UNIFIED:
        config = without(config, place)
    (found,) = verdicts_with_remedies(make_planned_weights(planned(config)), ["sglang"], [1])
    (way,) = found.ways
    assert way.text == (
        'write `"hidden_size_per_layer_input": 0` in text_config and `"model_patch_size": 48, "mm_embed_dim": 3840, '
        '"mm_posemb_size": 1120, "output_proj_dims": 3840` in vision_config and `"output_proj_dims": 640` in '
        "audio_config of config.json"
    )


@pytest.mark.parametrize("size", RELEASED)
def test_the_released_configs_lack_nothing(size: str) -> None:
    weights = make_planned_weights(planned(released(size), pack=["attention", "mlp"]))
    assert {one.loads for one in verdicts(weights, tps=[1])} == {YES}


def test_engines_have_no_class_for_a_unified_decoder_alone() -> None:
    config = text_only("12B")
    weights = make_planned_weights(planned(config))
    vllm, sglang, transformers = verdicts_with_remedies(weights, ["vllm", "sglang", "transformers"], [1])
    assert "no class Gemma4UnifiedForCausalLM" in vllm.told[0].line
    assert [one.text.partition(",")[0] for one in vllm.ways] == ["quantize the source with `--layout text-only`"]
    assert (sglang.loads, transformers.loads) == (NO, YES)
    assert WIDTHS in sglang.told[0].line
    (alike,) = verdicts_with_remedies(make_planned_weights(planned(one_width(config))), ["sglang"], [1])
    assert "no class Gemma4UnifiedForCausalLM" in alike.told[0].line
    for source in (config, small("12B")):
        assert verdict(make_planned_weights(planned(source, layout="text-only")), "vllm", 1).loads is YES
    assert verdict(make_planned_weights(planned(one_width(config), layout="text-only")), "sglang", 1).loads is YES

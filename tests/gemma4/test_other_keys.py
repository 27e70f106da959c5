"""Keys of a config that decide no tensor: what transformers' classes refuse is refused, and nothing else."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import pytest
from helpers.grids import two_when_quick
from helpers.released_configs import FAMILIES, Config

from g4convert.errors import InputError
from g4convert.forward.models import quiet_transformers
from g4convert.gemma4 import Architecture
from g4convert.gemma4.other_keys import _ACTIVATIONS, _TABLE

VALUES = (None, "1", "text", 1.5, True, [1], ["1"], {}, 0, 30)
RIGHT = {
    "size": [16],
    "whole": [0, 3],
    "whole or null": [None, 3],
    "number": [0.5],
    "number or null": [None, 0.5],
    "share": [0.02, 1.0],
    "any number or null": [None, 0, 0.5],
    "activation": ["gelu_pytorch_tanh", "silu"],
    "flag": [True, False],
    "flag or null": [None, False],
    "tokens": [None, 1, [1, 106]],
    "attention": [None, "all", "vision"],
    "object or null": [None],
}
DTYPES = {
    "torch.bfloat16": "bfloat16", "bf16": "bfloat16", "fp16": "float16", "auto": "bfloat16, float16 or float32",
}  # fmt: skip
SECTIONS = {
    "whole model": "", "drafter": "", "decoder": "text_config", "unified decoder": "text_config",
    "vision": "vision_config", "audio": "audio_config", "unified": "vision_config",
}  # fmt: skip
FAMILY = ("12B", "E2B", "text", "assistant")


def changed(config: Config, where: str, key: str, value: object) -> Config:
    other = deepcopy(config)
    (other[where] if where else other)[key] = value
    return other


def refusal(config: Config) -> str:
    """Return why a config is refused; empty if it is read."""
    try:
        Architecture.from_config(config)
    except InputError as error:
        return "\n".join(error.offenders)
    return ""


def transformers_reads(config: Config) -> bool:
    from transformers import AutoConfig  # noqa: PLC0415 -- takes a second

    values = json.loads(json.dumps(config))
    try:
        with quiet_transformers():
            AutoConfig.for_model(values.pop("model_type"), **values)
    except Exception:  # noqa: BLE001 -- whatever it is, the config is not read
        return False
    return True


def fields(config: Config) -> Iterator[tuple[str, str]]:
    """Yield section and name of every key that transformers' classes check, but those that all models have."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig  # noqa: PLC0415 -- takes a second

    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    for where in ("", "text_config", "vision_config", "audio_config"):
        section = config.get(where) if where else config
        if isinstance(section, dict):
            kind = section.get("model_type") or f"{config['model_type']}_{where.removesuffix('_config')}"
            known = dataclasses.fields(CONFIG_MAPPING[kind])
            yield from ((where, field.name) for field in known if field.name not in common)


@pytest.mark.parametrize("family", two_when_quick(FAMILY))
def test_what_transformers_refuses_is_refused_by_key(family: str) -> None:
    config = FAMILIES[family]
    assert transformers_reads(config)
    assert not refusal(config)
    count = 0
    for where, key in fields(config):
        for value in VALUES:
            other = changed(config, where, key, value)
            if not transformers_reads(other):
                said = refusal(other)
                assert key in said or "entries for 30 layers" in said, (where, key, value)
                count += 1
    assert count > 100


@pytest.mark.parametrize(("part", "kinds"), _TABLE.items())
def test_right_values_are_read(part: str, kinds: Mapping[str, Sequence[str]]) -> None:
    config = FAMILIES[
        {"unified": "12B", "unified decoder": "12B", "drafter": "assistant", "decoder": "31B"}.get(part, "E2B")
    ]
    where = SECTIONS[part]
    for kind, keys in kinds.items():
        for key in keys:
            for value in RIGHT[kind]:
                assert not refusal(changed(config, where, key, value)), (key, value)


@pytest.mark.parametrize("where", ["", "text_config", "vision_config"])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(("name", "expected"), DTYPES.items())
def test_a_dtype_that_torch_does_not_have(where: str, key: str, name: str, expected: str) -> None:
    config = changed(changed(FAMILIES["E2B"], where, "dtype", None), where, key, name)
    assert not transformers_reads(config)
    path = f"{where}.{key}".removeprefix(".")
    assert refusal(config) == f"{path}: {name!r}, expected {expected}"
    assert not refusal(changed(config, where, key, expected.partition(",")[0]))


def test_activations_are_those_of_transformers() -> None:
    from transformers.activations import ACT2CLS  # noqa: PLC0415 -- takes a second

    assert sorted(ACT2CLS) == sorted(_ACTIVATIONS)


@pytest.mark.parametrize(
    ("where", "key", "usual"),
    [
        ("text_config", "hidden_activation", "gelu_pytorch_tanh"),
        ("vision_config", "hidden_activation", "gelu_pytorch_tanh"),
        ("audio_config", "hidden_act", "silu"),
    ],
)
def test_an_activation_that_no_engine_has(where: str, key: str, usual: str) -> None:
    said = refusal(changed(FAMILIES["E2B"], where, key, "gelu_tanh"))
    assert said == f"{where}.{key}: 'gelu_tanh', expected {usual!r}: transformers has no such activation"


@pytest.mark.parametrize("key", ["hidden_size_per_layer_input", "vocab_size_per_layer_input"])
def test_a_drafter_says_that_it_has_no_per_layer_embeddings(key: str) -> None:
    config = deepcopy(FAMILIES["assistant"])
    del config["text_config"][key]
    assert not transformers_reads(config)
    assert refusal(config) == f"text_config.{key}: missing, an assistant has 0"


@pytest.mark.parametrize("key", ["attention_k_eq_v", "enable_moe_block", "use_double_wide_mlp", "attention_bias"])
def test_a_flag_is_not_null(key: str) -> None:
    with pytest.raises(InputError) as caught:
        Architecture.from_config(changed(FAMILIES["E2B"], "text_config", key, None))
    assert caught.value.offenders == (f"text_config.{key}: null, expected true or false",)


def test_no_number_is_nan() -> None:
    """It is read, and computes nothing else with it."""
    with pytest.raises(InputError) as caught:
        Architecture.from_config(changed(FAMILIES["E2B"], "text_config", "rms_norm_eps", float("nan")))
    assert caught.value.offenders == ("text_config.rms_norm_eps: nan, expected a number with a decimal point",)

"""Keys of a config that decide no tensor: what transformers' classes refuse is refused, and nothing else."""

import json
from collections.abc import Iterator
from copy import deepcopy

import pytest
from helpers.released_configs import FAMILIES, Config

from g4convert.errors import InputError
from g4convert.forward.models import quiet_transformers
from g4convert.gemma4 import Architecture
from g4convert.gemma4.other_keys import _TABLE

WRONG = {
    "size": [None, "1", 1.5],
    "number": [None, "1e-06"],
    "number or null": ["30.0"],
    "text": [None, 3],
    "flag": [None, "true"],
}
RIGHT = {"size": 16, "number": 0.5, "number or null": None, "text": "gelu_pytorch_tanh", "flag": True}


SECTIONS = {"decoder": "text_config", "vision": "vision_config", "audio": "audio_config", "unified": "vision_config"}


def changed(config: Config, where: str, key: str, value: object) -> Config:
    other = deepcopy(config)
    other[where][key] = value
    return other


def keys() -> Iterator[tuple[str, str, str]]:
    yield from ((part, kind, key) for part, kinds in _TABLE.items() for kind, of in kinds.items() for key in of)


@pytest.mark.parametrize("part", _TABLE)
def test_a_value_of_another_type_is_refused_where_transformers_refuses_it(part: str) -> None:
    from transformers import AutoConfig  # noqa: PLC0415 -- takes a second

    config = FAMILIES["12B" if part == "unified" else "E2B"]
    where = SECTIONS[part]

    def refused(value: object, key: str) -> bool:
        kind = config["model_type"]
        other = {name: one for name, one in changed(config, where, key, value).items() if name != "model_type"}
        try:
            with quiet_transformers():
                AutoConfig.for_model(kind, **json.loads(json.dumps(other)))
        except Exception:  # noqa: BLE001 -- whatever it is, the config is not read
            return True
        return False

    for _, kind, key in (one for one in keys() if one[0] == part):
        assert Architecture.from_config(changed(config, where, key, RIGHT[kind]))
        assert not refused(RIGHT[kind], key), key
        for value in WRONG[kind]:
            assert refused(value, key), (key, value)
            with pytest.raises(InputError) as caught:
                Architecture.from_config(changed(config, where, key, value))
            assert caught.value.offenders[0].startswith(f"{where}.{key}: {'null' if value is None else repr(value)}, ")


@pytest.mark.parametrize("key", ["attention_k_eq_v", "enable_moe_block", "use_double_wide_mlp", "attention_bias"])
def test_a_flag_is_not_null(key: str) -> None:
    with pytest.raises(InputError) as caught:
        Architecture.from_config(changed(FAMILIES["E2B"], "text_config", key, None))
    assert caught.value.offenders == (f"text_config.{key}: null, expected true or false",)


def test_no_number_is_nan() -> None:
    """It is read, and computes nothing else with it."""
    with pytest.raises(InputError) as caught:
        Architecture.from_config(changed(FAMILIES["E2B"], "text_config", "rms_norm_eps", float("nan")))
    assert caught.value.offenders == ("text_config.rms_norm_eps: nan, expected a number",)

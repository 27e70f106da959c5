"""Rotary embeddings of a config: what no engine computes is refused, and transformers' own class is the measure."""

import warnings
from typing import Any

import pytest
from helpers.released_configs import FAMILIES, Config
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding

from g4convert.errors import InputError
from g4convert.gemma4 import Architecture

SLIDING = {"rope_type": "default", "rope_theta": 10000.0}
FULL = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 131072}
LINEAR = {"rope_type": "linear", "factor": 8.0}


def both(full: dict[str, Any], sliding: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"full_attention": full, "sliding_attention": sliding or SLIDING}


def computed(text: Config) -> bool:
    """Return whether transformers makes an angle for each half of each head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        config = Gemma4TextConfig(**text)
        try:
            made = Gemma4TextRotaryEmbedding(config)
        except (KeyError, TypeError):
            return False
    heads = {kind: config.per_layer_config[kind].head_dim for kind in set(config.layer_types)}
    return all(getattr(made, f"{kind}_inv_freq").numel() == size // 2 for kind, size in heads.items())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, ""),
        ({"rope_parameters": None}, ""),
        ({"rope_parameters": both(FULL, LINEAR | {"rope_theta": 10000.0})}, ""),
        ({"rope_scaling": both(FULL)}, ""),
        ({"rope_parameters": both(FULL | {"rope_type": "default"})}, ""),
        ({"rope_parameters": both(YARN | {"rope_theta": 1e6})}, ""),
        ({"rope_scaling": None}, "rope_scaling: replaces rope_parameters"),
        ({"rope_scaling": LINEAR}, "rope_scaling: replaces rope_parameters"),
        ({"rope_scaling": YARN}, "rope_scaling: replaces rope_parameters"),
        ({"rope_scaling": {"full_attention": FULL}}, "rope_scaling: no sliding_attention"),
        ({"rope_parameters": YARN | {"rope_theta": 1e6}}, "no full_attention and no sliding_attention"),
        ({"rope_parameters": both(FULL | YARN)}, "full_attention.rope_type: 'yarn', expected 'proportional'"),
        ({"rope_parameters": both(FULL | LINEAR)}, "full_attention.rope_type: 'linear', expected 'proportional'"),
    ],
)
def test_rotations_that_transformers_does_not_compute_are_refused(keys: Config, said: str) -> None:
    config = FAMILIES["31B"]
    text = config["text_config"] | keys
    assert computed(text) is not bool(said)
    if not said:
        Architecture.from_config(config | {"text_config": text})
        return
    with pytest.raises(InputError) as caught:
        Architecture.from_config(config | {"text_config": text})
    (line,) = caught.value.offenders
    assert said in line
    assert line.startswith("text_config.rope_")
    assert caught.value.hint.startswith("compare with the config.json")


def test_a_model_of_one_kind_of_layer_needs_one_part() -> None:
    config = FAMILIES["31B"]
    kinds = ["full_attention"] * config["text_config"]["num_hidden_layers"]
    text = config["text_config"] | {"layer_types": kinds, "rope_parameters": {"full_attention": FULL}}
    assert computed(text)
    assert Architecture.from_config(config | {"text_config": text}).text.layers[0].full

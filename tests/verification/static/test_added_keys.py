"""Keys that the source's config leaves out: those that mean the same are let be, the others are another model's."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.grids import two_when_quick
from helpers.released_configs import RELEASED, released
from transformers import CONFIG_MAPPING, AutoConfig

from g4convert.gemma4 import defaults
from g4convert.report import Severity
from g4convert.verification.static.config import config_keys

OF_ENGINES = {"attn_logit_softcapping", "is_causal", "use_second_mlp_block"}
"""Keys that engines read and no configuration class has."""


@pytest.mark.parametrize("model_type", sorted(defaults.DEFAULTS))
def test_a_default_is_that_of_the_configuration_class(model_type: str) -> None:
    table = defaults.DEFAULTS[model_type]
    fields = {field.name: field.default for field in dataclasses.fields(CONFIG_MAPPING[model_type])}
    wrong = {key: fields.get(key) for key, values in table.items() if key in fields and fields[key] not in values}
    assert wrong == {}
    assert {*table} - {*fields} <= OF_ENGINES
    if "rope_parameters" in fields:
        assert CONFIG_MAPPING[model_type]().rope_parameters in table["rope_parameters"]


def added(saved: dict[str, Any], source: dict[str, Any]) -> list[str]:
    findings = config_keys(saved, source, text_only=False, has_head=False)
    return [one.line for one in findings if one.severity is not Severity.INFO and ", added" in one.found]


@pytest.mark.parametrize("size", two_when_quick(RELEASED))
def test_what_transformers_adds_when_it_saves_a_config_means_the_same(size: str, tmp_path: Path) -> None:
    source = released(size)
    (tmp_path / "config.json").write_text(json.dumps(source))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {*saved["text_config"]} - {*source["text_config"]}
    assert added(saved, source) == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "rms_norm_eps", 1e-5),
        ("text_config", "use_second_mlp_block", True),
        ("text_config", "rope_theta", 500.0),
        ("text_config", "attention_chunk_size", 8),
        ("vision_config", "pooling_kernel_size", 2),
        ("audio_config", "attention_logit_cap", 30.0),
        ("", "is_causal", False),
        ("", "image_token_id", 7),
        ("", "eos_token_id", 5),
    ],
)
def test_an_added_key_that_changes_answers_fails(section: str, key: str, value: object) -> None:
    source, saved = released("E2B"), released("E2B")
    for config in (source, saved):
        (config[section] if section else config).pop(key, None)
    assert added(saved, source) == []
    (saved[section] if section else saved)[key] = value
    (line,) = added(saved, source)
    assert line.startswith(f"{section}.{key}: ".lstrip("."))
    assert ", added, expected left out, as in the source" in line


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("text_config", "attention_dropout", 0.1), ("text_config", "use_cache", False), ("", "unsloth_fixed", True)],
)
def test_an_added_key_without_effect_is_mentioned(section: str, key: str, value: object) -> None:
    source, saved = released("E2B"), released("E2B")
    for config in (source, saved):
        (config[section] if section else config).pop(key, None)
    (saved[section] if section else saved)[key] = value
    assert added(saved, source) == []
    assert any(one.subject.endswith(key) for one in config_keys(saved, source, text_only=False, has_head=False))

"""Quantization sections are read as compressed-tensors and the loaders read them, and strange ones do no harm."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import (
    QuantizationArgs,
)
from compressed_tensors.utils.match import match_name
from helpers.described import TEXT, UNIFIED, quantized
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoConfig

from g4convert.checkpoint.arguments import _DTYPES, refusal_reasons, type_faults
from g4convert.checkpoint.declared import declared_in
from g4convert.checkpoint.entries import Entries
from g4convert.checkpoint.sections import section_of

ENTRIES = st.sampled_from(
    ["a.b", "a", "re:a", "re:.*b$", "re:a.b", "a.*", "re:(", "Linear", "re:", "", "b", "re:b", "A", "a.b.c"]
)


@given(entry=ENTRIES, name=st.sampled_from(["a.b", "a", "b", "a.b.c", "axb", "x.a.b"]))
def test_entries_match_as_in_compressed_tensors(entry: str, name: str) -> None:
    found = Entries.of("compressed-tensors", [entry]).hold(name, frozenset())
    try:
        assert found == match_name(name, entry)
    except re.error:
        assert not found


WEIGHT_KEYS: dict[str, list[object]] = {
    "num_bits": [None, 4, 8], "type": [None, "int", "INT", "int4"], "symmetric": [None, True, False],
    "strategy": [None, "group", "Group", "channel", "tensor", "block", "token", "row"],
    "group_size": [None, -2, -1, 0, 32], "block_structure": [None, [128, 128]], "observer_kwargs": [None, {}, 5],
    "actorder": [None, "weight", "static", "Weight", "none"], "group": [32], "dynamic": [False, True, "local", "x"],
    "scale_dtype": [None, "torch.bfloat16", "x", 5], "zp_dtype": [None, "int8", "torch.nothing"],
    "observer": [None, "mse", 5],
}  # fmt: skip


def test_dtypes_are_those_of_torch() -> None:
    found = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
    assert found <= _DTYPES
    assert _DTYPES - found <= {"bcomplex32"}  # from torch 2.14 on


@settings(max_examples=500)
@given(
    given_=st.fixed_dictionaries(
        {},
        optional={key: st.sampled_from([*of, {}, [4]]) for key, of in WEIGHT_KEYS.items() if key != "observer_kwargs"},
    )
)
def test_arguments_are_refused_as_in_compressed_tensors(given_: dict[str, Any]) -> None:
    refusals = [*refusal_reasons(given_), *type_faults(given_)]
    try:
        QuantizationArgs.model_validate(given_)
    except (ValidationError, TypeError):
        assert refusals
    else:
        assert not refusals


@settings(max_examples=500)
@given(weights=st.fixed_dictionaries({}, optional={key: st.sampled_from(of) for key, of in WEIGHT_KEYS.items()}))
def test_weights_mean_what_compressed_tensors_makes_of_them(weights: dict[str, Any]) -> None:
    declared = declared_in(quantized(TEXT, [], config_groups={"g": {"targets": ["Linear"], "weights": weights}}))
    assert declared is not None
    (group,) = declared.groups
    try:
        args = QuantizationArgs.model_validate(weights)
    except ValidationError:
        assert declared.faults
        return
    assert not declared.faults
    assert (group.num_bits, group.kind, group.symmetric, group.strategy) == (
        args.num_bits,
        args.type,
        args.symmetric,
        args.strategy,
    )
    assert group.group_size == (args.group_size if args.strategy == "group" else None)
    assert group.implied <= {"num_bits", "symmetric", "strategy"} - {key for key, value in weights.items() if value}


PLACES = {
    "quantization_config": True,
    "text_config.quantization_config": True,
    "compression_config": False,
    "text_config.compression_config": False,
}


@pytest.mark.parametrize("places", [pair for n in (1, 2) for pair in combinations(PLACES, n)])
def test_the_section_is_the_one_that_loaders_take(places: tuple[str, ...], tmp_path: Path) -> None:
    config: dict[str, Any] = {**UNIFIED, "text_config": dict(UNIFIED["text_config"])}
    for place in places:
        holder = config["text_config"] if place.startswith("text_config.") else config
        holder[place.rpartition(".")[2]] = {"quant_method": "compressed-tensors", "ignore": [place]}
    place, section = section_of(config)
    assert (place, section["ignore"]) == (places[0], [places[0]])

    (tmp_path / "config.json").write_text(json.dumps(config))
    read = AutoConfig.from_pretrained(tmp_path)
    taken = getattr(read, "quantization_config", None) or getattr(read.get_text_config(), "quantization_config", None)
    assert (taken is not None) == PLACES[place]
    assert taken is None or taken["ignore"] == [place]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["quant_method", "config_groups", "ignore", "format", "bits", "group_size", "sym", "dynamic",
     "extra_config", "modules_to_not_convert", "targets", "weights", "num_bits", "strategy",
     "input_activations"]
)  # fmt: skip


SECTIONS = st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON)))


@given(section=SECTIONS | JSON)
def test_a_strange_section_is_no_reason_to_fail(section: object) -> None:
    declared = declared_in({"quantization_config": section})
    assert (declared is None) == (section is None)


@pytest.mark.parametrize(
    "blocks",
    [
        {"block_name_to_quantize": "model.language_model.layers,model.extra"},
        {"block_name_to_quantize": ["model.language_model.layers", "model.extra"]},
        {"to_quant_block_names": ["model.language_model.layers", "model.extra"]},
    ],
)
def test_blocks_of_auto_round_are_what_it_quantizes(blocks: dict[str, object]) -> None:
    section = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, **blocks}
    declared = declared_in({"quantization_config": section})
    assert declared is not None
    (group,) = declared.groups
    assert group.targets == ("model.language_model.layers*", "model.extra*")

    def renamed(name: str) -> str:
        return name.replace("model.language_model.", "language_model.model.")

    for rename, layers in ((str, "model.language_model.layers"), (renamed, "language_model.model.layers")):
        entries = Entries.of("auto-round", group.targets, rename)
        assert entries.hold(f"{layers}.0.mlp.up_proj", {"Linear"})
        assert not entries.hold("model.vision_tower.encoder.layers.0.mlp.up_proj", {"Linear"})
        assert not entries.hold("lm_head", {"Linear"})


@given(method=st.sampled_from(["awq", "gptq", "auto-round", "modelopt"]), section=st.dictionaries(KEYS, JSON))
def test_a_strange_single_scheme_is_no_reason_to_fail(method: str, section: dict[str, Any]) -> None:
    assert declared_in({"quantization_config": {**section, "quant_method": method}}) is not None

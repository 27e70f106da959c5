"""Names say what they name, and stay text."""

import json
import re

import pytest
from helpers.released_configs import FAMILIES

from g4convert.gemma4 import Architecture, Role, expected_weights
from g4convert.names import Name

EXPERT = Name("model.language_model.layers.3.experts.7.up_proj.weight")
TOWER = Name("model.vision_tower.encoder.layers.2.self_attn.q_proj.linear.weight")


def test_the_parts_of_an_expert() -> None:
    assert (EXPERT.layer, EXPERT.decoder_layer, EXPERT.expert, EXPERT.projection) == (3, 3, 7, "up_proj")
    assert EXPERT.module == "model.language_model.layers.3.experts.7.up_proj" == EXPERT.owner
    assert EXPERT.experts == "model.language_model.layers.3.experts"
    assert EXPERT.in_experts == "7.up_proj.weight"
    assert EXPERT.kind == "model.language_model.layers.*.experts.*.up_proj.weight"
    assert EXPERT.in_layer == "experts.7.up_proj.weight"
    assert EXPERT.last == "weight"


def test_a_tower_has_layers_that_are_not_the_decoders() -> None:
    assert (TOWER.layer, TOWER.decoder_layer, TOWER.expert, TOWER.projection) == (2, None, None, "q_proj")
    assert TOWER.in_layer == TOWER
    assert TOWER.in_any_layer == "self_attn.q_proj.linear.weight"
    assert TOWER.unclipped == "model.vision_tower.encoder.layers.2.self_attn.q_proj"
    assert not TOWER.experts
    assert not TOWER.in_experts


@pytest.mark.parametrize("name", ["lm_head", "layers", "layers.x.y", "experts", "", "a.layers.", "my_experts.3.x"])
def test_what_has_no_number_has_none(name: str) -> None:
    assert (Name(name).layer, Name(name).expert) == (None, None)


def test_owners_and_ends() -> None:
    assert [*Name("a.b.c").owners()] == ["a.b", "a"]
    assert (Name("a.b.c").below("a"), Name("a.b.c").below("a.b.c"), Name("ab.c").below("a")) == ("b.c", None, None)
    assert [*Name("a.b.c").ends()] == ["a.b.c", "b.c", "c"]
    assert [*Name("").owners(), *Name("").ends()] == []


def test_a_name_is_text() -> None:
    assert {EXPERT: 1}[str(EXPERT)] == 1
    assert json.loads(json.dumps({EXPERT: EXPERT.module})) == {str(EXPERT): str(EXPERT.module)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_expected_name_says_its_numbers(family: str) -> None:
    for name, expected in expected_weights(Architecture.from_config(FAMILIES[family])).items():
        one, numbers = Name(name), [int(part) for part in re.findall(r"(?<=\.)\d+(?=\.)", name)]
        assert one.kind.split(".").count("*") == len(numbers)
        if one.layer is not None:
            assert numbers[0] == one.layer
        assert (one.expert is not None) == (expected.role is Role.EXPERTS)
        assert not expected.linear or f"{one.module}.weight" == name

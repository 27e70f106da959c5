"""Options of the command line that give a recipe again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from g4convert.planning.recipe import Recipe
from g4convert.planning.recipe_files import load, load_shipped
from g4convert.planning.recipe_options import find_options, read_recorded

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", load_shipped())
def test_a_shipped_recipe_is_its_name(name: str) -> None:
    assert find_options(load(name).recipe) == ("" if name == "w4a16-g32" else f" -r {name}")


@pytest.mark.parametrize(
    ("name", "values", "options"),
    [
        ("w4a16-g32", {"group_size": "channel"}, " --group-size channel"),
        ("w4a16-g32", {"num_bits": 8, "assistant": "pack"}, " -r w8a16-g32 --assistant pack"),
        ("text-only", {"method": "gptq"}, " -r w4a16-g32-gptq --layout text-only"),
        ("w4a16-g32", {"pack": ["mlp", "attention"]}, " --pack mlp --pack attention"),
        ("w4a16-g32", {"bits": ["lm_head=8"], "signed": False}, " --positive --bits lm_head=8"),
        ("w4a16-g32-tables8", {"bits": ["lm_head=8"]}, " -r w4a16-g32-tables8 --bits lm_head=8"),
        (
            "w4a16-g32",
            {"max_shard_size": "500MB", "engines": ["vllm"], "leave": ["*.png"]},
            " --max-shard-size 500MB --engine vllm --leave '*.png'",
        ),
    ],
)
def test_options_give_the_recipe_again(name: str, values: dict[str, Any], options: str) -> None:
    assert find_options(load(name, values).recipe) == options


def test_rules_need_their_file(tmp_path: Path) -> None:
    file = tmp_path / "mixed.yaml"
    file.write_text("extends: w4a16-g32\nrules: [{layers: 0, bits: 8}]\n")
    recipe = load(str(file), {"layout": "text-only"}).recipe
    assert find_options(recipe) is None
    assert find_options(recipe, str(file)) == f" -r {file} --layout text-only"


def test_what_a_record_has_is_read_as_far_as_it_is_valid() -> None:
    recorded = {"name": "mine", **load("w8a16-g32").settings()}
    assert read_recorded(recorded) == Recipe.model_validate(load("w8a16-g32").settings())
    assert read_recorded({}) is None
    assert read_recorded({"num_bits": 5}) is None

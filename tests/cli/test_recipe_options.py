"""Options that override a recipe, in `plan` and `quantize`, and the command `recipe`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from helpers.grids import covering
from helpers.program import Program, g4convert

from g4convert.planning.recipe import Recipe
from g4convert.planning.recipe_files import load_shipped

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

__all__ = ["g4convert"]


OPTIONS_OF_A_RECIPE = [
    ("--num-bits", "8", "num_bits"),
    ("--group-size", "64", "group_size"),
    ("--method", "minmax", "method"),
    ("--positive", None, "signed"),
    ("--pack", "mlp", "pack"),
    ("--bits", "mlp=8", "bits"),
    ("--kv-shared", "keep", "kv_shared"),
    ("--assistant", "pack", "assistant"),
    ("--layout", "text-only", "layout"),
    ("--max-shard-size", "300KB", "max_shard_size"),
]


def given(option: str, value: str | None) -> tuple[str, ...]:
    return (option,) if value is None else (option, value)


@pytest.mark.parametrize(("option", "value", "key"), OPTIONS_OF_A_RECIPE)
def test_options_override_the_recipe(option: str, value: str | None, key: str, g4convert: Program) -> None:
    for command in ("plan", "quantize"):
        before = json.loads(g4convert(command, "x", "--show-config", "--json").out)
        after = json.loads(g4convert(command, "x", "--show-config", "--json", *given(option, value)).out)
        assert after.pop(key) == {
            "value": Recipe(**{key: after_value(key, value)}).model_dump(mode="json")[key],
            "from": option,
        }
        before.pop(key)
        assert after == before


def after_value(key: str, value: str | None) -> object:
    if key == "num_bits":
        return 8
    return {"pack": [value], "signed": False, "bits": {"mlp": 8}}.get(key, value)


@pytest.mark.parametrize(
    ("command", "option", "value", "key"),
    covering((command, *row) for row in OPTIONS_OF_A_RECIPE for command in ("plan", "quantize")),
)
def test_options_change_the_plan(  # noqa: PLR0913, PLR0917 - a table and what it is run on
    option: str, value: str | None, key: str, command: str, checkpoints: Checkpoints, g4convert: Program, tmp_path: Path
) -> None:
    source = checkpoints({"assistant": "assistant"}.get(key, "e2b"))
    rest = ["-o", tmp_path / "out", "--dry-run"] if command == "quantize" else []
    plans = [json.loads(g4convert(command, source, "--json", *rest, *more).out) for more in ((), given(option, value))]
    assert plans[0]["recipe"].pop(key) != plans[1]["recipe"].pop(key)
    if key not in {"method", "signed", "kv_shared"}:  # only the bytes depend on them, or the source has none
        assert plans[0]["output"] != plans[1]["output"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.wide
def test_quantize_options_change_the_bytes(checkpoints: Checkpoints, g4convert: Program, tmp_path: Path) -> None:
    runs: dict[str, tuple[str, ...]] = {
        "mse": ("--method", "mse"),
        "positive": ("--method", "mse", "--positive"),
        "minmax": ("--method", "minmax"),
        "lattice": ("-r", "qat-q4_0"),
    }
    errors = {}
    for name, options in runs.items():
        ran = g4convert("quantize", checkpoints("text"), "-o", tmp_path / name, "--json", "--workers", 2, *options)
        assert ran.status == 0, ran.err
        errors[name] = json.loads(ran.out)["total"]["relative_error"]
    assert errors["mse"] < errors["positive"] < errors["minmax"]
    assert json.loads((tmp_path / "lattice" / "g4convert.json").read_text())["recipe"]["method"] == "lattice"


def test_recipe_option_takes_a_name_or_a_path(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("num_bits: 8\n")
    named = json.loads(g4convert("plan", moe, "-r", "w8a16-g32", "--json").out)
    by_path = json.loads(g4convert("plan", moe, "--recipe", tmp_path / "mine.yaml", "--json").out)
    assert named["output"] == by_path["output"]
    assert named["recipe"]["name"] == "w8a16-g32"


def test_show_config_says_where_values_come_from(g4convert: Program) -> None:
    rows = {
        line.split()[0]: line
        for line in g4convert("plan", "x", "-r", "w8a16-g32", "--method", "mse", "--show-config").out.splitlines()
    }
    assert rows["num_bits"].endswith("recipe w8a16-g32")
    assert rows["group_size"].endswith("recipe w4a16-g32")
    assert rows["method"].endswith("--method")
    assert rows["layout"].endswith("default")
    assert "5000000000 (5.00 GB)" in rows["max_shard_size"]
    assert set(rows) == {"setting", *Recipe.model_fields} - {"description"}


def test_recipe_commands(g4convert: Program) -> None:
    listed = g4convert("recipe", "list").out
    assert [line.split()[0] for line in listed.splitlines()] == list(load_shipped())
    assert json.loads(g4convert("recipe", "list", "--json").out).keys() == load_shipped().keys()
    assert g4convert("recipe", "show", "text-only").out.startswith("# g4convert quantize MODEL -o OUT -r text-only\n")
    checked = g4convert("recipe", "check", "text-only").out
    assert ["layout", "text-only", "recipe", "text-only"] in [line.split() for line in checked.splitlines()]
    assert json.loads(g4convert("recipe", "check", "text-only", "--json").out)["layout"]["from"] == "recipe text-only"
    assert json.loads(g4convert("recipe", "schema").out)["additionalProperties"] is False

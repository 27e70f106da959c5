"""Recipes: where values come from, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml

from g4convert.errors import UsageError
from g4convert.planning.recipe import DEFAULT, Recipe, make_schema
from g4convert.planning.recipe_files import load, load_shipped, read_source


def test_every_shipped_recipe_loads_and_starts_with_the_command_that_runs_it() -> None:
    assert set(load_shipped()) == {
        "qat-q4_0",
        "text-only",
        "w4a16-experts-only",
        "w4a16-g128",
        "w4a16-g128-best",
        "w4a16-g128-gptq",
        "w4a16-g128-imatrix",
        "w4a16-g32",
        "w4a16-g32-best",
        "w4a16-g32-gptq",
        "w4a16-g32-head8",
        "w4a16-g32-imatrix",
        "w4a16-g32-tables8",
        "w4a16-mlp-only",
        "w8a16-g32",
    }
    for name, recipe in load_shipped().items():
        assert recipe.description
        first = read_source(name)[0].splitlines()[0]
        assert first.startswith("# g4convert quantize ")
        assert first.endswith(f"-r {name}" + " --calibration FILE" * recipe.is_layered)


def test_the_default_recipe_says_what_the_defaults_say() -> None:
    assert load(DEFAULT).recipe.model_dump(exclude={"description"}) == Recipe().model_dump(exclude={"description"})


def test_options_win_over_the_file_and_the_file_over_what_it_extends(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: w8a16-g32\ngroup_size: 64\nmethod: minmax\n")
    resolved = load(str(path), {"method": "mse", "layout": None})
    assert (resolved.recipe.num_bits, resolved.recipe.group_size, resolved.recipe.method) == (8, 64, "mse")
    assert resolved.origins["num_bits"] == "recipe w8a16-g32"
    assert resolved.origins["group_size"] == str(path)
    assert resolved.origins["method"] == "--method"
    assert resolved.origins["layout"] == "default"


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("num_bits: 8\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\n")
    assert load(str(tmp_path / "mine.yaml")).recipe.num_bits == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("groupsize: 64", "did you mean group_size?"),
        ("group_size: 33", "group_size: 33"),
        ("group_size: 0", "group_size: 0"),
        ("num_bits: 3", "num_bits: 3"),
        ("method: rtn", "method: 'rtn'"),
        ("engines: [vlm]", "bad.yaml): not one of transformers, vllm, sglang; did you mean vllm?"),
        ("engines: vllm", "engines: 'vllm'"),
        ("pack: [router]", "pack"),
        ("pack: []", "pack"),
        ("max_shard_size: 5 parsecs", "max_shard_size: '5 parsecs'"),
        ("max_shard_size: 5", "max_shard_size: 5 "),  # no unit: 5 bytes
        ("- 1", "expected keys and values"),
        ("a: [", "not YAML"),
        ("extends: 3", "expected a name or a path"),
        ("extends: nothing-like-it", "not one of the shipped recipes"),
    ],
)
def test_what_a_recipe_may_not_say(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(str(path))
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("way", ["b.yaml", "./b.yaml", "../{}/b.yaml", "link.yaml", "{}/b.yaml"])
def test_a_circle_of_extends_is_named(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a recipe is called on the way, a name of it leads to the same file."""
    base = way.format(tmp_path if way.startswith("{}") else tmp_path.name)
    (tmp_path / "a.yaml").write_text(f"extends: {base}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    (tmp_path / "link.yaml").symlink_to("b.yaml")
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", str(tmp_path / "a.yaml"), f"../{tmp_path.name}/a.yaml"):
        with pytest.raises(UsageError, match="extends itself") as caught:
            load(name)
        assert str(caught.value).count(" -> ") <= 3


def test_a_recipe_of_its_own_name_is_none_that_extends_itself(tmp_path: Path) -> None:
    path = tmp_path / f"{DEFAULT}.yaml"
    path.write_text(f"extends: {DEFAULT}\nnum_bits: 8\n")
    assert load(str(path)).recipe.num_bits == 8


def test_a_value_of_an_option_names_the_option_that_gives_it() -> None:
    origins = [load(DEFAULT, {"signed": value}).origins["signed"] for value in (True, False)]
    assert origins == ["--signed", "--positive"]


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        load("w4a16-g23")
    assert caught.value.hint == "did you mean w4a16-g32?"


@pytest.mark.parametrize(
    ("text", "nbytes"), [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("2GiB", 2 << 30), ("1.5kb", 1500), (7000, 7000)]
)
def test_sizes_have_units(text: object, nbytes: int) -> None:
    assert load(DEFAULT, {"max_shard_size": text}).recipe.max_shard_size == nbytes


def test_channel_is_spelled_out_in_settings() -> None:
    resolved = load(DEFAULT, {"group_size": "channel"})
    assert resolved.recipe.group_size is None
    assert resolved.settings()["group_size"] == "channel"


def test_the_schema_describes_every_key_and_the_shipped_files_keep_to_it() -> None:
    document = make_schema()
    json.dumps(document)
    assert document["additionalProperties"] is False
    assert set(document["properties"]) == {*Recipe.model_fields, "extends"}
    assert all(value.get("description") for value in document["properties"].values())
    for name in load_shipped():
        assert set(yaml.safe_load(read_source(name)[0])) <= set(document["properties"])


def test_bits_and_rules_are_read_loosely_and_given_back_as_they_are_said() -> None:
    rules = [{"layers": 3, "bits": 8}, {"role": "mlp", "names": "*.down_proj", "group_size": "channel"}]
    resolved = load(DEFAULT, {"bits": ["attention=8", "mlp=16"], "rules": rules})
    assert resolved.recipe.bits == {"attention": 8, "mlp": 16}
    assert resolved.settings()["rules"] == [{**rules[0], "layers": "3"}, rules[1]]
    assert load(DEFAULT, resolved.settings()).settings() == resolved.settings()


def test_every_wrong_part_of_rules_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "bits: {attention: 3, router: 4}\n"
        "rules:\n- {layers: 5-2, bits: 8}\n- {bits: 5}\n- {layers: 3}\n- {bits: 8, where: x}\n- {group_size: 7}\n"
    )
    with pytest.raises(UsageError) as caught:
        load(str(path))
    assert [line.partition(": ")[0] for line in caught.value.offenders] == [
        "bits.attention",
        "bits.router",
        "rules.0.layers",
        "rules.1.bits",
        "rules.2",
        "rules.3.where",
        "rules.4.group_size",
    ]
    assert "not one of 4, 8, 16" in caught.value.offenders[0]
    assert "expected layers of the decoder, such as 3, 0-1 or 0,5-7" in caught.value.offenders[2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["attention=3"], "--bits 3: not one of 4, 8, 16"),
        (["atention=8"], "did you mean attention?"),
        (["attention"], "--bits attention: expected ROLE=BITS, such as attention=8"),
        (["attention=²"], "--bits ²: not one of 4, 8, 16"),
        (["attention=" + "9" * 5000], "not one of 4, 8, 16"),
    ],
)
def test_bits_as_options(given: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(DEFAULT, {"bits": given})
    assert expected in str(caught.value) + (caught.value.hint or "")

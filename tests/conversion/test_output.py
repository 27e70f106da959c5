"""Statements of an output about itself: config, provenance, card and summary, with numbers that can be checked."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Checkpoints
from helpers.conversions import quantized, stored
from helpers.dialect_sources import write
from helpers.headers import planned
from helpers.released_configs import FAMILIES
from helpers.released_configs import stored as tensors_of
from helpers.reload import dequantized, reload

from g4convert import __version__
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.conversion.card import model_card
from g4convert.conversion.identity import Model
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.result import ErrorRow, MethodChoice, summarize
from g4convert.conversion.run import convert
from g4convert.gemma4 import Architecture, Role
from g4convert.planning.layout import lay_out
from g4convert.planning.recipe_files import load
from g4convert.planning.sizes import add_up_sizes
from g4convert.progress import Progress
from g4convert.quantization import Method, TileStats


@pytest.fixture(scope="module")
def made(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MoE fixture under the default recipe."""
    out = tmp_path_factory.mktemp("output") / "tiny-W4A16"
    quantized(moe, out)
    return out


def record(directory: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((directory / "g4convert.json").read_text())
    return found


def test_provenance_is_of_this_source_recipe_and_version(made: Path, moe: Path) -> None:
    found = record(made)
    assert list(found) == [
        *("schema_version", "g4convert", "source", "recipe", "family", "dialects", "dropped", "result", "files"),
    ]
    assert found["g4convert"] == __version__
    assert found["source"] == {
        "name": moe.name,
        "revision": None,
        "files": {
            name: {key: value for key, value in stamp.items() if key != "mtime_ns"}
            for name, stamp in Checkpoint.open(moe).fingerprint().items()
        },
        "sample": Model.of(Checkpoint.open(moe)).weights,
    }
    assert found["recipe"] == {"name": "w4a16-g32", **load().settings()}
    assert found["dropped"] == found["dialects"] == []


def test_sizes_and_bits_are_those_of_the_files(made: Path, moe: Path) -> None:
    result = record(made)["result"]
    assert isinstance(result, dict)
    before, after = stored(moe), stored(made)
    assert result["bytes_before"] == sum(tensor.nbytes for tensor in before.values())
    assert result["bytes_after"] == sum(tensor.nbytes for tensor in after.values())
    weights = sum(tensor.numel() for tensor in before.values())
    assert result["bits_per_weight"] == pytest.approx(8 * result["bytes_after"] / weights, abs=1e-4)
    assert result["files"] == len(list(made.glob("*.safetensors")))


def test_errors_are_those_of_the_dequantized_model(made: Path, moe: Path) -> None:
    """Measured again from the stored words, by compressed-tensors, which rounds experts to bf16 on the way."""
    result = record(made)["result"]
    assert isinstance(result, dict)
    before = dict(reload(moe).named_parameters())
    after = dict(dequantized(moe, made).named_parameters())
    packed = [
        name for name in before if ".language_model.layers." in name and not torch.equal(before[name], after[name])
    ]
    roles = {"attention": "self_attn", "mlp": ".mlp.", "experts": ".experts."}
    for row in [result["total"], *result["roles"]]:
        names = [name for name in packed if roles.get(row["name"], "") in name]
        squared = sum((after[name].double() - before[name].double()).square().sum().item() for name in names)
        weight = sum(before[name].double().square().sum().item() for name in names)
        assert row["relative_error"] == pytest.approx(squared / weight, rel=1e-3), row["name"]
        assert row["groups"] == sum(before[name].numel() for name in names) // 32
    assert len(result["worst"]) == 5
    errors = [row["relative_error"] for row in result["worst"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > result["total"]["relative_error"]


def test_nothing_tells_of_the_machine_or_the_time(moe: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: w4a16-g32\nmethod: minmax\n")
    quantized(moe, tmp_path / "a" / "out", str(recipe))
    moved = shutil.copytree(moe, tmp_path / "elsewhere" / moe.name)
    other = shutil.copy(recipe, tmp_path / "elsewhere" / "mine.yaml")
    quantized(moved, tmp_path / "b" / "out", str(other))
    for path in (tmp_path / "a" / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "out" / path.name).read_bytes(), path.name
        assert str(tmp_path).encode() not in path.read_bytes()
    assert record(tmp_path / "a" / "out")["recipe"]["name"] == "mine.yaml"  # type: ignore[index] # JSON


def test_dialects_and_drops_are_recorded(dense: Path, tmp_path: Path) -> None:
    quantized(write(dense, tmp_path / "source", "short embedders"), tmp_path / "out")
    found = record(tmp_path / "out")
    assert [entry["name"] for entry in found["dialects"]] == ["sglang-embedders"]  # type: ignore[attr-defined] # JSON
    (dropped,) = found["dropped"]  # type: ignore[misc] # JSON
    assert dropped == {
        "name": "model.embed_vision.pre_proj_norm.weight",
        "reason": "this norm has no weight in Gemma 4; ones change nothing",
    }


def test_the_card_has_what_a_reader_needs(made: Path) -> None:
    card = (made / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head == {"library_name": "transformers", "tags": ["gemma4", "compressed-tensors", "w4a16", "g4convert"]}
    assert "\n# tiny-W4A16\n" in card
    assert "\n    vllm serve tiny-W4A16\n" in card
    assert "weights in int4 symmetric, groups of 32 (compressed-tensors, pack-quantized)" in card
    assert "method **mse** (source not trained for 4 bits (QAT): 0.0% of groups in " in card
    assert yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0]) == load().settings()
    for role in ("router", "embedding", "norm", "scalar", "vision_tower", "embedder"):
        assert f"\n| {role} | " in card
    assert "| all | 0.00" in card
    assert "What was left out" not in card


def test_the_card_has_no_command_that_fails(moe: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: w4a16-g32\ngroup_size: 8\n")
    quantized(moe, tmp_path / "out", str(recipe))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "vllm serve" not in card
    assert "\nvLLM 0.33 does not load it; `g4convert check out` says why.\n" in card


def test_the_rows_of_the_card_cover_every_kept_byte(made: Path, moe: Path) -> None:
    rows = (made / "README.md").read_text().partition("## What stayed")[2].splitlines()[4:]
    kept = sum(int(row.split("|")[3].replace(",", "")) for row in rows if row)
    before, after = stored(moe), stored(made)
    unpacked = {name: tensor for name, tensor in after.items() if name in before}
    assert kept == sum(tensor.nbytes for tensor in unpacked.values())
    assert sum(int(row.split("|")[2]) for row in rows if row) == len(unpacked)


def test_names_cannot_forge_a_line_of_the_card() -> None:
    forged = "x\n---\nlicense: forged\x1b[2J"
    snapshot = Source.at(Path("/hub", f"models--o--{forged}", "snapshots", "0" * 40))
    assert snapshot.revision is None
    summary = summarize(plan := planned(FAMILIES["26B-A4B"]), MethodChoice(Method.MSE, "so"), 1, {0: [[0, 8, 1]]}, None)
    recipe = replace(load(), name=forged)
    card = model_card(plan, Source(snapshot.path, forged), recipe, forged, summary, refused=())
    assert not [line for line in card.splitlines() if line.startswith("license") or "\x1b" in line]
    assert card.splitlines().count("---") == 2


def test_a_snapshot_of_the_hub_is_named_as_the_base_model(made: Path, moe: Path) -> None:
    source = Source(moe, "google/gemma-4-26B-A4B-it", "0" * 40)
    plan = planned(FAMILIES["26B-A4B"])
    summary = summarize(plan, MethodChoice(Method.MSE, "so"), 1, {0: [[0, 8, 1]]}, None)
    card = model_card(plan, source, load(), "out", summary, refused=())
    head = yaml.safe_load(card.split("---")[1])
    assert (head["base_model"], head["base_model_relation"]) == ("google/gemma-4-26B-A4B-it", "quantized")
    assert "base_model" not in (made / "README.md").read_text()


def test_the_card_has_the_license_of_the_source(made: Path, tmp_path: Path) -> None:
    plan = planned(FAMILIES["26B-A4B"])
    summary = summarize(plan, MethodChoice(Method.MSE, "so"), 1, {0: [[0, 8, 1]]}, None)

    def head(readme: bytes) -> dict[str, object]:
        (tmp_path / "README.md").write_bytes(readme)
        card = model_card(plan, Source(tmp_path, "mine"), load(), "out", summary, refused=())
        assert card.splitlines().count("---") == 2
        found: dict[str, object] = yaml.safe_load(card.split("---")[1])
        return {key: value for key, value in found.items() if key.startswith("license")}

    link = "https://ai.google.dev/gemma/docs/gemma_4_license"
    said = f"---\nlicense: apache-2.0\nlicense_link: {link}\ntags: [x]\n---\n# Gemma\n"
    assert head(said.encode()) == {"license": "apache-2.0", "license_link": link}
    for other in (
        b"",
        b"# Gemma",
        b"---\nlicense: [1]\n---",
        b"---\nlicense: {\n---",
        b"\xff\xfe",
        b"---\nlicense: 'a\\n---'\n",
    ):
        assert head(other).keys() <= {"license"}
    assert "license" not in (made / "README.md").read_text().split("---")[1]


def test_a_card_does_not_say_that_a_kept_drafter_is_quantized(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints("assistant")
    summary = quantized(source, tmp_path / "kept")
    card = (tmp_path / "kept" / "README.md").read_text()
    assert "no weight is quantized" in card
    assert "method **mse** (nothing is packed)" in card
    assert "compressed-tensors" not in card
    assert "What it cost" not in card
    assert '"model": "kept"' in card
    assert "quantization_config" not in json.loads((tmp_path / "kept" / "config.json").read_text())
    assert summary.total.stats == TileStats()
    assert summary.total.relative_error == 0
    assert stored(tmp_path / "kept").keys() == stored(source).keys()
    assert summary.bits_per_weight == pytest.approx(16, abs=2.5)  # token_ordering has 64


@pytest.mark.parametrize("family", FAMILIES)
def test_role_sizes_add_up_to_the_plan(family: str) -> None:
    for recipe in ("w4a16-g32", "w8a16-g32"):
        plan = planned(FAMILIES[family], recipe)
        rows = add_up_sizes(plan)
        layout = lay_out(plan)
        assert sum(row.after for row in rows) == layout.tensor_bytes
        assert sum(row.before for row in rows) == sum(
            info.nbytes for info in tensors_of(Architecture.from_config(FAMILIES[family])).values()
        )
        packed = [row for row in rows if row.action.startswith("int")]
        assert all(row.bits_per_weight < 16 * plan.recipe.num_bits / 14 for row in packed)


def test_summaries_do_not_depend_on_the_order_of_units() -> None:
    plan = planned(FAMILIES["31B"])
    results = {n: [[n % 7, 100, 10, 0.1 * n, 1.0 + n, n, n, 0, 0]] for n in range(20)}
    backwards = dict(sorted(results.items(), reverse=True))
    choice = MethodChoice(Method.MSE, "so")
    assert summarize(plan, choice, 1, results, None) == summarize(plan, choice, 1, backwards, None)
    summary = summarize(plan, choice, 3, results, None)
    assert summary.total.stats.weights == 2000
    assert summary.total.stats.squared_error == pytest.approx(19.0)
    assert sum(row.stats.groups for row in summary.roles) == 200
    assert {row.name for row in summary.roles} <= {Role.ATTENTION.value, Role.MLP.value}
    assert len(summary.modules) == 7
    assert [row.name for row in summary.worst] == [
        row.name for row in sorted(summary.modules, key=lambda row: (-row.relative_error, row.name))[:5]
    ]


def test_ratios_of_nothing_and_of_no_error() -> None:
    assert ErrorRow.of("zeros", TileStats(weights=8, groups=1)).relative_error == 0
    assert ErrorRow.of("exact", TileStats(8, 1, 0.0, 4.0)).sqnr_db == math.inf
    assert ErrorRow.of("a tenth", TileStats(8, 1, 0.4, 4.0)).sqnr_db == pytest.approx(10)


def test_modules_count_alike_in_a_mean() -> None:
    large, small = ErrorRow.of("large", TileStats(8, 1, 0.0, 4e6)), ErrorRow.of("small", TileStats(8, 1, 0.4, 4.0))
    both = ErrorRow.mean("both", [large, small])
    assert both.relative_error == pytest.approx(0.05)
    assert (both.stats.groups, both.stats.weights) == (2, 16)
    assert ErrorRow.mean("none", []).relative_error == 0


@pytest.mark.parametrize("family", ["moe", "e2b", "unified"])
def test_a_text_only_config_is_that_of_the_decoder(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints(family)
    quantized(source, tmp_path / "out", "text-only")
    whole = json.loads((source / "config.json").read_text())
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["model_type"] == "gemma4_text"
    said = whole["text_config"].keys() - {"tie_word_embeddings", "model_type"}
    assert {key: found[key] for key in said} == {key: whole["text_config"][key] for key in said}
    assert found["eos_token_id"] == whole["text_config"].get("eos_token_id", whole["eos_token_id"])
    assert not {"vision_config", "audio_config", "text_config", "image_token_id"} & found.keys()
    assert found["tie_word_embeddings"] is True


def test_a_stale_quantization_config_goes_wherever_it_stands(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoints("moe"), tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["quantization_config"] = {"weights": {"num_bits": 4}}
    (source / "config.json").write_text(json.dumps(config))
    for recipe in ("w4a16-g32", "text-only"):
        quantized(source, tmp_path / recipe, recipe)
        found = json.loads((tmp_path / recipe / "config.json").read_text())
        assert "quantization_config" not in found.get("text_config", {})
        assert found["quantization_config"]["quant_method"] == "compressed-tensors"


def test_a_stale_quantization_config_goes_though_nothing_is_packed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    quantized(checkpoints("assistant", qat=True), tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_names_that_are_not_ascii_survive(moe: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(moe, tmp_path / "Gemma-4 für Zürich"))
    config = json.loads((source / "config.json").read_text()) | {"_comment": "Grüezi"}
    (source / "config.json").write_text(json.dumps(config, ensure_ascii=False))
    job = Job(Source.at(source), load(), tmp_path / "Ausgabe für alle", workers=1)
    assert convert(prepare(job), Progress(), Ranks())
    assert json.loads((job.output / "config.json").read_text())["_comment"] == "Grüezi"
    assert "Gemma-4 für Zürich" in (job.output / "README.md").read_text()

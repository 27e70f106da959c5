"""Several packings in one checkpoint: int8 beside int4, other groups, kept layers; every command takes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Checkpoints
from helpers.conversions import quantized, same_bits, stored
from helpers.damage import rewrite
from helpers.grids import two_when_quick
from helpers.prompts import logits, prompts
from helpers.runs import hashes, run

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.demo.comparison import compare
from g4convert.errors import Interrupted
from g4convert.forward.load import load
from g4convert.forward.modules import W4A16Linear
from g4convert.forward.tables import PackedTable
from g4convert.inspection.describe import describe
from g4convert.names import Name
from g4convert.planning.recipe_files import load as recipe
from g4convert.progress import Progress
from g4convert.report import Severity
from g4convert.verification.static.level import check_static
from g4convert.verification.weights.level import check_weights

CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "e2b": (
        "e2b",
        {
            "bits": {"attention": 8, "ple_projection": 8, "ple_embedding": 8, "embedding": 4, "lm_head": 8},
            "rules": [{"role": "mlp", "layers": 0, "bits": 16}, {"names": "*.mlp.down_proj", "group_size": 16}],
        },
    ),
    "moe": ("moe", {"bits": {"attention": 8}, "rules": [{"role": "experts", "layers": 1, "bits": 8}]}),
    "text-only of unified": (
        "unified",
        {"layout": "text-only", "bits": {"lm_head": 8}, "rules": [{"role": "lm_head", "group_size": "channel"}]},
    ),
    "untied already": ("text", {"bits": {"embedding": 8, "lm_head": 4, "mlp": 16}}),
}


@dataclass(frozen=True, slots=True)
class Made:
    """A source and its output in several packings, with the options that it was made with."""

    source: Path
    out: Path
    options: dict[str, Any]


@pytest.fixture(scope="module", params=two_when_quick(CASES))
def made(request: pytest.FixtureRequest, checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Made:
    family, options = CASES[request.param]
    out = tmp_path_factory.mktemp("mixed") / family
    quantized(checkpoints(family), out, **options)
    return Made(checkpoints(family), out, options)


def test_every_check_passes(made: Made) -> None:
    out, source = Checkpoint.open(made.out), Checkpoint.open(made.source)
    found = [*check_static(out, source), *check_weights(out, source, workers=1)]
    assert [one.line for one in found if one.severity in {Severity.FAIL, Severity.INCONCLUSIVE}] == []
    assert [one.line for one in found if one.severity is Severity.WARN] == []
    noted = {Name(one.subject).last for one in found if one.code == "static.kept" and one.severity is Severity.INFO}
    assert noted == {"embed_tokens", "embed_tokens_per_layer"} & {Name(step).last for step in packed_in(out)}
    assert len(out.config["quantization_config"]["config_groups"]) > 1


def packed_in(out: Checkpoint) -> set[Name]:
    return {Name(name).owner for name in out.tensors if name.endswith(".weight_packed")}


def test_the_packed_forward_runs_each_weight_in_its_own_packing(made: Made) -> None:
    packed, dense = load(made.out), load(made.out, packed=False)
    modules = [*packed.modules()]
    assert len({module.num_bits for module in modules if isinstance(module, W4A16Linear)}) > (
        made.source.name[:3] == "moe"
    )
    tables = sum(isinstance(module, PackedTable) for module in modules)
    assert tables == sum(role.endswith("embedding") for role in made.options["bits"])
    prompt = prompts(dense)[0]
    assert compare(logits(dense, prompt), logits(packed, prompt)).relative < 1e-5


def test_a_streamed_model_gives_the_same(made: Made) -> None:
    one, other = load(made.out), load(made.out, memory="stream")
    prompt = prompts(one)[0]
    assert torch.equal(logits(one, prompt), logits(other, prompt))


def test_it_says_so_of_itself(made: Made) -> None:
    assert "w4a16, w8a16" in (made.out / "README.md").read_text()
    settings = json.loads((made.out / "g4convert.json").read_text())["recipe"]
    assert settings["rules"] == recipe(options=made.options).settings()["rules"]
    schemes = {
        scheme.partition(" ")[0] for role in describe(Checkpoint.open(made.out)).roles for scheme in role.schemes
    }
    assert {"int4", "int8"} <= schemes


def test_a_tied_head_is_untied_at_every_level(e2b: Path, tmp_path: Path) -> None:
    quantized(e2b, tmp_path / "out", bits={"embedding": 16, "lm_head": 8})
    out, source = Checkpoint.open(tmp_path / "out"), Checkpoint.open(e2b)
    assert source.config.get("tie_word_embeddings", True)
    assert [out.config["tie_word_embeddings"], out.config["text_config"]["tie_word_embeddings"]] == [False, False]
    head = stored(tmp_path / "out")
    assert same_bits(
        head["model.language_model.embed_tokens.weight"], stored(e2b)["model.language_model.embed_tokens.weight"]
    )
    assert head["lm_head.weight_packed"].shape[0] == head["model.language_model.embed_tokens.weight"].shape[0]


@pytest.mark.parametrize("damage", ["lost", "of another table", "tied again"])
def test_a_head_that_is_not_the_embeddings_is_seen(damage: str, e2b: Path, tmp_path: Path) -> None:
    quantized(e2b, tmp_path / "out", bits={"embedding": 8, "lm_head": 8})

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if damage == "lost":
            del tensors["lm_head.weight_packed"]
        elif damage == "of another table":
            tensors["lm_head.weight_packed"] = tensors["lm_head.weight_packed"].flip(0).contiguous()

    rewrite(tmp_path / "out", change)
    if damage == "tied again":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        config["text_config"]["tie_word_embeddings"] = True
        (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    out, source = Checkpoint.open(tmp_path / "out"), Checkpoint.open(e2b)
    found = [
        *check_static(out, source),
        *(check_weights(out, source, workers=1) if damage == "of another table" else ()),
    ]
    failed = {one.subject for one in found if one.severity is Severity.FAIL}
    assert failed & {"lm_head", "lm_head.weight", "text_config.tie_word_embeddings"}


class _Stopping(Progress):
    """Ctrl-C at the third unit."""

    left = 3

    def advance(self, *_: object) -> None:
        """Stop."""
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_neither_workers_nor_a_stop_show_in_the_bytes(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g4convert.planning.units._UNIT_BYTES", 100_000)
    wanted = run(moe, tmp_path / "whole", workers=1, **CASES["moe"][1])
    job = Job(Source.at(moe), recipe(options=CASES["moe"][1]), tmp_path / "out", workers=2)
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        convert(prepare(job), _Stopping(), Ranks())
    convert(prepare(job), Progress(), Ranks())
    found = hashes(tmp_path / "out")
    assert {name for name in found if found[name] != wanted[name]} <= {"README.md"}  # names its directory

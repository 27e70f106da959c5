"""`g4convert.fit` on a tiny mixture of experts: a recipe that is carried out, losses that are kept, what is refused."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Checkpoints
from helpers.damage import rewrite
from helpers.program import Program, g4convert
from helpers.rights import permissions_count
from helpers.runs import run

from g4convert.api.fit import fit
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import EnvironmentFault, G4Error, GateError, InputError, Interrupted, UsageError
from g4convert.fitting.bench import Bench
from g4convert.fitting.inputs import choose_rows
from g4convert.fitting.result import Fitted
from g4convert.planning.layout import lay_out
from g4convert.planning.recipe_files import load, load_shipped
from g4convert.planning.steps import make_plan

__all__ = ["g4convert"]  # a fixture

SMALL = {"choices": ["4:32", "8:channel", "16"], "rows": 2, "tokens": 8, "workers": 1, "method": "mse"}


@pytest.fixture(scope="module")
def ids(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    vocabulary = Checkpoint.open(moe).config["text_config"]["vocab_size"]
    path = tmp_path_factory.mktemp("ids") / "ids.safetensors"
    Tokens(np.random.default_rng(0).integers(3, vocabulary, (4, 16), np.int32)).save(path)
    return path


@pytest.fixture(scope="module")
def made(moe: Path, ids: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    place = tmp_path_factory.mktemp("fit")
    options: dict[str, Any] = {**SMALL, "calibration": ids, "plot": place / "plot.svg"}
    return fit(moe, place / "six.yaml", target_bits=6, **options)


@pytest.fixture
def two_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the shipped recipes are measured, where each command would measure all of them again."""
    two = {name: load_shipped()[name] for name in ("w4a16-g32", "w4a16-g32-head8")}
    monkeypatch.setattr("g4convert.fitting.choosing.load_shipped", lambda: two)


@pytest.mark.wide
def test_the_recipe_alone_makes_the_choice_again(made: Fitted, moe: Path, tmp_path: Path) -> None:
    recipe = load(str(made.output)).recipe
    plan = make_plan(Checkpoint.open(moe), recipe)
    packed = {step.weight.name: step.packing for step in plan.quantized}
    for part in made.problem.parts:
        assert {packed.get(weight.name) for weight in part.weights} == {made.chosen.assignment[part.name]}
    assert lay_out(plan).tensor_bytes == made.chosen.nbytes
    assert 5 < made.problem.bits(made.chosen.nbytes) <= 6
    assert len(set(packed.values())) > 1
    text = made.output.read_text()
    assert text.startswith("# g4convert quantize MODEL -o OUT -r six.yaml\n# Chosen by `g4convert fit --target-bits 6`")
    assert "extends" not in text
    run(moe, tmp_path / "out", **recipe.model_dump(exclude={"description"}))


def test_a_fit_is_one_line_in_a_notebook(made: Fitted) -> None:
    choice = made.chosen
    assert repr(made) == f"Fitted({str(made.output)!r}, bytes={choice.nbytes:,}, measured={choice.measured:.4g})"


def test_every_cost_and_gain_is_listed(made: Fitted) -> None:
    document = made.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert {part["name"] for part in document["parts"]} == {part.name for part in made.problem.free}
    for part in document["parts"]:
        assert part["chosen"] in {choice["packing"] for choice in part["choices"]}
        assert [choice["measured"] for choice in part["choices"] if choice["packing"] == "kept"] == [0]
        assert all(choice["measured"] > 0 for choice in part["choices"] if choice["packing"] != "kept")
    gained = sum(c["used"] for part in document["parts"] for c in part["choices"] if c["packing"] == part["chosen"])
    assert document["predicted"] == pytest.approx(gained)
    assert {one.name for one in made.presets} >= {"w4a16-g32", "w8a16-g32", "w4a16-experts-only", "w4a16-g32-head8"}
    sizes, losses = zip(*made.corners, strict=True)
    assert list(sizes) == sorted(sizes)
    assert list(losses) == sorted(losses, reverse=True)


def test_the_plot_has_every_point(made: Fitted) -> None:
    svg = (made.output.parent / "plot.svg").read_text()
    root = ET.fromstring(svg)  # noqa: S314 -- written a moment ago
    circles = [one for one in root.iter() if one.tag.endswith("circle")]
    assert len(circles) == len(made.presets) + len(made.tried)
    assert svg.count("<polyline") == 1
    for words in ("size of all tensors", "KL, nats", "predicted from single changes", "chosen, measured"):
        assert f">{words}</text>" in svg
    found = re.findall(r'</circle><text x="([\d.]+)" y="([\d.]+)">([^<]+)<', svg)
    names = [(float(x), float(y), 6.5 * len(name)) for x, y, name in found]
    assert len(names) == len(circles)
    for (x, y, width), (other, height, wide) in combinations(names, 2):
        assert x + width < other or other + wide < x or abs(y - height) > 10  # no name is drawn over another
    for (x, y, width), circle in product(names, circles):
        at, height = float(circle.attrib["cx"]), float(circle.attrib["cy"])
        assert not (x < at < x + width and y - 10 < height < y)  # or over a point


@pytest.mark.wide
def test_a_finished_fit_is_read_where_nothing_can_be_written(made: Fitted, moe: Path, ids: Path) -> None:
    place, options = made.output.parent, {**SMALL, "calibration": ids}
    place.chmod(0o555)
    try:
        with permissions_count():
            assert fit(moe, made.output, target_bits=6, **options).already_done
            with pytest.raises(EnvironmentFault):
                fit(moe, place / "other.yaml", target_bits=6, **options)
            with pytest.raises(EnvironmentFault):
                fit(moe, made.output, target_bits=6, plot=place / "other.svg", **options)
    finally:
        place.chmod(0o755)


@pytest.mark.wide
def test_another_target_measures_no_single_change_again(
    made: Fitted, moe: Path, ids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = made.output.with_suffix(".sensitivities.json")
    before, runs = kept.read_bytes(), []
    losses = Bench.losses
    monkeypatch.setattr(Bench, "losses", lambda self, forms: runs.append(1) or losses(self, forms))  # type: ignore[func-returns-value]
    found = fit(
        moe,
        made.output.parent / "loss.yaml",
        max_kl=0.3 * made.presets[0].measured,
        calibration=ids,
        sensitivities=kept,
        **SMALL,
    )
    assert kept.read_bytes() == before
    assert len(runs) == len(found.tried) + len(found.presets)
    assert found.chosen.measured <= 0.3 * made.presets[0].measured
    assert found.chosen.nbytes < found.problem.kept_bytes
    assert "--max-kl" in found.output.read_text()


@pytest.mark.usefixtures("two_shipped")
def test_a_stopped_fit_goes_on(
    made: Fitted, moe: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, runs = Bench.losses, []

    def stop(self: Bench, forms: Any) -> Any:  # noqa: ANN401 -- of a patched method
        runs.append(1)
        if len(runs) == 6:
            raise KeyboardInterrupt
        return losses(self, forms)

    monkeypatch.setattr(Bench, "losses", stop)
    with pytest.raises(Interrupted, match="no recipe was written") as stopped:
        fit(moe, tmp_path / "six.yaml", target_bits=6, calibration=ids, **SMALL)
    assert "six.sensitivities.json" in str(stopped.value.hint)
    kept = json.loads((tmp_path / "six.sensitivities.json").read_text())
    assert sum(map(len, kept["losses"].values())) == 5, "the sixth change was stopped"
    assert not (tmp_path / "six.yaml").exists()
    found = fit(moe, tmp_path / "six.yaml", target_bits=6, calibration=ids, **SMALL)
    assert found.sensitivities == made.sensitivities
    assert (tmp_path / "six.yaml").read_text() == made.output.read_text()
    assert (
        len(runs) - 6
        < sum(len(part.forms) - 1 for part in found.problem.free) + len(found.presets) + len(found.tried) - 3
    )


def test_losses_of_something_else_are_refused(made: Fitted, moe: Path, ids: Path, tmp_path: Path) -> None:
    kept = made.output.with_suffix(".sensitivities.json")
    with pytest.raises(InputError, match="measured on something else") as caught:
        fit(moe, tmp_path / "a.yaml", target_bits=6, calibration=ids, sensitivities=kept, **{**SMALL, "tokens": 9})
    assert [*caught.value.offenders] == ["length: 8, expected 9"]
    other = json.loads(kept.read_text())
    other["basis"]["model"]["weights"] = "0"
    damages = {
        "other": json.dumps(other),
        "no json": "{",
        "negative": '{"version": 1, "basis": {}, "losses": {"a": {"b": -1}}}',
    }
    for text in damages.values():
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(InputError, match=r"s\.json: (losses that|not a file)"):
            fit(moe, tmp_path / "a.yaml", target_bits=6, calibration=ids, sensitivities=tmp_path / "s.json", **SMALL)
    assert not (tmp_path / "a.yaml").exists()


@pytest.mark.wide
@pytest.mark.usefixtures("two_shipped")
def test_engines_have_a_say(moe: Path, ids: Path, tmp_path: Path) -> None:
    """SGLang takes no packed experts and no packed tables of this model; vLLM takes all."""
    options: dict[str, Any] = {**SMALL, "calibration": ids, "bits": {"embedding": 4, "lm_head": 8}}
    found = fit(moe, tmp_path / "v.yaml", target_bits=9, engines=["vllm"], **options)
    assert {part.role for part in found.problem.free} >= {"experts", "embedding", "lm_head"}
    with pytest.raises(GateError, match="no choice of packing is left") as caught:
        fit(
            moe, tmp_path / "s.yaml", target_bits=9, engines=["sglang"], **{**options, "choices": ["4:32", "8:channel"]}
        )
    assert {line.partition(":")[0] for line in caught.value.offenders} >= {
        "experts *.experts.*",
        "embedding *embed_tokens",
    }


@pytest.mark.wide
@pytest.mark.usefixtures("two_shipped")
def test_a_source_on_a_lattice_stays_on_it(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """`auto` would sample groups of 64, too, which lie on none."""
    source, ids = checkpoints("text", qat=True), tmp_path / "ids.safetensors"
    Tokens(np.random.default_rng(0).integers(3, 250, (4, 16), np.int32)).save(ids)
    options: dict[str, Any] = {**SMALL, "choices": ["4:32", "4:64", "8:channel"], "method": "auto"}
    found = fit(source, tmp_path / "a.yaml", target_bits=4.4, calibration=ids, **options)
    assert found.sensitivities.basis.method == load(str(found.output)).recipe.method == "lattice"
    assert len({form for part, form in found.chosen.assignment.items()}) > 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target_bits": 4.2}, UsageError, r"below the smallest output, .* 4.500 bits a weight"),
        ({"target_bits": 16}, UsageError, r"not below every weight as it is, .* 16.000 bits"),
        ({"target_size": "1KB"}, UsageError, "--target-size 1KB: below the smallest output"),
        ({}, UsageError, "a fit has one target"),
        ({"target_bits": 5, "max_kl": 1.0}, UsageError, "a fit has one target"),
        ({"target_bits": 5, "choices": ["3:32"]}, UsageError, "no engine has a kernel"),
        ({"target_bits": 5, "rules": [{"layers": "7", "bits": 8}]}, UsageError, "weights that this model has not"),
        ({"target_bits": 5, "bits": {"ple_embedding": 8}}, UsageError, "weights that this model has not"),
        ({"target_bits": 5, "tp": [2]}, UsageError, "no engine has to load"),
        ({"target_bits": 6, "rows": 4}, UsageError, "has 4 rows of text, of 16 tokens, and"),
        ({"target_bits": 6, "rows": 300, "calibration": None}, UsageError, "has 128 rows of text, of 32 tokens, and"),
        ({"target_bits": 6, "tokens": 17}, UsageError, "has 4 rows of text, of 16 tokens, and"),
        ({"target_bits": 6, "method": "imatrix"}, InputError, "token ids without statistics"),
        ({"target_bits": 6, "device": "cuda"}, EnvironmentFault, "0 CUDA devices"),
        ({"max_kl": 1e-9, "choices": ["4:32", "8:channel"]}, GateError, "nothing can be packed and lose so little"),
        ({"max_kl": 1e-9}, GateError, "nothing can be packed and lose so little; the least of those tried was"),
        ({"target_bits": 5, "calibration": "typo.safetensors"}, InputError, "typo.safetensors"),
    ],
)
@pytest.mark.usefixtures("two_shipped")
def test_nothing_is_written_for_what_cannot_be(  # noqa: PLR0913, PLR0917 -- a row of the table, and four fixtures
    options: dict[str, Any], error: type[G4Error], message: str, made: Fitted, moe: Path, ids: Path, tmp_path: Path
) -> None:
    kept = shutil.copy(made.output.with_suffix(".sensitivities.json"), tmp_path / "kept.json")
    with pytest.raises(error, match=message) as caught:
        fit(moe, tmp_path / "a.yaml", sensitivities=kept, **{"calibration": ids, **SMALL, **options})
    assert caught.value.hint
    assert [one.name for one in tmp_path.iterdir()] == ["kept.json"]


def test_a_file_of_few_short_rows_is_run_as_it_is(ids: Path) -> None:
    tokens = Tokens.load(ids, 1 << 20)
    chosen, others, length = choose_rows(tokens, None, None, ids)
    assert (sorted([*chosen, *others]), len(others), length) == ([0, 1, 2, 3], 2, 16)
    chosen, others, length = choose_rows(Tokens(np.zeros((40, 100), np.int32)), None, None, ids)
    assert (len(chosen), len(others), length) == (8, 8, 64)


def test_places_that_cannot_be_written_are_refused_first(moe: Path, tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="folder: a directory"):
        fit(moe, tmp_path / "folder", target_bits=5)
    for name in ("a.json", "there.yaml", "no/a.yaml"):
        with pytest.raises(UsageError):
            fit(moe, tmp_path / name, target_bits=5)
    with pytest.raises(InputError, match="file: no such file"):
        fit(moe, tmp_path / "a.yaml", target_bits=5, calibration=tmp_path / "no" / "file")
    for option in ("plot", "sensitivities"):
        with pytest.raises(UsageError, match="no file can be written there"):
            fit(moe, tmp_path / "a.yaml", target_bits=5, **{option: tmp_path / "no" / "file"})  # type: ignore[arg-type]


def test_a_weight_that_is_not_finite_is_named(moe: Path, ids: Path, tmp_path: Path) -> None:
    shutil.copytree(moe, tmp_path / "moe")

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.language_model.layers.1.mlp.down_proj.weight"][3, 4] = float("nan")

    rewrite(tmp_path / "moe", damage)
    with pytest.raises(InputError, match="as it is gives states that are NaN"):
        fit(tmp_path / "moe", tmp_path / "a.yaml", target_bits=6, calibration=ids, **SMALL)


@pytest.mark.usefixtures("two_shipped")
def test_the_command_prints_what_was_chosen(
    g4convert: Program, made: Fitted, moe: Path, ids: Path, tmp_path: Path
) -> None:
    kept = shutil.copy(made.output.with_suffix(".sensitivities.json"), tmp_path / "kept.json")
    command = [
        "fit",
        str(moe),
        "--calibration",
        str(ids),
        "--sensitivities",
        str(kept),
        "--plot",
        str(tmp_path / "p.svg"),
    ]
    command += ["--rows", "2", "--tokens", "8", "--method", "mse", "--workers", "1"]
    command += [word for choice in ("4:32", "8:channel", "16") for word in ("--choice", choice)]
    ran = g4convert(*command, "-o", str(tmp_path / "six.yaml"), "--target-size", str(made.chosen.nbytes), "-v")
    assert ran.status == 0, ran.err
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    assert "self_attn.qkv_proj" in ran.out
    assert "w4a16-g32-head8" in ran.out
    assert ran.out.splitlines()[-1].startswith(f"next: g4convert quantize {moe} -o {moe.name}-six -r ")
    assert ran.out.count("layers.0.experts") == 3
    ran = g4convert(*command, "-o", str(tmp_path / "six.yaml"), "--overwrite", "--target-bits", "6", "--json")
    assert json.loads(ran.out)["bytes"] == made.chosen.nbytes
    before = (tmp_path / "six.yaml").read_bytes()
    again = g4convert(*command, "-o", str(tmp_path / "six.yaml"), "--target-bits", "6")
    assert (again.status, again.out.partition(":")[0]) == (0, "already done")
    other = g4convert(*command, "-o", str(tmp_path / "six.yaml"), "--target-bits", "7")
    assert other.status == 2
    assert "is there already\n  not chosen by `g4convert fit --target-bits 7`" in other.err
    (tmp_path / "six.yaml").write_bytes(before + b"# mine\n")
    assert g4convert(*command, "-o", str(tmp_path / "six.yaml"), "--target-bits", "6").status == 2
    assert (tmp_path / "six.yaml").read_bytes() == before + b"# mine\n"
    ran = g4convert(
        *command, "-o", str(tmp_path / "six.yaml"), "--overwrite", "--target-bits", "6", "--dtype", "float8"
    )
    assert (ran.status, "not one of float32, bfloat16" in ran.err) == (2, True)

"""A group of all inputs of a matrix: its scale is [n, 1], as that of `channel`, and the config says which it is.

An engine takes the number of inputs of a group from the config. So a group of all inputs is not split over GPUs, and a
scale of each row is; wherever only tensors are compared, the two are one form.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.conversions import quantized
from helpers.damage import edit_config

from g4convert.checkpoint.directory import Checkpoint
from g4convert.demo.trained import trained
from g4convert.engines.verdicts import Loads, Verdict, verdicts
from g4convert.gemma4.family import Family
from g4convert.inspection.describe import describe
from g4convert.inspection.engines import Checked, CheckRequest, check
from g4convert.inspection.fix import fix
from g4convert.planning.recipe_files import load
from g4convert.planning.steps import make_plan
from g4convert.planning.weights import make_planned_weights
from g4convert.report import Severity
from g4convert.verification.static.level import check_static

MOE = trained(Family.MOE)  # its experts' down_proj has 64 inputs, its o_proj 128
CASES: Mapping[str, dict[str, Any]] = {
    "experts": {"group_size": 64},
    "some experts": {"rules": [{"role": "experts", "layers": 2, "group_size": 64}]},
    "o_proj in one group": {"rules": [{"names": "*.o_proj", "group_size": 128}]},
    "o_proj by row": {"rules": [{"names": "*.o_proj", "group_size": "channel"}]},
}
WRONG = {Severity.FAIL, Severity.WARN, Severity.INCONCLUSIVE}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("one-group") / "out"
    quantized(MOE, out, method="minmax", **CASES[request.param])
    return out, CASES[request.param]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experts") / "out"
    quantized(MOE, out, method="minmax", group_size=64)
    return out


def said(found: tuple[Verdict, ...]) -> list[tuple[str, int, Loads, tuple[str, ...]]]:
    return [(one.engine, one.tp, one.loads, one.kernels) for one in found]


def test_an_output_is_judged_as_its_plan_was(case: tuple[Path, dict[str, Any]]) -> None:
    out, options = case
    plan = make_plan(Checkpoint.open(MOE), load(options=options).recipe)
    assert said(check(CheckRequest(out)).verdicts) == said(verdicts(make_planned_weights(plan)))


def test_every_check_passes(case: tuple[Path, dict[str, Any]]) -> None:
    found = [*check_static(Checkpoint.open(case[0]), Checkpoint.open(MOE))]
    assert [one.line for one in found if one.severity in WRONG] == []


def test_it_is_described_as_the_config_says(experts: Path) -> None:
    described = describe(Checkpoint.open(experts))
    assert next(iter(described.total.schemes)) == "int4 g64 symmetric (pack-quantized)"
    assert not any("per channel" in scheme for scheme in described.total.schemes)


def test_the_check_of_gpus_knows_that_a_group_is_not_split(case: tuple[Path, dict[str, Any]]) -> None:
    out, options = case
    found = [*check_static(Checkpoint.open(out), Checkpoint.open(MOE), tp=(2,))]
    (split,) = (one for one in found if one.code == "static.tensor_parallel")
    assert ("o_proj: 128 inputs in 1 group" in split.found) is (options == CASES["o_proj in one group"])


def regrouped(out: Path, into: Path, groups: dict[str, tuple[list[str], str]]) -> Checked:
    """Check the same tensors with other config groups, of targets and a strategy."""
    into.mkdir()
    for file in out.iterdir():
        (into / file.name).write_bytes(file.read_bytes())

    def change(config: dict[str, Any]) -> None:
        section = config["quantization_config"]
        (group,) = section["config_groups"].values()
        section["config_groups"] = {
            name: {
                **group,
                "targets": targets,
                "weights": {
                    **group["weights"],
                    "strategy": strategy,
                    "group_size": 64 if strategy == "group" else None,
                },
            }
            for name, (targets, strategy) in groups.items()
        }

    edit_config(into, change)
    return check(CheckRequest(into, engines=("vllm",), tps=(1,)))


def test_groups_that_say_otherwise_of_parts_of_the_experts_are_refused(experts: Path, tmp_path: Path) -> None:
    """An engine compares what the config says of the three projections, not their scales."""
    rest = r"re:.*(self_attn|mlp)\..*", r"re:.*experts\.\d+\.(gate|up)_proj.*"
    groups = {"down": ([r"re:.*experts\.\d+\.down_proj.*"], "channel"), "rest": ([*rest], "group")}
    found = regrouped(experts, tmp_path / "parts", groups)
    assert [one.loads for one in found.verdicts] == [Loads.NO]
    (refused,) = (one.line for one in found.report.of(Severity.FAIL) if one.code == "engines.vllm")
    assert "one scheme for all projections of the experts is needed" in refused


def test_rows_that_have_several_groups_are_not_by_row(experts: Path, tmp_path: Path) -> None:
    found = regrouped(experts, tmp_path / "rows", {"all": (["Linear"], "channel")})
    assert [one.loads for one in found.verdicts] == [Loads.NO]
    assert {one.code for one in found.report.of(Severity.FAIL)} == {"static.scheme", "engines.vllm"}


def test_the_config_that_fix_writes_keeps_the_groups(case: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = case
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in out.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    edit_config(copy, lambda config: config["quantization_config"]["ignore"].remove("re:.*vision_tower.*"))
    fix(copy)
    assert said(check(CheckRequest(copy)).verdicts) == said(check(CheckRequest(out)).verdicts)

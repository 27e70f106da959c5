"""Errors of outputs: those of the written checkpoint's Linears, from files, where the memory holds no model."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Checkpoints
from helpers.conversions import quantized
from helpers.grids import one_in

from g4convert.api.fit import fit
from g4convert.calibration.record import record
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.result import MethodChoice
from g4convert.conversion.statistics import Statistics
from g4convert.devices import is_roomy
from g4convert.errors import EnvironmentFault, G4Error, InputError, UsageError
from g4convert.fitting import measures, outputs
from g4convert.fitting.choices import parse_choices
from g4convert.fitting.outputs import OutputErrors
from g4convert.fitting.problem import Problem
from g4convert.fitting.rounding import Rounder
from g4convert.fitting.writing import make_values
from g4convert.forward.load import load
from g4convert.gemma4 import Weight
from g4convert.planning.recipe_files import load as recipe
from g4convert.planning.steps import make_plan
from g4convert.quantization import Method

IDS = np.random.default_rng(0).integers(5, 250, (4, 16), dtype=np.int32)
TABLES = {"embedding": 4, "lm_head": 8}
SMALL: Mapping[str, Any] = {"choices": ["4:32", "8:channel", "16"], "rows": 2, "tokens": 8, "workers": 1}


@pytest.fixture(scope="module", params=one_in(2, ["moe", "e2b"]))
def source(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Path:
    return checkpoints(request.param)


@pytest.fixture(scope="module")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("statistics")
    found = record(source, Tokens(IDS), directory / "scratch", workers=1)
    CalibrationFile(IDS, model=found.model, statistics=found).save(directory / "cal.safetensors")
    return directory / "cal.safetensors"


def statistics_of(data: Path) -> Statistics:
    found = CalibrationFile.load(data).statistics
    assert found is not None
    return found


def of(named: Mapping[str, torch.Tensor], weight: Weight) -> torch.Tensor:
    """A weight of a model; experts are joined in it."""
    module = weight.module
    if module.expert is None:
        return named[weight.name]
    joined = named[f"{module.experts}.{'down_proj' if module.projection == 'down_proj' else 'gate_up_proj'}"]
    first = weight.shape[0] if module.projection == "up_proj" else 0
    return joined[module.expert][first : first + weight.shape[0]]


def test_the_error_is_that_of_the_written_weights(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, statistics = Checkpoint.open(source), statistics_of(data)
    plan = make_plan(checkpoint, recipe(options={"method": "mse", "bits": TABLES}).recipe)
    problem = Problem.of(plan, parse_choices(["4:32", "8:channel", "16"]))
    chosen = {part.name: part.forms[number % len(part.forms)] for number, part in enumerate(problem.parts)}
    quantized(source, tmp_path / "out", **make_values(problem, chosen))
    dense, given = (
        {name: value.detach() for name, value in load(one, packed=False).named_parameters(remove_duplicate=False)}
        for one in (tmp_path / "out", source)
    )
    architecture = plan.inventory.architecture
    rows: list[int] = []
    rounded = Rounder.round_weight

    def counted(self: Rounder, weight: Any, values: torch.Tensor, form: Any) -> torch.Tensor:  # noqa: ANN401 -- the same
        rows.append(len(values))
        return rounded(self, weight, values, form)

    monkeypatch.setattr(Rounder, "round_weight", counted)
    monkeypatch.setattr(outputs, "_ROWS_AT_ONCE", 48)
    with ThreadPoolExecutor(1) as pool:
        rounder = Rounder(MethodChoice(Method.MSE, ""), architecture, pool, statistics=statistics)
        measured = OutputErrors(checkpoint, rounder, IDS, {})
        for part in problem.free:
            found = float(measured.losses([(part, chosen[part.name])]).mean())
            errors = squares = 0.0
            for weight in part.weights:
                before, after = of(given, weight), of(dense, weight)
                if part.role in {"embedding", "lm_head"}:
                    x, ids = torch.eye(weight.shape[1]), np.unique(IDS)
                    before, after = before[ids], after[ids]
                else:  # inputs that have these squares, and do not depend on each other
                    x = torch.from_numpy(statistics.of(str(architecture.decoder_path(weight.module)))).sqrt().diag()
                errors += float((x @ (after - before).T).square().sum())
                squares += float((x @ before.T).square().sum())
            assert found == pytest.approx(errors / squares, rel=1e-3), part.name
        whole = measured.losses((part, chosen[part.name]) for part in problem.parts)
    assert whole == pytest.approx(sum(loss for one in measured.known.values() for loss in one.values()))
    assert max(rows) <= 48


@pytest.mark.wide
def test_a_model_that_is_streamed_is_not_loaded(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(measures, "load")
    said: list[str] = []
    options: dict[str, Any] = {**SMALL, "calibration": data, "bits": TABLES}
    monkeypatch.setattr(measures, "is_roomy", lambda nbytes, device: nbytes < 1 and is_roomy(nbytes, device))
    found = fit(source, tmp_path / "a.yaml", target_bits=6, say=said.append, plot=tmp_path / "a.svg", **options)
    assert any("not run" in line for line in said)
    assert found.sensitivities.basis.unit == "output error"
    assert found.chosen.measured == pytest.approx(found.chosen.predicted)
    assert found.chosen.measured <= min(
        (one.measured for one in found.tried if one.nbytes <= found.chosen.nbytes), default=0
    )
    assert {one.name for one in found.presets} >= {"w4a16-g32", "w8a16-g32", "w4a16-g32-head8"}
    assert "output error" in (tmp_path / "a.svg").read_text()
    assert "KL was not measured" in found.output.read_text()
    monkeypatch.undo()
    with pytest.raises(InputError, match="measured on something else") as caught:
        fit(source, tmp_path / "b.yaml", target_bits=6, sensitivities=tmp_path / "a.sensitivities.json", **options)
    assert "unit: output error, expected KL" in [*caught.value.offenders]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_kl": 0.1, "memory": "stream"}, UsageError, "--max-kl 0.1: a model that is streamed is not run, so"),
        ({"max_kl": 0.1}, UsageError, "--max-kl 0.1: its decoder takes .* more than the free memory of cpu, so"),
        ({"target_bits": 6, "memory": "resident"}, EnvironmentFault, "--memory resident: its decoder takes"),
        ({"target_bits": 6, "memory": "steam"}, UsageError, "not one of"),
        ({"target_bits": 6}, InputError, "token ids without statistics"),
    ],
)
def test_what_cannot_be_measured_is_refused(  # noqa: PLR0913, PLR0917 -- a row of the table, and fixtures
    options: dict[str, Any],
    error: type[G4Error],
    message: str,
    moe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measures, "is_roomy", lambda *_: False)
    Tokens(IDS).save(tmp_path / "ids.safetensors")
    with pytest.raises(error, match=message) as caught:
        fit(moe, tmp_path / "a.yaml", calibration=tmp_path / "ids.safetensors", **SMALL, **options)
    assert caught.value.hint
    assert [one.name for one in tmp_path.iterdir()] == ["ids.safetensors"]

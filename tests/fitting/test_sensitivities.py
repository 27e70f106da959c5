"""Measured losses that are kept: none of another run's is lost, and none is of two models."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from g4convert.api.fit import fit
from g4convert.calibration.tokens import Tokens
from g4convert.conversion.identity import Model
from g4convert.errors import EnvironmentFault, InputError, UsageError
from g4convert.fitting.choices import parse_choices
from g4convert.fitting.sensitivities import Basis, LossUnit, Sensitivities, measure_missing
from g4convert.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FORMS = parse_choices(["4:32", "8:channel"])
PROBLEM: Any = SimpleNamespace(free=[SimpleNamespace(name=name, forms=FORMS) for name in ("a", "b")])
BASIS = Basis(LossUnit.KL, Model({}, "", "", ""), "", 1, 1, "mse", signed=False, statistics="", dtype="float32")


def losses(path: Path) -> dict[str, int]:
    return {name: len(forms) for name, forms in json.loads(path.read_text())["losses"].items()}


def measured(path: Path, first: Callable[[], None], known: Sensitivities | None = None) -> None:
    """Measure, with something done before the first loss is known."""
    done: list[int] = []

    def one(_: object) -> Any:  # noqa: ANN401 -- an array
        if not done:
            done.append(1)
            first()
        return np.ones(2)

    known = known or Sensitivities.at(path, BASIS)
    measure_missing(PROBLEM, SimpleNamespace(losses=one), known, path, Progress(), lambda: None)


def test_two_runs_do_not_measure_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "s.json"

    def other() -> None:
        with pytest.raises(EnvironmentFault, match=r"s\.json: another run writes it: process \d+"):
            measured(path, lambda: None)

    measured(path, other)
    assert losses(path) == {"a": 2, "b": 2}
    assert [one.name for one in tmp_path.iterdir()] == ["s.json"]


def test_what_another_run_measured_before_this_one_began_to_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    before = Sensitivities.at(path, BASIS)
    Sensitivities(BASIS, {"a": {"int4 g32": 0.5}, "c": {"int4 g32": 0.5}}).save(path)
    measured(path, lambda: None, before)
    assert losses(path) == {"a": 2, "b": 2, "c": 1}
    assert json.loads(path.read_text())["losses"]["a"]["int4 g32"] == 0.5
    measured(path, lambda: pytest.fail("all are measured"))


def test_a_model_replaced_during_a_fit_is_refused_and_no_loss_of_it_is_kept(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, save = shutil.copytree(text, tmp_path / "source"), Sensitivities.save
    Tokens(np.random.default_rng(0).integers(3, 250, (4, 16), np.int32)).save(tmp_path / "ids.safetensors")
    saved: list[int] = []

    def swapped(self: Sensitivities, path: Path) -> None:
        save(self, path)
        saved.append(1)
        file = min(source.glob("*.safetensors"))
        shutil.copy(file, file.with_name("fresh"))
        file.with_name("fresh").rename(file)

    monkeypatch.setattr(Sensitivities, "save", swapped)
    with pytest.raises(InputError, match="changed while it was read"):
        fit(source, tmp_path / "r.yaml", target_bits=6, calibration=tmp_path / "ids.safetensors", **SMALL)
    assert len(saved) == sum(losses(tmp_path / "r.sensitivities.json").values()) == 1
    assert not (tmp_path / "r.yaml").exists()


SMALL: dict[str, Any] = {"choices": ["4:32", "16"], "rows": 2, "tokens": 8, "workers": 1, "method": "mse"}


def test_a_recipe_that_came_meanwhile_stays(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tokens(np.random.default_rng(0).integers(3, 250, (4, 16), np.int32)).save(tmp_path / "ids.safetensors")
    path = tmp_path / "r.yaml"

    def came(*_: object) -> str:
        path.write_text("precious")
        return "mine"

    monkeypatch.setattr("g4convert.fitting.choosing.load_shipped", dict)
    monkeypatch.setattr("g4convert.api.fit.format_yaml", came)
    with pytest.raises(UsageError, match="is there already"):
        fit(text, path, target_bits=6, calibration=tmp_path / "ids.safetensors", **SMALL)
    assert path.read_text() == "precious"

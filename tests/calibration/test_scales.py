"""Trained scales: codes stay, the model answers more like the original, and a stop anywhere does not show."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.conversions import same_bits, stored
from helpers.grids import one_in
from helpers.runs import hashes

from g4convert.calibration import distill, scales, trained
from g4convert.calibration.run import LayerByLayer
from g4convert.calibration.states import States
from g4convert.calibration.targets import SoftTargets
from g4convert.calibration.tokens import Tokens, held_out_samples, judges
from g4convert.checkpoint.source import Source
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.conversion.staging import STATES
from g4convert.errors import EnvironmentFault, Interrupted, UsageError
from g4convert.planning.recipe_files import load
from g4convert.planning.training import EPOCHS
from g4convert.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from conftest import Checkpoints

    from g4convert.conversion.result import Summary


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six samples, one of which judges."""
    path = tmp_path_factory.mktemp("few") / "ids.safetensors"
    Tokens(np.random.default_rng(0).integers(5, 250, (6, 16), dtype=np.int32)).save(path)
    return path


STEPS = 2 * EPOCHS
"""Five samples that train, in batches of four."""


def calibrated(
    source: Path, output: Path, ids: Path, recipe: str = "w4a16-g32-best", workers: int = 2, **options: object
) -> Summary:
    job = Job(Source.at(source), load(recipe, options), output, workers=workers, calibration=ids)
    conversion = prepare(job)
    summary = convert(conversion, Progress(), Ranks(), LayerByLayer.of(conversion, ids))
    assert summary is not None
    return summary


@dataclass(frozen=True, slots=True)
class Case:
    """A conversion to `output`, and the hashes of the same one that nothing stopped."""

    source: Path
    ids: Path
    output: Path
    whole: Mapping[str, str]

    def run(self, workers: int = 2) -> Summary:
        """Do it to the end."""
        return calibrated(self.source, self.output, self.ids, workers=workers)

    def stop(self, value: object, *places: tuple[object, str]) -> None:
        """Do it up to where `value`, put in some places, stops it."""
        with pytest.MonkeyPatch.context() as patched:
            for owner, name in places:
                patched.setattr(owner, name, value)
            with pytest.raises((Interrupted, KeyboardInterrupt)):
                self.run()

    @property
    def is_whole(self) -> bool:
        """Return whether what is there now is the output that nothing stopped."""
        return hashes(self.output) == self.whole


@pytest.fixture(scope="module")
def made(checkpoints: Checkpoints, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Outputs that nothing stopped, by family and recipe, made once."""

    @cache
    def output(family: str, recipe: str) -> Path:
        path = tmp_path_factory.mktemp("made") / "out"
        calibrated(checkpoints(family), path, few, recipe)
        return path

    return output


@pytest.fixture(scope="module")
def whole(made: Callable[..., Path]) -> Path:
    """The usual one."""
    return made("text", "w4a16-g32-best")


@pytest.fixture
def case(text: Path, few: Path, whole: Path, tmp_path: Path) -> Case:
    """One that is to be the same."""
    return Case(text, few, tmp_path / "out", hashes(whole))


@pytest.mark.parametrize("family", one_in(5, ["text", "moe", "dense", "e2b", "unified"]))
def test_in_every_family_only_scales_of_layers_change_and_the_held_out_loss_does_not_rise(
    family: str, made: Callable[..., Path]
) -> None:
    gptq, best = made(family, "w4a16-g32-gptq"), made(family, "w4a16-g32-best")
    gained = json.loads((best / "g4convert.json").read_text())["result"]["calibration"]["scales"]
    before, after = stored(gptq), stored(best)
    assert before.keys() == after.keys()
    assert all(before[name].dtype is after[name].dtype and before[name].shape == after[name].shape for name in before)
    changed = {name for name in before if not same_bits(before[name], after[name])}
    assert bool(gained["share"]) == bool(changed)
    assert all(name.endswith("_scale") and ".layers." in name for name in changed)
    assert gained["kl"][f"{gained['share']:g}"] == min(gained["kl"].values()) <= gained["kl"]["0"]


@pytest.mark.wide
def test_threads_do_not_show(case: Case) -> None:
    case.run(workers=1)
    assert case.is_whole


class _Stop:
    """Stops the run at the n-th call of a function, before or after what it does."""

    def __init__(self, real: Callable[..., Any], at: int, *, after: bool) -> None:
        self.real, self.left, self.after = real, at, after

    def __call__(self, *given: Any, **more: Any) -> Any:  # noqa: ANN401 -- stands for any function
        self.left -= 1
        if not self.left and not self.after:
            raise KeyboardInterrupt
        found = self.real(*given, **more)
        if not self.left:
            raise KeyboardInterrupt
        return found


@pytest.mark.wide
@pytest.mark.parametrize(
    ("at", "after"), one_in(5, [(3, True), (1, False), (1, True), (STEPS, False), (STEPS + 1, True)])
)
def test_stopped_at_a_file_that_is_kept_it_repeats_a_step_at_most(
    at: int, case: Case, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    """Here the state is kept after each step; behind the steps are the finished scales."""
    monkeypatch.setattr(distill, "_KEPT", 1)
    stop = _Stop(distill.replace_file, at, after=after)
    case.stop(stop, (distill, "replace_file"), (trained, "replace_file"))
    rates: list[float] = []
    real = distill.Schedule.rate_at
    monkeypatch.setattr(distill.Schedule, "rate_at", lambda *given: rates.append(0) or real(*given))
    case.run()
    assert case.is_whole
    assert len(rates) == STEPS - min(at if after else at - 1, STEPS)


@pytest.mark.wide
def test_stopped_between_targets_it_makes_those_that_are_left(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = SoftTargets.make, list[int]()
    stop = _Stop(real, 4, after=False)
    case.stop(lambda *given: stop(*given), (SoftTargets, "make"))  # noqa: PLW0108 -- only a function becomes a method
    monkeypatch.setattr(SoftTargets, "make", lambda one, s, states: made.append(s) or real(one, s, states))
    case.run()
    assert case.is_whole
    assert made == [3, 4, 5]


@pytest.mark.full
@pytest.mark.parametrize("at", [1, 2])
def test_stopped_while_scales_are_written_it_writes_them_again(at: int, case: Case) -> None:
    case.stop(_Stop(trained.checksum, at, after=False), (trained, "checksum"))
    case.run()
    assert case.is_whole


@pytest.mark.full
def test_stopped_behind_the_training_it_does_not_train_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.stop(_close_and_stop, (LayerByLayer, "close"))
    monkeypatch.setattr(scales.ScaleTraining, "_train", None)
    case.run()
    assert case.is_whole


def _close_and_stop(layers: LayerByLayer) -> None:
    States(layers.conversion.staging.partial / STATES).drop()
    raise KeyboardInterrupt


@pytest.mark.wide
@pytest.mark.parametrize(("place", "layer"), one_in(4, product(["checksum", "replace_file"], [1, 0])))
def test_codes_that_were_changed_meanwhile_are_made_again(place: str, layer: int, case: Case, whole: Path) -> None:
    """Before scales are written, and when those of the first layer are."""
    case.stop(_Stop(getattr(trained, place), 1, after=True), (trained, place))
    shard = next(case.output.with_name("out.partial").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    words = stored(whole)[f"model.layers.{layer}.mlp.up_proj.weight_packed"]
    data[data.index(words.numpy().tobytes()[:64])] ^= 0xFF
    shard.write_bytes(data)
    case.run()
    assert case.is_whole


def test_what_does_not_gain_is_not_taken_and_the_report_says_so(
    case: Case, made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps hundreds of times too large."""
    monkeypatch.setattr(distill.Schedule, "rate_at", lambda *_: 2.0)
    summary = case.run()
    assert summary.calibration is not None
    assert summary.calibration["scales"]["share"] == 0
    assert "Taken: 0" in (case.output / "README.md").read_text()
    before, after = stored(made("text", "w4a16-g32-gptq")), stored(case.output)
    assert all(same_bits(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("kl", "share"),
    [({1.0: 3, 0.5: 1, 0.25: 2, 0.0: 4}, 0.5), ({1.0: 1, 0.0: 1}, 0), ({1.0: math.nan, 0.5: math.inf, 0.0: 9}, 0)],
)
def test_the_share_with_the_least_loss_is_taken_and_of_equals_the_smallest(
    kl: dict[float, float], share: float
) -> None:
    assert scales.best_share(kl) == share


@pytest.mark.parametrize("samples", [2, 3, 6, 17, 40, 128])
def test_a_fifth_is_held_out_with_those_that_judge(samples: int) -> None:
    out = held_out_samples(samples)
    assert judges(samples) <= out < {*range(samples)}
    assert len(out) == max(1, round(samples / 5))


def test_what_is_held_out_is_of_every_kind_where_kinds_take_turns() -> None:
    for kinds in (5, 7, 8):
        assert len({s % kinds for s in held_out_samples(128)}) == kinds


def test_a_model_that_does_not_fit_is_refused_before_the_layers(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scales, "is_roomy", lambda nbytes: nbytes < 100_000)
    with pytest.raises(
        EnvironmentFault, match=r"training takes .* \(decoder .*, scales .*, 2 samples .*\), and .* are free"
    ):
        case.run()
    assert not case.output.with_name("out.partial").exists()


def test_a_packed_head_is_refused(checkpoints: Checkpoints, few: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is packed, and scales are trained against a head that is kept"):
        calibrated(checkpoints("text"), tmp_path / "out", few, bits=["lm_head=8"])
    assert not (tmp_path / "out.partial").exists()


def test_a_source_on_the_grid_of_its_training_is_refused(checkpoints: Checkpoints, few: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"method best: .* lies on the grid"):
        calibrated(checkpoints("text", qat=True), tmp_path / "out", few)


@pytest.mark.wide
def test_mixed_packings_are_trained(checkpoints: Checkpoints, few: Path, tmp_path: Path) -> None:
    rules = [
        {"layers": "0", "bits": 8},
        {"names": "*.o_proj", "group_size": 64},
        {"role": "mlp", "layers": "1", "bits": 16},
    ]
    summary = calibrated(checkpoints("text"), tmp_path / "out", few, rules=rules)
    assert summary.calibration is not None
    assert summary.calibration["scales"]["share"]


def test_provenance_and_card_say_what_was_gained(whole: Path) -> None:
    result = json.loads((whole / "g4convert.json").read_text())["result"]
    assert result["method"] == "best"
    gained = result["calibration"]["scales"]
    assert set(gained) == {"share", "kl", "held_out"}
    assert set(gained["kl"]) == {"1", "0.5", "0.25", "0"}
    assert all("scales" not in how for how in result["calibration"]["modules"].values())
    card = (whole / "README.md").read_text()
    assert f"Taken: {gained['share']:g}" in card
    assert "| 1 | 0.5 | 0.25 | 0 (before) |" in card

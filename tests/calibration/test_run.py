"""A calibrated conversion: the same bytes however it runs and wherever it is killed, rounded the nearest way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers.conversions import stored
from helpers.grids import one_in
from helpers.program import Program, g4convert
from helpers.runs import hashes
from xxhash import xxh3_64_hexdigest

from g4convert.calibration.run import LayerByLayer
from g4convert.calibration.team import threads
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import Model
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.conversion.staging import STATES
from g4convert.demo.trained import trained
from g4convert.errors import EnvironmentFault, InputError, Interrupted, UsageError
from g4convert.forward.load import load as load_model
from g4convert.gemma4 import Architecture
from g4convert.gemma4.family import Family
from g4convert.planning.between import state_bytes
from g4convert.planning.recipe_files import load
from g4convert.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

    from g4convert.conversion.result import Summary

__all__ = ["g4convert"]  # a fixture

FAMILIES = ("moe", "dense", "unified", "e2b", "text", "unified_text")


@pytest.fixture(scope="session")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.safetensors"
    Tokens(np.random.default_rng(0).integers(5, 250, (12, 24), dtype=np.int32)).save(path)
    return path


def calibrated(source: Path, output: Path, ids: Path, progress: Progress | None = None, **options: object) -> Summary:
    workers = int(str(options.pop("workers", 2)))
    job = Job(Source.at(source), load("w4a16-g32-gptq", options), output, workers=workers, calibration=ids)
    conversion = prepare(job)
    summary = convert(conversion, progress or Progress(), Ranks(), LayerByLayer.of(conversion, ids))
    assert summary is not None
    return summary


Whole = Callable[[str], "tuple[Path, Summary]"]
STATE_BYTES: dict[Path, int] = {}
"""Bytes of what `whole` kept between layers, by source."""


@pytest.fixture(scope="module")
def whole(checkpoints: Checkpoints, ids: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Conversions of a family that nothing stopped, made once."""
    close = LayerByLayer.close

    def measured(layers: LayerByLayer) -> None:
        place = layers.conversion.staging.partial / STATES
        STATE_BYTES[layers.conversion.job.source.path] = sum(path.stat().st_size for path in place.glob("*.f32"))
        close(layers)

    @cache
    def made(family: str) -> tuple[Path, Summary]:
        output = tmp_path_factory.mktemp("whole") / "out"
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(LayerByLayer, "close", measured)
            return output, calibrated(checkpoints(family), output, ids)

    return made


class Stopping(Progress):
    """Stops the run as Ctrl-C does, at the n-th weight."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left, self.names = at, []

    def advance(self, nbytes: int, name: str) -> None:
        """See `Progress`."""
        super().advance(nbytes, name)
        self._count(name)

    def tick(self, count: int, name: str = "") -> None:
        """See `Progress`; weights of layers have names, other steps have none."""
        super().tick(count, name)
        if name:
            self._count(name)

    def _count(self, name: str) -> None:
        self.names.append(name)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("family", one_in(3, FAMILIES))
def test_every_family_loads_and_each_weight_is_rounded_the_nearest_way(family: str, whole: Whole) -> None:
    """Means are told apart by a few percent at most: weights and ids are random, and processors round differently."""
    output, summary = whole(family)
    assert summary.calibration is not None
    errors = summary.calibration["output_error"]
    assert errors["gptq"] < errors["imatrix"] * 1.03 < errors["data_free"] * 1.08
    for name, found in summary.calibration["modules"].items():
        assert found["errors"][found["way"]] == min(found["errors"].values()), name
    assert not summary.calibration["without_factor"]
    assert load_model(output) is not None
    assert not (output / "states").exists()


@pytest.mark.wide
def test_what_is_not_packed_keeps_its_bytes(moe: Path, ids: Path, tmp_path: Path) -> None:
    calibrated(moe, tmp_path / "out", ids, pack=["attention", "experts"])
    before, after = stored(moe), stored(tmp_path / "out")
    kept = [name for name in after if ".mlp." in name and "language_model" in name]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_experts_that_a_recipe_keeps_run_as_they_are(moe: Path, ids: Path, tmp_path: Path) -> None:
    summary = calibrated(moe, tmp_path / "out", ids, pack=["attention", "mlp"])
    assert summary.calibration is not None
    assert not any("experts" in name for name in summary.calibration["modules"])


@pytest.mark.full  # the trained scales of one thread and of two, of the same layers, are compared in each run
@pytest.mark.parametrize("family", ["moe", "text"])
def test_threads_do_not_show(family: str, whole: Whole, checkpoints: Checkpoints, ids: Path, tmp_path: Path) -> None:
    """The other conversion has two."""
    calibrated(checkpoints(family), tmp_path / "out", ids, workers=1)
    assert hashes(tmp_path / "out") == hashes(whole(family)[0])


@pytest.mark.wide
@pytest.mark.parametrize("family", one_in(2, ["moe", "e2b"]))
def test_stopped_in_each_layer_it_repeats_that_layer_alone_and_ends_with_the_same_bytes(
    family: str, whole: Whole, checkpoints: Checkpoints, ids: Path, tmp_path: Path
) -> None:
    source, (entire, expected) = checkpoints(family), whole(family)
    assert expected.calibration is not None
    a_layer = max(_per_layer([*expected.calibration["modules"]]).values())
    done: list[str] = []
    for _ in range(100):
        watch = Stopping(a_layer + 1)  # a layer with its record, and the first weight of the next
        try:
            summary = calibrated(source, tmp_path / "stopped" / "out", ids, watch)
            break
        except Interrupted:
            done += watch.names
    else:
        pytest.fail("it never ended")
    assert hashes(tmp_path / "stopped" / "out") == hashes(entire)
    assert summary.to_dict() == expected.to_dict()
    assert len(done) >= a_layer


def _per_layer(names: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        layer = name.partition("layers.")[2].partition(".")[0]
        found[layer] = found.get(layer, 0) + 1
    return found


@pytest.mark.parametrize("family", one_in(3, ["e2b", "moe", "dense"]))
def test_the_size_of_the_states_is_known_before(family: str, whole: Whole, checkpoints: Checkpoints, ids: Path) -> None:
    whole(family)
    source, tokens = checkpoints(family), Tokens.load(ids, 1 << 20)
    text = Architecture.from_config(Checkpoint.open(source).config).text
    assert STATE_BYTES[source] == state_bytes(text, tokens.samples * tokens.length, layered=True) > 0


@pytest.mark.full
def test_killed_and_continued_the_bytes_are_the_same(whole: Whole, moe: Path, ids: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed" / "out"
    command = ["quantize", str(moe), "-o", str(output), "-r", "w4a16-g32-gptq", "--calibration", str(ids)]
    script = (
        "import os, sys\n"
        "from g4convert.calibration import run\n"
        "from g4convert.cli.app import main\n"
        "real, left = run.LayerByLayer._write, [60]\n"
        "def write(*given):\n"
        "    real(*given)\n"
        "    left[0] -= 1\n"
        "    if not left[0]: os.kill(os.getpid(), 9)\n"
        "run.LayerByLayer._write = write\n"
        "main(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *command], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert os.path.isdir(f"{output}.partial/states")  # noqa: PTH112 -- a name, not a path of ours
    calibrated(moe, output, ids)
    assert hashes(output) == hashes(whole("moe")[0])


def test_the_command_verifies_what_it_wrote(ids: Path, g4convert: Program, tmp_path: Path) -> None:
    """The model is a trained one, whose weights GPTQ takes further from the source than any search."""
    source, output = trained(Family.MOE), tmp_path / "out"
    ran = g4convert("quantize", source, "-o", output, "-r", "w4a16-g32-gptq", "--calibration", ids)
    assert ran.status == 0, ran.err
    assert "on 12 samples of 24 tokens" in " ".join(ran.out.split())


@pytest.mark.wide
def test_states_that_were_damaged_meanwhile_start_the_layers_again(
    whole: Whole, moe: Path, ids: Path, tmp_path: Path
) -> None:
    entire, expected = whole("moe")
    assert expected.calibration is not None
    first = _per_layer([*expected.calibration["modules"]])["0"]
    with pytest.raises(Interrupted):
        calibrated(moe, tmp_path / "out", ids, Stopping(first + 1))
    path = tmp_path / "out.partial" / "states" / "hidden-1.f32"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    watch = Stopping(10**6)
    calibrated(moe, tmp_path / "out", ids, watch)
    assert any("layers.0.self_attn" in name for name in watch.names)
    assert hashes(tmp_path / "out") == hashes(entire)


@pytest.mark.wide
@pytest.mark.parametrize(
    "said",
    one_in(
        5,
        [
            {"way": "gptq", "tokens": 1, "damp": None, "errors": {}, "scales": {"kl": []}},
            None,
            {},
            {"way": 3, "tokens": 1, "damp": None, "errors": {}},
            {"way": "gptq", "tokens": "1", "damp": None, "errors": {"gptq": "0"}},
        ],
    ),
)
def test_a_row_of_another_form_with_the_right_hash_is_a_layer_not_done(
    said: object, moe: Path, ids: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        calibrated(moe, tmp_path / "out", ids, Stopping(60))
    path = tmp_path / "out.partial" / "journal.jsonl"
    lines = [json.loads(line.partition(" ")[2]) for line in path.read_text().splitlines() if line]
    forged = next(one for one in lines if one.get("stats") and isinstance(one["stats"][0][-1], dict))
    forged["stats"] = [row[:-1] if said is None else [*row[:-1], said] for row in forged["stats"]]
    texts = [json.dumps(one) for one in lines]
    path.write_text("".join(f"{xxh3_64_hexdigest(text.encode())} {text}\n" for text in texts))
    watch = Stopping(1)
    with pytest.raises(Interrupted):
        calibrated(moe, tmp_path / "out", ids, watch)
    assert "layers.0." in watch.names[0]


def test_a_file_of_another_model_and_a_full_disk_are_refused_before_anything_is_made(
    moe: Path, dense: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.safetensors"
    replace(CalibrationFile.load(ids), model=Model.of(Checkpoint.open(dense))).save(other)
    with pytest.raises(InputError, match="a calibration of another model than") as caught:
        calibrated(moe, tmp_path / "out", other)
    assert any(line.startswith("num_experts: 0, expected ") for line in caught.value.offenders)
    monkeypatch.setattr("g4convert.calibration.states.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(EnvironmentFault, match=r"for what flows between layers, 1\.00 kB are free"):
        calibrated(moe, tmp_path / "out", ids)
    assert [one.name for one in tmp_path.iterdir()] == ["other.safetensors"]


def test_other_data_is_another_run(moe: Path, ids: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        calibrated(moe, tmp_path / "out", ids, Stopping(5))
    other = tmp_path / "other.safetensors"
    Tokens(np.random.default_rng(1).integers(5, 250, (12, 24), dtype=np.int32)).save(other)
    with pytest.raises(InputError, match="an unfinished run of something else"):
        calibrated(moe, tmp_path / "out", other)


def test_method_and_data_go_together(moe: Path, ids: Path, tmp_path: Path) -> None:
    alone = prepare(Job(Source.at(moe), load("w4a16-g32-gptq"), tmp_path / "out"))
    with pytest.raises(InputError, match=r"out\.calibration\.safetensors: no such file"):
        convert(alone, Progress(), Ranks())
    with pytest.raises(UsageError, match="looks at weights alone"):
        prepare(Job(Source.at(moe), load("w4a16-g32"), tmp_path / "out", calibration=ids))


def test_a_source_on_a_lattice_keeps_its_codes(checkpoints: Checkpoints, ids: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="calibration would take it off"):
        calibrated(checkpoints("dense", qat=True), tmp_path / "out", ids)


@pytest.mark.wide
def test_a_recipe_may_calibrate_it_all_the_same(checkpoints: Checkpoints, ids: Path, tmp_path: Path) -> None:
    source = checkpoints("text", qat=True)
    summary = calibrated(source, tmp_path / "out", ids, qat="recalibrate")
    assert summary.calibration is not None
    assert summary.calibration["output_error"]["gptq"] < 0.1


def test_an_expert_without_tokens_is_named_and_keeps_its_weights(moe: Path, tmp_path: Path) -> None:
    """Two samples of four tokens reach a part of the experts."""
    few = tmp_path / "few.safetensors"
    Tokens(np.random.default_rng(0).integers(5, 250, (2, 4), dtype=np.int32)).save(few)
    summary = calibrated(moe, tmp_path / "out", few)
    assert summary.calibration is not None
    without = summary.calibration["without_tokens"]
    assert without
    assert all(".experts." in name for name in without)
    weights = stored(tmp_path / "out")
    assert all(weights[f"{name}.weight_scale"].float().abs().sum() > 0 for name in without)


def test_provenance_and_card_say_what_was_used(whole: Whole, ids: Path) -> None:
    output, _ = whole("moe")
    result = json.loads((output / "g4convert.json").read_text())["result"]
    assert result["method"] == "gptq"
    assert result["calibration"]["tokens"] == Tokens.load(ids, 256).hash
    card = (output / "README.md").read_text()
    assert "12 samples of 24 tokens" in card
    assert "on held-out rows" in card
    coverage = result["calibration"]["coverage"]
    assert coverage["experts"] == sum(name.endswith("gate_proj") for name in _experts(result["calibration"]["modules"]))
    assert f"{coverage['median']:,} tokens in the median" in card


def _experts(modules: dict[str, object]) -> list[str]:
    return [name for name in modules if ".experts." in name]


@pytest.mark.wide
def test_the_trained_model_answers_more_like_itself(tmp_path: Path) -> None:
    """Calibrated on ids of its own kind, KL on other samples of that kind is below that of the default."""
    source = trained(Family.MOE)
    random = np.random.default_rng(2)
    model = load_model(source)
    start = torch.from_numpy(random.integers(5, 1000, (48, 4)))
    with torch.no_grad():
        torch.manual_seed(0)
        own = model.generate(start, max_new_tokens=44, min_new_tokens=44, do_sample=True, use_cache=True)
    samples = own[:, :48].numpy().astype(np.int32)
    ids = tmp_path / "own.safetensors"
    Tokens(samples[:24]).save(ids)
    calibrated(source, tmp_path / "gptq", ids)
    convert(prepare(Job(Source.at(source), load("w4a16-g32"), tmp_path / "mse", workers=1)), Progress(), Ranks())
    judged = torch.from_numpy(samples[24:].astype(np.int64))
    assert _kl(model, tmp_path / "gptq", judged) < 0.9 * _kl(model, tmp_path / "mse", judged)


def _kl(model: torch.nn.Module, quantized: Path, ids: torch.Tensor) -> float:
    with torch.no_grad():
        of, to = (one(input_ids=ids).logits.log_softmax(-1) for one in (model, load_model(quantized)))
    return float((of.exp() * (of - to)).sum(-1).mean())


def test_a_stop_does_not_wait_for_what_is_queued() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.01)
        done.append(number)

    def stop() -> None:
        with threads(1) as pool:
            for number in range(100):
                pool.submit(work, number)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert len(done) < 10

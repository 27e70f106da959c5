"""`g4convert calibrate`: rows of ids from texts, and a conversion that makes its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from helpers.program import Program, g4convert
from helpers.rights import permissions_count
from transformers import AutoTokenizer

from g4convert.api.calibrate import Calibrated, calibrate
from g4convert.api.quantize import quantize
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.lock import Lock
from g4convert.errors import EnvironmentFault, InputError, Interrupted, UsageError
from g4convert.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

__all__ = ["g4convert"]  # a fixture

PLAIN: dict[str, Any] = {"answers": False, "statistics": False}
SHORT: dict[str, Any] = {"samples": 4, "length": 32, **PLAIN}


@pytest.mark.parametrize("family", ["text", "moe"])
def test_a_row_has_one_bos_and_the_words_of_the_texts(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = checkpoints(family)
    tokenizer = AutoTokenizer.from_pretrained(model)
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "the small blue boat " * 200}))
    done = calibrate(model, tmp_path / "c.safetensors", data=tmp_path / "mine.jsonl", **SHORT)
    ids = Tokens.load(tmp_path / "c.safetensors", len(tokenizer)).ids
    assert ids.shape == (4, 32)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert not (ids[:, 1:] == tokenizer.bos_token_id).any()
    assert "small blue boat" in tokenizer.decode(ids[1].tolist())
    assert done.texts["chat_frame"] is (tokenizer.chat_template is not None)
    modes = {one.stat().st_mode for one in (tmp_path / "c.safetensors", tmp_path / "mine.jsonl")}
    assert len(modes) == 1, "the file has the user's ordinary mode"


def test_the_seed_decides_and_kinds_take_turns(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = checkpoints("text")
    made = [calibrate(model, tmp_path / f"{n}.safetensors", seed=seed, **PLAIN) for n, seed in enumerate((1, 1, 2))]
    hashes = [one.tokens.hash for one in made]
    assert hashes[0] == hashes[1] != hashes[2]
    few = calibrate(model, tmp_path / "few.safetensors", samples=8, length=512, **PLAIN)
    assert len(few.texts["kinds"]) >= 4, "a part of the texts has several kinds"


def test_what_is_too_short_is_refused_with_numbers(checkpoints: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a few words only " * 30)
    with pytest.raises(InputError, match=r"too little text: \d+ tokens, 3,100 needed for 100 samples of 32") as refused:
        calibrate(
            checkpoints("text"),
            tmp_path / "c.safetensors",
            data=tmp_path / "mine.txt",
            samples=100,
            length=32,
            **PLAIN,
        )
    assert "--samples" in refused.value.hint
    assert [*tmp_path.glob("c.*")] == []


def test_ids_of_another_tokenizer_are_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Without the model's name, as of ids that another program made; with it, the model is what differs."""
    path, source, other = tmp_path / "c.safetensors", checkpoints("text"), tmp_path / "other"
    calibrate(source, path, **SHORT)
    shutil.copytree(source, other)
    (other / "tokenizer.json").write_text((source / "tokenizer.json").read_text() + " ")
    with pytest.raises(InputError, match="a calibration of another model than") as caught:
        Tokens.load(path, 1 << 20, Checkpoint.open(other))
    assert len(caught.value.offenders) == 1
    assert caught.value.offenders[0].startswith("tokenizer.json: hash ")
    replace(CalibrationFile.load(path), model=None).save(path)
    with pytest.raises(InputError, match=r"ids of another tokenizer: \w{12}, expected \w{12} "):
        Tokens.load(path, 1 << 20, Checkpoint.open(other))
    assert Tokens.load(path, 1 << 20, Checkpoint.open(source)).samples == 4


def test_bad_requests_leave_nothing(checkpoints: Checkpoints, tmp_path: Path, g4convert: Program) -> None:
    model, path = checkpoints("text"), tmp_path / "c.safetensors"
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "tokenizer.json").unlink()
    for words, status, said in (
        ((model, "-o", tmp_path / "c.bin"), 2, "ends in .safetensors"),
        ((model, "-o", tmp_path / "no" / "c.safetensors"), 2, "no file can be written there"),
        ((model, "-o", path, "--length", "9999999"), 2, "the model's context"),
        ((model, "-o", path, "--samples", "1"), 2, "one of them judges"),
        ((bare, "-o", path), 3, "no tokenizer.json"),
        ((tmp_path / "nothing", "-o", path), 3, "nothing"),
    ):
        ran = g4convert("calibrate", *words)
        assert (ran.status, said in ran.err) == (status, True), ran.err
        assert not path.exists()


def test_the_command_says_what_it_made_and_does_not_replace_it(
    checkpoints: Checkpoints, tmp_path: Path, g4convert: Program
) -> None:
    path = tmp_path / "c.safetensors"
    words = ("calibrate", checkpoints("moe"), "-o", path, "--no-answers", "--samples", 4, "--length", 32)
    found = json.loads(g4convert(*words, "--json").out)
    assert found["tokens"] == found["samples"] * found["length"]
    file = CalibrationFile.load(path)
    assert file.statistics is not None
    assert (found["sha256"], found["statistics"]) == (file.hash, file.statistics.hash)
    assert found["coverage"]["experts"] == 3 * 12
    assert found["kinds"] == (file.texts or {})["kinds"]
    before = path.read_bytes()
    again = g4convert(*words)
    assert (again.status, again.out) == (
        0,
        f"already done: {path} is {words[1]} by this command and version (--overwrite makes it again)\n",
    )
    assert json.loads(g4convert(*words, "--json").out) == found | {"already_done": True}
    for *other, why in (
        ("--seed", 1, "by seed 0"),
        ("--samples", 5, "4 samples of 32 tokens"),
        ("--no-statistics", "with statistics"),
    ):
        refused = g4convert(*words, *other)
        assert (refused.status, refused.err.splitlines()[1]) == (UsageError.exit_code, f"  {why}")
    assert g4convert("calibrate", checkpoints("text"), *words[2:]).status == UsageError.exit_code
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    damaged = g4convert(*words)
    assert (damaged.status, "is there already\n  " in damaged.err, "damaged" in damaged.err) == (2, True, True)
    out = g4convert(*words, "--overwrite", "--statistics").out
    for said in ("4 samples of 32", "statistics", "each in the median", "next"):
        assert said in out
    assert "`imatrix` makes its own" in g4convert(*words, "--overwrite", "--no-statistics").out
    assert CalibrationFile.load(path).statistics is None
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


class Stopping(Progress):
    """Stops when two layers are done, as Ctrl-C does."""

    def __init__(self) -> None:
        self.left = 2

    def tick(self, count: int) -> None:
        """See `Progress`."""
        self.left -= count
        if not self.left:
            raise KeyboardInterrupt


def test_stopped_it_continues_with_the_same_ids(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = checkpoints("text"), tmp_path / "c.safetensors"
    few: dict[str, Any] = {"samples": 4, "length": 32, "answers": False}
    whole = calibrate(model, tmp_path / "whole.safetensors", **few)
    for seed in (1, 0):
        with pytest.raises(Interrupted):
            calibrate(model, path, **few, seed=seed, progress=Stopping())
        assert not path.exists()
    monkeypatch.delattr("g4convert.api.calibration_request.sample")  # ids are there, and are not made again
    done = calibrate(model, path, **few)
    assert done.to_dict() == whole.to_dict() | {"output": str(path)}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c.safetensors", "whole.safetensors"]


def test_a_disk_without_room_for_states_is_refused_before_the_pass(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g4convert.calibration.states.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(EnvironmentFault, match=r"for what flows between layers, 1\.00 kB are free"):
        calibrate(checkpoints("text"), tmp_path / "c.safetensors", samples=4, length=32, answers=False)
    calibrate(checkpoints("text"), tmp_path / "c.safetensors", **SHORT)  # ids alone need none


def test_a_conversion_takes_the_file_beside_its_output_and_makes_it_where_there_is_none(
    checkpoints: Checkpoints, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = checkpoints("text"), tmp_path / "out"
    path = tmp_path / "out.calibration.safetensors"
    words = ("quantize", model, "-o", out, "-r", "w4a16-g32-gptq", "--verify", "none", "--json")
    asked: list[Path] = []

    def make(model: Path, output: Path, **how: Any) -> Calibrated:  # noqa: ANN401 -- whatever it is called with
        asked.append(output)
        return calibrate(model, output, samples=4, length=32, **how)

    monkeypatch.setattr("g4convert.api.calibrate.calibrate", make)
    ran = g4convert(*words)
    assert ran.status == 0, ran.err
    assert f"of the bundled texts, kept in {path}" in ran.err
    assert "4 x 32 tokens of the bundled texts, taken as they are" in ran.err
    said = " ".join(g4convert(*words[:-1], "-n", "--overwrite").out.split())
    assert "calibrated on 128 tokens of your texts" in said
    assert json.loads(ran.out)["calibration"]["tokens"] == Tokens.load(path, 1 << 20).hash
    assert json.loads(g4convert(*words).out)["already_done"] is True
    other = tmp_path / "other.safetensors"
    calibrate(model, other, seed=5, **SHORT)
    assert g4convert(*words, "--calibration", other).status == 2, "it was calibrated on other ids"
    assert asked == [path]


def test_a_finished_file_is_read_where_nothing_can_be_written(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    calibrate(checkpoints("text"), path, **SHORT)
    tmp_path.chmod(0o555)
    try:
        with permissions_count():
            assert calibrate(checkpoints("text"), path, **SHORT).already_done
            with pytest.raises(EnvironmentFault):
                calibrate(checkpoints("text"), tmp_path / "other.safetensors", **SHORT)
    finally:
        tmp_path.chmod(0o755)


def test_a_number_of_samples_that_is_the_usual_one_makes_the_same_file(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused as of other texts or answers, or by another version."""
    model, path = checkpoints("text"), tmp_path / "c.safetensors"
    few = tmp_path / "few.txt"
    few.write_text("the small blue boat\n\n" * 60)
    how: dict[str, Any] = {"data": few, "length": 32, **PLAIN}
    made = calibrate(model, path, **how)
    again = calibrate(model, path, samples=made.tokens.samples, **how)
    assert (again.already_done, again.tokens.hash) == (True, made.tokens.hash)
    calibrate(model, path, samples=made.tokens.samples - 1, overwrite=True, **how)
    with pytest.raises(UsageError, match=f"made with --samples {made.tokens.samples - 1}"):
        calibrate(model, path, **how)
    monkeypatch.setattr(
        "g4convert.api.existing_calibration._decided_content", id
    )  # as of answers, which are not given again
    calibrate(model, path, overwrite=True, **how)
    with pytest.raises(UsageError, match="made without --samples"):
        calibrate(model, path, samples=made.tokens.samples, **how)


def test_every_choice_has_an_option(checkpoints: Checkpoints, tmp_path: Path, g4convert: Program) -> None:
    (tmp_path / "mine.txt").write_text("the small blue boat " * 400)
    choices = ("--data", tmp_path / "mine.txt", "--seed", 3, "--samples", 2, "--length", 32, "--no-answers")
    choices += ("--workers", 1, "--no-statistics")
    assert g4convert("calibrate", checkpoints("text"), "-o", tmp_path / "c.safetensors", *choices).status == 0
    no_room = ("--answers", "--device", "cuda:99")
    assert g4convert("calibrate", checkpoints("text"), "-o", tmp_path / "d.safetensors", *no_room).status in {2, 5}


@pytest.mark.parametrize("recipe", ["w4a16-g32-gptq", "w4a16-g32-imatrix"])
def test_a_source_on_a_lattice_is_refused_before_anything_is_made(
    recipe: str, checkpoints: Checkpoints, tmp_path: Path, g4convert: Program
) -> None:
    ran = g4convert("quantize", checkpoints("dense", qat=True), "-o", tmp_path / "out", "-r", recipe)
    assert (ran.status, "calibration would take it off" in ran.err) == (2, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["calibrate", "quantize, ids alone", "quantize, statistics alone"])
def test_two_runs_on_one_file_are_not_possible(command: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """They shared the states between layers: some failed, and some wrote files that differ, with exit 0."""
    model, path = checkpoints("text"), tmp_path / "out.calibration.safetensors"
    ids = tmp_path / "ids.safetensors"
    calibrate(model, ids, **SHORT)

    def run() -> None:
        if command == "calibrate":
            calibrate(model, path, **SHORT)
        else:
            recipe = "w4a16-g32-imatrix" if "statistics" in command else "w4a16-g32-gptq"
            given = ids if "statistics" in command else None
            quantize(model, tmp_path / "out", recipe=recipe, calibration=given, verify=None)

    with Lock.beside(path) as first:
        first.take()
        with pytest.raises(EnvironmentFault, match=rf"{path.name}: another run writes it: process \d+"):
            run()
        assert {one.name for one in tmp_path.iterdir()} == {"ids.safetensors", first.path.name}
    if command == "calibrate":
        run()
        assert {one.name for one in tmp_path.iterdir()} == {"ids.safetensors", path.name}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"samples": 1}, "--samples 1: expected 2 to 65,536"),
        ({"samples": 10**30}, "expected 2 to 65,536"),
        ({"seed": -1}, "--seed -1: expected 0 to 9,223,372,036,854,775,807"),
        ({"seed": 1 << 63}, "expected 0 to 9,223,372,036,854,775,807"),
    ],
)
def test_numbers_have_bounds(numbers: dict[str, int], message: str, dense: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        calibrate(dense, tmp_path / "ids.safetensors", **numbers)

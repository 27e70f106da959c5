"""The model's own answers: drawn with a seed, alike however padded, and only where the model is at hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from g4convert.api.calibrate import Calibrated, calibrate
from g4convert.calibration import answers
from g4convert.calibration.answers import should_answer
from g4convert.checkpoint.directory import Checkpoint
from g4convert.devices import CPU
from g4convert.errors import UsageError
from g4convert.forward.decoding import draw, greedy
from g4convert.forward.load import load
from g4convert.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints


class Counted(Progress):
    """Counts the ids that it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def tick(self, count: int) -> None:
        """See `Progress`."""
        self.count += count


def made(model: Path, output: Path, seed: int = 0, progress: Progress | None = None, *, own: bool = True) -> Calibrated:
    data = output.with_suffix(".jsonl")
    data.write_text("".join(json.dumps({"prompt": f"Say {number} words."}) + "\n" for number in range(20)))
    return calibrate(
        model, output, data=data, samples=4, length=32, seed=seed, answers=own, statistics=False, progress=progress
    )


def test_the_seed_decides_what_a_model_says(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_LONGEST", 8)
    counted = Counted()
    found = [made(dense, tmp_path / f"{n}.safetensors", seed, counted) for n, seed in enumerate((0, 0, 1))]
    hashes = [one.tokens.hash for one in found]
    assert hashes[0] == hashes[1] != hashes[2]
    assert counted.count >= 3 * 4 * 31
    assert {one.texts["answers"] for one in found} == {"answered by the model, temperature 1"}
    plain = made(dense, tmp_path / "plain.safetensors", own=False)
    assert plain.tokens.hash not in hashes


def test_sharp_draws_are_greedy_ones_however_questions_are_padded(checkpoints: Checkpoints) -> None:
    model = load(checkpoints("dense"), dtype="float32")
    questions = [[2, 40, 41, 42], [2, 50]]
    expected = [[*greedy(model, ids, max_new_tokens=6)] for ids in questions]

    def sharpen(_: object, __: object, output: Any) -> None:  # noqa: ANN401 -- a ModelOutput
        output.logits = output.logits * 1e6

    with model.register_forward_hook(sharpen):
        drawn = draw(model, questions, max_new_tokens=6, generator=torch.Generator().manual_seed(0))
    assert drawn == expected


def test_a_model_answers_where_it_is_at_hand(moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(moe)
    cuda = torch.device("cuda")
    assert should_answer(checkpoint, CPU, chat=True, asked=None).answers
    assert should_answer(checkpoint, CPU, chat=True, asked=False).why == "taken as they are"
    assert should_answer(checkpoint, CPU, chat=False, asked=None).why == "taken as they are, as this is a base model"
    assert should_answer(checkpoint, CPU, chat=False, asked=True).why == "continued by the model, temperature 1"
    monkeypatch.setattr(answers, "is_roomy", lambda _, device: device == cuda)
    monkeypatch.setattr(answers, "_SMALL", 0)
    assert should_answer(checkpoint, cuda, chat=True, asked=None).answers
    assert "does not fit in memory" in should_answer(checkpoint, CPU, chat=True, asked=None).why
    with pytest.raises(UsageError, match=r"--answers: .* GB of weights do not fit"):
        should_answer(checkpoint, CPU, chat=True, asked=True)
    monkeypatch.setattr(answers, "is_roomy", lambda *_: True)
    assert "would answer slowly on the cpu" in should_answer(checkpoint, CPU, chat=True, asked=None).why


def test_one_question_is_enough(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_LONGEST", 64)
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "Say something."}))
    done = calibrate(moe, tmp_path / "c.safetensors", data=tmp_path / "one.jsonl", samples=4, length=16, answers=True)
    assert done.tokens.ids.shape == (4, 16)


def test_long_questions_are_answered_alone() -> None:
    batches = [*answers._batches([10, 9000, 10, 4000, 4096] + [10] * 20)]  # noqa: SLF001 -- the arithmetic of memory
    assert sorted(number for batch in batches for number in batch) == list(range(25))
    assert [len(batch) for batch in batches] == [16, 6, 2, 1]

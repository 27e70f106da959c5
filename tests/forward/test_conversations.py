"""Beginnings of what a model reads: BOS where its tokenizer has one, and nothing where it has none."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from g4convert.calibration.answers import answer_questions
from g4convert.calibration.documents import Document
from g4convert.calibration.sampling import sample
from g4convert.demo.trained import trained
from g4convert.forward.conversations import Frame, frame_of
from g4convert.forward.generation import Speaker
from g4convert.forward.load import load
from g4convert.forward.models import read_config
from g4convert.gemma4.family import Family
from g4convert.progress import Progress
from g4convert.verification.probes.suite import make_probes

if TYPE_CHECKING:
    from pathlib import Path

    from g4convert.forward.models import Model

BOS = 2
TOLD = [{"role": "user", "content": "Tell me a tale"}]


@pytest.fixture(scope="module")
def model() -> Model:
    """The trained MoE, whose frames these tests change."""
    return load(trained(Family.MOE))


@pytest.fixture(params=[True, False], ids=["BOS", "no BOS"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Frame, list[int]]:
    """A base model's directory, its frame, and the ids that its texts begin with."""
    directory = shutil.copytree(
        trained(Family.MOE),
        tmp_path / "base",
        ignore=shutil.ignore_patterns("chat_template.jinja", "*.safetensors"),
    )
    if not request.param:
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": None}))
    return directory, frame_of(directory, read_config(directory)), [BOS] * request.param


def test_a_question(base: tuple[Path, Frame, list[int]]) -> None:
    _, frame, begins = base
    assert frame.beginning == begins
    assert frame.question(TOLD) == [*begins, *frame.encode("Tell me a tale"), *frame.encode("\n")]


def test_probes_and_prompts(base: tuple[Path, Frame, list[int]], model: Model) -> None:
    directory, frame, begins = base
    probes = make_probes(model, directory)
    firsts = {probe.arguments["input_ids"][0, 0].item() for probe in probes if "attention_mask" not in probe.arguments}
    assert (firsts == {BOS}) is bool(begins)
    said = Speaker(model, frame, 0).answer("Once", max_new_tokens=1)
    assert [*said.prompt_ids] == [*begins, *frame.encode("Once")]


def test_rows_and_answers(base: tuple[Path, Frame, list[int]], model: Model) -> None:
    _, frame, begins = base
    texts = [Document("data", ({"role": "user", "content": f"{n} little words"},)) for n in range(80)]
    found = sample(texts, frame, samples=4, length=32, seed=0, tokenizer="")
    assert found.tokens.ids.shape == (4, 32)
    assert (found.tokens.ids == BOS).sum() == 4 * len(begins)
    continued = answer_questions(model, frame, texts[:2], enough=8, seed=0, progress=Progress())
    assert all(one.ids[:2] == tuple(frame.encode(f"{n} little words"))[:2] for n, one in enumerate(continued))

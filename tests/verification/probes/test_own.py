"""The user's own prompts: what does not suit a model is refused, by its line, before the model is loaded."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Checkpoints

from g4convert.errors import InputError, UsageError
from g4convert.forward.conversations import frame_of, read_prompts
from g4convert.forward.models import read_config
from g4convert.verification.probes.own import conversations
from g4convert.verification.probes.suite import ids_of


def asked(question: str, **more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **more}


def written(tmp_path: Path, *lines: Mapping[str, Any]) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def shortened(source: Path, target: Path, context: int) -> Path:
    """Copy a checkpoint's config and words, with another context."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((target / "config.json").read_text())
    config.get("text_config", config)["max_position_embeddings"] = context
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("lines", "offender"),
    [
        ((asked("Boats?", name="one"), asked("Cats?", name="one")), "line 2: the name 'one' again, of line 1"),
        ((asked("Boats?", name="mine:2"), asked("Cats?")), "line 2: the name 'mine:2' again, of line 1"),
        ((asked("Boats?"), asked("Cats?", name=1), asked("Dogs?", name="1")), "line 3: the name '1' again, of line 2"),
    ],
)
def test_a_name_is_of_one_prompt(lines: Sequence[Mapping[str, Any]], offender: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_prompts(written(tmp_path, *lines), chat=True)
    assert [line.partition(": results")[0] for line in caught.value.offenders] == [offender]


def test_no_name_is_no_name(tmp_path: Path) -> None:
    found = read_prompts(written(tmp_path, *[asked("Boats?", name=None, bucket=None)] * 2), chat=True)
    assert [(one.name, one.bucket) for one in found] == [("mine:1", "prompts"), ("mine:2", "prompts")]


def test_names_of_the_pictures_are_taken(moe: Path, tmp_path: Path) -> None:
    lines = [asked("Boats?", bucket="image"), asked("Cats?", name="image_wide"), asked("Dogs?", bucket="code")]
    path = written(tmp_path, *lines)
    with pytest.raises(UsageError, match="pictures and sounds") as caught:
        conversations(path, moe)
    assert [*caught.value.offenders] == ["line 1: the bucket 'image'", "line 2: the name 'image_wide'"]
    assert len(conversations(written(tmp_path, lines[2]), moe)) == 1


def test_a_drafter_reads_no_prompts(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it reads no prompts"):
        conversations(written(tmp_path, asked("Boats?")), checkpoints("assistant"))


def test_a_long_prompt_is_told_by_us_alone(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = shortened(checkpoints("text"), tmp_path / "model", 64)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 64}))
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = told.append  # type: ignore[method-assign]
    log = logging.getLogger("transformers")
    log.addHandler(handler)
    try:
        with pytest.raises(UsageError, match="context of 64"):
            conversations(written(tmp_path, asked("boats " * 80)), model)
    finally:
        log.removeHandler(handler)
    assert told == []


def test_a_prompt_fits_the_context(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source, question = checkpoints("text"), "Which boats lie in the old harbour?"
    answered = [{"role": "user", "content": question}, {"role": "assistant", "content": "Two red boats."}]
    path = written(tmp_path, asked("Hi"), asked(question), {"messages": answered})
    frame = frame_of(source, read_config(source))
    lengths = [tuple(map(len, ids_of(one, frame))) for one in read_prompts(path, chat=True)]
    assert lengths[1][1] == 0
    assert lengths[2][1] > 1
    for context, long in (
        (sum(lengths[2]), []),
        (sum(lengths[2]) - 1, [3]),
        (lengths[1][0] + 1, [3]),
        (lengths[1][0], [2, 3]),
    ):
        model = shortened(source, tmp_path / f"{context}", context)
        if not long:
            assert len(conversations(path, model)) == 3
            continue
        with pytest.raises(UsageError, match=f"the model's context of {context:,} tokens") as caught:
            conversations(path, model)
        assert [*caught.value.offenders] == [f"line {n}: {sum(lengths[n - 1]):,} tokens" for n in long]

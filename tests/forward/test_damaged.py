"""Files beside the weights that transformers reads: whatever is in them, a damaged one is one refusal."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import FormatError, InputError
from g4convert.forward.conversations import frame_of
from g4convert.forward.load import load
from g4convert.forward.models import quiet_transformers, read_config
from g4convert.forward.pieces import TensorFiles

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "no text": b"\xff\xfe",
    "cut": b"{",
    "nested": b"[" * 100_000,
    "of another form": b'{"added_tokens": [], "chat_template": [[]], "auto_map": {"AutoTokenizer": ["a.b", null]}}',
}


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_tokenizer(file: str, content: str, dense: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(dense, local_files_only=True)
    for path in dense.glob("*token*"):
        shutil.copy(path, tmp_path)
    (tmp_path / file).write_bytes(CONTENTS[content])
    with pytest.raises(FormatError, match=f"{tmp_path}: the tokenizer cannot be read: ") as caught:
        frame_of(tmp_path, config)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_chat_template_that_is_no_text(dense: Path, tmp_path: Path) -> None:
    for path in dense.glob("*token*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="the tokenizer cannot be read"):
        frame_of(tmp_path, AutoConfig.from_pretrained(dense, local_files_only=True))


@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b"[" * 100_000, b"\xff", b'{"eos_token_id": ' + b"9" * 5000])
def test_a_damaged_generation_config(content: bytes, text: Path, tmp_path: Path) -> None:
    shutil.copytree(text, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"^generation_config\.json is "):
        load(tmp_path / "model")


def test_a_value_that_transformers_refuses(text: Path, tmp_path: Path) -> None:
    config = json.loads((text / "config.json").read_text()) | {"rope_parameters": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"config\.json cannot be read: "):
        read_config(tmp_path)


@pytest.mark.parametrize("left", [b"", b"abc", b"\2\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_cut_or_replaced_after_its_header_was_read(left: bytes, dense: Path, tmp_path: Path) -> None:
    """Layers are read one by one, the last perhaps hours after the first: it was a crash."""
    shutil.copytree(dense, tmp_path / "model")
    checkpoint = Checkpoint.open(tmp_path / "model")
    name, tensor = next(iter(checkpoint.tensors.items()))
    (tmp_path / "model" / tensor.file).write_bytes(left)
    with pytest.raises(InputError, match=rf"{tensor.file}: was changed while it was read"):
        TensorFiles(checkpoint)[name]


def test_libraries_print_nothing_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("{")
    with quiet_transformers():
        sys.stdout.write("as Python prints")
        os.write(1, b"as other languages print")
    sys.stdout.write("}")
    assert capfd.readouterr().out == "{}"

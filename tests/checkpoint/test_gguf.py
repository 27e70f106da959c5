"""GGUF: what another program wrote is read; nothing that a file says of itself is believed."""

from __future__ import annotations

import os
import struct
import zlib
from base64 import b64decode
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.gguf_file import gguf_bytes

from g4convert.checkpoint import gguf
from g4convert.checkpoint.gguf import is_gguf, read_gguf
from g4convert.errors import FormatError, InputError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

BY_GGUF_0_19 = zlib.decompress(
    b64decode(
        "eNqNkE1uwjAQhYdARSN1gegONikHsFBPkEgITtC1McSAFTA/nojAiqP0JnA0EhiEA+FnNk+eefP0jXu9v24ZAD7gXBXSL9Kx1HIlpgw3C/mZ"
        "vqvUVzOBK5XU8k8WChRGonHTXmYv0dwlRZmgYZjg983icBLriA/nscYMIUOqF1qM2soTpAPQJMdgGrE2E4iaL9laqvEEmdLcxLNfx7rpAmNX"
        "40nEicY41qad4L2RcIZ4xOCTtnIJo5Hm4XytuUwWpuAah9xlK6lP+vM66f4oO2h3/0OHTkraIWK/eP6sdvvrqUX7XgDwH1h5ft7nBY93AY6S"
        "vWSP"
    )
)
"""An importance matrix of two weights as the package gguf 0.19.0 wrote it."""
VALUES = {"general.type": "imatrix", "imatrix.chunk_count": 3, "imatrix.datasets": ["a", "b"]}
ONE = np.ones(1)
TENSORS = {"one": np.arange(6.0).reshape(2, 3), "other": np.arange(40.0)}


def written(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "m.gguf").write_bytes(data)
    return tmp_path / "m.gguf"


def test_what_the_package_gguf_wrote_is_read(tmp_path: Path) -> None:
    found = read_gguf(written(tmp_path, BY_GGUF_0_19))
    assert found.values["general.type"] == "imatrix"
    assert found.values["imatrix.datasets"] == ("texts.txt",)
    assert (found.values["imatrix.chunk_count"], found.values["imatrix.chunk_size"]) == (3, 512)
    assert found.tensors["blk.0.attn_q.weight.in_sum2"].tolist() == [[1536, 768, 0, 3]]
    assert found.tensors["blk.0.ffn_down_exps.weight.in_sum2"].tolist() == [[10, 20], [0, 0], [6, 3]]
    assert found.tensors["blk.0.ffn_down_exps.weight.counts"].tolist() == [[10], [0], [3]]


@pytest.mark.parametrize("version", [2, 3])
def test_what_is_written_by_the_layout_is_read(version: int, tmp_path: Path) -> None:
    path = written(tmp_path, gguf_bytes(VALUES, TENSORS, version))
    found = read_gguf(path)
    assert found.values == {**VALUES, "imatrix.datasets": ("a", "b")}
    assert all(np.array_equal(found.tensors[name], one) for name, one in TENSORS.items())
    assert is_gguf(path)
    assert not is_gguf(tmp_path / "absent")


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """Nobody writes into it, so `--calibration` waited for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        is_gguf(tmp_path / "pipe")


def test_every_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    whole = gguf_bytes(VALUES, TENSORS)
    for length in range(len(whole)):
        with pytest.raises(InputError):
            read_gguf(written(tmp_path, whole[:length]))


def test_every_changed_byte_is_read_or_refused(tmp_path: Path) -> None:
    whole, messages = gguf_bytes(VALUES, TENSORS), []
    for at in range(300):
        data = bytearray(whole)
        data[at] = (0, 1, 0x7F, 0x80, 0xFF)[at % 5]
        try:
            read_gguf(written(tmp_path, bytes(data)))
        except InputError as error:
            messages.append(error.message)
    assert len(messages) > 100
    assert all(str(tmp_path) in one for one in messages)


def test_numbers_that_cannot_be_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gguf_bytes(VALUES, TENSORS)
    at_name = whole.index(b"one") + 3
    many = struct.pack("<Q", 1 << 62)
    for data, kind, words in (
        (b"GGML" + whole[4:], UnsupportedError, "not a GGUF file"),
        (whole[:4] + struct.pack(">I", 3) + whole[8:], UnsupportedError, "big-endian"),
        (whole[:4] + struct.pack("<I", 1) + whole[8:], UnsupportedError, "version 1 of GGUF, expected 2 or 3"),
        (whole[:8] + many + whole[16:], FormatError, "entries at 16 do not fit"),
        (whole[:16] + many + whole[24:], FormatError, "entries at 24 do not fit"),
        (whole[:24] + many + whole[32:], FormatError, "run past its end"),
        (gguf_bytes({"general.alignment": 0}, TENSORS), FormatError, "general.alignment 0"),
        (gguf_bytes({"general.alignment": "x"}, TENSORS), FormatError, "general.alignment 'x'"),
        (whole[:at_name] + struct.pack("<I", 9) + whole[at_name + 4 :], FormatError, "one has 9 dimensions"),
        (whole[: at_name + 20] + struct.pack("<I", 2) + whole[at_name + 24 :], UnsupportedError, "type 2, not float32"),
        (whole[: at_name + 4] + many + whole[at_name + 12 :], FormatError, "one: .* cut short"),
        (gguf_bytes({"a": 1, "b": 2}, {}).replace(b"b", b"a"), FormatError, "a is there twice"),
        (gguf_bytes({}, {"t": ONE, "u": ONE}).replace(b"u", b"t"), FormatError, "a tensor is there twice"),
    ):
        with pytest.raises(kind, match=words):
            read_gguf(written(tmp_path, data))
    monkeypatch.setattr(gguf, "_MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="the most that is read"):
        read_gguf(written(tmp_path, whole))

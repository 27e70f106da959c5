"""The file of token ids: what it holds, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from g4convert.calibration.tokens import Tokens
from g4convert.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def tokens(samples: int = 40, length: int = 16) -> Tokens:
    return Tokens(np.random.default_rng(0).integers(0, 100, (samples, length), dtype=np.int32))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    given = tokens()
    given.save(tmp_path / "ids.safetensors")
    found = Tokens.load(tmp_path / "ids.safetensors", 100)
    assert np.array_equal(found.ids, given.ids)
    assert (found.samples, found.length, found.hash) == (40, 16, given.hash)


@pytest.mark.parametrize(("samples", "judges"), [(2, {1}), (20, {19}), (40, {19, 39}), (26, {25})])
def test_one_in_twenty_judges(samples: int, judges: set[int]) -> None:
    assert tokens(samples).judges == judges


def test_ids_beyond_the_vocabulary_are_of_another_tokenizer(tmp_path: Path) -> None:
    tokens().save(tmp_path / "ids.safetensors")
    with pytest.raises(InputError, match=r"\d+ of 640 ids, such as 9\d, are outside the model's vocabulary of 90: of"):
        Tokens.load(tmp_path / "ids.safetensors", 90)


def test_changed_ids_do_not_have_their_hash(tmp_path: Path) -> None:
    tokens().save(tmp_path / "ids.safetensors")
    data = bytearray((tmp_path / "ids.safetensors").read_bytes())
    data[-4] ^= 1
    (tmp_path / "ids.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        Tokens.load(tmp_path / "ids.safetensors", 100)


@pytest.mark.parametrize(
    "ids", [np.zeros((1, 8), np.int32), np.zeros((4, 0), np.int32), np.zeros(8, np.int32), np.zeros((4, 8), np.int64)]
)
def test_what_is_no_set_of_samples_is_refused(ids: np.ndarray, tmp_path: Path) -> None:
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    with pytest.raises(InputError, match="expected int32"):
        Tokens.load(tmp_path / "ids.safetensors", 100)


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a calibration file"):
        Tokens.load(tmp_path / "absent.safetensors", 100)
    (tmp_path / "text.safetensors").write_text("no header")
    with pytest.raises(InputError, match="not a calibration file"):
        Tokens.load(tmp_path / "text.safetensors", 100)
    save_file({"other": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a calibration file"):
        Tokens.load(tmp_path / "other.safetensors", 100)

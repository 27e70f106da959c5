"""One flipped bit anywhere in a shard is found, and files that change under a verification are noticed."""

import shutil
from pathlib import Path

import pytest
from helpers.conversions import quantized

from g4convert import quantize
from g4convert.checkpoint.directory import Checkpoint
from g4convert.progress import with_messages_to
from g4convert.report import Report, Severity
from g4convert.request import Level, Request
from g4convert.verification.run import verify


@pytest.fixture(scope="module")
def packed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "dense"
    quantized(dense, out)
    return out


def found(report: Report, code: str) -> list[tuple[Severity, str]]:
    return [(one.severity, one.subject) for one in report.findings if one.code == code]


def flip_a_bit(out: Path, part: str, bit: int) -> str:
    """Flip a bit of the first tensor whose name ends with `part`; return the name of its file."""
    stored = next(one for name, one in Checkpoint.open(out).tensors.items() if name.endswith(part))
    with (out / stored.file).open("r+b") as file:
        file.seek(stored.begin)
        value = file.read(1)[0]
        file.seek(stored.begin)
        file.write(bytes([value ^ 1 << bit]))
    return stored.file


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "layernorm.weight"])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_fails(part: str, bit: int, packed: Path, dense: Path, tmp_path: Path) -> None:
    out = shutil.copytree(packed, tmp_path / "out")
    file = flip_a_bit(out, part, bit)
    for asked in (Request(out, dense, Level.WEIGHTS), Request(out)):
        assert found(verify(asked), "weights.hash") == [(Severity.FAIL, file)]
    assert found(verify(Request(out, level=Level.STATIC)), "weights.hash") == []


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale"])
def test_the_check_that_ends_a_conversion_finds_one_flipped_bit(part: str, dense: Path, tmp_path: Path) -> None:
    """It said that shards were hashed when they were written, and did not look."""
    out = tmp_path / "out"

    def flip(text: str) -> None:
        if text.startswith("verifying level static"):
            flip_a_bit(out, part, 0)

    done = quantize(dense, out, say=flip)
    assert done.report is not None
    assert [severity for severity, _ in found(done.report, "weights.hash")] == [Severity.FAIL]
    assert not done.passed


def test_a_sound_output_passes_and_one_without_hashes_is_told(packed: Path, dense: Path, tmp_path: Path) -> None:
    assert found(verify(Request(packed, dense, Level.WEIGHTS)), "weights.hash") == [(Severity.PASS, "1 shard")]
    out = shutil.copytree(packed, tmp_path / "out")
    for record in ("[" * 100_000, "{}", '{"files": {"a": 3}}', '{"files": []}'):
        (out / "g4convert.json").write_text(record)
        report = verify(Request(out, dense, Level.WEIGHTS))
        assert found(report, "weights.hash") == [(Severity.INFO, "g4convert.json")]


def test_an_output_that_was_sharded_anew_is_told_what_is_compared(packed: Path, dense: Path, tmp_path: Path) -> None:
    out = shutil.copytree(packed, tmp_path / "out")
    (out / "model-00001-of-00001.safetensors").rename(out / "model.safetensors")
    (out / "model.safetensors.index.json").unlink()
    report = verify(Request(out, dense, Level.WEIGHTS))
    (told,) = (one for one in report.findings if one.code == "weights.hash")
    assert (told.severity, told.found[:18]) == (Severity.WARN, "no hash of 1 shard")
    assert "remove `files` from g4convert.json" in told.remedy
    assert report.exit_code(strict=False) == 0


@pytest.mark.parametrize("place", ["out", "source"])
def test_what_changes_while_it_is_read_is_inconclusive(place: str, packed: Path, dense: Path, tmp_path: Path) -> None:
    out, source = shutil.copytree(packed, tmp_path / "out"), shutil.copytree(dense, tmp_path / "source")

    def touch(text: str) -> None:
        if text.startswith("verifying level weights"):
            (tmp_path / place / "config.json").touch()

    report = verify(Request(out, source, Level.WEIGHTS), progress=with_messages_to(None, touch))
    assert found(report, "static.changed") == [(Severity.INCONCLUSIVE, "config.json")]
    assert report.exit_code(strict=False) == 4

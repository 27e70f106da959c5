"""Options of `g4convert verify`, and references that `g4convert reference` stores: what goes together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.program import Program, brief, g4convert
from helpers.verified import logits, prompts, text_out

from g4convert.errors import UsageError
from g4convert.request import DEFAULTS, Level, Request, Settings
from g4convert.run_options import MemoryUse

if TYPE_CHECKING:
    from conftest import Checkpoints

__all__ = ["brief", "g4convert", "prompts", "text_out"]  # fixtures


@pytest.mark.parametrize("option", ["--junit", "--html"])
def test_a_file_that_cannot_be_written_is_refused_first(
    option: str, text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path
) -> None:
    _, out = text_out
    for place in (tmp_path, tmp_path / "no" / "where", out / "report"):
        ran = g4convert("verify", out, option, place)
        assert ran.status == 2
        assert "static:" not in ran.err
    assert not (out / "report").exists()
    ran = g4convert("verify", out, option, "-")
    assert (ran.status, ran.err) == (2, "error: -: a file is written, and not to standard output\nhint: name a file\n")
    assert not Path("-").exists()


def test_what_a_level_needs(text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path) -> None:
    source, out = text_out
    for level in ("weights", "logits"):
        ran = g4convert("verify", out, "--level", level)
        assert ran.status == 2
        assert f"level {level} needs a reference" in ran.err
        assert f"made of {source.name}" in ran.err
    for option, value in (("--device", "cpu"), ("--dtype", "float32")):
        said = g4convert("verify", out, option, value).err
        assert said.startswith(f"error: {option} belongs to level logits, which needs a reference\n")
    assert g4convert("verify", tmp_path / "nowhere").status == 3
    assert g4convert("verify", out, "--reference", tmp_path / "nowhere").status == 3
    assert g4convert("verify", out, "--reference", tmp_path / "no.safetensors").status == 3
    assert g4convert("verify", out, "--profile", "none-such").status == 2
    assert g4convert("verify", out, "--level", "none-such").status == 2
    assert g4convert("verify", out, "--profile", "parity", "--dtype", "int8").status == 2


@pytest.mark.parametrize("option", [("--profile", "qat"), ("--memory", "stream"), ("--dtype", "bfloat16")])
def test_options_of_level_logits_are_refused_below_it(
    option: tuple[str, str], text_out: tuple[Path, Path], g4convert: Program
) -> None:
    source, out = text_out
    ran = g4convert("verify", out, "--reference", source, "--level", "weights", *option)
    assert ran.status == 2
    assert f"{option[0]} belongs to level logits" in ran.err


def test_defaults_hold_where_nothing_is_given_and_help_prints_them(g4convert: Program) -> None:
    assert Request(Path("out")).settings == DEFAULTS
    given = Request(Path("out"), Path("model"), device="cuda:1", profile="qat", memory=MemoryUse.STREAM)
    assert given.settings == Settings("qat", MemoryUse.STREAM, DEFAULTS.dtype, "cuda:1", DEFAULTS.engine_timeout)
    text = " ".join(g4convert("verify", "--help").out.replace("│", " ").split())
    for name in (DEFAULTS.profile, DEFAULTS.memory, DEFAULTS.dtype, DEFAULTS.device):
        assert f"{name} (default)" in text
    assert f"(default {DEFAULTS.engine_timeout:g})" in text


def test_the_last_level_follows_from_the_reference_and_the_engine() -> None:
    from pathlib import Path  # noqa: PLC0415 -- for a type only elsewhere

    out = Path("out")
    assert Request(out).depth is Level.STATIC
    assert Request(out, Path("model")).depth is Level.WEIGHTS
    assert Request(out, Path("ref.safetensors")).depth is Level.LOGITS
    assert Request(out, Path("model"), memory=MemoryUse.STREAM).depth is Level.LOGITS
    with pytest.raises(UsageError, match="belongs to level logits"):
        Request(out, Path("model"), Level.STATIC, prompts=Path("mine.jsonl"))


def test_raw_prose_is_refused_for_a_model_that_chats(
    text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path
) -> None:
    (tmp_path / "prose.jsonl").write_text('{"prompt": "The old harbour lies quiet in the morning."}\n')
    ran = logits(g4convert, text_out, "--prompts", tmp_path / "prose.jsonl")
    assert ran.status == 2
    assert "static: names" not in ran.err  # before the work
    assert "never trained off its chat frame" in ran.err


@pytest.mark.usefixtures("brief")
def test_a_stored_reference_takes_the_place_of_the_model(
    text_out: tuple[Path, Path], prompts: Path, g4convert: Program, tmp_path: Path
) -> None:
    source, out = text_out
    file = tmp_path / "ref.safetensors"
    stored = json.loads(g4convert("reference", source, "-o", file, "--prompts", prompts, "--json", "-q").out)
    assert stored["bytes"] == file.stat().st_size
    beside = json.loads(
        g4convert("verify", out, "--reference", source, "--level", "logits", "--prompts", prompts, "--json").out
    )
    ran = g4convert("verify", out, "--reference", file, "--json", "-q")
    found = json.loads(ran.out)
    assert found["levels"] == ["static", "logits"]
    assert found["metrics"]["loss"]["kl_mean"] == pytest.approx(beside["metrics"]["loss"]["kl_mean"], rel=1e-4)
    codes = {one["code"]: one["severity"] for one in found["findings"]}
    for code in ("static.provenance", "static.config", "static.side_files"):
        assert codes[code] == "pass"
    assert codes["weights.stopped"] == "info"
    assert g4convert("reference", source, "-o", tmp_path / "ref.bin").status == 2
    other = tmp_path / "other.safetensors"
    shutil.copy(next(source.glob("*.safetensors")), other)
    assert g4convert("verify", out, "--reference", other).status == 3


def test_a_reference_is_not_written_over_and_is_everybodys(
    text_out: tuple[Path, Path], prompts: Path, g4convert: Program, tmp_path: Path
) -> None:
    source, stored = text_out[0], tmp_path / "ref.safetensors"
    command = ("reference", source, "-o", stored, "--prompts", prompts, "-q")
    assert g4convert(*command).status == 0
    (tmp_path / "other").touch()
    assert stored.stat().st_mode == (tmp_path / "other").stat().st_mode
    before = stored.read_bytes()
    ran = g4convert(*command[:-1])
    assert (ran.status, ran.out.startswith(f"already done: {stored} is {source} by this command")) == (0, True)
    assert json.loads(g4convert(*command, "--json").out)["already_done"] is True
    prompted = "of other prompts, or by another version"
    for other, why in ((command[:4], prompted), ((*command, "--dtype", "bfloat16"), "in float32")):
        ran = g4convert(*other)
        assert (ran.status, ran.err.splitlines()[:2]) == (2, [f"error: {stored}: is there already", f"  {why}"])
    stored.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert "damaged: its content" in g4convert(*command).err
    assert g4convert(*command, "--overwrite").status == 0
    assert stored.read_bytes() == before


def test_a_reference_is_of_an_original(text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("reference", text_out[1], "-o", tmp_path / "ref.safetensors")
    assert ran.status == 2
    assert f"error: {text_out[1]}: already quantized (compressed-tensors)" in ran.err
    assert not (tmp_path / "ref.safetensors").exists()


def test_swapped_arguments_are_recognized(text_out: tuple[Path, Path], g4convert: Program) -> None:
    source, out = text_out
    ran = g4convert("verify", source, "--reference", out)
    assert ran.status == 2
    assert "the two are swapped" in ran.err
    assert f"hint: g4convert verify {out} --reference {source}" in ran.err


@pytest.mark.parametrize("told", ["both", "neither"])
def test_swapped_arguments_are_recognized_by_what_is_stored(
    told: str, text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path
) -> None:
    source, out = (shutil.copytree(one, tmp_path / one.name) for one in text_out)
    plain, packed = (json.loads((one / "config.json").read_text()) for one in (source, out))
    section = packed.pop("quantization_config")
    if told == "both":
        (source / "config.json").write_text(json.dumps({**plain, "quantization_config": section}))
    else:
        (out / "config.json").write_text(json.dumps(packed))
    assert "the two are swapped" in g4convert("verify", source, "--reference", out).err
    assert "the two are swapped" not in g4convert("verify", out, "--reference", source, "--level", "static").err


def test_a_mistyped_reference_file(text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path) -> None:
    (tmp_path / "ref.safetensors").touch()
    for name in ("reff.safetensors", "ref.safetensor"):
        ran = g4convert("verify", text_out[1], "--reference", tmp_path / name)
        first, hint = ran.err.splitlines()
        assert (ran.status, first) == (3, f"error: {tmp_path / name}: no such file")
        assert hint == f"hint: did you mean {tmp_path / 'ref.safetensors'}?"
    ran = g4convert("verify", text_out[1], "--reference", tmp_path / "nosuch.safetensors")
    assert "hint: `g4convert reference MODEL -o FILE` stores one\n" in ran.err


def test_a_file_of_weights_as_the_reference(text_out: tuple[Path, Path], g4convert: Program) -> None:
    source, out = text_out
    ran = g4convert("verify", out, "--reference", next(source.glob("*.safetensors")))
    assert (ran.status, ran.err.splitlines()[-1]) == (3, f"hint: pass the directory {source}")


@pytest.mark.parametrize("command", ["verify", "reference"])
def test_prompts_are_read_before_anything_is_loaded(
    command: str, text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from g4convert.verification.logits import level  # noqa: PLC0415 -- brings torch

    def load(*_: object, **__: object) -> object:
        raise AssertionError("loaded")

    monkeypatch.setattr(level, "load", load)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompts": "?"}\n')
    source, out = text_out
    more = (out, "--reference", source) if command == "verify" else (source, "-o", tmp_path / "r.safetensors")
    ran = g4convert(command, *more, "--prompts", bad)
    assert ran.status == 3
    assert "unknown key 'prompts'" in ran.err
    assert '{"messages": [' in ran.err


def test_another_source_is_told(text_out: tuple[Path, Path], checkpoints: Checkpoints, g4convert: Program) -> None:
    ran = g4convert("verify", text_out[1], "--reference", checkpoints("text", dtype="float32"), "--level", "static")
    assert "warn static.provenance g4convert.json: made of another checkpoint" in ran.out

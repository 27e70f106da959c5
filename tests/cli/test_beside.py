"""`--carry` and `--leave`: shown in the plan, done by the conversion, known to the verification."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.program import Program, g4convert

__all__ = ["g4convert"]  # a fixture


@pytest.fixture
def model(dense: Path, tmp_path: Path) -> Path:
    """A checkpoint with a hidden file and a picture."""
    copy = tmp_path / "model"
    shutil.copytree(dense, copy)
    (copy / ".gitattributes").write_text("* -text\n")
    (copy / "logo.png").write_bytes(b"png")
    return copy


PATTERNS = ("--carry", ".git*", "--leave", "*.png")


def test_the_plan_shows_what_each_pattern_decides(model: Path, g4convert: Program) -> None:
    shown = g4convert("plan", model, *PATTERNS).out
    assert "carry .git*  .gitattributes\n" in shown
    assert "leave *.png  logo.png\n" in shown
    files = json.loads(g4convert("plan", model, *PATTERNS, "--json").out)["files"]
    assert ".gitattributes" in files["carried"]
    assert "logo.png" not in files["carried"]
    assert files["decided"] == [
        {"option": "carry", "pattern": ".git*", "files": [".gitattributes"]},
        {"option": "leave", "pattern": "*.png", "files": ["logo.png"]},
    ]
    without = json.loads(g4convert("plan", model, "--json").out)["files"]
    assert without["left"] == [{"name": ".gitattributes", "reason": "hidden"}]


def test_a_pattern_that_means_nothing_stops_both_commands(model: Path, g4convert: Program, tmp_path: Path) -> None:
    for command in (("plan", model), ("quantize", model, "-o", tmp_path / "out")):
        ran = g4convert(*command, "--leave", "*.jpg", "--carry", ".env")
        assert ran.status == 3
        assert ran.err.startswith(
            "error: patterns that mean no file of the model's directory\n  --carry .env\n  --leave *.jpg\nhint: "
        )
    assert not (tmp_path / "out").exists()


def test_the_hint_about_a_link_to_nothing_works(model: Path, g4convert: Program) -> None:
    (model / "voice.wav").symlink_to("../blobs/gone")
    ran = g4convert("plan", model)
    assert ran.status == 3
    assert ran.err.startswith("error: voice.wav: a link to ../blobs/gone, which does not exist\nhint: ")
    assert "--leave voice.wav" in ran.err
    assert g4convert("plan", model, "--leave", "voice.wav").status == 0


@pytest.mark.parametrize("pattern", ["../x", "/etc/passwd", ""])
def test_what_is_no_pattern_is_refused(pattern: str, model: Path, g4convert: Program) -> None:
    ran = g4convert("plan", model, "--carry", pattern)
    assert ran.status == 2
    assert ran.err.startswith("error: --carry")


def test_the_output_has_what_was_decided_and_verifies(model: Path, g4convert: Program, tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", tmp_path / "mine.yaml"
    recipe.write_text('extends: w4a16-g32\ncarry: [".git*"]\nleave: ["*.png"]\n')
    command = ("quantize", model, "-o", out, "-r", recipe, "--verify", "none")
    g4convert(*command)
    names = {path.name for path in out.iterdir()}
    assert ".gitattributes" in names
    assert "logo.png" not in names
    check = ("verify", out, "--reference", model, "--level", "static", "--json")
    found = json.loads(g4convert(*check).out)["findings"]
    about = {one["subject"]: (one["severity"], one["found"]) for one in found if one["code"] == "static.side_files"}
    assert about["logo.png"] == ("info", "left behind, as the recipe in g4convert.json says")
    assert not {severity for severity, _ in about.values()} & {"fail", "warn"}
    assert g4convert(*command).out.startswith("already done")
    (out / ".gitattributes").unlink()
    found = json.loads(g4convert(*check).out)["findings"]
    assert (".gitattributes", "missing") in {(one["subject"], one["found"]) for one in found}
    damaged = g4convert(*command)
    assert (damaged.status, damaged.err.splitlines()[1]) == (3, "  .gitattributes")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_output_that_was_damaged_is_not_called_done(
    name: str, model: Path, g4convert: Program, tmp_path: Path
) -> None:
    command = ("quantize", model, "-o", tmp_path / "out", "--verify", "none")
    g4convert(*command, "-q")
    path = next((tmp_path / "out").glob(name.replace("model", "model*")))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1 if path.suffix == ".safetensors" else 0
    path.write_bytes(bytes(data) if path.suffix == ".safetensors" else bytes(data) + b" ")
    ran = g4convert(*command)
    assert ran.status == 3
    assert "but was changed since" in ran.err
    assert path.name in ran.err

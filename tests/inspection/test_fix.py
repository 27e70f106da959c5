"""`check --fix`: what it writes, what it tells, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.configs import (
    Config,
    copied,
    exit_code,
    fixed,
    good,
    judged,
    left_out,
    loads,
    read,
    renamed_section,
    scheme,
    state,
    whole_group,
    without,
)

from g4convert.engines.verdicts import Loads
from g4convert.errors import GateError
from g4convert.inspection import fix as fixing
from g4convert.inspection.fix import fix
from g4convert.report import Severity

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["copied", "good"]


def test_a_correction_leaves_everything_else(copied: Callable[..., Path]) -> None:
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}

    def change(config: Config) -> None:
        config["somebody"] = {"elses": ["key", None, 1.5, "ü"]}
        config["quantization_config"] |= {"kv_cache_scheme": cache, "version": "0.9"}
        without("lm_head")(config)

    directory = copied("31B", change)
    before = read(directory)
    fix(directory)
    after = read(directory)
    assert after["quantization_config"]["kv_cache_scheme"] == cache
    assert after["quantization_config"]["version"] == "0.9"
    assert {**after, "quantization_config": 0} == {**before, "quantization_config": 0}
    assert "ü" in (directory / "config.json").read_text()


def test_an_earlier_original_is_never_overwritten(copied: Callable[..., Path]) -> None:
    directory = copied("31B", without("lm_head"))
    (directory / "config.json.orig").write_text("mine")
    assert fixed(directory).kept == directory / "config.json.orig.2"
    assert (directory / "config.json.orig").read_text() == "mine"


def test_a_write_that_fails_leaves_the_config(copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = copied("31B", without("lm_head"))
    before = (directory / "config.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        fix(directory)
    assert (directory / "config.json").read_bytes() == before


def test_a_file_of_somebody_beside_the_config_is_kept(copied: Callable[..., Path], tmp_path: Path) -> None:
    """`config.json.new` was overwritten, and through a link a file outside the checkpoint."""
    directory = copied("31B", without("lm_head"))
    outside = tmp_path / "thesis.tex"
    outside.write_text("years")
    (directory / "config.json.new").symlink_to(outside)
    (directory / "config.json.orig").symlink_to(tmp_path / "nowhere")
    assert fixed(directory).kept == directory / "config.json.orig.2"
    assert outside.read_text() == "years"
    assert (directory / "config.json.new").is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_two_at_once_keep_the_original(copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both took the same free name, and the second copied what the first had written."""
    directory = copied("31B", without("lm_head"))
    before, write = (directory / "config.json").read_bytes(), fixing.write_whole

    def second(*arguments: object, **options: object) -> None:
        monkeypatch.setattr(fixing, "write_whole", write)
        fix(directory)
        write(*arguments, **options)

    monkeypatch.setattr(fixing, "write_whole", second)
    fix(directory)
    copies = [path.read_bytes() for path in directory.glob("config.json.*")]
    assert copies == [before, before]
    assert exit_code(judged(directory, "vllm")) == 0


@pytest.mark.parametrize("replaced", [False, True])
def test_ctrl_c_leaves_the_config_or_the_original(
    *, replaced: bool, copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the rename the config is what it was, and nothing lies beside it; after it the original is there."""
    directory = copied("31B", without("lm_head"))
    before, replace = (directory / "config.json").read_bytes(), Path.replace

    def stopped(path: Path, to: Path) -> None:
        if replaced:
            replace(path, to)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        fix(directory)
    kept = [path.read_bytes() for path in directory.glob("config.json.*")]
    assert kept == ([before] if replaced else [])
    assert ((directory / "config.json").read_bytes() == before) is not replaced
    assert not [*directory.glob(".g4convert-*")]


def test_a_config_that_is_a_link_leaves_what_it_points_to(copied: Callable[..., Path], tmp_path: Path) -> None:
    """The hub's cache has such links."""
    directory = copied("31B", without("lm_head"))
    blob = tmp_path / "blob"
    (directory / "config.json").rename(blob)
    (directory / "config.json").symlink_to(blob)
    before = blob.read_bytes()
    fix(directory)
    assert blob.read_bytes() == before
    assert not (directory / "config.json").is_symlink()


@pytest.mark.parametrize("key", ["input_activations", "output_activations"])
def test_quantized_activations_fail_and_are_never_discarded(
    key: str, copied: Callable[..., Path], good: Callable[[str], Path]
) -> None:
    directory = copied("31B", whole_group(**{key: {"num_bits": 8, "type": "int"}}))
    found = judged(directory)
    assert set(loads(found).values()) == {Loads.NO}
    assert any(f"{key}: quantized activations" in one.found for one in found.report.of(Severity.FAIL))
    files = state(directory)
    with pytest.raises(GateError, match="tensors cannot say whether activations are quantized") as error:
        fix(directory)
    assert key in error.value.offenders[0]
    assert state(directory) == files
    assert exit_code(judged(good("31B"), "vllm")) == 0


def test_a_preset_with_activations_is_never_discarded(copied: Callable[..., Path]) -> None:
    def preset(name: str) -> Callable[[Config], None]:
        def change(config: Config) -> None:
            config["quantization_config"]["config_groups"] = {name: ["Linear"]}
            without("lm_head")(config)

        return change

    directory = copied("31B", preset("W4A8"))
    with pytest.raises(GateError, match="activations"):
        fix(directory)
    config = read(directory)
    preset("W4A16")(config)
    (directory / "config.json").write_text(json.dumps(config))
    assert fixed(directory).changes


def test_a_correction_tells_each_change(copied: Callable[..., Path]) -> None:
    def change(config: Config) -> None:
        scheme(group_size=64, actorder="weight", observer="mse" * 40)(config)
        without("lm_head", "re:nothing")(config)
        renamed_section(config)

    directory = copied("31B", change)
    before = read(directory)["compression_config"]
    made = fixed(directory)
    weights = "quantization_config.config_groups.group_0.weights"
    after = read(directory)["quantization_config"]
    assert made.changes[0] == "compression_config -> quantization_config"
    assert {f"{weights}.group_size: 64 -> 32", 'quantization_config.ignore: "re:nothing" taken out'} < {*made.changes}
    assert any(line.startswith(f'{weights}.observer: "msemse') and "..." in line for line in made.changes)
    added_entries = [entry for entry in after["ignore"] if entry not in before["ignore"]]
    assert added_entries
    assert [line for line in made.changes if line.endswith(" added")] == [
        f"quantization_config.ignore: {json.dumps(entry)} added" for entry in added_entries
    ]


def test_a_correction_tells_null_from_what_is_left_out(copied: Callable[..., Path]) -> None:
    def change(config: Config) -> None:
        scheme(num_bits=None, bits=4)(config)
        left_out("group_size")(config)

    weights = "quantization_config.config_groups.group_0.weights"
    lines = {
        f"{weights}.num_bits: null -> 4", f"{weights}.bits: 4 -> left out", f"{weights}.group_size: left out -> 32",
    }  # fmt: skip
    assert {*fixed(copied("31B", change)).changes} == lines
    (line,) = fixed(copied("E2B", lambda config: config.pop("quantization_config"))).changes
    assert line.startswith("quantization_config: left out -> {")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (scheme(group_size=64), "group_size 64 in the config, 32 stored"),
        (lambda config: config.pop("quantization_config"), "quantization_config"),
        (without("nothing", r"re:.*\.mlp\..*"), "expected no entry of `ignore` that names it"),
        (without("lm_head"), "expected an entry of `ignore` that names it"),
    ],
)
def test_what_fix_corrects_is_said_in_the_remedy(
    change: Callable[[Config], object], line: str, copied: Callable[..., Path]
) -> None:
    static = [one for one in judged(copied("31B", change)).report.of(Severity.FAIL) if one.level == "static"]
    assert any(line in one.line for one in static), [one.line for one in static]
    assert all("`g4convert check OUT --fix`" in one.remedy for one in static)

"""`g4convert verify` as a user meets it: its levels, its report and its status."""

from __future__ import annotations

import json
import re
from io import StringIO
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from helpers.damage import STATIC, config, damaged
from helpers.program import Program, brief, g4convert
from helpers.verified import logits, prompts, text_out
from rich.console import Console

from g4convert.checkpoint.directory import Checkpoint
from g4convert.cli import show_report
from g4convert.errors import EnvironmentFault
from g4convert.report import Report
from g4convert.request import Level, Request

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["brief", "g4convert", "prompts", "text_out"]  # fixtures


def test_levels_by_default(text_out: tuple[Path, Path], g4convert: Program) -> None:
    source, out = text_out
    alone, beside = g4convert("verify", out), g4convert("verify", out, "--reference", source)
    assert (alone.status, beside.status) == (0, 0)
    assert alone.out.splitlines()[0] == f"PASS {out}: static"
    assert beside.out.splitlines()[0] == f"PASS {out} against {source}: static, weights"
    assert "static: names" in alone.err
    assert "level weights: squared" not in alone.err
    assert "level weights: squared error of each packed tensor at most 1.05 times" in beside.err


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("level", [level for level in Level if level is not Level.ENGINE])
def test_each_level_includes_those_before(level: Level, text_out: tuple[Path, Path], g4convert: Program) -> None:
    source, out = text_out
    ran = g4convert("verify", out, "--reference", source, "--level", level, "--json", "-q")
    found = json.loads(ran.out)
    assert found["levels"] == list(Level)[: list(Level).index(level) + 1]
    assert {one["code"].partition(".")[0] for one in found["findings"]} == set(found["levels"])


def test_parity_needs_no_reference(text_out: tuple[Path, Path], prompts: Path, g4convert: Program) -> None:
    _, out = text_out
    ran = g4convert("verify", out, "--profile", "parity", "--prompts", prompts, "--json", "-q")
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert found["levels"] == ["static", "logits"]
    assert found["metrics"]["probes"]["count"] >= 1
    assert "loss" not in found["metrics"]


def test_json_is_all_of_stdout_and_versioned(text_out: tuple[Path, Path], g4convert: Program) -> None:
    source, out = text_out
    found = json.loads(g4convert("verify", out, "--reference", source, "--json").out)
    assert found["schema_version"] == 1
    assert (found["output"], found["reference"], found["verdict"]) == (str(out), str(source), "pass")
    rows = found["metrics"]["weights"]["tensors"]
    assert rows
    assert all(0 < row["relative_error"] < 0.02 for row in rows)


def test_a_failure_exits_1_and_is_told_even_when_quiet(
    text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path
) -> None:
    source, good = text_out
    out = damaged(good, tmp_path / "out", STATIC["wrong group size"])
    ran = g4convert("verify", out, "--reference", source, "-q")
    assert (ran.status, ran.err) == (1, "")
    assert ran.out.startswith(f"FAIL {out} against {source}: static")
    assert "fail static.scheme config_groups.group_0: group_size 64" in ran.out
    assert g4convert("verify", good, "-q").out == ""
    told = g4convert("verify", out, "-v").out
    assert "pass static.index" in told
    assert "pass static.index" not in ran.out


def test_a_remedy_is_said_once_below_all_that_it_mends(
    text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path
) -> None:
    source, good = text_out
    out = damaged(good, tmp_path / "out", config(lambda whole: whole.update(sliding_window=1, vocab_size=7)))
    told = g4convert("verify", out, "--reference", source, "--level", "static").out.splitlines()
    changed = [n for n, line in enumerate(told) if line.startswith(("fail static.architecture", "fail static.config"))]
    assert len(changed) == 3
    assert changed == [*range(changed[0], changed[-1] + 1)]
    remedy = told[changed[-1] + 1]
    assert remedy.startswith("     take the source's config.json")
    assert told.count(remedy) == 1


def test_strict_fails_on_a_warning(text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path) -> None:
    out = damaged(text_out[1], tmp_path / "out", STATIC["wrong total size"])
    usual, strict = g4convert("verify", out), g4convert("verify", out, "--strict")
    assert (usual.status, strict.status) == (0, 1)
    assert usual.out.startswith("WARN ")
    assert "warnings are strict" in strict.out
    strict_file = tmp_path / "report.xml"
    g4convert("verify", out, "--strict", "--junit", strict_file)
    assert int(ET.parse(strict_file).getroot().attrib["failures"]) == 1  # noqa: S314 -- our own


def test_files_of_a_report(text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path) -> None:
    source, out = text_out
    junit, html = tmp_path / "report.xml", tmp_path / "report.html"
    ran = g4convert("verify", out, "--reference", source, "--junit", junit, "--html", html)
    assert ran.status == 0
    for line in (f"written {junit} (JUnit XML)", f"written {html} (HTML page)"):
        assert line in ran.out.splitlines()
    suites = [suite.attrib["name"] for suite in ET.parse(junit).getroot()]  # noqa: S314 -- our own
    assert suites == ["g4convert.static", "g4convert.weights"]
    page = html.read_text(encoding="utf-8")
    assert "Worst weights" in page
    assert not re.search(r"""(?:src|href)=["']?http""", page)


@pytest.mark.wide
@pytest.mark.usefixtures("brief")
def test_memory_and_dtype_change_how_not_what(text_out: tuple[Path, Path], prompts: Path, g4convert: Program) -> None:
    runs = [("--memory", "resident"), ("--memory", "stream"), ("--dtype", "bfloat16")]  # others run with `auto`
    found = [json.loads(logits(g4convert, text_out, "--prompts", prompts, "--json", "-q", *more).out) for more in runs]
    assert {one["verdict"] for one in found} == {"pass"}
    assert [one["metrics"]["dtype"] for one in found] == ["float32", "float32", "bfloat16"]
    assert found[0]["metrics"]["parity"]["kl_mean"] == found[1]["metrics"]["parity"]["kl_mean"]
    assert "rounding" in found[2]["metrics"]["floor"]["sources"]


def test_inconclusive_exits_4(text_out: tuple[Path, Path], prompts: Path, g4convert: Program, tmp_path: Path) -> None:
    import yaml  # noqa: PLC0415 -- for this test

    from g4convert.verification.profiles import load  # noqa: PLC0415 -- brings pydantic

    values = load("parity").model_dump(by_alias=True, exclude_none=True) | {"max_floor": 0}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    source, out = text_out
    ran = g4convert("verify", out, "--reference", source, "--profile", tmp_path / "mine.yaml", "--prompts", prompts)
    assert ran.status == 4
    assert ran.out.startswith("INCONCLUSIVE")
    assert "whether the packed path differs from the dequantized weights cannot be told: " in ran.out
    assert "no dtype rounds less than float32" in ran.out
    assert "routing" not in ran.out


@pytest.mark.usefixtures("brief")
def test_memory_that_does_not_suffice_exits_5(
    text_out: tuple[Path, Path], g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("g4convert.verification.logits.level.check_logits", fail)
    ran = logits(g4convert, text_out)
    assert ran.status == EnvironmentFault.exit_code == 5
    assert "--memory stream" in ran.err


def test_an_interrupt_exits_75(
    text_out: tuple[Path, Path], g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("g4convert.verification.run.check_static", stop)
    assert g4convert("verify", text_out[1]).status == 75


@pytest.mark.parametrize("level", ["weights", "logits"])
def test_each_directory_is_opened_once(
    level: str, text_out: tuple[Path, Path], prompts: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    original = Checkpoint.open

    def counted(path: Path) -> Checkpoint:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(Checkpoint, "open", counted)
    source, out = text_out
    mine = ("--prompts", prompts) if level == "logits" else ()
    ran = g4convert("verify", out, "--reference", source, "--level", level, *mine)
    assert ran.out.splitlines()[0].endswith((level, "logits (static, weights passed)"))
    assert sorted(opened) == sorted([source, out])


def test_a_level_that_was_asked_for_and_cannot_run_is_inconclusive(
    text_out: tuple[Path, Path], prompts: Path, g4convert: Program, tmp_path: Path
) -> None:
    source, out = text_out
    stored = tmp_path / "ref.safetensors"
    assert g4convert("reference", source, "-o", stored, "--prompts", prompts, "-q").status == 0
    ran = g4convert("verify", out, "--reference", stored, "--level", "weights")
    assert ran.status == 4
    assert ran.out.startswith("INCONCLUSIVE")
    assert "level weights: values not compared: a stored reference holds no weights" in ran.out


@pytest.mark.parametrize("overlap", [0.9, float("nan")])
def test_router_overlap_is_explained_where_there_are_experts(overlap: float) -> None:
    file = StringIO()
    loss = {"lower_bound": False, "router_jaccard_min": overlap}
    found = Report((), ("logits",), {"loss": loss, "floor": {"values": {}}})
    show_report.print_report(Console(file=file, width=400), found, strict=False, verbose=False)
    assert "Sure: where" in file.getvalue()
    assert ("Router overlap: of the experts" in file.getvalue()) is (overlap == 0.9)


def test_strict_says_that_nothing_warns(text_out: tuple[Path, Path], g4convert: Program) -> None:
    source, out = text_out
    asked = ("verify", out, "--reference", source)
    verdict = f"PASS {out} against {source}: static, weights"
    assert verdict in g4convert(*asked).out.splitlines()
    assert f"{verdict}; no warnings (--strict)" in g4convert(*asked, "--strict").out.splitlines()


@pytest.mark.wide
@pytest.mark.usefixtures("brief")
def test_a_path_without_a_difference_is_a_sentence(text_out: tuple[Path, Path]) -> None:
    from g4convert.verification.run import verify  # noqa: PLC0415 -- brings torch

    source, out = text_out
    found, brief = verify(Request(out, source, Level.LOGITS)), StringIO()
    show_report.print_report(Console(file=brief, width=100), found, strict=False, verbose=False)
    told = brief.getvalue()
    after = told.partition("\nwhether the packed weights compute the same as the dequantized ones: ")[2]
    assert " ".join(after.split()).startswith("yes, to the last bit, in all ")
    assert "-v lists every check" in told
    assert told.count("by float32 rounding") == 1  # a row of the mean KL
    assert told.partition("by float32 rounding")[2].splitlines()[0].endswith("a KL below this means nothing")

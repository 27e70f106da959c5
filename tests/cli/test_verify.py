"""`g4convert verify`, `g4convert reference` and `quantize --verify` as a user meets them."""

from __future__ import annotations

import json
import re
import shutil
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from helpers.damage import STATIC, VALUES, config, damaged, lose
from helpers.program import Program, Ran, brief, g4convert
from rich.console import Console

from g4convert.checkpoint.directory import Checkpoint
from g4convert.cli import show_report
from g4convert.cli.next_steps import made_anew
from g4convert.errors import EnvironmentFault, UsageError
from g4convert.report import Finding, Report, Severity
from g4convert.request import DEFAULTS, Level, MemoryUse, Request, Settings

if TYPE_CHECKING:
    from conftest import Checkpoints

__all__ = ["brief", "g4convert"]  # fixtures


@pytest.fixture(scope="module")
def text_out(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The smallest family: source and conversion."""
    from helpers.conversions import quantized  # noqa: PLC0415 -- brings torch

    out = tmp_path_factory.mktemp("verify") / "out"
    source = checkpoints("text")
    quantized(source, out)
    return source, out


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One line of the user's own."""
    path = tmp_path_factory.mktemp("prompts") / "mine.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Which boats lie in the old harbour?"}]}\n')
    return path


def logits(g4convert: Program, pair: tuple[Path, Path], *more: object) -> Ran:
    """The level logits of the path that runs; what four bits cost a random model is not judged."""
    source, out = pair
    return g4convert("verify", out, "--reference", source, "--profile", "parity", *more)


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


def test_requests() -> None:
    from pathlib import Path  # noqa: PLC0415 -- for a type only elsewhere

    out = Path("out")
    assert Request(out).depth is Level.STATIC
    assert Request(out, Path("model")).depth is Level.WEIGHTS
    assert Request(out, Path("ref.safetensors")).depth is Level.LOGITS
    assert Request(out, Path("model"), memory=MemoryUse.STREAM).depth is Level.LOGITS
    with pytest.raises(UsageError, match="belongs to level logits"):
        Request(out, Path("model"), Level.STATIC, prompts=Path("mine.jsonl"))


@pytest.mark.wide
@pytest.mark.usefixtures("brief")
def test_memory_and_dtype_change_how_not_what(text_out: tuple[Path, Path], prompts: Path, g4convert: Program) -> None:
    runs = [("--memory", "resident"), ("--memory", "stream"), ("--dtype", "bfloat16")]  # others run with `auto`
    found = [json.loads(logits(g4convert, text_out, "--prompts", prompts, "--json", "-q", *more).out) for more in runs]
    assert {one["verdict"] for one in found} == {"pass"}
    assert [one["metrics"]["dtype"] for one in found] == ["float32", "float32", "bfloat16"]
    assert found[0]["metrics"]["parity"]["kl_mean"] == found[1]["metrics"]["parity"]["kl_mean"]
    assert "rounding" in found[2]["metrics"]["floor"]["sources"]


def test_raw_prose_is_refused_for_a_model_that_chats(
    text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path
) -> None:
    (tmp_path / "prose.jsonl").write_text('{"prompt": "The old harbour lies quiet in the morning."}\n')
    ran = logits(g4convert, text_out, "--prompts", tmp_path / "prose.jsonl")
    assert ran.status == 2
    assert "static: names" not in ran.err  # before the work
    assert "never trained off its chat frame" in ran.err


def test_inconclusive_exits_4(text_out: tuple[Path, Path], prompts: Path, g4convert: Program, tmp_path: Path) -> None:
    import yaml  # noqa: PLC0415 -- for this test

    from g4convert.verification.gates import load  # noqa: PLC0415 -- brings pydantic

    values = load("parity").model_dump(by_alias=True, exclude_none=True) | {"max_floor": 0}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    source, out = text_out
    ran = g4convert("verify", out, "--reference", source, "--profile", tmp_path / "mine.yaml", "--prompts", prompts)
    assert ran.status == 4
    assert ran.out.startswith("INCONCLUSIVE")


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
    assert codes["static.provenance"] == "pass"
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


def test_swapped_arguments_are_recognized(text_out: tuple[Path, Path], g4convert: Program) -> None:
    source, out = text_out
    ran = g4convert("verify", source, "--reference", out)
    assert ran.status == 2
    assert "the two are swapped" in ran.err
    assert f"hint: g4convert verify {out} --reference {source}" in ran.err


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


def test_a_warning_at_the_end_of_a_conversion_says_why(
    text: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it must be quiet: the reason is not to be looked for."""
    from g4convert.verification import run  # noqa: PLC0415 -- brings torch

    warning = Finding("static.config", Severity.WARN, "rope", "odd", "even", "look at it")
    passed = Finding("static.files", Severity.PASS, "files", "there", "")
    monkeypatch.setattr(run, "check_static", lambda *_: [passed, warning])
    for number, manner in enumerate(((), ("-q",))):
        ran = g4convert("quantize", text, "-o", tmp_path / str(number), "--verify", "static", *manner)
        assert ran.status == 0
        assert "warn static.config rope: odd, expected even" in ran.out
        assert "look at it" in ran.out


def test_another_source_is_told(text_out: tuple[Path, Path], checkpoints: Checkpoints, g4convert: Program) -> None:
    ran = g4convert("verify", text_out[1], "--reference", checkpoints("text", dtype="float32"), "--level", "static")
    assert "warn static.provenance g4convert.json: made of another checkpoint" in ran.out


def test_quantize_verifies_at_its_end(text: Path, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", text, "-o", tmp_path / "a")
    assert ran.status == 0
    assert f"PASS {tmp_path / 'a'} against {text}: static, weights" in ran.out
    for level, levels in (("none", None), ("static", ["static"]), ("weights", ["static", "weights"])):
        ran = g4convert("quantize", text, "-o", tmp_path / level, "--verify", level, "--json", "-q")
        found = json.loads(ran.out)
        assert (ran.status, ran.err) == (0, "")
        assert (found["verify"]["levels"] if levels else found.get("verify")) == levels
    assert g4convert("quantize", text, "-o", tmp_path / "b", "--verify", "some").status == 2
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("manner", ["--json", "-q", "--no-color"])
def test_quantize_that_does_not_verify_exits_1_and_keeps_the_output(
    manner: str, text: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from g4convert.conversion import run as convert  # noqa: PLC0415 -- brings numba

    finish = convert._finish  # noqa: SLF001 -- a writer with a fault

    def finish_badly(*arguments: object) -> None:
        finish(*arguments)  # type: ignore[arg-type] # handed on
        VALUES["gate and up swapped"].damage(tmp_path / "out")

    monkeypatch.setattr("helpers.damage.LAYER", "model.layers.0")
    monkeypatch.setattr(convert, "_finish", finish_badly)
    ran = g4convert("quantize", text, "-o", tmp_path / "out", manner)
    assert ran.status == 1
    assert "does not verify" in ran.err
    assert "the output is kept" in ran.err
    assert (tmp_path / "out" / "config.json").exists()
    told = ran.out if manner != "--json" else json.dumps(json.loads(ran.out)["verify"])
    assert "model.layers.0.mlp.gate_proj" in told


@pytest.mark.usefixtures("brief")
def test_the_next_step_is_said(text_out: tuple[Path, Path], prompts: Path, g4convert: Program, tmp_path: Path) -> None:
    source, out = text_out
    stored = tmp_path / "ref.safetensors"
    g4convert("reference", source, "-o", stored, "--prompts", prompts, "-q")
    looser = profile(tmp_path / "looser.yaml", 9.0, 99.0)
    command = f"next: g4convert verify {out} --reference"
    for words, told in (
        ((), f"{command} MODEL  # compares every weight with the original's"),
        (("--level", "static"), f"{command} MODEL  # compares every weight with the original's"),
        (("--reference", source), f"{command} {source} --level logits  # measures how far its answers are from"),
        (("--reference", stored, "--profile", looser), f"next: vllm serve {out}"),
        (("--reference", source, "--profile", "parity", "--prompts", prompts), f"next: vllm serve {out}"),
    ):
        said = g4convert("verify", out, *words).out
        assert said.splitlines()[-1].startswith(told), words
        assert stored not in words or said.startswith(f"PASS {out} against {stored}: static, logits\n")
    assert "next:" not in g4convert("verify", out, "--json").out
    assert g4convert("verify", out, "-q").out == ""


@pytest.mark.usefixtures("brief")
def test_a_next_step_names_the_original_where_it_is(
    text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = text_out
    following = f"next: g4convert verify {out} --reference {{}}  # compares every weight with the original's"
    monkeypatch.chdir(source.parent)
    assert g4convert("verify", out).out.splitlines()[-1] == following.format(source.name)
    assert f" quantize {source.name} -o {out.name}-2" in made_anew(out)
    other = tmp_path / source.name
    other.mkdir()
    (other / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)  # a directory of that name that holds another model
    assert g4convert("verify", out).out.splitlines()[-1] == following.format("MODEL")


@pytest.mark.parametrize("overlap", [0.9, float("nan")])
def test_router_overlap_is_explained_where_there_are_experts(overlap: float) -> None:
    file = StringIO()
    loss = {"lower_bound": False, "router_jaccard_min": overlap}
    found = Report((), ("logits",), {"loss": loss, "floor": {"values": {}}})
    show_report.report(Console(file=file, width=400), found, strict=False, verbose=False)
    assert "Sure: where" in file.getvalue()
    assert ("Router overlap: of the experts" in file.getvalue()) is (overlap == 0.9)


def test_strict_says_that_nothing_warns(text_out: tuple[Path, Path], g4convert: Program) -> None:
    source, out = text_out
    asked = ("verify", out, "--reference", source)
    verdict = f"PASS {out} against {source}: static, weights"
    assert verdict in g4convert(*asked).out.splitlines()
    assert f"{verdict}; no warnings (--strict)" in g4convert(*asked, "--strict").out.splitlines()


def profile(path: Path, passes: float, fail: float) -> Path:
    """Write a profile that judges the mean KL alone."""
    path.write_text(
        "description: of a test\ncompares: loss\nmetrics_version: 1\nmax_floor: 1\n"
        f"thresholds: {{kl_mean: {{direction: lower, pass: {passes}, fail: {fail}}}}}\n"
    )
    return path


@pytest.mark.usefixtures("brief")
def test_a_loss_that_fails_names_one_command(
    text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Report] = []
    show = show_report.report
    monkeypatch.setattr(show_report, "report", lambda at, one, **how: (told.append(one), show(at, one, **how)))
    source, out = text_out
    strict = profile(tmp_path / "strict.yaml", 0.0, 1e-9)
    ran = g4convert("verify", out, "--reference", source, "--profile", strict)
    assert ran.status == 1
    lines = ran.out.splitlines()
    made = f"next: g4convert quantize {source} -o {source.name}-W8A16 -r w8a16-g32  # 8 bits: loses less"
    assert lines[-1] == made
    (eight,) = (line for line in lines if "`-r w8a16-g32`" in line)
    assert re.fullmatch(r" +- `-r w8a16-g32`: 8 bits, [\d.]+ .B, KL at most about [\d.e-]+, should fail, too", eight)
    assert told[0].metrics["advice"][0]["options"] == "-r w8a16-g32"
    at = next(number for number, line in enumerate(lines) if line.startswith("to keep layer "))
    (tmp_path / "kept.yaml").write_text("\n".join(lines[at + 1 : at + 3]))
    kept = json.loads(g4convert("plan", source, "-r", tmp_path / "kept.yaml", "--json", "-v").out)["tensors"]
    layer = f"model.layers.{lines[at].split()[3]}."
    assert {one["action"] for one in kept if layer in str(one) and "_proj" in str(one)} == {"keep"}
    assert {one["action"] for one in kept if "_proj" in str(one)} == {"keep", "pack"}


def test_what_check_mends_is_said(text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path) -> None:
    out = damaged(text_out[1], tmp_path / "out", STATIC["wrong group size"])
    following = f"next: g4convert check {out} --fix  # corrects its quantization_config"
    assert g4convert("verify", out).out.splitlines()[-1] == following
    assert g4convert("check", out, "--fix").status == 0
    lost = damaged(text_out[1], tmp_path / "lost", lose("model.layers.0.layer_scalar"))
    assert "next:" not in g4convert("verify", lost).out


@pytest.mark.wide
@pytest.mark.usefixtures("brief")
def test_a_path_without_a_difference_is_a_sentence(text_out: tuple[Path, Path]) -> None:
    from g4convert.verification.run import verify  # noqa: PLC0415 -- brings torch

    source, out = text_out
    found, brief = verify(Request(out, source, Level.LOGITS)), StringIO()
    show_report.report(Console(file=brief, width=100), found, strict=False, verbose=False)
    told = brief.getvalue()
    after = told.partition("\nwhether the packed weights compute the same as the dequantized ones: ")[2]
    assert " ".join(after.split()).startswith("yes, to the last bit, in all ")
    assert "-v lists every check" in told
    assert told.count("by float32 rounding") == 1  # a row of the mean KL
    assert told.partition("by float32 rounding")[2].splitlines()[0].endswith("a KL below this means nothing")


def test_a_retry_repeats_the_verdict(
    text: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verification that failed or was stopped must not end with 0 because the output is there."""
    command = ("quantize", text, "-o", tmp_path / "out")
    assert [g4convert(*command).status, g4convert(*command).status] == [0, 0]
    wrong = Finding("static.ignore", Severity.FAIL, "lm_head", "packed", "kept", "quantize again")
    monkeypatch.setattr("g4convert.verification.run.check_static", lambda *_, **__: [wrong])
    told = g4convert(*command)
    assert (told.status, told.out.startswith("already done: "), "verifying it again" in told.out) == (1, True, True)
    assert "does not verify" in told.err
    document = json.loads(g4convert(*command, "--json").out)
    assert (document["already_done"], document["verify"]["verdict"]) == (True, "fail")
    assert g4convert(*command, "-q").status == 1
    assert g4convert(*command, "--verify", "none").status == 0


def test_what_was_written_wrong_is_not_offered_to_be_served(
    text: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Finding("static.ignore", Severity.FAIL, "lm_head", "packed", "kept", "quantize again")
    monkeypatch.setattr("g4convert.verification.run.check_static", lambda *_, **__: [wrong])
    ran = g4convert("quantize", text, "-o", tmp_path / "wrong")
    assert ran.status == 1
    assert "written" in ran.out
    assert "next: " not in ran.out
    monkeypatch.undo()
    assert "next: g4convert verify" in g4convert("quantize", text, "-o", tmp_path / "right").out

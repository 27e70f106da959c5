"""The Python API: lazy, typed, the same results as the commands; and the session in its document runs."""

from __future__ import annotations

import doctest
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_type_hints

import pytest
import torch
from helpers.program import Program, g4convert

import g4convert as package
from g4convert import calibrate, check, load, plan, quantize, verify
from g4convert.api.recipes import Overrides
from g4convert.demo.trained import trained
from g4convert.errors import GateError, UsageError
from g4convert.gemma4.family import Family
from g4convert.planning.recipe import Recipe
from g4convert.planning.recipe_files import load as load_recipe
from g4convert.progress import Progress
from g4convert.report import Finding, Severity
from g4convert.request import Level

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["g4convert"]  # a fixture

ROOT = Path(__file__).parents[2]
NAMES = ["calibrate", "check", "fit", "load", "plan", "quantize", "verify"]
MOST_SECONDS = 0.05


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Tiny models run slower on more threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained MoE, quantized through the API."""
    out = tmp_path_factory.mktemp("api") / "moe-W4A16"
    assert quantize(trained(Family.MOE), out, verify=None, workers=1).report is None
    return out


def seconds(code: str) -> float:
    """Processor time of an interpreter that runs some code."""
    timed = f"import time; begin = time.process_time()\n{code}\nprint(time.process_time() - begin)"
    return float(subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True).stdout)


def test_importing_the_package_is_quick_and_imports_nothing_of_it() -> None:
    assert min(seconds("import g4convert") for _ in range(3)) < MOST_SECONDS  # whoever else works here adds to it
    code = "import g4convert, json, sys; print(json.dumps([*sys.modules]))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = json.loads(ran.stdout)
    assert [name for name in loaded if name.startswith("g4convert.")] == []
    assert not {"torch", "numpy", "transformers", "typer", "rich", "pydantic"} & set(loaded)


def test_the_functions_are_public_and_no_package_has_their_names() -> None:
    assert sorted(package.__all__) == ["__version__", *NAMES]
    assert set(NAMES) < set(dir(package))
    for name in NAMES:
        assert callable(getattr(package, name))
        assert not (ROOT / "g4convert" / name).exists()
        assert not (ROOT / "g4convert" / f"{name}.py").exists()
    with pytest.raises(AttributeError, match="quantise"):
        package.quantise  # type: ignore[attr-defined] # noqa: B018 -- an attribute is looked up


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_documented(name: str) -> None:
    function = getattr(package, name)
    text = function.__doc__ or ""
    arguments = inspect.signature(function).parameters
    assert [one for one in arguments if f" {one}: " not in text.replace("**", "")] == []
    assert "Returns:" in text
    assert "Raises:" in text


@pytest.mark.full
def test_a_type_checker_sees_the_signatures(tmp_path: Path) -> None:
    path = tmp_path / "session.py"
    path.write_text(
        "from g4convert import check, load, plan, quantize, verify\n"
        "reveal_type(plan('m', group_size='channel'))\n"
        "reveal_type(quantize('m', 'o', engines=['vllm']).report)\n"
        "reveal_type(verify('o').verdict)\n"
        "reveal_type(check('o').packed)\n"
        "plan('m', grop_size=3)\n"
        "load('o', memory='lazy')\n"
        "from g4convert import quantise\n"
    )
    command = [sys.executable, "-m", "mypy", str(path), "--no-error-summary"]
    text = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT
    ).stdout  # the cache of `make lint`
    lines = [line.partition(": ")[2] for line in text.splitlines()]
    assert [line.partition('"')[2].rstrip('"').removeprefix("builtins.") for line in lines if "Revealed" in line] == [
        "g4convert.planning.report.PlanReport",
        "g4convert.report.Report | None",
        "g4convert.report.Severity",
        "int",
    ]
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == 3
    assert all(word in line for word, line in zip(("grop_size", '"memory"', "quantise"), errors, strict=True))


def test_overrides_are_the_keys_of_a_recipe() -> None:
    fields = Recipe.model_fields.keys() - {"description"}
    hints = get_type_hints(Overrides)
    assert hints.keys() == fields
    for key in ("method", "kv_shared", "assistant", "layout"):
        known = {str(value) for value in get_args(hints[key])}
        with pytest.raises(UsageError) as refused:
            load_recipe(options={key: "nonsense"})
        assert known == set(refused.value.message.partition("not one of ")[2].split(", "))
    for key in ("pack", "engines"):
        (member,) = get_args(hints[key])
        assert len(load_recipe(options={key: [*get_args(member)]}).settings()[key]) == len(get_args(member))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plan("nowhere", grop_size=64), ("keyword grop_size", "did you mean group_size?")),  # type: ignore[call-arg]
        (lambda: plan("nowhere", recipe="w4a16-g23"), ("w4a16-g23", "did you mean")),
        (lambda: quantize("nowhere", "out", verify="wieghts"), ("--verify wieghts", "did you mean weights?")),
        (lambda: quantize("nowhere", "out", verify=Level.ENGINE), ("afterwards", "--engine vllm")),
        (lambda: quantize("nowhere", "out", tp=[2]), ("--tp: no engine has to load", "--engine vllm")),
        (lambda: check("nowhere", engines=["vlm"]), ("--engine vlm", "did you mean vllm?")),
        (lambda: load("nowhere", device="gpu"), ("--device gpu", "")),
    ],
)
def test_what_is_asked_wrongly(call: Callable[[], object], words: tuple[str, str]) -> None:
    with pytest.raises(UsageError) as refused:
        call()
    assert words[0] in refused.value.message
    assert words[1] in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("option", "name", "meant"),
    [("level", "wieghts", "weights"), ("memory", "steam", "stream"), ("engine", "vlm", "vllm")],
)
def test_names_of_a_verification_are_checked(option: str, name: str, meant: str, packed: Path) -> None:
    with pytest.raises(UsageError) as refused:
        verify(packed, **{option: name})  # type: ignore[arg-type] # one option at a time
    assert refused.value.message.startswith(f"--{option} {name}: not one of ")
    assert refused.value.hint == f"did you mean {meant}?"


def test_memory_and_dtype_are_checked(packed: Path) -> None:
    with pytest.raises(UsageError, match="memory lazy: not one of resident, stream, auto"):
        load(packed, memory="lazy")  # type: ignore[arg-type] # what a notebook may give
    with pytest.raises(UsageError, match="dtype int8: not one of"):
        load(packed, dtype="int8")  # type: ignore[arg-type] # what a notebook may give


def test_results_are_those_of_the_commands(moe: Path, tmp_path: Path, g4convert: Program) -> None:
    out = tmp_path / "api"
    assert plan(moe, layout="text-only").to_dict() == json.loads(
        g4convert("plan", moe, "--layout", "text-only", "--json").out
    )
    done = quantize(moe, out, recipe="text-only", max_shard_size="500KB")
    assert done.passed
    printed = g4convert(
        "quantize", moe, "-o", tmp_path / "cli", "-r", "text-only", "--max-shard-size", "500KB", "--json"
    )
    command = json.loads(printed.out.replace(str(tmp_path / "cli"), str(out)))
    assert json.loads(json.dumps(done.to_dict())) == command
    for path in out.iterdir():
        if path.suffix != ".md":
            assert path.read_bytes() == (tmp_path / "cli" / path.name).read_bytes()
    report = verify(out, reference=moe, level="weights")
    assert report.to_json() == g4convert("verify", out, "--reference", moe, "--json").out
    assert report.verdict is Severity.PASS
    checked = check(out, tp=[1, 2])
    assert checked.to_dict() == json.loads(g4convert("check", out, "--tp", "1", "--tp", "2", "--json").out)


def test_a_failed_verification_is_a_result_and_a_refusing_engine_an_error(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Finding("static.ignore", Severity.FAIL, "lm_head", "packed", "not packed")
    monkeypatch.setattr("g4convert.verification.run.check_static", lambda *_, **__: [wrong])
    done = quantize(moe, tmp_path / "out")
    assert not done.passed
    assert done.report is not None
    assert done.report.verdict is Severity.FAIL
    with pytest.raises(GateError, match="transformers"):
        quantize(moe, tmp_path / "other", engines=["transformers"])
    assert not (tmp_path / "other").exists()


class Told(Progress):
    """Remembers what progress is told."""

    def __init__(self) -> None:
        super().__init__()
        self.totals: list[int] = []
        self.done = 0

    def start(self, total: int, done: int) -> None:
        self.totals.append(total)
        self.done = done

    def advance(self, nbytes: int, name: str) -> None:
        assert name
        self.done += nbytes


def test_progress_is_told_of_every_byte(moe: Path, tmp_path: Path) -> None:
    told, said = Told(), list[str]()
    quantize(moe, tmp_path / "out", progress=told, say=said.append)
    assert len(told.totals) == 2, "the conversion and its verification"
    assert told.done == told.totals[-1]
    assert [line.partition(":")[0] for line in said] == [
        f"quantizing {moe}",
        "verifying level static",
        "verifying level weights",
    ]


def test_results_are_one_line_in_a_notebook(moe: Path, tmp_path: Path) -> None:
    made = quantize(moe, tmp_path / "out", verify="static")
    assert repr(made).startswith(f"Quantized({str(tmp_path / 'out')!r}, bytes=")
    assert repr(made).endswith(", pass)")
    assert repr(plan(moe)).startswith(f"PlanReport({moe.name!r}, recipe='w4a16-g32', output_bytes=")
    assert made.report
    assert repr(made.report) == f"Report({made.report.output!r}, pass, findings={len(made.report.findings)})"
    checked = check(tmp_path / "out", engines=["vllm"])
    assert re.fullmatch(rf"Checked\({checked.report.output!r}, pass, vLLM [\d.]+ tp=1: yes, .*\)", repr(checked))
    ids = calibrate(moe, tmp_path / "ids.safetensors", samples=8, length=16, answers=False, statistics=False)
    assert repr(ids) == f"Calibrated({str(tmp_path / 'ids.safetensors')!r}, samples=8, length=16)"


@pytest.mark.parametrize("memory", ["resident", "stream"])
def test_generate_runs_from_packed_words(memory: str, packed: Path) -> None:
    ids = torch.tensor([[2, *range(300, 316)]])
    how = {"max_new_tokens": 6, "do_sample": False, "top_k": None, "top_p": None}
    plain = load(packed, dtype="float32", packed=False)
    ours = load(packed, dtype="float32", memory=memory)  # type: ignore[arg-type] # both are names of it
    experts = ours.model.language_model.layers[0].experts
    weights = dict(experts.named_parameters()) | dict(experts.named_buffers())
    assert {name for name in weights if "packed" in name} == {"gate_up_packed", "down_packed"}
    assert all(weights[name].dtype == torch.int32 for name in weights if "packed" in name)
    assert not any(weight.is_floating_point() and "scale" not in name for name, weight in weights.items())
    assert weights["down_packed"].is_meta == (memory == "stream")
    assert ours.device == torch.device("cpu")
    assert type(ours).__name__ == "Gemma4ForConditionalGeneration"
    assert torch.equal(ours.generate(ids.to(ours.device), **how), plain.generate(ids, **how))


@pytest.mark.wide
def test_the_session_in_the_document_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained(Family.MOE), tmp_path / "g4convert-demo" / "moe")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "reference" / "api.md").read_text().replace("```", "")
    session = doctest.DocTestParser().get_doctest(text, {}, "api.md", "api.md", 0)
    assert len(session.examples) > 15
    runner = doctest.DocTestRunner()
    runner.run(session, out=sys.stdout.write)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out

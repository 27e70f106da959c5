"""The command line as a user meets it: every option changes something, every failure has its status and words."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import typer.core
import typer.main
from helpers import TESTS, golden
from helpers.grids import covering
from helpers.program import Program, g4convert
from rich.console import Console

from g4convert import __version__, quantize
from g4convert.checkpoint.directory import Checkpoint
from g4convert.cli import app as cli
from g4convert.cli import show
from g4convert.cli.next_steps import show_next
from g4convert.cli.tables import in_lines, prose
from g4convert.errors import InputError
from g4convert.planning.recipe import Recipe, shipped
from g4convert.planning.rules import PackRole
from g4convert.progress import Bar, Lines, Quiet, watch
from g4convert.quantities import nats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from conftest import Checkpoints

__all__ = ["g4convert"]  # a fixture

COMMANDS = (
    "plan",
    "quantize",
    "calibrate",
    "fit",
    "verify",
    "check",
    "reference",
    "generate",
    "inspect",
    "demo",
    "recipe",
)
LEAVES = [(), *((name,) for name in COMMANDS), *(("recipe", name) for name in ("list", "show", "check", "schema"))]
OPTIONS_OF_A_RECIPE = [
    ("--num-bits", "8", "num_bits"),
    ("--group-size", "64", "group_size"),
    ("--method", "minmax", "method"),
    ("--positive", None, "signed"),
    ("--pack", "mlp", "pack"),
    ("--bits", "mlp=8", "bits"),
    ("--kv-shared", "keep", "kv_shared"),
    ("--assistant", "pack", "assistant"),
    ("--layout", "text-only", "layout"),
    ("--max-shard-size", "300KB", "max_shard_size"),
]


def given(option: str, value: str | None) -> tuple[str, ...]:
    return (option,) if value is None else (option, value)


@pytest.mark.golden
@pytest.mark.parametrize("command", LEAVES, ids=lambda words: "-".join(words) or "g4convert")
def test_help(command: tuple[str, ...], g4convert: Program) -> None:
    ran = g4convert(*command, "--help")
    assert (ran.status, ran.err) == (0, "")
    text = "\n".join(line.rstrip() for line in ran.out.strip("\n").splitlines()) + "\n"
    golden.check(f"help/{'-'.join(('g4convert', *command))}.txt", text)
    if command not in {(), ("recipe",)}:
        assert "Example: g4convert" in text


@pytest.mark.golden
def test_plan_text(moe: Path, g4convert: Program) -> None:
    ran = g4convert("plan", moe, "--workers", 1)
    assert (ran.status, ran.err) == (0, "")
    golden.check("plan-text/moe.txt", ran.out.partition("next: ")[0].replace(str(moe), "moe"))
    assert all(line == line.rstrip() for line in ran.out.splitlines())


def test_plan_fits_80_columns(moe: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in (("plan", moe), ("inspect", moe), ("recipe", "check", "text-only")):
        lines = g4convert(*command).out.splitlines()[1:]
        assert max(len(line) for line in lines if not line.startswith("next: ")) <= 80


def test_a_narrow_terminal_loses_columns_not_words(
    moe: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    g4convert("quantize", moe, "-o", tmp_path / "out", "-q")
    monkeypatch.setenv("COLUMNS", "60")
    for command, last in ((("plan", moe), "16.0"), (("inspect", tmp_path / "out"), "30 x bf16")):
        out = g4convert(*command).out
        head, *rows = out.partition("\nrole ")[2].partition("\n\n")[0].splitlines()
        assert "params" not in head
        tower = next(row for row in rows if row.startswith("vision_tower "))
        assert tower.endswith(last)
        assert max(map(len, rows)) <= 60


@pytest.mark.parametrize(("option", "value", "key"), OPTIONS_OF_A_RECIPE)
def test_options_override_the_recipe(option: str, value: str | None, key: str, g4convert: Program) -> None:
    for command in ("plan", "quantize"):
        before = json.loads(g4convert(command, "x", "--show-config", "--json").out)
        after = json.loads(g4convert(command, "x", "--show-config", "--json", *given(option, value)).out)
        named = "--signed" if key == "signed" else option
        assert after.pop(key) == {
            "value": Recipe(**{key: after_value(key, value)}).model_dump(mode="json")[key],
            "from": named,
        }
        before.pop(key)
        assert after == before


def after_value(key: str, value: str | None) -> object:
    if key == "num_bits":
        return 8
    return {"pack": [value], "signed": False, "bits": {"mlp": 8}}.get(key, value)


@pytest.mark.parametrize(
    ("command", "option", "value", "key"),
    covering((command, *row) for row in OPTIONS_OF_A_RECIPE for command in ("plan", "quantize")),
)
def test_options_change_the_plan(  # noqa: PLR0913, PLR0917 - a table and what it is run on
    option: str, value: str | None, key: str, command: str, checkpoints: Checkpoints, g4convert: Program, tmp_path: Path
) -> None:
    source = checkpoints({"assistant": "assistant"}.get(key, "e2b"))
    rest = ["-o", tmp_path / "out", "--dry-run"] if command == "quantize" else []
    plans = [json.loads(g4convert(command, source, "--json", *rest, *more).out) for more in ((), given(option, value))]
    assert plans[0]["recipe"].pop(key) != plans[1]["recipe"].pop(key)
    if key not in {"method", "signed", "kv_shared"}:  # only the bytes depend on them, or the source has none
        assert plans[0]["output"] != plans[1]["output"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.wide
def test_quantize_options_change_the_bytes(checkpoints: Checkpoints, g4convert: Program, tmp_path: Path) -> None:
    runs: dict[str, tuple[str, ...]] = {
        "mse": ("--method", "mse"),
        "positive": ("--method", "mse", "--positive"),
        "minmax": ("--method", "minmax"),
        "lattice": ("-r", "qat-q4_0"),
    }
    errors = {}
    for name, options in runs.items():
        ran = g4convert("quantize", checkpoints("text"), "-o", tmp_path / name, "--json", "--workers", 2, *options)
        assert ran.status == 0, ran.err
        errors[name] = json.loads(ran.out)["total"]["relative_error"]
    assert errors["mse"] < errors["positive"] < errors["minmax"]
    assert json.loads((tmp_path / "lattice" / "g4convert.json").read_text())["recipe"]["method"] == "lattice"


def test_recipe_option_takes_a_name_or_a_path(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("num_bits: 8\n")
    named = json.loads(g4convert("plan", moe, "-r", "w8a16-g32", "--json").out)
    by_path = json.loads(g4convert("plan", moe, "--recipe", tmp_path / "mine.yaml", "--json").out)
    assert named["output"] == by_path["output"]
    assert named["recipe"]["name"] == "w8a16-g32"


def test_workers_change_the_estimate(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    for command in (("plan", moe), ("quantize", moe, "-n", "-o", tmp_path / "out")):
        assert "for 1 thread on idle cores" in g4convert(*command, "--workers", 1).out
        assert "for 3 threads on idle cores" in g4convert(*command, "--workers", 3).out


def test_a_plan_says_what_each_method_takes_here_and_gained(moe: Path, g4convert: Program) -> None:
    found = json.loads(g4convert("plan", moe, "--json").out)["methods"]
    assert [one["method"] for one in found] == ["auto", "imatrix", "gptq", "best"]
    assert all(one["seconds"] > 0 and one["memory"] > 0 for one in found)
    lines = [line for line in g4convert("plan", moe).out.splitlines() if line.split()]
    rows = {line.split()[0]: line for line in reversed(lines)}
    for one in found:
        assert rows[one["method"]].endswith(f" {nats(one['kl'])}")


def test_show_config_says_where_values_come_from(g4convert: Program) -> None:
    rows = {
        line.split()[0]: line
        for line in g4convert("plan", "x", "-r", "w8a16-g32", "--method", "mse", "--show-config").out.splitlines()
    }
    assert rows["num_bits"].endswith("recipe w8a16-g32")
    assert rows["group_size"].endswith("recipe w4a16-g32")
    assert rows["method"].endswith("--method")
    assert rows["layout"].endswith("default")
    assert "5000000000 (5.00 GB)" in rows["max_shard_size"]
    assert set(rows) == {"setting", *Recipe.model_fields} - {"description"}


def test_verbose_lists_every_step(moe: Path, g4convert: Program) -> None:
    brief, long = (g4convert("plan", moe, *more).out for more in ((), ("-v",)))
    assert "pack  " not in brief
    assert long.count("\npack  ") == 128
    assert long.count("\nkeep  ") == 72
    steps = json.loads(g4convert("plan", moe, "--json", "-v").out)["tensors"]
    assert len(steps) == 200
    assert "tensors" not in json.loads(g4convert("plan", moe, "--json").out)
    dropped = g4convert("plan", moe, "-v", "--layout", "text-only").out
    assert "drop  model.vision_tower" in dropped


def test_quantize_says_what_it_did(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", moe, "-o", tmp_path / "out")
    assert ran.status == 0
    assert "6.46 MB of 6.46 MB" in ran.err
    for text in (
        "6.46 MB -> 2.08 MB in 1 file, 5.2 bits per weight",
        "method   mse (least squared error): source not trained for 4 bits (QAT), 0.0 % of its groups ",
    ):
        assert text in ran.out
    assert re.search(
        r"\nerror +0\.\d+ % \(attention 0\.\d+ %, mlp 0\.\d+ %, experts 0\.\d+ %\): squared errors", ran.out
    )
    assert "layers." not in ran.out
    refused = "not for transformers 5.17 to 5.24, SGLang 0.5.23: `g4convert check"
    assert f"\n{refused} {tmp_path / 'out'}` says why\n" in ran.out
    measure = f"g4convert verify {tmp_path / 'out'} --reference {moe} --level logits"
    assert ran.out.endswith(
        f"\nnext: {measure}  # measures how far its answers are from the original's; needs no engine\n"
    )
    assert "vllm serve" not in ran.out  # not before they are measured
    assert g4convert("check", tmp_path / "out", "--engine", "sglang").status == 1


def test_the_card_names_who_refuses_the_result(dense: Path, g4convert: Program, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "refused" not in g4convert("quantize", dense, "-o", out).out
    options = ("--overwrite", "--verify", "none", "--engine", "vllm", "--tp", 4)
    asked = f"`g4convert check {out} --tp 4`"
    assert (
        f"\nnot for SGLang 0.5.23 on 4 GPUs: {asked} says why\n"
        in g4convert("quantize", dense, "-o", out, *options).out
    )
    document = json.loads(g4convert("quantize", dense, "-o", out, *options, "--json").out)
    assert document["refused_by"] == [{"engine": "sglang", "version": "SGLang 0.5.23", "tp": 4}]


def test_no_command_is_offered_that_vllm_refuses(dense: Path, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", dense, "-o", tmp_path / "out", "--group-size", 16)
    assert "\nnot for vLLM 0.33" in ran.out
    assert "vllm serve" not in ran.out


def test_quiet_verbose_json_and_overwrite(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    command = ("quantize", moe, "-o", tmp_path / "out")
    quiet = g4convert(*command, "-q")
    assert (quiet.status, quiet.out, quiet.err) == (0, "", "")
    refused = g4convert(*command, "--method", "minmax")
    assert refused.status == 2
    held = f"not empty: it holds a conversion of {moe.name} by recipe w4a16-g32 (method auto, not minmax)"
    hint = "give -o another directory, or --overwrite to replace this one"
    assert refused.err == f"error: {tmp_path / 'out'}: {held}\nhint: {hint}\n"
    verbose = g4convert(*command, "--overwrite", "-v")
    assert verbose.out.partition("all tensors")[2].count("\nlayers.") == 128
    found = json.loads(g4convert(*command, "--overwrite", "-q", "--json").out)
    assert found["schema_version"] == 1
    assert found["output"] == str(tmp_path / "out")
    assert len(found["worst"]) == 5


def test_what_is_done_already_is_not_done_again(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    """A CI job that is run again; what is of another recipe, or not whole, is refused as ever."""
    command = ("quantize", moe, "-o", tmp_path / "out", "--verify", "none")
    g4convert(*command, "-q")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    ran = g4convert(*command)
    assert (ran.status, ran.out.partition(":")[0]) == (0, "already done")
    assert "verifying" not in ran.out
    assert json.loads(g4convert(*command, "--json").out)["already_done"] is True
    assert g4convert(*command, "-q").out == ""
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert g4convert(*command, "--group-size", 64).status == 2
    next((tmp_path / "out").glob("*.safetensors")).unlink()
    assert g4convert(*command).status == 2


def test_the_card_says_what_is_not_known(text: Path, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", text, "-o", tmp_path / "out", "--verify", "none")
    answers, _, table = ran.out.partition("\nanswers: ")[2].partition(":\n")
    assert answers.startswith("not measured, and the error of weights does not tell how good they are. Mean KL to the ")
    rows = [line.split() for line in table.splitlines()]
    assert [row[:4] for row in rows[1:3]] == [
        ["mse", "(as", "here)", "0.301"],
        ["imatrix", "-r", "w4a16-g32-imatrix", "0.175"],
    ]
    assert rows[3][:4] == ["gptq", "-r", "w4a16-g32-gptq", "0.054"]
    assert rows[4] == [
        "8",
        "bits",
        "(estimated)",
        "-r",
        "w8a16-g32",
        "up",
        "to",
        "0.0012",
    ]  # best leaves as much as gptq
    assert f"next: g4convert verify {tmp_path / 'out'} --reference {text} --level logits  # " in ran.out


def test_the_card_repeats_the_times_of_the_plan(text: Path, g4convert: Program, tmp_path: Path) -> None:
    planned = json.loads(g4convert("plan", text, "--workers", 1, "--json").out)["methods"]
    ran = quantize(text, tmp_path / "out", workers=1, verify=None)
    assert [round(one.seconds, 1) for one in ran.costs] == [one["seconds"] for one in planned]


def test_the_methods_of_a_plan_have_their_options(text: Path, g4convert: Program) -> None:
    def rows(*options: object) -> dict[str, list[str]]:
        table = g4convert("plan", text, *options).out.partition("\nmethod  ")[2].splitlines()[1:]
        return {line.split()[0]: line.split()[1:] for line in table if not line.startswith(("  ", "next"))}

    plain = rows()
    assert {name: row[:2] for name, row in plain.items()} == {
        "auto": ["(this", "plan)"],
        **{name: ["-r", f"w4a16-g32-{name}"] for name in ("imatrix", "gptq")},
    }
    assert "best" in rows("-v")  # takes four times as long as gptq, for 2 % less
    assert [row[-1] for row in plain.values()] == ["0.301", "0.175", "0.054"]
    assert rows("-r", "w4a16-g32-gptq")["auto"][:2] == ["-r", "w4a16-g32"]
    assert rows("--group-size", 16)["gptq"][:2] == ["--method", "gptq"]
    assert "KL" not in g4convert("plan", text, "-r", "w8a16-g32").out  # not measured at 8 bits


def test_a_plan_says_how_to_write_it(text: Path, g4convert: Program) -> None:
    def following(*options: object) -> str:
        return g4convert("plan", text, *options).out.splitlines()[-1]

    quick = "quick: for a first try or a QAT source; for real use add -r w4a16-g32-gptq"
    assert following() == f"next: g4convert quantize {text} -o {text.name}-W4A16  # {quick}"
    asked = f"next: g4convert quantize {text} -o {text.name}-W4A16-gptq -r w4a16-g32-gptq"
    assert following("-r", "w4a16-g32-gptq") == asked
    assert following("--group-size", 64).endswith("-W4A16  # with the other options given here")
    assert "next:" not in g4convert("plan", text, "--json").out


def test_plan_says_which_files_are_larger_than_asked(text: Path, g4convert: Program) -> None:
    assert "larger" not in g4convert("plan", text).out
    assert (
        "above max_shard_size 1.00 kB: a module is not split" in g4convert("plan", text, "--max-shard-size", "1KB").out
    )


def test_flags_have_no_type_in_the_help(g4convert: Program) -> None:
    for command in ((), ("verify",), ("recipe",), ("recipe", "show")):
        assert "<bool>" not in g4convert(*command, "--help").out


def test_files_of_a_conversion_are_not_called_carried_over(text: Path, g4convert: Program, tmp_path: Path) -> None:
    g4convert("quantize", text, "-o", tmp_path / "out", "--verify", "none", "-q")
    lines = g4convert("inspect", tmp_path / "out").out.splitlines()
    assert any(line.split()[:1] == ["g4convert.json"] and "by g4convert" in line for line in lines)
    assert not [line for line in lines if line.startswith(("g4convert.json", "README.md")) and "carried" in line]


def test_a_drafter_is_not_served_alone(checkpoints: Checkpoints, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", checkpoints("assistant"), "-o", tmp_path / "out")
    assert "method   nothing is packed" in ran.out
    assert "next: vllm serve TARGET --speculative-config " in ran.out


def test_dry_run_checks_the_output_and_the_device(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert g4convert("quantize", moe, "-o", tmp_path / "full", "--dry-run").status == 2
    assert g4convert("quantize", moe, "-o", tmp_path / "out", "-n", "--device", "tpu").status == 2
    done = g4convert("quantize", moe, "-o", tmp_path / "out", "-n")
    assert done.status == 0
    assert done.out == g4convert("plan", moe).out.partition("next: ")[0]
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_leaves_nothing(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", moe, "-o", tmp_path / "out", "--device", "cuda:7")
    assert ran.status == 5
    assert "hint: --device cpu does the same" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_no_output_names_one(moe: Path, g4convert: Program) -> None:
    ran = g4convert("quantize", moe, "--num-bits", 8)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == f"error: no output directory\nhint: say where to write: -o {moe.name}-W8A16\n"


def test_inspect(moe: Path, g4convert: Program) -> None:
    text = g4convert("inspect", moe).out
    assert "Gemma 4 MoE" in text
    assert "vision_tower" in text
    assert json.loads(g4convert("inspect", moe, "--json").out)["model_type"] == "gemma4"


def test_inspect_lists_unknown_tensors_to_a_length(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    source = shutil.copytree(moe, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["model_type"] = "llama"
    (source / "config.json").write_text(json.dumps(config))
    brief, long = (g4convert("inspect", source, *more).out for more in ((), ("-v",)))
    names = sorted(Checkpoint.open(source).tensors)
    assert all(name in long for name in names)
    assert f"and {len(names) - 20} more (-v lists all)" in brief


@pytest.fixture
def misfit(moe: Path, tmp_path: Path) -> Path:
    """A source whose config promises thirty layers."""
    source = shutil.copytree(moe, tmp_path / "misfit")
    config = json.loads((source / "config.json").read_text())
    text = config["text_config"]
    text |= {"num_hidden_layers": 30, "layer_types": text["layer_types"] * 10}
    (source / "config.json").write_text(json.dumps(config))
    return source


def test_a_long_error_does_not_drown_the_terminal(misfit: Path, g4convert: Program) -> None:
    ran = g4convert("plan", misfit)
    lines = ran.err.splitlines()
    assert (ran.status, ran.out, len(lines)) == (3, "", 23)
    assert lines[-2].endswith("more (-v lists all)")
    assert lines[-1].startswith("hint: ")
    assert len(g4convert("plan", misfit, "-v").err.splitlines()) > 500


def test_errors_keep_every_offender(capsys: pytest.CaptureFixture[str]) -> None:
    problem = InputError("wrong", offenders=map(str, range(11_000)), hint="right it")
    assert len(problem.offenders) == 11_000
    show.error(show.messages(no_color=True), problem)
    assert capsys.readouterr().err.splitlines()[-2:] == ["  and 10,980 more (-v lists all)", "hint: right it"]


def test_a_second_path_is_told_its_option(g4convert: Program) -> None:
    ran = g4convert("quantize", "MODEL", "OUT")
    assert (ran.status, ran.err.splitlines()[1]) == (2, "hint: an output is given with -o: -o OUT")
    assert "--help` shows what there is" in g4convert("plan", "MODEL", "OUT").err


@pytest.mark.parametrize("command", [("plan",), ("quantize", "-o", "out"), ("check",), ("verify",)])
def test_every_command_says_the_same_of_an_unknown_engine(command: tuple[str, ...], g4convert: Program) -> None:
    known = "vllm, sglang" if command == ("verify",) else "transformers, vllm, sglang"
    for name in ("vlm", "VLLM"):
        ran = g4convert(*command, "nothing", "--engine", name)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err == f"error: --engine {name}: not one of {known}\nhint: did you mean vllm?\n"
    hint = f"hint: `g4convert {command[0]} --help` shows what there is\n"
    assert g4convert(*command, "nothing", "--engine", "llama.cpp").err.endswith(hint)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("plna",), 2, "no such command 'plna'\nhint: did you mean plan?\n"),
        (("plan",), 2, "missing argument 'MODEL'"),
        (("plan", "x", "--methd", "mse"), 2, "no such option: --methd\nhint: did you mean --method?"),
        (("quantize", "x", "--ouput", "y"), 2, "no such option: --ouput\nhint: did you mean --output?"),
        (
            ("plan", "x", "--workers", "-1"),
            2,
            "'--workers': should be greater than or equal to 0",
        ),
        (("plan", "x", "--workers", "many"), 2, "invalid value for '--workers'"),
        (("plan", "x", "--method", "rtn"), 2, "--method rtn: not one of auto, minmax, mse, lattice"),
        (("plan", "x", "-r", "w4a16-g23"), 2, "hint: did you mean w4a16-g32?"),
        (("plan", "x", "-r", "./none.yaml"), 2, "recipe ./none.yaml: no such file"),
        (("recipe", "shwo"), 2, "hint: did you mean show?"),
        (("recipe", "show", "nothing"), 2, "hint: `g4convert recipe list` shows them; a path works too"),
        (("recipe", "check", "nothing"), 2, "recipe nothing: not one of the shipped recipes"),
        (("demo", "--family", "llama"), 2, "--family llama: not one of moe, dense, unified"),
        (("plan", "nothing"), 3, "nothing: no such directory"),
        (("inspect", "nothing"), 3, "nothing: no such directory"),
        (("quantize", "nothing", "-o", "out"), 3, "nothing: no such directory"),
        (("plan", "google/gemma-4-E2B-it"), 5, "not in the Hugging Face cache, and HF_HUB_OFFLINE is set"),
    ],
)
def test_failures_have_a_status_and_a_hint(  # noqa: PLR0913, PLR0917 - a table and where it runs
    arguments: tuple[str, ...],
    status: int,
    message: str,
    g4convert: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ran = g4convert(*arguments)
    assert (ran.status, ran.out) == (status, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert "\nhint: " in ran.err
    assert "Traceback" not in ran.err


def test_a_gate_says_no(g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from g4convert.demo import run as demo  # noqa: PLC0415 - brings torch

    monkeypatch.setattr(demo, "PARITY", -1.0)
    ran = g4convert("demo", tmp_path, "--family", "text", "-q")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("error: the packed result computes something else")


@pytest.mark.parametrize(
    ("raised", "status", "text"),
    [
        (MemoryError(), 5, "error: out of memory\nhint: fewer --workers need less\n"),
        (
            PermissionError(13, "Permission denied", "/root/x"),
            5,
            "error: /root/x: Permission denied\nhint: look at the permissions there, and at the umask\n",
        ),
        (BlockingIOError(11, "Try again"), 5, "error: Try again\n"),
        (KeyboardInterrupt(), 75, "error: stopped\nhint: continue with: g4convert quantize 'a b' -o :x:\n"),
    ],
)
def test_what_the_machine_does(
    raised: BaseException, status: int, text: str, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise raised

    monkeypatch.setattr("g4convert.checkpoint.source.resolve", fail)
    ran = g4convert("quantize", "a b", "-o", ":x:")  # which rich would make a picture of
    assert (ran.status, ran.err) == (status, text)


def test_what_cannot_be_continued_is_only_stopped(g4convert: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("g4convert.checkpoint.source.resolve", fail)
    assert (g4convert("plan", "x").status, g4convert("plan", "x").err) == (75, "error: stopped\n")
    again = "error: stopped\nhint: nothing was kept; the same command starts again\n"
    for words in (("verify", "x"), ("generate", "x", "-p", "y"), ("reference", "x", "-o", "y.safetensors")):
        assert g4convert(*words).err == again


def test_an_original_without_its_option_is_told_where_it_belongs(g4convert: Program) -> None:
    ran = g4convert("verify", "OUT", "MODEL")
    assert ran.status == 2
    assert "hint: the original is given with --reference: --reference MODEL" in ran.err


def test_a_number_of_gpus_needs_an_engine(moe: Path, tmp_path: Path, g4convert: Program) -> None:
    ran = g4convert("quantize", moe, "-o", tmp_path / "out", "--tp", 4)
    assert (ran.status, "--engine vllm" in ran.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_no_arguments_print_the_help(g4convert: Program) -> None:
    for command in ((), ("recipe",)):
        ran = g4convert(*command)
        assert ran.status == 2
        assert "Usage: g4convert" in ran.out
        assert ran.err == ""


def test_version(g4convert: Program) -> None:
    assert g4convert("--version").out == f"g4convert {__version__}\n"


def test_recipe_commands(g4convert: Program) -> None:
    listed = g4convert("recipe", "list").out
    assert [line.split()[0] for line in listed.splitlines()] == list(shipped())
    assert json.loads(g4convert("recipe", "list", "--json").out).keys() == shipped().keys()
    assert g4convert("recipe", "show", "text-only").out.startswith("# g4convert quantize MODEL -o OUT -r text-only\n")
    checked = g4convert("recipe", "check", "text-only").out
    assert ["layout", "text-only", "recipe", "text-only"] in [line.split() for line in checked.splitlines()]
    assert json.loads(g4convert("recipe", "check", "text-only", "--json").out)["layout"]["from"] == "recipe text-only"
    assert json.loads(g4convert("recipe", "schema").out)["additionalProperties"] is False


def test_help_names_what_can_be_packed(g4convert: Program) -> None:
    words = g4convert("plan", "--help").out.replace(",", " ").replace(";", " ").split()
    assert set(PackRole) <= set(words)


def options(command: typer.core.TyperGroup) -> Iterator[str]:
    """The long options of a command and of those below it."""
    for parameter in command.params:
        yield from (name for name in parameter.opts if name.startswith("--"))
    for inner in getattr(command, "commands", {}).values():
        yield from options(inner)


def test_every_option_is_tested() -> None:
    here = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    short = {"--output": "-o", "--quiet": "-q", "--verbose": "-v", "--dry-run": "-n", "--recipe": "-r"}
    untested = {
        name
        for name in options(typer.main.get_command(cli.app))
        if f'"{name}"' not in here and f'"{short.get(name, name)}"' not in here
    }
    assert untested <= {"--install-completion", "--show-completion"}


def on_terminal(commands: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Run the program several times on a terminal of 80 columns, in one process; each with its NO_COLOR."""
    code = (
        "import os; from g4convert.cli import app as cli\n"
        f"for colour, words in {[*commands]!r}:\n"
        "    os.environ['NO_COLOR'] = colour\n"
        "    try: cli.main(words)\n"
        "    except SystemExit: print(chr(0), flush=True)\n"
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    text = b""
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not block:
            break
        text += block
    os.close(leader)
    assert process.wait() == 0
    return text.decode().split(chr(0))[:-1]


@pytest.mark.wide
def test_colour_only_on_a_terminal_and_only_if_wanted(moe: Path, g4convert: Program) -> None:
    assert "\x1b[" not in g4convert("plan", moe).out
    coloured = [("", ["recipe", "list"]), ("", ["plan", "nothing"])]
    plain = [("", ["recipe", "list", "--no-color"]), ("", ["plan", "nothing", "--no-color"]), ("1", ["recipe", "list"])]
    found = on_terminal([*coloured, *plain])
    assert ["\x1b[" in text for text in found] == [True] * len(coloured) + [False] * len(plain)


@pytest.mark.wide
def test_whoever_reads_may_leave(moe: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    for command in (("plan", str(moe)), ("recipe", "schema")):
        ran = subprocess.run(
            [sys.executable, "-m", "g4convert", *command], check=False, stdout=write, stderr=subprocess.PIPE, text=True
        )
        assert (ran.returncode, ran.stderr) == (0, "")
    os.close(write)


def test_sigterm_is_an_interruption(moe: Path, tmp_path: Path) -> None:
    code = (
        "import time; from g4convert.cli import app as cli; from g4convert.conversion import stream\n"
        "from g4convert.planning import units as work\n"
        "work._UNIT_BYTES = 1; do = stream._Worker.do\n"
        "stream._Worker.do = lambda self, unit: (time.sleep(0.05), do(self, unit))[1]\n"
        f"cli.main(['quantize', {str(moe)!r}, '-o', {str(tmp_path / 'out')!r}, '--workers', '1'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    journal, deadline = tmp_path / "out.partial" / "journal.jsonl", time.monotonic() + 60
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75, stderr
    assert f"hint: continue with: g4convert quantize {moe} -o {tmp_path / 'out'} --workers 1\n" in stderr
    assert "Traceback" not in stderr


def drive(progress: Quiet, *, done: int = 0) -> None:
    with progress:
        progress.start(3_000_000_000, done)
        progress.advance(1_000_000_000, "model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize("make", [Lines, Bar])
def test_progress_says_what_is_done(make: Callable[[Console], Quiet], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4convert.progress._LINE_SECONDS", 0.0)
    monkeypatch.delenv("NO_COLOR", raising=False)
    console = Console(file=io.StringIO(), force_terminal=True, width=80, record=True)
    drive(make(console), done=1_000_000_000)
    text = console.export_text()
    assert "continuing: 1.00 GB of 3.00 GB were finished by an earlier run" in text
    assert "/s" in text or make is Bar  # which needs a second step for a speed
    assert "model.layers.0.self_attn.q_proj.weight" in text
    assert max(map(len, text.splitlines())) <= 120


def test_no_time_is_foretold_from_the_first_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4convert.progress._LINE_SECONDS", 0.0)
    console = Console(file=io.StringIO(), width=100, record=True)
    with Lines(console) as progress:
        progress.start(1000, 0)
        progress.advance(10, "first")
        progress.advance(490, "second")
    first, second = console.export_text().splitlines()
    assert "left" not in first
    assert "left" in second


@pytest.mark.parametrize("make", [Lines, Bar])
def test_progress_within_a_step(make: Callable[[Console], Quiet], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4convert.progress._LINE_SECONDS", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    with make(console) as progress:
        progress.step("comparing", 2_680, "predictions")
        progress.tick(670)
        progress.step("running: original", 2_727, "tokens")
        progress.tick(2_727)
    text = console.export_text()
    assert "predictions" in text
    assert "left" in text or make is Bar


def test_before_it_knows_how_much_there_is_a_bar_shows_the_time_and_no_bytes() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    with Bar(console):
        pass
    text = console.export_text()
    assert "opening 0:00:00" in text
    assert "bytes" not in text


def test_a_speed_is_shown_when_it_means_something() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    with Bar(console) as progress:
        progress.start(10**12, 0)
        progress.advance(10**9, "first")  # in no time: terabytes a second
        begun = console.export_text()
        progress.advance(10**11, "next")
    assert "B/s" not in begun
    assert "GB/s" in console.export_text()


def test_eighty_columns_hold_the_time_left_of_a_step() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, record=True)
    with Bar(console) as progress:
        progress.step("running: the dequantized weights", 2_727, "tokens")
        progress.tick(414)
    text = console.export_text()
    assert "414 of 2727 tokens" in text
    assert "running: the dequantized weights" in text
    assert "…" not in text


def test_sentences_break_at_words_on_a_terminal_alone() -> None:
    told = {}
    for terminal in (True, False):
        file = io.StringIO()
        prose(
            Console(file=file, force_terminal=terminal, width=24, no_color=True),
            "[dim]a sentence[/] of words",
            indent=2,
        )
        prose(Console(file=file, force_terminal=terminal, width=24, no_color=True), "and \x1b[31m an escape")
        told[terminal] = file.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()
    assert told[True][:2] == ["  a sentence of words", "and \\x1b[31m an escape"]
    assert told[False][0] == "  a sentence of words"
    narrow = io.StringIO()
    prose(Console(file=narrow, force_terminal=True, width=12, no_color=True), "a sentence of words", indent=2)
    assert narrow.getvalue().splitlines() == ["  a sentence", "  of words"]


def test_a_next_command_stays_whole_on_a_narrow_terminal() -> None:
    for terminal, width, wanted in (
        (True, 20, "next: g4convert \\\n      plan x\n      # shows the\n      # sizes\n"),
        (True, 24, "next: g4convert plan x\n      # shows the sizes\n"),
        (True, 80, "next: g4convert plan x  # shows the sizes\n"),
        (False, 20, "next: g4convert plan x  # shows the sizes\n"),
    ):
        file = io.StringIO()
        show_next(Console(file=file, force_terminal=terminal, width=width), "g4convert plan x", "shows the sizes")
        assert file.getvalue() == wanted


def test_a_command_in_lines_is_the_same_command() -> None:
    command = "g4convert quantize 'my model' -o \"it's\" --pack attention --pack mlp"
    for width in (10, 30, 40, 200):
        lines = in_lines("  in full: ", command, width)
        assert shlex.split(lines.removeprefix("  in full: ").replace("\\\n", "")) == shlex.split(command)
    assert in_lines("next: ", command, 60).splitlines() == [
        "next: g4convert quantize 'my model' -o \"it's\" \\",
        "      --pack attention --pack mlp",
    ]


def test_the_method_is_told_with_its_reason(checkpoints: Checkpoints, g4convert: Program, tmp_path: Path) -> None:
    for number, (qat, options, wanted) in enumerate(
        (
            (True, (), "lattice (the source's own grid): source trained for 4 bits (QAT), 100.0 % of its groups"),
            (False, ("-r", "w8a16-g32"), "mse (least squared error)\n"),
            (False, ("--method", "minmax"), "minmax: as asked\n"),
        )
    ):
        source = checkpoints("text", qat=qat)
        ran = g4convert("quantize", source, "-o", tmp_path / str(number), "--verify", "none", *options)
        assert f"\nmethod   {wanted}" in ran.out
        eight = "; a mean KL of at most about 0.0012 nats is expected, a 256th of the 0.301 of 4 bits on Gemma 3 270M"
        assert (eight in ran.out) == ("w8a16-g32" in options)


def test_no_bar_stands_full_between_steps() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, record=True)
    with Bar(console) as progress:
        progress.step("running", 10, "")
        progress.tick(10)
        progress.wait()
        console.export_text(clear=True)
    assert re.fullmatch(r"\W*0:00:00\W*", console.export_text())


def test_a_step_without_a_unit_is_told_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr("g4convert.progress._LINE_SECONDS", 0.0)
    with Lines(console) as progress:
        progress.step("running the original", 2_727, "")
        progress.tick(682)
    assert re.fullmatch(r"  running the original: 25%, \d+ s left\n", console.file.getvalue())


def test_progress_suits_where_it_goes() -> None:
    nowhere = io.StringIO()
    assert type(watch(Console(file=nowhere), quiet=True)) is Quiet
    assert type(watch(Console(file=nowhere), quiet=False)) is Lines
    assert type(watch(Console(file=nowhere, force_terminal=True, _environ={"TERM": "xterm"}), quiet=False)) is Bar
    assert type(watch(Console(file=nowhere, force_terminal=True, _environ={"TERM": "dumb"}), quiet=False)) is Lines


def test_check_says_for_which_engines_it_passes(dense: Path, moe: Path, g4convert: Program, tmp_path: Path) -> None:
    def checked(*words: object) -> list[str]:
        return g4convert("check", *words).out.splitlines()

    for source, said, following in (
        (dense, "loads in transformers, vLLM (1, 2, 4 GPUs), SGLang (1, 2 GPUs)", "vllm serve"),
        (moe, "loads in vLLM (1, 2 GPUs); not for transformers, SGLang", "vllm serve"),
    ):
        out = tmp_path / source.name
        g4convert("quantize", source, "-o", out, "--verify", "none", "-q")
        lines = checked(out)
        assert [line for line in lines if line.endswith(said)], lines
        assert lines[-1].startswith(f"next: g4convert verify {out} --reference "), lines[-1]
        assert lines[-1].endswith(f"; if it passes: {following} {out}")
    refused = checked(tmp_path / moe.name, "--engine", "sglang")
    assert "next:" not in refused[-1]
    assert checked(dense)[-1] == f"next: g4convert plan {dense}  # shows what quantization would make of it"
    assert checked(tmp_path / dense.name, "--tp", 2)[-1].endswith(" --tensor-parallel-size 2")

"""Test that the documents are true: commands run, generated pages are current, tables agree with the program.

In a block fenced as ```console a line that starts with `$ ` is a command; the others are what it prints and are not
compared. Commands of g4convert run in order, each document in a directory of its own, and must succeed, unless they
end in `# exits N`. `MODEL` is a tiny MoE checkpoint, `demo/moe` the trained one as `make demo` leaves it, and hub
names of Gemma 4 are found in a cache that holds tiny ones. In a block fenced as ```console compare every shown line
must be printed by the command above; `…` in it stands for any text.

What cannot be run is listed in `NOT_RUN` and `PROGRAMS` with the reason, and is parsed. A command line anywhere else
than in a console block is an error, except for lines of a workflow and commands named in a sentence, which are parsed.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import typer.main
import yaml
from helpers import cli_reference
from helpers.program import Ran, brief, g4convert

from g4convert.api.calibrate import calibrate
from g4convert.cli.app import app
from g4convert.demo.trained import trained
from g4convert.errors import UsageError
from g4convert.forward.triton.packed import OLDEST_TRITON
from g4convert.gemma4.family import Family
from g4convert.planning.recipe import DEFAULT, Recipe, make_schema
from g4convert.planning.recipe_files import load, load_shipped
from g4convert.verification import profiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from conftest import Checkpoints

__all__ = ["brief", "g4convert"]  # fixtures

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LONG: Final = {"fit.md", "calibrate.md", "layer-by-layer.md"}
"""Documents whose commands the full run runs: tests of `fit` and `calibrate` have them, on less."""
RUN = [
    DOCUMENTS[0],
    *(pytest.param(path, marks=pytest.mark.full if path.name in LONG else pytest.mark.wide) for path in DOCUMENTS[1:]),
]
"""Those whose commands run; the quick run runs the README's."""
NOT_RUN: Final = {
    "g4convert quantize MODEL -o OUT-gpu --device cuda": "needs a GPU",
    "g4convert verify OUT --engine vllm --engine-python /opt/vllm/bin/python": "needs vLLM",
    "g4convert verify OUT --engine sglang --engine-url http://127.0.0.1:30000": "needs a running server",
}
"""Commands of g4convert that a test cannot run, and why; they are parsed."""
PROGRAMS: Final = {
    "apt-get": "changes the machine",
    "bible": "comes with a Debian package",
    "cd": "the shell's own; what follows needs the clone",
    "git": "needs a network",
    "make": "minutes, and an environment; the target must exist",
    "pip": "needs a network",
    "pytest": "runs this test; the file must exist",
    "python": "minutes, a GPU, or an engine; the script must exist",
    "torchrun": "needs free ports; tests/conversion/test_ranks.py does it; the command of g4convert is parsed",
    "uv": "needs a network",
    "vllm": "needs vLLM; the options must be known",
}
"""Other programs that a document may name, why a test does not run them, and what it checks; no other is allowed."""
VLLM_OPTIONS: Final = {"--tensor-parallel-size", "--enable-expert-parallel", "--speculative-config"}
"""Options of `vllm serve` (vllm/engine/arg_utils.py) that documents may name."""
FAMILIES = {"26B-A4B": "moe", "31B": "dense", "12B": "unified", "E2B": "e2b", "E4B": "e2b"}


def blocks(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The info string and the lines of every block fenced as console."""
    for info, text in re.findall(r"^```(console[^\n]*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL):
        yield info, text.splitlines()


def commands(path: Path) -> Iterator[tuple[list[str], int, list[str]]]:
    """Words of every command, the status it should have, and the output to compare."""
    for info, lines in blocks(path):
        found: list[tuple[list[str], int, list[str]]] = []
        for line in lines:
            if line.startswith("$ "):
                exits = re.search(r"# exits (\d+)", line)
                found.append((shlex.split(line[2:], comments=True), int(exits[1]) if exits else 0, []))
            elif "compare" in info and line.strip():
                found[-1][2].append(line)
        yield from found


@pytest.fixture
def hub(checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache in which every released Gemma 4 is a tiny one of its family."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    named = {name for path in DOCUMENTS for name in re.findall(r"google/(gemma-4-[\w.-]+)", path.read_text())}
    for name in named:
        size = name.split("-")[2]
        family = FAMILIES["26B-A4B" if size == "26B" else size]
        revision = "0" * 40
        repository = cache / f"models--google--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(revision)
        made = checkpoints("assistant" if "assistant" in name else family, qat="qat" in name)
        shutil.copytree(made, repository / "snapshots" / revision)
    return cache


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_known(document: Path) -> None:
    for words, _, _ in commands(document):
        check_known(words)


@pytest.mark.parametrize("document", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_run(document: Path, request: pytest.FixtureRequest) -> None:
    if any(is_run(words) for words, _, _ in commands(document)):
        request.getfixturevalue("run_all_of")(document, request.getfixturevalue("moe"))


GUIDES: Final = ROOT / "docs" / "guides"
ON_THE_TRAINED_MODEL: Final = [
    pytest.param(GUIDES / name, marks=pytest.mark.full if name in LONG else pytest.mark.wide, id=name)
    for name in ("quantize.md", "fit.md")
]
"""Guides whose recipes pack in groups of 64, all inputs of an expert of the trained model."""


@pytest.mark.parametrize("document", ON_THE_TRAINED_MODEL)
def test_commands_run_on_the_trained_model(
    document: Path, run_all_of: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    run_all_of(document, trained(Family.MOE))
    assert [*(tmp_path / "place").glob("OUT-mixed" if document.stem == "quantize" else "OUT-six")]


def is_run(words: list[str]) -> bool:
    return words[0] == "g4convert" and shlex.join(words) not in NOT_RUN


@pytest.fixture
def run_all_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path, Path], None]:
    """Runs the commands of a document in a directory of its own, on a model."""
    needed = ("g4convert", "brief", "monkeypatch")
    g4convert, _, monkeypatch = (request.getfixturevalue(name) for name in needed)

    def run(document: Path, moe: Path) -> None:
        if "google/gemma" in document.read_text():
            request.getfixturevalue("hub")
        furnish(tmp_path / "place", moe, document)
        monkeypatch.chdir(tmp_path / "place")
        for words, status, shown in commands(document):
            if is_run(words):
                check_run(g4convert(*words[1:]), words, status, shown)

    return run


def furnish(place: Path, moe: Path, document: Path) -> None:
    """Put what a document's commands read where they run."""
    shutil.copytree(moe, place / "MODEL")
    (place / "mine.jsonl").write_text(json.dumps({"text": "the boats lie in the old harbour " * 60}))
    for output in {*re.findall(r"-o (OUT-own|six|streamed)\b", document.read_text())}:  # else on all texts that ship
        own = place / f"{output}.calibration.safetensors"
        calibrate(moe, own, samples=4, length=32, answers=False, statistics=output == "streamed")
    shutil.copytree(trained(Family.MOE), place / "demo" / "moe")
    for text in re.findall(r"^```yaml\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
        if named := re.search(r"-r (\S+\.yaml)", text):
            (place / named[1]).write_text(text)


def check_run(ran: Ran, words: list[str], status: int, shown: list[str]) -> None:
    """Check exit status, and what the document shows of the output."""
    assert ran.status == status, f"{shlex.join(words)}\n{ran.err}"
    printed = [" ".join(line.split()) for line in (ran.out + ran.err).splitlines()]
    assert [line for line in shown if not any(matches(line, one) for one in printed)] == []


def matches(shown: str, printed: str) -> bool:
    """Return True if a shown line stands for a printed one, spaces aside."""
    return bool(re.fullmatch(".*".join(re.escape(part) for part in " ".join(shown.split()).split("…")), printed))


def check_known(words: list[str]) -> None:
    """Check a command as far as that goes without running it."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_0-9]+=\S*", word)]
    assert words[0] == "g4convert" or words[0] in PROGRAMS, f"{words[0]}: not a program that documents may name"
    match words[0]:
        case "g4convert":
            parsed(words[1:])
        case "torchrun":
            parsed(words[words.index("g4convert") + 1 :])
        case "make":
            targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
            assert set(words[1:]) <= targets
        case "python" | "pytest":
            scripts = [word.partition("::")[0] for word in words if ".py" in word]
            assert all((ROOT / script).exists() for script in scripts), words
        case "vllm":
            assert {word for word in words if word.startswith("--")} <= VLLM_OPTIONS


def command(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command that the first words name, and the words that are left."""
    found = typer.main.get_command(app)
    while words and words[0] in (inner := getattr(found, "commands", {})):
        found, words = inner[words[0]], words[1:]
    return found, words


def parsed(words: list[str]) -> None:
    """Parse a command line; an unknown option or a missing argument raises."""
    found, left = command(words)
    found.make_context("g4convert", list(left))


def test_no_command_is_listed_as_not_run_in_vain() -> None:
    written = {shlex.join(words) for document in DOCUMENTS for words, _, _ in commands(document)}
    assert NOT_RUN.keys() <= written
    assert PROGRAMS.keys() <= {word for line in written for word in line.split()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_stand_in_console_blocks_and_those_named_exist(document: Path) -> None:
    text = document.read_text()
    outside = re.sub(r"^```console.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    shown = re.findall(rf"^(?: {{4}}|\$ )(?:g4convert|{'|'.join(PROGRAMS)}) .*", outside, re.MULTILINE)
    if document.name != "cli.md":  # generated from the program itself
        assert shown == []
    for named in re.findall(r"`(g4convert [^`]+)`|- run: (g4convert .*)|^# (g4convert .*)", text, re.MULTILINE):
        words = re.sub(r"\s+", " ", "".join(named)).split()[1:]
        found, left = command(words)
        if left != words:
            known = {name for one in found.params for name in (*one.opts, *one.secondary_opts)}
            assert {word.partition("=")[0] for word in left if word.startswith("--")} <= known, named
        else:
            assert words[0] == words[0].upper(), named  # `g4convert ARGUMENTS`


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.name != "cli.md"], ids=lambda path: path.name)
def test_words_for_arguments_are_those_of_the_help(document: Path) -> None:
    """`MODEL`, `OUT` and `-o FILE` mean in a document what `--help` calls so; a checkpoint is MODEL or OUT."""
    for named in re.findall(r"`g4convert ([^`]+)`", document.read_text()):
        words = named.split()
        found, left = command(words)
        if left == words:
            continue  # `g4convert ARGUMENTS`
        own = {str(one.metavar) for one in found.params if one.param_type_name == "argument"}
        options = {name: one.metavar or "" for one in found.params for name in (*one.opts, *one.secondary_opts)}
        for before, word in zip(["", *left], left, strict=False):
            if re.fullmatch("[A-Z]{2,}", word):
                wanted = {options[before]} if options.get(before) else own
                either = {"MODEL", "OUT"} if wanted <= {"MODEL", "OUT"} and before not in options else wanted
                assert word in either, f"{named}: {word}, in the help {' or '.join(wanted)}"


@pytest.mark.golden
def test_the_reference_is_up_to_date() -> None:
    path = ROOT / "docs" / "reference" / "cli.md"
    found = cli_reference.text()
    if os.environ.get("G4CONVERT_GOLDEN") == "write":
        path.write_text(found)
    assert found == path.read_text(), "docs/reference/cli.md is old; `make golden` writes it anew"


def rows(path: Path, header: str) -> list[list[str]]:
    """The cells below a table's header line."""
    table = path.read_text().partition(header)[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in table if row.startswith("| ")]


def rows_of_all(path: Path, header: str) -> Iterator[list[str]]:
    """The cells of all tables with a header line that begins so."""
    below = False
    for line in path.read_text().splitlines():
        below = line.startswith(header) or (below and line.startswith("|"))
        if below and line.startswith("| ") and not line.startswith(header):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def in_ticks(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


RECIPES_MD = ROOT / "docs" / "reference" / "recipes.md"
KEYS = {cells[0].strip("`"): cells for cells in rows(RECIPES_MD, "| key |")}
LISTS = {"pack", "engines"}


def test_every_key_of_a_recipe_is_documented() -> None:
    assert set(KEYS) == {*Recipe.model_fields, "extends"}


@pytest.mark.parametrize("key", [key for key in Recipe.model_fields if key != "description"])
def test_documented_defaults_and_values_are_so(key: str) -> None:
    values, default = KEYS[key][1:3]
    ticked = in_ticks(default)
    said: object = ticked if key in LISTS else yaml.safe_load(ticked[0] if ticked else default)
    assert load(DEFAULT, {key: said}).recipe.model_dump()[key] == Recipe().model_dump()[key]
    for value in in_ticks(values):
        load(DEFAULT, {key: [value] if key in LISTS else value})
    known = json.dumps({"property": make_schema()["properties"][key], "types": make_schema()["$defs"]})
    if key in {"method", "kv_shared", "assistant", "layout"}:
        with pytest.raises(UsageError) as refused:
            load(DEFAULT, {key: "nonsense"})
        accepted = set(refused.value.message.partition("not one of ")[2].split(", "))
        assert accepted == set(in_ticks(values))
    assert all(value in known for value in in_ticks(values))


def test_every_shipped_recipe_is_documented() -> None:
    assert {cells[0].strip("`") for cells in rows(RECIPES_MD, "| recipe |")} == set(load_shipped())


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_kernels_are_compiled_with_the_oldest_triton_that_is_allowed() -> None:
    allowed = re.search(r'"triton>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    compiled = re.search(r"^OLDEST_TRITON := \S*/([\d.]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert allowed
    assert compiled
    assert compiled[1].split(".")[:2] == allowed[1].split(".")[:2] == [str(part) for part in OLDEST_TRITON]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_of_shown_python_are_there(document: Path) -> None:
    for code in re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
        for one in ast.walk(ast.parse(code)):
            if isinstance(one, ast.ImportFrom):
                module = importlib.import_module(str(one.module))
                assert all(hasattr(module, name.name) for name in one.names), ast.unparse(one)


def test_a_machine_without_a_gpu_is_spoken_of_once() -> None:
    said = [path.name for path in DOCUMENTS for _ in re.findall(r"(?i)no GPU (?:was|has)", path.read_text())]
    assert said == ["README.md"]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md", "docs/concepts/architecture.md"])
def test_files_named_exist(name: str) -> None:
    named = re.findall(
        r"`((?:g4convert|tests|docs|tools|recipes)/[\w./-]*|\w+\.(?:toml|md|txt))`", (ROOT / name).read_text()
    )
    assert named
    assert [path for path in named if not (ROOT / path).exists() and not (ROOT / "docs" / path).exists()] == []


def test_boxes_of_the_diagram_are_folders_and_modules() -> None:
    text = (ROOT / "docs/concepts/architecture.md").read_text()
    drawn = text.partition("flowchart LR\n")[2].partition("```")[0]
    labels = set(re.findall(r"\w\[([^\](]+)\]", drawn))
    bare = {word for line in drawn.splitlines() for word in re.split(r" -->| -- [^-]*? -->", line) if "[" not in word}
    named = {*re.findall(r"(\w+)\[", drawn)}
    assert len(labels) > 3
    assert [label for label in labels if not (ROOT / "g4convert" / f"{label}.py").exists()] == []
    assert [one for one in bare if not (one.strip() in named or (ROOT / "g4convert" / one.strip()).is_dir())] == []


CODE = re.compile(r"(?:static|weights|logits|engines?|assistant)\.[a-z_]+")
KINDS = ("logits.loss", "logits.parity", "engine.parity")
COMPOSED: Final[Mapping[str, set[str]]] = {
    "{code}.finite": {f"{kind}.finite" for kind in KINDS},
    "{code}.floor": {f"{kind}.floor" for kind in KINDS},
    "{code}.{name}": {f"{kind}.{name}" for kind in KINDS for name in profiles.load("w4a16").thresholds},
    "{level}.bias": {"engines.bias", "weights.bias"},
    "{level}.tied_head": {"engines.tied_head", "weights.tied_head"},
    "{level}.stopped": {"weights.stopped", "logits.stopped", "engine.stopped"},
}
"""Codes that a finding puts together from parts, as the program writes them, and what each stands for."""


def emitted() -> tuple[set[str], set[str]]:
    """Codes that modules which make findings spell out, and those that they put together."""
    whole, parts = set(), set()
    for path in (ROOT / "g4convert").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "Finding(" not in text or path.parent.name == "cli" or path.parts[-2:] == ("inspection", "engines.py"):
            continue  # these read codes
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Constant(value=str(code)) if CODE.fullmatch(code):
                    whole.add(code)
                case ast.Call(func=ast.Name(id="Finding"), args=[ast.JoinedStr() as code, *_]):
                    parts.add(ast.unparse(code)[2:-1])
    return whole, parts


def test_codes_of_findings_and_their_page_are_the_same() -> None:
    whole, parts = emitted()
    assert parts == COMPOSED.keys()
    codes = whole.union(*COMPOSED.values())
    cells = [cell for cell, *_ in rows_of_all(ROOT / "docs/reference/checks.md", "| code |")]
    explained = {code for cell in cells for code in in_ticks(cell)}
    assert len(explained) > 50
    assert sorted(code for code in codes if not any(fnmatchcase(code, one) for one in explained)) == []
    assert sorted(one for one in explained if not any(fnmatchcase(code, one) for code in codes)) == []


def test_metrics_that_have_a_threshold_are_explained() -> None:
    names = {name for cell, *_ in rows(ROOT / "docs/reference/checks.md", "| metric |") for name in in_ticks(cell)}
    assert names >= {name for profile in ("w4a16", "parity") for name in profiles.load(profile).thresholds}

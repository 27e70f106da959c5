"""What the documents say is so: commands run, the reference is made from the program, tables agree with it.

In a block fenced as ```console a line that starts with `$ ` is a command; the others are what it prints and are not
compared. Commands of g4convert run in order, each document in a directory of its own, and must succeed, unless they
end in `# exits N`. `MODEL` and `tiny-moe` are a tiny MoE checkpoint, and hub names of Gemma 4 are found in a cache
that holds tiny ones. In a block fenced as ```console compare every shown line must be printed by the command above.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from helpers import cli_reference
from helpers.program import Program, g4convert

from g4convert.errors import UsageError
from g4convert.forward.triton.packed import OLDEST_TRITON
from g4convert.planning.recipe import DEFAULT, Recipe, load, schema, shipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Checkpoints

__all__ = ["g4convert"]  # a fixture

ROOT = Path(__file__).parents[1]
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]
NOT_RUN = {"make", "git", "cd", "pip", "vllm", "hf", "python"}
"""Programs that a document may name and a test cannot run; anything else is a slip."""
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
@pytest.mark.usefixtures("hub")
def test_commands_run(
    document: Path, moe: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    for name in ("MODEL", "tiny-moe"):
        shutil.copytree(moe, place / name)
    for text in re.findall(r"^```yaml\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
        if named := re.search(r"-r (\S+\.yaml)", text):
            (place / named[1]).write_text(text)
    monkeypatch.chdir(place)
    for words, status, shown in commands(document):
        if "g4convert" not in words:
            assert words[0] in NOT_RUN, f"{document.name}: {shlex.join(words)}: not a program that documents may name"
            continue
        ran = g4convert(*words[words.index("g4convert") + 1 :])
        assert ran.status == status, f"{document.name}: {shlex.join(words)}\n{ran.err}"
        printed = {" ".join(line.split()) for line in (ran.out + ran.err).splitlines()}
        assert [line for line in shown if " ".join(line.split()) not in printed] == []


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
    known = json.dumps({"property": schema()["properties"][key], "types": schema()["$defs"]})
    if key in {"method", "kv_shared", "assistant", "layout"}:
        with pytest.raises(UsageError) as refused:
            load(DEFAULT, {key: "nonsense"})
        accepted = set(refused.value.message.partition("not one of ")[2].split(", "))
        assert accepted == set(in_ticks(values))
    assert all(value in known for value in in_ticks(values))


def test_every_shipped_recipe_is_documented() -> None:
    assert {cells[0].strip("`") for cells in rows(RECIPES_MD, "| recipe |")} == set(shipped())


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

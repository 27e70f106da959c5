"""The program keeps to its layers, imports nothing heavy early, and says exactly what is public."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import sparse

from g4convert.tensors import DType, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "g4convert"
HEAVY = {"torch", "numpy", "numba", "transformers", "compressed_tensors", "safetensors"}


def modules() -> dict[str, Path]:
    """Every module by its name below the package; a package is its `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING`, which only a type checker reads."""
    left = [tree]
    while left:
        node = left.pop()
        if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"):
            yield node
            left.extend(ast.iter_child_nodes(node))


@cache
def imports(module: str) -> set[str]:
    """Our modules that one imports anywhere, also inside functions."""
    found = set()
    for node in executed(parsed(module)):
        if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).split(".")[0] == "g4convert"):
            beside = module.rpartition(".")[0]
            below = f"{beside}.{node.module}" if node.level else ".".join(str(node.module).split(".")[1:])
            for alias in node.names:
                inner = f"{below}.{alias.name}".strip(".")
                found.add(inner if inner in MODULES else below)
    return found - {""}


@cache
def layers() -> list[str]:
    """Folders of the package in the order of docs/concepts/architecture.md; modules beside them come before all."""
    table = (ROOT / "docs" / "concepts" / "architecture.md").read_text().partition("| folder |")[2].partition("\n\n")[0]
    return [found[1] for row in table.splitlines()[2:] if (found := re.match(r"\| `(\w+)/`", row))]


def level(module: str) -> int:
    """The layer of a module: 0 for those that lie in no folder."""
    folder, inner, _ = module.partition(".")
    return layers().index(folder) + 1 if inner or folder in layers() else 0


PLACED = sorted(MODULES.keys() - {"", "__main__"})


def test_every_folder_is_a_layer() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(layers()) == folders


DATA = {
    *("g4convert.recipes", "g4convert.recipes.profiles", "g4convert.calibration.texts"),
    *("g4convert.demo.trained.e2b", "g4convert.demo.trained.moe"),
    *("g4convert.verification.page.templates", "g4convert.verification.probes.data"),
}
"""Directories without modules; setuptools warns of one with files that is not listed."""


def test_every_directory_of_data_is_known() -> None:
    directories = {path.parent for root in (PACKAGE, ROOT / "recipes") for path in root.rglob("*.*")}
    data = {one for one in directories if one.name != "__pycache__" and not (one / "__init__.py").exists()}
    names = {".".join(one.relative_to(ROOT).parts) for one in data - {PACKAGE / "demo" / "trained"}}
    assert {re.sub("^recipes", "g4convert.recipes", name) for name in names} == DATA


def test_every_package_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {f"g4convert.{name}".rstrip(".") for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(listed) == {*packages, *DATA}


def test_a_module_that_is_gone_is_not_in_the_next_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install .` leaves build/lib in the clone."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g4convert").mkdir()
    (tmp_path / "g4convert" / "__init__.py").touch()
    stale = tmp_path / "build" / "lib" / "g4convert" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    command = importlib.import_module("fresh_build").FreshBuild(
        setuptools.Distribution({"packages": ["g4convert"], "script_name": "setup.py"})
    )
    command.ensure_finalized()
    command.run()
    assert [path.name for path in stale.parent.iterdir()] == ["__init__.py"]


def test_imports_are_from_the_same_folder_or_an_earlier_one() -> None:
    later = {module: {name for name in imports(module) if level(name) > level(module)} for module in PLACED}
    assert {module: names for module, names in later.items() if names} == {}


def test_the_readme_has_the_folders_in_the_same_order() -> None:
    table = (ROOT / "README.md").read_text().partition("| folder |")[2].partition("\n\n")[0]
    assert re.findall(r"`g4convert/(\w+)`", table) == layers()


def test_packages_list_their_modules() -> None:
    for package in (name for name in PLACED if MODULES[name].name == "__init__.py"):
        text = ast.get_docstring(parsed(package), clean=False) or ""
        listed = re.findall(r"^(\w+) {2,}\S", text, re.MULTILINE)
        inner = {name.removeprefix(f"{package}.") for name in PLACED if name.startswith(f"{package}.")}
        assert sorted(listed) == sorted(name for name in inner if "." not in name), package


def test_imports_have_no_circle() -> None:
    below = {name: imports(name) & set(PLACED) for name in MODULES}
    left = set(PLACED)
    while left:
        free = {name for name in left if not below[name] & left - {name}}
        assert free, f"these import each other: {sorted(left)}"
        left -= free


def test_the_program_in_vllms_interpreter_imports_what_is_there() -> None:
    """Its modules import each other relatively: there they have another name."""
    brought = {*sys.stdlib_module_names, "torch", "torchvision", "vllm"}
    for module in (name for name in MODULES if name.startswith("verification.engine.vllm_child.")):
        for node in ast.walk(parsed(module)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            assert {name.split(".")[0] for name in names} <= brought, module


def test_all_names_what_is_there() -> None:
    """`__all__` is for modules that hand names on; elsewhere what other modules may use has no underscore."""
    for module in sorted(MODULES.keys() - {"__main__"}):
        imported = importlib.import_module(f"g4convert.{module}".rstrip("."))
        listed = getattr(imported, "__all__", [])
        assert len({*listed}) == len(listed), module
        assert {*listed} <= {*dir(imported)}, module


LIGHT = {
    "--help": 0,
    "quantize --help": 0,
    "recipe list": 0,
    "recipe check text-only": 0,
    "recipe schema": 0,
    "plan MOE": 0,
    "plan MOE -v": 0,
    "plan MOE --json": 0,
    "inspect MOE": 0,
    "inspect MOE --json": 0,
    "quantize MOE --show-config": 0,
    "generate PACKED -p Why?": 3,
    "reference PACKED -o ref.safetensors": 2,
}
"""Commands that load no heavy module, and their status: the last two are refused, as there is no tokenizer and no
original."""
RUNS = """
import json, os, sys
from g4convert.cli.app import main
loaded = {}
for command in json.loads(sys.argv[1]):
    try:
        main(command.split())
    except SystemExit as left:
        loaded[command] = left.code, [*sys.modules]
os.write(2, json.dumps(loaded).encode())
"""


def test_light_commands_import_nothing_heavy(moe: Path, tmp_path: Path) -> None:
    """One process runs them one after the other, so that the first that does is the one that fails."""
    words = TensorInfo("model.layers.0.mlp.up_proj.weight_packed", DType.I32, (8, 1))
    packed = sparse.write(tmp_path / "packed", json.loads((moe / "config.json").read_text()), [words], {})
    (packed / "tokenizer.json").unlink()
    commands = json.dumps([one.replace("MOE", str(moe)).replace("PACKED", str(packed)) for one in LIGHT])
    ran = subprocess.run([sys.executable, "-c", RUNS, commands], check=True, capture_output=True, text=True)
    *_, told = ran.stderr.splitlines()
    assert [status for status, _ in json.loads(told).values()] == [*LIGHT.values()]
    for command, (_, modules_loaded) in json.loads(told).items():
        loaded = {name.split(".")[0] for name in modules_loaded}
        assert loaded & HEAVY == set(), command
        if "--help" in command:
            assert "yaml" not in loaded  # Typer brings pydantic, recipes the rest

"""The program keeps to its layers, imports nothing heavy early, and says exactly what is public."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "g4convert"
COMMANDS = ("app.command", "recipes.command")
"""Decorators of what is reached through the program, not by name."""
HEAVY = {"torch", "numpy", "numba", "transformers", "compressed_tensors", "safetensors"}


def modules() -> dict[str, Path]:
    """Every module by its name below the package; a package is its `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING`, which only a type checker reads."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"):
            yield from executed(child)


def imports(path: Path) -> set[str]:
    """Our modules that one imports anywhere, also inside functions."""
    found = set()
    for node in executed(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "g4convert":
            below = ".".join(str(node.module).split(".")[1:])
            for alias in node.names:
                inner = f"{below}.{alias.name}".strip(".")
                found.add(inner if inner in MODULES else below)
    return found - {""}


def layers() -> list[tuple[str, list[str]]]:
    """The table of docs/architecture.md: name of a layer and patterns of its modules, lowest first."""
    table = (ROOT / "docs" / "architecture.md").read_text().partition("| layer |")[2].partition("\n\n")[0]
    found = []
    for row in table.splitlines()[2:]:
        name, patterns, _ = (cell.strip() for cell in row.strip("|").split("|"))
        found.append((name, [word.strip("`") for word in patterns.split() if word.startswith("`")]))
    return found


def layer_of(module: str) -> int:
    """The layer whose pattern names a module; a full name wins over `package/`."""
    named = [
        (module == pattern, len(pattern), level)
        for level, (_, patterns) in enumerate(layers())
        for pattern in patterns
        if module == pattern or (pattern.endswith("/") and f"{module}.".startswith(pattern.replace("/", ".")))
    ]
    assert named, f"{module} is in no layer of docs/architecture.md"
    return max(named)[2]


PLACED = sorted(MODULES.keys() - {"", "__main__"})


@pytest.mark.parametrize("module", PLACED)
def test_imports_point_to_the_same_layer_or_down(module: str) -> None:
    own = layer_of(module)
    up = {name for name in imports(MODULES[module]) if layer_of(name) > own}
    assert not up, f"{module} ({layers()[own][0]}) imports {up}"


def test_every_pattern_of_the_table_names_a_module() -> None:
    patterns = {pattern for _, patterns in layers() for pattern in patterns}
    assert {pattern for pattern in patterns if pattern.rstrip("/") not in MODULES} == set()


def test_imports_have_no_circle() -> None:
    below = {name: {inner for inner in imports(path) if inner in PLACED} for name, path in MODULES.items()}
    left = set(PLACED)
    while left:
        free = {name for name in left if not below[name] & left - {name}}
        assert free, f"these import each other: {sorted(left)}"
        left -= free


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"__main__"}))
def test_all_is_exact(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    listed: list[str] = []
    defined = set()
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List() as names):
                listed = ast.literal_eval(names)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                if not any(ast.unparse(decorator).startswith(COMMANDS) for decorator in node.decorator_list):
                    defined.add(name)
    assert len(set(listed)) == len(listed)
    imported = importlib.import_module(f"g4convert.{module}".rstrip("."))
    assert [name for name in listed if not hasattr(imported, name)] == []
    missing = {name for name in defined if not name.startswith("_")} - set(listed)
    assert not missing, f"public and not in __all__: {missing}"


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "quantize --help",
        "recipe list",
        "recipe check text-only",
        "recipe schema",
        "plan MOE",
        "plan MOE -v",
        "plan MOE --json",
        "inspect MOE",
        "inspect MOE --json",
        "quantize MOE --show-config",
    ],
)
def test_light_commands_import_nothing_heavy(command: str, moe: Path) -> None:
    words = [str(moe) if word == "MOE" else word for word in command.split()]
    code = (
        "import json, os, sys\n"
        "from g4convert.cli.app import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: os.write(2, json.dumps([*sys.modules]).encode())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in json.loads(ran.stderr)}
    assert not loaded & HEAVY
    if "--help" in command:
        assert "yaml" not in loaded  # Typer brings pydantic, recipes the rest

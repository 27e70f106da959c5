"""Every hint of a refusal of a source, a checkpoint or a recipe, and the test that follows it.

A hint is followed if a test does what it says and sees that it works. `FOLLOWED` names that test; `OUTSIDE` names what
`make test-remedies` follows with the tools of others; `NOT_FOLLOWED` gives the reason for the rest.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("checkpoint", "gemma4", "planning", "engines", "inspection", "conversion")
REMEDIES = "tests/cli/test_remedies.py::"
_SOURCE = f"{REMEDIES}test_the_hint_of_a_refused_source_works"
_OPTIONS = f"{REMEDIES}test_the_hint_of_refused_options_works"
_LAYOUTS = "tests/checkpoint/test_layouts.py::"

FOLLOWED: Mapping[str, tuple[str, ...]] = {
    _SOURCE: (
        "pass {}", "programs differ in which they read: delete one",
        "download the model into it first", "run the same download again", "copy {} from the model's repository",
        "put the file, or a link to it, in its place", "complete the download, or save the model again",
        "download the model again, or save it again with `save_pretrained`", "fetch the model again",
        "download or save this file again; it is damaged", "run `git lfs pull` there",
        "pass the original safetensors checkpoint", "pass the directory that holds the weights",
        "pass the directory that the trainer saved the model to", "delete {}: it belongs to another save",
        "if the shards are all of one save, delete {}", "where you trust it and save it with `save_pretrained`",
        "rename the file", "supported: {}", "compare with the config.json of the model", "delete {} or {}",
        "start from the bf16 checkpoint", "a merge or a quantizer left them: delete them",
        "lists what the directory holds",
    ),
    _OPTIONS: (
        "divides all of them || no group size divides", "leave nothing to pack at 4 or 8",
        "--num-bits 4, or --method mse", "MODEL` lists the roles it has", "MODEL -v` lists every module",
        "decide alike on q, k and v", "schema` lists every key", "schema` says what can",
        "list` shows the shipped ones", "list` shows them", "`*` stays in its directory",
    ),
    "tests/gemma4/test_causes.py::test_the_model_type_is_that_of_what_the_config_describes": ("set model_type to {}",),
    f"{REMEDIES}test_experts_of_several_dtypes_are_packed_or_saved_in_one": ("pack the experts, or save",),
    f"{REMEDIES}test_the_hint_about_a_place_to_write_works": (
        "<another>", "cd .. and -o {}, or give", "or --overwrite to replace this one",
        "move it away, or give -o another",
        "--device cpu does the same",
    ),
    f"{REMEDIES}test_the_hint_about_what_lies_beside_an_output_works": ("--overwrite makes it again", "move it away"),
    "tests/conversion/test_resume.py::test_what_no_run_left_is_refused_and_overwrite_starts_again": (
        "--overwrite starts again", "--overwrite starts a run again",
    ),
    f"{_LAYOUTS}test_an_index_that_is_wrong_may_be_deleted": ("restore {} from the model's repository; if its shards",),
    f"{_LAYOUTS}test_shards_of_an_earlier_save_are_named_and_may_be_deleted": ("delete {}, or the others",),
    "tests/cli/test_beside.py::test_the_hint_about_a_link_to_nothing_works": ("leave them behind: --leave",),
    "tests/checkpoint/test_source.py::test_the_nearest_directory_is_named": ("<_name_hint(",),
    "tests/inspection/test_engines_check.py::test_the_command_pairs": ("check OUT --assistant-of MODEL",),
    "tests/checkpoint/test_source.py::test_a_snapshot_in_part_is_completed": ("run the same command again",),
}  # fmt: skip
"""Test -> parts of the hints that it follows."""

OUTSIDE: Mapping[str, tuple[str, ...]] = {
    "tests/remedies/follow.py": ("<remedy.format(",),  # Megatron's alone is not followed: it needs a GPU
    "tests/remedies/merge.py": ("`mlx_lm.fuse", "merge the adapter first"),
}
"""Script of `make test-remedies` -> parts of the hints that it follows."""

NOT_FOLLOWED: Mapping[str, tuple[str, ...]] = {
    "needs a hub, or its account": (
        "free some space, or point HF_HOME", "write org/name@branch", "unset HF_HUB_OFFLINE", "accept the terms at",
        "a private repository needs", "for branches and tags", "check the network",
    ),
    "needs another user, disk or machine": (
        "check its permissions", "check the file's owner", "on a disk you can write", "a directory in the mount",
        "llama-imatrix", "an importance matrix of llama.cpp",
    ),
    "the same command again, after what disturbed it ended": (
        "the file changed while it was in use", "start again", "the same command continues",
        "start every rank with the same command", "start all ranks with the same",
    ),
    "says what cannot be, or where to look": (
        "the checkpoint is damaged, or its training diverged", "one sample of twenty", "-r qat-q4_0 keeps its codes",
        "would read weights, pickles and settings", "put them there themselves", "judges drafters",
        "a reference holds what the original answers",
        "write patterns without repeats", "a set of weights that no short list", "<'; '.join(ways)>",
        "nothing was written; `g4convert check", "nothing was written; quantize",
    ),
    "another command or option, which has tests of its own": (
        "--method mse", "copy the model's own", "`g4convert calibrate MODEL -o FILE` makes one",
        "w4a16-g32-gptq uses it",
        "--device cpu, or --method gptq",
    ),
    "from Python alone: commands look for a directory, or make a calibration, first": (
        "pass the directory that holds config.json", "--calibration FILE",
    ),
    "handed on from another error": (
        "<hint>", "<error.hint>", "<'; '.join(dict.fromkeys(", "<'; '.join(hints)>", "<remedy>",
    ),
}  # fmt: skip
"""Reason -> parts of the hints that no test follows."""


def words(node: ast.expr, constants: Mapping[str, str]) -> str:
    """Return the text of a hint, `{}` for what is filled in, and code in angle brackets."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)
        case ast.Name(id=name):
            return constants.get(name, f"<{name}>")
        case ast.BoolOp(values=parts):
            return " || ".join(words(part, constants) for part in parts)
        case ast.IfExp(body=one, orelse=other):
            return f"{words(one, constants)} || {words(other, constants)}"
    return f"<{ast.unparse(node)}>"


def assigned(tree: ast.Module) -> Mapping[str, str]:
    """Return the texts that names of a module stand for, those of functions included."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found.setdefault(name, words(value, {}))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found.setdefault(name, words(value, {}))
    return found


@cache
def hints() -> Mapping[str, str]:
    """Return every hint that an error is given in these folders, with the module that gives it."""
    trees = {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
        for folder in FOLDERS
        for path in sorted((ROOT / "g4convert" / folder).rglob("*.py"))
    }
    below = [ast.parse(path.read_text()) for path in (ROOT / "g4convert").glob("*.py")]
    texts = (text for tree in (*below, *trees.values()) for text in assigned(tree).items())
    shared = {name: text for name, text in texts if name.isupper()}
    return {
        words(word.value, {**shared, **assigned(tree)}): module
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg == "hint"
    }


def parts() -> Iterator[tuple[str, str]]:
    for table in (FOLLOWED, OUTSIDE, NOT_FOLLOWED):
        yield from ((part, where) for where, of in table.items() for part in of)


def test_every_hint_has_a_test_or_a_reason() -> None:
    lost = {hint: module for hint, module in hints().items() if not any(part in hint for part, _ in parts())}
    assert lost == {}
    assert len(hints()) > 60


def test_every_part_is_that_of_a_hint() -> None:
    assert [part for part, _ in parts() if not any(part in hint for hint in hints())] == []


@pytest.mark.parametrize("where", [*FOLLOWED, *OUTSIDE])
def test_what_follows_a_hint_is_there(where: str) -> None:
    path, _, name = where.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert (name or "main") in functions

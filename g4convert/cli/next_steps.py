"""The command that a user may give next: one line at the end of a command's output, `next: COMMAND  # what it does`.

The line can be pasted into a shell, as what it does stands behind as a comment. Below it may stand `then, if it passes:
COMMAND`.
MODEL stands for a path that is not known here.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from glob import escape
from itertools import chain
from pathlib import Path
from shlex import quote
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from g4convert.checkpoint import source
from g4convert.checkpoint.files import part
from g4convert.checkpoint.record import record
from g4convert.cli.tables import in_lines
from g4convert.conversion.result import serve_command
from g4convert.errors import G4Error
from g4convert.planning.recipe import DEFAULT, RecipeMethod
from g4convert.planning.recipe_files import load, shipped

if TYPE_CHECKING:
    from rich.console import Console

    from g4convert.engines.verdicts import Verdict
    from g4convert.inspection.engines import Checked
    from g4convert.planning.recipe import Recipe
    from g4convert.planning.recipe_files import Resolved
    from g4convert.report import Report


class Step(NamedTuple):
    """The next thing to do.

    Args:
        command: a command; empty where there is nothing to do.
        what: words on what it does.
        then: the command after it, if it passes.
    """

    command: str
    what: str = ""
    then: str = ""


_NONE: Final = Step("")
_COMMENT = "      # "
_THEN = "then, if it passes: "
_OPTION = re.compile(r"-r [\w-]+|vllm serve \S+")
"""An option or a command in words on a command, which stays in one line."""
_HARD = "\xa0"
"""A blank at which no line is broken."""


def show_next(out: "Console", command: str, what: str = "", then: str = "") -> None:
    """Print the line, on a terminal that it does not fit in two, and the command after it; nothing if empty."""
    if command:
        line = f"next: {command}  # {what}" if what else f"next: {command}"
        if out.is_terminal and len(line) > out.width:
            line = in_lines("next: ", command, out.width)
            whole = _OPTION.sub(lambda found: found[0].replace(" ", _HARD), what)
            comment = fill(
                whole, out.width, initial_indent=_COMMENT, subsequent_indent=_COMMENT, break_on_hyphens=False
            )
            line += f"\n{comment.replace(_HARD, ' ')}" * bool(what)
        if then:
            line += "\n" + (in_lines(_THEN, then, out.width) if out.is_terminal else f"{_THEN}{then}")
        out.print(line, markup=False, soft_wrap=True)


def output_name(model: str, recipe: "Recipe") -> str:
    """Return a name for the output of a model: `gemma-W4A16`, with the method if a recipe has one of its own."""
    method = "" if recipe.method is RecipeMethod.AUTO else f"-{recipe.method}"
    return f"{model.rpartition('/')[2]}-W{recipe.num_bits}A16{method}"


def conversion_of(model: str, name: str, recipe: "Resolved") -> Step:
    """Return the command that quantizes a model as planned, and words on it."""
    chosen = "" if recipe.name == DEFAULT else f" -r {quote(recipe.name)}"
    mine = any(origin.startswith("--") for origin in recipe.origins.values())
    command = f"g4convert quantize {quote(model)} -o {quote(output_name(name, recipe.recipe))}{chosen}"
    return Step(command, "with the other options given here" if mine else "")


def _directory(output: str) -> Path:
    """Return the directory of a checkpoint that was looked up before, under this name."""
    with suppress(G4Error):
        return source.resolve(output).path
    return Path(output)


def _name(output: str) -> str:
    """Return the last word of a checkpoint's name: of its directory, or of a repository of the hub."""
    return source.Source.at(_directory(output)).name.rpartition("/")[2]


def mending(output: str) -> str:
    """Return the command that corrects a config; of a snapshot of the hub's cache, which others share, a copy's."""
    found = source.Source.at(_directory(output))
    if not found.revision:
        return f"g4convert check {quote(output)} --fix"
    _, at, revision = output.rpartition("@") if not Path(output).exists() else ("", "", "")
    chosen, here = f" --revision {quote(revision)}" * bool(at), quote(_name(output))
    return f"hf download {found.name}{chosen} --local-dir {here}; g4convert check {here} --fix"


def _original_of(name: str) -> str:
    """Return the model that a checkpoint was made of, as a word of the shell; MODEL if it is not known.

    The checkpoint's record has the name: of a repository on the hub, or of a directory, which is looked for here, one
    folder below and beside the checkpoint, with the recorded files.
    """
    output = _directory(name)
    made_of = part(record(output), "source")
    name, files = str(made_of.get("name") or ""), part(made_of, "files")
    if name and made_of.get("revision"):
        return quote(name)
    sizes = {file: part(files, file).get("size") for file in files}
    known = name == Path(name).name and sizes
    places = chain((Path(name), output.parent / name), Path().glob(f"*/{escape(name)}")) if known else ()
    found = next((one for one in places if _sizes(one, sizes) == sizes), None)
    return quote(str(found)) if found else "MODEL"


def _sizes(directory: Path, names: Iterable[str]) -> dict[str, int]:
    """Return the sizes of those of these files that are in a directory."""
    found = {}
    for name in names:
        with suppress(OSError, ValueError):
            found[name] = (directory / name).stat().st_size
    return found


def recipe_of(output: str) -> str:
    """Return the name of the shipped recipe that a checkpoint says it was made by; empty for any other recipe."""
    values = dict(part(record(_directory(output)), "recipe"))
    name = str(values.pop("name", ""))
    return name if name in shipped() and load(name).settings() == values else ""


def made_anew(output: str) -> str:
    """Return the command that makes a checkpoint again in another directory, for other options to be added."""
    name = str(part(record(_directory(output)), "recipe").get("name"))
    chosen = f" -r {name}" if name in shipped() and name != DEFAULT else ""
    return f"g4convert quantize {_original_of(output)} -o {quote(f'{_name(output)}-2')}{chosen}"


def answers_of(output: str | Path, reference: str | Path) -> Step:
    """Return the command that measures the answers of an output, and words on it."""
    command = f"g4convert verify {quote(str(output))} --reference {reference} --level logits"
    return Step(command, "measures how far its answers are from the original's; needs no engine")


def served(output: str, refused: Iterable["Verdict"], *, drafter: bool) -> Step:
    """Return the command that serves an output, and words on it; empty if vLLM refuses it on one GPU."""
    return _NONE if any(one.engine == "vllm" for one in refused) else Step(serve_command(output, drafter=drafter))


def _serving(output: str, found: Iterable["Verdict"], *, drafter: bool = False) -> Step:
    """Return the command that serves a checkpoint in an engine that loads it, and words on it; empty without one.

    Args:
        output: the checkpoint.
        found: verdicts of the engines.
        drafter: whether the checkpoint is a drafter.
    """
    given, loads = tuple(found), dict[str, int]()
    for one in given:
        if one.loads.value != "no":
            loads.setdefault(one.engine, one.tp)
    if "vllm" in loads:
        many = f" --tensor-parallel-size {loads['vllm']}" if loads["vllm"] > 1 else ""
        return Step(f"{serve_command(output, drafter=drafter)}{many}")
    if "sglang" in loads and not drafter:
        many = f" --tp {loads['sglang']}" if loads["sglang"] > 1 else ""
        half = any(remark.topic == "dtype" for one in given if one.engine == "sglang" for remark in one.caveats)
        wide = " --dtype bfloat16" if half else ""
        return Step(f"python -m sglang.launch_server --model-path {quote(output)}{many}{wide}")
    if "transformers" in loads and not drafter:
        return Step(f'g4convert generate {quote(output)} -p "Why is the sky blue?"')
    return _NONE


def after_verify(found: "Report") -> Step:
    """Return what to do after a verification: mend it, quantize anew, look deeper, or serve it."""
    from g4convert.api.check import check
    from g4convert.report import Severity

    output, levels = found.output, found.levels
    original = "" if found.reference is None or found.reference.endswith(".safetensors") else quote(found.reference)
    original = original or _original_of(output)
    if found.metrics.get("advice"):
        return _quantized_anew(output, original, found.metrics["advice"][0])
    if found.verdict is Severity.FAIL:
        return _mended(found)
    if found.verdict is Severity.INCONCLUSIVE:
        return _NONE
    if levels == ("static",):
        command = f"g4convert verify {quote(output)} --reference {original}"
        return Step(command, "compares every weight with the original's")
    return _after_answers(check(output)) if {"logits", "engine"} & {*levels} else answers_of(output, original)


def _after_answers(found: "Checked") -> Step:
    """Return what to do after answers were measured: serve it, if an engine loads it."""
    if found.report.exit_code(strict=False) or not found.packed:
        return after_check(found)
    return _serving(found.report.output, found.verdicts, drafter=found.is_drafter)


def _quantized_anew(output: str, original: str, way: Mapping[str, Any]) -> Step:
    """Return the command that quantizes a model in another way, with a name for its output."""
    name = f"{_name(output) if original == 'MODEL' else Path(original).name}-{way['name']}"
    expected = "loses less" if way["fails"] else "should pass" if way["passes"] else "should pass with a warning"
    return Step(f"g4convert quantize {original} -o {quote(name)} {way['options']}", f"{way['what']}: {expected}")


def _mended(found: "Report") -> Step:
    """Return the command that corrects the config of a checkpoint that failed, if that is its fault."""
    from g4convert.api.check import check
    from g4convert.inspection.fix import CURABLE
    from g4convert.report import Severity

    if any(one.code in CURABLE for one in found.of(Severity.FAIL)):
        with suppress(G4Error):  # what breaks the verification may break the check, too
            return after_check(check(found.output))
    return _NONE


def after_check(found: "Checked") -> Step:
    """Return what to do after a check: correct the config, quantize, or measure the answers and then serve it."""
    output, failed = found.report.output, found.report.exit_code(strict=False)
    if failed:
        return Step(mending(output), "corrects its quantization_config") if found.is_fixable else _NONE
    if not found.packed:
        return _planned(output)
    serve = _serving(output, found.verdicts, drafter=found.is_drafter)
    if not serve.command:
        return _NONE
    return Step(answers_of(output, _original_of(output)).command, "skip if it has passed", serve.command)


def after_generate(model: str, *, quantized: bool) -> Step:
    """Return what to do after a checkpoint has spoken; nothing where it is quantized, as it may be verified already."""
    return _NONE if quantized else _planned(model)


def _planned(model: str) -> Step:
    return Step(f"g4convert plan {quote(model)}", "shows what quantization would make of it")

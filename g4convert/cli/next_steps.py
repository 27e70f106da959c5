"""The command that a user may give next: one line at the end of a command's output, `next: COMMAND  # what it does`.

The line can be pasted into a shell, since the description is a comment. A second line may follow: `then, if it passes:
COMMAND`. MODEL stands for a path that is not known here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
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
from g4convert.cli.tables import break_command
from g4convert.conversion.result import serve_command
from g4convert.errors import G4Error
from g4convert.planning.recipe import DEFAULT, RecipeMethod
from g4convert.planning.recipe_files import load
from g4convert.planning.recipe_options import describe_differences, find_base, find_options, read_recorded

if TYPE_CHECKING:
    from rich.console import Console

    from g4convert.engines.verdicts import Verdict
    from g4convert.inspection.engines import Checked
    from g4convert.planning.recipe import Recipe
    from g4convert.planning.recipe_files import ResolvedRecipe
    from g4convert.report import Report


class NextStep(NamedTuple):
    """The next thing to do.

    Args:
        command: a command; empty if there is nothing to do.
        what: what it does.
        then: the command after it, if it passes.
    """

    command: str
    what: str = ""
    then: str = ""


_NO_STEP: Final = NextStep("")
_COMMENT = "      # "
_THEN = "then, if it passes: "
_UNBROKEN = re.compile(r"-r [\w-]+|vllm serve \S+")
"""An option or a command in a comment, which must not be broken."""
_UNBREAKABLE = "\xa0"
"""A blank at which no line is broken."""


def show_next(out: "Console", command: str, what: str = "", then: str = "") -> None:
    """Print the line, on a terminal that it does not fit in two, and the command after it; nothing if empty."""
    if command:
        line = f"next: {command}  # {what}" if what else f"next: {command}"
        if out.is_terminal and len(line) > out.width:
            line = break_command("next: ", command, out.width)
            whole = _UNBROKEN.sub(lambda match: match[0].replace(" ", _UNBREAKABLE), what)
            comment = fill(
                whole, out.width, initial_indent=_COMMENT, subsequent_indent=_COMMENT, break_on_hyphens=False
            )
            if what:
                line += f"\n{comment.replace(_UNBREAKABLE, ' ')}"
        if then:
            line += "\n" + (break_command(_THEN, then, out.width) if out.is_terminal else f"{_THEN}{then}")
        out.print(line, markup=False, soft_wrap=True)


def output_name(model: str, recipe: "Recipe") -> str:
    """Return a name for the output of a model: `gemma-W4A16`, with the method if a recipe has one of its own."""
    method = "" if recipe.method is RecipeMethod.AUTO else f"-{recipe.method}"
    return f"{model.rpartition('/')[2]}-W{recipe.num_bits}A16{method}"


def after_plan(model: str, name: str, recipe: "ResolvedRecipe", tps: Sequence[int] = ()) -> NextStep:
    """Return the command that quantizes a model as planned.

    Args:
        model: the model, as the user named it.
        name: its name.
        recipe: recipe of the plan, with the options that were laid over it.
        tps: numbers of GPUs that were given.
    """
    options = [] if recipe.name == DEFAULT else [f"-r {quote(recipe.name)}"]
    options += describe_differences(recipe.recipe, load(recipe.name).recipe) or []
    options += [f"--tp {tp}" for tp in tps if recipe.recipe.engines]
    command = ["g4convert quantize", quote(model), "-o", quote(output_name(name, recipe.recipe)), *options]
    return NextStep(" ".join(command))


def _find_directory(output: str) -> Path:
    """Return the directory of a checkpoint that was looked up before, under this name."""
    with suppress(G4Error):
        return source.resolve(output).path
    return Path(output)


def _last_name(output: str) -> str:
    """Return the last word of a checkpoint's name: of its directory, or of a repository of the hub."""
    return source.Source.at(_find_directory(output)).name.rpartition("/")[2]


def fix_command(output: str) -> str:
    """Return the command that corrects a config; of a snapshot of the hub's cache, which others share, a copy's."""
    place = source.Source.at(_find_directory(output))
    if not place.revision:
        return f"g4convert check {quote(output)} --fix"
    _, separator, revision = output.rpartition("@") if not Path(output).exists() else ("", "", "")
    revision_option = f" --revision {quote(revision)}" if separator else ""
    local = quote(_last_name(output))
    return f"hf download {place.name}{revision_option} --local-dir {local}; g4convert check {local} --fix"


def _find_original(name: str) -> str:
    """Return the model that a checkpoint was made of, as a word of the shell; MODEL if it is not known.

    The checkpoint's record has the name: of a repository on the hub, or of a directory, which is looked for here, one
    folder below and beside the checkpoint, with the recorded files.
    """
    output = _find_directory(name)
    made_of = part(record(output), "source")
    name, files = str(made_of.get("name") or ""), part(made_of, "files")
    if name and made_of.get("revision"):
        return quote(name)
    sizes = {file: part(files, file).get("size") for file in files}
    searchable = name == Path(name).name and sizes
    places = chain((Path(name), output.parent / name), Path().glob(f"*/{escape(name)}")) if searchable else ()
    nearby = next((directory for directory in places if _file_sizes(directory, sizes) == sizes), None)
    return quote(str(nearby)) if nearby else "MODEL"


def _file_sizes(directory: Path, names: Iterable[str]) -> dict[str, int]:
    """Return the sizes of those of these files that are in a directory."""
    sizes = {}
    for name in names:
        with suppress(OSError, ValueError):
            sizes[name] = (directory / name).stat().st_size
    return sizes


def find_recorded_base(output: str) -> tuple[str, list[str]] | None:
    """Return a shipped recipe and the options to add to it that give the recipe a checkpoint was made by.

    Returns:
        The name and the options; None without a record, and for a recipe that options cannot give.
    """
    recipe = read_recorded(part(record(_find_directory(output)), "recipe"))
    return None if recipe is None else find_base(recipe)


def requantize_command(output: str) -> str:
    """Return the command that makes a checkpoint again in another directory, for other options to be added.

    Rules of a recipe file are left out: they would override the options that are added.
    """
    recipe = read_recorded(part(record(_find_directory(output)), "recipe"))
    options = "" if recipe is None else find_options(recipe) or find_options(recipe.model_copy(update={"rules": ()}))
    return f"g4convert quantize {_find_original(output)} -o {quote(f'{_last_name(output)}-2')}{options or ''}"


def measure_answers(output: str | Path, reference: str | Path) -> NextStep:
    """Return the command that measures the answers of an output, with its description."""
    command = f"g4convert verify {quote(str(output))} --reference {reference} --level logits"
    return NextStep(command, "measures how far its answers are from the original's; needs no engine")


def serve_output(output: str) -> NextStep:
    """Return the command that serves an output that was written just now; an empty step if no engine starts with it."""
    from g4convert.api.check import check

    checked = check(output)
    fails = checked.report.exit_code(strict=False)
    return _NO_STEP if fails else _serve_where_loaded(output, checked.verdicts, drafter=checked.is_drafter)


def _serve_where_loaded(output: str, verdicts: Sequence["Verdict"], *, drafter: bool = False) -> NextStep:
    """Return the command that serves a checkpoint in an engine that loads it; an empty step without one.

    Args:
        output: the checkpoint.
        verdicts: verdicts of the engines.
        drafter: whether the checkpoint is a drafter.
    """
    loaded: dict[str, Verdict] = {}
    for verdict in verdicts:
        if verdict.loads.value != "no":
            loaded.setdefault(verdict.engine, verdict)
    if vllm := loaded.get("vllm"):
        split = f" --tensor-parallel-size {vllm.tp}" if vllm.tp > 1 else ""
        return NextStep(f"{serve_command(output, drafter=drafter)}{split}{_engine_options(vllm)}")
    if (sglang := loaded.get("sglang")) and not drafter:
        split = f" --tp {sglang.tp}" if sglang.tp > 1 else ""
        return NextStep(f"python -m sglang.launch_server --model-path {quote(output)}{split}{_engine_options(sglang)}")
    if "transformers" in loaded and not drafter:
        return NextStep(f'g4convert generate {quote(output)} -p "Why is the sky blue?"')
    return _NO_STEP


def _engine_options(verdict: "Verdict") -> str:
    """Return the options that an engine needs, each after a blank."""
    return "".join(dict.fromkeys(f" {remark.option}" for remark in verdict.caveats if remark.option))


def after_verify(report: "Report") -> NextStep:
    """Choose the step after a verification: correct the config, quantize again, verify a further level, or serve."""
    from g4convert.api.check import check
    from g4convert.report import Severity

    output, levels = report.output, report.levels
    original = "" if report.reference is None or report.reference.endswith(".safetensors") else quote(report.reference)
    original = original or _find_original(output)
    if report.metrics.get("advice"):
        return _requantize_as_advised(output, original, report.metrics["advice"][0])
    if report.verdict is Severity.FAIL:
        return _after_failure(report)
    if report.verdict is Severity.INCONCLUSIVE:
        return _NO_STEP
    if levels == ("static",):
        command = f"g4convert verify {quote(output)} --reference {original}"
        return NextStep(command, "compares every weight with the original's")
    return (
        _after_measured_answers(check(output))
        if {"logits", "engine"} & {*levels}
        else measure_answers(output, original)
    )


def _after_measured_answers(checked: "Checked") -> NextStep:
    """Choose the step after the answers were measured: serve the checkpoint, if an engine loads it."""
    if checked.report.exit_code(strict=False) or not (checked.packed or checked.is_drafter):
        return after_check(checked)
    return _serve_where_loaded(checked.report.output, checked.verdicts, drafter=checked.is_drafter)


def _requantize_as_advised(output: str, original: str, way: Mapping[str, Any]) -> NextStep:
    """Return the command that quantizes a model in another way, with a name for its output."""
    name = f"{_last_name(output) if original == 'MODEL' else Path(original).name}-{way['name']}"
    expected = "loses less" if way["fails"] else "should pass" if way["passes"] else "should pass with a warning"
    return NextStep(f"g4convert quantize {original} -o {quote(name)} {way['options']}", f"{way['what']}: {expected}")


def _after_failure(report: "Report") -> NextStep:
    """Return the command that corrects the config of a checkpoint that failed, if that is its fault."""
    from g4convert.api.check import check
    from g4convert.inspection.fix import CURABLE
    from g4convert.report import Severity

    if any(finding.code in CURABLE for finding in report.of(Severity.FAIL)):
        with suppress(G4Error):  # what breaks the verification may break the check, too
            return after_check(check(report.output))
    return _NO_STEP


def after_check(checked: "Checked") -> NextStep:
    """Choose the step after a check: correct the config, quantize, or measure the answers and then serve."""
    output, failed = checked.report.output, checked.report.exit_code(strict=False)
    if failed:
        return NextStep(fix_command(output), "corrects its quantization_config") if checked.is_fixable else _NO_STEP
    if not checked.packed:
        return _plan_first(output, drafter=checked.is_drafter)
    serving = _serve_where_loaded(output, checked.verdicts, drafter=checked.is_drafter)
    if not serving.command:
        return _NO_STEP
    return NextStep(measure_answers(output, _find_original(output)).command, "skip if it has passed", serving.command)


def after_generate(model: str, *, quantized: bool) -> NextStep:
    """Choose the step after answers of a checkpoint; none if it is quantized, as it may be verified already."""
    return _NO_STEP if quantized else _plan_first(model)


def _plan_first(model: str, *, drafter: bool = False) -> NextStep:
    packing = " --assistant pack" if drafter else ""
    return NextStep(f"g4convert plan {quote(model)}{packing}", "shows what quantization would make of it")

"""The command that a user may give next: one line at the end of a command's output, `next: COMMAND  # what it does`.

The line can be pasted into a shell, as what it does stands behind as a comment. MODEL stands for a path that is not
known here.
"""

from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from g4convert.checkpoint.record import part, record
from g4convert.conversion.result import serve_command
from g4convert.planning.recipe import DEFAULT, Method

if TYPE_CHECKING:
    from rich.console import Console

    from g4convert.engines.verdicts import Verdict
    from g4convert.planning.recipe import Recipe, Resolved
    from g4convert.report import Report

__all__ = [
    "after_verify",
    "answers_of",
    "conversion_of",
    "original_of",
    "output_name",
    "served",
    "serving",
    "show_next",
]

Step = tuple[str, str]
"""A command, and words on what it does; both empty where there is nothing to do next."""
_NONE: Step = ("", "")


def show_next(out: "Console", command: str, what: str = "") -> None:
    """Print the line; nothing without a command."""
    if command:
        out.print(f"next: {command}  # {what}" if what else f"next: {command}", markup=False, soft_wrap=True)


def output_name(model: str, recipe: "Recipe") -> str:
    """Return a name for the output of a model: `gemma-W4A16`, with the method if a recipe has one of its own."""
    method = "" if recipe.method is Method.AUTO else f"-{recipe.method}"
    return f"{model.rpartition('/')[2]}-W{recipe.num_bits}A16{method}"


def conversion_of(model: str, name: str, recipe: "Resolved") -> Step:
    """Return the command that quantizes a model as planned, and words on it.

    Args:
        model: the model as the user named it.
        name: name of the model, for the name of the output.
        recipe: the planned recipe.
    """
    chosen = "" if recipe.name == DEFAULT else f" -r {quote(recipe.name)}"
    mine = any(origin.startswith("--") for origin in recipe.origins.values())
    command = f"g4convert quantize {quote(model)} -o {quote(output_name(name, recipe.recipe))}{chosen}"
    return command, "with the other options given here" if mine else ""


def original_of(output: Path) -> str:
    """Return the hub name of the model that a checkpoint was made of, by its record; MODEL if it is not known."""
    made_of = part(record(output), "source")
    return quote(str(made_of["name"])) if made_of.get("revision") and made_of.get("name") else "MODEL"


def answers_of(output: str | Path, reference: str | Path) -> Step:
    """Return the command that measures the answers of an output, and words on it.

    Args:
        output: the quantized checkpoint.
        reference: the original as a word of the shell.
    """
    command = f"g4convert verify {quote(str(output))} --reference {reference} --level logits"
    return command, "measures how far its answers are from the original's"


def served(output: str, refused: Iterable["Verdict"], *, drafter: bool) -> Step:
    """Return the command that serves an output, and words on it; empty if vLLM refuses it on one GPU."""
    return _NONE if any(one.engine == "vllm" for one in refused) else (serve_command(output, drafter=drafter), "")


def serving(output: str, found: Iterable["Verdict"], *, drafter: bool = False) -> Step:
    """Return the command that serves a checkpoint in an engine that loads it, and words on it; empty without one.

    Args:
        output: the checkpoint.
        found: verdicts of the engines.
        drafter: whether the checkpoint is a drafter.
    """
    loads: dict[str, int] = {}
    for one in found:
        if one.loads.value != "no":
            loads.setdefault(one.engine, one.tp)
    if "vllm" in loads:
        many = f" --tensor-parallel-size {loads['vllm']}" if loads["vllm"] > 1 else ""
        return f"{serve_command(output, drafter=drafter)}{many}", ""
    if "sglang" in loads and not drafter:
        many = f" --tp {loads['sglang']}" if loads["sglang"] > 1 else ""
        return f"python -m sglang.launch_server --model-path {quote(output)}{many}", ""
    if "transformers" in loads and not drafter:
        return f'g4convert generate {quote(output)} -p "Why is the sky blue?"', ""
    return _NONE


def after_verify(found: "Report") -> Step:
    """Return what to do after a verification: mend it, quantize anew, look deeper, or serve it."""
    from g4convert.report import Severity

    output, levels = found.output, found.levels
    reference = "" if found.reference is None or found.reference.endswith(".safetensors") else quote(found.reference)
    reference = reference or original_of(Path(output))
    match found.verdict:
        case Severity.FAIL | Severity.WARN if ways := found.metrics.get("advice"):
            best = ways[0]
            name = f"{Path(reference if reference != 'MODEL' else output).name}-{best['name']}"
            expected = "should pass" if best["passes"] else "loses less"
            return f"g4convert quantize {reference} -o {quote(name)} {best['options']}", f"{best['what']}: {expected}"
        case Severity.FAIL if _is_mended_by_fix(found):
            return f"g4convert check {quote(output)} --fix", "corrects its quantization_config"
        case Severity.FAIL | Severity.INCONCLUSIVE:
            return _NONE
    if levels == ("static",):
        return f"g4convert verify {quote(output)} --reference {reference}", "compares every weight: none was, yet"
    if "logits" in levels or "engine" in levels:
        from g4convert.api.check import check

        return serving(output, check(output).verdicts)
    return answers_of(output, reference)


def _is_mended_by_fix(found: "Report") -> bool:
    """Return whether `g4convert check --fix` mends a checkpoint that failed."""
    from g4convert.checkpoint.directory import Checkpoint
    from g4convert.engines.stored import StoredCheckpoint
    from g4convert.gemma4 import Architecture
    from g4convert.inspection.fix import CURABLE, is_fixable
    from g4convert.report import Severity
    from g4convert.verification.static.level import REQUIRED_ENGINES, check_stored

    if not any(one.code in CURABLE for one in found.of(Severity.FAIL)):
        return False
    out = Checkpoint.open(Path(found.output))
    stored = StoredCheckpoint.of(out, Architecture.from_config(out.config))
    return is_fixable(stored, check_stored(stored, tp=(), engines=REQUIRED_ENGINES), REQUIRED_ENGINES)

"""The model card of an output: its source and format, recipe, rounding errors and the command that serves it."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from g4convert import __version__
from g4convert.bounded import read_text
from g4convert.checkpoint.source import Source
from g4convert.conversion.result import ErrorRow, Summary, serve_command
from g4convert.conversion.side_files import recipe_name
from g4convert.engines.verdicts import Verdict
from g4convert.plain_yaml import parse
from g4convert.planning.plan import Plan
from g4convert.planning.recipe_files import Resolved
from g4convert.planning.sizes import packed_as
from g4convert.printable import printable, printable_lines
from g4convert.quantities import plural

_MOST_CARD = 1 << 20
"""Largest model card of a source that is read, in bytes."""


def model_card(  # noqa: PLR0913 - a conversion from its source to what became of it
    plan: Plan, source: Source, recipe: Resolved, output_name: str, summary: Summary, *, refused: Iterable[Verdict]
) -> str:
    """Return the README.md of an output.

    Args:
        plan: plan of the output.
        source: the checkpoint that was converted.
        recipe: recipe of the output.
        output_name: the directory's name, for the command that serves it.
        summary: sizes and errors.
        refused: verdicts of the engines that cannot load the output on one GPU.
    """
    bits = sorted({step.packing.num_bits for step in plan.quantized})
    tags = ["gemma4", *(["compressed-tensors"] if bits else []), *(f"w{one}a16" for one in bits), "g4convert"]
    lines = [
        "---",
        *([f"base_model: {source.name}"] if source.revision else []),
        *(["base_model_relation: quantized"] if source.revision and plan.quantized else []),
        *_license(source),
        "library_name: transformers",
        f"tags: [{', '.join(tags)}]",
        "---",
        "",
        f"# {output_name}",
        "",
        *_what(plan, source),
        "",
        *_served(plan, output_name, refused),
        "",
        "## How",
        "",
        f"Recipe `{recipe_name(recipe)}`; method **{summary.choice.method.value}** ({summary.choice.why}).",
        "",
        "```yaml",
        *printable_lines(yaml.safe_dump(recipe.settings(), sort_keys=False, default_flow_style=None)).splitlines(),
        "```",
        "",
        *(_cost(summary) if plan.quantized else ()),
        *_calibrated(summary),
        "## What stayed",
        "",
        "| role | tensors | bytes | why |",
        "|---|---:|---:|---|",
        *_kept_rows(plan),
    ]
    if plan.dropped:
        lines += ["", "## What was left out", "", "| tensors | why |", "|---:|---|", *_dropped_rows(plan)]
    return "".join(f"{printable(line)}\n" for line in lines)  # names from outside cannot forge a line


def _license(source: Source) -> Iterable[str]:
    """Yield the lines of the source's model card that say under which license it is."""
    path = source.path / "README.md"
    try:
        head = read_text(path, _MOST_CARD).split("\n---", 1)[0].removeprefix("---\n") if path.is_file() else ""
        said = parse(head)
    except (OSError, ValueError, yaml.YAMLError):
        return
    for key in ("license", "license_name", "license_link"):
        if isinstance(said, Mapping) and isinstance(value := said.get(key), str):
            yield yaml.safe_dump({key: printable(value)}, width=10_000, allow_unicode=True).rstrip("\n")


def _what(plan: Plan, source: Source) -> Iterable[str]:
    """Yield lines that name the source and the format."""
    made = f"`{source.name}` by g4convert {__version__}"
    if not plan.quantized:
        return (f"{plan.architecture.family}, from {made}: no weight is quantized.",)
    return (
        f"{plan.architecture.family}, quantized from {made}:",
        f"weights in {packed_as(plan)} (compressed-tensors, pack-quantized),",
        "activations untouched.",
    )


def _served(plan: Plan, output_name: str, refused: Iterable[Verdict]) -> Iterable[str]:
    """Return the command that serves the output, or a line that vLLM does not load it."""
    if labels := [one.label for one in refused if one.engine == "vllm"]:
        return (f"{labels[0]} does not load it; `g4convert check {output_name}` says why.",)
    return ("    " + serve_command(output_name, drafter=plan.architecture.is_assistant),)


def _cost(summary: Summary) -> Iterable[str]:
    """Return the section on sizes and rounding errors."""
    return (
        "## What it cost",
        "",
        f"{summary.before:,} bytes became {summary.after:,}: {summary.bits_per_weight:.1f} bits per weight",
        "over the whole model.",
        "",
        *_error_table([summary.total, *summary.roles]),
        "",
        "Relative error is the sum of squared rounding errors over the sum of squared weights of a module; of several",
        "modules, the mean of theirs. A group that lies on a lattice is exact when its dequantized weights equal the",
        "source bit for bit.",
        "",
    )


def _calibrated(summary: Summary) -> Iterable[str]:
    """Yield the section on a calibrated method's data and results."""
    if summary.calibration is None:
        return
    used = summary.calibration
    yield "## How it was calibrated"
    yield ""
    yield from _weighted(used) if "ways" not in used else _layered(used)
    if (met := used["coverage"]) is not None:
        yield f"{met['experts']:,} experts met {met['median']:,} tokens in the median, {met['least']:,} at least."
        yield ""
    if used["kinds"]:
        kinds = ", ".join(f"{printable(kind)} {count:,}" for kind, count in used["kinds"].items())
        yield f"Ids by kind of text: {kinds}."
        yield ""
    if "pictures" in used:
        samples = f"{used['samples_with_pictures']:,} of {used['samples']:,} samples"
        alone = "; scales were trained on the others" if "training" in used else ""
        yield f"{plural(used['pictures'], 'picture')} in {samples}{alone}."
        yield ""


def _layered(used: Mapping[str, Any]) -> Iterable[str]:
    """Yield lines on the data of methods gptq and best, and on the ways of rounding that were taken."""
    yield f"On {used['samples']:,} samples of {used['length']:,} tokens (sha256 `{used['tokens']}`),"
    yield "layer by layer, each on what the quantized layers before it give. A weight was rounded in three ways, and"
    yield f"the one with the least error in its output on held-out rows ({used['judged_on']} samples) was taken."
    yield ""
    yield "| way | taken for | mean relative output error |"
    yield "|---|---:|---:|"
    for way, count in used["ways"].items():
        error = used["output_error"][way]
        yield f"| {way.replace('_', '-')} | {count:,} | {'-' if error is None else f'{error:.5f}'} |"
    yield ""
    yield from _trained(used)
    if used["without_tokens"]:
        yield f"{len(used['without_tokens']):,} weights of experts met no token of the data."
        yield ""
    if used["without_factor"]:
        yield f"{len(used['without_factor']):,} weights had inputs that GPTQ cannot use."
        yield ""


def _trained(used: Mapping[str, Any]) -> Iterable[str]:
    """Yield lines on the gain from training the scales; none if the method does not train."""
    gained = used.get("scales")
    if gained is None:
        return
    kl, share = gained["kl"], gained["share"]
    yield "The scales were then trained on the same samples, codes fixed, by the KL of the model's next token from the"
    yield f"original's. On {gained['held_out']:,} samples held out from it, this KL is, by the part of the way:"
    yield ""
    yield f"| {' | '.join(f'{part} (before)' if part == '0' else part for part in kl)} |"
    yield f"|{'---|' * len(kl)}"
    yield f"| {' | '.join(f'{one:.5f}' for one in kl.values())} |"
    yield ""
    yield f"Taken: {share:g}." if share else "Taken: 0, the scales from before the training, which gained nothing."
    yield ""


def _weighted(used: Mapping[str, Any]) -> Iterable[str]:
    """Yield lines on the data of method imatrix."""
    given = f"{used['samples']:,} samples of {used['length']:,} tokens (sha256 `{used['tokens']}`)"
    source = "On" if used["origin"] == "g4convert" else f"By an imatrix of {used['origin']}, over"
    yield f"{source} {given}: the error of"
    yield f"{used['weighted']:,} weights counts by the mean square of their inputs (sha256 `{used['statistics']}`)."
    yield ""
    if used["data_free"]:
        yield f"{len(used['data_free']):,} weights outside of the decoder were rounded without data."
        yield ""
    if used["experts_without_tokens"]:
        yield f"{len(used['experts_without_tokens']):,} experts met no token: they have the mean of their layer."
        yield ""
    if used["experts_with_few_tokens"]:
        yield f"{len(used['experts_with_few_tokens']):,} experts met few tokens and lean on the mean of their layer."
        yield ""


def _error_table(rows: Iterable[ErrorRow]) -> Iterable[str]:
    yield "| weights | relative error | SQNR | groups | on a lattice | exact |"
    yield "|---|---:|---:|---:|---:|---:|"
    for row in rows:
        groups = max(row.stats.groups, 1)
        yield (
            f"| {row.name} | {row.relative_error:.5f} | {row.sqnr_db:.1f} dB | {row.stats.groups:,} "
            f"| {row.stats.lattice_groups / groups:.1%} | {row.stats.exact_groups / groups:.1%} |"
        )


def _kept_rows(plan: Plan) -> Iterable[str]:
    reasons = {(copy.role, copy.reason): [0, 0] for copy in plan.copied}
    for copy in plan.copied:
        count = reasons[copy.role, copy.reason]
        count[:] = count[0] + 1, count[1] + copy.target.nbytes
    for (role, reason), (tensors, nbytes) in reasons.items():
        yield f"| {role.value} | {tensors} | {nbytes:,} | {reason} |"


def _dropped_rows(plan: Plan) -> Iterable[str]:
    reasons = dict.fromkeys((drop.reason for drop in plan.dropped), 0)
    for drop in plan.dropped:
        reasons[drop.reason] += 1
    return (f"| {count} | {reason} |" for reason, count in reasons.items())

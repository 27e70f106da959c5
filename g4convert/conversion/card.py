"""The model card of an output: its source and format, recipe, rounding errors and the command that serves it."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from g4convert import __version__
from g4convert.bounded import read_text
from g4convert.checkpoint.needed import has_processor, has_tokenizer
from g4convert.checkpoint.source import Source
from g4convert.conversion.result import ErrorRow, Summary, serve_command
from g4convert.conversion.side_files import recipe_name
from g4convert.engines.verdicts import Verdict
from g4convert.plain_yaml import parse
from g4convert.planning.plan import Plan
from g4convert.planning.recipe_files import ResolvedRecipe
from g4convert.planning.sizes import describe_packing
from g4convert.printable import printable, printable_lines
from g4convert.quantities import plural

_MAX_CARD_BYTES = 1 << 20
"""Largest model card of a source that is read, in bytes."""


def model_card(  # noqa: PLR0913 - a conversion from its source to what became of it
    plan: Plan,
    source: Source,
    recipe: ResolvedRecipe,
    output_name: str,
    summary: Summary,
    *,
    refused: Iterable[Verdict],
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
    tags = ["gemma4", *(["compressed-tensors"] if bits else []), *(f"w{num_bits}a16" for num_bits in bits), "g4convert"]
    lines = [
        "---",
        *([f"base_model: {source.name}"] if source.revision else []),
        *(["base_model_relation: quantized"] if source.revision and plan.quantized else []),
        *_license_lines(source),
        "library_name: transformers",
        f"tags: [{', '.join(tags)}]",
        "---",
        "",
        f"# {output_name}",
        "",
        *_origin_lines(plan, source),
        "",
        *_serving_lines(plan, output_name, refused),
        "",
        "## How",
        "",
        f"Recipe `{recipe_name(recipe)}`; method **{summary.choice.method.value}** ({summary.choice.why}).",
        "",
        "```yaml",
        *printable_lines(yaml.safe_dump(recipe.settings(), sort_keys=False, default_flow_style=None)).splitlines(),
        "```",
        "",
        *(_cost_section(summary) if plan.quantized else ()),
        *_calibration_section(summary),
        "## What stayed",
        "",
        "| role | tensors | bytes | why |",
        "|---|---:|---:|---|",
        *_kept_rows(plan),
    ]
    if plan.dropped:
        lines += ["", "## What was left out", "", "| tensors | why |", "|---:|---|", *_dropped_rows(plan)]
    return "".join(f"{printable(line)}\n" for line in lines)  # names from outside cannot forge a line


def _license_lines(source: Source) -> Iterable[str]:
    """Yield the lines of the source's model card that say under which license it is."""
    path = source.path / "README.md"
    try:
        head = read_text(path, _MAX_CARD_BYTES).split("\n---", 1)[0].removeprefix("---\n") if path.is_file() else ""
        front_matter = parse(head)
    except (OSError, ValueError, yaml.YAMLError):
        return
    for key in ("license", "license_name", "license_link"):
        if isinstance(front_matter, Mapping) and isinstance(value := front_matter.get(key), str):
            yield yaml.safe_dump({key: printable(value)}, width=10_000, allow_unicode=True).rstrip("\n")


def _origin_lines(plan: Plan, source: Source) -> Iterable[str]:
    """Yield lines that name the source and the format."""
    origin = f"`{source.name}` by g4convert {__version__}"
    if not plan.quantized:
        return (f"{plan.architecture.family}, from {origin}: no weight is quantized.",)
    return (
        f"{plan.architecture.family}, quantized from {origin}:",
        f"weights in {describe_packing(plan)} (compressed-tensors, pack-quantized),",
        "activations untouched.",
    )


def _serving_lines(plan: Plan, output_name: str, refused: Iterable[Verdict]) -> Iterable[str]:
    """Return the command that serves the output, or a line that vLLM does not load it."""
    if labels := [verdict.label for verdict in refused if verdict.engine == "vllm"]:
        return (f"{labels[0]} does not load it; `g4convert check {output_name}` says why.",)
    drafter, names = plan.architecture.is_assistant, plan.beside.side
    if not drafter and not has_tokenizer(names):
        return ("It has no tokenizer, which engines need to start: copy that of the original.",)
    words_alone = not drafter and plan.architecture.is_composite and not has_processor(names)
    return (f"    {serve_command(output_name, drafter=drafter)}{' --language-model-only' * words_alone}",)


def _cost_section(summary: Summary) -> Iterable[str]:
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


def _calibration_section(summary: Summary) -> Iterable[str]:
    """Yield the section on a calibrated method's data and results."""
    if summary.calibration is None:
        return
    calibration = summary.calibration
    yield "## How it was calibrated"
    yield ""
    yield from _imatrix_lines(calibration) if "ways" not in calibration else _layered_lines(calibration)
    if (coverage := calibration["coverage"]) is not None:
        median, least = coverage["median"], coverage["least"]
        yield f"{coverage['experts']:,} experts met {median:,} tokens in the median, {least:,} at least."
        yield ""
    if calibration["kinds"]:
        kinds = ", ".join(f"{printable(kind)} {count:,}" for kind, count in calibration["kinds"].items())
        yield f"Ids by kind of text: {kinds}."
        yield ""
    if "pictures" in calibration:
        samples = f"{calibration['samples_with_pictures']:,} of {calibration['samples']:,} samples"
        training = "; scales were trained on the others" if "training" in calibration else ""
        yield f"{plural(calibration['pictures'], 'picture')} in {samples}{training}."
        yield ""


def _layered_lines(calibration: Mapping[str, Any]) -> Iterable[str]:
    """Yield lines on the data of methods gptq and best, and on the ways of rounding that were taken."""
    yield f"On {_describe_samples(calibration)},"
    yield "layer by layer, each on what the quantized layers before it give. A weight was rounded in three ways, and"
    yield f"the one with the least error in its output on held-out rows ({calibration['judged_on']} samples) was taken."
    yield ""
    yield "| way | taken for | mean relative output error |"
    yield "|---|---:|---:|"
    for way, count in calibration["ways"].items():
        error = calibration["output_error"][way]
        yield f"| {way.replace('_', '-')} | {count:,} | {'-' if error is None else f'{error:.5f}'} |"
    yield ""
    yield from _training_lines(calibration)
    if calibration["without_tokens"]:
        yield f"{len(calibration['without_tokens']):,} weights of experts met no token of the data."
        yield ""
    if calibration["without_factor"]:
        yield f"{len(calibration['without_factor']):,} weights had inputs that GPTQ cannot use."
        yield ""


def _training_lines(calibration: Mapping[str, Any]) -> Iterable[str]:
    """Yield lines on the gain from training the scales; none if the method does not train."""
    gain = calibration.get("scales")
    if gain is None:
        return
    kl, share = gain["kl"], gain["share"]
    yield "The scales were then trained on the same samples, codes fixed, by the KL of the model's next token from the"
    yield f"original's. On {gain['held_out']:,} samples held out from it, this KL is, by the part of the way:"
    yield ""
    yield f"| {' | '.join(f'{part} (before)' if part == '0' else part for part in kl)} |"
    yield f"|{'---|' * len(kl)}"
    yield f"| {' | '.join(f'{value:.5f}' for value in kl.values())} |"
    yield ""
    yield f"Taken: {share:g}." if share else "Taken: 0, the scales from before the training, which gained nothing."
    yield ""


def _imatrix_lines(calibration: Mapping[str, Any]) -> Iterable[str]:
    """Yield lines on the data of method imatrix."""
    source = "On" if calibration["origin"] == "g4convert" else f"By an imatrix of {calibration['origin']}, over"
    yield f"{source} {_describe_samples(calibration)}: the error of"
    weights, statistics = calibration["weighted"], calibration["statistics"]
    yield f"{weights:,} weights counts by the mean square of their inputs (sha256 `{statistics}`)."
    yield ""
    if calibration["data_free"]:
        yield f"{len(calibration['data_free']):,} weights outside of the decoder were rounded without data."
        yield ""
    if calibration["experts_without_tokens"]:
        yield f"{len(calibration['experts_without_tokens']):,} experts met no token: they have the mean of their layer."
        yield ""
    if calibration["experts_with_few_tokens"]:
        few = len(calibration["experts_with_few_tokens"])
        yield f"{few:,} experts met few tokens and lean on the mean of their layer."
        yield ""


def _describe_samples(calibration: Mapping[str, Any]) -> str:
    samples, length, tokens = (calibration[key] for key in ("samples", "length", "tokens"))
    return f"{samples:,} samples of {length:,} tokens (sha256 `{tokens}`)"


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

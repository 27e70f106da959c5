"""`g4convert.quantize`: write a W4A16 checkpoint and verify it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from g4convert.api.bundled import count_bundled_tokens
from g4convert.api.own_calibration import with_calibration
from g4convert.api.recipes import Overrides, RecipeLike, resolve_recipe
from g4convert.checkpoint import source
from g4convert.conversion.job import Conversion, Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.result import Summary
from g4convert.conversion.run import Layers, convert
from g4convert.engines.verdicts import Verdict
from g4convert.errors import UsageError
from g4convert.places import expand_home
from g4convert.planning.costs import MethodCost, estimate_costs
from g4convert.planning.recipe import DEFAULT
from g4convert.planning.recipe_files import ResolvedRecipe
from g4convert.planning.sizes import add_up_sizes, default_workers
from g4convert.progress import Progress, peak_memory, with_messages_to
from g4convert.report import Report
from g4convert.request import DEFAULTS, VERIFY_AFTER, Level, Request, parse_verify_after
from g4convert.run_options import DeviceLike, check_run, device_name
from g4convert.verification.run import verify as run_verification


@dataclass(frozen=True, slots=True)
class Quantized:
    """A written checkpoint.

    Args:
        output: its directory.
        source: directory of the original.
        summary: sizes, the method and errors by tensor; None if the output was there already, made by the same call.
        refused: verdicts of engines that cannot load it.
        report: report of the verification at the end; None without one, and under `torchrun` in ranks other than 0.
        peak_memory: largest resident size of this process before the verification, in bytes.
        costs: what the method is expected to take, and what others that could be chosen would take.
    """

    output: Path
    source: Path
    summary: Summary | None
    refused: tuple[Verdict, ...]
    report: Report | None
    peak_memory: int
    costs: tuple[MethodCost, ...]

    def __repr__(self) -> str:
        """Return the output, its size and the verdict, as all fields would fill pages."""
        verdict = "not verified" if self.report is None else self.report.verdict.value
        size = "already done" if self.summary is None else f"bytes={self.summary.after:,}"
        return f"Quantized({str(self.output)!r}, {size}, {verdict})"

    @property
    def already_done(self) -> bool:
        """True if the output existed, made by the same call, so that nothing was written."""
        return self.summary is None

    @property
    def passed(self) -> bool:
        """True unless a verification found a fault."""
        return self.report is None or self.report.exit_code(strict=False) == 0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON, as `g4convert quantize --json` prints it."""
        document: dict[str, Any] = {"schema_version": 1, "output": str(self.output)}
        if self.summary is None:
            document["already_done"] = True
        else:
            refused = (
                {"engine": verdict.engine, "version": verdict.label, "tp": verdict.tp} for verdict in self.refused
            )
            document |= {**self.summary.to_dict(), "refused_by": [*refused]}
        return document | ({} if self.report is None else {"verify": self.report.to_dict()})


def quantize(  # noqa: PLR0913 - the choices of a conversion
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    recipe: RecipeLike = DEFAULT,
    tp: Sequence[int] = (),
    workers: int = 0,
    device: DeviceLike = DEFAULTS.device,
    overwrite: bool = False,
    calibration: str | os.PathLike[str] | None = None,
    verify: str | None = VERIFY_AFTER,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    ranks: Ranks | None = None,
    **overrides: Unpack[Overrides],
) -> Quantized:
    """Write a W4A16 checkpoint and verify it. After a stop at any point, the same call continues.

    If the output is there and was made by the same call, of the same model and in this version, it is verified again.

    Args:
        model: a directory, or `org/name[@revision]` on the Hugging Face hub.
        output: the directory to write; it appears when everything is in it.
        recipe: a shipped recipe or the path of a YAML file.
        tp: numbers of GPUs (tensor parallel sizes) at which the recipe's engines must load the output; empty is 1.
        workers: threads; 0 is one for each core, or two for each GPU.
        device: device that quantizes: `cpu`, `cuda` (every GPU; for method `gptq` the first) or `cuda:N`.
        overwrite: replace a checkpoint that is there.
        calibration: file of token ids, for the methods that calibrate; None takes one beside the output, which is
            made from the bundled texts where it is not there, or is of another model and `overwrite` is given.
        verify: level of the verification at the end: `static`, `weights` or `logits`; None or `none` for none.
        progress: told of finished bytes; a subclass of `g4convert.progress.Progress`.
        say: told what is done next, in place of `progress.say`.
        ranks: this process among those of a run; None joins those that `torchrun` started.
        **overrides: values of the recipe, as `group_size=64`: num_bits, group_size, method, signed, qat, pack, bits,
            rules, kv_shared, assistant, layout, max_shard_size, engines, carry, leave; docs/reference/recipes.md.

    Returns:
        What was written. A verification that fails is in `report`, not an error, and the output stays.

    Raises:
        UsageError: no such recipe, keyword, level or device, or a value out of range.
        InputError: no such model, its tensors are not those of its config, no such calibration file or one of another
            model, an output whose files were changed since, a weight is not finite.
        GateError: one of the recipe's engines could not load the output; nothing is written.
        EnvironmentFault: the model cannot be fetched, the disk is full, another rank is gone, or the device failed.
        Interrupted: stopped on request.
    """
    level = parse_verify_after(verify)
    job = make_job(
        model,
        output,
        resolve_recipe(recipe, overrides),
        tp=tp,
        workers=workers,
        device=device,
        overwrite=overwrite,
        calibration=calibration,
    )
    joined = Ranks.join() if ranks is None else ranks
    try:
        return run(prepare(job), level, joined, progress=with_messages_to(progress, say))
    finally:
        if ranks is None:
            joined.leave()


def run(conversion: Conversion, level: Level | None, ranks: Ranks, *, progress: Progress) -> Quantized:
    """Write an output unless it is there already, and verify it; see `quantize`.

    Args:
        conversion: decisions of `prepare`.
        level: level of the verification; None for none.
        ranks: this process among those of the run.
        progress: told of each step, and of finished bytes.
    """
    job, summary, report = conversion.job, None, None
    if conversion.already_done:
        if ranks.leads:
            conversion.staging.tidy()
    else:
        summary = ranks.from_lead(_write_output(conversion, ranks, progress))
    peak = peak_memory()  # before a verification has its own
    if ranks.leads and level is not None:
        request = Request(job.output, job.source.path, level)
        report = run_verification(request, progress=progress, written=not conversion.already_done)
    refused = conversion.outlook.refusing(job.tps)
    workers, tokens = job.workers or default_workers(), count_bundled_tokens(conversion.checkpoint)
    costs_of_methods = estimate_costs(conversion.plan, add_up_sizes(conversion.plan), workers, tokens)
    return Quantized(job.output, job.source.path, summary, refused, report, peak, costs_of_methods)


def make_job(  # noqa: PLR0913 - the choices of a conversion
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    recipe: ResolvedRecipe,
    *,
    tp: Sequence[int] = (),
    workers: int,
    device: DeviceLike,
    overwrite: bool,
    calibration: str | os.PathLike[str] | None = None,
) -> Job:
    """Look up a model, and make the job of quantizing it; see `quantize`.

    Raises:
        UsageError: a number out of range, no such device, or sizes in `tp` and no engine that has to load the output.
        InputError: no such model.
        EnvironmentFault: the model is not in the cache and cannot be fetched.
    """
    device = device_name(device)
    check_run(tp=tp, workers=workers, device=device)
    if not os.fspath(output):
        raise UsageError("the output is empty", hint="name what to write")
    if tp and not recipe.recipe.engines:
        raise UsageError("--tp: no engine has to load the result", hint="name one: --engine vllm")
    place = source.resolve(os.fspath(model))
    data = None if calibration is None else expand_home(calibration)
    return Job(
        place,
        recipe,
        expand_home(output),
        workers,
        device,
        overwrite=overwrite,
        tps=tuple(tp) or (1,),
        calibration=data,
    )


def _write_output(conversion: Conversion, ranks: Ranks, progress: Progress) -> Summary | None:
    """Write an output, after the calibration file that it needs; return the summary in rank 0."""
    complete = with_calibration(conversion, ranks, progress)
    progress.say(f"quantizing {complete.job.source.typed}")
    return convert(complete, progress, ranks, _make_layer_quantizer(complete, ranks))


def _make_layer_quantizer(conversion: Conversion, ranks: Ranks) -> Layers | None:
    """Return the quantizer of whole layers; None for a method that does not go layer by layer."""
    if conversion.calibration is None or not conversion.plan.recipe.is_layered:
        return None
    from g4convert.calibration.run import LayerByLayer  # noqa: PLC0415 -- brings torch and transformers

    return LayerByLayer.of(conversion, conversion.calibration.path, ranks)

"""`g4convert quantize`."""

import shlex
from typing import TYPE_CHECKING

from g4convert.cli.options import (
    Calibration,
    Device,
    DryRun,
    Json,
    Model,
    NoColor,
    Output,
    Overwrite,
    Quiet,
    ShowConfig,
    TensorParallel,
    Verbose,
    VerifyAfter,
    Workers,
)
from g4convert.cli.printing import print_json, print_plan, print_settings
from g4convert.cli.recipe_options import with_recipe
from g4convert.errors import UsageError
from g4convert.request import Level, Request
from g4convert.suggestions import no_such

if TYPE_CHECKING:
    from g4convert.conversion.result import Summary
    from g4convert.conversion.run import Conversion, Job, Layers
    from g4convert.engines.verdicts import Verdict
    from g4convert.planning.recipe import Resolved

__all__ = ["quantize"]


@with_recipe
def quantize(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    output: Output = None,
    resolved: "Resolved",
    calibration: Calibration = None,
    tp: TensorParallel = None,
    workers: Workers = 0,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    verify: VerifyAfter = "weights",
    dry_run: DryRun = False,
    show_config: ShowConfig = False,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> None:
    """Write a W4A16 checkpoint. Killed at any point, the same command continues it."""
    if show_config:
        print_settings(resolved, as_json=as_json, no_color=no_color)
        return
    from g4convert.checkpoint import source
    from g4convert.cli import show, show_summary
    from g4convert.conversion import run as convert
    from g4convert.conversion import workers as devices
    from g4convert.planning.report import PlanReport

    level = _level(verify)
    if tp and not resolved.recipe.engines:
        raise UsageError("--tp: no engine has to load the result", hint="name one: --engine vllm")
    found = source.resolve(model)
    if output is None:
        name = f"{found.name.rpartition('/')[2]}-W{resolved.recipe.num_bits}A16"
        raise UsageError("no output directory", hint=f"say where to write: -o {shlex.quote(name)}")
    sizes = tuple(tp or (1,))
    job = convert.Job(found, resolved, output, workers, device, overwrite=overwrite, tps=sizes, calibration=calibration)
    if dry_run:
        conversion = convert.prepare(job)
        devices.workers_for(device, workers)
        report = PlanReport.of(found, resolved, conversion.plan, conversion.layout, workers)
        print_plan(report, as_json=as_json, no_color=no_color, verbose=verbose)
        return
    done = _run(job, quiet=quiet, no_color=no_color)
    if done is None:
        return
    summary, refused = done
    from g4convert.cli import verification
    from g4convert.progress import peak_memory

    peak = peak_memory()  # before a verification has its own
    how = verification.Printed(quiet=quiet, verbose=verbose, no_color=no_color)
    found_out = None if level is None else verification.run(Request(output, found.path, level), how)
    passed = found_out is None or found_out.exit_code(strict=False) == 0
    if found_out is not None and passed:
        verification.tell_end(found_out, how, as_json=as_json)
    if as_json:
        document = {"schema_version": 1, "output": str(output), **summary.to_dict()}
        document["refused_by"] = [{"engine": one.engine, "version": one.label, "tp": one.tp} for one in refused]
        print_json(document | ({} if found_out is None else {"verify": found_out.to_dict()}))
    elif not quiet:
        console = show.console(no_color=no_color)
        show_summary.summary(console, summary, output, tensors=verbose, peak=peak, refused=refused, sound=passed)
    if found_out is not None and not passed:
        verification.tell_end(found_out, how, as_json=as_json)


def _level(name: str) -> Level | None:
    """The level to verify a conversion at; None for none."""
    if name == "none":
        return None
    levels = [level for level in Level if level is not Level.ENGINE]
    if name not in levels:
        if name == Level.ENGINE:
            raise UsageError(
                f"--verify {name}: an engine is asked afterwards", hint="`g4convert verify OUT --engine vllm`"
            )
        raise no_such("--verify", name, ["none", *levels])
    return Level(name)


def _layers(conversion: "Conversion") -> "Layers | None":
    """What calibrates layer by layer, for a method that does."""
    if conversion.job.calibration is None:
        return None
    from g4convert.calibration.run import LayerByLayer

    return LayerByLayer.of(conversion, conversion.job.calibration)


def _run(job: "Job", *, quiet: bool, no_color: bool) -> "tuple[Summary, tuple[Verdict, ...]] | None":
    """Convert, with progress; the summary and the engines that refuse the result, in the process that leads."""
    from g4convert import progress
    from g4convert.cli import show
    from g4convert.conversion import run as convert
    from g4convert.conversion.ranks import Ranks
    from g4convert.planning.gate import refusing

    ranks = Ranks.join()
    try:
        with progress.watch(show.messages(no_color=no_color), quiet=quiet or not ranks.leads) as bar:
            conversion = convert.prepare(job)
            summary = convert.convert(conversion, bar, ranks, _layers(conversion))
    finally:
        ranks.leave()
    return None if summary is None else (summary, refusing(conversion.plan, job.tps))

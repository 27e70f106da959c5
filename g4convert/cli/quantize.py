"""`g4convert quantize`."""

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from g4convert.cli.calibrate_options import Calibration
from g4convert.cli.options import Device, DryRun, Json, Model, NoColor, Output, Overwrite, Quiet, Verbose, Workers
from g4convert.cli.printing import print_done, print_json, print_plan, print_settings
from g4convert.cli.recipe_options import ShowConfig, TensorParallel, with_recipe
from g4convert.cli.verify_options import VerifyAfter
from g4convert.errors import UsageError
from g4convert.request import DEFAULTS, VERIFY_AFTER, parse_verify_after

if TYPE_CHECKING:
    from g4convert.api.quantize import Quantized
    from g4convert.cli.next_steps import NextStep
    from g4convert.cli.verification import PrintOptions
    from g4convert.conversion.job import Conversion, Job
    from g4convert.conversion.result import Summary
    from g4convert.planning.recipe import Recipe
    from g4convert.planning.recipe_files import ResolvedRecipe
    from g4convert.planning.report import PlanReport


@with_recipe
def quantize(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    output: Output = None,
    resolved: "ResolvedRecipe",
    calibration: Calibration = None,
    tp: TensorParallel = None,
    workers: Workers = 0,
    device: Device = DEFAULTS.device,
    overwrite: Overwrite = False,
    verify: VerifyAfter = VERIFY_AFTER.value,
    dry_run: DryRun = False,
    show_config: ShowConfig = False,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> None:
    """Write a W4A16 checkpoint. If it is stopped, the same command continues."""
    if show_config:
        print_settings(resolved, as_json=as_json, no_color=no_color)
        return
    from g4convert.api.quantize import make_job, run
    from g4convert.cli import verification
    from g4convert.conversion.job import prepare
    from g4convert.conversion.ranks import Ranks

    level = parse_verify_after(verify)
    if output is None:
        raise _missing_output(model, resolved)
    job = make_job(
        model,
        output,
        resolved,
        tp=tp or (),
        workers=workers,
        device=device,
        overwrite=overwrite,
        calibration=calibration,
    )
    options = verification.PrintOptions(quiet=quiet, verbose=verbose, no_color=no_color)
    if dry_run:
        conversion = prepare(job)
        if not conversion.already_done:
            conversion.staging.try_place(conversion.layout)
        elif not as_json:
            _print_already_done(job, options)
        print_plan(_report_plan(conversion), as_json=as_json, no_color=no_color, verbose=verbose)
        with replace(options, quiet=quiet or as_json).open_progress() as progress:
            progress.say("dry run: nothing was written")
        return
    ranks = Ranks.join()
    try:
        conversion = prepare(job)
        if conversion.already_done and ranks.leads and not as_json:
            _print_already_done(job, options, "; verifying it again" if level is not None else "")
        with replace(options, quiet=quiet or not ranks.leads).open_progress() as progress:
            result = run(conversion, level, ranks, progress=progress)
    finally:
        ranks.leave()
    if ranks.leads and result.summary is None:
        _print_verdict_again(job, result, options, as_json=as_json)
    elif ranks.leads and result.summary is not None:
        _print_result(result, result.summary, resolved.recipe, options, as_json=as_json)


def _missing_output(model: str, resolved: "ResolvedRecipe") -> UsageError:
    from g4convert.checkpoint import source
    from g4convert.cli.next_steps import output_name

    name = output_name(source.resolve(model).name, resolved.recipe)
    return UsageError("no output directory", hint=f"say where to write: -o {shlex.quote(name)}")


def _print_already_done(job: "Job", options: "PrintOptions", rest: str = "") -> None:
    """Print that the output exists, made from the same source by the same recipe and version."""
    if options.quiet:
        return
    made_by = f"{job.source.typed} quantized by this recipe and version (--overwrite makes it again)"
    print_done(job.output, made_by + rest, no_color=options.no_color)


def _print_verdict_again(job: "Job", result: "Quantized", options: "PrintOptions", *, as_json: bool) -> None:
    """Print the verdict on an output that existed.

    Raises:
        GateError: the verification failed.
    """
    from g4convert.cli import next_steps, show, verification

    if as_json:
        print_json(result.to_dict())
    if result.report is not None:
        verification.print_end(result.report, options, as_json=as_json)
    if not as_json and not options.quiet:
        step = next_steps.measure_answers(job.output, shlex.quote(job.source.typed))
        next_steps.show_next(show.console(no_color=options.no_color), *step)


def _report_plan(conversion: "Conversion") -> "PlanReport":
    """Return the plan of a conversion, after all checks that precede the conversion."""
    from g4convert.api.bundled import count_bundled_tokens
    from g4convert.conversion.workers import workers_for
    from g4convert.planning.report import PlanReport

    job, calibration = conversion.job, conversion.calibration
    own_texts = calibration is not None and calibration.is_there
    workers_for(job.device, job.workers)
    return PlanReport.of(
        job.source,
        job.recipe,
        conversion.plan,
        conversion.layout,
        conversion.outlook.with_remedies(),
        workers=job.workers,
        tokens=calibration.tokens if calibration and own_texts else count_bundled_tokens(conversion.checkpoint),
        own_texts=own_texts,
    )


def _print_result(
    result: "Quantized", summary: "Summary", recipe: "Recipe", options: "PrintOptions", *, as_json: bool
) -> None:
    """Print the verdict if it passed, the closing card, and then the faults that the verification found.

    Raises:
        GateError: the verification failed.
    """
    from g4convert.cli import show, show_methods, show_summary, verification
    from g4convert.cli.next_steps import NextStep

    if result.report is not None and result.passed:
        verification.print_end(result.report, options, as_json=as_json)
    if as_json:
        print_json(result.to_dict())
    elif not options.quiet:
        console = show.console(no_color=options.no_color)
        metrics = result.report.metrics if result.report else {}
        answers, methods = show_summary.describe_answers(summary, metrics, result.costs, recipe)
        step = _choose_next_step(result, summary) if result.passed else NextStep("")
        if methods is not None and (doubt := show_methods.describe_doubt(result.costs)):
            step = step._replace(what=f"measures its answers: {doubt}")
        show_summary.print_summary(
            console,
            summary,
            result.output,
            tensors=options.verbose,
            peak=result.peak_memory,
            refused=result.refused,
            answers=answers,
            methods=methods,
            following=step,
        )
    if result.report is not None and not result.passed:
        verification.print_end(result.report, options, as_json=as_json)


def _choose_next_step(result: "Quantized", summary: "Summary") -> "NextStep":
    """Return the command that measures the answers of an output, or if they are measured, the one that serves it."""
    from g4convert.checkpoint.source import Source
    from g4convert.cli import next_steps

    if summary.total.stats.groups and not (result.report and result.report.metrics.get("loss")):
        return next_steps.measure_answers(result.output, shlex.quote(Source.at(result.source).typed))
    return next_steps.serve_output(str(result.output))

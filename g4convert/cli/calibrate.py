"""`g4convert calibrate`."""

from shlex import quote
from typing import TYPE_CHECKING

from g4convert.cli.calibrate_options import Answers, CalibrationFile, Length, Replace, Samples, Seed, Statistics, Texts
from g4convert.cli.options import Json, Model, NoColor, Quiet, RunDevice, Workers
from g4convert.cli.printing import print_done, print_json
from g4convert.quantities import plural, size

if TYPE_CHECKING:
    from g4convert.api.calibrate import Calibrated


def calibrate(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    output: CalibrationFile,
    data: Texts = None,
    samples: Samples = None,
    length: Length = None,
    seed: Seed = 0,
    answers: Answers = None,
    statistics: Statistics = True,
    workers: Workers = 0,
    device: RunDevice = None,
    overwrite: Replace = False,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Make a calibration file from texts, for the recipes that look at what a model reads."""
    from g4convert.api.calibrate import calibrate_in
    from g4convert.checkpoint import source
    from g4convert.cli import verification
    from g4convert.conversion.ranks import Ranks

    ranks = Ranks.join()
    try:
        with verification.PrintOptions(quiet=quiet or not ranks.leads, no_color=no_color).open_progress() as progress:
            calibrated = calibrate_in(
                ranks,
                model,
                output,
                data=data,
                samples=samples,
                length=length,
                seed=seed,
                answers=answers,
                statistics=statistics,
                workers=workers,
                device="cpu" if device is None else device,
                overwrite=overwrite,
                progress=progress,
            )
    finally:
        ranks.leave()
    if calibrated is None:
        return
    if as_json:
        print_json(calibrated.to_dict())
    elif not quiet and calibrated.already_done:
        made_by = f"{source.resolve(model).typed} by this command and version (--overwrite makes it again)"
        print_done(calibrated.output, made_by, no_color=no_color)
    elif not quiet:
        from g4convert.cli import show
        from g4convert.cli.next_steps import output_name, show_next
        from g4convert.planning.recipe_files import load

        out = show.console(no_color=no_color)
        show.print_pairs(out, _describe_calibration(calibrated))
        name = output_name(source.resolve(model).name, load("w4a16-g32-gptq").recipe)
        command = f"g4convert quantize {quote(model)} -o {quote(name)} -r w4a16-g32-gptq"
        show_next(out, f"{command} --calibration {quote(str(calibrated.output))}")


def _describe_calibration(calibrated: "Calibrated") -> dict[str, str]:
    """Describe the content of a calibration file, as texts by name."""
    from g4convert.conversion.statistics import FEW

    tokens, texts, statistics = calibrated.tokens, calibrated.texts, calibrated.statistics
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in texts["kinds"].items())
    rows = {
        "written": f"{calibrated.output}, {size(calibrated.output.stat().st_size)}",
        "tokens": f"{plural(tokens.samples, 'sample')} of {tokens.length:,}; {len(tokens.judges):,} "
        f"{'is' if len(tokens.judges) == 1 else 'are'} held out to choose between methods",
        "texts": f"{texts['documents']:,} by kind: {kinds}",
        **({"pictures": f"{texts['pictures']}"} if "pictures" in texts else {}),
        "answers": texts["answers"],
        "format": "the model's chat template" if texts["chat_frame"] else "plain text, as this is a base model",
        "statistics": "none: `imatrix` makes its own"
        if statistics is None
        else f"mean squares of what {plural(len(statistics.inputs), 'weight')} multiply",
    }
    if statistics is not None and (coverage := statistics.coverage) is not None:
        starved = coverage.without + coverage.few
        less = (
            f"{starved:,} saw fewer than {FEW}, {coverage.without:,} of them none"
            if starved
            else f"none saw fewer than {FEW}"
        )
        rows["experts"] = (
            f"{coverage.experts:,}: {plural(coverage.median, 'token')} each in the median, {coverage.least:,} for the "
            f"least; {less}"
        )
    return rows

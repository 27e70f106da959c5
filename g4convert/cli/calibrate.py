"""`g4convert calibrate`."""

from shlex import quote

from g4convert.cli.calibrate_options import Answers, CalibrationFile, Length, Samples, Seed, Texts
from g4convert.cli.options import Json, Model, NoColor, Overwrite, Quiet, RunDevice
from g4convert.cli.printing import print_json

__all__ = ["calibrate"]


def calibrate(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    output: CalibrationFile,
    data: Texts = None,
    samples: Samples = None,
    length: Length = None,
    seed: Seed = 0,
    answers: Answers = None,
    device: RunDevice = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Make a calibration file from texts, for the recipes that look at what a model reads."""
    from g4convert.api.calibrate import calibrate as make
    from g4convert.cli import verification

    with verification.Printed(quiet=quiet, no_color=no_color).watched() as watched:
        done = make(
            model,
            output,
            data=data,
            samples=samples,
            length=length,
            seed=seed,
            answers=answers,
            device=device or "cpu",
            overwrite=overwrite,
            progress=watched.bar,
        )
    if as_json:
        print_json(done.to_dict())
    elif not quiet:
        from g4convert.cli import show

        tokens, kinds, written = done.sampled.tokens, done.sampled.kinds, quote(str(done.output))
        rows = {
            "written": str(done.output),
            "tokens": f"{tokens.samples:,} samples of {tokens.length:,}; {len(tokens.judges)} of them judge",
            "texts": f"{done.sampled.documents:,}: " + ", ".join(f"{kind} {count:,}" for kind, count in kinds.items()),
            "answers": done.answers,
            "frame": "the model's chat template" if done.chat else "plain text, as this is a base model",
            "next": f"g4convert quantize {quote(model)} -o OUT -r w4a16-g32-gptq --calibration {written}",
        }
        show.pairs(show.console(no_color=no_color), rows)

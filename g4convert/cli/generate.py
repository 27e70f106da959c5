"""`g4convert generate`."""

import sys
from collections.abc import Sequence

from g4convert.bounded import MOST_PROMPTS
from g4convert.cli.generate_options import Autotune, MaxNewTokens, Prompt, SpeechType
from g4convert.cli.options import Json, Memory, Model, NoColor, Quiet, RunDevice
from g4convert.cli.printing import print_json
from g4convert.errors import UsageError
from g4convert.request import DEFAULTS, SPEECH_DTYPE


def generate(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    prompt: Prompt = None,
    max_new_tokens: MaxNewTokens = 128,
    device: RunDevice = None,
    memory: Memory = None,
    dtype: SpeechType = SPEECH_DTYPE,
    autotune: Autotune = None,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Let a checkpoint answer, greedily: a smoke test for a person to read."""
    prompts, place = _read_prompts(prompt), DEFAULTS.device if device is None else device
    from g4convert.checkpoint import source
    from g4convert.checkpoint.uses import is_quantized, open_for_generation
    from g4convert.cli import next_steps, show
    from g4convert.cli.talk import Talk

    if autotune is not None:
        from g4convert.devices import torch_device
        from g4convert.forward.tuning import check  # brings torch

        check(torch_device(place), autotune)
    checkpoint = open_for_generation(source.resolve(model).path)
    talk = Talk(no_color=no_color, quiet=quiet, mute=as_json, several=len(prompts) > 1)
    talk.print_loading(model)
    from g4convert.forward.generation import Speaker  # brings torch and transformers

    speaker = Speaker.load(checkpoint, device=place, memory=(memory or DEFAULTS.memory).value, dtype=dtype)
    if autotune is not None:
        from g4convert.progress import open_display

        with open_display(show.messages(no_color=no_color), quiet=quiet or as_json) as progress:
            products = speaker.tune(autotune, progress)
        talk.print_tiles(autotune, products)
    answers = []
    for text in prompts:
        with talk.show_prompt(text):
            answers.append(speaker.answer(text, max_new_tokens=max_new_tokens, show=talk.show))
        talk.print_speed(answers[-1], place)
    if as_json:
        print_json(speaker.to_dict(answers))
    elif not quiet:
        step = next_steps.after_generate(model, quantized=is_quantized(checkpoint))
        next_steps.show_next(show.messages(no_color=no_color), *step)


def _read_prompts(texts: Sequence[str] | None) -> list[str]:
    """Return the prompts; `-` means standard input."""
    if list(texts or ()).count("-") > 1:
        raise UsageError("-p - is given twice; standard input is one prompt")
    prompts = [_read_stdin() if text == "-" else text for text in texts or ()]
    if not prompts or not all(text.strip() for text in prompts):
        raise UsageError(
            "an empty prompt" if prompts else "no prompt", hint='say what to ask: -p "Why is the sky blue?"'
        )
    return prompts


def _read_stdin() -> str:
    """Read standard input."""
    try:
        text = sys.stdin.read(MOST_PROMPTS + 1).rstrip("\n")
        nbytes = len(text.encode())  # a surrogate stands for a byte that is not UTF-8
    except UnicodeError as error:
        raise UsageError("-p -: standard input is not UTF-8", hint="convert it: iconv -t UTF-8") from error
    if nbytes > MOST_PROMPTS:
        raise UsageError(f"-p -: over {MOST_PROMPTS >> 20} MiB, the most that is read", hint="a shorter prompt")
    return text

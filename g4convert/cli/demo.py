"""`g4convert demo`."""

from pathlib import Path

from g4convert.cli.options import Directory, FamilyName, Json, NoColor, Quiet
from g4convert.cli.printing import print_json
from g4convert.gemma4.family import Family


def demo(
    directory: Directory = Path("g4convert-demo"),
    *,
    family: FamilyName = Family.MOE,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Make a tiny real checkpoint, quantize it, load the result, and compare logits."""
    from g4convert.api.bundled import count_bundled_tokens
    from g4convert.cli import show
    from g4convert.demo.run import run

    messages = show.messages(no_color=no_color)
    demonstration = run(
        family,
        directory,
        lambda text: None if quiet else messages.print(text, soft_wrap=True),
        count_tokens=count_bundled_tokens,
    )
    if as_json:
        print_json(demonstration.to_dict())
    else:
        show.print_demo(show.console(no_color=no_color), demonstration, quiet=quiet)

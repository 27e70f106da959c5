"""Options of `generate`: prompts, length and dtype of answers, and measurement of kernels."""

from pathlib import Path
from typing import Annotated

import typer

from g4convert.cli.panels import RUN

__all__ = ["Autotune", "MaxNewTokens", "Prompt", "SpeechType"]

Prompt = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        "-p",
        metavar="TEXT",
        help="Text to answer; - reads it from stdin; repeat for several.",
        rich_help_panel=RUN,
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option("--max-new-tokens", metavar="N", min=1, max=1 << 20, help="The longest answer.", rich_help_panel=RUN),
]
Autotune = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="First measure how the kernels are best cut on this GPU (minutes), and add that to a table there.",
        rich_help_panel=RUN,
    ),
]
SpeechType = Annotated[
    str,
    typer.Option("--dtype", metavar="NAME", help="Dtype of the forward: bfloat16 or float32.", rich_help_panel=RUN),
]

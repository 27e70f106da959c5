"""Options of `generate`: prompts, length and dtype of answers, and measurement of kernels."""

from pathlib import Path
from typing import Annotated

from g4convert.cli.panels import run_option

Prompt = Annotated[
    list[str] | None,
    run_option("--prompt", "-p", metavar="TEXT", help="Text to answer; - reads it from stdin; repeat for several."),
]
MaxNewTokens = Annotated[
    int, run_option("--max-new-tokens", metavar="N", min=1, max=1 << 20, help="Most tokens of an answer.")
]
Autotune = Annotated[
    Path | None,
    run_option(
        metavar="FILE",
        help="First measure the best tiles of the kernels on this GPU (minutes), and add them to this table.",
    ),
]
SpeechType = Annotated[
    str, run_option("--dtype", metavar="NAME", help="Dtype of the forward pass: bfloat16 or float32.")
]

"""Options of a calibration: texts, samples and the file."""

from pathlib import Path
from typing import Annotated

import typer

from g4convert.cli.panels import run_option

CalibrationFile = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="File to write, ending in .safetensors.")
]
Texts = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Texts: FILE.jsonl (also with pictures), FILE.txt, or a dataset as org/name:split; else the bundled ones.",
    ),
]
Samples = Annotated[
    int | None, typer.Option(metavar="N", help="Rows of ids; without it as many as the texts fill, 128 at most.")
]
Length = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens of a row; without it twice the sliding window, 2,048 at most.")
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Decides the order of texts, and answers.")]
Answers = Annotated[
    bool | None,
    typer.Option(
        "--answers/--no-answers",
        help="Let MODEL answer the questions itself, or not. Default: a chat model does on a GPU, or of at most 1 GiB.",
    ),
]
Statistics = Annotated[
    bool,
    typer.Option(
        "--statistics/--no-statistics",
        help="Run MODEL once for what its Linears are given, or keep ids alone, which are enough for gptq.",
    ),
]
Replace = Annotated[bool, run_option("--overwrite", help="Replace a file that is there.")]
Calibration = Annotated[
    Path | None,
    run_option(
        readable=False,
        metavar="FILE",
        help="Made by calibrate, for imatrix, gptq, best and fit; imatrix also takes llama.cpp's, in GGUF.",
    ),
]

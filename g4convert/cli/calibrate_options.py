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
        help="Texts: FILE.jsonl (also with pictures), FILE.txt or a dataset org/name:split. Default: bundled ones.",
    ),
]
Samples = Annotated[
    int | None, typer.Option(metavar="N", help="Number of samples. Default: as many as the texts fill, at most 128.")
]
Length = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens in each sample. Default: twice the sliding window, at most 2,048."),
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the order of texts, and of answers.")]
Answers = Annotated[
    bool | None,
    typer.Option(
        "--answers/--no-answers",
        help="Let MODEL answer the questions itself, or not. Default: chat models do, on a GPU or up to 1 GiB.",
    ),
]
Statistics = Annotated[
    bool,
    typer.Option(
        "--statistics/--no-statistics",
        help="Run MODEL once and keep statistics of the inputs of its Linears, or keep only ids, enough for gptq.",
    ),
]
Replace = Annotated[bool, run_option("--overwrite", help="Replace an existing file.")]
Calibration = Annotated[
    Path | None,
    run_option(
        readable=False,
        metavar="FILE",
        help="File made by calibrate, for imatrix, gptq, best and fit; imatrix also takes llama.cpp's, in GGUF.",
    ),
]

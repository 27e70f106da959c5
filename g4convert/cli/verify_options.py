"""Options of a verification: the checkpoint, its reference, the level, and the engine."""

from pathlib import Path
from typing import Annotated

import typer

from g4convert.cli.completion import complete_profile
from g4convert.cli.panels import mark_default, print_option, run_option, verify_option
from g4convert.request import DEFAULTS, MOST_SECONDS, Level, ServedEngine

Checked = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help=r"A quantized checkpoint, also another program's: a directory, or org/name\[@revision] on the hub.",
    ),
]
Reference = Annotated[
    str | None,
    verify_option(metavar="MODEL", help="The original: a directory, a hub name, or a file of `g4convert reference`."),
]
VerifyLevel = Annotated[
    Level | None,
    verify_option(
        metavar="LEVEL",
        help="Last level to run: static, weights, logits or engine. Default: what the other options ask for, or else "
        "weights, and static without a reference.",
    ),
]
Profile = Annotated[
    str | None,
    verify_option(
        metavar="NAME",
        help=f"Thresholds of level logits: {mark_default('profile', 'w4a16', 'qat', 'parity')}, or a YAML file.",
        autocompletion=complete_profile,
    ),
]
Fix = Annotated[
    bool,
    verify_option(
        "--fix",
        help="Correct its quantization_config, if that is what is wrong; the old file becomes config.json.orig.",
    ),
]
AssistantOf = Annotated[
    str | None, verify_option(metavar="MODEL", help="Check that this MTP drafter fits a target model.")
]
Strict = Annotated[bool, verify_option("--strict", help="Count warnings as failures.")]
Prompts = Annotated[
    Path | None,
    verify_option(
        readable=False,  # reading says so, as a fault of the input
        metavar="FILE",
        help='File of your own texts, in place of the bundled ones: JSON lines, {"messages": \\[...]} each for a model '
        'with a chat template, {"prompt": "..."} for a base model.',
    ),
]
StoredReference = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="File to write: ref.safetensors.")
]
VerifyEngine = Annotated[
    ServedEngine | None,
    verify_option("--engine", metavar="NAME", help="Level engine: vllm (started here) or sglang (a server that runs)."),
]
EnginePython = Annotated[
    Path | None, run_option(metavar="FILE", help="Python interpreter that has vLLM. Default: this one.")
]
EngineUrl = Annotated[str | None, run_option(metavar="URL", help="Address of the SGLang server: http://HOST:PORT.")]
EngineTimeout = Annotated[
    float | None,
    run_option(
        metavar="SECONDS",
        min=1,
        max=MOST_SECONDS,
        help=f"Seconds to wait for the engine to start, and for each answer (default {DEFAULTS.engine_timeout:g}).",
    ),
]
VerifyAfter = Annotated[
    str, run_option("--verify", metavar="LEVEL", help="Verify at the end: none, static, weights or logits.")
]
JUnit = Annotated[Path | None, print_option("--junit", metavar="FILE", help="Write the report as JUnit XML.")]
Html = Annotated[Path | None, print_option("--html", metavar="FILE", help="Write the report as one HTML page.")]

"""Options of a verification: the checkpoint, its reference, the level, and the engine."""

from pathlib import Path
from typing import Annotated

import typer

from g4convert.cli.panels import PRINT, RUN, VERIFY, marked
from g4convert.request import DEFAULTS, MOST_SECONDS, EngineName, Level

__all__ = [
    "AssistantOf",
    "Checked",
    "EnginePython",
    "EngineTimeout",
    "EngineUrl",
    "Fix",
    "Html",
    "JUnit",
    "Profile",
    "Prompts",
    "Reference",
    "StoredReference",
    "Strict",
    "VerifyAfter",
    "VerifyEngine",
    "VerifyLevel",
]

Checked = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help=r"A quantized checkpoint, also another program's: a directory, or org/name\[@revision] on the hub.",
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The original: a directory, a hub name, or a file of `g4convert reference`.",
        rich_help_panel=VERIFY,
    ),
]
VerifyLevel = Annotated[
    Level | None,
    typer.Option(
        metavar="LEVEL",
        help="Last level to run: static, weights, logits or engine. Default: what the other options ask for, or else "
        "weights, and static without a reference.",
        rich_help_panel=VERIFY,
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Thresholds of level logits: {marked('profile', 'w4a16', 'qat', 'parity')}, or a YAML file.",
        rich_help_panel=VERIFY,
    ),
]
Fix = Annotated[
    bool,
    typer.Option(
        "--fix",
        help="Correct its quantization_config, if that is what is wrong; the old file becomes config.json.orig.",
        rich_help_panel=VERIFY,
    ),
]
AssistantOf = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Check that this MTP drafter fits a target model.", rich_help_panel=VERIFY),
]
Strict = Annotated[bool, typer.Option("--strict", help="A warning fails.", rich_help_panel=VERIFY)]
Prompts = Annotated[
    Path | None,
    typer.Option(
        readable=False,  # reading says so, as a fault of the input
        metavar="FILE",
        help='Your own text, in place of the bundled: JSON lines, {"messages": \\[...]} each for a model with a chat '
        'template, {"prompt": "..."} for a base model.',
        rich_help_panel=VERIFY,
    ),
]
StoredReference = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="File to write: ref.safetensors.")
]
VerifyEngine = Annotated[
    EngineName | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Level engine: vllm (started here) or sglang (a server that runs).",
        rich_help_panel=VERIFY,
    ),
]
EnginePython = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The interpreter that has vLLM; this one by default.", rich_help_panel=RUN),
]
EngineUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Address of the SGLang server: http://HOST:PORT.", rich_help_panel=RUN),
]
EngineTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=1,
        max=MOST_SECONDS,
        help=f"Seconds to wait for the engine to start, and for each answer (default {DEFAULTS.engine_timeout:g}).",
        rich_help_panel=RUN,
    ),
]
VerifyAfter = Annotated[
    str,
    typer.Option(
        "--verify", metavar="LEVEL", help="Verify at the end: none, static, weights or logits.", rich_help_panel=RUN
    ),
]
JUnit = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="The report as JUnit XML.", rich_help_panel=PRINT)
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="The report as one page.", rich_help_panel=PRINT)
]

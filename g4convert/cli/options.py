"""Arguments and options that several commands share, about the run and about its output.

Typer reads types, names and help from these annotations; `docs/reference/cli.md` is generated from the result.
"""

from pathlib import Path
from typing import Annotated

import typer

from g4convert.cli.panels import PRINT, RUN, manner, marked
from g4convert.gemma4.family import Family
from g4convert.request import MemoryUse

__all__ = [
    "Device",
    "Directory",
    "DryRun",
    "FamilyName",
    "FloatType",
    "Json",
    "Memory",
    "Model",
    "NoColor",
    "Output",
    "Overwrite",
    "Quiet",
    "RunDevice",
    "Verbose",
    "Version",
    "Workers",
]

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help=r"A directory, or org/name\[@revision] on the Hugging Face hub.")
]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Gets FAMILY and FAMILY-W4A16.")]
FamilyName = Annotated[Family, typer.Option(metavar="FAMILY", help=f"{', '.join(Family)}.")]
Version = Annotated[bool, typer.Option("--version", help="Print the version and stop.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="Directory to write.")]
Workers = Annotated[
    int,
    typer.Option(metavar="N", min=0, max=1024, help="Threads; 0 is one per core, or two per GPU.", rich_help_panel=RUN),
]
Device = Annotated[
    str,
    typer.Option(metavar="NAME", help="Device that quantizes: cpu, cuda (every GPU) or cuda:N.", rich_help_panel=RUN),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace a checkpoint that is there.", rich_help_panel=RUN),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", "-n", help="Check everything, print the plan, write nothing.", rich_help_panel=RUN),
]
Memory = Annotated[
    MemoryUse | None,
    typer.Option(
        metavar="NAME",
        help=f"resident, stream (one layer at a time), or {marked('memory', 'auto')}: what fits.",
        rich_help_panel=RUN,
    ),
]
FloatType = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help=f"Dtype of the forward: {marked('dtype', 'float32')} or bfloat16.",
        rich_help_panel=RUN,
    ),
]
RunDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help=f"Device that runs the model: {marked('device', 'cpu', 'cuda')} or cuda:N.",
        rich_help_panel=RUN,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON.", rich_help_panel=PRINT)]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress; no summary if all is well.", rich_help_panel=PRINT),
]
NoColor = Annotated[
    bool,
    typer.Option(
        "--no-color",
        callback=manner,
        help="Plain text; NO_COLOR does the same.",
        rich_help_panel=PRINT,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=manner,
        help="Every tensor, and every line of a long error.",
        rich_help_panel=PRINT,
    ),
]

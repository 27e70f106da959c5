"""Arguments and options that several commands share, about the run and about its output.

Typer reads types, names and help from these annotations; `docs/reference/cli.md` is generated from the result.
"""

from pathlib import Path
from typing import Annotated

import typer

from g4convert.cli.panels import mark_default, print_option, run_option, store_error_style
from g4convert.gemma4.family import Family
from g4convert.run_options import MOST_WORKERS, MemoryUse

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help=r"A directory, or org/name\[@revision] on the Hugging Face hub.")
]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Directory for FAMILY and FAMILY-W4A16.")]
FamilyName = Annotated[Family, typer.Option(metavar="FAMILY", help=f"{', '.join(Family)}.")]
Version = Annotated[bool, typer.Option("--version", help="Print the version and exit.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="Directory to write.")]
Workers = Annotated[
    int, run_option(metavar="N", min=0, max=MOST_WORKERS, help="Number of threads; 0 is one per core, or two per GPU.")
]
Device = Annotated[str, run_option(metavar="NAME", help="Device that quantizes: cpu, cuda (every GPU) or cuda:N.")]
Overwrite = Annotated[bool, run_option("--overwrite", help="Replace an existing checkpoint.")]
DryRun = Annotated[bool, run_option("--dry-run", "-n", help="Check everything, print the plan, write nothing.")]
Memory = Annotated[
    MemoryUse | None,
    run_option(
        metavar="NAME", help=f"resident, stream (one layer at a time), or {mark_default('memory', 'auto')}: what fits."
    ),
]
FloatType = Annotated[
    str | None,
    run_option(
        "--dtype", metavar="NAME", help=f"Dtype of the forward pass: {mark_default('dtype', 'float32')} or bfloat16."
    ),
]
RunDevice = Annotated[
    str | None,
    run_option(
        "--device",
        metavar="NAME",
        help=f"Device that runs the model: {mark_default('device', 'cpu', 'cuda')} or cuda:N.",
    ),
]
Json = Annotated[bool, print_option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, print_option("--quiet", "-q", help="Print no progress, and no summary if all is well.")]
NoColor = Annotated[
    bool, print_option("--no-color", callback=store_error_style, help="Print plain text; NO_COLOR does the same.")
]
Verbose = Annotated[
    bool,
    print_option(
        "--verbose", "-v", callback=store_error_style, help="Print every tensor, and every line of a long error."
    ),
]

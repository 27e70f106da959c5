"""The packed kernels on a GPU: right against float64, then how fast, beside the card's own limits and other kernels.

    python tests/benchmarks/gpu.py [--write docs/benchmarks.md] [--seconds 540] [--model] [--tune FILE]

Needs torch for CUDA, its Triton, and this package; no network, no checkpoint, about 12 GB of GPU memory. Weights are
random, of the true shapes of 26B-A4B: 128 experts of 704, 8 to a token, hidden size 2816, groups of 32.

    gpu_checks   every tile, dtype and group against float64, over outputs full of NaN; a wrong one ends the run
                 with status 1 and nothing is timed
    gpu_times    the card's limits, a layer of experts and each of its launches, the targets, linears
    gpu_model    with --model: small models quantized, with `gptq` too, verified on the card, and asked
    gpu_gptq     with --model: H, factor and columns of GPTQ
    gpu_tune     with --tune: tiles measured in what is left of the time, and the table written

Everything is compiled side by side before it is timed. Times are medians, from CUDA graphs on several layers' weights
in turn, so that they come from memory. `roofline` is the larger of the bytes that must move by the copy bandwidth and
the products by the bf16 matmul rate, both measured here, by the time that was taken. With --write the document is
written after each line: a run that is cut off leaves what it has. A section that fails says so, the next one runs, and
the status is 1 in the end.

`--rehearse` is for a machine without a GPU: the same steps on tiny shapes, with TRITON_INTERPRET=1 and clock times
that mean nothing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gpu_checks
import gpu_gptq
import gpu_model
import gpu_times
import gpu_tune
import torch
import triton
from gpu_layers import REHEARSAL, Machine, Results, Sizes

MARKS = ("<!-- gpu: written by tests/benchmarks/gpu.py -->", "<!-- /gpu -->")

FAILED = "FAILED"

Section = Callable[[Machine, Sizes, Results], Iterator[str]]


def sections(*, model: bool, table: Path | None) -> Iterator[tuple[str, Section]]:
    """Title and lines of each part, what is needed most first."""
    yield "", gpu_checks.compared
    yield "", gpu_times.ceilings
    yield "One layer of experts", gpu_times.layers
    yield "Targets", gpu_times.verdict
    yield "Its launches, us", gpu_times.launches
    if model:
        yield "Small models", gpu_model.models
        yield "GPTQ, by its parts", gpu_gptq.parts
    yield "Linears", gpu_times.linears
    if table is not None:
        yield "Tiles", partial(gpu_tune.tuning, table)


def report(machine: Machine, sizes: Sizes, parts: Iterator[tuple[str, Section]]) -> Iterator[str]:
    """All of it, as Markdown; an empty line ends a part."""
    results = Results()
    today = dt.datetime.now(dt.UTC).date()
    yield f"{machine.card}, torch {torch.__version__}, Triton {triton.__version__}, {today}."
    for title, section in parts:
        if title:
            yield from ("", f"### {title}", "")
        if machine.left < 0:
            yield "No time left."
            continue
        try:
            yield from section(machine, sizes, results)
        except Exception as error:  # noqa: BLE001 - the next section may run
            traceback.print_exc()
            yield from ("", f"{FAILED}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}")


def write(path: Path, text: str) -> None:
    """Put the section between the marks of a document, or begin one."""
    if not path.exists():
        path.write_text("\n".join(MARKS) + "\n")
    before, _, rest = path.read_text().partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        sys.exit(f"{path}: no line {MARKS[0]} with {MARKS[1]} after it")
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}")


def main() -> None:
    """Run, print, and write the section if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="a document with the marks of this section")
    parser.add_argument("--seconds", type=float, default=540, help="after which nothing else is begun")
    parser.add_argument("--model", action="store_true", help="also run small models, end to end")
    parser.add_argument("--tune", type=Path, metavar="FILE", help="also measure tiles, and write the table there")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes in Triton's interpreter")
    arguments = parser.parse_args()
    if arguments.rehearse and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--rehearse needs TRITON_INTERPRET=1")
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("no GPU; --rehearse goes through the steps without one")
    torch.manual_seed(0)
    machine = Machine.here("cpu" if arguments.rehearse else "cuda", arguments.seconds)
    sizes = REHEARSAL if arguments.rehearse else Sizes()
    lines: list[str] = []
    for line in report(machine, sizes, sections(model=arguments.model, table=arguments.tune)):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        lines.append(line)
        if arguments.write:
            write(arguments.write, "\n".join(lines) + "\n")
    if any(line.startswith(FAILED) for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()

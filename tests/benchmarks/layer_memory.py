"""Counts the memory of `gptq` on a layer of real shape, by phase, without waiting for its arithmetic.

    python tests/benchmarks/layer_memory.py 31b DIRECTORY [--samples 7] [--length 2048] [--judges 2]

The product runs on one layer of a released size. Large products are left out: their results are made, filled with a
number, and handed on, so each array that the product makes is made, touched and freed where it always is. What is
counted is anonymous memory (RssAnon), sampled every few ms from outside: what the system cannot drop. Mapped files,
which are weights of the source and states between layers, are not in it.

Of what is counted, these depend on the number of tokens: the sequences that are under way at a time, at most six, and
the rows that judge, at most 4,096. So seven samples of which two judge take what any number of them takes that has
4,096 rows or more to judge by: 65,536 tokens in samples of 2,048 have two such samples.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from shapes import MODELS, make

GIB: Final = 1 << 30
LAYERS: Final = {"26b": "26b-2l", "31b": "31b-3l"}
SMALL: Final = 1e9
"""Multiplications up to which a product is made."""
EVERY: Final = 0.004
"""Seconds between two looks."""


def main() -> None:
    """Run the layer in a process of its own, and watch it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("size", choices=LAYERS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--judges", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _quantize(args.directory, args.samples, args.length, args.judges)
        return
    make(replace(MODELS[LAYERS[args.size]], layers=(True,)), args.directory / "model")
    with subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--child"], stdout=subprocess.PIPE) as child:
        peaks = _watched(child)
    _show(peaks)


def _watched(child: "subprocess.Popen[bytes]") -> dict[str, int]:
    """Return the largest anonymous memory by phase, in the order in which phases began; the child prints these."""
    assert child.stdout is not None
    stream = child.stdout.fileno()
    os.set_blocking(stream, False)
    status, phase, rest, peaks = Path(f"/proc/{child.pid}/status"), "start", b"", dict[str, int]()
    while child.poll() is None:
        with suppress(BlockingIOError):
            rest += os.read(stream, 1 << 16)
        *lines, rest = rest.split(b"\n")
        phase = lines[-1].decode() if lines else phase
        found = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
        if found:
            peaks[phase] = max(peaks.get(phase, 0), int(found[0].split()[1]) * 1024)
        time.sleep(EVERY)
    return peaks


def _show(peaks: dict[str, int]) -> None:
    sys.stdout.write("| phase | GiB |\n|---|---:|\n")
    for phase, nbytes in peaks.items():
        sys.stdout.write(f"| {phase} | {nbytes / GIB:.2f} |\n")
    phase = max(peaks, key=lambda one: peaks[one])
    sys.stdout.write(f"peak {peaks[phase] / GIB:.2f} GiB: {phase}\n")


def _quantize(directory: Path, samples: int, length: int, judging: int) -> None:
    """Quantize the model of one layer in this process, without its large products."""
    import numpy as np  # noqa: PLC0415 - not in the process that watches
    import torch  # noqa: PLC0415

    from g4convert.calibration import layer, rounding, tokens  # noqa: PLC0415
    from g4convert.calibration.run import LayerByLayer  # noqa: PLC0415
    from g4convert.calibration.walk import Walk  # noqa: PLC0415
    from g4convert.checkpoint.source import Source  # noqa: PLC0415
    from g4convert.conversion.job import Job, prepare  # noqa: PLC0415
    from g4convert.conversion.ranks import Ranks  # noqa: PLC0415
    from g4convert.conversion.run import convert  # noqa: PLC0415
    from g4convert.planning.recipe_files import load  # noqa: PLC0415
    from g4convert.progress import Progress  # noqa: PLC0415

    torch.set_num_threads(1)
    _leave_out_products(torch)
    tokens.judges = lambda count: frozenset(range(count - judging, count))
    phases = _Phases()
    for owner, name in (
        (Walk, "_attention"),
        (Walk, "_feed_forward"),
        (layer.LayerPass, "_keep"),
        (layer.LayerPass, "_quantize"),
        (layer.LayerPass, "_aims"),
        (rounding.Rounding, "factor"),
        (rounding.Rounding, "_data_free"),
        (rounding.Rounding, "_weighted"),
        (rounding.Rounding, "_energies"),
        (rounding, "gptq"),
        (rounding, "stats_of"),
        (LayerByLayer, "_write"),
    ):
        setattr(owner, name, phases.marked(name.strip("_"), getattr(owner, name)))
    ids = directory / "ids.safetensors"
    tokens.Tokens(np.random.default_rng(0).integers(5, 30_000, (samples, length), np.int32)).save(ids)
    job = Job(
        Source.at(directory / "model"),
        load("w4a16-g32-gptq"),
        directory / "out",
        workers=1,
        overwrite=True,
        calibration=ids,
    )
    conversion = prepare(job)
    convert(conversion, Progress(), Ranks(), LayerByLayer.of(conversion, ids))


class _Phases:
    """Prints the functions that are running, at each beginning and end."""

    def __init__(self) -> None:
        self._inside: list[str] = []

    def marked(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function."""

        def call(*given: Any, **more: Any) -> Any:  # noqa: ANN401 - stands for any function
            paths = [one for one in given if isinstance(one, list) and one and isinstance(one[0], str)]
            with self._in(f"{name} {paths[0][-1]}" if paths else name):
                return real(*given, **more)

        return call

    @contextmanager
    def _in(self, name: str) -> Iterator[None]:
        self._inside.append(name)
        self._say()
        yield
        self._inside.pop()
        self._say()

    def _say(self) -> None:
        sys.stdout.write(" > ".join(self._inside) + "\n" if self._inside else "between\n")
        sys.stdout.flush()


def _leave_out_products(torch: Any) -> None:  # noqa: ANN401 - the module
    """Replace large products by arrays of their shape; H becomes a multiple of the identity, which has a factor."""
    tensor, functional = torch.Tensor, torch.nn.functional
    matmul, mm, linear = tensor.__matmul__, torch.mm, functional.linear

    def made(rows: Any, columns: int, out: Any = None) -> Any:  # noqa: ANN401
        return torch.full((*rows, columns), 0.01) if out is None else out.fill_(0.0)

    def is_small(left: Any, columns: int) -> bool:  # noqa: ANN401
        return left.numel() * columns < SMALL

    def addmm_(into: Any, left: Any, right: Any, *, alpha: float = 1) -> Any:  # noqa: ANN401
        del left, right
        if alpha > 0:
            into.diagonal().add_(1)
        return into

    tensor.addmm_ = addmm_
    tensor.__matmul__ = lambda left, right: (
        matmul(left, right)
        if left.dim() != 2 or is_small(left, right.shape[-1])
        else made(left.shape[:-1], right.shape[-1])
    )
    torch.mm = lambda left, right, out=None: (
        mm(left, right, out=out) if is_small(left, right.shape[-1]) else made(left.shape[:-1], right.shape[-1], out)
    )
    functional.linear = lambda x, weight, bias=None: (
        linear(x, weight, bias) if is_small(x, len(weight)) else made(x.shape[:-1], len(weight))
    )


if __name__ == "__main__":
    main()

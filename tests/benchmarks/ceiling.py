"""The two limits of `quantize` on this machine; it cannot be faster than the slower one.

io      read the input with large preads and write as many bytes as the output has to the same disk, and fsync
tiles   quantize as many weights as the input has, from a tile that stays in cache, by the product's kernel

Each prints its seconds. The interpreter's start is not counted.

    python tests/benchmarks/ceiling.py io SRC OUT --bytes 1245825092 --threads 2
    python tests/benchmarks/ceiling.py tiles --numel 1641840640 --method minmax --threads 2
"""

import argparse
import mmap
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["io_seconds", "tile_seconds"]

CHUNK = 1 << 20  # bytes a pread
ROWS, COLUMNS, GROUP = 64, 2816, 32  # a tile: 352 KiB of bf16


def io_seconds(source: Path, output: Path, output_bytes: int, threads: int) -> float:
    """Return the seconds it takes to read every weight file and to write `output_bytes`, fsync included."""
    files = sorted(source.glob("*.safetensors"))
    chunks = [(file, begin) for file in files for begin in range(0, file.stat().st_size, CHUNK)]
    share = -(-output_bytes // len(chunks))
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sources = {file: os.open(file, os.O_RDONLY) for file in files}

    def copy(first: int) -> None:
        buffer = memoryview(mmap.mmap(-1, CHUNK))
        for number in range(first, len(chunks), threads):
            file, begin = chunks[number]
            os.preadv(sources[file], [buffer], begin)
            os.pwrite(target, buffer[: min(share, output_bytes - number * share)], number * share)

    def job() -> None:
        os.posix_fallocate(target, 0, output_bytes)
        _parallel(copy, threads)
        os.fsync(target)

    seconds = _timed(job)
    for descriptor in (target, *sources.values()):
        os.close(descriptor)
    return seconds


def tile_seconds(numel: int, method: str, threads: int) -> float:
    """Return the seconds to quantize `numel` bf16 weights, in each thread one tile again and again."""
    import numpy as np  # noqa: PLC0415 - `io` is measured without it

    from g4convert.quantize import Method, Scheme  # noqa: PLC0415 - the same
    from g4convert.quantize.tiles import CpuTiles  # noqa: PLC0415 - the same
    from g4convert.tensors import DType  # noqa: PLC0415 - the same

    scheme = Scheme(num_bits=4, group_size=GROUP, method=Method(method))

    def work(thread: int, count: int) -> None:
        normal = np.random.default_rng(thread).standard_normal((ROWS, COLUMNS), np.float32)
        rows = (normal.view(np.uint32) >> 16).astype(np.uint16)
        packed = np.empty((ROWS, scheme.words(COLUMNS)), np.int32)
        scale = np.empty((ROWS, scheme.groups(COLUMNS)), np.uint16)
        tiles = CpuTiles()
        for _ in range(count):
            tiles.quantize(rows, DType.BF16, scheme, packed, scale)

    work(0, 1)  # compiles
    count = -(-numel // (ROWS * COLUMNS * threads))
    return _timed(lambda: _parallel(lambda thread: work(thread, count), threads))


def _parallel(work: Callable[[int], None], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def _timed(job: Callable[[], None]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def main() -> None:
    """Print the seconds of one limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    limits = parser.add_subparsers(dest="limit", required=True)
    io = limits.add_parser("io")
    io.add_argument("source", type=Path)
    io.add_argument("output", type=Path)
    io.add_argument("--bytes", type=int, required=True, help="what to write")
    tiles = limits.add_parser("tiles")
    tiles.add_argument("--numel", type=int, required=True, help="weights to quantize")
    tiles.add_argument("--method", required=True)
    for limit in (io, tiles):
        limit.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.limit == "io":
        seconds = io_seconds(args.source, args.output, args.bytes, args.threads)
    else:
        seconds = tile_seconds(args.numel, args.method, args.threads)
    sys.stdout.write(f"{seconds}\n")


if __name__ == "__main__":
    main()

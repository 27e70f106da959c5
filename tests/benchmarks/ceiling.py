"""The limits of `quantize` on this machine; each prints its seconds, without the interpreter's start.

io      read the input with large preads and write as many bytes as the output has to the same disk, and fsync
tiles   quantize as many weights as the input has, from a tile that stays in cache, by the product's kernel
both    the two at once in the same threads: what is left when cores that compute must also copy

    python tests/benchmarks/ceiling.py io SRC OUT --bytes 1245825092 --threads 2
    python tests/benchmarks/ceiling.py tiles --numel 1641840640 --method minmax --threads 2
    python tests/benchmarks/ceiling.py both SRC OUT --bytes 1245825092 --numel 1641840640 --method minmax
"""

import argparse
import mmap
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["io_seconds", "tile_seconds", "tile_work"]

CHUNK = 1 << 20  # bytes a pread
COLUMNS, GROUP = 2816, 32
ROWS = 64  # a tile: 352 KiB of bf16

Work = Callable[[int], None]


def io_seconds(source: Path, output: Path, output_bytes: int, works: Sequence[Work]) -> float:
    """Return the seconds to read every weight file and write `output_bytes`, fsync included.

    Args:
        source: the checkpoint.
        output: file to write.
        output_bytes: bytes of it to write.
        works: for each thread, what it does with a chunk, given how many chunks there are.
    """
    files = sorted(source.glob("*.safetensors"))
    chunks = [(file, begin) for file in files for begin in range(0, file.stat().st_size, CHUNK)]
    share = -(-output_bytes // len(chunks))
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sources = {file: os.open(file, os.O_RDONLY) for file in files}

    def copy(thread: int) -> None:
        buffer = memoryview(mmap.mmap(-1, CHUNK))
        for number in range(thread, len(chunks), len(works)):
            file, begin = chunks[number]
            os.preadv(sources[file], [buffer], begin)
            works[thread](len(chunks))
            os.pwrite(target, buffer[: min(share, output_bytes - number * share)], number * share)

    def job() -> None:
        os.posix_fallocate(target, 0, output_bytes)
        _parallel(copy, len(works))
        os.fsync(target)

    seconds = _timed(job)
    for descriptor in (target, *sources.values()):
        os.close(descriptor)
    return seconds


def tile_seconds(works: Sequence[Work], parts: int = 1000) -> float:
    """Return the seconds to do all of `works`, cut in parts."""

    def all_parts(thread: int) -> None:
        for _ in range(thread, parts, len(works)):
            works[thread](parts)

    return _timed(lambda: _parallel(all_parts, len(works)))


def tile_work(numel: int, method: str) -> Work:
    """Return a function that quantizes 1/parts of `numel` bf16 weights, one tile again and again."""
    import numpy as np  # noqa: PLC0415 - `io` is measured without it

    from g4convert.quantization import Method, Scheme  # noqa: PLC0415 - the same
    from g4convert.quantization.tiles import CpuTiles  # noqa: PLC0415 - the same
    from g4convert.tensors import DType  # noqa: PLC0415 - the same

    scheme = Scheme(num_bits=4, group_size=GROUP, method=Method(method))
    normal = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    rows = (normal.view(np.uint32) >> 16).astype(np.uint16)
    packed = np.empty((ROWS, scheme.words(COLUMNS)), np.int32)
    scale = np.empty((ROWS, scheme.groups(COLUMNS)), np.uint16)
    tiles = CpuTiles()
    tiles.quantize(rows, DType.BF16, scheme, packed, scale)  # compiles
    owed = 0

    def work(parts: int) -> None:
        nonlocal owed
        owed += numel // parts
        while owed > 0:
            tiles.quantize(rows, DType.BF16, scheme, packed, scale)
            owed -= rows.size

    return work


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
    parser.add_argument("limit", choices=("io", "tiles", "both"))
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--bytes", type=int, default=0, help="what to write")
    parser.add_argument("--numel", type=int, default=0, help="weights to quantize")
    parser.add_argument("--method", default="minmax")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    works: list[Work] = [lambda _: None] * args.threads
    if args.limit != "io":
        works = [tile_work(args.numel, args.method) for _ in works]
    if args.limit == "tiles":
        seconds = tile_seconds(works)
    elif args.source and args.output:
        seconds = io_seconds(args.source, args.output, args.bytes, works)
    else:
        parser.error(f"{args.limit} needs a source and an output")
    sys.stdout.write(f"{seconds}\n")


if __name__ == "__main__":
    main()

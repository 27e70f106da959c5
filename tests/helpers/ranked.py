"""Ranks as `torchrun` starts them, without its processes: forks of one that has imported torch and the program."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from multiprocessing.context import ForkServerProcess

WORLD = 2
LOADED = (
    "torch.distributed",
    "g4convert.api.quantize",
    "g4convert.api.calibrate",
    "g4convert.cli.quantize",
    "g4convert.verification.weights.level",
    "g4convert.calibration.run",
)
"""Modules that are imported once, for all ranks of all tests."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Results of ranks that have ended.

    Args:
        statuses: exit statuses, by rank.
        err: all that they wrote to stderr.
    """

    statuses: tuple[int | None, ...]
    err: str


def ranked(code: str, directory: Path) -> Ranked:
    """Run Python code in two ranks.

    Args:
        code: joins the other rank, as the program's `main` does.
        directory: gets a file for each rank's output.
    """
    ranks = started(code, directory, range(WORLD))
    for process in ranks:
        process.join(240)
    return Ranked(
        tuple(process.exitcode for process in ranks), "".join(output(directory, rank) for rank in range(WORLD))
    )


def started(code: str, directory: Path, ranks: Iterable[int]) -> list[ForkServerProcess]:
    """Start some of two ranks; see `ranked`."""
    context = get_context("forkserver")
    context.set_forkserver_preload([*LOADED])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=begin, args=(code, rank, port, str(directory / f"rank-{rank}.txt"))) for rank in ranks
    ]
    for process in processes:
        process.start()
    return processes


def output(directory: Path, rank: int) -> str:
    """All that a rank wrote until now."""
    file = directory / f"rank-{rank}.txt"
    return file.read_text() if file.exists() else ""


def begin(code: str, rank: int, port: int, path: str) -> None:
    """Be a rank."""
    with Path(path).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}
    status = 1
    try:
        exec(code, {"__name__": "__main__"})  # noqa: S102 -- a test's own
        status = 0
    except SystemExit as left:
        status = int(left.code or 0)
    except BaseException:  # noqa: BLE001 -- the test reads it
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

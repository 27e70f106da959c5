"""Options that several commands take: threads, GPUs, the device, its memory and the dtype; how they are checked.

Values without heavy imports: the command line imports this module.
"""

import os
import re
from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from g4convert.errors import UsageError
from g4convert.suggestions import no_such

if TYPE_CHECKING:
    import torch

T = TypeVar("T", bound=StrEnum)

DeviceLike: TypeAlias = "str | int | torch.device"
"""A device as callers of the API give it: by name, by the number of a GPU, or as torch has it."""


class MemoryUse(StrEnum):
    """Way to hold a model in memory while it runs."""

    RESIDENT = "resident"
    STREAM = "stream"
    AUTO = "auto"


FLOAT_TYPES = ("float32", "bfloat16")
"""Dtypes in which a forward pass can run."""
MOST_GPUS: Final = 1 << 16
"""Largest tensor parallel size."""
MOST_WORKERS: Final = 1024
"""Most threads of a command."""


def usable_cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def device_name(device: DeviceLike) -> str:
    """Return the name of a device: `cuda:0` for GPU 0."""
    return f"cuda:{device}" if isinstance(device, int) else str(device)


def dtype_name(dtype: "str | torch.dtype") -> str:
    """Return the name of a dtype: `float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def check_device(name: str) -> str:
    """Check the name of a device, and return it.

    Raises:
        UsageError: not `cpu`, `cuda` or `cuda:N`.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: expected cpu, cuda or cuda:N")
    return name


def check_run(  # noqa: PLR0913 -- what the commands have in common
    *,
    tp: Iterable[int] = (),
    workers: int = 0,
    device: str | None = None,
    memory: str | None = None,
    dtype: str | None = None,
    dtypes: Collection[str] = FLOAT_TYPES,
) -> None:
    """Check the numbers and names that several commands take; the functions of the API begin with it.

    Args:
        tp: tensor parallel sizes.
        workers: number of threads; 0 is the default number.
        device: device of a model; None is the default.
        memory: way to hold a model; None is the default.
        dtype: dtype of a forward pass; None is the default.
        dtypes: known dtypes.

    Raises:
        UsageError: a number is out of range, or a name unknown; or one size is given in place of a list.
    """
    if isinstance(tp, int):
        raise UsageError(f"--tp {tp}: expected a list of sizes")
    numbers = [*(("--tp", size, 1, MOST_GPUS) for size in tp), ("--workers", workers, 0, MOST_WORKERS)]
    for option, number, least, most in numbers:
        if not least <= number <= most:
            raise UsageError(f"{option} {number}: expected {least} to {most:,}")
    if device is not None:
        check_device(device)
    parse_choice("--memory", memory, MemoryUse)
    if dtype is not None and dtype not in dtypes:
        raise no_such("--dtype", dtype, dtypes)


def parse_choice(option: str, name: str | None, known: type[T]) -> T | None:
    """Return the member of an enumeration with this name; None for None.

    Raises:
        UsageError: no member has this name.
    """
    if name is not None and name not in list(known):
        raise no_such(option, name, known)
    return None if name is None else known(name)

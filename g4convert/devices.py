"""Devices that a model runs on: the CPU, or one GPU.

A model is loaded to its device, tensor by tensor; what is given to it is moved there, and what it gives comes back
to the CPU where it is judged. On the CPU nothing is moved or copied.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch

from g4convert.errors import EnvironmentFault
from g4convert.request import checked_device

__all__ = [
    "CPU",
    "device_of",
    "free_memory",
    "is_roomy",
    "memory_faults",
    "moved",
    "place",
    "threads_for",
    "torch_device",
]

CPU = torch.device("cpu")

_ATTRIBUTE: Final = "g4_device"
_LESS: Final = "--memory stream holds one layer at a time"
_ROOM: Final = {"cpu": 0.6, "cuda": 0.8}
"""Share of the free memory that a resident model may take; activations and logits need the rest."""
_SMALL: Final = 100_000_000
"""Parameters below which a model runs on one thread."""


def torch_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: `cpu`, `cuda` (the first GPU) or `cuda:N`.

    Raises:
        UsageError: not such a name.
        EnvironmentFault: no such GPU.
    """
    if checked_device(name) == "cpu":
        return CPU
    number = int(name.partition(":")[2] or 0)
    count = torch.cuda.device_count()
    if count <= number:
        built = "" if torch.version.cuda else ", and this torch is built without CUDA"
        raise EnvironmentFault(
            f"--device {name}: {count} CUDA devices found{built}", hint="--device cpu computes the same, only slower"
        )
    return torch.device("cuda", number)


def place(model: torch.nn.Module, device: torch.device) -> None:
    """Say where a model's inputs go; of a streamed model no tensor tells."""
    setattr(model, _ATTRIBUTE, device)


def device_of(model: Any) -> torch.device:  # noqa: ANN401 -- a model, or any callable
    """Return the device of a model's inputs: where `load` put it, else that of its first parameter, else the CPU."""
    placed: torch.device | None = getattr(model, _ATTRIBUTE, None)
    if placed is not None:
        return placed
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return next((parameter.device for parameter in parameters if not parameter.is_meta), CPU)


def moved(value: Any, device: torch.device) -> Any:  # noqa: ANN401 -- arguments of any forward
    """Nested mappings, tuples and lists with every tensor on a device; anything else as it is."""
    match value:
        case torch.Tensor():
            return value.to(device)
        case Mapping():
            return {key: moved(item, device) for key, item in value.items()}
        case tuple() | list():
            return type(value)(moved(item, device) for item in value)
        case _:
            return value


def is_roomy(nbytes: int, device: torch.device = CPU) -> bool:
    """Return whether so many bytes fit well into the memory of a device that is free."""
    free = _free_memory() if device.type == "cpu" else iter(torch.cuda.mem_get_info(device)[:1])
    return nbytes <= _ROOM[device.type] * min(free)


def free_memory() -> int:
    """Bytes that are free: of the machine, or of what the container's limit leaves of it."""
    return min(_free_memory())


@contextmanager
def memory_faults() -> Iterator[None]:
    """Torch tells of a lack of memory with a RuntimeError.

    Raises:
        EnvironmentFault: out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault("out of memory on the device", hint=_LESS) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise EnvironmentFault("out of memory", hint=_LESS) from error


@contextmanager
def threads_for(model: torch.nn.Module) -> Iterator[None]:
    """One thread for a small model: waking a second one costs more than its share of such products is worth."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _free_memory() -> Iterator[int]:
    """Yield the free memory of the machine, and what the container's limit leaves of it."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration, ValueError):  # counts what the kernel holds of files as free, which it is
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    yield available
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        yield int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())

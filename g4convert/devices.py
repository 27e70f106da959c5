"""Devices that a model runs on: the CPU, or one GPU.

A model is loaded to its device tensor by tensor. Its inputs are moved to the device, and its outputs back to the CPU,
where they are judged. On the CPU nothing is moved or copied.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch

from g4convert.errors import EnvironmentFault
from g4convert.run_options import check_device

CPU = torch.device("cpu")

_ATTRIBUTE: Final = "g4_device"
_LESS_MEMORY: Final = "--memory stream holds one layer at a time"
_SHARE_OF_FREE: Final = {"cpu": 0.6, "cuda": 0.8}
"""Share of the free memory that a resident model may take; activations and logits need the rest."""
_FEW_PARAMETERS: Final = 100_000_000
"""Parameters below which a model runs on one thread."""


def torch_device(name: str) -> torch.device:
    """Return the device with a name.

    Args:
        name: `cpu`, `cuda` (the first GPU) or `cuda:N`.

    Raises:
        UsageError: another name.
        EnvironmentFault: the machine has no such GPU.
    """
    if check_device(name) == "cpu":
        return CPU
    number = int(name.partition(":")[2] or 0)
    count = torch.cuda.device_count()
    if count <= number:
        built = "" if torch.version.cuda else ", and this torch is built without CUDA"
        raise EnvironmentFault(
            f"--device {name}: {count} CUDA devices found{built}", hint="--device cpu computes the same, only slower"
        )
    return torch.device("cuda", number)


def device_of_rank(device: torch.device, rank: int, world: int) -> torch.device:
    """Return the device of one of several ranks on a host: they take its GPUs in turns."""
    if device.type != "cuda" or world == 1:
        return device
    return torch.device("cuda", rank % torch.cuda.device_count())


def record_device(model: torch.nn.Module, device: torch.device) -> None:
    """Record the device of a model's inputs on the model, as a streamed model has no tensor that shows it."""
    setattr(model, _ATTRIBUTE, device)


def device_of(model: Any) -> torch.device:  # noqa: ANN401 -- a model, or any callable
    """Return the device of a model's inputs: as recorded by `place`, else of its first parameter, else the CPU."""
    placed: torch.device | None = getattr(model, _ATTRIBUTE, None)
    if placed is not None:
        return placed
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return next((parameter.device for parameter in parameters if not parameter.is_meta), CPU)


def moved(value: Any, device: torch.device) -> Any:  # noqa: ANN401 -- arguments of any forward
    """Return nested mappings, tuples and lists with every tensor moved to a device; other values are unchanged."""
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
    """Return whether `nbytes` take at most the share `_ROOM` of a device's free memory."""
    free = _free_memory() if device.type == "cpu" else iter(torch.cuda.mem_get_info(device)[:1])
    return nbytes <= _SHARE_OF_FREE[device.type] * min(free)


def free_memory() -> int:
    """Return the free memory in bytes: of the machine, or within the container's limit if that is less."""
    return min(_free_memory())


@contextmanager
def memory_faults() -> Iterator[None]:
    """Turn torch's RuntimeErrors about lack of memory into an EnvironmentFault.

    Raises:
        EnvironmentFault: out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault("out of memory on the device", hint=_LESS_MEMORY) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise EnvironmentFault("out of memory", hint=_LESS_MEMORY) from error


@contextmanager
def threads_for(model: torch.nn.Module) -> Iterator[None]:
    """Run a small model on one thread: for small products, waking a second thread costs more than it saves."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) < _FEW_PARAMETERS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _free_memory() -> Iterator[int]:
    """Yield the free bytes of the machine, then the free bytes within the container's limit, if there is one."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration, ValueError):  # MemAvailable counts the kernel's file cache as free, rightly
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    yield available
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        yield int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())

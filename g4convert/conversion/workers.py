"""Assigns workers to devices: the cores of this machine, or its GPUs in turn."""

from collections.abc import Callable
from functools import partial

from g4convert.errors import EnvironmentFault, UsageError
from g4convert.planning.sizes import default_workers
from g4convert.quantization import Tiles


def workers_for(device: str, workers: int) -> list[Callable[[], Tiles]]:
    """Return a function for each worker that makes its tile arithmetic; call it in the worker's thread.

    Args:
        device: `cpu`; `cuda` for every GPU; `cuda:N` for one.
        workers: number of workers; 0 is one for each core, or two for each GPU (one reads while the other computes).

    Raises:
        UsageError: no such device.
        EnvironmentFault: this machine does not have the GPU.
    """
    if device == "cpu":
        from g4convert.quantization.tiles import CpuTiles

        return [CpuTiles] * (workers or default_workers())
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise UsageError(f"--device {device}: expected cpu, cuda or cuda:N")
    import torch

    from g4convert.quantization.torch_tiles import TorchTiles

    count = torch.cuda.device_count()
    if count <= int(number or 0):
        raise EnvironmentFault(f"--device {device}: {count} CUDA devices found", hint="--device cpu does the same")
    names = [device] if number else [f"cuda:{index}" for index in range(count)]
    return [partial(TorchTiles, names[i % len(names)]) for i in range(workers or 2 * len(names))]

"""Assigns workers to devices: the cores of this machine, or its GPUs in turn."""

from collections.abc import Callable
from functools import partial

from g4convert.planning.sizes import default_workers
from g4convert.quantization import Tiles
from g4convert.run_options import check_device


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
    check_device(device)
    import torch

    from g4convert.devices import torch_device
    from g4convert.quantization.torch_tiles import TorchTiles

    gpus = [torch_device(device)]
    if device == "cuda":
        gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [partial(TorchTiles, str(gpus[i % len(gpus)])) for i in range(workers or 2 * len(gpus))]

"""Tiles for one model: its packed products measured on the GPU it is on, and the table kept.

Nothing else measures while a model runs. `forward.triton.autotune` does the work; this module knows which products a
model has. It was never run on a GPU.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from g4convert.devices import device_of
from g4convert.errors import UsageError
from g4convert.forward.experts import projection
from g4convert.forward.models import Model
from g4convert.forward.modules import PackedWeight, W4A16Linear
from g4convert.forward.triton.candidates import layer_shapes, linear_shapes
from g4convert.forward.triton.packed import check_device
from g4convert.forward.triton.tiles import VARIABLE, Shape, load_table
from g4convert.progress import Progress
from g4convert.whole_files import check_writable


def products(model: Model) -> list[Shape]:
    """Return the products that the kernels for GPUs compute in a forward, for few and many tokens; each shape once.

    Args:
        model: from `load`; a streamed one has its shapes, too.
    """
    wide = model.config.dtype is torch.float32
    return [replace(shape, wide=wide) for shape in dict.fromkeys(_shapes(model))]


def check(device: torch.device, path: Path) -> None:
    """Refuse what can be refused before a model is loaded.

    Raises:
        UsageError: the CPU, or a file that lies in no directory or is there and not a table.
        EnvironmentFault: a GPU that is too old or of another maker, or no Triton; or no file can be written.
    """
    if device.type == "cpu":
        raise UsageError("--autotune measures kernels of a GPU, and the model is on the CPU", hint="--device cuda")
    check_device(device)
    check_writable(path)
    if path.exists():
        load_table(path, 0)


def tune(model: Model, path: Path, *, progress: Progress | None = None) -> int:
    """Measure the products of a model, write the table, and use it in this process.

    Args:
        model: on a GPU, with packed weights.
        path: path of the table; G4CONVERT_TILES names it to later runs. Tiles that it has are not measured again.
        progress: told of tiles that are done.

    Returns:
        How many products the model has.

    Raises:
        UsageError: see `check`; or nothing in the model is packed.
        EnvironmentFault: see `check`; or no tile runs.
    """
    device = device_of(model)
    check(device, path)
    shapes = products(model)
    if not shapes:
        raise UsageError("--autotune: the model has no packed weights that the kernels read", hint="leave it out")
    from g4convert.forward.triton.autotune import autotune  # noqa: PLC0415 -- needs Triton

    autotune(shapes, path, device=device.index or 0, progress=progress)
    os.environ[VARIABLE] = str(path)
    return len(shapes)


def _shapes(model: Model) -> Iterator[Shape]:
    top_k = getattr(model.config.get_text_config(), "top_k_experts", None)
    for module in model.modules():
        if isinstance(module, W4A16Linear) and module.packed.fits_kernels:
            yield from linear_shapes(module.out_features, module.in_features, _group(module.packed))
        elif hasattr(module, "gate_up_packed") and hasattr(module, "down_packed"):
            weights = projection(module, "gate_up"), projection(module, "down")
            packed = [weight for weight in weights if isinstance(weight, PackedWeight) and weight.fits_kernels]
            if len(packed) == 2 and top_k:
                experts, h, _ = packed[1].words.shape
                yield from layer_shapes(h, packed[1].k, experts, top_k, max(map(_group, packed)))


def _group(weight: PackedWeight) -> int:
    return weight.k // weight.scale.shape[-1]

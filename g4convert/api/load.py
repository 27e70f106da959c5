"""`g4convert.load`: a transformers model that runs from the packed words."""

import os
from typing import TYPE_CHECKING, NoReturn, cast, get_args

from g4convert.checkpoint import source
from g4convert.devices import memory_faults, torch_device
from g4convert.errors import UnsupportedError
from g4convert.forward.load import DTypeName, Memory
from g4convert.forward.load import load as load_model
from g4convert.request import DEFAULTS, SPEECH_DTYPE
from g4convert.run_options import DeviceLike, check_run, device_name, dtype_name

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load(
    model: str | os.PathLike[str],
    *,
    device: DeviceLike = DEFAULTS.device,
    memory: Memory = DEFAULTS.memory.value,
    dtype: "DTypeName | torch.dtype" = SPEECH_DTYPE,
    packed: bool = True,
) -> "PreTrainedModel":
    """Load a checkpoint into its transformers model, strictly; packed weights, experts included, stay packed words.

    Args:
        model: a directory, or `org/name[@revision]` on the Hugging Face hub; packed or plain, in any dialect.
        device: device that runs it: `cpu`, `cuda`, `cuda:N`, N alone, or a device of torch.
        memory: `resident` holds every tensor; `stream` holds one decoder layer or tower at a time, so that each
            token reads all weights again; `auto` takes what the free memory allows.
        dtype: dtype of the forward and of what is not packed: `bfloat16`, `float16` or `float32`, or torch's.
        packed: False dequantizes packed weights in `dtype`.

    Returns:
        The model in eval mode; `generate` and `forward` are transformers' own, `device` is where inputs go. It cannot
        be saved while weights are packed: `save_pretrained` raises UnsupportedError.

    Raises:
        UsageError: not such a device, dtype or memory.
        InputError: no such model, or no Gemma 4 checkpoint.
        GateError: tensors that are missing, unknown or misshapen; names all of them.
        EnvironmentFault: no such GPU, not enough memory, or the model is not in the cache and cannot be fetched.
    """
    where, precision = device_name(device), dtype_name(dtype)
    check_run(device=where, memory=memory, dtype=precision, dtypes=get_args(DTypeName))
    place = torch_device(where)
    directory = source.resolve(os.fspath(model)).path
    with memory_faults():
        loaded = load_model(directory, dtype=cast("DTypeName", precision), packed=packed, memory=memory, device=place)
    if any(name.endswith("packed") for name, _ in loaded.named_buffers()):
        loaded.__dict__["save_pretrained"] = _refuse_to_save
    return loaded


def _refuse_to_save(*_: object, **__: object) -> NoReturn:
    """Stand in for `save_pretrained`, which would write words without what says how they are packed."""
    raise UnsupportedError(
        "save_pretrained: a model that runs from packed words is not saved",
        hint="copy its directory, or load it with packed=False",
    )

"""`g4convert.load`: a transformers model that runs from the packed words."""

import os
from typing import TYPE_CHECKING, get_args

from g4convert.checkpoint import source
from g4convert.devices import memory_faults, torch_device
from g4convert.forward.load import DTypeName, Memory
from g4convert.forward.load import load as load_model
from g4convert.request import DEFAULTS, SPEECH_DTYPE
from g4convert.run_options import check_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    model: str | os.PathLike[str],
    *,
    device: str = DEFAULTS.device,
    memory: Memory = DEFAULTS.memory.value,
    dtype: DTypeName = SPEECH_DTYPE,
    packed: bool = True,
) -> "PreTrainedModel":
    """Load a checkpoint into its transformers model, strictly; packed weights, experts included, stay packed words.

    Args:
        model: a directory, or `org/name[@revision]` on the Hugging Face hub; packed or plain, in any dialect.
        device: device that runs it: `cpu`, `cuda` or `cuda:N`.
        memory: `resident` holds every tensor; `stream` holds one decoder layer or tower at a time, so that each
            token reads all weights again; `auto` takes what the free memory allows.
        dtype: dtype of the forward and of what is not packed: `bfloat16`, `float16` or `float32`.
        packed: False dequantizes packed weights in `dtype`.

    Returns:
        The model in eval mode; `generate` and `forward` are transformers' own, `device` is where inputs go.

    Raises:
        UsageError: not such a device, dtype or memory.
        InputError: no such model, or no Gemma 4 checkpoint.
        GateError: tensors that are missing, unknown or misshapen; names all of them.
        EnvironmentFault: no such GPU, not enough memory, or the model is not in the cache and cannot be fetched.
    """
    check_run(device=device, memory=memory, dtype=dtype, dtypes=get_args(DTypeName))
    place = torch_device(device)
    directory = source.resolve(os.fspath(model)).path
    with memory_faults():
        return load_model(directory, dtype=dtype, packed=packed, memory=memory, device=place)

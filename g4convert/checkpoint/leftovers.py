"""Recognises files beside a model that are no part of it: leftovers of training, adapters and other quantizers.

A loader may act on some of them (transformers injects the adapter of an `adapter_config.json` that it finds, vLLM reads
`hf_quant_config.json`), so none is carried into an output.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

ADAPTER_CONFIG: Final = "adapter_config.json"

_FOLDERS: Final = re.compile(
    r"checkpoint-\d+|global_step\d+|iter_\d+|step[-_]\d+|pytorch_model_fsdp_\d+|optimizer_\d+|runs|wandb|mlruns"
    r"|lightning_logs"
)
_FILES: Final = re.compile(
    r"adapter_config\.json|trainer_state\.json|trainer_log\.jsonl|training_args\.(bin|json)"
    r"|(all|train|eval|predict)_results\.json|zero_to_fp32\.py|latest|latest_checkpointed_iteration\.txt"
    r"|events\.out\.tfevents\..*|training_(eval_)?\w+\.png|llamaboard_config\.yaml|Modelfile"
    r"|(hf_quant|quantize|quant)_config\.json"
)
_READ: Final = re.compile(r"adapter_config\.json|(hf_quant|quantize|quant)_config\.json")
_STATE: Final = re.compile(
    r"(optimizer|scheduler|scaler)[\w.]*\.(bin|pt|pth)|rng_state\w*\.pth|random_states_\d+\.pkl|training_args\.bin"
    r"|(optim|extra_state)_world_size_\d+_rank_\d+\.pt"
)
_ADAPTERS: Final = re.compile(r"adapter_model\.(safetensors|bin)|(\d+_)?adapters\.(safetensors|npz)")
_MAX_NAMES: Final = 6  # names in one line


def is_leftover(name: str) -> bool:
    """Return whether a file is left over from training, an adapter or another quantizer.

    Args:
        name: its path relative to the checkpoint.
    """
    *folders, file = name.split("/")
    return any(map(_FOLDERS.fullmatch, folders)) or bool(_FILES.fullmatch(file)) or is_adapter(file)


def is_read_by_loaders(file: str) -> bool:
    """Return whether loaders of models act on a file that they find: settings of an adapter or a quantizer."""
    return _READ.fullmatch(file) is not None


def is_adapter(file: str) -> bool:
    """Return whether a file has the weights of an adapter."""
    return _ADAPTERS.fullmatch(file) is not None


def is_training_state(file: str) -> bool:
    """Return whether a pickle holds the state of an optimizer, a scheduler or a random generator, and no weights."""
    return _STATE.fullmatch(file) is not None


def summarize_names(names: Iterable[str]) -> Iterator[str]:
    """Yield names for one line: each folder as one name, and at most a few names."""
    top: dict[str, int] = {}
    for name in names:
        folder, slash, _ = name.partition("/")
        top[folder + slash] = top.get(folder + slash, 0) + 1
    lines = [f"{name} ({count} files)" if name.endswith("/") else name for name, count in top.items()]
    yield from lines[:_MAX_NAMES]
    if len(lines) > _MAX_NAMES:
        yield f"{len(lines) - _MAX_NAMES} more"

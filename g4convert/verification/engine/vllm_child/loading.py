"""Loader that looks for parameters that no tensor of the checkpoint reached.

vLLM does not look for them in quantized checkpoints. So each parameter and persistent buffer is filled with a bit
pattern before loading: a NaN or a number that no checkpoint has. Where the pattern is left after loading, no tensor
was loaded. Scales of the attention cache are left out: checkpoints need not have them.
"""

import copy
from typing import Any

import torch

from .state import State

FORMAT = "g4convert"
"""Name of the loader among vLLM's load formats."""
PATTERNS = {
    torch.bfloat16: (torch.int16, 0x7FA5),
    torch.float16: (torch.int16, 0x7DA5),
    torch.float32: (torch.int32, 0x7FA5A5A5),
    torch.int32: (torch.int32, 0x5A5A5A5B),
    torch.int64: (torch.int64, 0x5A5A5A5B5A5A5A5B),
}
"""Type of the bits and the pattern, by dtype."""
_FEW = 8
"""Number of int32 words below which matches with the pattern are taken for chance."""


def watch_loading(state: State) -> None:
    """Register a loader that extends vLLM's own: it fills in the pattern before loading and looks for it after."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    class WatchedLoader(DefaultModelLoader):  # type: ignore[misc] # Any
        def __init__(self, load_config: Any) -> None:
            config = copy.copy(load_config)
            config.load_format = "safetensors"
            super().__init__(config)

        def load_model(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
            state.phase = "build"
            model: torch.nn.Module = super().load_model(*args, **kwargs)
            return model

        def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
            state.phase = "load"
            tensors = watched_tensors(model)
            state.unwatched = poison(tensors)
            state.parameters = len(tensors) - state.unwatched
            super().load_weights(model, model_config)
            # collected again: some loaders replace a parameter's tensor
            state.unfilled = unfilled_tensors(watched_tensors(model))
            if state.unfilled:
                raise RuntimeError(f"no tensor of the checkpoint reached {len(state.unfilled)} parameters")
            state.phase = "ready"

    register_model_loader(FORMAT)(WatchedLoader)


def watched_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and persistent buffers that a checkpoint must fill, by vLLM's names."""
    tensors = {}
    for prefix, module in model.named_modules():
        if hasattr(module, "kv_cache"):
            continue
        buffers = {
            name: buffer
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set  # noqa: SLF001 -- torch has no other way to ask
        }
        for name, tensor in {**dict(module.named_parameters(recurse=False)), **buffers}.items():
            if tensor.numel():
                tensors[f"{prefix}.{name}".lstrip(".")] = tensor.data
    return tensors


def poison(tensors: dict[str, torch.Tensor]) -> int:
    """Fill tensors with the bit pattern of their dtype; return the number of those whose dtype has none."""
    unwatched = 0
    for tensor in tensors.values():
        if tensor.dtype in PATTERNS:
            bits, pattern = PATTERNS[tensor.dtype]
            tensor.view(bits).fill_(pattern)
        else:
            unwatched += 1
    return unwatched


def unfilled_tensors(tensors: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Return the tensors in which the pattern is left, with the share of their elements that have it."""
    unfilled = []
    for name, tensor in tensors.items():
        if tensor.dtype in PATTERNS:
            bits, pattern = PATTERNS[tensor.dtype]
            count = int((tensor.view(bits) == pattern).sum())
            chance = tensor.dtype is torch.int32 and count < min(_FEW, tensor.numel())
            if count and not chance:
                unfilled.append({"name": name, "share": count / tensor.numel()})
    return unfilled

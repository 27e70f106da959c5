"""Repairs of vLLM, where it does not run on this machine or with this config: each is noted and reported."""

import os
import sys
from typing import Any

import torch

from .state import State

_SUPPLIED = {"gemma4": {"default_output_length": 280}, "gemma4_unified": {"num_soft_tokens": 280}}
"""Keys of a vision config that vLLM's media budget needs, with the values of released configs."""


def mend_torchvision(state: State) -> None:
    """Declare torchvision's operators if its wheel was built for another torch and so cannot register them.

    Without them torchvision and vLLM's model class cannot be imported; the image processors use none of them.
    """
    try:
        import torchvision  # noqa: F401 -- tests only that it imports
    except ImportError:
        return
    except RuntimeError:
        sys.modules.pop("torchvision", None)
    else:
        return
    state.mended.append("operators of torchvision, which is built for another torch")
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda ask: ask()  # noqa: SLF001 -- a new process would lack them again


def mend_cpu(state: State) -> None:
    """Patch two functions that fail for pictures and sounds on a CPU.

    vLLM's media budget asks torch for the memory of an accelerator. oneDNN's products take contiguous rows only, and
    the rows of the towers are not contiguous.
    """
    from vllm import _custom_ops as operators

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    torch.accelerator.get_memory_info = lambda *_: (pages // 2, pages)
    product = operators.onednn_mm
    operators.onednn_mm = lambda handler, x, bias: product(handler, x.contiguous(), bias)
    state.mended.append("towers on a CPU: the size of memory, rows with gaps")


def supply(config: Any, state: State) -> Any:
    """Add the keys that vLLM needs and the config lacks, and note whether pictures attend to themselves."""
    vision, text = (getattr(config, f"{part}_config", None) for part in ("vision", "text"))
    state.sees_itself = getattr(text, "use_bidirectional_attention", None) == "vision"
    for key, value in _SUPPLIED.get(config.model_type, {}).items():
        if vision is not None and not hasattr(vision, key):
            setattr(vision, key, value)
            state.supplied.append(f"vision_config.{key}")
    return config

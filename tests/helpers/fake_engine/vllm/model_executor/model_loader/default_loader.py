"""Copies what it finds; only a tensor without a place is an error, as in vLLM."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


class DefaultModelLoader:
    def __init__(self, load_config: Any) -> None:
        self.load_config = load_config

    def load_model(self, directory: str, config: Any) -> torch.nn.Module:
        from vllm import FAULTS, names_in  # noqa: PLC0415 -- a circle

        assert self.load_config.load_format == "safetensors"
        if "no backend" in FAULTS:
            raise ValueError("No WNA16 MoE backend supports the deployment configuration.")
        if config.model_type == "gemma4" and config.vision_config is not None:
            config.vision_config.default_output_length  # noqa: B018 -- vLLM reads it, too
        model = build(names_in(os.environ["FAKE_VLLM_EXPECTS"]))
        self.load_weights(model, directory)
        return model

    def load_weights(self, model: torch.nn.Module, directory: Any) -> None:
        places = dict(model.named_parameters())
        for path in sorted(Path(directory).glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 -- not a mapping
                    if name not in places:
                        raise ValueError(f"There is no module or parameter named {name!r} in the model")
                    places[name].data.copy_(file.get_tensor(name))


def build(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Modules with these parameters, and a cache whose scale no checkpoint has."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        module = root
        *path, last = name.split(".")
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    attention = torch.nn.Module()
    attention.kv_cache = []
    attention.register_buffer("k_scale", torch.ones(1))
    root.add_module("attention", attention)
    root.register_buffer("rotary", torch.ones(4), persistent=False)
    return root

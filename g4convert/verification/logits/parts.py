"""Parts of a Gemma 4 model that run one after the other, by path."""

import torch

from g4convert.forward.models import Model, layers_path

__all__ = ["decoder_layers", "label", "roots", "towers"]


def label(name: str) -> str:
    """Return a module's path without the prefixes that every text module has."""
    return name.removeprefix("model.").removeprefix("language_model.")


def decoder_layers(model: Model) -> dict[str, Model]:
    """Return the decoder layers by path, in order."""
    path = layers_path(model)
    return {f"{path}.{number}": layer for number, layer in enumerate(model.get_decoder().layers)}


def roots(model: Model) -> dict[str, Model]:
    """Return the modules that run one after the other, by path: layers, embedders, embeddings, norm and head."""
    found: dict[str, Model] = {}
    for container, module in _containers(model).items():
        for name, child in module.named_children():
            path = f"{container}.{name}".lstrip(".")
            if isinstance(child, torch.nn.ModuleList):
                found |= {f"{path}.{number}": layer for number, layer in enumerate(child)}
            elif path not in _containers(model):
                found[path] = child
    return found


def towers(model: Model) -> dict[str, Model]:
    """Return the modules that contain layers but not the decoder, by path: the vision and audio towers."""
    decoder = model.get_decoder()
    return {
        name: module
        for name, module in _containers(model).items()
        if not any(inner is decoder for inner in module.modules())
    }


def _containers(model: Model) -> dict[str, Model]:
    """Return the modules that contain a list of layers, by path."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(isinstance(inner, torch.nn.ModuleList) and path for path, inner in module.named_modules())
    }

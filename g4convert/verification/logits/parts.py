"""Parts of a Gemma 4 model that run one after the other, by path, and the swap of one for another model's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from g4convert.forward.models import Model, layers_path
from g4convert.names import Name


def label(name: str) -> str:
    """Return a module's path without the prefixes that every text module has."""
    return name.removeprefix("model.").removeprefix("language_model.")


def decoder_layers(model: Model) -> dict[str, Model]:
    """Return the decoder layers by path, in order."""
    path = layers_path(model)
    return {f"{path}.{number}": layer for number, layer in enumerate(model.get_decoder().layers)}


def roots(model: Model) -> dict[str, Model]:
    """Return the modules that run one after the other, by path: layers, embedders, embeddings, norm and head."""
    parts: dict[str, Model] = {}
    for container, module in _containers(model).items():
        for name, child in module.named_children():
            path = f"{container}.{name}".lstrip(".")
            if isinstance(child, torch.nn.ModuleList):
                parts |= {f"{path}.{number}": layer for number, layer in enumerate(child)}
            elif path not in _containers(model):
                parts[path] = child
    return parts


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


class _OneExpertOf(torch.nn.Module):
    """Experts module in which one expert is replaced by that of another experts module."""

    def __init__(self, experts: Model, other: Model, expert: int) -> None:
        super().__init__()
        self.experts, self.other, self.expert = experts, other, expert

    def forward(self, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Run all experts with the arguments of `Gemma4TextExperts.forward`, the replaced expert in `other`."""
        is_replaced = chosen == self.expert
        other_choice = torch.where(is_replaced, (self.expert + 1) % self.experts.num_experts, chosen)
        total: torch.Tensor = self.experts(states, other_choice, weights * ~is_replaced) + self.other(
            states, chosen, weights * is_replaced
        )
        return total


@contextmanager
def swapping_module(candidate: Model, reference: Model, name: str) -> Iterator[None]:
    """Replace one module, or one expert, of the candidate by the reference's while inside."""
    path, child = Name(name).cut()
    if child.isdecimal() and path.last == "experts":
        replacement = _OneExpertOf(candidate.get_submodule(path), reference.get_submodule(path), int(child))
        path, child = path.cut()
    else:
        replacement = reference.get_submodule(name)
    parent = candidate.get_submodule(path)
    original = parent._modules[child]  # noqa: SLF001 -- setattr would refuse the children of a ModuleList
    parent._modules[child] = replacement  # noqa: SLF001 -- the same
    try:
        yield
    finally:
        parent._modules[child] = original  # noqa: SLF001 -- the same

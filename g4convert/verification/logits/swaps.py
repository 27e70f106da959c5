"""Swap of one module, or one expert, of a model for its namesake in another model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from g4convert.forward.models import Model
from g4convert.names import Name

__all__ = ["swapped"]


class _OneExpertOf(torch.nn.Module):
    """Experts module in which one expert is replaced by that of another experts module."""

    def __init__(self, experts: Model, other: Model, expert: int) -> None:
        super().__init__()
        self.experts, self.other, self.expert = experts, other, expert

    def forward(self, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Run all experts with the arguments of `Gemma4TextExperts.forward`, the replaced expert in `other`."""
        here = chosen == self.expert
        instead = torch.where(here, (self.expert + 1) % self.experts.num_experts, chosen)
        both: torch.Tensor = self.experts(states, instead, weights * ~here) + self.other(states, chosen, weights * here)
        return both


@contextmanager
def swapped(candidate: Model, reference: Model, name: str) -> Iterator[None]:
    """Replace one module, or one expert, of the candidate by the reference's while inside."""
    path, child = Name(name).cut()
    if child.isdecimal() and path.last == "experts":
        replacement = _OneExpertOf(candidate.get_submodule(path), reference.get_submodule(path), int(child))
        path, child = path.cut()
    else:
        replacement = reference.get_submodule(name)
    parent = candidate.get_submodule(path)
    mine = parent._modules[child]  # noqa: SLF001 -- setattr would refuse the children of a ModuleList
    parent._modules[child] = replacement  # noqa: SLF001 -- the same
    try:
        yield
    finally:
        parent._modules[child] = mine  # noqa: SLF001 -- the same

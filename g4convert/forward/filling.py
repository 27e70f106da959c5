"""Puts tensors into a model that was built on meta, and takes them out again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from g4convert.checkpoint.directory import Checkpoint
from g4convert.devices import CPU
from g4convert.forward.models import Model
from g4convert.forward.pieces import TORCH_DTYPES, Piece, Rows, TensorFiles

__all__ = ["Filling", "put"]


@dataclass(frozen=True, slots=True)
class Filling:
    """Source of a model's tensors.

    Args:
        checkpoint: the opened directory.
        pieces: by name in the model's `state_dict()`, all of them, a tied head apart.
        places: of each, what it looks like: a tensor on meta, whose dtype it is cast to.
        device: where it goes.
    """

    checkpoint: Checkpoint
    pieces: Mapping[str, Piece]
    places: Mapping[str, torch.Tensor]
    device: torch.device = CPU

    def fill(self, model: Model, names: Iterable[str]) -> None:
        """Read some tensors and put them in their places."""
        files = TensorFiles(self.checkpoint)
        for name in names:
            put(model, name, self.pieces[name].read(files, self.places[name].dtype).to(self.device))

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the dtype of its place and on the device."""
        return self.pieces[name].read(TensorFiles(self.checkpoint), self.places[name].dtype).to(self.device)

    def stored(self, name: str) -> torch.Tensor:
        """One tensor that is mapped or stored as one, as the file has it."""
        piece = self.pieces[name]
        return piece.read(TensorFiles(self.checkpoint), self._stored_dtype(name) or self.places[name].dtype)

    def empty(self, model: Model, names: Iterable[str]) -> None:
        """Take tensors out again."""
        for name in names:
            put(model, name, self.places[name])

    def is_copied(self, name: str) -> bool:
        """Return whether a tensor is stored as one and is cast or moved; otherwise it is the mapped file itself."""
        stored = self._stored_dtype(name)
        if isinstance(piece := self.pieces[name], Rows) and piece.axes:
            return True
        return stored is not None and (stored is not self.places[name].dtype or self.device.type != "cpu")

    def _stored_dtype(self, name: str) -> torch.dtype | None:
        piece = self.pieces[name]
        return TORCH_DTYPES.get(piece.dtype) if isinstance(piece, Rows) and len(piece.names) == 1 else None

    @property
    def nbytes(self) -> int:
        """Memory of the whole model, mapped tensors included: pages that are used over and over must stay."""
        return sum(place.nbytes for place in self.places.values())


def put(model: Model, name: str, tensor: torch.Tensor) -> None:
    """Set a parameter or buffer of a model."""
    module, _, leaf = name.rpartition(".")
    owner = model.get_submodule(module)
    is_parameter = leaf in dict(owner.named_parameters(recurse=False))
    setattr(owner, leaf, torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)

"""Fills a model on the meta device with tensors, and empties it again.

Compared models have most of their bytes in common: the embedding is half of a small model. So a model may be filled
beside another model, and shares its tensors if both files hold the same bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch

from g4convert.checkpoint.directory import Checkpoint
from g4convert.devices import CPU
from g4convert.forward.models import Model
from g4convert.forward.pieces import Piece, Rows, TensorFiles
from g4convert.names import Name
from g4convert.quantization.torch_tiles import TORCH_DTYPES

_ATTRIBUTE: Final = "g4_filling"


@dataclass(frozen=True, slots=True)
class Filling:
    """Source of a model's tensors.

    Args:
        checkpoint: the opened directory.
        pieces: source of every tensor of the model's `state_dict()`, by name; a tied head has none.
        places: tensors on meta by name: shape, and dtype to cast to.
        device: device of the result.
    """

    checkpoint: Checkpoint
    pieces: Mapping[str, Piece]
    places: Mapping[str, torch.Tensor]
    device: torch.device = CPU

    def fill(self, model: Model, names: Iterable[str], *, beside: Model | None = None) -> None:
        """Read some tensors and put them in their places.

        Args:
            model: model on the meta device.
            names: names of the tensors.
            beside: a filled model; tensors with the same bytes are shared with it, not read again.
        """
        files = TensorFiles(self.checkpoint)
        other = None if beside is None else filling_of(beside)
        for name in names:
            tensor = None
            if beside is not None and other is not None and self._is_same(name, other):
                tensor = _find_tensor(beside, name)
            if tensor is None or tensor.is_meta:
                tensor = self.pieces[name].read(files, self.places[name].dtype).to(self.device)
            put(model, name, tensor)
        setattr(model, _ATTRIBUTE, self)

    def _is_same(self, name: str, other: "Filling") -> bool:
        """Return whether another model's tensor has the same bytes, dtype, shape and device."""
        piece, other_piece = self.pieces[name], other.pieces.get(name)
        if (
            not isinstance(piece, Rows)
            or not isinstance(other_piece, Rows)
            or replace(piece, names=other_piece.names) != other_piece
        ):
            return False
        place, their_place = self.places[name], other.places[name]
        if place.shape != their_place.shape or place.dtype is not their_place.dtype or self.device != other.device:
            return False
        if self.checkpoint.path == other.checkpoint.path:
            return piece == other_piece
        own_rows, other_rows = (filling.stored_rows(name) for filling in (self, other))
        return all(map(_same_bytes, own_rows, other_rows))

    def stored_rows(self, name: str) -> list[torch.Tensor]:
        """Return the stored tensors of a plain tensor, mapped; empty for a packed one."""
        piece, files = self.pieces[name], TensorFiles(self.checkpoint)
        return [files[part] for part in piece.names] if isinstance(piece, Rows) else []

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, cast to the model's dtype, on the device."""
        return self.pieces[name].read(TensorFiles(self.checkpoint), self.places[name].dtype).to(self.device)

    def stored(self, name: str) -> torch.Tensor:
        """Read one tensor in its stored dtype; it stays mapped if it is stored as one."""
        piece = self.pieces[name]
        return piece.read(TensorFiles(self.checkpoint), self._stored_dtype(name) or self.places[name].dtype)

    def empty(self, model: Model, names: Iterable[str]) -> None:
        """Replace tensors by their places on meta."""
        for name in names:
            put(model, name, self.places[name])

    def is_copied(self, name: str) -> bool:
        """Return whether a tensor stored as one is permuted, cast or moved on reading; otherwise it stays mapped."""
        stored = self._stored_dtype(name)
        if isinstance(piece := self.pieces[name], Rows) and piece.axes:
            return True
        return stored is not None and (stored is not self.places[name].dtype or self.device.type != "cpu")

    def _stored_dtype(self, name: str) -> torch.dtype | None:
        piece = self.pieces[name]
        return TORCH_DTYPES.get(piece.dtype) if isinstance(piece, Rows) and len(piece.names) == 1 else None

    @property
    def nbytes(self) -> int:
        """Bytes of the whole model, mapped tensors included: pages in constant use must stay in memory."""
        return sum(place.nbytes for place in self.places.values())


def filling_of(model: Model) -> Filling | None:
    """Return the source of a model's tensors; None if no `Filling` filled it."""
    filling: Filling | None = getattr(model, _ATTRIBUTE, None)
    return filling


def _find_tensor(model: Model, name: str) -> torch.Tensor | None:
    """Return a parameter or buffer of a model; None if it is missing."""
    module, leaf = Name(name).cut()
    tensor: torch.Tensor | None = getattr(model.get_submodule(module), leaf, None)
    return None if tensor is None else tensor.detach()


def put(model: Model, name: str, tensor: torch.Tensor) -> None:
    """Set a parameter or buffer of a model."""
    module, leaf = Name(name).cut()
    owner = model.get_submodule(module)
    is_parameter = leaf in dict(owner.named_parameters(recurse=False))
    setattr(owner, leaf, torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


def _same_bytes(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Compare two tensors bit for bit, NaNs included; a view as bytes needs a dimension."""
    return torch.equal(tensor.flatten().view(torch.uint8), other.flatten().view(torch.uint8))

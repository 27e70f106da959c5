"""Sources of each tensor of a transformers model: stored tensors, and how to combine them.

    Rows      stored tensors, concatenated by rows: a plain weight, an expert's share of a 3-D parameter, packed words
    Dense     packed weights, dequantized and concatenated by rows
    Constant  a scalar that no file holds

Pieces hold the checkpoint's names; `resolving` finds them. Stored experts are single or fused, plain or packed, and
become the model's two 3-D tensors (or buffers).
`Dense` unpacks with compressed-tensors; the packed path (`modules`) has its own code, so each checks the other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.stored import PackedModule, StoredScheme
from g4convert.errors import EnvironmentFault, InputError
from g4convert.forward.mapped import tell_faults
from g4convert.tensors import DType

_WORDS, _SCALE, _SHAPE, _ZERO = "weight_packed", "weight_scale", "weight_shape", "weight_zero_point"


class TensorFiles:
    """Reader of a checkpoint's tensors through the safetensors library; files are mapped, not copied.

    A tensor keeps its file mapped as long as it lives, even after its reader is gone. So each part that is loaded and
    freed uses its own reader: its pages are unmapped with it.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        tell_faults(checkpoint.path)
        self._checkpoint = checkpoint
        self._files: dict[str, Any] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read a stored tensor.

        Raises:
            InputError: the file is not the one whose header was read when the checkpoint was opened.
        """
        file = self._checkpoint.tensors[name].file
        try:
            if file not in self._files:
                self._files[file] = safe_open(self._checkpoint.path / file, framework="pt")
            tensor: torch.Tensor = self._files[file].get_tensor(name)
        except SafetensorError as error:
            raise InputError(
                f"{file}: was changed while it was read: {error}", hint="start again when nothing writes it"
            ) from error
        return tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Stored tensors, concatenated by rows and cast on reading.

    Args:
        names: names of the stored tensors, in order.
        shape: shape of the model's tensor.
        dtype: stored dtype.
        stored: shape before the permutation `axes`; empty if the order of axes is the model's.
        axes: permutation of the stored axes; empty if none.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: DType
    stored: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()

    def read(self, files: TensorFiles, dtype: torch.dtype) -> torch.Tensor:
        """Read the tensor; a single stored tensor that needs no cast stays mapped."""
        parts = [files[name] for name in self.names]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.axes:
            whole = whole.view(self.stored).permute(self.axes).contiguous()
        return whole.view(self.shape).to(dtype)

    def part(self, files: TensorFiles, number: int, dtype: torch.dtype) -> torch.Tensor:
        """Read entry `number` of the first axis, such as one expert's weight; others only if they must be joined."""
        per_tensor, remainder = divmod(len(self.names), self.shape[0])
        if per_tensor and not remainder:
            mine = self.names[number * per_tensor : (number + 1) * per_tensor]
            return torch.cat([files[name] for name in mine]).view(self.shape[1:]).to(dtype)
        if len(self.names) > 1:
            return self.read(files, dtype)[number]
        whole = files[self.names[0]]
        whole = whole.view(self.stored).permute(self.axes) if self.axes else whole.view(self.shape)
        return whole[number].to(dtype)


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """Packed weights of one scheme that form one tensor of the model.

    Args:
        modules: stored modules, in order: one Linear, single experts, or all experts fused.
        scheme: scheme of every module.
        shape: shape of the dense tensor: [n, k], or [e, n, k].
    """

    modules: tuple[PackedModule, ...]
    scheme: StoredScheme
    shape: tuple[int, ...]

    @property
    def num_bits(self) -> int:
        """2 to 8."""
        return self.scheme.num_bits or 4

    @property
    def groups(self) -> int:
        """Number of scales per row."""
        return self.modules[0].parts[_SCALE].shape[-1]

    @property
    def parts(self) -> Iterator[tuple[str, Rows]]:
        """Yield `packed`, `scale` and, if stored, `zero_point`, each with its rows; experts are stacked to [e, ...]."""
        for part in (_WORDS, _SCALE, _ZERO):
            infos = [module.parts[part] for module in self.modules if part in module.parts]
            if infos:
                lead = self.shape[:-2]
                rows = sum(prod(info.shape[:-1]) for info in infos) // prod(lead)
                shape = (*lead, rows, infos[0].shape[-1])
                yield part.removeprefix("weight_"), Rows(tuple(i.name for i in infos), shape, infos[0].dtype)


@dataclass(frozen=True, slots=True)
class Dense:
    """Packed weights that are dequantized on reading."""

    group: PackedGroup

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self.group.shape

    def read(self, files: TensorFiles, dtype: torch.dtype) -> torch.Tensor:
        """Read `scale * (code - zero_point)`, multiplied in `dtype`."""
        whole = torch.empty(self.shape, dtype=dtype)
        rows = whole.view(-1, self.shape[-1])
        begin = 0
        for module in self.group.modules:
            tensors = {part: files[info.name] for part, info in module.parts.items()}
            for n, one in _split_weights(tensors):
                _dequantize(one, self.group.num_bits, rows[begin : begin + n])
                begin += n
        return whole


@dataclass(frozen=True, slots=True)
class Constant:
    """A scalar that no file holds."""

    value: float
    dtype: DType

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a scalar."""
        return ()

    def read(self, _: TensorFiles, dtype: torch.dtype) -> torch.Tensor:
        """Return the value as a tensor."""
        return torch.tensor(self.value, dtype=dtype)


Piece = Rows | Dense | Constant
"""Source of one tensor of the model."""


def _split_weights(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[int, Mapping[str, torch.Tensor]]]:
    """Yield row count and tensors of each weight; a fused expert tensor is split into single experts."""
    words = tensors[_WORDS]
    if words.ndim == 2:
        yield words.shape[0], tensors
        return
    for number in range(words.shape[0]):
        yield words.shape[1], {part: tensor[number] for part, tensor in tensors.items() if part != _SHAPE}


def _dequantize(tensors: Mapping[str, torch.Tensor], num_bits: int, out: torch.Tensor) -> None:
    """Dequantize one packed weight into `out` [n, k]."""
    from compressed_tensors.compressors.pack_quantized.helpers import (  # noqa: PLC0415 -- 3 s; packed models need none
        unpack_from_int32,
    )

    check_words(num_bits)
    n, k = out.shape
    scale = tensors[_SCALE].to(out.dtype)
    groups = scale.shape[1]
    values = unpack_from_int32(tensors[_WORDS], num_bits, torch.Size((n, k))).to(out.dtype).view(n, groups, -1)
    if _ZERO in tensors:
        zeros = unpack_from_int32(tensors[_ZERO], num_bits, torch.Size((n, groups)), packed_dim=0)
        values = values - zeros.to(out.dtype).unsqueeze(-1)
    torch.mul(values, scale.unsqueeze(-1), out=out.view(n, groups, -1))


@cache
def check_words(num_bits: int) -> None:
    """Refuse a compressed-tensors that reads words of 3, 5, 6 or 7 bits otherwise than newer releases and engines do.

    Raises:
        EnvironmentFault: a release before 0.18.
    """
    import compressed_tensors  # noqa: PLC0415 -- 3 s
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32  # noqa: PLC0415 -- the same

    if pack_to_int32(torch.zeros(1, 32, dtype=torch.int8), num_bits).shape[-1] != num_bits:
        raise EnvironmentFault(
            f"compressed-tensors {compressed_tensors.__version__} reads {num_bits}-bit words in another way than vLLM",
            hint="update it to 0.18 or newer",
        )

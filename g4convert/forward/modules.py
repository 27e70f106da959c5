"""Linears that stay packed: codes and scales as compressed-tensors stores them, dequantized while they multiply.

    weight_packed      int32 [n, ceil(k * b / 32)]: b bits a code; code i of a row in bits b*i..b*i+b-1, low bits first,
                       stored plus 2^(b-1)
    weight_scale       [n, groups], in the dtype it is stored in
    weight_zero_point  int32 [ceil(n * b / 32), groups], packed along n; only of asymmetric schemes

A weight is `scale * (code - zero_point)`, multiplied in the dtype of the activations: one rounding in bf16, none
in float32 as long as scales are bf16 or fp16. `packed_linear` is the reference for any device: it unpacks rows in
chunks of 4 MiB and lets torch multiply, so at most one chunk of the weight is dense. `LINEARS` has the fused kernel
for GPUs.

Letters: n out_features, k in_features, b num_bits.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.nn import functional

from g4convert.array_types import F32
from g4convert.errors import UnsupportedError
from g4convert.forward.triton.packed import Packed, check_device_and_dtype, fits_triton
from g4convert.forward.words import dequantize, multiply

_CHUNK = 4 << 20
"""Bytes of dense weight made at a time."""

_FEW = 4
"""Most tokens for which a weight is multiplied row by row, without making it dense."""

_NO_ZEROS = np.zeros((0, 0), np.int8)

_WORD = 0xFFFFFFFF
"""Bits of a word."""

_TILE = 1 << 18
"""Weights dequantized at a time: intermediate values stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A packed weight [n, k], or a stack of them, [e, n, k].

    Args:
        words: int32 [..., n, k * b / 32].
        scale: [..., n, groups].
        zero_point: int32 [..., n * b / 32, groups], or None.
        k: in_features.
        num_bits: 2 to 8.
    """

    words: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    k: int
    num_bits: int

    @property
    def fits_kernels(self) -> bool:
        """True if the kernels for GPUs read it."""
        return fits_triton(self.words, self.scale, self.zero_point, k=self.k, num_bits=self.num_bits)

    def __getitem__(self, index: int | torch.Tensor) -> "PackedWeight":
        """Return one of the stacked weights, or several by index."""
        zero_point = None if self.zero_point is None else self.zero_point[index]
        return PackedWeight(self.words[index], self.scale[index], zero_point, self.k, self.num_bits)

    def dense(self, dtype: torch.dtype, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Dequantize rows [begin, end) of a weight [n, k] in a dtype, a tile at a time.

        Products are made in float32, where they are exact, and rounded once: the same bits as multiplying in
        `dtype`, but faster on CPUs without bf16 arithmetic.
        """
        n = self.scale.shape[0]
        end = n if end is None else min(end, n)
        zeros = None
        if self.zero_point is not None:
            zeros = unpack(self.zero_point.T.contiguous(), n, self.num_bits).T
        scale = self.scale[begin:end].to(dtype).float()
        out = torch.empty(end - begin, self.k, dtype=dtype, device=self.words.device)
        products = _compiled if self.is_compiled else _products
        step = max(1, _TILE // self.k)
        for first in range(begin, end, step):
            rows = slice(first, min(first + step, end))
            target = slice(first - begin, rows.stop - begin)
            offsets = None if zeros is None else zeros[rows]
            products(self.words[rows], scale[target], offsets, self.num_bits, out[target])
        return out

    @property
    def is_compiled(self) -> bool:
        """True if the compiled loop can read the weight: 4 bits on the CPU, whole bytes in each group."""
        whole = self.words.shape[-1] * 8 == self.k and self.k % (2 * self.scale.shape[-1]) == 0
        return self.words.device.type == "cpu" and self.num_bits == 4 and whole


def _products(
    words: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None, num_bits: int, out: torch.Tensor
) -> None:
    """Fill `out` [n, k] from words, float32 scales [n, groups] and int8 zero points [n, groups], on any device."""
    n, k = out.shape
    values = unpack(words, k, num_bits).float().view(*scale.shape, -1)
    if zeros is not None:
        values -= zeros.float().unsqueeze(-1)
    values *= scale.unsqueeze(-1)
    out[:] = values.view(n, k)


def _compiled(
    words: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None, _num_bits: int, out: torch.Tensor
) -> None:
    """Dequantize as `_products` does, 4 bits on the CPU only."""
    values = out if out.dtype is torch.float32 else torch.empty(out.shape)
    none = np.zeros((0, 0), np.int8)
    dequantize(
        words.contiguous().numpy().view(np.uint8),
        scale.contiguous().numpy(),
        none if zeros is None else zeros.contiguous().numpy(),
        values.numpy(),
    )
    if values is not out:
        out[:] = values


def unpack(words: torch.Tensor, k: int, num_bits: int) -> torch.Tensor:
    """Unpack the codes of packed words.

    Args:
        words: int32 [n, ceil(k * b / 32)].
        k: codes of a row.
        num_bits: 2 to 8; codes of other than 2, 4 and 8 bits cross from one word into the next.

    Returns:
        int8 [n, k], signed.

    Raises:
        UnsupportedError: a machine with the high byte first.
    """
    if sys.byteorder != "little":
        raise UnsupportedError("a machine that stores the high byte first: packed weights cannot be read here")
    if num_bits not in {4, 8}:
        bit = torch.arange(k, device=words.device) * num_bits
        low = words.long() & _WORD
        pairs = low | functional.pad(low[:, 1:], (0, 1)) << 32
        codes = pairs[:, bit // 32] >> bit % 32 & (1 << num_bits) - 1
        return (codes - (1 << (num_bits - 1))).to(torch.int8)
    stored = words.flatten().view(torch.uint8).view(len(words), -1)  # a last dimension of 1 may have any stride
    if num_bits == 8:
        return (stored ^ 0x80).view(torch.int8)[:, :k]
    nibbles = torch.stack((stored & 0xF, stored >> 4), dim=-1).flatten(-2)
    return nibbles.view(torch.int8)[:, :k] - 8


class W4A16Linear(torch.nn.Module):
    """A Linear on packed words; takes the place of a `torch.nn.Linear`, with its bias.

    Args:
        linear: the Linear to replace, on any device; its weight is not kept.
        num_bits: 2 to 8.
        groups: scales of a row.
        scale_dtype: as stored.
        symmetric: whether there are no zero points.
    """

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero_point: torch.Tensor | None

    def __init__(
        self,
        linear: torch.nn.Linear,
        *,
        num_bits: int,
        groups: int,
        scale_dtype: torch.dtype,
        symmetric: bool,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.num_bits = linear.in_features, linear.out_features, num_bits
        n, device = self.out_features, linear.weight.device
        words = -(-self.in_features * num_bits // 32)
        self.register_buffer("weight_packed", torch.empty(n, words, dtype=torch.int32, device=device))
        self.register_buffer("weight_scale", torch.empty(n, groups, dtype=scale_dtype, device=device))
        zeros = None if symmetric else torch.empty(-(-n * num_bits // 32), groups, dtype=torch.int32, device=device)
        self.register_buffer("weight_zero_point", zeros)
        self.bias = linear.bias

    @property
    def packed(self) -> PackedWeight:
        """The weight."""
        return PackedWeight(
            self.weight_packed, self.weight_scale, self.weight_zero_point, self.in_features, self.num_bits
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Multiply [..., k] by the weight and return [..., n], in the dtype of the input."""
        linear = LINEARS.get(hidden_states.device.type, packed_linear)
        return linear(hidden_states, self.packed, self.bias)

    def extra_repr(self) -> str:
        """Return the text that `print(model)` shows."""
        groups = self.weight_scale.shape[1]
        return f"{self.in_features}, {self.out_features}, num_bits={self.num_bits}, groups={groups}"


def packed_linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply by a packed weight, a chunk of its rows at a time.

    Args:
        x: [..., k].
        weight: [n, k].
        bias: [n], or None.

    Returns:
        [..., n], in the dtype of `x`.
    """
    n = weight.words.shape[0]
    if x.numel() <= _FEW * weight.k and weight.is_compiled and x.dtype in {torch.float32, torch.bfloat16}:
        few = _multiply_few(x.reshape(-1, weight.k), weight).view(*x.shape[:-1], n)
        return few if bias is None else few + bias.to(few.dtype)
    step = max(1, _CHUNK // (weight.k * x.dtype.itemsize))
    parts = [functional.linear(x, weight.dense(x.dtype, begin, begin + step)) for begin in range(0, n, step)]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return out if bias is None else out + bias.to(out.dtype)


def _multiply_few(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """Multiply a few tokens [t, k] to [t, n]; torch's number of threads share the weight's rows."""
    n = weight.words.shape[0]
    stored = weight.words.contiguous().numpy().view(np.uint8)
    scale = weight.scale.to(x.dtype).float().contiguous().numpy()
    zeros = _NO_ZEROS
    if weight.zero_point is not None:
        zeros = unpack(weight.zero_point.T.contiguous(), n, weight.num_bits).T.contiguous().numpy()
    inputs, narrow = x.float().contiguous().numpy(), x.dtype is torch.bfloat16

    def part(rows: slice) -> F32:
        out = np.empty((len(inputs), min(rows.stop, n) - rows.start), np.float32)
        multiply(stored[rows], scale[rows], zeros[rows], inputs, narrow, out)
        return out

    threads = torch.get_num_threads()
    step = -(-n // threads)
    places = [slice(begin, begin + step) for begin in range(0, n, step)]
    parts = [part(places[0])] if threads == 1 else list(_pool(threads).map(part, places))
    return torch.from_numpy(np.concatenate(parts, axis=1)).to(x.dtype)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="packed")


def fused_linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `packed_linear` with the kernel for GPUs; fall back to `packed_linear` for weights that it does not read.

    Raises:
        UnsupportedError: a dtype of `x` that the kernel does not take.
        EnvironmentFault: a GPU that is too old, or no Triton.
    """
    if not weight.fits_kernels:
        return packed_linear(x, weight, bias)
    check_device_and_dtype(x.device, x.dtype)
    from g4convert.forward.triton import fused  # noqa: PLC0415 - needs Triton

    return fused.linear(x, Packed(weight.words, weight.scale), bias)


LINEARS: dict[str, Callable[[torch.Tensor, PackedWeight, torch.Tensor | None], torch.Tensor]] = {
    "cpu": packed_linear,
    "cuda": fused_linear,
}
"""Functions that multiply, by device type; `packed_linear` runs on any other device."""

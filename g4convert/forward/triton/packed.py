"""Weights and devices that the kernels take. Needs torch, but neither Triton nor a GPU.

Letters: e experts, n out_features, k in_features.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from re import findall

import torch

from g4convert.errors import EnvironmentFault, UnsupportedError

GROUPS = (32, 64, 128)
"""Weights that share a scale; or all of a row."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Dtypes of activations."""

OLDEST = 80
"""The first compute capability with bf16 and asynchronous copies, times ten."""

OLDEST_TRITON = [3, 6]
"""The first release that the kernels are compiled with in the tests."""

_REMEDY = "--device cpu runs the same model"


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as compressed-tensors stores it, or those of all experts.

    Args:
        words: int32 [n, k/8] or [e, n, k/8]: code i of a word in bits 4i..4i+3, plus 8.
        scale: [n, groups] or [e, n, groups], of any of `DTYPES`.
    """

    words: torch.Tensor
    scale: torch.Tensor

    @property
    def n(self) -> int:
        """Features of the result."""
        return self.words.shape[-2]

    @property
    def k(self) -> int:
        """in_features."""
        return self.words.shape[-1] * 8

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return self.scale.shape[-1]

    @property
    def halfwords(self) -> torch.Tensor:
        """int16 [..., n, k/4], the same memory."""
        return self.words.view(torch.int16)

    def by_groups(self) -> torch.Tensor:
        """Return `scale`, with memory in the order [..., groups, n] from now on: done once, in place."""
        if self.groups > 1 and self.scale.stride()[-2:] != (1, self.n):
            self.scale.data = self.scale.transpose(-1, -2).contiguous().transpose(-1, -2)
        return self.scale


def fits_triton(
    words: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, *, k: int, num_bits: int
) -> bool:
    """Return whether the kernels read a weight: 4 bits, symmetric, groups of 32, 64 or 128 or whole rows.

    Args:
        words: int32 [..., n, k * b / 32].
        scale: [..., n, groups].
        zero_point: or None.
        k: in_features.
        num_bits: bits of a code.
    """
    n, groups = scale.shape[-2:]
    fits = k % 8 == 0 and words.shape[-1] * 8 == k and n >= 16 and n % 4 == 0
    grouped = groups == 1 or (k % groups == 0 and k // groups in GROUPS)
    return num_bits == 4 and zero_point is None and fits and grouped and scale.dtype in DTYPES


def check_device_and_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse where the kernels cannot run.

    Raises:
        UnsupportedError: a dtype that is none of `DTYPES`.
        EnvironmentFault: not an NVIDIA GPU, one that is too old, or no Triton, or too old a one.
    """
    if dtype not in DTYPES:
        raise UnsupportedError(
            f"activations of {dtype}: the packed kernels take bfloat16, float16 and float32", hint=_REMEDY
        )
    check_device(device)


@cache
def check_device(device: torch.device) -> None:
    """Refuse a device on which the kernels cannot run; asked once.

    Raises:
        EnvironmentFault: not an NVIDIA GPU, one that is too old, or no Triton, or too old a one.
    """
    if find_spec("triton") is None:
        raise EnvironmentFault("the packed kernels need Triton, which is not installed", hint=f"install it; {_REMEDY}")
    if device.type != "cuda":
        return  # `fused` refuses it, but in Triton's interpreter
    if torch.version.cuda is None:
        raise EnvironmentFault(f"{device}: the packed kernels need an NVIDIA GPU", hint=_REMEDY)
    triton = import_module("triton").__version__
    if [int(part) for part in findall(r"\d+", triton)[:2]] < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        raise EnvironmentFault(
            f"Triton {triton}: the packed kernels need {oldest}", hint=f"a newer torch brings one; {_REMEDY}"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if major * 10 + minor < OLDEST:
        raise EnvironmentFault(
            f"{torch.cuda.get_device_name(device)}: compute capability {major}.{minor}, the packed kernels need "
            f"{OLDEST // 10}.{OLDEST % 10}",
            hint=_REMEDY,
        )

"""A pretended GPU for whole programs: tensors that say they are on `cuda:0`, and the CPU computes.

What a machine without a GPU cannot show is speed and CUDA's rounding. What it can show is placement: here as there, an
operation on tensors of two devices is an error, and so is reading values of one that was not brought to the CPU. The
numbers are those of the CPU, bit for bit, so whole verifications can be compared.

It works below torch's functions, in the dispatcher. So models with hooks, views and attention run, and `torch.cuda`
reports one GPU, which `card` cannot do. It does not notice an operation that is left out of its context: for single
functions there is `card`.

    Elsewhere    a tensor without memory of its own, around one of the CPU
    elsewhere    inside, `.to("cuda")`, `torch.zeros(device="cuda")` and the like make these
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

from g4convert.forward.experts import EXPERTS
from g4convert.forward.modules import LINEARS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

Operation: TypeAlias = Any
Value: TypeAlias = Any
"""Whatever torch calls, with whatever."""

CUDA = torch.device("cuda", 0)

_aten = torch.ops.aten
_EITHER = {_aten.copy_.default, _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
"""CUDA takes tensors of the CPU in these, too: the source of a copy, indices."""
_ATTENTION = torch.nn.functional.scaled_dot_product_attention
_INDEXING = ("__getitem__", "__setitem__", "__invert__", "contiguous")
_READING = ("__bool__", "__int__", "__float__", "__index__", "__format__", "__repr__", "item", "tolist")
_ASKING = {_ATTENTION, *(getattr(torch.Tensor, name) for name in (*_INDEXING, *_READING))}


class Elsewhere(torch.Tensor):
    """A tensor on the GPU that is not there."""

    data_here: torch.Tensor

    @staticmethod
    def __new__(cls: type[Self], data: torch.Tensor) -> Self:
        """Around a tensor of the CPU, whose memory it shares."""
        made = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001 - the documented way
            cls, data.shape, strides=data.stride(), dtype=data.dtype, device=CUDA
        )
        made.data_here = data
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Operation, types: Value, args: tuple[Value, ...] = (), kwargs: dict[str, Value] | None = None
    ) -> Value:
        """Compute on the CPU; refuse what CUDA refuses."""
        kwargs = dict(kwargs or {})
        to_cpu = kwargs.get("device") is not None and not _is_there(kwargs["device"])
        if to_cpu or (func is _aten.copy_.default and not isinstance(args[0], Elsewhere)):
            return func(*tree_map_only(Elsewhere, _here, args), **kwargs)
        for one in tree_flatten((args, kwargs))[0]:
            if isinstance(one, torch.Tensor) and not isinstance(one, Elsewhere) and one.ndim and func not in _EITHER:
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu")
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        if func is _aten.histc.default:  # the CPU has none for integers
            args = (args[0].float(), *args[1:])
        here = func(*tree_map_only(Elsewhere, _here, args), **tree_map_only(Elsewhere, _here, kwargs))
        out = tree_map_only(torch.Tensor, Elsewhere, here)
        return return_and_correct_aliasing(func, args, kwargs, out)


def _here(tensor: Elsewhere) -> torch.Tensor:
    return tensor.data_here


def _is_there(device: str | torch.device | None) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Made(TorchDispatchMode):
    """Tensors that are made on, or brought to, the GPU."""

    def __torch_dispatch__(
        self, func: Operation, types: Value, args: tuple[Value, ...] = (), kwargs: dict[str, Value] | None = None
    ) -> Value:
        kwargs = dict(kwargs or {})
        given = tree_flatten((args, kwargs))[0]
        if _is_there(kwargs.get("device")) and not any(isinstance(one, Elsewhere) for one in given):
            return Elsewhere(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


class _Asking(TorchFunctionMode):
    """Functions that ask CUDA for something before they compute."""

    def __torch_function__(
        self, func: Operation, types: Value, args: tuple[Value, ...] = (), kwargs: dict[str, Value] | None = None
    ) -> Value:
        kwargs = kwargs or {}
        if func is torch.tensor and _is_there(kwargs.get("device")):
            return Elsewhere(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        if func not in _ASKING or not isinstance(args[0], Elsewhere):
            return func(*args, **kwargs)
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
        assert func is not _ATTENTION or all(isinstance(one, Elsewhere) for one in given)
        args, kwargs = tree_map_only(Elsewhere, _here, args), tree_map_only(Elsewhere, _here, kwargs)
        return tree_map_only(torch.Tensor, Elsewhere, func(*args, **kwargs))


@contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """A machine with one GPU, while inside."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _=None: (10**12, 10**12))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _=None: 1)
    monkeypatch.delitem(LINEARS, "cuda", raising=False)  # Triton's kernels: their reference runs on any device
    monkeypatch.delitem(EXPERTS, "cuda", raising=False)
    with _Made(), _Asking():
        yield

"""A pretended GPU for single functions: tensors on `cuda:0` that compute on the CPU and refuse what a GPU refuses.

An operation on such a tensor and one of the CPU is an error, and so is `numpy()` of such a tensor. Code that forgets to
move something therefore fails here, too, where there is no GPU. Nothing is said of speed, or of the last bits of sums.

It works on torch's functions as Python calls them. So it also refuses any operation outside of `OnCard`, such as one in
another thread, which `elsewhere` lets pass. But it cannot run a model, and `torch.cuda` still reports no GPU: for these
there is `elsewhere`.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CARD", "Card", "Inline", "OnCard"]

CARD = torch.device("cuda", 0)
_OF_THE_CARD = {torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__, torch.Tensor.__repr__}
"""Functions that a tensor of the pretended GPU answers itself."""


class Card(torch.Tensor):
    """A tensor of the pretended GPU; `inner` is the one of the CPU that computes."""

    inner: torch.Tensor

    def __new__(cls, inner: torch.Tensor) -> Self:
        """Make a tensor without memory of its own."""
        made: Self = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001 -- torch documents it under this name
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=CARD
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:  # noqa: ANN401 -- torch's
        return f"Card({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:  # noqa: ANN401 -- torch's
        raise RuntimeError(f"{func} outside of OnCard")


class OnCard(TorchFunctionMode):
    """Computes on the pretended GPU what is given its tensors, and moves there, and back, what names a device."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 -- torch's
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = dict(kwargs or {})
        given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        cards = [one for one in given if isinstance(one, Card)]
        if cards and func is torch.Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if cards and func is torch.Tensor.cpu:
            return cards[0].inner.clone()
        named = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.device | str)]
        there = any(str(one).startswith("cuda") for one in named)
        if func is torch.Tensor.to and named:
            return _moved(args, kwargs, there=there)
        if func in _OF_THE_CARD or not (cards or there):
            return func(*args, **kwargs)
        if func is not torch.Tensor.copy_ and any(not isinstance(one, Card) and one.dim() for one in given):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        found = func(*tree_map(_inside, args), **tree_map(_inside, kwargs))
        same = {id(one.inner): one for one in cards}
        return tree_map_only(torch.Tensor, lambda one: same[id(one)] if id(one) in same else Card(one), found)


def _inside(value: Any) -> Any:  # noqa: ANN401 -- any argument
    if isinstance(value, Card):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _moved(args: tuple[Any, ...], kwargs: dict[str, Any], *, there: bool) -> torch.Tensor:
    """Return what `to` returns: a copy where the device or the dtype is another."""
    value, *rest = args
    rest = [one for one in rest if not isinstance(one, torch.device | str)]
    kwargs.pop("device", None)
    inner: torch.Tensor = _inside(value)
    cast = inner.to(*rest, **kwargs) if rest or kwargs else inner
    if isinstance(value, Card) == there and cast is inner:
        return value
    return Card(cast.clone()) if there else cast.clone()


class Inline(Executor):
    """Runs each call at once: a mode of torch holds in one thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401 -- any call
        """See `Executor`."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 -- handed on, as executors do
            future.set_exception(error)
        return future

"""Adds up the squares of Linears' inputs, while several threads run their model.

Sums are float64, over the rows of a sequence in order, so they do not depend on the number of threads.

Letters: k inputs, e experts.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import local
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from g4convert.array_types import F64, I64

Sums: TypeAlias = dict[str, tuple[F64, I64]]
"""Sums of squares [k] or [e, k] and tokens [1] or [e], by module."""

_ROWS: Final = 256


class Hooks:
    """Hooks on Linears that add up the squares of their inputs, for each thread apart."""

    def __init__(self, modules: Mapping[str, torch.nn.Module]) -> None:
        self._modules = modules
        self._thread = local()

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Register the hooks; remove them on exit."""
        with ExitStack() as stack:
            for name, module in self._modules.items():
                stack.enter_context(module.register_forward_pre_hook(self._hook(name)))
            yield

    def begin(self) -> None:
        """Start new sums in this thread."""
        self._thread.sums = {}

    def end(self, tokens: int) -> Sums:
        """Return the sums of this thread, with `tokens` as their count."""
        found: dict[str, F64] = self._thread.sums
        return {name: (one, np.array([tokens])) for name, one in found.items()}

    def _hook(self, name: str) -> Callable[[torch.nn.Module, Any], None]:
        def take(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            sums: dict[str, F64] = self._thread.sums
            found = squares(given[0])
            sums[name] = sums[name] + found if name in sums else found

        return take


def squares(x: torch.Tensor) -> F64:
    """Return the sums of squares over rows [..., k], float64 [k]."""
    total = np.zeros(x.shape[-1])
    flat = x.reshape(-1, x.shape[-1])
    for first in range(0, len(flat), _ROWS):
        total += flat[first : first + _ROWS].double().square_().sum(0).cpu().numpy()
    return total


def add(total: Sums, sums: Sums) -> None:
    """Add `sums` to `total`, in place."""
    for name, (found, tokens) in sums.items():
        before = total.get(name)
        total[name] = (found, tokens) if before is None else (before[0] + found, before[1] + tokens)

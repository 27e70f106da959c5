"""Sizes of a plan: bytes by role before and after, and how long the work should take."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from g4convert.planning.layers import layer_steps
from g4convert.planning.recipe import Method
from g4convert.planning.steps import Plan

__all__ = ["RoleSize", "default_workers", "estimate_seconds", "role_sizes"]

_BYTES_PER_SECOND = {
    Method.MINMAX: 1.2e9,
    Method.MSE: 0.5e9,
    Method.LATTICE: 0.3e9,
    Method.AUTO: 0.5e9,
    Method.IMATRIX: 0.3e9,
}
"""bf16 input that one core quantizes in a second, measured; docs/decisions.md has how."""
_DISK_BYTES_PER_SECOND = 1.0e9
_CHECKED_PER_SECOND = 0.4e9
"""bf16 input that one core checks in a second at the end of a conversion, `--verify weights`."""
_START = 5.0
"""Seconds until both run: libraries are loaded, and compiled code is."""
_TOKENS = 65_536
"""Tokens that a calibration is taken to have where no file is at hand."""
_FLOP_PER_SECOND = 25e9
"""float32 products of one core in a second: assumed, not measured on a quiet machine."""
_SHARED_INPUTS = {"k_proj", "v_proj", "up_proj"}
"""Projections whose inputs another has already been given."""


@dataclass(frozen=True, slots=True)
class RoleSize:
    """Bytes of a role before and after."""

    role: str
    action: str
    tensors: int
    params: int
    before: int
    after: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight after conversion, scales and shapes included."""
        return 8 * self.after / self.params if self.params else 0.0


def role_sizes(plan: Plan) -> tuple[RoleSize, ...]:
    """Sizes by role and action, in the order of the model, tensors of the source counted once they are written."""
    rows: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    bits = f"int{plan.recipe.num_bits}"
    for step in plan.quantized:
        segment, after = step.weight.segment, sum(info.nbytes for info in step.outputs)
        _count(rows[step.weight.role, bits], prod(step.weight.shape), segment.end - segment.begin, after)
    for copy in plan.copied:
        _count(rows[copy.role, "keep"], copy.target.numel, copy.target.nbytes, copy.target.nbytes)
    for drop in plan.dropped:
        _count(rows["dropped", "drop"], drop.source.numel, drop.source.nbytes, 0)
    return tuple(RoleSize(str(role), action, *numbers) for (role, action), numbers in rows.items())


def _count(row: list[int], params: int, before: int, after: int) -> None:
    row[:] = row[0] + 1, row[1] + params, row[2] + before, row[3] + after


def default_workers() -> int:
    """One worker for each processor this process may use."""
    return len(os.sched_getaffinity(0))


def estimate_seconds(plan: Plan, sizes: Iterable[RoleSize], workers: int) -> float:
    """Starting; the slower of reading and writing at 1 GB/s and the tile arithmetic on `workers` cores; the check."""
    if layers := layer_steps(plan):
        return _START + sum(_layer_flop(plan, steps) for steps in layers.values()) / _FLOP_PER_SECOND / workers
    written = [size for size in sizes if size.after]
    moved = sum(size.before + size.after for size in written)
    packed = sum(size.before for size in written if size.action != "keep")
    converted = max(moved / _DISK_BYTES_PER_SECOND, packed / _BYTES_PER_SECOND[plan.recipe.method] / workers)
    checked = max(moved / _DISK_BYTES_PER_SECOND, packed / _CHECKED_PER_SECOND / workers)
    return _START + converted + checked


def _layer_flop(plan: Plan, steps: Mapping[str, int]) -> float:
    """Products of a layer that is calibrated: forward, H once for Linears that share inputs, its factor, the loop."""
    experts = plan.inventory.architecture.text.experts
    total = 0.0
    for path, number in steps.items():
        n, k = plan.quantized[number].weight.shape
        tokens = _TOKENS * (experts.top_k / experts.count if experts and "experts." in path else 1.0)
        total += 2 * tokens * n * k + n * k * k
        if path.rpartition(".")[2] not in _SHARED_INPUTS:
            total += tokens * k * k + 2 / 3 * k**3
    return total

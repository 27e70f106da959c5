"""Sizes of a plan: bytes by role before and after, and the estimated time to write them."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Final

from g4convert.engines.limits import Packing
from g4convert.planning.plan import Plan
from g4convert.planning.recipe import RecipeMethod
from g4convert.run_options import usable_cores

_BYTES_PER_SECOND: Final = {
    RecipeMethod.MINMAX: 1.2e9,
    RecipeMethod.MSE: 0.5e9,
    RecipeMethod.LATTICE: 0.3e9,
    RecipeMethod.AUTO: 0.5e9,
    RecipeMethod.IMATRIX: 0.45e9,
}
"""Bytes of bf16 input that one core quantizes per second, measured as docs/decisions.md describes."""
_DISK_BYTES_PER_SECOND: Final = 1.0e9
"""Assumed speed of the disk, which is not measured."""
_CHECKED_PER_SECOND: Final = 0.4e9
"""Bytes of bf16 input that one core checks per second at the end of a conversion, `--verify weights`."""
START: Final = 3.0
"""Seconds to load libraries and compiled code."""


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


def describe_packing(plan: Plan) -> str:
    """Describe how a plan packs weights: `int4 symmetric, groups of 32`, or the number of weights in each form."""
    counts = Counter(step.packing for step in plan.quantized)
    if len(counts) > 1:
        return f"{', '.join(f'{count:,} x {packing.label}' for packing, count in counts.most_common())}, symmetric"
    packing = next(iter(counts), Packing(plan.recipe.num_bits, plan.recipe.group_size))
    groups = f"groups of {packing.group_size}" if packing.group_size else "one scale per row"
    return f"int{packing.num_bits} symmetric, {groups}"


def add_up_sizes(plan: Plan) -> tuple[RoleSize, ...]:
    """Return sizes by role and action, in the order of the model; kept tensors count as they are written.

    A tensor that is written twice, as embedding and head of a model whose head is untied, has been there once before.
    """
    rows: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    kept = {segment for copy in plan.copied for segment in copy.segments}
    for step in plan.quantized:
        segment, after = step.weight.segment, sum(info.nbytes for info in step.outputs)
        before = 0 if segment in kept else segment.end - segment.begin
        kept.add(segment)
        _add_to_row(rows[step.weight.role, f"int{step.packing.num_bits}"], prod(step.weight.shape), before, after)
    for copy in plan.copied:
        _add_to_row(rows[copy.role, "keep"], copy.target.numel, copy.target.nbytes, copy.target.nbytes)
    for drop in plan.dropped:
        _add_to_row(rows["dropped", "drop"], drop.source.numel, drop.source.nbytes, 0)
    return tuple(RoleSize(str(role), action, *numbers) for (role, action), numbers in rows.items())


def _add_to_row(row: list[int], params: int, before: int, after: int) -> None:
    row[:] = row[0] + 1, row[1] + params, row[2] + before, row[3] + after


def default_workers() -> int:
    """Return the number of workers of a run that names none: one for each core that the process may use."""
    return usable_cores()


def estimate_write_seconds(sizes: Iterable[RoleSize], method: RecipeMethod, workers: int) -> float:
    """Return the seconds to write and check an output, each bound by the slower of disk and arithmetic."""
    written = [size for size in sizes if size.after]
    moved = sum(size.before + size.after for size in written)
    packed = sum(size.before for size in written if size.action != "keep")
    converted = max(moved / _DISK_BYTES_PER_SECOND, packed / _BYTES_PER_SECOND[method] / workers)
    return converted + max(moved / _DISK_BYTES_PER_SECOND, packed / _CHECKED_PER_SECOND / workers)

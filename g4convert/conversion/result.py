"""Summary of a finished conversion: sizes, errors, the method and why. Values only."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from shlex import quote
from statistics import fmean
from typing import Any

from g4convert.engines.limits import Packing
from g4convert.planning.packings import LATTICE_BITS
from g4convert.planning.plan import Plan
from g4convert.planning.sizes import RoleSize, add_up_sizes
from g4convert.quantization import Method, Scheme, TileStats

_STATISTICS = len(fields(TileStats))


@dataclass(frozen=True, slots=True)
class OnGrid:
    """Sample of a source's groups, taken to see whether they lie on a 4-bit grid.

    Args:
        share: share of the groups that do.
        sampled: number of tensors that they are of; 0 where no tensor gets 4 bits.
        tensors: number of tensors that they could be of.
    """

    share: float
    sampled: int
    tensors: int


@dataclass(frozen=True, slots=True)
class MethodChoice:
    """The method of a conversion, and the reason for it.

    Args:
        method: the method.
        why: the reason, for the record and the model card.
        sample: sample that `auto` chose by; None if there was nothing to choose.
    """

    method: Method
    why: str
    sample: OnGrid | None = None

    def scheme(self, packing: Packing, *, signed: bool) -> Scheme:
        """Return the scheme for the tiles of a weight.

        Tiles use `mse` instead of `gptq` and `best`, which do not work by tile, and instead of `lattice` at 8 bits.

        Args:
            packing: bits and group size of the weight.
            signed: whether `mse` may choose a negative scale.
        """
        method = self.method
        if method in {Method.GPTQ, Method.BEST} or (method is Method.LATTICE and packing.num_bits != LATTICE_BITS):
            method = Method.MSE
        return Scheme(packing.num_bits, packing.group_size, method, signed=signed)


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """Rounding error of a module, or of several.

    Args:
        name: name of the module or role.
        stats: sums over the weights.
        relative_error: sum of squared errors over sum of squared weights, 0 for all-zero weights; of several modules,
            the mean of theirs, so that a module with large weights counts as much as others.
    """

    name: str
    stats: TileStats
    relative_error: float

    @classmethod
    def of(cls, name: str, stats: TileStats) -> "ErrorRow":
        """Return the row of a module."""
        return cls(name, stats, stats.relative_error)

    @classmethod
    def mean(cls, name: str, rows: Sequence["ErrorRow"]) -> "ErrorRow":
        """Return the row of several modules."""
        stats = sum((row.stats for row in rows), TileStats())
        return cls(name, stats, fmean(row.relative_error for row in rows) if rows else 0.0)

    @property
    def sqnr_db(self) -> float:
        """Signal over quantization noise in dB; infinite if the error is 0."""
        return -10 * math.log10(self.relative_error) if self.relative_error else math.inf


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of a finished conversion; the same for any number of workers or interruptions.

    Args:
        choice: the method taken.
        sizes: bytes by role.
        files: number of shards.
        total: rounding error of all weights.
        roles: rounding error by role.
        modules: rounding error by module.
        calibration: inputs and results of a calibrated method, as JSON; None for other methods.
    """

    choice: MethodChoice
    sizes: tuple[RoleSize, ...]
    files: int
    total: ErrorRow
    roles: tuple[ErrorRow, ...]
    modules: tuple[ErrorRow, ...]
    calibration: Mapping[str, Any] | None = None

    @property
    def worst(self) -> tuple[ErrorRow, ...]:
        """The five modules with the largest relative error."""
        return tuple(sorted(self.modules, key=lambda row: (-row.relative_error, row.name))[:5])

    @property
    def before(self) -> int:
        """Bytes of the source's tensors."""
        return sum(size.before for size in self.sizes)

    @property
    def after(self) -> int:
        """Bytes of the output's tensors."""
        return sum(size.after for size in self.sizes)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over the whole output."""
        return 8 * self.after / sum(size.params for size in self.sizes if size.after)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON."""
        return {
            "method": self.choice.method.value,
            "why": self.choice.why,
            "bytes_before": self.before,
            "bytes_after": self.after,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "files": self.files,
            "total": _row_json(self.total),
            "mean_relative_error": self.total.relative_error,
            "roles": [_row_json(row) for row in self.roles],
            "worst": [_row_json(row) for row in self.worst],
            **({} if self.calibration is None else {"calibration": dict(self.calibration)}),
        }


def summarize(
    plan: Plan,
    choice: MethodChoice,
    files: int,
    results: Mapping[int, Iterable[list[Any]]],
    calibration: Mapping[str, Any] | None,
) -> Summary:
    """Return the summary of a conversion; adds up statistics in unit order, whichever worker did a unit.

    Args:
        plan: plan of the output.
        choice: the method taken.
        files: number of shards.
        results: for each unit, a row [index into `plan.quantized`, *TileStats] for each of its tiles; rows of a
            calibrated method have an object behind.
        calibration: inputs and results of a calibrated method, as JSON; None for other methods.
    """
    steps: dict[int, TileStats] = defaultdict(TileStats)
    for unit in sorted(results):
        for step, *numbers in results[unit]:
            steps[step] += TileStats(*numbers[:_STATISTICS])
    roles: dict[str, list[ErrorRow]] = defaultdict(list)
    rows = []
    for number in sorted(steps):
        weight = plan.quantized[number].weight
        rows.append(ErrorRow.of(weight.module, steps[number]))
        roles[weight.role.value].append(rows[-1])
    return Summary(
        choice,
        add_up_sizes(plan),
        files,
        ErrorRow.mean("all", rows),
        tuple(ErrorRow.mean(role, alike) for role, alike in roles.items()),
        tuple(rows),
        calibration,
    )


def serve_command(output: str, *, drafter: bool) -> str:
    """Return the command that serves an output; a drafter runs beside the model it drafts for (vLLM 0.33)."""
    if not drafter:
        return f"vllm serve {quote(output)}"
    options = json.dumps({"method": "mtp", "model": output, "num_speculative_tokens": 4})
    return f"vllm serve TARGET --speculative-config {quote(options)}"


def _row_json(row: ErrorRow) -> dict[str, Any]:
    stats = row.stats
    codes = max(stats.weights, 1)
    return {
        "name": row.name,
        "relative_error": stats.relative_error,
        "zero_codes": stats.zero_codes / codes,
        "saturated_codes": stats.saturated_codes / codes,
        "groups": stats.groups,
        "lattice_groups": stats.lattice_groups,
        "exact_groups": stats.exact_groups,
    }

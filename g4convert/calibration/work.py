"""Weights of one decoder layer and what rounds them, as the layer hands them to its parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from g4convert.array_types import F32
from g4convert.calibration.replay import Replay
from g4convert.calibration.rounding import Rounded, Rounding
from g4convert.calibration.team import Team


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights that a recipe packs in one layer, by path inside it (`self_attn.q_proj`, `experts.3.down_proj`).

    Args:
        names: full module name of each.
        read: reads the source's weight, float32 [n, k], by path.
        write: writes the rounded weight, and returns its statistics.
        note: takes the statistics of all weights, in rank 0.
    """

    names: Mapping[str, str]
    read: Callable[[str], F32]
    write: Callable[[str, Rounded], list[Any]]
    note: Callable[[list[Any]], None]


@dataclass(frozen=True, slots=True)
class LayerWork:
    """Weights of one layer, and what quantizes them.

    Args:
        replay: gives the layer and its arguments.
        number: number of the layer.
        weights: weights to pack.
        rounding: method that rounds them.
        team: ranks and threads that share the work.
    """

    replay: Replay
    number: int
    weights: LayerWeights
    rounding: Rounding
    team: Team

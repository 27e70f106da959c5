"""State of vLLM's start: every module notes in it what it finds or does, and the first reply reports it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class State:
    """Facts about the checkpoint and the engine.

    Args:
        phase: step that vLLM has reached: `start`, `build`, `load` or `ready`.
        parameters: number of parameters that were searched for missing tensors.
        unwatched: number of parameters that could not be searched because of their dtype.
        unfilled: name of each parameter that was not filled, and the share of it that was not.
        supplied: keys of the config that vLLM needs and the checkpoint lacks.
        mended: repairs that vLLM needed to run here.
        sees_itself: whether pictures attend to themselves in both directions.
    """

    phase: str = "start"
    parameters: int = 0
    unwatched: int = 0
    unfilled: list[dict[str, Any]] = field(default_factory=list)
    supplied: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    sees_itself: bool = False

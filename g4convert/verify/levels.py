"""How far a verification goes, and what it is asked. Values only: the command line imports them."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from g4convert.errors import UsageError

__all__ = ["FLOAT_TYPES", "Level", "MemoryUse", "Request"]


class Level(StrEnum):
    """How far a verification goes; each level includes the ones before."""

    STATIC = "static"
    WEIGHTS = "weights"
    LOGITS = "logits"

    def includes(self, other: "Level") -> bool:
        """Whether a verification that goes so far does the other level, too."""
        order = list(Level)
        return order.index(self) >= order.index(other)


class MemoryUse(StrEnum):
    """How models are held while they run."""

    RESIDENT = "resident"
    STREAM = "stream"
    AUTO = "auto"


FLOAT_TYPES = ("float32", "bfloat16")
"""In which a forward can run."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be verified, and how.

    Args:
        output: the quantized checkpoint.
        reference: the checkpoint it was made from, or a file that `g4convert reference` wrote; None has neither.
        level: how far to go; None takes `logits` where something is asked of that level (or the reference is a
            file), `weights` with a reference, and `static` without.
        profile: thresholds of level `logits`; None takes `w4a16`.
        prompts: the user's own, in place of the bundled ones.
        memory: how models are held; None takes `auto`.
        dtype: of the forward; None takes `float32`.
    """

    output: Path
    reference: Path | None = None
    level: Level | None = None
    profile: str | None = None
    prompts: Path | None = None
    memory: MemoryUse | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in FLOAT_TYPES:
            raise UsageError(f"dtype {self.dtype!r} is not one of {', '.join(FLOAT_TYPES)}")
        unused = [name for name, value in self._of_logits.items() if value is not None]
        if self.depth is not Level.LOGITS and unused:
            raise UsageError(f"--{unused[0]} belongs to level logits, not {self.depth}", hint="--level logits")

    @property
    def is_captured(self) -> bool:
        """Whether the reference is a file."""
        return self.reference is not None and self.reference.suffix == ".safetensors"

    @property
    def source(self) -> Path | None:
        """The reference, where it is a checkpoint."""
        return None if self.is_captured else self.reference

    @property
    def depth(self) -> Level:
        """How far to go."""
        if self.level is not None:
            return self.level
        if self.is_captured or any(value is not None for value in self._of_logits.values()):
            return Level.LOGITS
        return Level.STATIC if self.reference is None else Level.WEIGHTS

    @property
    def _of_logits(self) -> dict[str, object]:
        return {"profile": self.profile, "prompts": self.prompts, "memory": self.memory, "dtype": self.dtype}

"""Levels and options of a verification, as values without heavy imports: the command line imports this module."""

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from g4convert.errors import UsageError
from g4convert.run_options import MemoryUse, check_run
from g4convert.suggestions import no_such


class Level(StrEnum):
    """Level of verification; each level includes the levels before it."""

    STATIC = "static"
    WEIGHTS = "weights"
    LOGITS = "logits"
    ENGINE = "engine"

    def includes(self, other: "Level") -> bool:
        """Return whether a verification at this level includes another level."""
        order = list(Level)
        return order.index(self) >= order.index(other)


class ServedEngine(StrEnum):
    """Engine that level `engine` can test."""

    VLLM = "vllm"
    SGLANG = "sglang"


MOST_SECONDS: Final = 7 * 24 * 3600
"""Longest time that an engine may be waited for: a week. Timers of the system cannot hold any number."""


def parse_verify_after(name: str | None) -> Level | None:
    """Return the level of the verification at the end of a conversion; None for None and `none`.

    Raises:
        UsageError: not a level, or `engine`.
    """
    if name is None or name == "none":
        return None
    if name == Level.ENGINE:
        raise UsageError(f"--verify {name}: an engine is asked afterwards", hint="`g4convert verify OUT --engine vllm`")
    if name not in list(Level):
        raise no_such("--verify", name, ["none", *(level for level in Level if level is not Level.ENGINE)])
    return Level(name)


@dataclass(frozen=True, slots=True)
class Settings:
    """Values of a run with defaults; `--help` prints the defaults from here.

    Args:
        profile: thresholds of level `logits`.
        memory: way to hold models in memory.
        dtype: dtype of the forward pass that is judged.
        device: device of the models.
        engine_timeout: seconds to wait for an engine to start, and for each answer.
    """

    profile: str = "w4a16"
    memory: MemoryUse = MemoryUse.AUTO
    dtype: str = "float32"
    device: str = "cpu"
    engine_timeout: float = 600.0


DEFAULTS: Final = Settings()

SPEECH_DTYPE: Final = "bfloat16"
"""Default dtype of a forward pass that is not judged: `generate` and `load`."""
VERIFY_AFTER: Final = Level.WEIGHTS
"""Default level of the verification at the end of a conversion."""


@dataclass(frozen=True, slots=True)
class Request:
    """A verification to run; `settings` fills in the defaults of fields that are None.

    Args:
        output: the quantized checkpoint.
        reference: the original checkpoint, or a file that `g4convert reference` wrote; None without a reference.
        level: last level to run. None means `engine` if an option of that level is given, else `logits` if an option
            of that level is given or the reference is a file, else `weights` with and `static` without a reference.
        profile: thresholds of level `logits`.
        prompts: file of the user's prompts; None uses the bundled prompts.
        memory: way to hold models in memory.
        dtype: dtype of the forward pass; with None, an engine uses its own default.
        device: device of the models.
        engine: engine that serves the checkpoint in level `engine`.
        engine_python: Python interpreter that has vLLM; None uses the running interpreter.
        engine_url: address of the SGLang server.
        engine_timeout: seconds to wait for the engine to start, and for each answer.
    """

    output: Path
    reference: Path | None = None
    level: Level | None = None
    profile: str | None = None
    prompts: Path | None = None
    memory: MemoryUse | None = None
    dtype: str | None = None
    device: str | None = None
    engine: ServedEngine | None = None
    engine_python: Path | None = None
    engine_url: str | None = None
    engine_timeout: float | None = None

    def __post_init__(self) -> None:
        check_run(device=self.device, dtype=self.dtype)
        unused = [name for name, value in self._logits_options.items() if value is not None]
        if not self.depth.includes(Level.LOGITS) and unused:
            raise UsageError(f"--{unused[0]} belongs to level logits, not {self.depth}", hint="--level logits")
        self._check_engine()

    @property
    def settings(self) -> Settings:
        """The given values, with defaults for fields that are None."""
        values = {field.name: getattr(self, field.name) for field in fields(Settings)}
        return replace(DEFAULTS, **{name: value for name, value in values.items() if value is not None})

    @property
    def is_captured(self) -> bool:
        """True if the reference is a file that `g4convert reference` wrote."""
        return self.reference is not None and self.reference.suffix == ".safetensors"

    @property
    def source(self) -> Path | None:
        """The reference if it is a checkpoint, otherwise None."""
        return None if self.is_captured else self.reference

    @property
    def depth(self) -> Level:
        """Last level to run."""
        if self.level is not None:
            return self.level
        if any(value is not None for value in self._engine_options.values()):
            return Level.ENGINE
        if self.is_captured or any(value is not None for value in self._logits_options.values()):
            return Level.LOGITS
        return Level.STATIC if self.reference is None else Level.WEIGHTS

    @property
    def implied_by(self) -> str:
        """The first option that asks for level logits without naming it; empty if the level was named."""
        return next((name for name, value in self._logits_options.items() if value is not None and not self.level), "")

    @property
    def profile_name(self) -> str:
        """The profile of level logits."""
        return self.settings.profile

    def _check_engine(self) -> None:
        seconds = self.engine_timeout
        if seconds is not None and not 1 <= seconds <= MOST_SECONDS:
            raise UsageError(f"--engine-timeout {seconds:g}: expected 1 to {MOST_SECONDS:,} seconds, a week")
        engine_options = [name for name, value in self._engine_options.items() if value is not None]
        if self.depth is not Level.ENGINE and engine_options:
            raise UsageError(f"--{engine_options[0]} belongs to level engine, not {self.depth}", hint="--level engine")
        if self.depth is Level.ENGINE and self.engine is None:
            raise UsageError("level engine needs an engine", hint=f"--engine {', '.join(ServedEngine)}")
        if self.depth is Level.ENGINE and self.profile is not None:
            raise UsageError("--profile belongs to level logits, not engine", hint="an engine is judged by parity")
        if self.engine is ServedEngine.SGLANG and self.engine_url is None:
            raise UsageError("SGLang is asked over HTTP", hint="start a server with the checkpoint, and --engine-url")
        if self.engine is ServedEngine.SGLANG and self.engine_python is not None:
            raise UsageError("--engine-python is for vllm; an SGLang server runs already")
        if self.engine is ServedEngine.VLLM and self.engine_url is not None:
            raise UsageError("--engine-url is for sglang; vllm is started here", hint="--engine-python PATH")

    @property
    def _engine_options(self) -> dict[str, object]:
        return {
            "engine": self.engine,
            "engine-python": self.engine_python,
            "engine-url": self.engine_url,
            "engine-timeout": self.engine_timeout,
        }

    @property
    def _logits_options(self) -> dict[str, object]:
        return {
            "profile": self.profile,
            "prompts": self.prompts,
            "memory": self.memory,
            "dtype": self.dtype,
            "device": self.device,
        }

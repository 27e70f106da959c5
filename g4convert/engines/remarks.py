"""Remarks on a checkpoint in an engine, and ways to mend it, as fields that the command line joins to sentences."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from g4convert.engines.reason import Reason
from g4convert.gemma4 import Role

_AGAIN: Final = "quantize again from the source with "


class Topic(StrEnum):
    """Subject of a remark."""

    KERNEL = "kernel"
    """Name of the kernel that takes the weights; not a fault."""
    PADDING = "padding"
    SLOW = "slow kernel"
    FLAG = "flag"
    NAMES = "names"
    """Loads, but has names that some programs do not know."""
    UNEVEN = "uneven split"
    GROUP = "no kernel"
    FORM = "form"
    """Built in another form than the stored one."""
    REFUSED = "refused"
    """Packed, and does not work in that form."""
    MISSING = "missing"
    UNKNOWN = "unknown"
    """Stored, but fits no module."""
    STORED = "stored"
    """Stored otherwise than the config says."""
    FILES = "files"
    """A file has a name that the engine does not look for, or is missing."""
    MODEL = "model"
    """A class or a config that the engine does not start with."""
    RELEASE = "release"
    """Needs a release of a package that the engine allows, but does not require."""
    DTYPE = "dtype"
    """Computed in a dtype that is too narrow for it."""


_LIFTED: Final = {Topic.UNEVEN, Topic.GROUP, Topic.REFUSED}


@dataclass(frozen=True, slots=True)
class Remedy:
    """A way to make an engine load a checkpoint.

    Args:
        text: the command, options or instruction.
        options: options of `quantize`, if it is another recipe; empty otherwise.
        effect: what the options change, with the size of the output; empty without a change of what is packed.
        gpus: numbers of GPUs on which the engine then loads it; empty for an engine that does not split.
        loads: of the engines with verdicts, those that then load it, each with its numbers of GPUs.
        again: True if the checkpoint exists already, so that the user must quantize again with the options.
        is_none: True if it says that no way exists.
        tp: a number of GPUs that it names; None if it changes the checkpoint.
    """

    text: str
    options: str = ""
    effect: str = ""
    gpus: str = ""
    loads: tuple[str, ...] = ()
    again: bool = False
    is_none: bool = False
    tp: int | None = None

    @classmethod
    def recipe(
        cls, options: str, *, kept: str = "", size: str = "", gpus: str = "", loads: tuple[str, ...] = ()
    ) -> Self:
        """Make the way of another recipe.

        Args:
            options: options of `quantize`.
            kept: roles that they leave in bf16; empty if they change something else.
            size: size of the output.
            gpus: see `Remedy`.
            loads: see `Remedy`.
        """
        what = f"`{options}` to leave {kept} in bf16" if kept else f"`{options}`"
        held = "; ".join(filter(None, (size and f"about {size}", gpus)))
        effect = f"{kept} in bf16, output about {size}" if kept else ""
        return cls(f"{what} ({held})" if held else what, options, effect, gpus, loads)

    def __str__(self) -> str:
        """Return the instruction in words."""
        return f"{_AGAIN}{self.text}" if self.options and self.again else self.text


def joined(ways: Iterable[Remedy]) -> str:
    """Return alternative ways as one sentence, which says only once to quantize again."""
    texts: list[str] = []
    told = False
    for way in ways:
        texts.append(way.text if told else str(way))
        told = told or bool(way.options and way.again)
    return ", or ".join(texts)


@dataclass(frozen=True, slots=True)
class Remark:
    """A fact about one kind of module in an engine.

    Args:
        topic: topic of the remark.
        subject: the kind of module; empty for the whole checkpoint.
        reason: the fact.
        ways: alternative ways to mend it.
        role: role of the weights; None for the whole checkpoint, or if it is unknown.
        option: option of the engine's command that mends it; empty without one.
    """

    topic: Topic
    subject: str
    reason: Reason
    ways: tuple[Remedy, ...] = ()
    role: Role | None = None
    option: str = ""

    @property
    def may_be_lifted(self) -> bool:
        """True if another recipe, or another number of GPUs, may remove the problem."""
        return self.topic in _LIFTED

    @property
    def text(self) -> str:
        """The fact as a sentence."""
        return str(self.reason)

    @property
    def remedy(self) -> str:
        """The ways to mend it as a sentence."""
        return joined(self.ways)

    @property
    def line(self) -> str:
        """The remark in one line, without the remedy."""
        return self.told(self.reason)

    def told(self, reason: Reason) -> str:
        """Return the remark in one line, without the remedy, with another form of its reason."""
        return f"{self.subject}: {reason}" if self.subject else str(reason)

    def to_dict(self) -> dict[str, str]:
        """Return the remark as JSON."""
        return {"topic": self.topic.value, "subject": self.subject, "text": self.text, "remedy": self.remedy}

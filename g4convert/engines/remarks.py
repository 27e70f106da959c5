"""Remarks on a checkpoint in an engine, and ways to mend it: fields here, sentences at the edge."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from g4convert.engines.reason import Reason
from g4convert.gemma4 import Role

__all__ = ["Remark", "Topic", "Way", "joined"]

_AGAIN: Final = "quantize again from the source with "


class Topic(StrEnum):
    """Subject of a remark."""

    KERNEL = "kernel"
    """The kernel that takes the weights, and no more than that."""
    PADDING = "padding"
    SLOW = "slow kernel"
    FLAG = "flag"
    NAMES = "names"
    """Loads, but under names that some programs do not know."""
    UNEVEN = "uneven split"
    GROUP = "no kernel"
    FORM = "form"
    """Built in another form than stored."""
    REFUSED = "refused"
    """Loads packed, and does not work."""
    MISSING = "missing"
    UNKNOWN = "unknown"
    """Stored, and fits nothing."""
    STORED = "stored"
    """Not stored as the config says."""


_LIFTED: Final = {Topic.UNEVEN, Topic.GROUP, Topic.REFUSED}


@dataclass(frozen=True, slots=True)
class Way:
    """Something to do about a refusal.

    Args:
        text: the way, as a command, or in words.
        is_option: True if it begins with options of `quantize`.
        again: True if the checkpoint is already written, so that options mean to write it anew.
        is_none: True if it says that there is no way.
    """

    text: str
    is_option: bool = False
    again: bool = False
    is_none: bool = False

    def __str__(self) -> str:
        """Return the way in words."""
        return f"{_AGAIN}{self.text}" if self.is_option and self.again else self.text


def joined(ways: Iterable[Way]) -> str:
    """Alternatives in one sentence, which says only once that options mean to write it anew."""
    texts: list[str] = []
    told = False
    for way in ways:
        texts.append(way.text if told else str(way))
        told = told or (way.is_option and way.again)
    return ", or ".join(texts)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to know about one kind of module.

    Args:
        topic: subject of the remark.
        subject: the kind of module; empty where it is the whole checkpoint.
        reason: fact to know.
        ways: ways to mend it, as alternatives.
        role: role of the weights.
    """

    topic: Topic
    subject: str
    reason: Reason
    ways: tuple[Way, ...] = ()
    role: Role | None = None

    @property
    def may_be_lifted(self) -> bool:
        """True if another recipe, or another number of GPUs, may make it untrue."""
        return self.topic in _LIFTED

    @property
    def text(self) -> str:
        """The fact to know, in a sentence."""
        return str(self.reason)

    @property
    def remedy(self) -> str:
        """The ways to mend it, in a sentence."""
        return joined(self.ways)

    @property
    def line(self) -> str:
        """The remark in one line, without the remedy."""
        return self.told(self.reason)

    def told(self, reason: Reason) -> str:
        """Return the remark in one line, without the remedy, with the reason in another form."""
        return f"{self.subject}: {reason}" if self.subject else str(reason)

    def to_dict(self) -> dict[str, str]:
        """Return the remark as JSON."""
        return {"topic": self.topic.value, "subject": self.subject, "text": self.text, "remedy": self.remedy}

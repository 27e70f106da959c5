"""What there is to say of a checkpoint in an engine, and what to do about it: as fields, sentences at the end."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from g4convert.engines.reason import Reason
from g4convert.gemma4 import Role

__all__ = ["Remark", "Topic", "Way", "joined"]

_AGAIN: Final = "quantize again from the source with "


class Topic(StrEnum):
    """What a remark is about."""

    KERNEL = "kernel"
    """Which one takes it; no more than that."""
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


@dataclass(frozen=True, slots=True)
class Way:
    """Something to do about a refusal.

    Args:
        text: what, as a command, or in words.
        is_option: whether it begins with options of `quantize`.
        again: whether the checkpoint is already written, so that options mean to write it anew.
        is_none: whether it says that there is no way.
    """

    text: str
    is_option: bool = False
    again: bool = False
    is_none: bool = False

    def __str__(self) -> str:
        """In words."""
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
        topic: what it is about.
        subject: the kind of module; empty where it is the whole checkpoint.
        reason: what is to be known.
        ways: what to do about it, as alternatives.
        role: of the weights.
    """

    topic: Topic
    subject: str
    reason: Reason
    ways: tuple[Way, ...] = ()
    role: Role | None = None

    @property
    def text(self) -> str:
        """What is to be known, in a sentence."""
        return str(self.reason)

    @property
    def remedy(self) -> str:
        """What to do about it, in a sentence."""
        return joined(self.ways)

    @property
    def line(self) -> str:
        """In one line, without the remedy."""
        return self.told(self.reason)

    def told(self, reason: Reason) -> str:
        """In one line, without the remedy, with the reason in another form."""
        return f"{self.subject}: {reason}" if self.subject else str(reason)

    def to_dict(self) -> dict[str, str]:
        """As JSON."""
        return {"topic": self.topic.value, "subject": self.subject, "text": self.text, "remedy": self.remedy}

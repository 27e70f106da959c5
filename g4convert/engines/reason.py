"""A reason in parts, so that who prints it may leave out where it stands or join what differs by number of GPUs."""

from dataclasses import dataclass

__all__ = ["Reason"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an engine does not take something, as a sentence in parts: text, share, (source), rest.

    Args:
        text: how it begins.
        share: what depends on the number of GPUs, such as ` / 4 = 176`.
        source: where in the engine it stands, such as `models/gemma4.py:325`.
        rest: how it ends.
    """

    text: str = ""
    share: str = ""
    source: str = ""
    rest: str = ""

    def __str__(self) -> str:
        """The whole sentence."""
        return f"{self.text}{self.share}{f' ({self.source})' if self.source else ''}{self.rest}"

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self.text)

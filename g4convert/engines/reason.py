"""A reason in parts, so that a report can leave out its source or join reasons that differ in the number of GPUs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """Reason why an engine does not take something, as a sentence in parts: text, share, (source), rest.

    Args:
        text: first part of the sentence.
        share: part that depends on the number of GPUs, such as ` / 4 = 176`.
        source: place in the engine's source, such as `models/gemma4.py:325`.
        rest: last part of the sentence.
        group: the group size, if a GPU would hold a fraction of a group.
    """

    text: str = ""
    share: str = ""
    source: str = ""
    rest: str = ""
    group: int | None = None

    def __str__(self) -> str:
        """Return the whole sentence."""
        return f"{self.text}{self.share}{f' ({self.source})' if self.source else ''}{self.rest}"

    def __bool__(self) -> bool:
        """Return True if there is a reason."""
        return bool(self.text)

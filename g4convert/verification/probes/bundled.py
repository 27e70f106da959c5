"""Conversations that ship with g4convert, in buckets: what models are asked when users bring no prompts."""

import json
from importlib.resources import files

from g4convert.forward.conversations import Conversation, Frame

__all__ = ["BUCKETS", "bundled", "long_conversations"]

BUCKETS = ("prose", "code", "tools", "non_latin")
"""Kinds of the bundled conversations."""


def bundled() -> tuple[Conversation, ...]:
    """The shipped conversations, in buckets."""
    text = (files("g4convert.verification.probes") / "data" / "conversations.jsonl").read_text("utf-8")
    return tuple(
        Conversation(entry["name"], entry["bucket"], tuple(entry["messages"][:-1]), entry["messages"][-1]["content"])
        for entry in map(json.loads, text.splitlines())
    )


def long_conversations(frame: Frame, window: int, *, count: int = 2) -> tuple[Conversation, ...]:
    """Conversations whose question ends beyond the sliding window of the note that it asks for.

    Args:
        frame: the checkpoint's frame; counts tokens.
        window: the model's sliding window, in tokens.
        count: number of conversations; each starts with another note.
    """
    notes = [entry.answer for entry in bundled() if entry.bucket == "prose"]
    found = []
    for number in range(count):
        lines: list[str] = []
        length = 0
        while length <= window + 16:  # what follows the first note already fills the window
            line = f"Note {len(lines) + 1}: {notes[(number + len(lines)) % len(notes)]}"
            length += len(frame.encode(line)) if lines else 0
            lines.append(line)
        ask = "\n".join([*lines, "Repeat note 1."])
        found.append(Conversation(f"long_{number + 1}", "long", ({"role": "user", "content": ask},), notes[number]))
    return tuple(found)

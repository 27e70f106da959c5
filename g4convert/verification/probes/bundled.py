"""Conversations that ship with g4convert, in buckets, for users who bring no prompts of their own."""

import json
from importlib.resources import files

from g4convert.forward.conversations import Conversation, Frame

__all__ = ["BUCKETS", "bundled", "long_conversations"]

BUCKETS = ("prose", "code", "tools", "non_latin")
"""Kinds of the bundled conversations."""


def bundled() -> tuple[Conversation, ...]:
    """Return the bundled conversations."""
    text = (files("g4convert.verification.probes") / "data" / "conversations.jsonl").read_text("utf-8")
    return tuple(
        Conversation(entry["name"], entry["bucket"], tuple(entry["messages"][:-1]), entry["messages"][-1]["content"])
        for entry in map(json.loads, text.splitlines())
    )


def long_conversations(frame: Frame, window: int, *, count: int = 2) -> tuple[Conversation, ...]:
    """Return conversations that ask for a note which lies farther back than the sliding window."""
    notes = [entry.answer for entry in bundled() if entry.bucket == "prose"]
    found = []
    for number in range(count):
        lines: list[str] = []
        length = 0
        while length <= window + 16:  # the text after the first note already fills the window
            line = f"Note {len(lines) + 1}: {notes[(number + len(lines)) % len(notes)]}"
            length += len(frame.encode(line)) if lines else 0
            lines.append(line)
        ask = "\n".join([*lines, "Repeat note 1."])
        found.append(Conversation(f"long_{number + 1}", "long", ({"role": "user", "content": ask},), notes[number]))
    return tuple(found)

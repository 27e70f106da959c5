"""Names in an output's directory that those who write it and those who verify it both know."""

from typing import Final

README: Final = "README.md"
"""The model card of an output; the README of any other model."""
CARRIED_README: Final = "README.source.md"
"""The source's own README, carried over to the output."""
JOURNALS: Final = "journal*.jsonl"
"""Pattern of the journals' names; no side file may match it."""

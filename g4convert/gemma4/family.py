"""The names of the Gemma 4 families, for `g4convert demo --family` and `fixtures.make`."""

from enum import StrEnum


class Family(StrEnum):
    """A Gemma 4 family, by the structure that sets it apart."""

    MOE = "moe"
    DENSE = "dense"
    UNIFIED = "unified"
    E2B = "e2b"
    TEXT = "text"
    UNIFIED_TEXT = "unified_text"
    ASSISTANT = "assistant"
    UNIFIED_ASSISTANT = "unified_assistant"

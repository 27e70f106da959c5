"""Small Gemma 4 checkpoints that have learned something, shipped with the package.

Random checkpoints (`demo.make`) have every structure, but they are poor judges of damage: their answers are noise
before and after it. These two were trained by `tools/train_fixtures.py`, on the King James Bible of Debian's
bible-kjv-text (public domain) and on short lessons made by that script: to count in nine languages, to
write a line of code or a tool call, to name the colours of a picture or the notes of a sound.

    moe   26B-A4B: 16 experts, 4 a token, beside a dense MLP; full layers without v_proj; vision tower
    e2b   E2B: per-layer embeddings, KV-shared layers with double-wide MLP, vision and audio towers

bf16, 1024 ids, about 4 MB each. See docs/guides/trained-models.md for what they reach.
"""

from pathlib import Path

from g4convert.errors import UsageError
from g4convert.gemma4.family import Family

TRAINED = (Family.MOE, Family.E2B)
"""Families with a trained checkpoint."""

_SHIPPED = Path(__file__).parent / "trained"


def trained(family: Family) -> Path:
    """Return the directory of a trained checkpoint; it is part of the package and must not be changed.

    Raises:
        UsageError: there is none of this family.
    """
    if family not in TRAINED:
        raise UsageError(f"no trained {family} checkpoint", hint=f"there are {' and '.join(TRAINED)}")
    return _SHIPPED / family

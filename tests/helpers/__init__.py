"""Helpers that tests share: sources, damages, programs to run, records to compare with."""

from pathlib import Path

__all__ = ["ROOT", "TESTS"]

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent

"""Permissions that count: root may read and write everything, so tests of them give that up for a while."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERSION = 0x20080522
_OVERRIDE, _SEARCH = 1, 2
"""Numbers of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


@contextmanager
def permissions_count() -> Iterator[None]:
    """Inside, this thread and those that it starts may do with files what their owner may."""
    if os.geteuid():
        yield
        return
    head, now = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(head, now) == 0
    less = (ctypes.c_uint32 * 6)(*now)
    less[0] &= ~(1 << _OVERRIDE | 1 << _SEARCH)  # the effective ones; the permitted ones stay, to take them back
    assert libc.capset(head, less) == 0
    try:
        yield
    finally:
        assert libc.capset(head, now) == 0

"""Parsing and formatting of bytes, counts and durations for users."""

import re
from typing import Final

_UNITS: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MINUTE: Final = 60
_SIZE: Final = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([KMG]I?B|)\s*")


def parse_size(text: str) -> int | None:
    """Return the number of bytes in `5GB`, `500 MB`, `2GiB` or a plain number; None for other text."""
    match = _SIZE.fullmatch(text.upper())
    return int(float(match[1]) * _UNITS[match[2]]) if match else None


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(nbytes: float) -> str:
    """Return bytes as text in B, kB, MB or GB."""
    number, unit = _in_unit(nbytes)
    return f"{number:.0f} B" if unit == "B" else f"{number:.2f} {unit}"


def exact_size(nbytes: int) -> str:
    """Return bytes as `parse_size` reads them, in the largest unit that takes at most two decimals: `14GB`, `1.6MB`."""
    units = (("GB", 10**9), ("MB", 10**6), ("KB", 10**3))
    fits = ((unit, scale) for unit, scale in units if nbytes >= scale and nbytes % (scale // 100) == 0)
    unit, scale = next(fits, ("", 1))
    return f"{nbytes / scale:.15g}{unit}"


def rough_size(nbytes: float) -> str:
    """Return an estimated number of bytes as text, with two digits at most."""
    number, unit = _in_unit(nbytes)
    return f"{number:.0f} B" if unit == "B" else f"{float(f'{number:.2g}'):g} {unit}"


def round_size(nbytes: float) -> str:
    """Return a round number of bytes, such as that of a tick, as text without zeros at its end."""
    number, unit = _in_unit(nbytes)
    return f"{number:g} {unit}"


def _in_unit(nbytes: float) -> tuple[float, str]:
    """Return the number in the largest unit that it reaches, and the unit."""
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next(((nbytes / scale, unit) for unit, scale in units if nbytes >= scale), (nbytes, "B"))


def count(number: int) -> str:
    """Return a number of weights as text, in thousands (k), millions (M) or billions (B) from 1000 on."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)


def nats(kl: float) -> str:
    """Return a KL divergence in nats with three decimals."""
    return f"{kl:.3f}"


def rough_duration(seconds: float) -> str:
    """Return an estimated duration as text: in minutes from one minute on, as `duration` below and from an hour on."""
    return duration(60 * round(seconds / 60) if seconds >= _MINUTE else seconds)


def duration(seconds: float) -> str:
    """Return a duration as hours and minutes, minutes and seconds, or seconds; at least 1 s."""
    minutes, rest = divmod(max(1, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return " ".join(f"{number} {unit}" for number, unit in ((minutes, "min"), (rest, "s")) if number)

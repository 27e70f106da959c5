"""Describes as JSON how the layers' weights were rounded, for `g4convert.json`, the card and the closing lines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any, Final

import numpy as np

from g4convert.calibration.rounding import Rounded, Way
from g4convert.calibration.trained import SCALES
from g4convert.conversion.statistics import Coverage
from g4convert.names import Name
from g4convert.planning.plan import Quantize

_WAYS: Final = {way.value for way in Way}


def how(rounded: Rounded) -> dict[str, Any]:
    """Return how a weight was rounded, as JSON."""
    errors = {way.value: float(f"{error:.6g}") for way, error in rounded.errors.items()}
    return {"way": rounded.way.value, "tokens": rounded.tokens, "damp": rounded.damp, "errors": errors}


def is_how(said: object) -> bool:
    """Return whether an object of a journal describes a rounding as `how` does."""
    match said:
        case {"way": str(way), "tokens": int(tokens), "damp": damp, "errors": {**errors}, **rest}:
            named = way in _WAYS and errors.keys() <= _WAYS and tokens >= 0 and _is_gain(rest.get(SCALES))
            return named and all(map(_is_number, errors.values())) and (damp is None or _is_number(damp))
    return False


def _is_gain(said: object) -> bool:
    """Return whether a value describes what the training of scales gained; None where there was none."""
    match said:
        case None:
            return True
        case {"kl": {**kl}, "share": share, "held_out": int()}:
            return all(map(_is_number, kl.values())) and _is_number(share)
    return False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def findings(layers: Mapping[int, Sequence[Sequence[Any]]], quantized: Sequence[Quantize]) -> dict[str, Any]:
    """Return how all weights of the layers were rounded, as JSON.

    Args:
        layers: rows of each unit that is a layer, one for each weight: [step, ..., how].
        quantized: all quantizing steps of the plan.
    """
    rows = {quantized[row[0]].weight.module: dict(row[-1]) for unit in sorted(layers) for row in layers[unit]}
    gained = [found.pop(SCALES) for found in rows.values() if SCALES in found]
    ways = Counter(found["way"] for found in rows.values())
    return {
        "coverage": _coverage(rows),
        "ways": {way.value: ways[way.value] for way in Way},
        "output_error": {way.value: _mean(rows, way) for way in Way},
        "data_free_outside_layers": len(quantized) - len(rows),
        "without_tokens": [name for name, found in rows.items() if not found["tokens"]],
        "without_factor": [name for name, found in rows.items() if found["damp"] is None],
        **({SCALES: gained[0]} if gained else {}),
        "modules": rows,
    }


def _coverage(rows: Mapping[str, Any]) -> dict[str, int] | None:
    """Summarize the number of tokens of each expert; None for a model without experts."""
    met = [
        found["tokens"] for name, found in rows.items() if Name(name).experts and Name(name).projection == "gate_proj"
    ]
    return asdict(Coverage.of(np.array(met))) if met else None


def _mean(rows: Mapping[str, Any], way: Way) -> float | None:
    """Return the mean relative output error of a way over the weights for which it was tried."""
    errors = [found["errors"][way.value] for found in rows.values() if way.value in found["errors"]]
    return float(np.mean(errors)) if errors else None

"""Search for config keys that do not fit the tensors, with values that do.

Each value is read from the shapes of the tensors (`readings`). A key is reported only if the config with all new values
describes all tensors without a fault, so every report is proved.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from g4convert.errors import InputError
from g4convert.gemma4.architecture import Architecture
from g4convert.gemma4.dialects import body_of
from g4convert.gemma4.matching import Match
from g4convert.gemma4.readings import Value, readings
from g4convert.tensors import TensorInfo

Fits = Callable[[Architecture], bool]
Said = Mapping[tuple[str, str], Value]
"""Section and key -> new value."""

_MAX_WRONG_KEYS = 3  # a hand edit leaves at most this many wrong keys; with more, the config is another model's


def fitting_remedy(match: Match, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], fits: Fits) -> str:
    """Return the remedy for a config that does not fit its tensors; empty if no values of its keys make it fit.

    Args:
        match: match of the stored names with the names that the config implies.
        tensors: every stored tensor, by name.
        config: content of config.json.
        fits: returns True if an architecture has exactly these tensors and shapes.
    """
    shapes = {body: tensors[source].shape for source, body in match.unknown.items()}
    shapes |= {body_of(name): tensors[sources[0]].shape for name, sources in match.sources.items()}
    readings_by_place = {(section, key): value for section, key, value in readings(shapes, config)}
    wrong = {place: value for place, value in readings_by_place.items() if _stated_value(config, place) != value}
    if not wrong or not _fit(config, wrong, fits):
        return ""
    for place in list(wrong):
        fewer = {other: value for other, value in wrong.items() if other != place}
        if fewer and _fit(config, fewer, fits):
            wrong = fewer
    if len(wrong) > _MAX_WRONG_KEYS:
        keys = ", ".join(key for _, key in wrong)
        part = {section for section, _ in wrong}
        where = f"{part.pop()} in config.json" if len(part) == 1 and not part & {"", "text_config"} else "config.json"
        return f"{where} is another model's ({keys} differ): take the one saved with these weights"
    for place, value in wrong.items():
        if isinstance(value, Mapping):
            null_note = "it is null, and " if _stated_value(config, place) is None else ""
            return (
                f"{_path(place)} does not fit ({null_note}the tensors show {json.dumps(value)}): take it from the "
                "config.json saved with these weights, as no shape shows all of its values"
            )
    edits = " and ".join(_edit(_path(place), _stated_value(config, place), value) for place, value in wrong.items())
    return f"the tensors say otherwise: in config.json set {edits}"


def _stated_value(config: Mapping[str, Any], place: tuple[str, str]) -> object:
    """Return the value that a config has at a place; None if it has none."""
    section, key = place
    return (config[section] if section else config).get(key)


def _path(place: tuple[str, str]) -> str:
    return ".".join(part for part in place if part)


def _edit(path: str, old: object, new: object) -> str:
    """Return the text of one edit: the key, its new value and its old value."""
    if isinstance(old, list) and isinstance(new, list) and old[: len(new)] == new:
        return f"{path} to its first {len(new)} entries"
    return f"{path} to {json.dumps(new)}" + (
        "" if old is None else f" (it is {json.dumps(old)})" if not isinstance(old, list) else ""
    )


def _fit(config: Mapping[str, Any], values: Said, fits: Fits) -> bool:
    """Return whether a config with these values describes the tensors."""
    changed = dict(config)
    for (section, key), value in values.items():
        if section:
            changed[section] = {**changed[section], key: value}
        else:
            changed[key] = value
    try:
        return fits(Architecture.from_config(changed))
    except InputError:
        return False

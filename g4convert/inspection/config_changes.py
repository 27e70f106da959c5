"""Describes how two configs differ in their quantization sections, one line for each change."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from g4convert.checkpoint.sections import section_of

_LONGEST: Final = 60
"""Most characters of a value in a message."""


def list_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield the changes that a correction makes to a config: `key.key: old -> new`."""
    (before, section), (after, wanted) = section_of(old), section_of(new)
    if not isinstance(section, Mapping) or not isinstance(wanted, Mapping):
        texts = (short_json(one) if place else "left out" for place, one in ((before, section), (after, wanted)))
        yield f"{before or after}: {' -> '.join(texts)}"
        return
    if before != after:
        yield f"{before} -> {after}"
    yield from _differences(section, wanted, after)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> Iterator[str]:
    for key in dict.fromkeys((*old, *new)):
        was, now, subject = old.get(key), new.get(key), f"{path}.{key}"
        if was == now:  # null equals a missing key
            continue
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from _differences(was, now, subject)
        elif isinstance(was, list) and isinstance(now, list):
            lines = [f"{subject}: {short_json(one)} taken out" for one in was if one not in now]
            lines += [f"{subject}: {short_json(one)} added" for one in now if one not in was]
            yield from lines or [f"{subject}: in another order"]
        else:
            yield f"{subject}: {_value_at(old, key)} -> {_value_at(new, key)}"


def _value_at(holder: Mapping[str, Any], key: str) -> str:
    return short_json(holder[key]) if key in holder else "left out"


def short_json(value: object) -> str:
    """Return a value as JSON, cut to one short line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."

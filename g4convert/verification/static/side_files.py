"""Compares the files beside an output's weights with the source's: none lost or changed, none added that engines obey.

A file that the source lacks is judged by what it changes. Engines read it in place of what the source's other files
say, as `special_tokens_map.json` replaces tokens of `tokenizer_config.json`: a file that says the same is noted, and
one that says otherwise fails. If the source's files say nothing of the matter, it is a warning.
"""

import json
from collections.abc import Iterator, Mapping
from filecmp import cmp
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from g4convert.checkpoint.beside import PROCESSORS
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.needed import CHAT_TEMPLATE, TOKENIZER_CONFIG, has_chat_template
from g4convert.checkpoint.output_names import CARRIED_README, JOURNALS, README
from g4convert.checkpoint.patterns import MOST_PATTERNS, fault_of
from g4convert.checkpoint.record import RECORD, record
from g4convert.errors import InputError
from g4convert.gemma4 import is_drafter
from g4convert.report import Finding, Severity

OWN: Final = {RECORD, README}
"""Files that every output has of its own."""
UNREAD: Final = ("*.md", ".gitattributes", ".gitignore", "LICENSE*", "*.png", "*.jpg", "*.jpeg", "*.webp", "*.pdf")
"""Files that no program reads when it loads a model; other writers may replace them."""
COPY: Final = "copy it from the source again"
_DELETE: Final = "delete it, or verify against the model that has it"
_SAME_VALUES: Final = "the same values in other bytes"
_MOST_KEYS: Final = 4
"""Most keys of a JSON file that are named."""
_SPECIAL_TOKENS: Final = "special_tokens_map.json"
_GENERATION: Final = "generation_config.json"
_ALONE: Final = {"tokenizer.json", TOKENIZER_CONFIG}
"""Files that engines read whatever else there is."""
_NO_SAMPLING: Final[Mapping[str, object]] = {
    "_from_model_config": True, "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
    "output_attentions": False, "output_hidden_states": False, "use_cache": True, "return_dict_in_generate": False,
}  # fmt: skip
"""Settings of transformers without a generation_config.json; it writes some of these keys."""


def side_files(out: Checkpoint, source: Checkpoint) -> Iterator[Finding]:
    """Compare the tokenizer, processor, chat template and all other side files with the source's.

    Of a drafter no engine reads them, so a difference is a warning.
    """
    worst = Severity.WARN if is_drafter(out.config.get("model_type")) else Severity.FAIL
    expected = _expected_side_files(out, source)
    present = {*out.side_files, *(name for name in expected if (out.path / name).is_file())}
    for name in sorted({*source.side_files} - expected):
        text = f"left behind, as the recipe in {RECORD} says"
        yield Finding("static.side_files", Severity.INFO, name, text, "")
    for name in sorted(expected):
        carried = CARRIED_README if name == README and CARRIED_README in present else name
        problem = Severity.INFO if any(fnmatch(name, pattern) for pattern in UNREAD) else worst
        if carried not in present:
            yield Finding("static.side_files", problem, name, "missing", "as in the source", COPY)
        elif not cmp(out.path / carried, source.path / name, shallow=False):
            found = _difference(out.path / carried, source.path / name)
            severity = Severity.WARN if found == _SAME_VALUES else problem
            yield Finding("static.side_files", severity, name, found, "byte for byte as in the source", COPY)
    for name in sorted(present - {*source.side_files, *expected, *OWN, CARRIED_README}):
        if not fnmatch(name, JOURNALS):
            yield _judge_added(name, out, source, worst)


def _expected_side_files(out: Checkpoint, source: Checkpoint) -> set[str]:
    """Return the source's side files that an output should have, by `carry` and `leave` of its recorded recipe."""
    recipe = part(record(out.path), "recipe")
    carry, leave = (valid_patterns(recipe.get(key)) for key in ("carry", "leave"))
    try:
        return {*source.choosing(carry=carry, leave=leave).side_files}
    except InputError:  # the patterns do not fit this source: the record is of another source
        return {*source.side_files}


def valid_patterns(value: object) -> list[str]:
    """Return the valid patterns in a value of the record, at most `MOST_PATTERNS`."""
    listed = value if isinstance(value, list) else []
    return [one for one in listed[:MOST_PATTERNS] if isinstance(one, str) and not fault_of(one)]


def _judge_added(name: str, out: Checkpoint, source: Checkpoint, worst: Severity) -> Finding:
    """Return the finding on a file that the source lacks."""
    code, expected, beside = "static.side_files", "not there, as in the source", set(source.side_files)
    others: list[str] = []
    if name == _SPECIAL_TOKENS:
        others = _other_tokens(_object_in(out.path / name), _object_in(out.path / TOKENIZER_CONFIG))
        what = f"other tokens than in {TOKENIZER_CONFIG}, in whose place engines take them"
    elif name == _GENERATION:
        others = _settings_beyond(out.config, _object_in(out.path / name))
        what = "settings that engines take, and the source leaves to config.json"
    elif name == CHAT_TEMPLATE and has_chat_template(source.path, beside):
        stated = _object_in(source.path / TOKENIZER_CONFIG).get("chat_template")
        others = [] if stated == (out.path / name).read_text("utf-8", "replace") else ["template"]
        what = "engines take it in place of the source's"
    elif name == CHAT_TEMPLATE or name in _ALONE or (name in PROCESSORS and beside.isdisjoint(PROCESSORS)):
        what = "engines read it, and the source has none"
        return Finding(code, Severity.WARN, name, f"added: {what}", expected, _DELETE)
    if not others:
        return Finding(code, Severity.INFO, name, "not in the source", "")
    return Finding(code, worst, name, f"added: {what}: {_listed(others)}", expected, _DELETE)


def _object_in(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file; empty if it holds none, which `unreadable` reports."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _other_tokens(added: Mapping[str, Any], stated: Mapping[str, Any]) -> list[str]:
    """Return the keys of special_tokens_map.json for which tokenizer_config.json does not state the same token."""
    known = {_text_of(value) for value in stated.values()}
    known |= {_text_of(one) for value in stated.values() if isinstance(value, list) for one in value}
    same = {
        key: known.issuperset(map(_text_of, value)) if isinstance(value, list) else _same_token(stated, key, value)
        for key, value in added.items()
    }
    return [key for key, is_same in same.items() if not is_same]


def _same_token(stated: Mapping[str, Any], key: str, value: object) -> bool:
    return key in stated and _text_of(stated[key]) == _text_of(value)


def _text_of(token: object) -> str:
    """Return the text of a token, which may be an object with `content`."""
    return str(token.get("content") if isinstance(token, dict) else token)


def _settings_beyond(config: Mapping[str, Any], added: Mapping[str, Any]) -> list[str]:
    """Return the keys of generation_config.json that differ from what engines do by the model's config alone."""
    stated = (_NO_SAMPLING, config, part(config, "text_config"))
    others = {key: value for key, value in added.items() if key != "transformers_version" and value is not None}
    return [key for key, value in others.items() if not any(one.get(key) == value for one in stated)]


def _difference(one: Path, other: Path) -> str:
    """Return how a file differs from the source's, other than in `transformers_version`."""
    if one.suffix == ".json":
        try:
            values = [json.loads(path.read_bytes()) for path in (one, other)]
        except (ValueError, RecursionError):
            return "other bytes"
        if all(isinstance(value, dict) for value in values):
            others = _other_keys(*values)
            return f"other values of {_listed(others)}" if others else _SAME_VALUES
        return "other bytes" if values[0] != values[1] else _SAME_VALUES
    same_lines = one.read_bytes().split() == other.read_bytes().split()
    return "the same words with other spaces or line ends" if same_lines else "other bytes"


def _other_keys(one: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> list[str]:
    """Return the paths of keys that two JSON objects have different values of, or that only one has."""
    found = []
    for key in dict.fromkeys((*other, *one)):
        if key == "transformers_version" and not path:
            continue
        mine, its = one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(its, dict):
            found += _other_keys(mine, its, f"{path}{key}.")
        elif mine != its or (key in one) is not (key in other):
            found.append(f"{path}{key}")
    return found


def _listed(keys: list[str]) -> str:
    more = len(keys) - _MOST_KEYS
    return ", ".join(keys[:_MOST_KEYS]) + (f" and {more} more" if more > 0 else "")

"""Checks of an output's files: headers, index, sizes, and the side files copied from the source."""

import json
from collections.abc import Iterator
from filecmp import cmp
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from g4convert.checkpoint.beside import READ_BY_ENGINES, unreadable
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.leftovers import ADAPTER_CONFIG, is_adapter, is_leftover, is_read_by_loaders
from g4convert.checkpoint.output_names import CARRIED_README, JOURNALS, README
from g4convert.checkpoint.patterns import MOST_PATTERNS, fault_of
from g4convert.checkpoint.record import RECORD, record
from g4convert.checkpoint.shards import CONSOLIDATED, INDEX
from g4convert.checkpoint.tokens import tokens_beyond
from g4convert.errors import InputError
from g4convert.gemma4 import is_drafter
from g4convert.report import Detail, Finding, Severity

_OWN: Final = {RECORD, README}
_UNREAD: Final = ("*.md", ".gitattributes", ".gitignore", "LICENSE*", "*.png", "*.jpg", "*.jpeg", "*.webp", "*.pdf")
"""Files that no program reads when it loads a model; other writers may replace them."""
_NEEDED: Final = READ_BY_ENGINES - {"generation_config.json"}
"""Files that stop engines if they cannot be read; vLLM 0.33 and SGLang 0.5.23 give a drafter those of its target."""
_MODELOPT: Final = "hf_quant_config.json"
"""Settings that vLLM (transformers_utils/config.py:957) and SGLang (configs/model_config.py:1815) follow if config.json
has none."""
_RESTORE: Final = "copy it from the model that this one was made from"
_COPY: Final = "copy it from the source again"


def broken_files(error: InputError) -> Iterator[Finding]:
    """Yield one finding for each offender that `Checkpoint.open` refused."""
    for line in error.offenders or (error.message,):
        subject, _, found = line.partition(": ")
        code = "static.index" if INDEX in line else "static.files"
        yield Finding(code, Severity.FAIL, subject, found or line, "", error.hint)


def loose_files(out: Checkpoint) -> Iterator[Finding]:
    """Yield findings on journals of an unfinished conversion, and on weight files that the index does not name."""
    for name in out.side_files:
        if fnmatch(name, JOURNALS):
            found = "the journal of a conversion that did not finish: shards hold zeros where nothing was written"
            remedy = "run the same `g4convert quantize` again, it goes on"
            yield Finding("static.files", Severity.FAIL, name, found, "a finished checkpoint", remedy)
    needed = frozenset[str]() if is_drafter(out.config.get("model_type")) else _NEEDED
    for name, why in unreadable(out.path, out.side_files).items():
        stops = name in needed
        severity, detail = (Severity.FAIL, Detail.NO_START) if stops else (Severity.WARN, None)
        yield Finding("static.side_files", severity, name, why, "a file that engines can read", _RESTORE, detail)
    rows = (part(out.config, "text_config") or out.config).get("vocab_size")
    if (
        not is_drafter(out.config.get("model_type"))
        and isinstance(rows, int)
        and (beyond := tokens_beyond(out.path, rows))
    ):
        found = f"{beyond} tokens beyond the {rows:,} rows of the embedding: engines fail at each"
        remedy = "take the tokenizer of these weights"
        yield Finding("static.side_files", Severity.WARN, "tokenizer.json", found, "tokens that have a row", remedy)
    for name in out.stray_files:
        yield Finding("static.stray", Severity.WARN, name, _stray(name, out), "", "delete it")


def _stray(name: str, out: Checkpoint) -> str:
    """Return what a file that is no part of a checkpoint is, and who reads it."""
    file = name.rpartition("/")[2]
    what = f"{'weights of an adapter' if is_adapter(file) else 'weights that are no part of the checkpoint'}"
    readers = "no engine reads"
    if name == ADAPTER_CONFIG:
        what, readers = "settings of an adapter", "transformers applies if PEFT is installed"
    elif is_read_by_loaders(file):
        what = "settings of an adapter" if file == ADAPTER_CONFIG else "settings of another quantizer"
        if name == _MODELOPT and out.config.get("quantization_config") is None:
            readers = "vLLM and SGLang follow"
    elif is_leftover(name) and not is_adapter(file):
        what = "a file of a training run or another program"
    elif fnmatch(file, CONSOLIDATED):
        readers = "vLLM reads in place of all others, for its name"
    elif name.endswith(".safetensors") and name == file and not (out.path / INDEX).is_file():
        readers = f"vLLM and SGLang read too, as there is no {INDEX}"
    return f"{what}, which {readers}"


def total_size(out: Checkpoint) -> Iterator[Finding]:
    """Yield a finding if the total size that the index states is not the sum of the tensors' bytes."""
    path = out.path / INDEX
    if not path.is_file():
        return
    stated = part(json.loads(path.read_bytes()), "metadata").get("total_size")
    nbytes = sum(stored.info.nbytes for stored in out.tensors.values())
    if stated is not None and stated != nbytes:
        remedy = "correct metadata.total_size; programs show it, and size downloads by it"
        yield Finding("static.total_size", Severity.WARN, INDEX, f"total_size {stated}", str(nbytes), remedy)


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
        problem = Severity.INFO if any(fnmatch(name, pattern) for pattern in _UNREAD) else worst
        if carried not in present:
            yield Finding("static.side_files", problem, name, "missing", "as in the source", _COPY)
        elif not cmp(out.path / carried, source.path / name, shallow=False):
            same = _same_json(out.path / carried, source.path / name)
            severity, found = (Severity.WARN, "the same values in other bytes") if same else (problem, "other bytes")
            yield Finding("static.side_files", severity, name, found, "byte for byte as in the source", _COPY)
    for name in sorted(present - {*source.side_files, *expected, *_OWN, CARRIED_README}):
        if not fnmatch(name, JOURNALS):
            yield Finding("static.side_files", Severity.INFO, name, "not in the source", "")


def _expected_side_files(out: Checkpoint, source: Checkpoint) -> set[str]:
    """Return the source's side files that an output should have, by `carry` and `leave` of its recorded recipe."""
    recipe = part(record(out.path), "recipe")
    carry, leave = (_valid_patterns(recipe.get(key)) for key in ("carry", "leave"))
    try:
        return {*source.choosing(carry=carry, leave=leave).side_files}
    except InputError:  # the patterns do not fit this source: the record is of another source
        return {*source.side_files}


def _valid_patterns(value: object) -> list[str]:
    """Return the valid patterns in a value of the record, at most `MOST_PATTERNS`."""
    listed = value if isinstance(value, list) else []
    return [one for one in listed[:MOST_PATTERNS] if isinstance(one, str) and not fault_of(one)]


def _same_json(one: Path, other: Path) -> bool:
    """Return whether both files hold the same JSON value, `transformers_version` aside."""
    if one.suffix != ".json":
        return False
    try:
        values = [json.loads(path.read_bytes()) for path in (one, other)]
    except (ValueError, RecursionError):
        return False
    for value in values:
        if isinstance(value, dict):
            value.pop("transformers_version", None)
    return bool(values[0] == values[1])

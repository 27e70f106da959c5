"""Compares an output with what a stored reference holds of its source: config.json, and hashes of the side files.

The metadata of a stored reference has, besides its answers:

    config        the source's config.json
    side_files    XXH3 of each file beside the weights, by name
    sample        hash of some bytes of each tensor, see `provenance`

Its files themselves are not in it: what differs in a JSON file, or what a file that was added changes, is told only
where the source itself is the reference.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any, Final

from g4convert.checkpoint.beside import READ_BY_ENGINES
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.hashes import file_hashes
from g4convert.checkpoint.needed import CHAT_TEMPLATE
from g4convert.checkpoint.output_names import CARRIED_README, JOURNALS, README
from g4convert.checkpoint.patterns import matches
from g4convert.checkpoint.reader import Reader
from g4convert.checkpoint.record import record
from g4convert.conversion.fingerprint import sample_weights
from g4convert.gemma4 import Architecture, is_drafter
from g4convert.report import Finding, Severity
from g4convert.verification.static.config import config_keys, has_head, read_architecture
from g4convert.verification.static.side_files import COPY, OWN, UNREAD, valid_patterns

_CONFIG, _FILES, _SAMPLE = "config", "side_files", "sample"
_NOT_COMPARED: Final = "not compared: the stored reference was made before it held config.json and hashes of files"
_STORE_AGAIN: Final = "store it again: `g4convert reference MODEL -o FILE --overwrite`"


def describe_source(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a stored reference holds of its checkpoint besides answers, as JSON values."""
    with Reader(checkpoint.path, checkpoint.weight_files) as reader:
        sample = sample_weights(checkpoint, reader)
    hashes = file_hashes(checkpoint.path, checkpoint.side_files)
    return {_CONFIG: checkpoint.config, _FILES: hashes, _SAMPLE: sample}


def compare_described(out: Checkpoint, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings of `static.architecture`, `static.config` and `static.side_files`.

    Args:
        out: the output.
        facts: metadata of the stored reference.

    Raises:
        InputError: the reference's config is not that of a Gemma 4 model.
    """
    config, hashes = facts.get(_CONFIG), facts.get(_FILES)
    if not isinstance(config, dict) or not isinstance(hashes, dict):
        subjects = {"static.config": "config.json", "static.side_files": "files beside the weights"}
        for code, subject in subjects.items():
            yield Finding(code, Severity.INFO, subject, _NOT_COMPARED, "as in the source", _STORE_AGAIN)
        return
    original = Architecture.from_config(config)
    heads = has_head(out.infos)
    architecture, differences = read_architecture(out.config, original, has_head=heads)
    yield from differences
    text_only = architecture.model_type != original.model_type
    keys = [*config_keys(out.config, config, text_only=text_only, has_head=heads)]
    yield from keys
    if not any(one.severity is Severity.FAIL for one in keys):
        text = f"every key of the source is there, unchanged; {len(config)} at the top"
        yield Finding("static.config", Severity.PASS, "config.json", text, "")
    files = [*_compare_files(out, {str(name): str(digest) for name, digest in hashes.items()})]
    yield from files
    if not any(one.severity in {Severity.FAIL, Severity.WARN} for one in files):
        text = "tokenizer, processor and all other files are byte for byte the source's"
        yield Finding("static.side_files", Severity.PASS, f"{len(hashes)} files", text, "")


def _compare_files(out: Checkpoint, hashes: Mapping[str, str]) -> Iterator[Finding]:
    code = "static.side_files"
    worst = Severity.WARN if is_drafter(out.config.get("model_type")) else Severity.FAIL
    recipe = part(record(out.path), "recipe")
    carry, leave = (valid_patterns(recipe.get(key)) for key in ("carry", "leave"))
    present = {*out.side_files, *(name for name in hashes if "/" not in name and (out.path / name).is_file())}
    renamed = {README: CARRIED_README} if CARRIED_README in present else {}
    written = file_hashes(out.path, sorted(present))
    for name, digest in sorted(hashes.items()):
        problem = Severity.INFO if any(fnmatch(name, pattern) for pattern in UNREAD) else worst
        found = written.get(renamed.get(name, name))
        if found is None and not any(matches(pattern, name) for pattern in leave):
            yield Finding(code, problem, name, "missing", "as in the source", COPY)
        elif found not in {None, digest}:
            yield Finding(code, problem, name, "other bytes", "byte for byte as in the source", COPY)
    for name in sorted(present - {*hashes, *OWN, CARRIED_README}):
        if not fnmatch(name, JOURNALS) and not any(matches(pattern, name) for pattern in carry):
            is_read = name in READ_BY_ENGINES or name == CHAT_TEMPLATE
            severity, more = (Severity.WARN, "; engines read it") if is_read else (Severity.INFO, "")
            yield Finding(code, severity, name, f"not in the source{more}", "")

"""`g4convert check --fix`: rewrites `quantization_config` to match the tensors of a checkpoint.

    tensors -> Weights: packed modules, packings -> ignore, quantization_config -> static checks -> config.json

The new config is the config that `quantize` would write for the same packed modules, proved in the same way; then the
static checks run with it. Files change only if no check fails any more. The old config.json is kept as
`config.json.orig`, and a second run finds nothing to do. A config that declares quantized activations is refused, as no
tensor can confirm them.
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

from g4convert.checkpoint.directory import CONFIG, Checkpoint
from g4convert.checkpoint.entries import COMPRESSED_TENSORS
from g4convert.checkpoint.files import part
from g4convert.checkpoint.sections import section_in
from g4convert.checkpoint.stored import stored_scheme
from g4convert.conversion.writer import sync_directory
from g4convert.engines.groups import sizes_said_of_rows
from g4convert.engines.ignore import with_lists
from g4convert.engines.limits import Packing
from g4convert.engines.refused_formats import refuse_other_formats
from g4convert.engines.stored import StoredCheckpoint
from g4convert.errors import GateError
from g4convert.gemma4 import Architecture
from g4convert.inspection.config_changes import list_changes, short_json
from g4convert.names import Name
from g4convert.planning.config import make_quantization_config
from g4convert.report import Detail, Finding, Severity
from g4convert.verification.static.extras import unusable
from g4convert.verification.static.level import REQUIRED_ENGINES, check_stored
from g4convert.whole_files import write_whole

CURABLE: Final = {
    "static.ignore", "static.lm_head", "static.fused_names", "static.dead_entry",
    "static.scheme", "static.quantization_config",
}  # fmt: skip
_BAD: Final = {Severity.FAIL, Severity.WARN}
_KEPT: Final = ("kv_cache_scheme", "transform_config", "version")
"""Keys of a section of compressed-tensors that do not describe the packing; the new section keeps them if they are
valid. Another tool's section has a `version` of its own, which says nothing of compressed-tensors."""
_AGAIN: Final = "nothing was written; quantize the source again, as with `g4convert quantize`"
_LOST: Final = "nothing was written; copy what was lost, or quantize the source again"
_SAME: Final = "nothing was written; `g4convert check` without --fix tells everything"
_NO_ACTIVATIONS: Final = "no config is known: tensors cannot say whether activations are quantized"
_BITS: Final = {4, 8}
_STEP: Final = 8  # recipes allow group sizes that are multiples of it


@dataclass(frozen=True, slots=True)
class Fixed:
    """A correction that was written.

    Args:
        kept: new path of the old config.json.
        changes: changes, one line each: `key.key: old -> new`; in lists, one line per removed or added entry.
    """

    kept: Path
    changes: tuple[str, ...]


def fix(directory: Path, engines: Collection[str] = REQUIRED_ENGINES) -> Fixed | None:
    """Correct the `quantization_config` of a checkpoint, if it is wrong.

    Args:
        directory: the checkpoint.
        engines: engines that must load it.

    Returns:
        The changes, and the path of the old config.json; None where nothing needed a correction.

    Raises:
        GateError: no config can mend the checkpoint, or the old config declares what tensors cannot confirm; gives the
            reasons. Nothing was written.
        InputError: not a checkpoint, or not a Gemma 4.
        UnsupportedError: stored in another format than pack-quantized.
    """
    out = Checkpoint.open(directory)
    refuse_other_formats(out)
    stored = StoredCheckpoint.of(out, Architecture.from_config(out.config))
    config = _find_mended_config(directory, stored, _find_faults(stored, engines), engines)
    return Fixed(_write(directory, config), tuple(list_changes(out.config, config))) if config else None


def is_fixable(stored: StoredCheckpoint, findings: Iterable[Finding], engines: Collection[str]) -> bool:
    """Return whether `fix` would correct a checkpoint.

    Args:
        stored: the checkpoint.
        findings: findings of the static checks.
        engines: engines that must load it.
    """
    bad = [finding for finding in findings if finding.severity in _BAD]
    try:
        return _find_mended_config(stored.checkpoint.path, stored, bad, engines) is not None
    except GateError:
        return False


def _find_mended_config(
    directory: Path, stored: StoredCheckpoint, before: Collection[Finding], engines: Collection[str]
) -> dict[str, Any] | None:
    """Return the config with which no check fails any more; None where nothing needs a correction.

    Raises:
        GateError: see `fix`.
    """
    out = stored.checkpoint
    if not any(one.code in CURABLE for one in before):
        _refuse(
            directory,
            [one for one in before if one.severity is Severity.FAIL],
            "no quantization_config can mend what fails",
        )
        return None
    if lines := [one.line for one in before if one.detail is Detail.ORDER]:
        why = "the columns are in another order than groups, which no config can say"
        raise GateError(f"{directory}: not fixed: {why}", offenders=lines, hint=_AGAIN)
    if lines := list(_unlike_codes(stored)):
        why = "the config says how codes are read, and what is stored cannot confirm it"
        raise GateError(f"{directory}: not fixed: {why}", offenders=lines, hint=_LOST)
    if lines := list(_activations(out.config)):
        raise GateError(f"{directory}: not fixed: {_NO_ACTIVATIONS}", offenders=lines, hint=_SAME)
    try:
        config = _make_config(stored)
    except GateError as error:
        raise GateError(f"{directory}: not fixed: {error.message}", offenders=error.offenders, hint=_SAME) from error
    after = _find_faults(stored.declaring(config), engines)
    left = [one for one in after if one.severity is Severity.FAIL or one.code in CURABLE]
    _refuse(directory, left, "what fails lies elsewhere, no quantization_config can mend it")
    return config


def _unlike_codes(stored: StoredCheckpoint) -> Iterator[str]:
    """Yield the config's statements on how to read codes that the stored tensors do not confirm."""
    schemes = stored.weights.schemes
    for group in stored.section.groups if stored.section else ():
        if group.symmetric is False and (lost := [name for name, one in schemes.items() if one.symmetric]):
            yield f"config_groups.{group.name}: symmetric is false, and {len(lost)} modules have no weight_zero_point"
        if group.kind == "float":
            yield f"config_groups.{group.name}: type is float, and the words that are stored are of pack-quantized"


def _activations(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the places where a config declares quantized activations."""
    for name, group in part(section_in(config), "config_groups").items():
        for key in ("input_activations", "output_activations"):
            if isinstance(group, Mapping) and (value := group.get(key)) is not None:
                yield f"config_groups.{name}.{key}: {short_json(value)} (set it to null if only weights were quantized)"
        if isinstance(group, list) and "A16" not in name.upper():
            yield f"config_groups.{name}: a preset that may quantize activations (write the scheme out)"


def _make_config(stored: StoredCheckpoint) -> dict[str, Any]:
    """Return the config of a checkpoint with the `quantization_config` that its tensors need.

    Raises:
        GateError: no recipe packs in this way, or no short list of entries describes the packed modules.
    """
    old, weights = stored.checkpoint.config, stored.weights
    config = {key: value for key, value in old.items() if key != "compression_config"}
    if isinstance(text := config.get("text_config"), Mapping):
        config["text_config"] = {
            k: v for k, v in text.items() if k not in {"quantization_config", "compression_config"}
        }
    config.pop("quantization_config", None)
    if not stored.contents.packed:
        return config
    section = make_quantization_config(with_lists(replace(weights, packed=_packings(stored))))
    return {**config, "quantization_config": {**section, **_kept_keys(section_in(old))}}


def _kept_keys(said: Mapping[str, Any]) -> dict[str, Any]:
    if said.get("quant_method") not in (None, COMPRESSED_TENSORS):
        return {}
    wrong = unusable(said)
    return {key: said[key] for key in _KEPT if key in said and key not in wrong}


def _packings(stored: StoredCheckpoint) -> dict[str, Packing]:
    """Return packed module -> packing.

    Raises:
        GateError: a module is packed in a way that no recipe has.
    """
    contents, section = stored.contents, stored.section
    said = next((group.num_bits for group in (section.groups if section else ()) if group.num_bits), None)
    found = {
        name: stored_scheme(module, contents.expected[name].shape, said) for name, module in contents.packed.items()
    }
    sizes = {scheme.group_size for scheme in found.values() if scheme.group_size}
    of_rows = sizes_said_of_rows(stored.weights)
    wrong: dict[str, str] = {}
    packings: dict[str, Packing] = {}
    for name, scheme in found.items():
        k, module = contents.expected[name].shape[-1], Name(name).module
        bits, per_row = scheme.num_bits, scheme.strategy == "channel"
        one_group = per_row and of_rows.get(module, k if k in sizes else None) == k  # both are a scale [n, 1]
        size = k if one_group else scheme.group_size
        known = scheme.format == "pack-quantized" and scheme.symmetric and not scheme.fault
        if bits not in _BITS or not known or not (per_row or (size and size % _STEP == 0)):
            wrong.setdefault(f"{scheme.label}{f': {scheme.fault}' if scheme.fault else ''}", name)
        else:
            packings[module] = Packing(bits, size)
    if wrong:
        lines = [f"{name}: {label}" for label, name in wrong.items()]
        raise GateError("not packed as g4convert packs: int4 or int8, symmetric, pack-quantized", offenders=lines)
    return packings


def _find_faults(stored: StoredCheckpoint, engines: Collection[str]) -> list[Finding]:
    return [finding for finding in check_stored(stored, tp=(), engines=engines) if finding.severity in _BAD]


def _refuse(directory: Path, findings: Iterable[Finding], why: str) -> None:
    if lines := [f"{one.line}{f' ({one.remedy})' if one.remedy else ''}" for one in findings]:
        raise GateError(f"{directory}: not fixed: {why}", offenders=lines, hint=_SAME)


def _write(directory: Path, config: Mapping[str, Any]) -> Path:
    """Copy the old config.json to a free name, then replace it; return the copy's path. A failure leaves no copy.

    A config.json that is a link is replaced itself, as what it points to belongs to others, too. A copy is removed only
    while config.json still is what was copied: a signal may arrive when it has just been replaced.
    """
    path = directory / CONFIG
    before = path.read_bytes()
    old = _copy_config(directory, before)
    try:
        write_whole(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n", replace_link=True)
    except BaseException:
        if path.read_bytes() == before:
            old.unlink()
        raise
    sync_directory(directory)
    return old


def _copy_config(directory: Path, data: bytes) -> Path:
    """Write `config.json.orig`, or `config.json.orig.N` with the first N that is free; return its path.

    The name is taken as the file is made: of two runs at once each has its own.
    """
    for number in count(1):
        name = directory / (f"{CONFIG}.orig.{number}" if number > 1 else f"{CONFIG}.orig")
        try:
            file = name.open("xb")
        except FileExistsError:
            continue
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            name.unlink()
            raise
        return name
    raise AssertionError  # numbers do not end

"""Checks whether an output already exists: same source, recipe and version, and no file damaged.

A job that is run again after it has finished (a CI retry) then has nothing to do. Other outputs are not touched.
A source is the same by its config, headers and a sample of its weights, as in `fingerprint`.
Shards are compared with the hashes in g4convert.json, side files with the source, and config.json with the config that
the job would write. The model card and g4convert.json itself are not checked. `job.prepare` checks every output for
whether engines load it, and whether the calibration file belongs to the model.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from g4convert.checkpoint.directory import CONFIG, Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.hashes import file_hashes
from g4convert.checkpoint.record import record
from g4convert.conversion.side_files import carried_as, json_bytes
from g4convert.conversion.staging import Staging
from g4convert.errors import G4Error, InputError


def is_finished(
    staging: Staging, expected: Mapping[str, Any], source: Checkpoint, config: Mapping[str, Any], calibration: str
) -> bool:
    """Return whether the output of a conversion already exists.

    Args:
        staging: its directories.
        expected: the version and the `source` and `recipe` entries of its g4convert.json.
        source: the checkpoint that is converted.
        config: its config.json.
        calibration: hash of the calibration file's ids; empty without one, also if it has yet to be made.

    Raises:
        InputError: the output exists, but files were changed since; names all of them.
    """
    written = record(staging.target)
    if not written:
        return False  # without a record the directory may hold anything, so it is not read further
    try:
        out = Checkpoint.open(staging.target)
    except G4Error:
        return False
    if not out.tensors or any(written.get(key) != value for key, value in expected.items()):
        return False
    if calibration and calibration != _calibration_hash(written):
        return False
    damaged = [*_damaged_files(out, source, part(written, "files"))]
    if out.config_bytes != json_bytes(config):
        damaged.append(CONFIG)
    if damaged:
        text = f"{staging.output}: is of this source by this recipe and version, but was changed since"
        raise InputError(text, offenders=sorted(damaged), hint="--overwrite makes it again")
    return True


def _calibration_hash(written: Mapping[str, Any]) -> object:
    """Return the hash of the ids that an output was calibrated on, from its g4convert.json."""
    return part(part(written, "result"), "calibration").get("tokens")


def _damaged_files(out: Checkpoint, source: Checkpoint, hashes: Mapping[str, Any]) -> Iterator[str]:
    """Yield the shards and side files of `out` that changed since they were written."""
    present_hashes = file_hashes(out.path, out.weight_files)
    yield from {*hashes, *present_hashes} - {
        name for name, digest in present_hashes.items() if part(hashes, name).get("xxh3_128") == digest
    }
    carried = {name: carried_as(name) for name in source.side_files}
    present = [name for name, written in carried.items() if (out.path / written).is_file()]
    before = file_hashes(source.path, present)
    after = file_hashes(out.path, (carried[name] for name in present))
    yield from (written for name, written in carried.items() if name not in before or before[name] != after[written])

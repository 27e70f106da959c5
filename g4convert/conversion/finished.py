"""Checks whether an output already exists: same source, recipe and version, and no file damaged.

A job that is run again after it has finished (a CI retry) then has nothing to do. Other outputs are not touched.
Shards are compared with the hashes in g4convert.json, side files with the source, and config.json with the config that
the job would write. The model card and g4convert.json itself are not checked.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from g4convert import __version__
from g4convert.checkpoint.directory import CONFIG, Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.gguf import is_gguf
from g4convert.checkpoint.hashes import file_hashes
from g4convert.checkpoint.record import record
from g4convert.conversion.job import Job
from g4convert.conversion.side_files import carried_as, json_bytes, made_of
from g4convert.conversion.staging import Staging
from g4convert.errors import G4Error, InputError
from g4convert.planning.config import output_config
from g4convert.planning.steps import make_plan
from g4convert.planning.weights import planned_weights


def is_finished(job: Job) -> bool:
    """Return whether a job's output already exists.

    Raises:
        InputError: the output exists, but files were changed since; names all of them.
    """
    target, recipe = Staging.of(job.output).target, job.recipe.recipe
    said = record(target)
    if not said:
        return False  # without a record the directory may hold anything, so it is not read further
    try:
        out = Checkpoint.open(target)
        source = Checkpoint.open(job.source.path).choosing(carry=recipe.carry, leave=recipe.leave)
        plan = make_plan(source, recipe)
        config = output_config(source.config, plan, planned_weights(plan))
    except G4Error:
        return False  # the conversion will raise this error itself
    expected = {"g4convert": __version__, **made_of(job.recipe, job.source, source)}
    if not out.tensors or any(said.get(key) != value for key, value in expected.items()):
        return False
    if job.calibration is not None and job.calibration.exists() and _ids_of(job.calibration) != _calibrated_on(said):
        return False
    damaged = [*_damaged(out, source, part(said, "files"))]
    if out.config_bytes != json_bytes(config):
        damaged.append(CONFIG)
    if damaged:
        text = f"{job.output}: is of this source by this recipe and version, but was changed since"
        raise InputError(text, offenders=sorted(damaged), hint="--overwrite makes it again")
    return True


def _ids_of(calibration: Path) -> str | None:
    """Return the hash of a calibration file's ids, or of a whole importance matrix; None for any other file."""
    if is_gguf(calibration):
        return sha256(calibration.read_bytes()).hexdigest()
    try:
        with safe_open(calibration, "np") as file:
            return (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None


def _calibrated_on(said: Mapping[str, Any]) -> object:
    """Return the hash of the ids that an output was calibrated on, from its g4convert.json."""
    return part(part(said, "result"), "calibration").get("tokens")


def _damaged(out: Checkpoint, source: Checkpoint, hashes: Mapping[str, Any]) -> Iterator[str]:
    """Yield the shards and side files of `out` that changed since they were written."""
    found = file_hashes(out.path, out.weight_files)
    yield from {*hashes, *found} - {name for name, one in found.items() if part(hashes, name).get("xxh3_128") == one}
    carried = {name: carried_as(name) for name in source.side_files}
    present = [name for name, written in carried.items() if (out.path / written).is_file()]
    before = file_hashes(source.path, present)
    after = file_hashes(out.path, (carried[name] for name in present))
    yield from (written for name, written in carried.items() if name not in before or before[name] != after[written])

"""Looks whether an output is there already: of the same source, by the same recipe and version, and whole.

A job that is run again after it has ended (a CI retry) has nothing to do. What is there of anything else is not
touched. The bytes of the weights are not read: a verification does that.
"""

import json

from g4convert import __version__
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.provenance import made_of
from g4convert.conversion.run import Job
from g4convert.conversion.staging import Staging
from g4convert.errors import InputError

__all__ = ["is_finished"]


def is_finished(job: Job) -> bool:
    """Return whether the output of a job is what the job would write, as far as headers and its own record say."""
    target = Staging.of(job.output).target
    try:
        said = json.loads((target / "g4convert.json").read_bytes())
        out = Checkpoint.open(target)
        source = Checkpoint.open(job.source.path)
    except (OSError, ValueError, RecursionError, InputError):
        return False
    expected = {"g4convert": __version__, **made_of(job.recipe, job.source, source)}
    return (
        bool(out.tensors) and isinstance(said, dict) and all(said.get(key) == value for key, value in expected.items())
    )

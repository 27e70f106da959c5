"""An existing calibration file: read if `calibrate` would make the same file, otherwise refused with a reason.

The file has a hash of its request. Requests with and without a number of samples have different hashes, but often the
same ids. So the ids are made again and compared, unless the model answers, which takes long.
"""

from collections.abc import Callable
from dataclasses import replace

from g4convert.api.calibration_request import CalibrationRequest
from g4convert.calibration.kept import Begun
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import Model
from g4convert.errors import InputError
from g4convert.places import already_exists


def read_existing(
    begun: Begun, request: CalibrationRequest, make: Callable[[], CalibrationFile] | None, *, statistics: bool
) -> CalibrationFile:
    """Read the existing file.

    Args:
        begun: the file, and what it is to be made of.
        request: the request.
        make: makes the ids without the file; None if this takes long.
        statistics: whether the file is to have statistics.

    Raises:
        UsageError: it is no calibration file, damaged, or another than would be made.
        InputError: too little text for the samples that are asked for.
    """
    try:
        finished = begun.finished(statistics=statistics)
        if finished is not None:
            return finished
        existing = CalibrationFile.load(begun.file)
        rows = len(existing.ids)
        if request.samples in {None, rows}:
            other = replace(begun, request={**begun.request, "samples": rows if request.samples is None else None})
            finished = other.finished(statistics=statistics)
    except InputError as error:
        raise already_exists(begun.file, error.message) from error
    if finished is None:
        raise already_exists(begun.file, _describe_difference(existing, request, statistics=statistics))
    if make is not None and _decided_content(make()) == _decided_content(finished):
        return finished
    raise already_exists(begun.file, "made without --samples" if request.samples else f"made with --samples {rows}")


def _decided_content(file: CalibrationFile) -> object:
    """Return the content of a file that a request decides."""
    return file.hash, dict(file.texts or {})


def _describe_difference(existing: CalibrationFile, request: CalibrationRequest, *, statistics: bool) -> str:
    """Say why a calibration file is not the requested one."""
    samples, length = existing.ids.shape
    seed = (existing.texts or {}).get("seed")
    if existing.model != Model.of(request.checkpoint):
        return "of another model"
    if length != request.length or request.samples not in {None, samples}:
        return f"{samples:,} samples of {length:,} tokens"
    if seed != request.seed:
        return f"by seed {seed}"
    if (existing.statistics is not None) is not statistics:
        return "without statistics" if statistics else "with statistics"
    return "of other texts or answers, or by another version"

"""The calibration file of a conversion: the file that the user named, or a file beside the output, made if missing."""

from dataclasses import replace
from pathlib import Path
from shlex import quote

from g4convert.api.led_by_rank_0 import run_in_lead
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.apart import is_same
from g4convert.conversion.calibration import Calibration
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import Model
from g4convert.conversion.job import Conversion, prepare
from g4convert.conversion.lock import Lock
from g4convert.conversion.method import choose
from g4convert.conversion.ranks import ALONE, Ranks
from g4convert.errors import UsageError
from g4convert.places import make_directory
from g4convert.planning.plan import Plan
from g4convert.progress import Progress


def with_calibration(conversion: Conversion, ranks: Ranks, progress: Progress) -> Conversion:
    """Return the conversion with a calibration file that is complete; rank 0 makes it, and the others help.

    Raises:
        G4Error: the file cannot be made, or is of no use for the model.
        Interrupted: Ctrl-C; finished layers are kept.
    """
    job = conversion.job
    made = run_in_lead(ranks, job.workers, progress, lambda sharing: _complete(conversion, progress, sharing))
    return prepare(replace(job, calibration=job.own_calibration)) if made else conversion


def _complete(conversion: Conversion, progress: Progress, ranks: Ranks) -> bool:
    """Make or complete the calibration file; return True if the conversion must use the file beside the output."""
    calibration, plan = conversion.calibration, conversion.plan
    if calibration is None or calibration.is_complete(plan):
        return False
    with Reader(conversion.checkpoint.path, conversion.checkpoint.weight_files) as reader:
        choose(plan, conversion.checkpoint, reader)  # what can be refused, is now
    if calibration.is_there:
        job, own = conversion.job, conversion.job.own_calibration
        source, device, workers = conversion.checkpoint, job.device, job.workers
        if not job.overwrite:
            _check_own_file(own, calibration, source)
        add_statistics(
            calibration.path, own, plan, source, device=device, workers=workers, progress=progress, ranks=ranks
        )
    else:
        _calibrate_on_bundled(conversion, calibration.path, progress, ranks)
    return True


def _calibrate_on_bundled(conversion: Conversion, path: Path, progress: Progress, ranks: Ranks) -> None:
    """Make the conversion's own calibration file from the bundled texts."""
    from g4convert.api.calibrate import calibrate  # noqa: PLC0415 -- here and below: brings torch and transformers

    job, layered = conversion.job, conversion.plan.recipe.is_layered
    make_directory(path.parent)
    progress.say(f"calibration: of the bundled texts, kept in {path}")
    calibrated = calibrate(
        job.source.path,
        path,
        answers=False,
        statistics=not layered,
        device=job.device,
        workers=job.workers,
        overwrite=job.overwrite,
        progress=progress,
        ranks=ranks,
    )
    rows = f"{calibrated.tokens.samples:,} x {calibrated.tokens.length:,} tokens"
    progress.say(f"calibration: {rows} of the bundled texts, {calibrated.texts['answers']}")


def add_statistics(  # noqa: PLR0913 -- a file, its model, and who does it
    ids_file: Path,
    own: Path,
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    device: str,
    workers: int,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> None:
    """Add statistics to a file of token ids, and save the result as an output's own file, unless it is that already.

    Args:
        ids_file: the file of token ids.
        own: path of the output's own file, which may be the same.
        plan: plan of the output.
        checkpoint: the model.
        device: device that runs it.
        workers: threads; 0 is one for each core.
        progress: told of each step.
        ranks: rank 0 of ranks that share the pass.

    Raises:
        InputError: the ids are not of the model.
        EnvironmentFault: the disk is too small, or another process writes the file.
    """
    from g4convert.calibration.kept import UnfinishedRecording, check_ours, clean, drop, partial_of  # noqa: PLC0415
    from g4convert.calibration.record import Recording, record  # noqa: PLC0415
    from g4convert.calibration.states import check_room  # noqa: PLC0415
    from g4convert.calibration.tokens import Tokens  # noqa: PLC0415
    from g4convert.devices import torch_device  # noqa: PLC0415
    from g4convert.planning.between import state_bytes  # noqa: PLC0415

    text, place = plan.architecture.text, torch_device(device)
    tokens, file = Tokens.load(ids_file, text.vocab_size, checkpoint), CalibrationFile.load(ids_file)
    scratch, model = partial_of(own), Model.of(checkpoint)
    if own.exists() and _has_statistics_of(CalibrationFile.load(own), file, model):
        clean(
            own, UnfinishedRecording(scratch, Recording(checkpoint.path, tokens, scratch, place).facts(model)).is_ours
        )
        return
    progress.say(f"calibration: statistics over {tokens.samples:,} x {tokens.length:,} tokens, kept in {own}")
    ids = (tokens.samples - len(tokens.judges)) * tokens.length
    with Lock.beside(own) as lock:
        lock.take()
        check_ours(scratch)
        check_room(scratch, state_bytes(text, ids, layered=False))
        statistics = record(
            checkpoint.path, tokens, scratch, workers=workers, device=place, progress=progress, ranks=ranks
        )
        lock.check()
        replace(file, model=statistics.model, statistics=statistics).save(own)
        drop(scratch)


def _check_own_file(own: Path, calibration: Calibration, checkpoint: Checkpoint) -> None:
    """Check that the output's own file may get the statistics of a model over a file of token ids.

    Raises:
        UsageError: the file is there, of other ids or another model.
        InputError: it is there, and no calibration file.
    """
    if not own.exists() or is_same(own, calibration.path):
        return
    existing = CalibrationFile.load(own)
    if existing.hash != calibration.hash or (existing.model is not None and existing.model != Model.of(checkpoint)):
        hint = f"move it away, or take it: --calibration {quote(str(own))}; --overwrite replaces it"
        raise UsageError(
            f"{own}: is there already, of other texts than {calibration.path}, or another model", hint=hint
        )


def _has_statistics_of(existing: CalibrationFile, file: CalibrationFile, model: Model) -> bool:
    """Return whether `existing` already has the statistics of this model over the ids of `file`."""
    return existing.statistics is not None and (existing.hash, existing.model) == (file.hash, model)

"""`g4convert.calibrate`: token ids to calibrate on, from texts, and what the model's Linears are given on them."""

import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from g4convert.api.calibration_request import CalibrationRequest
from g4convert.api.existing_calibration import read_existing
from g4convert.api.led_by_rank_0 import run_in_lead
from g4convert.calibration.answers import Own, should_answer
from g4convert.calibration.documents import hash_of_documents
from g4convert.calibration.kept import Begun, check_ours, partial_of
from g4convert.calibration.record import record
from g4convert.calibration.states import check_room
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.fingerprint import check_unchanged
from g4convert.conversion.lock import Lock
from g4convert.conversion.ranks import ALONE, Ranks
from g4convert.conversion.statistics import Statistics
from g4convert.devices import torch_device
from g4convert.errors import UsageError
from g4convert.places import already_exists, check_apart, expand_home
from g4convert.planning.between import state_bytes
from g4convert.progress import Progress
from g4convert.run_options import DeviceLike, check_run, device_name
from g4convert.whole_files import check_writable


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibration file that was written.

    Args:
        output: the file.
        tokens: its rows of ids.
        texts: what they are made of, as the file has it: `documents`, `kinds`, `chat_frame`, `answers`, `seed`,
            `data`, their hash, and `pictures`: how many there are, or why a model that takes them has none.
        statistics: what the model's Linears are given; None where they were not asked for.
        already_done: whether the same call had made the file before, so that nothing was written.
    """

    output: Path
    tokens: Tokens
    texts: dict[str, Any]
    statistics: Statistics | None
    already_done: bool = False

    def __repr__(self) -> str:
        """Return the file and the size of the sample, as all fields would fill pages."""
        size = f"samples={self.tokens.samples:,}, length={self.tokens.length:,}"
        return f"Calibrated({str(self.output)!r}, {size})"

    @classmethod
    def of(cls, output: Path, file: CalibrationFile, *, already_done: bool = False) -> "Calibrated":
        """Return the result for a file that was read or written."""
        tokens = Tokens.of(file)
        return cls(output, tokens, dict(file.texts or {}), file.statistics, already_done)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON, as `g4convert calibrate --json` prints it."""
        tokens, statistics = self.tokens, self.statistics
        coverage = None if statistics is None else statistics.coverage
        return {
            "schema_version": 1,
            "output": str(self.output),
            "samples": tokens.samples,
            "length": tokens.length,
            "tokens": tokens.samples * tokens.length,
            "judging": len(tokens.judges),
            **self.texts,
            "sha256": tokens.hash,
            **({} if tokens.pictures is None else {"samples_with_pictures": len(tokens.pictured)}),
            "statistics": None if statistics is None else statistics.hash,
            "modules": 0 if statistics is None else len(statistics.inputs),
            "coverage": None if coverage is None else asdict(coverage),
            **({"already_done": True} if self.already_done else {}),
        }


def calibrate(  # noqa: PLR0913 -- the choices of a sample
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    answers: bool | None = None,
    statistics: bool = True,
    workers: int = 0,
    device: DeviceLike = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Calibrated:
    """Make a calibration file for the recipes that look at what a model reads. After a stop, the same call continues.

    If the file is there and was made by the same call, in this version and of the same model, it is read and returned.

    Args:
        model: a directory, or `org/name[@revision]` on the Hugging Face hub.
        output: the .safetensors file; it appears when everything is in it.
        data: texts: a .jsonl or .txt file, or a dataset as `org/name[:split]`; None takes the bundled ones, which have
            pictures for a model that takes them, if a row holds one.
        samples: rows of ids; None makes as many as the texts fill, 128 at most.
        length: tokens of a row; None takes twice the sliding window, 2,048 at most.
        seed: decides the order of texts, and answers.
        answers: whether the model answers the questions itself, at temperature 1; None lets a chat model that fits the
            memory, on a GPU or of at most 1 GiB.
        statistics: run the model once, layer by layer, for what its Linears are given: `imatrix` needs it,
            `gptq` does not.
        workers: threads of that pass; 0 is one for each core.
        device: what answers and runs the model: `cpu`, `cuda` or `cuda:N`.
        overwrite: replace a file that is there.
        progress: told of answered ids and of layers; a subclass of `g4convert.progress.Progress`.
        ranks: rank 0 of ranks that share the pass for statistics; see `g4convert.calibration.record.assist`.

    Returns:
        The file, and what is in it.

    Raises:
        UsageError: the file is there already and of another call, or damaged, or has another ending, a number is out
            of range, or answers are asked of a model that does not fit the memory, or to questions that do not fit
            its context.
        InputError: no such model, no tokenizer, no such texts, or too few of them; pictures that do not load, or that
            the model does not take; the model changed meanwhile; or in FILE.partial is what no run wrote.
        GateError: the tensors of a model that answers are not its own, or a logit is not finite.
        EnvironmentFault: the model or the dataset cannot be fetched, no such device, not enough memory,
            the disk is too small, or another process makes this file.
        Interrupted: stopped on request; ids and finished layers are kept.
    """
    device = device_name(device)
    check_run(workers=workers, device=device)
    path, display = expand_home(output), progress or Progress()
    texts = None if data is None else str(expand_home(data))
    exists = path.is_file() and not overwrite
    _check_name(path)
    if not exists:
        _check_place(path, overwrite=overwrite)
    request = CalibrationRequest.of(os.fspath(model), samples=samples, length=length, seed=seed)
    check_apart([path, partial_of(path)], [request.checkpoint.path, *([] if texts is None else [Path(texts)])])
    documents = request.read_bundled() if texts is None else request.read(texts)
    own = should_answer(request.checkpoint, torch_device(device), chat=request.frame.chat, asked=answers)
    if own.answers and texts is not None:
        request.check_questions(texts, documents)
    begun = Begun(path, {**request.facts, "data": hash_of_documents(documents), "answers": own.answers})
    make_ids = partial(request.make_file, documents, own, device, display)
    if exists:
        existing = read_existing(begun, request, None if own.answers else make_ids, statistics=statistics)
        begun.clean()
        return Calibrated.of(path, existing, already_done=True)
    count_statistics = partial(
        _count_statistics, request, begun, workers=workers, device=device, progress=display, ranks=ranks
    )
    with Lock.beside(path) as lock, Reader(request.checkpoint.path, request.checkpoint.weight_files) as reader:
        lock.take()
        _check_place(path, overwrite=overwrite)  # again: another process may have made it until now
        check_ours(begun.directory)
        file = begun.kept_ids()
        if file is None:
            file = replace(make_ids(), request=begun.hash)
            check_unchanged(request.checkpoint, reader)
            if statistics:
                begun.keep(file)
        if statistics:
            file = replace(file, statistics=count_statistics(Tokens.of(file)))
        lock.check()
        check_unchanged(request.checkpoint, reader)
        file.save(path, overwrite=overwrite)
        begun.drop()
    return Calibrated.of(path, file)


def _count_statistics(  # noqa: PLR0913 -- a request, and how the model runs
    request: CalibrationRequest,
    begun: Begun,
    tokens: Tokens,
    *,
    workers: int,
    device: str,
    progress: Progress,
    ranks: Ranks,
) -> Statistics:
    """Run the model once, layer by layer, for what its Linears are given on the rows that do not judge."""
    ids = (tokens.samples - len(tokens.judges)) * tokens.length
    check_room(begun.directory, state_bytes(request.architecture.text, ids, layered=False))
    return record(
        request.checkpoint.path,
        tokens,
        begun.states,
        workers=workers,
        device=torch_device(device),
        progress=progress,
        ranks=ranks,
    )


def calibrate_in(
    ranks: Ranks,
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    workers: int,
    progress: Progress,
    **how: Any,  # noqa: ANN401 -- the other choices of `calibrate`
) -> Calibrated | None:
    """Make a calibration file in one of several ranks that were started alike; see `calibrate`.

    Ranks of one host share the pass for statistics. On several hosts rank 0 works alone, and says so.

    Returns:
        The file in rank 0, None in the others.

    Raises:
        UsageError: the ranks were started differently.
        G4Error: see `calibrate`; the same error in every rank.
    """
    choices = {"model": model, "output": output, **how}
    ranks.agree({name: value if value is None else str(value) for name, value in choices.items()})
    results: list[Calibrated] = []

    def make(sharing: Ranks) -> None:
        results.append(calibrate(model, output, workers=workers, progress=progress, ranks=sharing, **how))

    run_in_lead(ranks, workers, progress, make)
    return results[0] if results else None


def make_bundled_ids(model: Path) -> Tokens:
    """Return the ids that `calibrate` makes of the bundled texts for a model that answers nothing; reads no weight.

    Raises:
        InputError: no such model, no tokenizer, or too few texts for it.
    """
    request = CalibrationRequest.of(os.fspath(model), samples=None, length=None, seed=0)
    return Tokens.of(request.make_file(request.read_bundled(), Own(answers=False, why=""), "cpu", Progress()))


def _check_name(path: Path) -> None:
    """Raise if the file has another ending."""
    if path.suffix != ".safetensors":
        name = path / "NAME" if path.is_dir() else path.name
        raise UsageError(f"{path}: a calibration file ends in .safetensors", hint=f"-o {name}.safetensors")


def _check_place(path: Path, *, overwrite: bool) -> None:
    """Raise if the file cannot be written, before any work."""
    if path.is_dir() or (path.exists() and not overwrite):
        raise already_exists(path)
    check_writable(path)

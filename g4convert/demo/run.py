"""`g4convert demo`: all steps of a conversion on a tiny checkpoint, without a network.

    a tiny real checkpoint -> plan it -> quantize it -> run the result from its packed words -> compare logits

Families with a trained checkpoint in the package take that; the others are made with random weights. Two
differences are shown and must not be confused: the packed result against its dequantized weights (is what was
written what runs? about 0), and the latter against the source (what four bits cost).

Both directories are made elsewhere and moved into place. What is in their place goes only if an earlier demo made
it: `.g4convert-demo.json` beside them has the hash of every file that did.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from g4convert.checkpoint.directory import CONFIG, Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.result import Summary
from g4convert.conversion.run import convert
from g4convert.demo import make
from g4convert.demo.comparison import LogitsDifference, compare
from g4convert.demo.trained import TRAINED, trained
from g4convert.errors import GateError, UsageError
from g4convert.forward.candidate import ModelCandidate
from g4convert.forward.load import load as load_model
from g4convert.forward.models import Model, quiet_transformers
from g4convert.forward.probe import Probe
from g4convert.gemma4.family import Family
from g4convert.places import check_above, make_directory
from g4convert.planning.recipe import DEFAULT
from g4convert.planning.recipe_files import load
from g4convert.planning.report import PlanReport
from g4convert.progress import Progress
from g4convert.refusals import refusal
from g4convert.verification.probes.suite import make_probes

PARITY = 1e-5
"""Largest difference of fp32 logits, relative to the largest logit, that packed and dequantized weights may have."""

_RECORD = ".g4convert-demo.json"


@dataclass(frozen=True, slots=True)
class ProbeComparison:
    """Both differences for one kind of probe."""

    prompt: str
    read_back: LogitsDifference
    """The packed result against its dequantized weights: must be about 0."""
    cost: LogitsDifference
    """The dequantized weights against the source: what quantization costs."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Results of the demo."""

    source: Path
    output: Path
    plan: PlanReport
    summary: Summary
    comparisons: tuple[ProbeComparison, ...]
    is_trained: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the demonstration as JSON."""
        return {
            "schema_version": 1,
            "source": str(self.source),
            "output": str(self.output),
            "trained": self.is_trained,
            "plan": self.plan.to_dict(tensors=False),
            "result": self.summary.to_dict(),
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
        }


def run(
    family: Family, directory: Path, say: Callable[[str], None], count_tokens: Callable[[Checkpoint], int]
) -> Demonstration:
    """Make, quantize, load and compare a tiny checkpoint.

    Args:
        family: family of the checkpoint.
        directory: gets the source `FAMILY` and the output `FAMILY-W4A16`.
        say: told of each step.
        count_tokens: counts the token ids that the bundled texts make for a model, which estimates depend on.

    Raises:
        UsageError: something that no demo made is in their place.
        GateError: the result does not load, or computes something else than its dequantized weights.
        EnvironmentFault: there is no room for it.
    """
    source, output = directory / family, directory / f"{family}-W4A16"
    make_room(directory, (source.name, output.name))
    with TemporaryDirectory(prefix=".g4convert-demo-", dir=directory) as name:
        scratch = Path(name)
        if family in TRAINED:
            say(f"copying a tiny {family} checkpoint that has learned something: {source}")
            _copy_files(trained(family), scratch / source.name)
        else:
            say(f"making a tiny {family} checkpoint: {source}")
            make(family, scratch / source.name)
        say(f"quantizing it: {output}")
        recipe = load(DEFAULT, {"assistant": "pack"} if "assistant" in family else None)
        conversion = prepare(Job(Source.at(scratch / source.name), recipe, scratch / output.name))
        summary = convert(conversion, Progress(), Ranks())
        tokens = count_tokens(conversion.checkpoint)
        move_into_place(directory, scratch, (source.name, output.name))
    assert summary is not None  # noqa: S101 - there is one rank, and it leads
    outlook = conversion.outlook.with_remedies()
    report = PlanReport.of(Source.at(source), recipe, conversion.plan, conversion.layout, outlook, tokens=tokens)
    say("loading the result in transformers, packed and dequantized")
    return Demonstration(source, output, report, summary, _compare_answers(source, output), family in TRAINED)


def _copy_files(directory: Path, to: Path) -> None:
    """Copy the files of a directory; `shutil.copytree` makes one error of all, which has no number.

    Raises:
        EnvironmentFault: there is no room for them, or they cannot be written.
    """
    to.mkdir()
    for path in sorted(directory.iterdir()):
        try:
            shutil.copyfile(path, to / path.name)
        except OSError as error:
            raise refusal(error, to.parent.parent) from error


def _compare_answers(source: Path, output: Path) -> tuple[ProbeComparison, ...]:
    """Compute both differences for every kind of probe that the model takes.

    Raises:
        GateError: the result computes something else than its dequantized weights.
    """
    original, expected, packed_model = load_model(source), load_model(output, packed=False), load_model(output)
    probes = make_probes(original, source, tokens=1)  # one conversation of each kind
    comparisons = []
    for kind in dict.fromkeys(probe.bucket for probe in probes):
        same_kind = [probe for probe in probes if probe.bucket == kind]
        plain, dequantized, packed = (_run_probes(model, same_kind) for model in (original, expected, packed_model))
        comparisons.append(ProbeComparison(kind, compare(dequantized, packed), compare(plain, dequantized)))
    wrong = [f"{c.prompt}: {c.read_back.relative:.1e}" for c in comparisons if not c.read_back.relative <= PARITY]
    if wrong:
        raise GateError("the packed result computes something else than its dequantized weights", offenders=wrong)
    return tuple(comparisons)


def _run_probes(model: Model, probes: Sequence[Probe]) -> torch.Tensor:
    """Return the logits of all judged rows, float32 [n, V]."""
    candidate = ModelCandidate(model, inside=False)
    with quiet_transformers():  # packed modules are unpacked in the first forward
        return torch.cat([candidate.run(probe).logits for probe in probes])


def make_room(directory: Path, names: tuple[str, ...]) -> None:
    """Check that the files in the way were made by a demo and are unchanged, then remove them.

    Raises:
        UsageError: it was not; names every such file, and nothing is removed.
    """
    if os.path.lexists(directory) and not directory.is_dir():  # also a link to nothing
        raise UsageError(f"{directory}: is a file, expected a directory to write to", hint="name another directory")
    check_above(directory)
    _refuse_checkpoint(directory)
    make_directory(directory)
    known = _read_record(directory)
    existing = {name: digest for name in names for name, digest in _hash_files(directory, name).items()}
    strange = [name for name, digest in existing.items() if known.get(name) != digest]
    if strange:
        raise UsageError(
            f"{directory}: in the way, and not made by an earlier demo",
            offenders=strange,
            hint="name another directory, or remove them",
        )
    for name in names:
        if (directory / name).is_dir():
            shutil.rmtree(directory / name)


def _refuse_checkpoint(directory: Path) -> None:
    """Raise if a directory is a checkpoint: files written into it would be taken for parts of it.

    Raises:
        UsageError: it is one; names its files.
    """
    if directory.is_dir() and (files := [*directory.glob(CONFIG), *sorted(directory.glob("*.safetensors"))]):
        raise UsageError(
            f"{directory}: is a checkpoint, expected a directory to write checkpoints to",
            offenders=[file.name for file in files[:3]],
            hint="name another directory",
        )


def move_into_place(directory: Path, scratch: Path, names: tuple[str, ...]) -> None:
    """Move the new directories into place, and record the hashes of their files."""
    record = dict(_read_record(directory))
    for name in names:
        record |= _hash_files(scratch, name)
    (directory / _RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name in names:
        (scratch / name).rename(directory / name)


def _hash_files(directory: Path, name: str) -> dict[str, str]:
    """Return the SHA-256 of every file at or below `name`, by path; links and empty directories get no valid hash."""
    path = directory / name
    if path.is_symlink() or not path.is_dir():
        return {name: "not a directory"} if path.is_symlink() or path.exists() else {}
    hashes = {}
    for child in sorted(path.iterdir()):
        inner = f"{name}/{child.name}"
        if child.is_file() and not child.is_symlink():
            hashes[inner] = hashlib.sha256(child.read_bytes()).hexdigest()
        else:
            hashes[inner] = "not a file"
    return hashes


def _read_record(directory: Path) -> Mapping[str, str]:
    try:
        record = json.loads((directory / _RECORD).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}

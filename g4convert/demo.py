"""`g4convert demo`: the whole road on a tiny checkpoint, without a network.

    make a tiny real checkpoint -> plan it -> quantize it -> load the result in transformers -> compare logits

Two differences are shown and must not be confused: the loaded result against the dequantized model (is what was
written what is read? about 0), and the dequantized model against the original (what four bits cost).
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from g4convert.convert import Job, convert, prepare
from g4convert.errors import GateError, UsageError
from g4convert.fixtures import Family, make
from g4convert.forward.logits import LogitsDifference, compare, logits, prompts
from g4convert.forward.reload import dequantized, reload
from g4convert.plan_report import PlanReport, report
from g4convert.progress import Quiet
from g4convert.ranks import Ranks
from g4convert.recipe import DEFAULT, load
from g4convert.source import Source
from g4convert.summary import Summary

__all__ = ["Comparison", "Demonstration", "run"]

PARITY = 1e-5
"""Largest difference of fp32 logits, relative to the largest logit, that two ways of reading may have."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt, two questions."""

    prompt: str
    read_back: LogitsDifference
    """The loaded result against the original with dequantized weights: must be about 0."""
    cost: LogitsDifference
    """The original with dequantized weights against the original: what quantization costs."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What the demo did and found."""

    source: Path
    output: Path
    plan: PlanReport
    summary: Summary
    comparisons: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "schema_version": 1,
            "source": str(self.source),
            "output": str(self.output),
            "plan": self.plan.to_dict(tensors=False),
            "result": self.summary.to_dict(),
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
        }


def run(family: str, directory: Path, say: Callable[[str], None]) -> Demonstration:
    """Make, quantize, load and compare a tiny checkpoint.

    Args:
        family: one of `Family`.
        directory: gets the source `FAMILY` and the output `FAMILY-W4A16`; those two are replaced.
        say: told of each step.

    Raises:
        UsageError: no such family.
        GateError: the result does not load, or computes something else than the dequantized model.
    """
    if family not in {member.value for member in Family}:
        raise UsageError(f"--family {family}: expected one of {', '.join(Family)}")
    source, output = directory / family, directory / f"{family}-W4A16"
    if (source / "config.json").is_file():
        shutil.rmtree(source)
    say(f"making a tiny {family} checkpoint in {source}")
    make(Family(family), source)
    recipe = load(DEFAULT, {"assistant": "pack"} if "assistant" in family else None)
    job = Job(Source.at(source), recipe, output, overwrite=True)
    say(f"quantizing it into {output}")
    summary = convert(prepare(job), Quiet(), Ranks())
    assert summary is not None  # noqa: S101 - there is one rank, and it leads
    say("loading the result in transformers, and the original with dequantized weights beside it")
    original, expected, found = reload(source), dequantized(source, output), reload(output)
    comparisons = []
    for prompt in prompts(original):
        wanted = logits(expected, prompt)
        comparisons.append(
            Comparison(prompt.kind, compare(wanted, logits(found, prompt)), compare(logits(original, prompt), wanted))
        )
    wrong = [f"{c.prompt}: {c.read_back.relative:.1e}" for c in comparisons if c.read_back.relative > PARITY]
    if wrong:
        raise GateError("the loaded result computes something else than the dequantized model", offenders=wrong)
    return Demonstration(source, output, report(job.source, recipe, 0), summary, tuple(comparisons))

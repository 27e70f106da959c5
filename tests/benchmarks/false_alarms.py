"""False alarms of `verify`: every family, every shipped recipe, three seeds, all levels to `logits`.

    python tests/benchmarks/false_alarms.py [SEED ...]

Of random weights the path that runs is judged (`--profile parity`): what four bits cost a model that answers at random
says nothing. The trained models are compared with the original, by the default profile. A recipe that a family has
nothing for, or that does not fit its shapes, is refused and counted apart; so is a warning of the loss against the
original, which a recipe that packs tables has. Exit status 1 when a sound checkpoint gets another verdict than PASS.
About 25 minutes of one core.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from g4convert.checkpoint.source import Source
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.demo import make
from g4convert.demo.trained import TRAINED, trained
from g4convert.errors import G4Error
from g4convert.gemma4.family import Family
from g4convert.planning import recipe_files as recipes
from g4convert.progress import Progress
from g4convert.report import Severity
from g4convert.request import Level, Request
from g4convert.verification.run import verify

SEEDS = (0, 1, 2)


def main(seeds: tuple[int, ...]) -> bool:
    """Return True if there was no false alarm."""
    outcomes: dict[str, str] = {}
    for family in TRAINED:
        outcomes |= judged_all(trained(family), f"{family} trained", family, None)
    for seed in seeds:
        for family in Family:
            with TemporaryDirectory(prefix="g4convert-") as directory:
                source = make(family, Path(directory) / "source", seed=seed)
                outcomes |= judged_all(source, f"{family} seed {seed}", family, "parity")
    alarms = [f"{case}: {found}" for case, found in outcomes.items() if found.startswith("alarm")]
    refused = sum(found.startswith("refused") for found in outcomes.values())
    passed = sum(not found for found in outcomes.values())
    losses = sum(found.startswith("loss") for found in outcomes.values())
    counts = f"{passed} passed, {refused} refused, {losses} warned of what the recipe loses, {len(alarms)} false alarms"
    say("\n".join([counts, *alarms]))
    return not alarms


def judged_all(source: Path, case: str, family: Family, profile: str | None) -> dict[str, str]:
    """Return the faults found in the output of each recipe, by case."""
    outcomes: dict[str, str] = {}
    with TemporaryDirectory(prefix="g4convert-") as directory:
        for name in (name for name, recipe in recipes.load_shipped().items() if not recipe.is_calibrated):
            began = time.monotonic()
            found = judged(source, Path(directory) / name, name, family, profile)
            say(f"{case} {name}: {found or 'pass'}, {time.monotonic() - began:.1f} s")
            outcomes[f"{case} {name}"] = found
    return outcomes


def say(text: str) -> None:
    """Print to standard output, at once."""
    print(text, flush=True)  # noqa: T201 -- what the script is for


def judged(source: Path, output: Path, name: str, family: Family, profile: str | None) -> str:
    """Return the faults found; empty where there are none."""
    options = {"assistant": "pack"} if "assistant" in family else {}
    try:
        convert(prepare(Job(Source.at(source), recipes.load(name, options), output, workers=1)), Progress(), Ranks())
    except G4Error as error:
        return f"refused: {error.message}"
    report = verify(Request(output, source, Level.LOGITS, profile))
    if report.verdict is Severity.PASS:
        return ""
    bad = [one for one in report.findings if one.severity not in {Severity.PASS, Severity.INFO}]
    loss = report.verdict is Severity.WARN and all(one.code.startswith("logits.loss.") for one in bad)
    return f"{'loss' if loss else 'alarm'}: {report.verdict} {[(one.code, one.subject, one.found) for one in bad[:4]]}"


if __name__ == "__main__":
    sys.exit(not main(tuple(map(int, sys.argv[1:])) or SEEDS))

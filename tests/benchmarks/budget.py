"""Bits that `fit` chooses on a real model, beside one packing for all and beside llama.cpp's mix, on held-out text.

    python tests/benchmarks/budget.py DIRECTORY [--only NAME ...] [--report]

The model is that of `real_model.py`. Losses of single changes are measured on token ids of the texts that ship; every
row is then quantized by `g4convert quantize`, by `gptq` on the ids that calibrate in `quality.py`, and judged on the
windows of `quality.py`, documents of this machine. A row that `quality.py` judged is taken from there, and rows of one
method that pack alike are judged once. A run that is stopped goes on where it was. `--report` writes the section of
docs/quality.md.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import budget_report
import numpy as np
import torch
import yaml
from budget_rows import ROWS, Row, of
from numpy.typing import NDArray
from quality import Bench as Quality
from real_judge import Judge

from g4convert.api.calibrate import calibrate
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.result import MethodChoice
from g4convert.fitting.bench import Bench
from g4convert.fitting.choices import Form, label_form, parse_choices
from g4convert.fitting.choosing import choose_for, measure_presets
from g4convert.fitting.inputs import Inputs
from g4convert.fitting.measures import smooth_losses
from g4convert.fitting.outputs import OutputErrors
from g4convert.fitting.parts import Part, find_parts
from g4convert.fitting.problem import Assignment, Losses, Problem
from g4convert.fitting.rounding import Rounder
from g4convert.fitting.sensitivities import LossUnit, Sensitivities, measure_missing
from g4convert.fitting.standing import StandIn, scale_losses
from g4convert.fitting.target import Bits, Size
from g4convert.fitting.writing import format_yaml, make_values
from g4convert.forward.load import load
from g4convert.planning.layout import lay_out
from g4convert.planning.recipe_files import load as recipe
from g4convert.planning.steps import make_plan
from g4convert.progress import Progress
from g4convert.quantization import Method

REPOSITORY: Final = Path(__file__).resolve().parents[2]
SAMPLES, TOKENS = 14, 64
"""Rows of the calibration file that are run for single changes, and tokens of each."""
TABLES: Final = {"embedding": 4, "lm_head": 8}
CHOICES: Final = ("4:128", "4:64", "4:32", "8:channel", "16")
JUDGED: Final = {"g32": "mse-g32", "g128": "mse-g128", "gptq-g32": "gptq-g32", "gptq-g128": "gptq-g128"}
"""Rows that `quality.py` judges too, under its names."""


def main() -> None:
    """Do the rows that are left, or report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    quality = Quality.make(args.directory, None, 1)
    rows = [row for row in ROWS if not args.only or row.name in args.only]
    runs = Runs.of(args.directory, quality)
    if not args.report:
        Fits.of(args.directory).write(rows)
        runs.judge(rows)
    budget_report.write(REPOSITORY / "docs" / "quality.md", runs.rows(), SAMPLES, TOKENS)


KNOWN: Final[dict[tuple[tuple[str, str], ...], NDArray[np.float64]]] = {}
"""Losses of whole choices: several targets try the same packing for all."""


class Once(Bench):
    """A bench that measures each combination once."""

    __slots__ = ()

    def losses(self, forms: Iterable[tuple[Part, Form]]) -> NDArray[np.float64]:
        """KL of each sequence, measured or known."""
        given = [*forms]
        key = (("method", self.rounder.method.value), *((part.name, label_form(form)) for part, form in given))
        if key not in KNOWN:
            KNOWN[key] = Bench.losses(self, given)
        return KNOWN[key]


@dataclass(frozen=True, slots=True)
class Measured:
    """Problems and losses of the fits for a method.

    Args:
        linears: choices for Linears alone.
        tables: choices for embedding and head too.
        whole: measures a choice as a whole.
        losses: KL of single changes, smoothed.
        errors: measure of output errors, which knows its losses; None where no row goes by them.
    """

    linears: Problem
    tables: Problem
    whole: StandIn
    losses: Losses
    errors: OutputErrors | None


@dataclass(frozen=True, slots=True)
class Fits:
    """Recipes by row, in files.

    Args:
        directory: theirs.
        checkpoint: the model.
    """

    directory: Path
    checkpoint: Checkpoint

    @classmethod
    def of(cls, directory: Path) -> "Fits":
        """Open the model; make the calibration file of the texts that ship."""
        (directory / "recipes").mkdir(exist_ok=True)
        if not (directory / "fit.safetensors").exists():
            calibrate(directory / "model", directory / "fit.safetensors", answers=False)
        return cls(directory, Checkpoint.open(directory / "model"))

    def write(self, rows: Iterable[Row]) -> None:
        """Write the recipes of rows, with size, bits and losses on the ids that wholes are measured on."""
        wanted = {name for row in rows for name in (row.name, self._like(row), row.by)}
        for method in dict.fromkeys(row.method for row in ROWS):
            left = [row for row in of(method) if row.name in wanted and not self._facts(row.name).exists()]
            if left:
                with self._measured(method) as by:
                    for row in left:
                        self._write(row, by)

    @contextmanager
    def _measured(self, method: str) -> Iterator[Measured]:
        """Measure the losses of single changes that are not known yet."""
        linears, tables = (self._problem(method, bits) for bits in ({}, TABLES))
        file = self.directory / "fit.safetensors"
        run, weighed = (Inputs.of(file, self.checkpoint, linears, unit, SAMPLES, TOKENS) for unit in LossUnit)
        with ThreadPoolExecutor(1) as pool:
            architecture = linears.plan.inventory.architecture
            rounder = Rounder(MethodChoice(Method(method), ""), architecture, pool, statistics=weighed.statistics)
            path, model = self.directory / f"sensitivities-{method}.json", load(self.checkpoint)
            known = Sensitivities.at(path, run.basis(self.checkpoint, rounder, LossUnit.KL, "float32"))
            measure_missing(tables, Once.of(model, run.ids, rounder), known, path, Progress(), lambda: None)
            errors = None
            if any(row.by == LossUnit.OUTPUT_ERROR for row in of(method)):
                errors = OutputErrors(self.checkpoint, rounder, run.ids, {})
                kept = Sensitivities(known.basis, errors.known)
                measure_missing(tables, errors, kept, self.directory / "e.json", Progress(), lambda: None)
            whole = StandIn(Once.of(model, run.held_out, rounder), rounder.share)
            losses = scale_losses(smooth_losses(tables, known.losses), tables.free, rounder.share)
            yield Measured(linears, tables, whole, losses, errors)

    def _write(self, row: Row, by: Measured) -> None:
        if row.bits is None and not row.like:
            values = row.values or {**self._values(row.by), "method": row.method}
            self._keep(row, format_yaml(values, []), by, {})
            return
        problem = by.tables if row.tables else by.linears
        target = Bits(row.bits) if row.bits else Size(json.loads(self._facts(self._like(row)).read_text())["bytes"])
        if row.by == LossUnit.KL:
            shipped = measure_presets(problem, self.checkpoint, by.whole)
            point = choose_for(target, problem.solve(by.losses), by.whole, shipped)[-1]
        elif by.errors is None:
            raise ValueError(row)
        else:
            shipped = measure_presets(problem, self.checkpoint, by.errors)
            point = choose_for(target, problem.solve(by.errors.known), by.errors, shipped)[-1]
        predicted = {"predicted": point.predicted} if row.by == LossUnit.KL else {}
        values = make_values(problem, point.assignment)
        self._keep(row, format_yaml(values, []), by, {"chosen": point.name, **predicted})

    def _keep(self, row: Row, text: str, by: Measured, facts: Mapping[str, Any]) -> None:
        """Write a recipe, and what is known of it."""
        file = self.directory / "recipes" / f"{row.name}.yaml"
        file.write_text(text)
        plan = make_plan(self.checkpoint, recipe(str(file)).recipe)
        chosen: Assignment = {part.name: part.base for part in find_parts(plan)}
        forms = json.dumps([row.method, sorted((name, label_form(form)) for name, form in chosen.items())])
        nbytes = lay_out(plan).tensor_bytes
        whole = fmean(by.whole.losses((part, part.base) for part in find_parts(plan)))
        known = {"bytes": nbytes, "bits": by.linears.bits(nbytes), "whole": whole}
        known |= {"packings": sha256(forms.encode()).hexdigest(), **facts}
        self._facts(row.name).write_text(json.dumps(known))
        say(f"{row.name}: {known}")

    def _like(self, row: Row) -> str:
        """Return the row of the same method whose size a fit takes; empty without one."""
        return row.like if row.method == "mse" or not row.like else f"{row.method}-{row.like}"

    def _facts(self, name: str) -> Path:
        return self.directory / "recipes" / f"{name}.json"

    def _values(self, name: str) -> Mapping[str, Any]:
        values: dict[str, Any] = yaml.safe_load((self.directory / "recipes" / f"{name}.yaml").read_text())
        return values

    def _problem(self, method: str, bits: Mapping[str, int]) -> Problem:
        plan = make_plan(self.checkpoint, recipe(options={"method": method, "bits": bits}).recipe)
        return Problem.of(plan, parse_choices(CHOICES))


@dataclass(frozen=True, slots=True)
class Runs:
    """Rows that were judged.

    Args:
        directory: everything lies there.
        quality: windows that judge, and what was judged on them.
        results: figures by row.
    """

    directory: Path
    quality: Quality
    results: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, directory: Path, quality: Quality) -> "Runs":
        """Read what was judged on the windows of `quality`."""
        file = directory / "budget.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        digest = quality.facts["digest"]
        kept = {name: row for name, row in found.items() if row["digest"] == digest}
        theirs = quality.results()
        there = {name: theirs[other] for name, other in JUDGED.items() if "kl" in theirs.get(other, {})}
        return cls(directory, quality, {**there, **kept})

    def judge(self, rows: Iterable[Row]) -> None:
        """Quantize the rows that are left, one of those that pack alike, and judge them."""
        facts, known = self._facts(), self._same()
        left = {facts[row.name]["packings"]: row for row in rows if row.name not in known}
        for packings, row in left.items():
            self._quantize(row, packings)
        if left:  # what judges takes 4 GB: only now
            judging = Judge(self.directory / "model", [window.ids for window in self.quality.judges])
            for row in left.values():
                self._judge(row, judging)

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the facts of every row that has a recipe, with its figures where it was judged."""
        judged = self._same()
        return {name: {**facts, **judged.get(name, {})} for name, facts in self._facts().items()}

    def _quantize(self, row: Row, packings: str) -> None:
        """Quantize a row, unless a stopped run did."""
        out, done = self.directory / "out" / row.name, self.directory / "out" / f"{row.name}.done"
        if done.exists() and done.read_text() == packings:
            return
        command = [sys.executable, "-m", "g4convert", "quantize", str(self.directory / "model"), "-o", str(out)]
        command += ["--overwrite", "-q", "-r", str(self.directory / "recipes" / f"{row.name}.yaml")]
        command += ["--verify", "none", "--workers", "1"]
        if row.method != "mse":
            command += ["--calibration", str(self.directory / "tokens" / "mixed.safetensors")]
        subprocess.run(command, check=True)
        done.write_text(packings)
        say(f"{row.name}: quantized")

    def _judge(self, row: Row, judging: Judge) -> None:
        out = self.directory / "out" / row.name
        dense = dict(load(out, packed=False).named_parameters())
        one = judging.judge(lambda key, _: dense.get(key), dense.get("lm_head.weight"))
        self.results[row.name] = {"kl": one.kl, "same": one.same, "digest": self.quality.facts["digest"]}
        (self.directory / "budget.json").write_text(json.dumps(self.results))
        say(f"{row.name}: {fmean(one.kl):.4f}")

    def _same(self) -> dict[str, dict[str, Any]]:
        """Return the figures of every row that packs as one that was judged does."""
        facts = self._facts()
        figures = {facts[name]["packings"]: found for name, found in self.results.items() if name in facts}
        return {
            name: self.results.get(name, figures[row["packings"]])
            for name, row in facts.items()
            if row["packings"] in figures
        }

    def _facts(self) -> dict[str, dict[str, Any]]:
        files = {row.name: self.directory / "recipes" / f"{row.name}.json" for row in ROWS}
        return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

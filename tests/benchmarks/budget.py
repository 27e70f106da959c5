"""Bits that `fit` chooses on a real model, beside one packing for all and beside llama.cpp's mix, on held-out text.

    python tests/benchmarks/budget.py DIRECTORY [--report]

The model is that of `real_model.py`. Losses of single changes are measured on token ids of the texts that ship; every
row is then quantized by `g4convert quantize` and judged on the windows of `quality.py`, documents of this machine. A
row is done once; a run that is stopped goes on where it was. `--report` writes the section of docs/quality.md.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
import real_model
import real_text
import torch
import transformers
from numpy.typing import NDArray
from quality_report import LAST
from real_judge import Judge, error

from g4convert.api.calibrate import calibrate
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.result import Choice
from g4convert.fitting.bench import Bench
from g4convert.fitting.choices import Form, label_of, parse_choices
from g4convert.fitting.choosing import choose_for
from g4convert.fitting.inputs import Inputs
from g4convert.fitting.outputs import Outputs
from g4convert.fitting.parts import Part, parts_of
from g4convert.fitting.problem import Problem
from g4convert.fitting.rounding import Rounder
from g4convert.fitting.sensitivities import Sensitivities, Unit, measure
from g4convert.fitting.smoothing import smoothed
from g4convert.fitting.target import Bits, Size
from g4convert.fitting.writing import recipe_text, recipe_values
from g4convert.forward.load import load
from g4convert.planning.layout import lay_out
from g4convert.planning.recipe import load as recipe
from g4convert.planning.steps import make_plan
from g4convert.progress import Quiet
from g4convert.quantization import Method

REPOSITORY: Final = Path(__file__).resolve().parents[2]
ROWS, TOKENS = 14, 64
"""Rows of the calibration file that are run for single changes, and tokens of each."""
JUDGES, JUDGED = 5, 192
"""Windows of each kind that judge, and their ids, as in `quality.py`."""
TABLES: Final = {"embedding": 4, "lm_head": 8}
MIX: Final = "0-1,4,7,10,13,15-17"
"""Layers whose values and down projections llama.cpp's Q4_K_M gives more bits: the first and last eighth, and every
third between; of 18 layers these."""
UNIFORM: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "g32": ("`w4a16-g32`", {"extends": "w4a16-g32"}),
    "g128": ("`w4a16-g128`", {"extends": "w4a16-g128"}),
    "mix": (
        "llama.cpp's Q4_K_M mix, int8 where it has 6 bits",
        {
            "extends": "w4a16-g32",
            "rules": [
                {"names": f"*.{part}", "layers": MIX, "bits": 8, "group_size": 32}
                for part in ("self_attn.[qkv]_proj", "mlp.down_proj")
            ],
        },
    ),
    "w8": ("`w8a16-g32`", {"extends": "w8a16-g32"}),
    "head8": ("`w4a16-g32-head8`", {"extends": "w4a16-g32-head8"}),
    "g64": ("`w4a16-g32`, groups of 64", {"extends": "w4a16-g32", "group_size": 64}),
}
CHOICES: Final = ("4:128", "4:64", "4:32", "8:channel", "16")
TARGETS: Final = (4.5, 5.0, 5.5, 6.0, 4.25)
WITH_TABLES: Final = ("head8", "g32")
"""Uniform recipes whose size is fitted with embedding and head among what is chosen."""


def main() -> None:
    """Do the rows that are left, or report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    model = real_model.make(args.directory)
    results = args.directory / "budget.json"
    if not args.report:
        fitted = Fits.of(args.directory, model)
        fitted.write()
        judge(args.directory, model, results)
    report(_rows(args.directory, results), REPOSITORY / "docs" / "quality.md")


KNOWN: Final[dict[tuple[tuple[str, str], ...], NDArray[np.float64]]] = {}
"""Losses of whole choices: several targets try the same packing for all."""


class Once(Bench):
    """A bench that measures each combination once."""

    __slots__ = ()

    def losses(self, forms: Iterable[tuple[Part, Form]]) -> NDArray[np.float64]:
        """KL of each sequence, measured or known."""
        given = [*forms]
        key = tuple((part.name, label_of(form)) for part, form in given)
        if key not in KNOWN:
            KNOWN[key] = Bench.losses(self, given)
        return KNOWN[key]


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
    def of(cls, directory: Path, model: Path) -> "Fits":
        """Open the model; make the calibration file of the texts that ship."""
        (directory / "recipes").mkdir(exist_ok=True)
        if not (directory / "fit.safetensors").exists():
            calibrate(model, directory / "fit.safetensors", answers=False)
        return cls(directory, Checkpoint.open(model))

    def write(self) -> None:
        """Write every recipe, with its size, bits and losses on the ids that single changes were measured on."""
        if all((self.directory / "recipes" / f"{name}.json").exists() for name in (*UNIFORM, *_fits())):
            return
        linears, tables = self._problem({}), self._problem(TABLES)
        file = self.directory / "fit.safetensors"
        run, weighed = (Inputs.of(file, self.checkpoint, linears, unit, ROWS, TOKENS) for unit in Unit)
        with ThreadPoolExecutor(1) as pool:
            architecture = linears.plan.inventory.architecture
            rounder = Rounder(Choice(Method.MSE, ""), architecture, pool, statistics=weighed.statistics)
            by_error = Outputs(self.checkpoint, rounder, run.ids, {})
            path, model = self.directory / "sensitivities.json", load(self.checkpoint)
            known = Sensitivities.at(path, run.basis(self.checkpoint, rounder, Unit.KL, "float32"))
            measure(tables, Once.of(model, run.ids, rounder), known, path, Quiet())
            whole = Once.of(model, run.held_out, rounder)
            sizes = dict(self._uniform(linears, whole))
            errors = Sensitivities(known.basis, by_error.known)
            measure(tables, by_error, errors, self.directory / "errors.json", Quiet())
            for name, target, problem in (
                *((f"fit-{bits:g}", Bits(bits), linears) for bits in TARGETS),
                ("fit-mix", Size(sizes["mix"]), linears),
                *((f"fit-{name}", Size(sizes[name]), tables) for name in WITH_TABLES),
                ("error-5", Bits(5.0), linears),
                ("error-g32", Size(sizes["g32"]), tables),
            ):
                is_error = name.startswith("error")
                losses = errors.losses if is_error else smoothed(problem, known.losses)
                solved = problem.frontier(losses)
                point = choose_for(target, solved, by_error if is_error else whole)[-1]
                values = recipe_values(problem, point.assignment)
                kl = whole.losses((part, point.assignment[part.name]) for part in problem.parts)
                predicted = {} if is_error else {"predicted": point.predicted}
                facts = {"bytes": point.nbytes, "whole": fmean(kl), "chosen": point.name, **predicted}
                self._keep(name, recipe_text(values, []), facts | {"bits": linears.bits(point.nbytes)})

    def _uniform(self, problem: Problem, bench: Bench) -> Iterator[tuple[str, int]]:
        for name, (_, values) in UNIFORM.items():
            text = recipe_text(values, [])
            file = self.directory / "recipes" / f"{name}.yaml"
            file.write_text(text)
            plan = make_plan(self.checkpoint, recipe(str(file)).recipe)
            nbytes = lay_out(plan).tensor_bytes
            if not (self.directory / "recipes" / f"{name}.json").exists():
                whole = bench.losses((part, part.base) for part in parts_of(plan))
                self._keep(name, text, {"bytes": nbytes, "whole": fmean(whole), "bits": problem.bits(nbytes)})
            yield name, nbytes

    def _keep(self, name: str, text: str, facts: Mapping[str, Any]) -> None:
        (self.directory / "recipes" / f"{name}.yaml").write_text(text)
        (self.directory / "recipes" / f"{name}.json").write_text(json.dumps(facts))
        say(f"{name}: {facts}")

    def _problem(self, bits: Mapping[str, int]) -> Problem:
        plan = make_plan(self.checkpoint, recipe(options={"method": "mse", "bits": bits}).recipe)
        return Problem.of(plan, parse_choices(CHOICES))


def _fits() -> list[str]:
    fits = [*(f"fit-{bits:g}" for bits in TARGETS), "fit-mix", *(f"fit-{name}" for name in WITH_TABLES)]
    return [*fits, "error-5", "error-g32"]


def judge(directory: Path, model: Path, results: Path) -> None:
    """Quantize and judge the rows that are left."""
    found = json.loads(results.read_text()) if results.exists() else {}
    left = [name for name in _order() if name not in found]
    if not left:
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    windows = real_text.windows(encode, judging=True, each=JUDGES, length=JUDGED)
    judging = Judge(model, [window.ids for window in windows])
    for name in left:
        out = directory / "out" / name
        command = [sys.executable, "-m", "g4convert", "quantize", str(model), "-o", str(out), "--overwrite", "-q"]
        command += ["-r", str(directory / "recipes" / f"{name}.yaml"), "--verify", "none", "--workers", "1"]
        subprocess.run(command, check=True)
        dense = dict(load(out, packed=False).named_parameters())
        one = judging.judge(lambda key, _, dense=dense: dense.get(key), dense.get("lm_head.weight"))  # type: ignore[misc]
        facts = json.loads((directory / "recipes" / f"{name}.json").read_text())
        found[name] = {"kl": one.kl, "same": one.same, "digest": real_text.digest(windows)}
        results.write_text(json.dumps(found))
        say(f"{name}: {fmean(one.kl):.4f} {facts}")


def _rows(directory: Path, results: Path) -> dict[str, dict[str, Any]]:
    """Facts of every recipe, with the figures of those that were judged."""
    judged = json.loads(results.read_text()) if results.exists() else {}
    files = ((name, directory / "recipes" / f"{name}.json") for name in _order())
    return {name: {**json.loads(file.read_text()), **judged.get(name, {})} for name, file in files if file.exists()}


def _order() -> list[str]:
    """Rows, those that say most first."""
    first = ["g32", "fit-g32", "mix", "fit-mix", "head8", "fit-head8", "fit-4.5", "fit-5", "error-5", "error-g32"]
    return [*first, *(name for name in (*UNIFORM, *_fits()) if name not in first)]


def report(found: Mapping[str, Mapping[str, Any]], page: Path) -> None:
    """Write the section: it is the last of the page."""
    before = page.read_text().partition(LAST)[0]
    page.write_text("\n".join([f"{before}{LAST}", *_section(found)]) + "\n")


def _section(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield (
        "`g4convert fit` on the same model and windows, `mse`: for q, k, v; o; gate, up; down of each layer one of\n"
        "int4 in groups of 128, 64 or 32, int8 with a scale a row, and bf16. Single changes were measured on "
        f"{ROWS} rows of {TOKENS} ids\nof the texts that ship, none of which judges. Bits are those of the Linears; "
        "embedding and head are kept, but for the\nrows that pack them. `predicted` is the sum of single changes, "
        f"`whole` all of them at once on {ROWS} other rows, by which\na fit is held against one packing for all, KL "
        "that of the windows that judge. *By output error* is what a fit chooses for a\nmodel that the memory does not "
        "hold. `make budget` makes this section."
    )
    yield ""
    yield "| recipe | size, MB | bits | predicted | whole | KL | same top token |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name in sorted(found, key=lambda name: found[name]["bytes"]):
        row = found[name]
        title = UNIFORM[name][0] if name in UNIFORM else f"**fit**{_kind(name)}, {_asked(name)}"
        bits = "" if name.partition("-")[2] in WITH_TABLES or name == "head8" else f"{row['bits']:.3f}"
        predicted = f"{row['predicted']:.3f}" if row.get("predicted") is not None else ""
        kl = f"{fmean(row['kl']):.3f} +- {error(row['kl']):.3f}" if "kl" in row else "not judged"
        same = f"{100 * fmean(row['same']):.1f} %" if "kl" in row else ""
        cells = [title, f"{row['bytes'] / 1e6:.1f}", bits, predicted, f"{row['whole']:.3f}", kl]
        yield f"| {' | '.join([*cells, same])} |"
    yield ""
    yield "| at one size | whole, ratio | KL, ratio | difference |"
    yield "|---|---:|---:|---:|"
    for mine, other in (
        ("fit-4.25", "g64"),
        ("fit-4.5", "g32"),
        ("fit-mix", "mix"),
        *((f"fit-{name}", name) for name in WITH_TABLES),
        ("error-g32", "g32"),
        ("error-g32", "fit-g32"),
        ("error-5", "fit-5"),
    ):
        tables = ", tables too" if mine.partition("-")[2] in WITH_TABLES else ""
        than = UNIFORM[other][0] if other in UNIFORM else "by KL"
        yield f"| fit{_kind(mine)}{tables} / {than} | {_compared(found[mine], found[other])} |"


def _compared(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Cells with the ratios of two rows, and the paired difference where both were judged."""
    whole = f"{one['whole'] / other['whole']:.2f}"
    if "kl" not in one or "kl" not in other:
        return f"{whole} | | "
    apart = [x - y for x, y in zip(one["kl"], other["kl"], strict=True)]
    return f"{whole} | {fmean(one['kl']) / fmean(other['kl']):.2f} | {fmean(apart):+.3f} +- {error(apart):.3f}"


def _kind(name: str) -> str:
    """The losses by which a fit was chosen, where they are not KL."""
    return " by output error" if name.startswith("error") else ""


def _asked(name: str) -> str:
    """The target of a fit."""
    target = name.partition("-")[2]
    if target in UNIFORM:
        return f"the size of {UNIFORM[target][0]}{', tables too' if target in WITH_TABLES else ''}"
    return f"{target} bits"


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

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

import real_model
import real_text
import torch
import transformers
from quality_report import LAST
from real_judge import Judge, error

from g4convert.api.calibrate import calibrate
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.result import Choice
from g4convert.fitting.bench import Bench
from g4convert.fitting.choices import Form, label_of, parse_choices
from g4convert.fitting.choosing import choose_for
from g4convert.fitting.inputs import Inputs
from g4convert.fitting.problem import Part, Problem, parts_of
from g4convert.fitting.rounding import Rounder
from g4convert.fitting.sensitivities import Sensitivities, measure
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


KNOWN: Final[dict[tuple[tuple[str, str], ...], float]] = {}
"""Losses that a bench has measured: several targets try the same packing for all."""


class Once(Bench):
    """A bench that measures each combination once."""

    __slots__ = ()

    def kl(self, forms: Iterable[tuple[Part, Form]]) -> float:
        """Mean KL, measured or known."""
        given = [*forms]
        key = tuple((part.name, label_of(form)) for part, form in given)
        if key not in KNOWN:
            KNOWN[key] = Bench.kl(self, given)
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
            calibrate(model, directory / "fit.safetensors", answers=False, statistics=False)
        return cls(directory, Checkpoint.open(model))

    def write(self) -> None:
        """Write every recipe, with its size, bits and losses on the ids that single changes were measured on."""
        if all((self.directory / "recipes" / f"{name}.json").exists() for name in (*UNIFORM, *_fits())):
            return
        linears, tables = self._problem({}), self._problem(TABLES)
        given = Inputs.of(self.directory / "fit.safetensors", self.checkpoint, linears, ROWS, TOKENS)
        with ThreadPoolExecutor(1) as pool:
            rounder = Rounder(Choice(Method.MSE, ""), linears.plan.inventory.architecture.text_prefix, pool)
            bench = Once.of(load(self.checkpoint), given.ids, rounder)
            path = self.directory / "sensitivities.json"
            known = Sensitivities.at(path, given.basis(self.checkpoint, rounder, "float32"))
            measure(tables, bench, known, path, Quiet())
            sizes = dict(self._uniform(linears, bench))
            for name, target, problem in (
                *((f"fit-{bits:g}", Bits(bits), linears) for bits in TARGETS),
                ("fit-mix", Size(sizes["mix"]), linears),
                *((f"fit-{name}", Size(sizes[name]), tables) for name in WITH_TABLES),
            ):
                point = choose_for(target, problem.frontier(smoothed(problem, known.losses)), bench)[-1]
                values = recipe_values(problem, point.assignment)
                facts = {"bytes": point.nbytes, "whole": point.measured, "predicted": point.predicted}
                self._keep(name, recipe_text(values, []), facts | {"bits": linears.bits(point.nbytes)})

    def _uniform(self, problem: Problem, bench: Bench) -> Iterator[tuple[str, int]]:
        for name, (_, values) in UNIFORM.items():
            text = recipe_text(values, [])
            file = self.directory / "recipes" / f"{name}.yaml"
            file.write_text(text)
            plan = make_plan(self.checkpoint, recipe(str(file)).recipe)
            nbytes = lay_out(plan).tensor_bytes
            if not (self.directory / "recipes" / f"{name}.json").exists():
                whole = bench.kl((part, part.base) for part in parts_of(plan))
                self._keep(name, text, {"bytes": nbytes, "whole": whole, "bits": problem.bits(nbytes)})
            yield name, nbytes

    def _keep(self, name: str, text: str, facts: Mapping[str, Any]) -> None:
        (self.directory / "recipes" / f"{name}.yaml").write_text(text)
        (self.directory / "recipes" / f"{name}.json").write_text(json.dumps(facts))
        say(f"{name}: {facts}")

    def _problem(self, bits: Mapping[str, int]) -> Problem:
        plan = make_plan(self.checkpoint, recipe(options={"method": "mse", "bits": bits}).recipe)
        return Problem.of(plan, parse_choices(CHOICES))


def _fits() -> list[str]:
    return [*(f"fit-{bits:g}" for bits in TARGETS), "fit-mix", *(f"fit-{name}" for name in WITH_TABLES)]


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
        found[name] = {**facts, "kl": one.kl, "same": one.same, "digest": real_text.digest(windows)}
        results.write_text(json.dumps(found))
        say(f"{name}: {fmean(one.kl):.4f} {facts}")


def _rows(directory: Path, results: Path) -> dict[str, dict[str, Any]]:
    """Facts of every recipe, with the figures of those that were judged."""
    judged = json.loads(results.read_text()) if results.exists() else {}
    files = ((name, directory / "recipes" / f"{name}.json") for name in _order())
    return {name: {**json.loads(file.read_text()), **judged.get(name, {})} for name, file in files if file.exists()}


def _order() -> list[str]:
    """Rows, those that say most first."""
    first = ["g32", "fit-g32", "mix", "fit-mix", "head8", "fit-head8", "fit-4.5", "fit-5", "fit-5.5", "fit-6", "g128"]
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
        "`whole` the same ids with all of them at once, KL that\nof the windows that judge. `make budget` makes this "
        "section."
    )
    yield ""
    yield "| recipe | size, MB | bits | predicted | whole | KL | same top token |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name in sorted(found, key=lambda name: found[name]["bytes"]):
        row = found[name]
        title = UNIFORM[name][0] if name in UNIFORM else f"**fit**, {_asked(name)}"
        bits = "" if name.removeprefix("fit-") in WITH_TABLES and name != "g32" else f"{row['bits']:.3f}"
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
    ):
        tables = ", tables too" if mine.removeprefix("fit-") in WITH_TABLES else ""
        yield f"| fit{tables} / {UNIFORM[other][0]} | {_compared(found[mine], found[other])} |"


def _compared(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Cells with the ratios of two rows, and the paired difference where both were judged."""
    whole = f"{one['whole'] / other['whole']:.2f}"
    if "kl" not in one or "kl" not in other:
        return f"{whole} | | "
    apart = [x - y for x, y in zip(one["kl"], other["kl"], strict=True)]
    return f"{whole} | {fmean(one['kl']) / fmean(other['kl']):.2f} | {fmean(apart):+.3f} +- {error(apart):.3f}"


def _asked(name: str) -> str:
    """The target of a fit."""
    target = name.removeprefix("fit-")
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

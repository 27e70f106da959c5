"""Cost of 4 bits on a real model, by method, beside other tools: KL from the original, in a table of docs/quality.md.

    python tests/benchmarks/quality.py DIRECTORY [--peer PYTHON] [--gptqmodel PYTHON] [--autoround PYTHON]
                                       [--only NAME ...] [--report]

Fetches the model of `real_model.py` (240 MB, once) and makes a MoE of it. Text is what this machine has on disk
(`real_text.py`); no document both calibrates and judges. Every method and peer gets the same ids, the same number of
cores, and the same windows to be judged on.

A row is done once: its checkpoint lies in DIRECTORY/out, its figures in DIRECTORY/results.json, with a hash of the code
that made it; a run that is stopped goes on where it was, and code that changed has its rows done again. `--report`
writes docs/quality.md from the rows that are there and names those that are not.

PYTHON is an interpreter of an environment: with llmcompressor and datasets for `--peer`, with what `quality_TOOL.py`
names for another tool; without one, its rows are missing.
"""

import argparse
import hashlib
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import real_model
import real_text
import torch
import transformers
from quality_report import write
from quality_rows import Row, rows
from real_judge import Judge, Judged, stored

from g4convert.calibration.tokens import Tokens

HERE: Final = Path(__file__).resolve().parent
REPOSITORY: Final = HERE.parents[1]
LENGTH: Final = 512
EACH: Final = 8
"""Windows of each kind that calibrate."""
JUDGED: Final = 192
JUDGES: Final = 5
SEED: Final = 0
TOOLS: Final = ("peer", "gptqmodel", "autoround")
SAME: Final = {
    "a99b4c3f5145",
    "e2e178b9409e",
    "8bebf97154e1",
    "c53c3aa1c388",
    "24c38999ceba",
    "1fb280b92994",
    "60f8e610655d",
    "8c2e53201ee0",
    "01d6e22db0fe",
    "f32402b1999f",
    "a40646968f48",
    "7761ed71d782",
}
"""States of the code that were shown to make the same bytes (2026-11-29: four families by `mse`, `imatrix`, `gptq` and
`best`; the first two also gptq-g32, the third and fourth six families, also by `lattice` and `minmax`; the
last, of 2026-11-30, three families by all six methods)."""


def main() -> None:
    """Do the rows that are left, or report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    for tool in TOOLS:
        parser.add_argument(f"--{tool}", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    bench = Bench.make(args.directory, {tool: getattr(args, tool) for tool in TOOLS}, args.cores)
    wanted = [row for row in rows() if not args.only or row.name in args.only]
    if not args.report:
        bench.run(wanted)
    write(REPOSITORY / "docs" / "quality.md", bench.results(), bench.facts)


@dataclass(frozen=True, slots=True)
class Bench:
    """Models, ids and results on disk.

    Args:
        directory: everything lies there.
        peers: interpreters of the other tools, by tool; None where there is none.
        cores: of every row.
        judges: windows that judge.
        facts: about text and machine, for the report.
    """

    directory: Path
    peers: Mapping[str, Path | None]
    cores: int
    judges: Sequence[real_text.Window]
    facts: Mapping[str, Any]

    @classmethod
    def make(cls, directory: Path, peers: Mapping[str, Path | None], cores: int) -> "Bench":
        """Fetch the model, make the MoE, cut windows, write the ids."""
        model = real_model.make(directory)
        real_model.make_moe(model, directory / "moe")
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)

        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
            return ids

        judges = real_text.windows(encode, judging=True, each=JUDGES, length=JUDGED)
        mixed = real_text.windows(encode, judging=False, each=EACH, length=LENGTH)
        prose = real_text.windows(encode, judging=False, each=len(mixed), length=LENGTH, kinds=("prose",))
        ids = np.array([window.ids for window in mixed], np.int32)
        noise = np.random.default_rng(SEED).integers(3, len(tokenizer), ids.shape, np.int32)
        noise[:, 0] = tokenizer.bos_token_id
        (directory / "tokens").mkdir(exist_ok=True)
        for name, found in (("mixed", ids), ("prose", np.array([w.ids for w in prose], np.int32)), ("random", noise)):
            Tokens(found).save(directory / "tokens" / f"{name}.safetensors")
        texts = ({"kind": one.kind, "text": tokenizer.decode(one.ids, skip_special_tokens=True)} for one in mixed)
        (directory / "tokens" / "own.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts))
        facts = {
            "judges": len(judges),
            "judged": JUDGED,
            "samples": len(ids),
            "length": LENGTH,
            "cores": cores,
            "digest": real_text.digest(judges),
            "calibrated": real_text.digest(mixed),
            "kinds": [window.kind for window in judges],
        }
        return cls(directory, peers, cores, judges, facts)

    def run(self, wanted: Iterable[Row]) -> None:
        """Do rows, those of one model together."""
        left = [row for row in wanted if self._left(row)]
        for model in dict.fromkeys(row.model for row in left):
            judge = Judge(self.directory / model, [window.ids for window in self.judges])
            for row in (row for row in left if row.model == model):
                self._keep(row, self._row(row, judge))

    def results(self) -> dict[str, dict[str, Any]]:
        """Figures by row: of rows judged on these windows, `earlier` where other code made them."""
        file = self.directory / "results.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        return {
            row.name: {**found[row.name], "earlier": not _makes_the_same(code(row), found[row.name]["code"])}
            for row in rows()
            if row.name in found and found[row.name]["digest"] == self.facts["digest"]
        }

    def _left(self, row: Row) -> bool:
        done = self.results().get(row.name)
        return (not row.peer or self.peers[row.peer] is not None) and (done is None or done["earlier"])

    def _row(self, row: Row, judge: Judge) -> dict[str, Any]:
        """Quantize, unless the row needs no checkpoint, and judge."""
        if row.rounding is not None:
            rounding = row.rounding
            return {"judged": judge.judge(lambda name, w: rounding(w) if packs(name) else None)}
        out = self.directory / "out" / row.name
        say(f"{row.name}: quantizing")
        cost = self._quantize(row, out)
        if "failed" in cost:
            return cost
        return {**cost, "judged": judge.judge(stored(out))}

    def _quantize(self, row: Row, out: Path) -> dict[str, Any]:
        model, tokens = self.directory / row.model, self.directory / "tokens" / f"{row.tokens}.safetensors"
        if row.tokens == "own" and not tokens.exists():
            self._continue(model, tokens)
        if row.peer:
            script = HERE / f"quality_{row.peer}.py"
            command = [str(self.peers[row.peer]), str(script), str(model), str(out), "--tokens", str(tokens)]
        else:
            recipe = self.directory / "recipes" / f"{row.name}.yaml"
            recipe.parent.mkdir(exist_ok=True)
            recipe.write_text(f"extends: w4a16-g32\nmethod: {row.method}\ngroup_size: {row.group}\n")
            command = [sys.executable, "-m", "g4convert", "quantize", str(model), "-o", str(out), "-r", str(recipe)]
            command += ["--workers", str(self.cores), "--verify", "none", "--overwrite"]
            command += ["--calibration", str(tokens)] if row.tokens else []
        command += row.arguments
        environment = {**os.environ, **{f"{name}_NUM_THREADS": str(self.cores) for name in ("OMP", "MKL", "NUMBA")}}
        log = self.directory / "out" / f"{row.name}.log"
        log.parent.mkdir(exist_ok=True)
        began = time.monotonic()
        with log.open("w") as stream, subprocess.Popen(command, stdout=stream, stderr=stream, env=environment) as child:
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            return {"failed": (log.read_text().strip().splitlines() or ["no message"])[-1][:300]}
        return {"seconds": time.monotonic() - began, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss}

    def _continue(self, model: Path, tokens: Path) -> None:
        """Make as many ids as other rows have of the model's own continuations of the windows that calibrate."""
        say("own: the model continues the beginnings of the windows")
        shape = ["--samples", str(self.facts["samples"]), "--length", str(self.facts["length"])]
        command = [sys.executable, "-m", "g4convert", "calibrate", str(model), "-o", str(tokens), "-q", *shape]
        command += ["--data", str(tokens.with_suffix(".jsonl")), "--answers", "--no-statistics"]
        subprocess.run(command, check=True)

    def _keep(self, row: Row, found: Mapping[str, Any]) -> None:
        file = self.directory / "results.json"
        all_rows = json.loads(file.read_text()) if file.exists() else {}
        judged = found.get("judged")
        figures = {"kl": judged.kl, "same": judged.same} if isinstance(judged, Judged) else {}
        rest = {key: value for key, value in found.items() if key != "judged"}
        all_rows[row.name] = {**rest, **figures, "digest": self.facts["digest"], "code": code(row)}
        new = file.with_suffix(".new")
        new.write_text(json.dumps(all_rows))
        new.replace(file)
        say(f"{row.name}: {sum(figures['kl']) / len(figures['kl']):.4f}" if figures else f"{row.name}: {rest}")


def packs(name: str) -> bool:
    """Tell the parameters that recipes pack from the others."""
    return name.endswith("_proj.weight") or ".experts." in name


def _makes_the_same(now: str, then: str) -> bool:
    return now == then or {now, then} <= SAME


def code(row: Row) -> str:
    """A hash of the code that makes a row."""
    package = REPOSITORY / "g4convert"
    if row.rounding is not None:
        made_by = [inspect.getsource(row.rounding.func).encode()]
    elif row.peer:
        names = [row.peer] if row.peer == "peer" else [row.peer, "values"]
        made_by = [(HERE / f"quality_{name}.py").read_bytes() for name in names]
    else:
        folders = (package / "quantization", package / "calibration")
        made_by = [path.read_bytes() for folder in folders for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(b"".join(made_by)).hexdigest()[:12]


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""`g4convert quantize` against llm-compressor and against the machine: one command, a table for each part.

    python tests/benchmarks/quantize.py DATA [--peer-python PEER/bin/python] [--parts speed scaling ...]

DATA is a directory on the disk to be measured. The checkpoints, 7 GB and 3.6 GB more for `memory`, are made
there by the first run and kept; outputs are removed. Runs are interleaved, A B C A B C, and a ratio to the
peer is taken within a round, so that a busy neighbour disturbs both of its sides. Figures are medians over
the rounds; a limit is the best of them. `others` is the CPU time, in seconds, that the rest of the machine
used during a run: where it is not small, run again.

speed    both methods, warm and cold cache, beside the peer (`x its work`: without its imports) and the ceiling,
         which is the slower of copying and computing; `less start`: without our own imports, as --dry-run takes;
         `of both`: of copying and computing at once, all that cores can do when they must do both
check    both methods with and without the check that ends a conversion, warm and cold
scaling  1, 2 and 4 workers
memory   peak resident set above that of an interpreter with torch imported, for many shards and for one
plan     `plan` on the full 26B-A4B, and `--help`
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from measure import Ballast, Cost, chill, clear, medians, run, warm
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shapes import MODELS, output_bytes, packed_numel, source_bytes

HERE = Path(__file__).resolve().parent
GIB = 1 << 30
METHODS = ("minmax", "mse")
PEER = "llm-compressor"
CACHES: Mapping[str, Callable[[Path], None]] = {"warm": warm, "cold": chill}

Row = dict[str, Any]
Rounds = dict[str, list[Cost]]


@dataclass(frozen=True, slots=True)
class Bench:
    """Place and settings of all runs.

    Args:
        data: directory of checkpoints, outputs and logs.
        ballast: memory to hold between runs.
        rounds: repeats of each run.
        cores: threads of the ceiling and workers of `quantize`.
        peer: interpreter that has llmcompressor, or None.
    """

    data: Path
    ballast: Ballast
    rounds: int
    cores: int
    peer: Path | None

    def checkpoint(self, name: str, *options: str) -> Path:
        """Return a checkpoint's directory, made if it is not there (by a child, to stay small)."""
        directory = self.data / "".join((name, *options))
        self._run([sys.executable, str(HERE / "shapes.py"), name, str(directory), *options])
        return directory

    def g4convert(self, *arguments: str) -> Cost:
        """Run the command line."""
        return self._run([sys.executable, "-m", "g4convert", *arguments])[0]

    def python(self, code: str) -> Cost:
        """Run a line of Python."""
        return self._run([sys.executable, "-c", code])[0]

    def quantize(self, source: Path, method: str, *options: str, workers: int = 0, cache: str = "warm") -> Cost:
        """Quantize a checkpoint to W4A16 g32."""
        CACHES[cache](source)
        count = str(workers or self.cores)
        output = self.data / "out"
        arguments = [
            str(source),
            "-o",
            str(output),
            "-r",
            "w4a16-g32",
            "--method",
            method,
            "--workers",
            count,
        ]
        if "--verify" not in options:
            options = (*options, "--verify", "none")
        cost = self.g4convert("quantize", *arguments, "--overwrite", "-q", *options)
        clear(output)
        return cost

    def model_free_ptq(self, source: Path, workers: int, threads: int) -> Cost:
        """Run the peer; `threads` is OMP_NUM_THREADS, or 0 for its default."""
        warm(source)
        output = self.data / "out"
        argv = [str(self.peer), str(HERE / "peer.py"), str(source), str(output), "--workers", str(workers)]
        cost, stdout = self._run(argv, {"OMP_NUM_THREADS": str(threads)} if threads else {})
        clear(output)
        return replace(cost, start=cost.wall - json.loads(stdout.splitlines()[-1])["work_s"])

    def ceiling(self, *arguments: str) -> Cost:
        """Run one limit; `wall` is what it says, without the interpreter's start."""
        argv = [sys.executable, str(HERE / "ceiling.py"), *arguments, "--threads", str(self.cores)]
        cost, stdout = self._run(argv)
        return replace(cost, wall=float(stdout))

    def limit(self, name: str, source: Path, cache: str, method: str = "") -> Cost:
        """Read the input and write as much as the output, beside the arithmetic of a method if one is given."""
        CACHES[cache](source)
        output, model = self.data / "out", MODELS[name]
        sizes = ["--bytes", str(output_bytes(model)), "--numel", str(packed_numel(model))]
        if method:
            sizes += ["--method", method]
        cost = self.ceiling("both" if method else "io", str(source), str(output), *sizes)
        clear(output)
        return cost

    def repeat(self, runs: Mapping[str, Callable[[], Cost]], what: str) -> Rounds:
        """Run everything, `rounds` times over."""
        costs: Rounds = {name: [] for name in runs}
        for name in track([*runs] * self.rounds, description=what, console=Console(stderr=True), transient=True):
            costs[name].append(runs[name]())
        return costs

    def _run(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[Cost, str]:
        root = {"PYTHONPATH": str(HERE.parents[1])}
        return run(argv, self.data / "log", self.ballast, root if env is None else env)


def speed(bench: Bench, name: str, settings: Sequence[tuple[int, int]]) -> list[Row]:
    """Measure both methods beside the limits and the peer, on one checkpoint."""
    source, model = bench.checkpoint(name), MODELS[name]
    numel = str(packed_numel(model))
    runs: dict[str, Callable[[], Cost]] = {}
    for cache in CACHES:
        runs[f"limit: copy, {cache}"] = lambda c=cache: bench.limit(name, source, c)
    for method in METHODS:
        runs[f"limit: {method} tiles"] = lambda m=method: bench.ceiling("tiles", "--numel", numel, "--method", m)
        for cache in CACHES:
            runs[f"limit: {method} both, {cache}"] = lambda m=method, c=cache: bench.limit(name, source, c, m)
    runs["start (dry run)"] = lambda: bench.quantize(source, "minmax", "--dry-run")
    for method in METHODS:
        for cache in CACHES:
            runs[f"{method}, {cache}"] = lambda m=method, c=cache: bench.quantize(source, m, cache=c)
    for workers, threads in settings if bench.peer else ():
        label = f"{PEER}, {workers} workers, OMP {threads or 'default'}"
        runs[label] = lambda w=workers, t=threads: bench.model_free_ptq(source, w, t)
    costs = bench.repeat(runs, name)
    return [_speed_row(label, costs, source_bytes(model)) | {"checkpoint": name} for label in costs]


def _speed_row(label: str, costs: Rounds, nbytes: int) -> Row:
    """Return one run's medians, its ratio to the best peer setting, and to the slower limit."""
    row: Row = {"run": label} | asdict(medians(costs[label]))
    method, _, cache = label.partition(", ")
    if method not in METHODS:
        return row
    start = row["start"] = medians(costs["start (dry run)"]).wall
    slower = max(_least(costs[f"limit: copy, {cache}"]), _least(costs[f"limit: {method} tiles"]))
    row["gb_per_s"] = nbytes / 1e9 / row["wall"]
    row["of_ceiling"] = slower / row["wall"]
    row["work_of_ceiling"] = slower / (row["wall"] - start)
    row["work_of_both"] = _least(costs[f"limit: {method} both, {cache}"]) / (row["wall"] - start)
    peers = [costs[peer] for peer in costs if peer.startswith(PEER)]
    if peers and cache == "warm":
        best = min(peers, key=lambda peer: medians(peer).wall)
        pairs = [*zip(best, costs[label], strict=True)]
        row["times_peer"] = median(peer.wall / ours.wall for peer, ours in pairs)
        row["times_peer_work"] = median((peer.wall - peer.start) / ours.wall for peer, ours in pairs)
    return row


def _least(costs: Sequence[Cost]) -> float:
    """Return the shortest time: what a limit is, noise only ever adding to it."""
    return min(cost.wall for cost in costs)


def check(bench: Bench, name: str) -> list[Row]:
    """Measure what the check costs that ends a conversion, as a share of the conversion, by wall and by CPU time."""
    source = bench.checkpoint(name)
    runs = {
        f"{method}, {cache}, verify {level}": lambda m=method, c=cache, v=level: bench.quantize(
            source, m, "--verify", v, cache=c
        )
        for method in METHODS
        for cache in CACHES
        for level in ("none", "weights")
    }
    costs = bench.repeat(runs, f"{name}, check")
    rows = [{"checkpoint": name, "run": run} | asdict(medians(costs[run])) for run in costs]
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        after["more_wall"] = after["wall"] / before["wall"] - 1
        after["more_cpu"] = (after["user"] + after["system"]) / (before["user"] + before["system"]) - 1
    return rows


def scaling(bench: Bench, name: str) -> list[Row]:
    """Measure 1, 2 and 4 workers."""
    source = bench.checkpoint(name)
    runs = {
        f"{method}, {workers} workers": lambda m=method, w=workers: bench.quantize(source, m, workers=w)
        for method in METHODS
        for workers in (1, 2, 4)
    }
    costs = bench.repeat(runs, f"{name}, workers")
    return [{"checkpoint": name, "run": run} | asdict(medians(costs[run])) for run in costs]


def memory(bench: Bench, names: Sequence[str]) -> list[Row]:
    """Measure the peak resident set, above that of torch."""
    runs = {"import torch": lambda: bench.python("import torch")}
    for name, options in [(name, ()) for name in names] + [(names[0], ("--one-shard",))]:
        source = bench.checkpoint(name, *options)
        for method in METHODS:
            runs[f"{source.name}, {method}"] = lambda s=source, m=method: bench.quantize(s, m)
    costs = {run: medians(cost) for run, cost in bench.repeat(runs, "memory").items()}
    base = costs["import torch"].peak
    return [{"run": run} | asdict(cost) | {"above_torch": (cost.peak - base) / GIB} for run, cost in costs.items()]


def plan(bench: Bench) -> list[Row]:
    """Measure the commands that must answer at once."""
    replica = str(bench.checkpoint("26b"))
    commands = {
        "plan 26b": ("plan", replica),
        "plan 26b --json": ("plan", replica, "--json"),
        "--help": ("--help",),
    }
    runs = {label: lambda arguments=arguments: bench.g4convert(*arguments) for label, arguments in commands.items()}
    with Ballast(0) as nothing:
        costs = replace(bench, ballast=nothing, rounds=max(5, bench.rounds)).repeat(runs, "plan")
    return [{"run": run} | asdict(medians(costs[run])) for run in costs]


COLUMNS = {
    "run": ("run", "{}"),
    "wall": ("wall s", "{:.2f}"),
    "start": ("start s", "{:.2f}"),
    "user": ("user s", "{:.2f}"),
    "system": ("sys s", "{:.2f}"),
    "others": ("others s", "{:.2f}"),
    "peak": ("peak GiB", "{:.2f}"),
    "above_torch": ("above torch", "{:.2f}"),
    "gb_per_s": ("GB/s in", "{:.2f}"),
    "times_peer": ("x peer", "{:.1f}"),
    "times_peer_work": ("x its work", "{:.1f}"),
    "of_ceiling": ("of ceiling", "{:.2f}"),
    "work_of_ceiling": ("less start", "{:.2f}"),
    "work_of_both": ("of both", "{:.2f}"),
    "more_wall": ("more wall", "{:.0%}"),
    "more_cpu": ("more CPU", "{:.0%}"),
}


def show(part: str, rows: Sequence[Row]) -> None:
    """Print a part's rows, a table for each checkpoint, with the columns it has."""
    used = [key for key in COLUMNS if any(row.get(key) for row in rows)]
    for checkpoint in dict.fromkeys(row.get("checkpoint", "") for row in rows):
        table = Table(title=f"{part} {checkpoint}", title_justify="left", box=SIMPLE, pad_edge=False)
        for key in used:
            title, form = COLUMNS[key]
            table.add_column(title, justify="left" if form == "{}" else "right", no_wrap=True)
        for row in rows:
            if row.get("checkpoint", "") == checkpoint:
                shown = row | {"peak": row["peak"] / GIB}
                table.add_row(*(COLUMNS[key][1].format(shown[key]) if shown.get(key) else "" for key in used))
        Console(width=160).print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="directory for checkpoints and outputs, on the disk to measure")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--checkpoints", nargs="+", choices=MODELS, default=["26b-2l", "31b-3l"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: one for each core")
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has llmcompressor 0.14")
    parser.add_argument(
        "--peer-settings",
        nargs="+",
        default=["2:1", "1:0"],
        metavar="WORKERS:OMP",
        help="0 is OpenMP's default",
    )
    parser.add_argument("--ballast", type=float, default=5, help="GiB to hold between runs, 0 on bare metal")
    parser.add_argument("--json", type=Path, help="write every figure there")
    return parser.parse_args()


PARTS: Mapping[str, Callable[[Bench, argparse.Namespace], list[Row]]] = {
    "speed": lambda bench, args: [
        row
        for name in args.checkpoints
        for row in speed(bench, name, [tuple(map(int, pair.split(":"))) for pair in args.peer_settings])
    ],
    "check": lambda bench, args: [row for name in args.checkpoints for row in check(bench, name)],
    "scaling": lambda bench, args: scaling(bench, args.checkpoints[0]),
    "memory": lambda bench, args: memory(bench, args.checkpoints),
    "plan": lambda bench, _: plan(bench),
}


def main() -> None:
    """Run the chosen parts."""
    args = _arguments()
    args.data.mkdir(parents=True, exist_ok=True)
    peer = args.peer_python
    if peer is None or not peer.is_file():
        sys.stdout.write(f"{PEER} is left out: {peer or '--peer-python'} is not there\n")
        peer = None
    load = os.getloadavg()[0]
    sys.stdout.write(f"{os.cpu_count()} cores, load {load:.1f}, {args.workers} workers, {args.rounds} rounds\n")
    results = {}
    with Ballast(int(args.ballast * GIB)) as ballast:
        bench = Bench(args.data, ballast, args.rounds, args.workers, peer)
        for part in args.parts:
            results[part] = PARTS[part](bench, args)
            show(part, results[part])
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

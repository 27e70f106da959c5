"""Writes docs/quality.md from the results of `quality.py`."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from quality_rows import Row, rows
from real_judge import error

__all__ = ["LAST", "write"]

LAST = "\n## Bits for a size\n"
"""Heading of the page's last section, which `budget.py` writes."""

Results = Mapping[str, Mapping[str, Any]]

_TITLES = {
    "minmax": "minmax",
    "mse": "mse, the default: no data",
    "imatrix": "imatrix",
    "gptq": "gptq",
    "best": "best",
    "least error": "least weight error, the default of 0.1.0",
}
_PEERS = {
    "llm-compressor": "llm-compressor GPTQ",
    "llm-compressor-imatrix": "llm-compressor GPTQ, imatrix_mse",
    "gptqmodel": "GPTQModel",
    "autoround-rtn": "AutoRound, no steps",
    "autoround": "AutoRound, 50 steps of 4 windows",
}
"""Titles of other tools' rows, by name without the group."""
_DATA = {
    "": "",
    "mixed": "",
    "own": ", calibrated on the model's own continuations",
    "prose": ", calibrated on prose alone",
    "random": ", calibrated on random ids",
}

_TOP = """# Quality

This page shows what 4 bits cost a real language model, by method, on the same texts. The measure is the mean
Kullback-Leibler divergence (KL) of the next token's distribution from that of the bf16 original, in nats.
`make quality` writes this page.

- **Model**: Gemma 3 270M, base, rewritten as Gemma 4 without changing its function (`tests/benchmarks/real_model.py`).
  Arithmetic is float32, with scales as stored. Only Linears and experts are packed.
- **Text**: text from the disk of a Debian machine, of five kinds. {samples} windows of {length} ids calibrate, and
  {judges} of {judged} judge, by every third of their tokens. No document is on both sides. All calibrated rows have the
  same ids.
- **Time**: every row was quantized on {cores}. Seconds are for the whole command, imports included. Other programs
  used the machine at times, so compare CPU seconds, not wall time.
- **Error**: `+-` is the standard error over the windows that judge. Differences are of paired windows, so their error
  is smaller than the errors of the means suggest.

This is one model of 270M parameters. What larger models lose was not measured.
"""

_OTHERS = """## Other tools

The other tools were tried on 2026-11-29, each in an environment of its own, with the same ids and one core.

GPTQModel and AutoRound store scales as float16. In this model, the scales of `v_proj` are 2^-17 of the usual size, so
only one or two binary digits of them would be left. (The KL would be 0.224 for the first tool, and the second would
have no values at all.) So these tools get the model with `v_proj` 2^17 times as large, and their result is scaled back
(`tests/benchmarks/quality_values.py`).

- llm-compressor 0.14.0.1 runs as it comes, with the observers named.
- GPTQModel 7.6.0 (transformers 5.24.0) runs as it comes, on the CPU, where it calculates in bf16. 7.7.0 asks for torch
  2.14.1, which registries have only for CUDA. On two cores it stops with `ValueError: Virtual pool 'model_loader:cpu'
  requests 2 workers but parent 'cpu' only has 1`, so `GPTQMODEL_CPU_WORKERS` is set to 2.
- AutoRound 0.16.1 (transformers 5.24.0), as it comes, stops at layer 16 of 18: `TypeError: 'NoneType' object does not
  support item assignment`. There, the last layer of a kind stores its keys and values (`shared_kv_states` in
  transformers' `modeling_gemma4.py`). AutoRound gives layers that dictionary only if `model_type` is `gemma4`
  (`special_model_handler.py`), but a text-only model says `gemma4_text`. So its rows were made with a config that says
  `gemma4`, and without `torch.compile`. "No steps" is its mode that rounds with a search. Its default, 200 steps of 8
  samples for each layer, takes hours here.
"""


def write(target: Path, results: Results, facts: Mapping[str, Any]) -> None:
    """Write the page.

    Args:
        target: the file.
        results: figures by row.
        facts: `Bench.facts`.
    """
    cores = "one core" if facts["cores"] == 1 else f"{facts['cores']} cores"
    parts = [_TOP.format(**{**facts, "cores": cores})]
    for title, model, group in (
        ("Groups of 32", "model", 32),
        ("Groups of 128", "model", 128),
        ("A mixture of experts, groups of 32", "moe", 32),
    ):
        chosen = [
            row for row in rows() if (row.model, row.group) == (model, group) and "kl" in results.get(row.name, {})
        ]
        if not chosen:
            continue
        parts.append("\n".join([f"## {title}\n", *_table(chosen, results, facts["kinds"])]) + "\n")
    parts.append("\n".join(["## Compared\n", *_compared(results)]) + "\n")
    parts.append(_OTHERS)
    if missing := [*_missing(results)]:
        parts.append("\n".join(["## Not in this run\n", *missing]) + "\n")
    parts.append(
        f"Hashes: windows that judge {facts['digest']}, ids that calibrate {facts['calibrated']}.\nVersions: torch "
        f"{version('torch')}, transformers {version('transformers')}.\n"
    )
    _, title, section = target.read_text().partition(LAST)
    target.write_text("\n".join(parts) + title + section)


def _table(chosen: Sequence[Row], results: Results, kinds: Sequence[str]) -> Iterator[str]:
    order = [*dict.fromkeys(kinds)]
    yield "| method | KL | same top token | " + " | ".join(order) + " | s | CPU s |"
    yield "|---|---:|---:|" + "---:|" * (len(order) + 2)
    for row in chosen:
        found = results[row.name]
        by_kind = (fmean(kl for kl, this in zip(found["kl"], kinds, strict=True) if this == kind) for kind in order)
        cells = [
            _title(row),
            f"{fmean(found['kl']):.3f} +- {error(found['kl']):.3f}",
            f"{100 * fmean(found['same']):.1f} %",
            *(f"{kl:.3f}" for kl in by_kind),
            *(f"{found[key]:.0f}" if key in found else "" for key in ("seconds", "cpu")),
        ]
        yield f"| {' | '.join(cells)} |"


def _compared(results: Results) -> Iterator[str]:
    """Ratios of means, with the paired error of the difference, beside what was to be reached."""
    yield "| | KL ratio | difference | to reach |"
    yield "|---|---:|---:|---:|"
    for mine, other, most in (
        ("mse-g32", "minmax-g32", "< 1"),
        ("mse-g128", "minmax-g128", "< 1"),
        ("imatrix-g32", "least-error-g32", "0.5"),
        ("gptq-g32", _best_peer(results, 32), "0.8"),
        ("best-g32", _best_peer(results, 32), "0.6"),
        ("best-g32", "gptq-g32", "< 1"),
        ("gptq-g128", "minmax-g128", "0.25"),
        ("gptq-g128", _best_peer(results, 128), ""),
        ("gptq-g32", "gptqmodel-g32", ""),
        ("gptq-g32", "autoround-g32", ""),
        ("gptq-g32", "imatrix-g32", ""),
        ("gptq-g32-prose", "gptq-g32", "> 1"),
        ("gptq-g32-random", "gptq-g32", "> 1"),
        ("gptq-g32-random", "gptq-g32-own", "> 1"),
        ("moe-gptq-g32", "moe-imatrix-g32", ""),
        ("moe-best-g32", "moe-gptq-g32", ""),
    ):
        if "kl" in results.get(mine, {}) and "kl" in results.get(other, {}) and _is_fair(results, mine, other):
            a, b = results[mine]["kl"], results[other]["kl"]
            differences = [x - y for x, y in zip(a, b, strict=True)]
            means = f"{fmean(a) / fmean(b):.2f} | {fmean(differences):+.3f} +- {error(differences):.3f}"
            yield f"| {mine} / {other} | {means} | {most} |"


def _is_fair(results: Results, mine: str, other: str) -> bool:
    """Tell whether two rows differ in what their names say: one method on other data is to be of the same code."""
    return not mine.startswith(other) or results[mine]["code"] == results[other]["code"]


def _best_peer(results: Results, group: int) -> str:
    """Return the better of llm-compressor's rows, which is what was to be reached."""
    names = [
        row.name
        for row in rows()
        if row.name.startswith("llm-compressor") and row.group == group and "kl" in results.get(row.name, {})
    ]
    return min(names, key=lambda name: fmean(results[name]["kl"]), default="")


def _missing(results: Results) -> Iterator[str]:
    failed = {row.name: results[row.name]["failed"] for row in rows() if "failed" in results.get(row.name, {})}
    if left := [row.name for row in rows() if row.name not in results]:
        yield f"Not run: {', '.join(left)}.\n"
    yield from (f"- {name}: `{why}`" for name, why in failed.items())
    if earlier := [row.name for row in rows() if results.get(row.name, {}).get("earlier")]:
        yield f"\nOn the same ids and windows, by an earlier state of the code: {', '.join(earlier)}.\n"


def _title(row: Row) -> str:
    if row.peer:
        return _PEERS[row.name.rpartition("-")[0]]
    return _TITLES[row.method] + _DATA[row.tokens]

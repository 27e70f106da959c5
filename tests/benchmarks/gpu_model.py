"""Small models on the GPU, end to end: quantized, verified against what they were made from, and asked.

The two that ship with the package and have learned something: experts, and per-layer embeddings. Each line says
passed or failed; how often the packed kernels ran is counted, since a weight that they do not take goes elsewhere.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from g4convert.forward.triton import fused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpu_layers import Machine, Results, Sizes

    from g4convert.conversion.result import Summary

PROMPT = "Write a Python function total that adds left and right."
MOST_OTHER = 0.02
"""Largest share of words that may differ from the CPU's: a code near a tie moves the codes after it in its row."""
ANSWER = "def total(left, right):\n    return left + right"


def models(machine: Machine, sizes: Sizes, _results: Results) -> Iterator[str]:
    """A line for each step of each model."""
    try:
        from g4convert.demo.trained import trained  # noqa: PLC0415 - needs transformers
        from g4convert.gemma4.family import Family  # noqa: PLC0415 - the same
    except ImportError as missing:
        yield f"- not run: {missing}"
        return
    for family in map(Family, sizes.models):
        with TemporaryDirectory() as directory:
            source, output = trained(family), Path(directory) / "packed"
            steps = {
                "quantize": partial(_quantized, source, output),
                "verify --level logits": partial(_verified, source, output, machine.device),
                "generate": partial(_generated, output, machine.device),
                "quantize -r w4a16-g32-gptq": partial(_layered, source, Path(directory), machine.device),
            }
            for name, step in steps.items():
                passed, line = _tried(step)
                yield f"- {family}, {name}: {line}"
                if not passed:
                    break


def _tried(step: Callable[[], str]) -> tuple[bool, str]:
    """Run a step and return whether it passed, and its message."""
    with _counted() as calls:
        try:
            said = step()
        except ImportError as missing:
            return False, f"not run: {missing}"
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is the result
            first = next(iter(str(error).splitlines()), "")
            return False, f"FAILED: {type(error).__name__}: {first}"
    packed = ", ".join(f"{count} calls of the packed {name}" for name, count in calls.items())
    return True, f"passed: {said}" + (f"; {packed}" if packed else "")


def _quantized(source: Path, output: Path) -> str:
    summary = _converted(source, output, "w4a16-g32")
    return f"{summary.before} -> {summary.after} bytes"


def _layered(source: Path, directory: Path, device: str) -> str:
    """Quantize layer by layer on the device and on the CPU, and compare codes."""
    from safetensors.torch import load_file  # noqa: PLC0415 - beside the others

    from g4convert.calibration.tokens import Tokens  # noqa: PLC0415 - needs transformers

    ids = directory / "ids.safetensors"
    Tokens(np.random.default_rng(0).integers(5, 250, (24, 32), dtype=np.int32)).save(ids)
    seconds, words = {}, {}
    for name in dict.fromkeys((device, "cpu")):
        output, began = directory / f"gptq-{name}", time.perf_counter()
        _converted(source, output, "w4a16-g32-gptq", name, ids)
        seconds[name] = time.perf_counter() - began
        files = (load_file(file) for file in output.glob("*.safetensors"))
        words[name] = {key: value for file in files for key, value in file.items() if key.endswith("weight_packed")}
    there, here = words[device], words["cpu"]
    other = sum(int((there[key] != here[key]).sum()) for key in here) / sum(one.numel() for one in here.values())
    if other > MOST_OTHER:
        raise AssertionError(f"{other:.2%} of the words are not the CPU's")
    return f"{seconds[device]:.1f} s, {seconds['cpu']:.1f} s on the CPU, {other:.3%} of the words differ"


def _converted(source: Path, output: Path, recipe: str, device: str = "cpu", ids: Path | None = None) -> Summary:
    from g4convert.calibration.run import LayerByLayer  # noqa: PLC0415 - needs transformers
    from g4convert.checkpoint.source import Source  # noqa: PLC0415 - the same
    from g4convert.conversion.job import Job, prepare  # noqa: PLC0415 - needs numba
    from g4convert.conversion.ranks import Ranks  # noqa: PLC0415 - the same
    from g4convert.conversion.run import convert  # noqa: PLC0415 - needs numba
    from g4convert.planning.recipe_files import load  # noqa: PLC0415 - the same
    from g4convert.progress import Progress  # noqa: PLC0415 - needs rich

    conversion = prepare(Job(Source.at(source), load(recipe, {}), output, 1, device, calibration=ids))
    summary = convert(conversion, Progress(), Ranks(), None if ids is None else LayerByLayer.of(conversion, ids))
    assert summary is not None
    return summary


def _verified(source: Path, output: Path, device: str) -> str:
    from g4convert.request import Level, Request  # noqa: PLC0415 - the same
    from g4convert.verification.run import verify  # noqa: PLC0415 - needs compressed-tensors

    found = verify(Request(output, source, Level.LOGITS, device=device))
    if found.exit_code(strict=False):
        wrong = [one.line for one in found.findings if one.severity is found.verdict]
        raise AssertionError(wrong[0])
    return f"{len(found.findings)} findings, the verdict is {found.verdict}"


def _generated(output: Path, device: str) -> str:
    from g4convert.checkpoint.uses import open_for_generation  # noqa: PLC0415 - the same
    from g4convert.forward.generation import Speaker  # noqa: PLC0415 - needs transformers

    said = Speaker.load(open_for_generation(output), device=device).answer(PROMPT, max_new_tokens=40)
    if said.text != ANSWER:
        raise AssertionError(f"said {said.text!r}, expected {ANSWER!r}")
    return f"{len(said.token_ids)} tokens, the text that it was taught"


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Inside, calls of what a model calls are counted."""
    calls: Counter[str] = Counter()
    entries = {"linear": fused.linear, "moe": fused.moe}

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **how: Any) -> Any:  # noqa: ANN401 - passed on
            calls[name] += 1
            return call(*args, **how)

        return run

    try:
        for name, call in entries.items():
            setattr(fused, name, counted(name, call))
        yield calls
    finally:
        for name, call in entries.items():
            setattr(fused, name, call)

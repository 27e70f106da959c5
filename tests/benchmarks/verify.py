"""Cost of each command on a real model: seconds, CPU seconds and peak memory, in a table for docs/benchmarks.md.

    python tests/benchmarks/verify.py DIRECTORY [--engine-python PYTHON]

Fetches the model of `real_model.py` (240 MB, once), converts it and runs every command on it, one after the other; then
those that need no tokenizer on two layers of 26B-A4B (`shapes.py`, 3.6 GB), and what transformers takes to generate.
Cores that others use make figures of wall time worthless: the CPU seconds of the rest of the machine stand beside.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

PROMPT, TOKENS = "The capital of France is", 48
TRANSFORMERS = f"""
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
said = model.generate(**tokenizer({PROMPT!r}, return_tensors="pt"), max_new_tokens={TOKENS}, do_sample=False)
print(tokenizer.decode(said[0]))
"""
"""The same with transformers alone, on the model that is not quantized."""


def main(directory: Path, engine: Path | None) -> None:
    """Run everything and print the table."""
    part, packed = directory / "26b-2l", directory / "26b-2l-out"
    out, stored = directory / "out", directory / "ref.safetensors"
    with ProcessPoolExecutor(1, get_context("spawn")) as child:  # a program's peak is never below its parent's memory
        model = child.submit(models, directory, part).result()
    stored.unlink(missing_ok=True)
    said = ("-p", PROMPT, "--max-new-tokens", TOKENS)
    say("| command | status | s | CPU s | peak MB | others' CPU s |\n|---|---:|---:|---:|---:|---:|")
    for row in (
        ("plan", model),
        ("quantize", model, "-o", out, "--overwrite"),
        ("verify", out, "--reference", model),
        ("verify", out, "--reference", model, "--level", "logits"),
        ("reference", model, "-o", stored),
        ("verify", out, "--reference", stored),
        *([("verify", out, "--engine", "vllm", "--engine-python", engine)] if engine else []),
        ("check", out),
        ("generate", out, *said),
        ("generate", model, *said),
        ("plan", part),
        ("quantize", part, "-o", packed, "--overwrite"),
        ("verify", packed, "--reference", part, "--level", "weights"),
        ("check", packed),
    ):
        say(measured("g4convert", *map(str, row)))
    say(measured("transformers", str(model)))


def models(directory: Path, part: Path) -> Path:
    """Make both models and return the path of the real one."""
    import shapes  # noqa: PLC0415 -- brings torch
    from real_model import make  # noqa: PLC0415 -- the same

    shapes.make(shapes.MODELS["26b-2l"], part)
    return make(directory)


def measured(program: str, *arguments: str) -> str:
    """Run `g4convert`, or transformers alone, and return a row of the table."""
    others, began = busy(), time.monotonic()
    code = ["-m", program] if program == "g4convert" else ["-c", TRANSFORMERS]
    with subprocess.Popen(
        [sys.executable, *code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    wall, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
    named = "" if program == "g4convert" else f"{program}: generate "
    words = named + " ".join(Path(part).name if "/" in part else part for part in arguments)
    rest = max(0.0, busy() - others - cpu)
    return f"| `{words}` | {running.returncode} | {wall:.0f} | {cpu:.0f} | {used.ru_maxrss / 1000:.0f} | {rest:.0f} |"


def busy() -> float:
    """CPU seconds that the machine has used since it started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system = map(int, fields[:3])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    """Print to standard output, at once."""
    print(text, flush=True)  # noqa: T201 -- what the script is for


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--engine-python", type=Path, help="interpreter that has vllm")
    asked = parser.parse_args()
    main(asked.directory, asked.engine_python)

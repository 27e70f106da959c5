"""Cost of each command on a real model: seconds, CPU seconds and peak memory, in a table for docs/benchmarks.md.

    python tests/benchmarks/verify.py DIRECTORY

Fetches the model of `real_model.py` (240 MB, once), converts it and runs every command on it, one after the other.
Cores that others use make figures of wall time worthless: the CPU seconds of the rest of the machine stand beside.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from real_model import make


def main(directory: Path) -> None:
    """Run everything and print the table."""
    model, out, stored = make(directory), directory / "out", directory / "ref.safetensors"
    stored.unlink(missing_ok=True)
    rows = (
        ("plan", model),
        ("quantize", model, "-o", out, "--overwrite"),
        ("verify", out, "--reference", model),
        ("verify", out, "--reference", model, "--level", "logits"),
        ("reference", model, "-o", stored),
        ("verify", out, "--reference", stored),
        ("check", out),
        ("generate", out, "-p", "The capital of France is", "--max-new-tokens", "48"),
        ("generate", model, "-p", "The capital of France is", "--max-new-tokens", "48"),
    )
    say("| command | status | s | CPU s | peak MB | others' CPU s |\n|---|---:|---:|---:|---:|---:|")
    for row in rows:
        say(measured([str(part) for part in row]))


def measured(arguments: Sequence[str]) -> str:
    """One row of the table."""
    others, began = busy(), time.monotonic()
    program = [sys.executable, "-m", "g4convert", *arguments]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    wall, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
    words = " ".join(Path(part).name if "/" in part else part for part in arguments)
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
    main(parser.parse_args().directory)

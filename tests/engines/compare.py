"""Compares the contracts of `g4convert.engines` with the engines' real code: `make test-engines`.

Downloads the wheels that the contracts speak of, unpacks their Python files, builds every family's model from them
with every list of `engine_cases`, and prints each line in which a contract says something else. Nothing of the
engines is installed: see `skeleton`.

    python tests/engines/compare.py [--record]

ENGINE_WHEELS names a directory that has the wheels already. `--record` writes what the real code answers to
tests/golden/engines, with which the ordinary tests compare the contracts.
"""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE)]

from helpers.engine_cases import GOLDEN, Contracted, contracts, report  # noqa: E402 -- after the paths
from real_sglang import Sglang  # noqa: E402
from real_vllm import Vllm  # noqa: E402
from sources import unlike  # noqa: E402

CACHE = ROOT / "build" / "engines"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_31_x86_64", "manylinux_2_34_x86_64", "manylinux2014_x86_64")


def unpacked(package: str, version: str) -> Path:
    """The Python files of a wheel, downloaded unless ENGINE_WHEELS or an earlier run has it."""
    place = CACHE / f"{package}-{version}"
    if place.exists():
        return place
    given = Path(os.environ.get("ENGINE_WHEELS", CACHE))
    wheel = next(iter(sorted(given.glob(f"{package}-{version}-*.whl"))), None)
    if wheel is None:
        options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.11", "--dest", str(CACHE)]
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", *options, *platforms, f"{package}=={version}"]
        subprocess.run(pip, check=True)
        wheel = next(iter(sorted(CACHE.glob(f"{package}-{version}-*.whl"))))
    partial = place.with_name(f"{place.name}.partial")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial, [name for name in archive.namelist() if name.endswith(".py")])
    partial.rename(place)
    return place


def main(arguments: list[str]) -> int:
    """0 when every contract says what the real code does."""
    wrong = []
    for label, contract in contracts().items():
        package, _, version = GOLDEN[label].partition("-")
        root = unpacked(package, version)
        engine = {"vllm": Vllm, "sglang": Sglang}[package](root)
        real = report(engine)
        golden = HERE.parent / "golden" / "engines" / f"{GOLDEN[label]}.txt"
        if "--record" in arguments:
            golden.parent.mkdir(exist_ok=True)
            golden.write_text(real, encoding="utf-8")
        sides = {"contract": report(Contracted(contract)), "recorded": golden.read_text(encoding="utf-8")}
        found = [
            line
            for name, text in sides.items()
            for line in difflib.unified_diff(text.splitlines(), real.splitlines(), name, label, lineterm="", n=0)
            if not line.startswith("@@")
        ]
        found += unlike(label, root)
        print(*found, f"{label}: {len(real.splitlines())} answers, {len(found)} lines of difference", sep="\n")  # noqa: T201 -- a report
        wrong += found
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

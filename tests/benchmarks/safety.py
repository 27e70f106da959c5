"""The cost of the lock, the checksums of units, the sample of the source and the hashes of shards, on and off in turn.

    python tests/benchmarks/safety.py DATA [--model 26b-2l] [--layers 1] [--rounds 5] [--method minmax]

DATA is a directory on the disk to be measured; the first run makes the checkpoint there. One process converts it again
and again, with the guards and without, in turn, so that a busy neighbour disturbs both; CPU time is counted beside wall
time, as it depends on neighbours least. The program has no such switch: here the guards are replaced by nothing.
"""

import argparse
import os
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

from shapes import MODELS, make

from g4convert.checkpoint.source import Source
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.planning.recipe_files import load
from g4convert.progress import Progress


class _NoDigest:
    """In place of a hash."""

    def update(self, _: object) -> None:
        """Forget it."""

    def hexdigest(self) -> str:
        """Return the same for all."""
        return "0"


def seconds(source: Path, output: Path, method: str, *, guarded: bool) -> tuple[float, float]:
    """Convert once; the seconds it took, and those of CPU.

    Args:
        source: the checkpoint.
        output: the directory, which is removed.
        method: of the recipe.
        guarded: with locks, checksums and hashes.
    """
    with ExitStack() as off:
        if not guarded:
            off.enter_context(patch("g4convert.conversion.stream.xxh3_64", _NoDigest))
            off.enter_context(patch("g4convert.conversion.fingerprint.sample_weights", lambda *_: ""))
            off.enter_context(patch("g4convert.conversion.run.file_hashes", lambda *_: {}))
            for name in ("take", "check", "release"):
                off.enter_context(patch(f"g4convert.conversion.lock.Lock.{name}", lambda _: None))
            off.enter_context(patch("g4convert.conversion.lock.Lock.is_of", lambda *_: True))
        os.sync()
        began = time.monotonic(), time.process_time()
        convert(prepare(Job(Source.at(source), load("w4a16-g32", {"method": method}), output)), Progress(), Ranks())
        took = time.monotonic() - began[0], time.process_time() - began[1]
    shutil.rmtree(output)
    return took


def main() -> None:
    """Measure, and print the medians and the ratios of each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", choices=MODELS, default="26b-2l")
    parser.add_argument("--layers", type=int, default=None, help="only so many")
    parser.add_argument("--experts", type=int, default=None, help="only so many in each layer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", default="minmax", help="minmax computes least, so guards show most")
    given = parser.parse_args()
    model = MODELS[given.model]
    model = replace(model, layers=model.layers[-(given.layers or 0) :])
    if given.experts is not None and model.moe is not None:
        model = replace(model, moe=(given.experts, model.moe[1]))
    source = make(model, given.data / f"{given.model}-{len(model.layers)}-{given.experts or 'all'}")
    output = given.data / "safety-out"
    seconds(source, output, given.method, guarded=True)
    pairs = []
    for number in range(given.rounds):
        order = (True, False) if number % 2 else (False, True)
        took = {guarded: seconds(source, output, given.method, guarded=guarded) for guarded in order}
        pairs.append((took[True], took[False]))
    size = sum(path.stat().st_size for path in source.glob("*.safetensors")) / 1e9
    for number, name in enumerate(("wall", "CPU")):
        guarded, without = ([one[number] for one in column] for column in zip(*pairs, strict=True))
        ratio = median(one / other for one, other in zip(guarded, without, strict=True))
        line = f"{name}: {median(guarded):.2f} s, without guards {median(without):.2f} s, median ratio {ratio:.3f}"
        sys.stdout.write(f"{size:.2f} GB, {given.method}, {given.rounds} rounds; {line}\n")


if __name__ == "__main__":
    main()

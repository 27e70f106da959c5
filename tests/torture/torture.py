"""Ill-treats the program at random and counts what ends wrong: nothing may.

    make torture                        60 rounds, about a minute
    make torture ROUNDS=500             as for docs/concepts/hostile.md

A round of pairs takes a new output, starts one or two runs on it (with and without `--overwrite`), kills or interrupts
some at a random time, damages what lies there, and in the end runs the command until it is done. Rounds of inputs
damage one file that a command reads; rounds of reading, ten times as many, prompts, stored references and replies. It
counts as wrong

- an exit with 0 and an output that is not, byte for byte, that of an undisturbed run;
- an output that cannot be finished, though the command is told to overwrite;
- a stored reference that is used although a byte of it changed;
- an exit status that is not documented, or one other than 0 without exactly one line `error:`; a traceback.
"""

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"  # forked processes get no threads of their parent's

from inputs import Inputs
from pairs import Pairs
from reads import Reads
from runs import compiled, many_small_units

from g4convert.demo import Family, make


def main() -> None:
    """Do the rounds and print what happened; exit with 1 if anything ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="of pairs")
    parser.add_argument("--inputs", type=int, default=None, help="rounds of inputs; as many by default")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    many_small_units()
    with TemporaryDirectory(prefix="g4convert-torture-") as place:
        source = make(Family.DENSE, Path(place, "source"))
        compiled(["quantize", str(source), "-o", str(Path(place, "once")), "-q", "--verify", "weights"])
        compiled(["verify", str(Path(place, "once")), "--reference", str(source), "-q"])
        pairs = Pairs(source, Path(place, "pairs"), random.Random(given.seed))  # noqa: S311 - nothing secret
        began = time.monotonic()
        for number in range(given.rounds):
            pairs.round()
            _tell(f"pairs {number + 1}", len(pairs.faults))
        _print(pairs.lines(), time.monotonic() - began)
        inputs = Inputs(source, Path(place, "inputs"), random.Random(given.seed))  # noqa: S311 - nothing secret
        began = time.monotonic()
        for number in range(given.rounds if given.inputs is None else given.inputs):
            inputs.round()
            _tell(f"inputs {number + 1}", len(inputs.faults))
        _print(inputs.lines(), time.monotonic() - began)
        stored = Path(place, "reference.safetensors")
        compiled(["reference", str(source), "-o", str(stored), "-q"])
        reads = Reads(source, stored, Path(place, "reads"), random.Random(given.seed))  # noqa: S311 - nothing secret
        began = time.monotonic()
        for number in range(10 * given.rounds):
            reads.round()
            _tell(f"reads {number + 1}", len(reads.faults))
        _print(reads.lines(), time.monotonic() - began)
    sys.exit(1 if pairs.faults or inputs.faults or reads.faults else 0)


def _tell(what: str, wrong: int) -> None:
    sys.stderr.write(f"\r{what}, {wrong} wrong ")
    sys.stderr.flush()


def _print(lines: list[str], seconds: float) -> None:
    sys.stdout.write("\n".join([*lines, f"{seconds:.0f} s"]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()

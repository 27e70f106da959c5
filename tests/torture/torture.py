"""Ill-treats the program at random and counts what ends wrong: nothing may.

    make torture                        60 rounds, about a minute
    make torture ROUNDS=500             as for docs/concepts/hostile.md

A round of pairs takes a new output, starts one or two runs on it (with and without `--overwrite`), kills or interrupts
some at a random time, damages what lies there, and in the end runs the command until it is done; so do pairs of `gptq`,
which leaves states between layers, too. Rounds of inputs damage one file that a command reads: sources, recipes,
outputs, calibration files and the losses of `fit`; rounds of reading, ten times as many, prompts, stored references and
replies. It counts as wrong

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
from typing import Protocol

os.environ["OMP_NUM_THREADS"] = "1"  # forked processes get no threads of their parent's

import numpy as np
from inputs import Inputs, fit, gptq
from pairs import Pairs
from reads import Reads
from runs import compiled, many_small_units

from g4convert.calibration.tokens import Tokens
from g4convert.demo import Family, make


def main() -> None:
    """Do the rounds and print what happened; exit with 1 if anything ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="of pairs")
    parser.add_argument("--inputs", type=int, default=None, help="rounds of gptq and of inputs; as many by default")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    many_small_units()
    with TemporaryDirectory(prefix="g4convert-torture-") as place:
        source = make(Family.DENSE, Path(place, "source"))
        compiled(["quantize", str(source), "-o", str(Path(place, "once")), "-q", "--verify", "weights"])
        compiled(["verify", str(Path(place, "once")), "--reference", str(source), "-q"])
        faults = []
        pairs = Pairs(source, Path(place, "pairs"), _chance(given.seed))
        faults += _rounds("pairs", pairs, given.rounds)
        tokens, losses = _calibration(source, Path(place))
        layers = Pairs(source, Path(place, "layers"), _chance(given.seed), gptq(tokens))
        faults += _rounds("pairs of gptq", layers, given.inputs or given.rounds)
        inputs = Inputs(source, tokens, losses, Path(place, "inputs"), _chance(given.seed))
        faults += _rounds("inputs", inputs, given.inputs or given.rounds)
        stored = Path(place, "reference.safetensors")
        compiled(["reference", str(source), "-o", str(stored), "-q"])
        reads = Reads(source, stored, Path(place, "reads"), _chance(given.seed))
        faults += _rounds("reads", reads, 10 * given.rounds)
    sys.exit(1 if faults else 0)


class Rounds(Protocol):
    """Ill-treats something, round after round."""

    faults: list[str]

    def round(self) -> None:
        """Do it once."""

    def lines(self) -> list[str]:
        """Describe the outcome, for people."""


def _rounds(name: str, what: Rounds, count: int) -> list[str]:
    """Do some rounds, print what happened, and return the faults."""
    began = time.monotonic()
    for number in range(count):
        what.round()
        _tell(f"{name} {number + 1}", len(what.faults))
    _print([f"{name}:", *what.lines()], time.monotonic() - began)
    return what.faults


def _chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 -- nothing secret


def _calibration(source: Path, place: Path) -> tuple[Path, Path]:
    """A calibration file and what `fit` has measured with it; both commands have run in this process then."""
    tokens, recipe = place / "tokens.safetensors", place / "fitted.yaml"
    ids = np.random.default_rng(0).integers(5, 250, (8, 16), dtype=np.int32)
    Tokens(ids).save(tokens)
    compiled(["quantize", str(source), "-o", str(place / "layered"), *gptq(tokens), "-q", "--verify", "none"])
    compiled(fit(source, recipe, tokens, place / "losses.json"))
    return tokens, place / "losses.json"


def _tell(what: str, wrong: int) -> None:
    sys.stderr.write(f"\r{what}, {wrong} wrong ")
    sys.stderr.flush()


def _print(lines: list[str], seconds: float) -> None:
    sys.stdout.write("\n".join([*lines, f"{seconds:.0f} s"]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()

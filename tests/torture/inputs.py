"""Rounds of inputs: one file that a command reads is damaged, and the command has to say so, or not to mind."""

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from damage import damage, damage_text
from runs import Ended, Run, fault_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Inputs", "fit", "gptq"]

_RECIPE = """\
extends: w4a16-g32
group_size: 64
method: minmax
pack: [mlp, attention]
max_shard_size: 200KB
engines: [transformers]
carry: [".*"]
leave: ["*.md", "assets/**"]
"""


class Inputs:
    """Sources, recipes and outputs, each damaged and read.

    Args:
        source: a checkpoint.
        tokens: a calibration file.
        losses: what `fit` has measured with it.
        place: a directory to make.
        chance: decides everything.
    """

    def __init__(self, source: Path, tokens: Path, losses: Path, place: Path, chance: random.Random) -> None:
        self._source, self._tokens, self._losses = source, tokens, losses
        self._place, self._chance = place, chance
        self._ended: dict[str, Counter[int]] = {}
        self._rounds = 0
        self.faults: list[str] = []
        place.mkdir()
        self._out = place / "out"
        self._run(["quantize", str(source), "-o", str(self._out), "-q", "--verify", "none"])
        self._kinds: dict[str, Callable[[], Ended]] = {
            "source, plan": self._planned,
            "source, quantize": self._quantized,
            "recipe": self._recipe,
            "output": self._verified,
            "tokens, quantize": self._calibrated,
            "losses, fit": self._fitted,
        }

    def round(self) -> None:
        """Damage something of each kind."""
        self._rounds += 1
        for name, do in self._kinds.items():
            ended = do()
            self._ended.setdefault(name, Counter())[ended.status] += 1
            if fault := fault_of(ended):
                self.faults.append(f"round {self._rounds}: {name}: {fault}")

    def lines(self) -> list[str]:
        """Describe the outcome, for people."""
        exits = [f"{name}: exits {dict(sorted(ended.items()))}" for name, ended in self._ended.items()]
        return [f"{self._rounds} rounds of inputs", *exits, *(f"WRONG: {fault}" for fault in self.faults)]

    def _run(self, arguments: list[str]) -> Ended:
        return Run.start(arguments, self._place / "log").wait()

    def _copy(self, of: Path, name: str) -> Path:
        target = self._place / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(of, target)
        return target

    def _damaged(self, of: Path, name: str) -> tuple[Path, Path]:
        """A copy of a directory with one damage, and the file that has it; JSON is as often text that is cut about."""
        copy = self._copy(of, name)
        path = self._chance.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
        if path.suffix == ".json" and self._chance.random() < 0.5:
            path.write_text(damage_text(path.read_text(encoding="utf-8"), self._chance), encoding="utf-8")
        else:
            damage(path, self._chance)
        return copy, path

    def _planned(self) -> Ended:
        copy, _ = self._damaged(self._source, "model")
        return self._run(["plan", str(copy), "--json"])

    def _quantized(self) -> Ended:
        copy, _ = self._damaged(self._source, "model")
        shutil.rmtree(self._place / "made", ignore_errors=True)
        return self._run(["quantize", str(copy), "-o", str(self._place / "made"), "-q", "--verify", "none"])

    def _recipe(self) -> Ended:
        path = self._place / "recipe.yaml"
        path.write_text(damage_text(_RECIPE, self._chance), encoding="utf-8")
        return self._run(["plan", str(self._source), "-r", str(path), "--json"])

    def _calibrated(self) -> Ended:
        """A calibration file that is damaged."""
        path = self._damaged_file(self._tokens, "tokens.safetensors")
        shutil.rmtree(self._place / "made", ignore_errors=True)
        shutil.rmtree(self._place / "made.partial", ignore_errors=True)
        return self._run(
            ["quantize", str(self._source), "-o", str(self._place / "made"), *gptq(path), "-q", "--verify", "none"]
        )

    def _fitted(self) -> Ended:
        """A damaged file of losses, or damaged tokens, and a recipe that is there whole or not at all."""
        tokens, losses = self._tokens, self._losses
        if self._chance.random() < 0.5:
            tokens = self._damaged_file(tokens, "tokens.safetensors")
        else:
            losses = self._damaged_file(losses, "losses.json")
        recipe = self._place / "fitted.yaml"
        recipe.unlink(missing_ok=True)
        ended = self._run(fit(self._source, recipe, tokens, losses))
        if recipe.exists() != (ended.status == 0):
            self.faults.append(f"round {self._rounds}: exit {ended.status} and a recipe: {recipe.exists()}")
        return ended

    def _damaged_file(self, of: Path, name: str) -> Path:
        """A copy of a file with one damage; JSON is as often text that is cut about."""
        path = self._place / name
        path.unlink(missing_ok=True)
        shutil.copy(of, path)
        if path.suffix == ".json" and self._chance.random() < 0.5:
            path.write_text(damage_text(path.read_text(encoding="utf-8"), self._chance), encoding="utf-8")
        else:
            damage(path, self._chance)
        return path

    def _verified(self) -> Ended:
        copy, path = self._damaged(self._out, "damaged")
        before = (self._out / path.relative_to(copy)).read_bytes()
        same = path.is_file() and path.read_bytes() == before
        ended = self._run(["verify", str(copy), "--reference", str(self._source), "-q"])
        if path.suffix == ".safetensors" and not ended.status and not same:
            self.faults.append(f"round {self._rounds}: a damaged {path.name} verifies")
        return ended


def gptq(tokens: Path) -> list[str]:
    """Options of `quantize` for a method that looks at what layers are given.

    Args:
        tokens: the calibration file.
    """
    return ["-r", "w4a16-g32-gptq", "--calibration", str(tokens)]


def fit(source: Path, recipe: Path, tokens: Path, losses: Path) -> list[str]:
    """The command that chooses bits, from measured losses as far as they are there.

    Args:
        source: a checkpoint.
        recipe: the recipe to write.
        tokens: the calibration file.
        losses: the file of measured losses.
    """
    measured = ["--calibration", str(tokens), "--sensitivities", str(losses), "--rows", "2", "--tokens", "8"]
    choices = ["--choice", "4:32", "--choice", "8:channel", "--method", "minmax", "--workers", "1"]
    return ["fit", str(source), "-o", str(recipe), "--target-bits", "5", *measured, *choices, "-q", "--overwrite"]

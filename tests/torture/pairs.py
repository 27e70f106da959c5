"""Rounds of pairs: runs on one output, signals, and damages to what they leave."""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from damage import damage
from runs import Ended, Run, fault_of
from xxhash import xxh3_128

__all__ = ["Pairs"]

_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Pairs:
    """One output after the other, each ill-treated.

    Args:
        source: the checkpoint that is converted.
        place: a directory to make.
        chance: decides everything but when the operating system lets a process run.
        options: of `quantize`.
    """

    def __init__(self, source: Path, place: Path, chance: random.Random, options: Sequence[str] = ()) -> None:
        self._source, self._place, self._chance, self._options = source, place, chance, options
        self._damages: Counter[str] = Counter()
        self._ended: Counter[int] = Counter()
        self._rounds, self._killed, self._continued = 0, 0, 0
        self.faults: list[str] = []
        place.mkdir()
        began = time.monotonic()
        self._expected: dict[str, str] = {}
        self._judge(self._started(overwrite=False).wait())
        self._seconds = time.monotonic() - began
        self._expected = _hashes(self._out)

    def round(self) -> None:
        """Start, disturb, damage, and run to the end."""
        chance = self._chance
        self._rounds += 1
        shutil.rmtree(self._place)
        self._place.mkdir()
        pair = [self._started(overwrite=chance.random() < 0.3) for _ in range(chance.choice((1, 2, 2)))]
        for victim in pair:
            time.sleep(chance.uniform(0.1, 0.8) * self._seconds)
            if chance.random() < 0.85:
                victim.send(chance.choice(_SIGNALS))
        for ended in [run.wait() for run in pair]:
            self._judge(ended)
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            self._damage()
        self._finish()

    def lines(self) -> list[str]:
        """Describe the outcome, for people."""
        return [
            f"{self._rounds} rounds of pairs, {sum(self._ended.values())} runs, undisturbed {self._seconds:.2f} s each",
            f"{self._killed} runs stopped by a signal; {self._continued} outputs continued",
            f"exits {dict(sorted(self._ended.items()))}",
            f"damages {dict(sorted(self._damages.items()))}",
            *(f"WRONG: {fault}" for fault in self.faults),
        ]

    @property
    def _out(self) -> Path:
        return self._place / "out"

    def _started(self, *, overwrite: bool) -> Run:
        more = ["--overwrite"] if overwrite else []
        log = self._place / f"log-{len(list(self._place.glob('log-*')))}"
        log.touch()
        rest = ["-q", "--verify", "none", "--workers", "2", *self._options, *more]
        return Run.start(["quantize", str(self._source), "-o", str(self._out), *rest], log)

    def _finish(self) -> None:
        """Run the command again, told to overwrite where it refuses: that has to do."""
        self._continued += (self._place / "out.partial").is_dir()
        status = self._judge(self._started(overwrite=False).wait())
        if status:
            status = self._judge(self._started(overwrite=True).wait())
        if status and not self._is_anybodys():
            files = sorted(str(path.relative_to(self._place)) for path in self._place.rglob("*"))
            self.faults.append(f"round {self._rounds}: cannot be finished: exit {status}: {files}")

    def _is_anybodys(self) -> bool:
        """Return whether any run must refuse: the lock is none, or OUT.partial has files and no journal."""
        lock = self._place / "out.lock"
        if lock.is_symlink() or (lock.exists() and b'"pid"' not in (data := lock.read_bytes()) and data.strip(b"\0")):
            return True
        partial = self._place / "out.partial"
        strange = any(path.is_symlink() or path.name == "stray" for path in (partial, *partial.rglob("*")))
        return not any(partial.glob("journal*")) and (strange or any(partial.glob("*")))

    def _judge(self, ended: Ended) -> int:
        self._ended[ended.status] += 1
        self._killed += ended.status in {-signal.SIGKILL, 75}
        fault = fault_of(ended)
        if not ended.status and self._expected and (found := _hashes(self._there())) != self._expected:
            wrong = sorted(name for name in {*found, *self._expected} if found.get(name) != self._expected.get(name))
            fault = f"exit 0, and wrong: {wrong[:5]}"
        if fault:
            self.faults.append(f"round {self._rounds}: {fault}")
        return ended.status

    def _there(self) -> Path:
        """The output; a run that was killed while it replaced one leaves it under another name."""
        waits = self._place / "out.replaced"
        return waits if waits.exists() and not self._out.exists() else self._out

    def _damage(self) -> None:
        """Do one thing to a file that the runs have left, but to no finished output: `Inputs` does that."""
        files = sorted(path for path in self._place.rglob("*") if path.is_file() and not path.name.startswith("log-"))
        files = [path for path in files if path.relative_to(self._place).parts[0] in {"out.partial", "out.lock"}]
        if files:
            path = self._chance.choice(files)
            kind = damage(path, self._chance)
            self._damages[f"{kind} {path.suffix}"] += 1


def _hashes(directory: Path) -> dict[str, str]:
    """The hash of every file below a directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): xxh3_128(path.read_bytes()).hexdigest() for path in paths}

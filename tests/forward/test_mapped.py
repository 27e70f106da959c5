"""A mapped file that cannot be read ends a run with one line, where the kernel would end it without a word."""

import subprocess
import sys
from pathlib import Path

from g4convert.demo.checkpoints import Family, make

CUT = """
import os, sys
from pathlib import Path
from threading import Barrier, Thread
from g4convert.checkpoint.directory import Checkpoint
from g4convert.forward.pieces import TensorFiles

checkpoint = Checkpoint.open(Path(sys.argv[1]))
files = TensorFiles(checkpoint)
found = [files[name] for name in checkpoint.tensors]
for stored in checkpoint.tensors.values():
    os.truncate(checkpoint.path / stored.file, 0)
together = Barrier(8)


def touch() -> None:
    together.wait()
    print(sum(float(tensor.float().sum()) for tensor in found))


for thread in [Thread(target=touch) for _ in range(8)]:
    thread.start()
"""


def test_a_file_that_is_cut_while_it_is_mapped(tmp_path: Path) -> None:
    source = make(Family.TEXT, tmp_path / "a\nb")
    ran = subprocess.run([sys.executable, "-c", CUT, source], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (5, "")
    error, hint = ran.stderr.splitlines()  # from one of the threads only
    assert error.startswith("error: ")
    assert error.endswith("a\\nb: a file cannot be read: Input/output error, or it was cut meanwhile")
    assert hint.startswith("hint: the disk or the connection to it failed")

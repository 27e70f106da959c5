"""A mapped file that cannot be read ends a run with one line, where the kernel would end it without a word."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.grids import two_when_quick

from g4convert.demo import Family, make

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


KEPT = """
import ctypes, faulthandler, os, signal, sys
from pathlib import Path
from g4convert.forward.mapped import tell_faults

def mine(*_):
    os.write(1, b"mine")
    os._exit(9)

if sys.argv[1] == "Python's":
    signal.signal(signal.SIGBUS, mine)
elif sys.argv[1] == "faulthandler's":
    faulthandler.enable(1)
else:
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(mine)
    ctypes.CDLL(None).signal(signal.SIGBUS, handler)
tell_faults(Path("model"))
os.kill(os.getpid(), signal.SIGBUS)
"""


@pytest.mark.parametrize(
    ("whose", "status", "said"),
    two_when_quick(
        [("Python's", 9, "mine"), ("a library's", 9, "mine"), ("faulthandler's", -signal.SIGBUS, "Fatal Python error")]
    ),
)
def test_a_handler_that_was_set_before_is_kept(whose: str, status: int, said: str) -> None:
    ran = subprocess.run([sys.executable, "-c", KEPT, whose], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (status, "")
    assert ran.stdout.startswith(said)


@pytest.mark.wide
def test_a_file_that_is_cut_while_it_is_mapped(tmp_path: Path) -> None:
    source = make(Family.TEXT, tmp_path / "a\nb")
    ran = subprocess.run([sys.executable, "-c", CUT, source], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (5, "")
    error, hint = ran.stderr.splitlines()  # from one of the threads only
    assert error.startswith("error: ")
    assert error.endswith("a\\nb: a file cannot be read: Input/output error, or it was cut meanwhile")
    assert hint.startswith("hint: the disk or the connection to it failed")

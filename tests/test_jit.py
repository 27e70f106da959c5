"""Machine code that is kept on the disk is used while the sources that are in it are the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from g4convert.jit import hash_sources
from g4convert.quantization import compiled, steps
from g4convert.verification.logits import row_sums


@pytest.mark.parametrize("function", [steps.load, compiled.absolute, row_sums.log_sums])
def test_kept_machine_code_has_the_stamp_of_its_file(function: object) -> None:
    file = Path(function.py_func.__code__.co_filename)  # type: ignore[attr-defined] # numba's
    assert function._cache._cache_file._source_stamp == hash_sources(file)  # type: ignore[attr-defined] # noqa: SLF001 - see `jit`


def test_machine_code_of_an_older_release_whose_types_are_gone_is_not_read(tmp_path: Path) -> None:
    source = (
        "from typing import NamedTuple\n\nfrom g4convert.jit import jit\n\n\n"
        "class {name}(NamedTuple):\n    x: float\n\n\n"
        "def _double(pair):\n    return pair.x * 2\n\n\n"
        "print(jit(_double)({name}(21.0)))\n"
    )
    for name in ("Older", "Newer"):
        (tmp_path / "module.py").write_text(source.format(name=name))
        ran = subprocess.run([sys.executable, "-c", "import module"], cwd=tmp_path, check=False, capture_output=True)
        assert (ran.returncode, ran.stdout) == (0, b"42.0\n"), ran.stderr.decode()


def test_a_stamp_is_of_all_that_is_imported_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("g4convert.jit._ROOT", tmp_path)
    inner = tmp_path / "g4convert" / "inner"
    inner.mkdir(parents=True)
    sources = {
        "outer.py": "from g4convert.inner import (\n    one,\n    two as other,\n)\n",
        "inner/__init__.py": '"""Has modules."""\n',
        "inner/one.py": "from g4convert.inner.three import x\n",
        "inner/two.py": "from g4convert.outer import y  # a circle\n",
        "inner/three.py": "x = 1\n",
        "inner/four.py": "from g4convert.outer import y\n",
    }

    def made(changed: str = "") -> str:
        for name, text in sources.items():
            (tmp_path / "g4convert" / name).write_text(text + "# changed\n" * (name == changed))
        return hash_sources.__wrapped__(tmp_path / "g4convert" / "outer.py")

    same = {name for name in sources if made(name) == made()}
    assert same == {"inner/four.py"}

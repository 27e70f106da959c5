"""An unfinished output that was touched: whatever is damaged is done again or refused, never believed."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.grids import one_in
from helpers.runs import hashes, job, run
from safetensors import safe_open
from xxhash import xxh3_64_hexdigest, xxh3_128_hexdigest

from g4convert.conversion.job import prepare
from g4convert.conversion.journal import Done, Journal, read_done
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.errors import G4Error, InputError, Interrupted
from g4convert.progress import Progress


class Stopping(Progress):
    """Ctrl-C at the first unit."""

    def advance(self, *_: object) -> None:
        """Stop."""
        raise KeyboardInterrupt


@pytest.fixture
def stopped(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OUT, of which OUT.partial has some finished units; the source lies beside it."""
    monkeypatch.setattr("g4convert.planning.units._UNIT_BYTES", 100_000)
    source = shutil.copytree(moe, tmp_path / "source")
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        convert(prepare(job(source, tmp_path / "out")), Stopping(), Ranks())
    assert len((tmp_path / "out.partial" / "journal.jsonl").read_text().splitlines()) > 2
    return tmp_path / "out"


def _flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def _first(partial: Path) -> Path:
    return min(partial.glob("*.safetensors"))


def _rewritten(partial: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = partial / "journal.jsonl"
    path.write_text("\n".join(change(path.read_text().split("\n"))))


def _huge(partial: Path) -> None:
    os.truncate(partial / "journal.jsonl", 1 << 40)


def _looped(partial: Path) -> None:
    (partial / "journal-1.jsonl").symlink_to("/dev/zero")


def _appended(partial: Path, line: str) -> None:
    """A line with its right hash behind the others."""
    _rewritten(partial, lambda lines: [*lines[:-1], f"{xxh3_64_hexdigest(line.encode())} {line}", ""])


def _of_another_unit(partial: Path) -> None:
    _appended(partial, json.dumps({"unit": 10**9, "stats": [], "checksum": ""}))


RIGHT: dict[str, Any] = {"unit": 3, "stats": [[0, 64, 2, *[0.5] * 6]], "checksum": "5e"}
FORGED: dict[str, str] = {
    "no JSON": "{",
    "nested": "[" * 100_000,
    "digits without end": "9" * 5_000,
    "a list": "[1, 2]",
    "no unit": json.dumps({**RIGHT, "unit": None}),
    "a unit that is text": json.dumps({**RIGHT, "unit": "3"}),
    "a unit below 0": json.dumps({**RIGHT, "unit": -1}),
    "no statistics": json.dumps({"unit": 3, "checksum": "5e"}),
    "statistics that are text": json.dumps({**RIGHT, "stats": "none"}),
    "too few statistics": json.dumps({**RIGHT, "stats": [[0, 1]]}),
    "too many statistics": json.dumps({**RIGHT, "stats": [[0, *[0] * 9]]}),
    "statistics without end": json.dumps({**RIGHT, "stats": [[0, *[float("inf")] * 8]]}),
    "no checksum": json.dumps({"unit": 3, "stats": []}),
    "a checksum that is a number": json.dumps({**RIGHT, "checksum": 5}),
}
"""Lines of a journal that are no finished unit, whatever their hash says."""


def _of_another_weight(partial: Path) -> None:
    """A finished unit again, with statistics of a weight that there is not."""
    record = json.loads((partial / "journal.jsonl").read_text().splitlines()[-1].partition(" ")[2])
    _appended(partial, json.dumps({**record, "stats": [[10**6, *[0] * 8]]}))


DONE_AGAIN: dict[str, Callable[[Path], object]] = {
    "every shard zeroed": lambda d: [p.write_bytes(bytes(p.stat().st_size)) for p in d.glob("*.safetensors")],
    "a header": lambda d: _flip(_first(d), 20),
    "config": lambda d: (d / "config.json").write_text("{}"),
    "index": lambda d: (d / "model.safetensors.index.json").unlink(),
    "tokenizer": lambda d: _flip(d / "tokenizer.json", 100),
    "journal: first line": lambda d: _flip(d / "journal.jsonl", 40),
    "journal: a statistic": lambda d: _flip(d / "journal.jsonl", (d / "journal.jsonl").stat().st_size - 60),
    "journal: zeros": lambda d: (d / "journal.jsonl").write_bytes(bytes(5000)),
    "journal: no text": lambda d: (d / "journal.jsonl").write_bytes(b"\xff\xfe" * 500),
    "journal: empty": lambda d: (d / "journal.jsonl").write_bytes(b""),
    "journal: nested": lambda d: (d / "journal-3.jsonl").write_text("[" * 100_000),
    "journal: a unit that is none": _of_another_unit,
    "journal: lines of another form with the right hash": lambda d: [_appended(d, line) for line in FORGED.values()],
    "journal: statistics of another weight": _of_another_weight,
    "journal: the first line is a list": lambda d: (d / "journal.jsonl").write_text(f"{xxh3_64_hexdigest(b'[]')} []\n"),
}
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is gone": (lambda d: _first(d).unlink(), "missing, expected"),
    "a shard is cut": (lambda d: os.truncate(_first(d), 1000), "1000 bytes, expected"),
    "a shard has more": (lambda d: os.truncate(_first(d), 1 << 30), "1073741824 bytes, expected"),
    "a file of someone": (lambda d: (d / "notes.txt").write_text("x"), r"notes\.txt"),
    "a shard of someone": (lambda d: (d / "model-9.safetensors").write_text("x"), r"model-9\.safetensors"),
    "a link for a file": (
        lambda d: ((d / "tokenizer.json").unlink(), (d / "tokenizer.json").symlink_to("/etc/passwd")),
        "tokenizer.json",
    ),
    "a linked directory": (lambda d: (d / "more").symlink_to("/etc"), "more"),
    "a journal without end": (_huge, "MiB"),
    "a journal that is a link": (_looped, "journal-1.jsonl"),
}


@pytest.fixture(scope="module")
def expected(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Hashes of what an undisturbed run writes."""
    place = tmp_path_factory.mktemp("expected")
    return run(shutil.copytree(moe, place / "source"), place / "out")


@pytest.mark.parametrize("damage", one_in(3, DONE_AGAIN))
def test_what_is_damaged_is_done_again(damage: str, stopped: Path, tmp_path: Path, expected: Mapping[str, str]) -> None:
    DONE_AGAIN[damage](stopped.with_name("out.partial"))
    assert run(tmp_path / "source", stopped) == expected


@pytest.mark.parametrize("form", FORGED)
def test_a_line_of_another_form_is_no_finished_unit(form: str, tmp_path: Path) -> None:
    Journal(tmp_path / "journal.jsonl", {}).close()
    _appended(tmp_path, json.dumps(RIGHT))
    _appended(tmp_path, FORGED[form])
    assert read_done(tmp_path, {}) == {3: Done(RIGHT["stats"], "5e")}


@pytest.mark.parametrize("damage", one_in(3, REFUSED))
def test_what_no_run_left_is_refused_and_overwrite_starts_again(damage: str, stopped: Path, tmp_path: Path) -> None:
    break_it, named = REFUSED[damage]
    break_it(stopped.with_name("out.partial"))
    with pytest.raises(G4Error, match=named):
        run(tmp_path / "source", stopped)
    assert not stopped.exists()
    assert "config.json" in run(tmp_path / "source", stopped, overwrite=True)
    assert Path("/etc/passwd").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_with_another_name_elsewhere_is_not_written_into(name: str, stopped: Path, tmp_path: Path) -> None:
    """Hard links: what continues writes into its files, and so into the source, or a copy that `cp -al` made."""
    partial = stopped.with_name("out.partial")
    there = _first(partial) if name.endswith("tensors") else partial / name
    if name.endswith("tensors"):
        os.link(there, tmp_path / "copy")
    else:
        there.unlink()
        os.link(tmp_path / "source" / name, there)
    before = hashes(tmp_path / "source")
    with pytest.raises(InputError, match="another name elsewhere"):
        run(tmp_path / "source", stopped)
    run(tmp_path / "source", stopped, overwrite=True)
    assert hashes(tmp_path / "source") == before


def test_each_flipped_bit_of_finished_work_is_done_again(stopped: Path, tmp_path: Path) -> None:
    """One bit in each tensor that the stopped run wrote, packed words, scales and copies alike."""
    partial = stopped.with_name("out.partial")
    for path in partial.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            assert file.keys()
        data = bytearray(path.read_bytes())
        begin = int.from_bytes(data[:8], "little") + 8
        for at in range(begin, len(data), 4096):
            data[at] ^= 0x10
        path.write_bytes(data)
    assert run(tmp_path / "source", stopped) == run(tmp_path / "source", tmp_path / "expected" / "out")


def test_a_source_that_changed_with_size_and_time_kept_is_refused(stopped: Path, tmp_path: Path) -> None:
    path = min((tmp_path / "source").glob("*.safetensors"))
    before, data = path.stat(), bytearray(path.read_bytes())
    begin = int.from_bytes(data[:8], "little") + 8
    data[begin:] = bytes(byte ^ 1 for byte in data[begin:])
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError) as caught:
        run(tmp_path / "source", stopped)
    assert any(line.startswith("sample: ") for line in caught.value.offenders)


class Changing(Progress):
    """Something that happens to a source at each unit."""

    def __init__(self, change: Callable[[Path], object], source: Path) -> None:
        self._change = partial(change, min(source.glob("*.safetensors")))

    def advance(self, *_: object) -> None:
        """Change the source."""
        self._change()


def _touched(shard: Path) -> None:
    os.utime(shard, (1, 1))


def _of_other_weights(shard: Path) -> None:
    data = shard.read_bytes()
    begin = int.from_bytes(data[:8], "little") + 8
    shard.write_bytes(data[:begin] + bytes(len(data) - begin))


@pytest.mark.parametrize("change", [_of_other_weights, lambda shard: os.truncate(shard, 5000)])
def test_a_source_that_changes_during_the_run_leaves_nothing(
    change: Callable[[Path], object], moe: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(moe, tmp_path / "source")
    with pytest.raises(InputError, match=r"changed while it was read|was longer a moment ago"):
        convert(prepare(job(source, tmp_path / "out")), Changing(change, source), Ranks())
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_source_that_is_touched_during_the_run_costs_nothing(
    moe: Path, tmp_path: Path, expected: Mapping[str, str]
) -> None:
    """Hours of work were deleted for a time that a backup or `chown` had changed."""
    source = shutil.copytree(moe, tmp_path / "source")
    shard = min(source.glob("*.safetensors"))
    with pytest.raises(InputError, match="changed while it was read") as caught:
        convert(prepare(job(source, tmp_path / "out")), Changing(_touched, source), Ranks())
    assert "set them back, and the same command continues" in caught.value.hint
    with pytest.raises(InputError, match="an unfinished run of something else"):
        run(source, tmp_path / "out")
    (then,) = re.findall(rf"^{shard.name}: touch -d (@[\d.]+), now", caught.value.offenders[0])
    subprocess.run([str(shutil.which("touch")), "-d", then, shard], check=True)

    class Untouched(Progress):
        def advance(self, *_: object) -> None:
            raise AssertionError("a unit is done again")

    convert(prepare(job(source, tmp_path / "out")), Untouched(), Ranks())
    assert hashes(tmp_path / "out") == expected


def test_an_output_has_the_hash_of_each_shard(moe: Path, tmp_path: Path) -> None:
    run(moe, tmp_path / "out", max_shard_size="300KB")
    found = json.loads((tmp_path / "out" / "g4convert.json").read_text())["files"]
    shards = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.safetensors")}
    assert found == {name: {"xxh3_128": xxh3_128_hexdigest(data)} for name, data in shards.items()}
    assert len(found) > 3
    assert hashes(tmp_path / "out")

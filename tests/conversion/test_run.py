"""The pipeline as a user meets it: same bytes however it runs, resumable, nothing left behind when it refuses."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.grids import one_in
from helpers.runs import hashes, job, run
from safetensors import safe_open

from g4convert import quantize
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.job import prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.errors import EnvironmentFault, G4Error, InputError, Interrupted, UsageError
from g4convert.progress import Progress


@pytest.mark.parametrize("workers", [1, 8])
def test_the_bytes_do_not_depend_on_workers(moe: Path, tmp_path: Path, workers: int) -> None:
    two = run(moe, tmp_path / "two" / "out", workers=2)
    assert run(moe, tmp_path / "other" / "out", workers=workers) == two


def test_shards_keep_to_their_size_and_hold_the_same_tensors(moe: Path, tmp_path: Path) -> None:
    run(moe, tmp_path / "one")
    run(moe, tmp_path / "many", max_shard_size="300KB")
    one, many = Checkpoint.open(tmp_path / "one"), Checkpoint.open(tmp_path / "many")
    assert len(many.weight_files) > 3
    assert all(one.read(name) == many.read(name) for name in one.tensors)
    assert one.tensors.keys() == many.tensors.keys()
    for file in many.files:
        nbytes = sum(t.info.nbytes for t in many.tensors.values() if t.file == file.name)
        largest = max(t.info.nbytes for t in many.tensors.values() if t.file == file.name)
        assert nbytes <= max(300_000, largest * 2)


def test_the_safetensors_library_reads_every_shard(moe: Path, tmp_path: Path) -> None:
    run(moe, tmp_path / "out", max_shard_size="500KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    seen = {}
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                seen[name] = path.name
                file.get_tensor(name)
    assert seen == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(
        t.info.nbytes for t in Checkpoint.open(tmp_path / "out").tensors.values()
    )


def test_side_files_are_carried_over_byte_for_byte(moe: Path, tmp_path: Path) -> None:
    source = shutil.copytree(moe, tmp_path / "source")
    (source / "README.md").write_text("theirs")
    (source / "nested").mkdir()
    (source / "nested" / "thing.bin.txt").write_bytes(os.urandom(100))
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    out = run(source, tmp_path / "out")
    kept = hashes(source)
    for name in Checkpoint.open(source).side_files:
        assert out["README.source.md" if name == "README.md" else name] == kept[name]
    assert "nested/thing.bin.txt" in out
    assert "pytorch_model.bin" not in out
    assert "tokenizer.json" in out


def test_config_keeps_every_key(moe: Path, tmp_path: Path) -> None:
    run(moe, tmp_path / "out")
    before, after = (json.loads((path / "config.json").read_text()) for path in (moe, tmp_path / "out"))
    assert after.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert after == before
    assert list(after) == list(before)


def test_only_a_stale_quantization_config_goes(checkpoints, tmp_path: Path) -> None:  # noqa: ANN001
    source = checkpoints("dense", qat=True)
    run(source, tmp_path / "out")
    after = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "config_groups" in after
    assert set(after) & set(json.loads((source / "config.json").read_text())["quantization_config"]) == set()


@pytest.mark.wide
@pytest.mark.parametrize("seed", one_in(3, range(3)))
def test_killed_at_a_random_point_and_continued_the_bytes_are_the_same(
    moe: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g4convert.planning.units._UNIT_BYTES", 100_000)
    expected = run(moe, tmp_path / "expected" / "out")
    output = tmp_path / "killed" / "out"
    chance = random.Random(seed)  # noqa: S311 - a test
    code = (
        "import os, sys, time; from g4convert.cli import app as cli; from g4convert.conversion import stream\n"
        "from g4convert.planning import units as work\n"
        "work._UNIT_BYTES = 100_000; stream._POLL_SECONDS = 0.002; stream._SYNC_SECONDS = 0.0\n"
        f"sys.argv = ['g4convert', 'quantize', {str(moe)!r}, '-o', {str(output)!r}, '-q', '--workers', '2']\n"
        "commit = stream._commit\n"
        f"left = [{chance.randrange(1, 12)}]\n"
        "def dying(*arguments):\n"
        "    found = commit(*arguments)\n"
        "    left[0] -= len(found)\n"  # units: how many commits they take depends on the load of the machine
        "    if left[0] <= 0: os.kill(os.getpid(), 9)\n"
        "    return found\n"
        "stream._commit = dying\n"
        "cli.main()\n"
    )
    died = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert output.with_name("out.partial").is_dir()
    assert not output.exists()
    run(moe, output)
    assert hashes(output) == expected
    assert not output.with_name("out.partial").exists()


@pytest.mark.wide
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(moe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    code = (
        "import sys; from g4convert.cli import app as cli; from g4convert.conversion import stream\n"
        "from g4convert.planning import units as work\n"
        "import itertools, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "work._UNIT_BYTES = 1\n"
        "do, units = stream._UnitWorker.do, itertools.count()\n"
        "def slow(self, unit):\n"
        "    time.sleep(0.05 if next(units) < 30 else 0.5)\n"
        "    return do(self, unit)\n"
        "stream._UnitWorker.do = slow\n"
        f"sys.argv = ['g4convert', 'quantize', {str(moe)!r}, '-o', {str(output)!r}, '--workers', '2']\n"
        "cli.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    journal = output.with_name("out.partial") / "journal.jsonl"
    deadline = time.monotonic() + 60
    while (not journal.exists() or len(journal.read_text().splitlines()) < 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75, stderr
    assert "error: stopped" in stderr
    assert f"hint: continue with: g4convert quantize {moe} -o {output}" in stderr
    assert "Traceback" not in stderr


@pytest.fixture
def unfinished(moe: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A source, and an output that was interrupted after some of its units."""
    source = shutil.copytree(moe, tmp_path / "source")

    class Stopping(Progress):
        def advance(self, *_: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        convert(prepare(job(source, tmp_path / "out")), Stopping(), Ranks())
    assert (tmp_path / "out.partial").is_dir()
    return source, tmp_path / "out"


def test_a_changed_recipe_is_refused_with_the_difference(unfinished: tuple[Path, Path]) -> None:
    source, output = unfinished
    with pytest.raises(InputError) as caught:
        run(source, output, group_size=16)
    assert "recipe.group_size: 32 then, 16 now" in caught.value.offenders
    assert run(source, output, overwrite=True, group_size=16)


def test_a_changed_source_is_refused_with_the_difference(unfinished: tuple[Path, Path]) -> None:
    source, output = unfinished
    shard = min(source.glob("*.safetensors"))
    os.utime(shard, (1, 1))
    with pytest.raises(InputError) as caught:
        run(source, output)
    assert any(line.startswith(f"source.{shard.name}.mtime_ns") for line in caught.value.offenders)


def test_another_version_is_refused(unfinished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = unfinished
    monkeypatch.setattr("g4convert.conversion.fingerprint.__version__", "9.9")
    with pytest.raises(InputError, match=r"g4convert: '[^']+' then, '9.9' now"):
        run(source, output)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_partial_without_a_journal_is_no_runs(unfinished: tuple[Path, Path], *, overwrite: bool) -> None:
    """A download that somebody called so, with the names of an output, was removed."""
    source, output = unfinished
    partial = output.with_name("out.partial")
    (partial / "journal.jsonl").unlink()
    before = hashes(partial)
    with pytest.raises(InputError, match="has no journal, so no run made it"):
        run(source, output, overwrite=overwrite)
    assert hashes(partial) == before


@pytest.mark.parametrize("last", ["nothing", "journal.jsonl", "model.safetensors", "config.json"])
def test_killed_while_it_is_made_a_partial_is_made_again(unfinished: tuple[Path, Path], last: str) -> None:
    """The journal comes first, and has no unit before the rest is there."""
    source, output = unfinished
    partial = output.with_name("out.partial")
    made = ("journal.jsonl", "model.safetensors", "config.json")
    kept = made[: made.index(last) + 1] if last in made else ()
    for path in partial.iterdir():
        if path.name not in kept:
            path.unlink()
    if kept:
        journal = partial / "journal.jsonl"
        journal.write_text(journal.read_text().splitlines()[0][: 50 if last == "journal.jsonl" else None])
    assert run(source, output) == run(source, output.with_name("expected") / "out")


@pytest.mark.parametrize("at", ["config.json", "out.partial"])
def test_killed_while_it_is_removed_a_partial_keeps_its_journal(
    at: str, unfinished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = unfinished
    place, name = (Path, "unlink") if at == "config.json" else (shutil, "rmtree")
    do = getattr(place, name)

    def killed(path: Path, **options: object) -> None:
        if path.name == at:
            raise KeyboardInterrupt
        do(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(place, name, killed)
        with pytest.raises(KeyboardInterrupt):
            run(source, output, overwrite=True, group_size=64)
    assert (output.with_name("out.partial") / "journal.jsonl").is_file()
    expected = run(source, output.with_name("expected") / "out", group_size=64)
    assert run(source, output, overwrite=True, group_size=64) == expected


def test_a_full_output_is_refused_and_overwrite_replaces_it(moe: Path, tmp_path: Path) -> None:
    first = run(moe, tmp_path / "out")
    assert prepare(job(moe, tmp_path / "out")).already_done
    with pytest.raises(UsageError, match="not empty"):
        prepare(job(moe, tmp_path / "out", group_size=64))
    assert run(moe, tmp_path / "out", overwrite=True) == first
    assert not (tmp_path / "out.replaced").exists()


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_killed_before_a_rename_the_old_output_is_whole(
    nth: int, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OUT moves to OUT.replaced, then OUT.partial to OUT, then OUT.replaced to a name for deletion."""
    expected = run(dense, tmp_path / "expected" / "out")
    before = run(dense, tmp_path / "out", group_size=64)
    rename, left = Path.rename, list(range(nth + 1))

    def killed(path: Path, to: Path) -> Path:
        if not left.pop():
            raise KeyboardInterrupt
        return rename(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run(dense, tmp_path / "out", overwrite=True)
    assert before == hashes(tmp_path / ("out.replaced" if nth else "out"))
    assert run(dense, tmp_path / "out", overwrite=True) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"expected", "out"}


@pytest.mark.parametrize("nth", [1, 2])
def test_an_old_output_that_somebody_changed_meanwhile_is_kept(
    nth: int, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(dense, tmp_path / "out", group_size=64)
    rename, left = Path.rename, list(range(nth + 1))

    def killed(path: Path, to: Path) -> Path:
        if not left.pop():
            raise KeyboardInterrupt
        return rename(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run(dense, tmp_path / "out", overwrite=True)
    (tmp_path / "out.replaced" / "thesis.tex").write_text("years")
    assert quantize(dense, tmp_path / "out", verify=None).already_done is (nth == 2)
    assert (tmp_path / "out.replaced" / "thesis.tex").read_text() == "years"
    with pytest.raises(UsageError, match=r"out\.replaced: is there"):
        run(dense, tmp_path / "out", overwrite=True)


def test_an_output_that_cannot_get_its_name_is_continued(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journals were gone, so the same command threw it away and began again."""
    expected, rename = run(dense, tmp_path / "expected" / "out"), Path.rename

    def fails(path: Path, to: Path) -> Path:
        if path.name == "out.partial":
            raise OSError(18, "Invalid cross-device link")
        return rename(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails)
        with pytest.raises(EnvironmentFault, match="cannot be renamed"):
            run(dense, tmp_path / "out")

    class Untouched(Progress):
        def advance(self, *_: object) -> None:
            raise AssertionError("a unit is done again")

    convert(prepare(job(dense, tmp_path / "out")), Untouched(), Ranks())
    assert hashes(tmp_path / "out") == expected


def test_killed_behind_the_rename_the_output_is_finished_by_the_same_command(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, unlink, output = run(dense, tmp_path / "expected" / "out"), Path.unlink, tmp_path / "out"

    def killed(path: Path, **options: bool) -> None:
        if path.name == "journal.jsonl":
            raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            run(dense, output)
    assert (output / "journal.jsonl").is_file()
    (output / "journal-of-mine.jsonl").write_text("{}")
    assert quantize(dense, output, verify=None).already_done
    (output / "journal-of-mine.jsonl").unlink()
    assert hashes(output) == expected


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_while_the_old_output_is_deleted_the_next_run_deletes_it(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, overwrite: bool
) -> None:
    """It stayed as OUT.replaced, which the same command refused."""
    expected, rmtree = run(dense, tmp_path / "expected" / "out"), shutil.rmtree
    output = tmp_path / "out"
    run(dense, output, group_size=64)

    def killed(path: Path, **options: bool) -> None:
        if path.name == ".g4convert-out.deleting" and path.exists():
            (path / "config.json").unlink()
            raise KeyboardInterrupt
        rmtree(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run(dense, output, overwrite=True)
    assert hashes(output) == expected
    assert quantize(dense, output, verify=None, overwrite=overwrite).already_done is not overwrite
    assert hashes(output) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"expected", "out"}


def test_overwrite_does_not_take_a_directory_that_is_no_checkpoint(moe: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="not a checkpoint"):
        prepare(job(moe, tmp_path / "out", overwrite=True))


@pytest.mark.parametrize("name", ["out", "out.partial"])
def test_a_mount_point_cannot_be_the_output(
    name: str, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container's volume: the rename failed, after all the work."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / name)
    with pytest.raises(UsageError, match=f"{name}: is a mount point"):
        prepare(job(moe, tmp_path / "out"))


def test_no_room_is_found_before_any_work(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(EnvironmentFault, match="no room") as caught:
        run(moe, tmp_path / "out")
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(moe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(G4Error) as caught:
        run(moe, tmp_path / "file" / "out")
    assert caught.value.exit_code == 2

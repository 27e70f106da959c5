"""MODEL to directory, against a cache laid out as huggingface_hub lays it out. No network."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
from helpers.stored import write_checkpoint, zeros
from huggingface_hub import constants, errors

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import IGNORED, Source, resolve
from g4convert.errors import EnvironmentFault, G4Error, InputError

REPO, COMMIT, OLD = "google/gemma-4-tiny", "a" * 40, "b" * 40
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def snapshot(hub: Path, commit: str, ref: str, *, without: tuple[str, ...] = ()) -> Path:
    """Puts a two-shard checkpoint into a cache: blobs, a snapshot of links to them, a ref."""
    repo = hub / f"models--{REPO.replace('/', '--')}"
    files = write_checkpoint(repo / "tmp", {ONE: {"a": zeros("BF16", 2)}, TWO: {"b": zeros("BF16", 2)}})
    target = repo / "snapshots" / commit
    for folder in (repo / "blobs", repo / "refs", target):
        folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted(files.iterdir())):
        blob = repo / "blobs" / f"{commit[0]}{number}"
        file.rename(blob)
        if file.name not in without:
            (target / file.name).symlink_to(Path("../../blobs") / blob.name)
    (repo / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (repo / "refs" / ref).write_text(commit)
    return target


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def online(monkeypatch: pytest.MonkeyPatch, outcome: Callable[[], str]) -> Mock:
    """Answers downloads; what is only looked up in the cache goes to the real function."""
    real = huggingface_hub.snapshot_download
    fetch = Mock(side_effect=lambda *_args, **_options: outcome())

    def download(repo: str, *, local_files_only: bool = False, **options: object) -> str:
        if local_files_only:
            return str(real(repo, local_files_only=True, **options))
        return str(fetch(repo, **options))

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return fetch


def test_a_directory(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "my-model", {})
    assert resolve(str(directory)) == Source(directory, "my-model", None)
    assert resolve(f"{directory}/").name == "my-model"


def test_a_relative_directory_named_like_a_repository_wins(hub: Path) -> None:
    snapshot(hub, COMMIT, "main")
    write_checkpoint(hub.parent / REPO, {})
    assert resolve(REPO).path == Path(REPO)


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_checkpoint(tmp_path / "models/x", {})
    assert resolve("~/models/x").path == tmp_path / "models/x"


def test_from_the_cache(hub: Path) -> None:
    path = snapshot(hub, COMMIT, "main")
    source = resolve(REPO)
    assert source == Source(path, REPO, COMMIT)
    assert list(Checkpoint.open(source.path).tensors) == ["a", "b"]


@pytest.mark.parametrize(("revision", "commit"), [("main", COMMIT), ("refs/pr/1", OLD), (OLD, OLD)])
def test_a_revision_from_the_cache(hub: Path, revision: str, commit: str) -> None:
    snapshot(hub, COMMIT, "main")
    snapshot(hub, OLD, "refs/pr/1")
    assert resolve(f"{REPO}@{revision}").revision == commit


def test_a_snapshot_given_as_a_directory_keeps_its_name(hub: Path) -> None:
    path = snapshot(hub, COMMIT, "main")
    assert resolve(str(path)) == Source(path, REPO, COMMIT)


def test_fetched_when_online(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = online(monkeypatch, lambda: str(snapshot(hub, COMMIT, "main")))
    assert resolve(f"{REPO}@main").revision == COMMIT
    assert resolve(REPO).revision == COMMIT  # from the cache now
    fetch.assert_called_once_with(REPO, revision="main", ignore_patterns=IGNORED)
    assert {"*.bin", "*.pt", "*.pth", "*.gguf", "*.pkl"} <= set(IGNORED)


@pytest.mark.parametrize("lost", [(TWO,), ("config.json",), (ONE, TWO, "model.safetensors.index.json")])
def test_a_snapshot_in_part_is_completed(hub: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[str, ...]) -> None:
    path = snapshot(hub, COMMIT, "main", without=lost)
    with pytest.raises(EnvironmentFault, match="only in part"):
        resolve(REPO)
    fetch = online(monkeypatch, lambda: str(path))
    assert resolve(REPO).path == path
    fetch.assert_called_once()


def response(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    return kind("404 Client Error.\n\nmore lines", response=Mock(status_code=404, headers={}))


REFUSALS: dict[str, tuple[Exception, type[G4Error], str]] = {
    "gated": (response(errors.GatedRepoError), InputError, "gated"),
    "not found": (response(errors.RepositoryNotFoundError), InputError, "no such repository"),
    "no revision": (response(errors.RevisionNotFoundError), InputError, "no revision"),
    "server error": (response(errors.HfHubHTTPError), EnvironmentFault, "404 Client Error"),
    "no network": (errors.LocalEntryNotFoundError("x"), EnvironmentFault, "cannot be reached"),
    "disk full": (OSError(errno.ENOSPC, "No space left on device"), EnvironmentFault, "No space"),
}


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("case", REFUSALS)
def test_failed_download(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    raised, kind, words = REFUSALS[case]

    def fail() -> str:
        raise raised

    online(monkeypatch, fail)
    with pytest.raises(kind, match=words) as caught:
        resolve(REPO)
    assert caught.value.exit_code == (3 if kind is InputError else 5)
    assert REPO in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "model",
    [
        "gemma",
        "./gemma",
        "/no/such/place",
        "../x",
        "a/b/c",
        "~/none",
        "google/",
        "",
        "-o/x",
        "a--b/c",
        "a/b.git",
    ],
)
def test_no_such_directory(model: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(model)
    assert "no such directory" in caught.value.message
    assert caught.value.hint


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("gema", "gemma"),
        ("./gema", "gemma"),
        ("{}/gema", "{}/gemma"),
        ("{}/modles/tiny", "{}/models/tiny"),
        ("{}/modles/tny", "{}/models/tiny"),
        ("{}/modles/none", ""),
        ("{}/table.json", ""),  # a file is no checkpoint
        ("{}/gemma/file/x", ""),
    ],
)
def test_the_nearest_directory_is_named(
    wrong: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gemma").mkdir()
    (tmp_path / "gemma" / "file").touch()
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "table.jsn").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        resolve(wrong.format(tmp_path))
    expected = f"did you mean {meant.format(tmp_path)}?" if meant else ""
    assert (caught.value.hint == expected) is bool(meant)
    assert ("did you mean" in caught.value.hint) is bool(meant)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("revision", ["", "a b", "../../x", "x/../y", "/x", "-x"])
def test_no_revision(revision: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(f"{REPO}@{revision}")
    assert caught.value.hint


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("case", ["not found", "no network"])
def test_a_mistyped_directory_is_told_from_a_repository(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise REFUSALS[case][0]

    online(monkeypatch, fail)
    (tmp_path / "models" / "gemma").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for wrong, hint in {"gema": "has no gema: did you mean models/gemma?", "other": "models has no other"}.items():
        with pytest.raises(G4Error) as caught:
            resolve(f"models/{wrong}")
        assert caught.value.hint.endswith(hint)


def test_offline_by_environment(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is read when huggingface_hub is imported, so this needs a process of its own."""
    code = (
        "import sys; from g4convert.checkpoint import source; assert 'huggingface_hub' not in sys.modules; "
        f"source.resolve({REPO!r})"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "HF_HUB_OFFLINE is set" in done.stderr

"""Hints of a download that failed, followed: a hub of this process refuses, the user does as told, and it goes on."""

from __future__ import annotations

import errno
import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from helpers.hub import REPO, TOKEN, Hub
from helpers.program import Program, Ran, g4convert
from huggingface_hub import constants, file_download, hf_api, login

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["g4convert"]  # a fixture


class Settings:
    """Environment variables of huggingface_hub, set as before its import."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def __call__(self, **variables: str | None) -> None:
        for name, value in variables.items():
            if value is None:
                self._patch.delenv(name, raising=False)
            else:
                self._patch.setenv(name, value)
        importlib.reload(constants)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Sets variables; the home is empty, and nobody is logged in."""
    with pytest.MonkeyPatch.context() as patch:
        gone = dict.fromkeys(("HF_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
        settings = Settings(patch)
        settings(**gone, HF_HOME=str(tmp_path / "home"), HF_HUB_DISABLE_PROGRESS_BARS="1")
        yield settings
    importlib.reload(constants)


@pytest.fixture
def hub(dense: Path, settings: Settings, g4convert: Program, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the tiny dense model, named by HF_ENDPOINT."""
    assert g4convert  # sets HF_HUB_OFFLINE, which is unset here
    hub = Hub(dense)
    settings(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE=None)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # made at the import, for `login`
    yield hub
    hub.close()


def refused(ran: Ran, hint: str, status: int = 3) -> None:
    assert ran.status == status, ran.err
    assert hint in ran.err.partition("hint: ")[2], ran.err


def test_a_model_is_fetched_from_a_hub(hub: Hub, g4convert: Program) -> None:
    assert g4convert("plan", REPO).status == 0
    assert "model.safetensors.index.json" in hub.sent
    count = len(hub.sent)
    assert g4convert("plan", f"{REPO}@main").status == 0
    assert len(hub.sent) == count


def test_unset_the_flag(hub: Hub, settings: Settings, g4convert: Program) -> None:
    assert hub
    settings(HF_HUB_OFFLINE="1")
    refused(g4convert("plan", REPO), "unset HF_HUB_OFFLINE to fetch it", 5)
    settings(HF_HUB_OFFLINE=None)
    assert g4convert("plan", REPO).status == 0


def test_accept_the_terms_and_log_in(hub: Hub, g4convert: Program) -> None:
    hub.gated = True
    hint = f"accept the terms at {hub.url}/{REPO}, then run `hf auth login`"
    refused(g4convert("plan", REPO), hint)
    login(TOKEN, skip_if_logged_in=False)
    refused(g4convert("plan", REPO), hint)  # logged in, the terms not accepted
    hub.accepted.add(TOKEN)
    assert g4convert("plan", REPO).status == 0


def test_log_in_for_a_private_repository(hub: Hub, g4convert: Program) -> None:
    hub.private = True
    refused(g4convert("plan", REPO), "a private repository needs `hf auth login`")
    login(TOKEN, skip_if_logged_in=False)
    assert g4convert("plan", REPO).status == 0


def test_correct_the_spelling(hub: Hub, g4convert: Program) -> None:
    assert hub
    refused(g4convert("plan", f"{REPO}y"), "check the spelling")
    assert g4convert("plan", REPO).status == 0


def test_name_a_revision(hub: Hub, g4convert: Program) -> None:
    refused(g4convert("plan", f"{REPO}@"), "write org/name@branch, @tag or @commit, or leave it out")
    refused(g4convert("plan", f"{REPO}@v2"), f"see {hub.url}/{REPO}/tree/main for branches and tags")
    for revision in ("@v1", f"@{'c' * 40}", "@main", ""):
        assert g4convert("plan", f"{REPO}{revision}").status == 0


def test_check_the_network(dense: Path, hub: Hub, g4convert: Program) -> None:
    port = hub.server_port
    hub.close()
    refused(g4convert("plan", REPO), "check the network", 5)
    again = Hub(dense, port)
    assert g4convert("plan", REPO).status == 0
    again.close()


def test_run_the_same_command_again(
    hub: Hub, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks in one file; those that came whole are not fetched again."""
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))  # between tries
    hub.fails.add("tokenizer.json")
    refused(g4convert("plan", REPO), "run the same command again: files that are whole are kept", 5)
    whole = {path.name for path in tmp_path.glob("home/hub/*/snapshots/*/*")}
    hub.fails.clear()
    hub.sent.clear()
    assert g4convert("plan", REPO).status == 0
    assert "tokenizer.json" in hub.sent
    assert whole
    assert not whole & {*hub.sent}


def test_a_download_in_part_is_said_to_be(
    hub: Hub, settings: Settings, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, and where the hub is down."""
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))
    hub.fails.add("tokenizer.json")
    assert g4convert("plan", REPO).status == 5
    settings(HF_HUB_OFFLINE="1")
    assert "only in part in the Hugging Face cache, and HF_HUB_OFFLINE is set" in g4convert("plan", REPO).err
    settings(HF_HUB_OFFLINE=None, HF_ENDPOINT="http://127.0.0.1:1")
    assert "only in part in the Hugging Face cache, and the Hub cannot be reached" in g4convert("plan", REPO).err


def test_point_hf_home_to_a_larger_disk(
    hub: Hub, settings: Settings, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub
    get = file_download.http_get

    def full(url: str, file: Any, **options: Any) -> None:  # noqa: ANN401 -- handed on
        if file.name.startswith(str(tmp_path / "home")):
            raise OSError(errno.ENOSPC, "No space left on device")
        get(url, file, **options)

    monkeypatch.setattr(file_download, "http_get", full)
    refused(g4convert("plan", REPO), "free some space, or point HF_HOME to a larger disk", 5)
    settings(HF_HOME=str(tmp_path / "larger"))
    assert g4convert("plan", REPO).status == 0
    settings(HF_HOME=str(tmp_path / "home"))
    monkeypatch.setattr(file_download, "http_get", get)
    assert g4convert("plan", REPO).status == 0

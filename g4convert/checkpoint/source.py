"""Finds the directory of a MODEL argument.

    ./path, /path, a directory that exists     the directory itself
    org/name, org/name@revision                its snapshot in the Hugging Face cache; missing files are fetched

A directory that exists always wins. The cache is asked first, so a model that was fetched once needs no
network; a snapshot without all its weights (left by a program that wanted only the tokenizer, or by an
interrupted download) is completed. Pickles and other foreign weight formats are never fetched.

huggingface_hub is imported where a repository is looked up and not before: `--help` must stay fast.
"""

import errno
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from g4convert.checkpoint.beside import FOREIGN_SUFFIXES
from g4convert.checkpoint.shards import INDEX
from g4convert.errors import EnvironmentFault, InputError
from g4convert.places import expand_home

IGNORED: Final = [*(f"*{suffix}" for suffix in FOREIGN_SUFFIXES), "original/*", "consolidated*"]
"""Patterns of files that are not fetched: other weight formats, and the second copy in some repositories."""

_NAME: Final = r"[A-Za-z0-9][\w.-]*"
_REPO: Final = re.compile(f"{_NAME}/{_NAME}")
_REVISION: Final = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*")
_SNAPSHOT: Final = re.compile(rf"models--(?P<org>{_NAME}?)--(?P<name>{_NAME})/snapshots/(?P<revision>[0-9a-f]{{40}})")


@dataclass(frozen=True, slots=True)
class Source:
    """Place of a model.

    Args:
        path: the directory.
        name: `org/name`, or the directory's name.
        revision: the commit, if the directory is a snapshot of the Hugging Face cache.
    """

    path: Path
    name: str
    revision: str | None = None

    @classmethod
    def at(cls, path: Path) -> "Source":
        """Return the source in a directory; a snapshot's repository and commit are read from its path."""
        if match := _SNAPSHOT.search(path.absolute().as_posix()):
            return cls(path, f"{match['org']}/{match['name']}", match["revision"])
        return cls(path, path.resolve().name)

    @property
    def typed(self) -> str:
        """The model as commands name it: by its path, or a repository of the hub by its name."""
        return self.name if self.revision else str(self.path)


def resolve(model: str) -> Source:
    """Find the directory of a model; fetch it if the cache lacks it.

    Args:
        model: a directory, or `org/name[@revision]`.

    Raises:
        InputError: no such directory, repository or revision; gated; not a name at all.
        EnvironmentFault: not in the cache, and no network to fetch it with; or the cache is not writable.
    """
    path = expand_home(model)
    if model and path.exists():
        return Source.at(path)
    repo, separator, revision = model.partition("@")
    if not _REPO.fullmatch(repo) or ".." in model:
        raise InputError(f"{model}: no such directory", hint=_name_hint(model))
    if separator and not _REVISION.fullmatch(revision):
        raise InputError(
            f"{model}: {revision!r} is no revision",
            hint="write org/name@branch, @tag or @commit, or leave it out",
        )
    return Source.at(_snapshot(repo, revision or None))


def display_name(model: str) -> str:
    """Return a model as reports name it: a path, or a name of the hub as it was given, with its revision."""
    path = expand_home(model)
    return str(path) if path.exists() else model


def file_or_model(name: str) -> Path:
    """Return the path of a reference: a file that `g4convert reference` wrote, or a model's directory.

    Raises:
        InputError: no such file; see `resolve`.
        EnvironmentFault: see `resolve`.
    """
    path = expand_home(name)
    if path.is_dir():
        return resolve(name).path
    if path.is_file():
        return path
    beside = {one.stem: one for one in path.parent.glob("*.safetensors")} if path.parent.is_dir() else {}
    meant = get_close_matches(path.stem, beside, n=1)  # without the ending, which makes any two names alike
    if path.suffix == ".safetensors" or meant:
        hint = f"did you mean {beside[meant[0]]}?" if meant else "`g4convert reference MODEL -o FILE` stores one"
        raise InputError(f"{name}: no such file", hint=hint)
    return resolve(name).path


def _name_hint(model: str) -> str:
    """Return the hint for a directory that is not there, and that is no name of a repository either."""
    path = expand_home(model)
    if model and (meant := _nearest_directory(path)):
        return f"did you mean {meant}?"
    if model.startswith((".", "/", "~")) and not path.parent.is_dir():
        return f"{path.parent} does not exist either"
    return "pass a directory that exists, or a Hugging Face name of the form org/name"


def _nearest_directory(path: Path) -> Path | None:
    """Return the directory whose path is nearest, each missing part spelled as a folder there; None if none is near."""
    missing = next((folder for folder in reversed((path, *path.parents)) if not folder.exists()), None)
    if missing is None:
        return path
    folders: list[str] = []
    with suppress(OSError):
        folders.extend(folder.name for folder in missing.parent.iterdir() if folder.is_dir())
    near = get_close_matches(missing.name, folders, n=1)
    return _nearest_directory(missing.with_name(near[0]) / path.relative_to(missing)) if near else None


def _snapshot(repo: str, revision: str | None) -> Path:
    """Return the repository's snapshot: from the cache if complete, else fetched."""
    from huggingface_hub import constants, snapshot_download  # noqa: PLC0415 -- slow to import
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415 -- as above

    cached: Path | None = None
    state = "only in part in"
    try:
        cached = Path(snapshot_download(repo, revision=revision, ignore_patterns=IGNORED, local_files_only=True))
    except LocalEntryNotFoundError as error:
        if not hasattr(error, "snapshot_path"):  # that of an IncompleteSnapshotError, from huggingface_hub 2 on
            state = "not in"
    except HFValidationError as error:
        raise InputError(f"{repo}: no such directory", hint=_name_hint(repo)) from error
    if cached is not None and _is_complete(cached):
        return cached
    if constants.is_offline_mode():
        raise EnvironmentFault(
            f"{_spell(repo, revision)}: {state} the Hugging Face cache, and HF_HUB_OFFLINE is set",
            hint=_local_hint(repo) or "unset HF_HUB_OFFLINE to fetch it, or pass a directory",
        )
    return _fetch(repo, revision, state)


def _fetch(repo: str, revision: str | None, state: str) -> Path:
    """Download a snapshot; raise an error with the reason if that fails; `state` is how much of it is in the cache."""
    from huggingface_hub import constants, errors, snapshot_download  # noqa: PLC0415 -- slow to import

    page = f"{constants.ENDPOINT}/{repo}"  # of a mirror, where HF_ENDPOINT names one
    subject = _spell(repo, revision)
    try:
        return Path(snapshot_download(repo, revision=revision, ignore_patterns=IGNORED))
    except errors.GatedRepoError as error:
        raise InputError(
            f"{subject}: a gated repository that your token, if any, may not read",
            hint=f"accept the terms at {page}, then run `hf auth login`",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{subject}: no such directory, and no such repository on the Hugging Face Hub",
            hint=_local_hint(repo) or "check the spelling; a private repository needs `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{subject}: the repository has no revision {revision or 'main'}",
            hint=f"see {page}/tree/main for branches and tags",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise EnvironmentFault(
            f"{subject}: {state} the Hugging Face cache, and the Hub cannot be reached",
            hint=_local_hint(repo) or "check the network or pass a directory",
        ) from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined] # httpx or httpx2, as it depends
        raise _failed_download(subject, error) from error


def _local_hint(repo: str) -> str:
    """Return a hint for a path that was meant: `org` is a directory here, and lacks `name`; empty if there is none."""
    path = Path(repo)
    if not path.parent.is_dir():
        return ""
    meant = _nearest_directory(path)
    return f"the directory {path.parent} has no {path.name}" + (f": did you mean {meant}?" if meant else "")


def _failed_download(subject: str, error: Exception) -> EnvironmentFault:
    """Return the error for a network or disk failure during a download."""
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    hint = (
        "free some space, or point HF_HOME to a larger disk"
        if full
        else "run the same command again: files that are whole are kept"
    )
    return EnvironmentFault(f"{subject}: the download failed: {reason}", hint=hint)


def _is_complete(snapshot: Path) -> bool:
    """Return whether a cached snapshot has a config and all its weights; a broken index is left to Checkpoint."""
    if not (snapshot / "config.json").exists():
        return False
    index = snapshot / INDEX
    if not index.exists():
        return any(snapshot.glob("*.safetensors"))
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return True
    return all((snapshot / str(shard)).exists() for shard in shards)


def _spell(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision}" if revision else repo

"""Files beside the weights: which are carried into an output, and which stay behind.

    regular files                               carried
    links, as the Hugging Face cache has them   carried, when they lead into its blobs or stay in the directory
    hidden files, links that lead out of here   left, as they may be private, as ~/.netrc is
    weights no index names, what training and
    adapters leave                              stray: left, as a loader may act on them

`carry` and `leave` override this; a file that matches both is left. Wildcards of `carry` do not match files that may be
private: the pattern must spell a hidden file's dot, and the whole name of any other such file. Weights, pickles and
files that loaders act on are never carried.
"""

import json
import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from g4convert.checkpoint.files import escape_unprintable
from g4convert.checkpoint.leftovers import is_leftover, is_read_by_loaders
from g4convert.checkpoint.patterns import is_plain, matches
from g4convert.errors import InputError

PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FOREIGN_SUFFIXES: Final = (*PICKLE_SUFFIXES, ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot")
"""Endings of weight formats other than safetensors."""

PROCESSORS: Final = ("processor_config.json", "preprocessor_config.json")
"""Files that say how pictures become patches; one of them is enough."""
READ_BY_ENGINES: Final = frozenset({
    *PROCESSORS, "added_tokens.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json",
})  # fmt: skip
"""Side files with one JSON object that engines read when they start."""
_POINTER: Final = b"version https://git-lfs"
_MOST_PARSED: Final = 1 << 20
"""Bytes up to which a file is parsed; of a longer one, a tokenizer, the first character is looked at."""
_HIDDEN: Final = "hidden"
_LINK: Final = "a link out of the directory"
_STRAY: Final = "stray"
_SPECIAL: Final = "not a regular file"
_HIDDEN_FOLDER: Final = re.compile(r"((?:[^/]+/)*?\.[^/]+)/")


@dataclass(frozen=True, slots=True)
class Decided:
    """Files that match a pattern of `carry` or `leave`.

    Args:
        option: `carry` or `leave`.
        pattern: see `patterns`.
        files: relative posix paths, sorted; at least one.
    """

    option: str
    pattern: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Beside:
    """All files of a directory except its weights, config and index, by treatment; relative posix paths, sorted.

    Args:
        side: files that are carried over.
        stray: weights that no index names, and files that training and adapters leave.
        left: name and reason of each file that stays behind because it may be private.
        broken: side files that are links to nothing.
        decided: for each pattern, the files that match it.
    """

    side: tuple[str, ...]
    stray: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    broken: tuple[str, ...] = ()
    decided: tuple[Decided, ...] = ()

    @classmethod
    def of(
        cls, directory: Path, own_files: Collection[str], *, carry: Sequence[str] = (), leave: Sequence[str] = ()
    ) -> "Beside":
        """Sort the files of a directory by their treatment.

        Args:
            directory: the checkpoint's directory.
            own_files: the checkpoint's weights, config and index.
            carry: patterns of files to carry over that would stay behind.
            leave: patterns of files to leave that would be carried over.

        Raises:
            InputError: a directory cannot be listed; a file to be carried has a name that is no plain text; a pattern
                means no file, or one that no output may have.
        """
        is_hidden = any(part.startswith(".") for pattern in carry for part in pattern.split("/"))
        files = tuple(_list_files(directory, frozenset(own_files), hidden=is_hidden))
        decided = (
            *(Decided("carry", one, tuple(sorted(_files_meant(one, files)))) for one in carry),
            *(Decided("leave", one, tuple(sorted(name for name, _ in files if matches(one, name)))) for one in leave),
        )
        _check_meaning(decided)
        dropped = {name for one in decided if one.option == "leave" for name in one.files}
        carried = {name for one in decided if one.option == "carry" for name in one.files} - dropped
        _check_allowed(carried)
        side = {name for name, why in files if not why} - dropped | carried
        for name in side:
            _check_carried(directory / name, name)
        broken = {name for name in side if not (directory / name).exists()}
        rest = [(name, why) for name, why in files if why and name not in side]
        return cls(
            side=tuple(sorted(side - broken)),
            stray=tuple(sorted(name for name, why in rest if why == _STRAY)),
            left=tuple(sorted({_shown_place(name, why) for name, why in rest if why != _STRAY})),
            broken=tuple(sorted(broken)),
            decided=decided,
        )

    def check(self, directory: Path) -> None:
        """Check that every side file exists, and that those which engines read can be read.

        Raises:
            InputError: side files are links to nothing, Git LFS pointers or no JSON; names all of them.
        """
        wrong = {name: f"a link to {(directory / name).readlink()}, which does not exist" for name in self.broken}
        wrong |= unreadable(directory, self.side)
        if not wrong:
            return
        lines = [f"{name}: {why}" for name, why in wrong.items()]
        hint = f"download the model again, or leave them behind: --leave {shlex.quote(next(iter(wrong)))}"
        if len(lines) == 1:
            raise InputError(lines[0], hint=hint)
        raise InputError(f"{directory}: {len(lines)} files that cannot be read", offenders=lines, hint=hint)


def unreadable(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the files that no engine can read, each with the reason: Git LFS pointers, and broken JSON.

    Args:
        directory: the checkpoint's directory.
        names: names of side files.
    """
    reasons = {}
    for name in names:
        try:
            with (directory / name).open("rb") as file:
                start, rest = file.read(_MOST_PARSED), bool(file.read(1))
        except OSError:
            continue  # an error where it is copied
        if start.startswith(_POINTER):
            reasons[name] = "a Git LFS pointer, not the file"
        elif name in READ_BY_ENGINES and not (start.lstrip()[:1] == b"{" if rest else _is_json(start)):
            reasons[name] = "not JSON" if start else "empty"
    return reasons


def _is_json(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _list_files(directory: Path, own_files: frozenset[str], *, hidden: bool) -> Iterator[tuple[str, str]]:
    """Yield each file and the reason why it stays behind, empty if it is carried; a linked directory counts as a file.

    Args:
        directory: where to look.
        own_files: files that are no side files.
        hidden: look into hidden directories; they may hold thousands of files.
    """
    for root, folders, files in os.walk(directory, onerror=_raise_unlistable):
        relative = Path(root).relative_to(directory)
        for folder in tuple(folders):
            is_link = Path(root, folder).is_symlink()
            if is_link or (folder.startswith(".") and not hidden):
                folders.remove(folder)
                yield (relative / folder).as_posix(), f"{'a link' if is_link else _HIDDEN}, a directory"
        for file in files:
            name = (relative / file).as_posix()
            if name not in own_files:
                yield name, _why_left(Path(root, file), name, directory)


def _why_left(path: Path, name: str, directory: Path) -> str:
    """Return the reason why a file is not carried over; empty if it is."""
    if any(part.startswith(".") for part in name.split("/")):
        return _HIDDEN
    if _is_weights(path.name) or is_leftover(name):
        return _STRAY
    if not path.exists():
        return ""  # a broken link, which is an error where it is carried
    if not path.is_file():
        return _SPECIAL
    if not path.is_symlink():
        return ""
    target, root = path.resolve(), directory.resolve()
    is_cached = root.parent.name == "snapshots" and target.is_relative_to(root.parent.parent / "blobs")
    return "" if is_cached or target.is_relative_to(root) else _LINK


def _files_meant(pattern: str, files: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the files that match a pattern of `carry`."""
    plain = is_plain(pattern)
    for name, why in files:
        match why:
            case "" | "hidden":
                means = matches(pattern, name)
            case "stray":
                means = plain and matches(pattern, name)
            case _:
                means = pattern.strip("/") == name
        if means:
            yield name


def _check_meaning(decided: Sequence[Decided]) -> None:
    """Check that every pattern matches a file.

    Raises:
        InputError: patterns match no file; names all of them.
    """
    if empty := [f"--{one.option} {one.pattern}" for one in decided if not one.files]:
        raise InputError(
            "patterns that mean no file of the model's directory",
            offenders=empty,
            hint="`*` stays in its directory, `**/` goes into all; what may be private needs its dot or whole name",
        )


def _check_allowed(carried: Collection[str]) -> None:
    """Check that no loader would act on a carried file.

    Raises:
        InputError: loaders would act on carried files; names all of them.
    """
    files = sorted(name for name in carried if _is_weights(name) or is_read_by_loaders(name.rpartition("/")[2]))
    if files:
        raise InputError(
            "--carry: files that no output may have",
            offenders=files,
            hint="leave them out of --carry: programs would read weights, pickles and adapters that lie in an output",
        )


def _check_carried(path: Path, name: str) -> None:
    """Check that a carried file is a regular file with a printable name.

    Raises:
        InputError: it is not.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{name}: no regular file, so not carried over", hint="leave it out of --carry")
    if not name.isprintable():
        raise InputError(f"{escape_unprintable(name)}: a file name that is not plain text", hint="rename the file")


def _shown_place(name: str, why: str) -> tuple[str, str]:
    """Return the name to show for a file that stays behind: the file, or the hidden directory that holds it."""
    folder = _HIDDEN_FOLDER.match(name)
    return (folder[1], f"{_HIDDEN}, a directory") if folder else (name, why)


def _raise_unlistable(error: OSError) -> None:
    raise InputError(
        f"{error.filename}: cannot be listed: {(error.strerror or '').lower()}", hint="check its permissions"
    ) from error


def _is_weights(file: str) -> bool:
    """Return whether a file that is not one of the checkpoint's weight files holds weights, or indexes such."""
    return file.removesuffix(".index.json").endswith((".safetensors", *FOREIGN_SUFFIXES))

"""Finds the weight files of a directory, and compares index and shards.

    model.safetensors.index.json       names the shards; else model.safetensors; else every *.safetensors

Index and shards must agree in both directions: every name in the index is in its shard, every tensor of a
shard is in the index, no tensor is in two shards. A name in the index may not leave the directory, but the
file itself may be a link to anywhere: that is how the Hugging Face cache stores a snapshot.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from g4convert.checkpoint.beside import PICKLE_SUFFIXES
from g4convert.checkpoint.files import SAVE_AGAIN, escape_unprintable, parse_object, read_whole
from g4convert.checkpoint.header import Header
from g4convert.checkpoint.leftovers import is_adapter
from g4convert.checkpoint.not_a_model import diagnose_no_weights, find_copies
from g4convert.errors import FormatError, InputError, UnsupportedError
from g4convert.quantities import plural

INDEX: Final = "model.safetensors.index.json"
NO_GGUF: Final = "GGUF is already quantized: pass the original safetensors checkpoint"

_NO_INDEX: Final = (
    f"download the model again; or, if the shards are all of one save, delete {INDEX}: all their tensors are then read"
)
_UNFINISHED: Final = (".aria2", ".crdownload", ".download", ".incomplete", ".part")
SINGLE: Final = "model.safetensors"
CONSOLIDATED: Final = "consolidated*.safetensors"
"""Names of the files that vLLM reads in place of all others."""
_SHARD: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


def read_index(directory: Path) -> dict[str, str] | None:
    """Return the shard of each tensor, by tensor name; None if there is no index.

    Raises:
        FormatError: the index breaks its format, or names files outside of the directory.
        InputError: another checkpoint lies beside the index.
    """
    if not os.path.lexists(directory / INDEX):
        return None
    hint = f"restore {INDEX} from the model's repository; if its shards are all here, deleting it does as well"
    index = parse_object(read_whole(directory, INDEX), INDEX, hint)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{INDEX}: no weight_map with entries", hint=hint)
    faults = _index_faults(weight_map, index.get("metadata", {}))
    if len(faults) == 1:
        raise FormatError(f"{INDEX}: {faults[0]}", hint=hint)
    if faults:
        raise FormatError(f"{INDEX}: {len(faults)} faults", offenders=faults, hint=hint)
    named = set(weight_map.values())
    if not any(os.path.lexists(directory / name) for name in named) and (beside := _weights(directory)):
        raise InputError(
            f"{directory}: {INDEX} names {plural(len(named), 'file')}, but none is here, beside {abbreviate(beside)}",
            hint=f"delete {INDEX}: it belongs to another save, and engines that read it find no weights",
        )
    if SINGLE not in named and os.path.lexists(directory / SINGLE):
        raise InputError(
            f"{directory}: {SINGLE} beside a {INDEX} that does not name it",
            hint="two checkpoints in one directory, and programs differ in which they read: delete one",
        )
    return weight_map


def _index_faults(weight_map: Mapping[str, Any], metadata: object) -> list[str]:
    faults: list[str] = []
    wrong = [name for name, shard in weight_map.items() if not isinstance(shard, str)]
    faults.extend(f"{escape_unprintable(name)}: expected a file name" for name in wrong)
    for shard in sorted({shard for shard in weight_map.values() if isinstance(shard, str)}):
        parts = PurePosixPath(shard)
        if parts.is_absolute() or ".." in parts.parts or "\\" in shard:
            faults.append(f"{escape_unprintable(shard)}: a path outside the directory, expected a file name in it")
        elif str(parts) != shard or not shard.endswith(".safetensors") or not shard.isprintable():
            faults.append(f"{escape_unprintable(shard)}: expected the name of a .safetensors file")
    total = metadata.get("total_size", 0) if isinstance(metadata, dict) else metadata
    if type(total) not in {int, float}:
        faults.append(f"metadata.total_size: {escape_unprintable(repr(total))[:60]}, expected a number")
    return faults


def weight_names(directory: Path, weight_map: Mapping[str, str] | None) -> tuple[str, ...]:
    """Return the weight files, sorted: the index's shards, else model.safetensors, else every *.safetensors.

    Args:
        directory: the checkpoint.
        weight_map: the index; None without one.

    Raises:
        InputError: there are no weight files, some are missing, or their download is not finished.
        UnsupportedError: the weights are of another format.
    """
    names = _weight_names(directory, weight_map)
    if marks := [mark for name in names if (directory / (mark := f"{name}.aria2")).exists()]:
        raise _unfinished_error(directory, marks)  # it gives a file its whole size first
    return names


def _weight_names(directory: Path, weight_map: Mapping[str, str] | None) -> tuple[str, ...]:
    if weight_map is not None:
        return tuple(sorted(set(weight_map.values())))
    names = sorted(entry.name for entry in directory.iterdir())
    if SINGLE in names:
        return (SINGLE,)
    weights = _weights(directory)
    if not weights:
        raise diagnose_no_weights(directory, names) or _no_weights_error(directory, names)
    if absent := _absent_parts(weights):
        if stale := _partial_sets(weights, absent):
            raise InputError(
                f"{directory}: two sets of shards, {' and '.join(stale)} incomplete",
                offenders=absent,
                hint=f"delete {' and '.join(stale)}, or the others if these are newer and the rest can be copied",
            )
        raise InputError(
            f"{directory}: {len(absent)} of its shards and {INDEX} are missing",
            offenders=absent,
            hint=SAVE_AGAIN,
        )
    return weights


def _weights(directory: Path) -> tuple[str, ...]:
    """Return the names of a directory's files with weights in safetensors, sorted; those of adapters are left out."""
    names = (entry.name for entry in directory.iterdir())
    return tuple(sorted(name for name in names if name.endswith(".safetensors") and not is_adapter(name)))


def abbreviate(names: Sequence[str]) -> str:
    """Return names as a few words."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _absent_parts(weights: Sequence[str]) -> list[str]:
    """Return the missing shards of a directory without index: `name-00002-of-00003` gives the expected number."""
    present = set(weights)
    series = {(match[1], match[3]) for name in weights if (match := _SHARD.fullmatch(name))}
    return [
        name
        for stem, total in sorted(series)
        for number in range(1, int(total) + 1)
        if (name := f"{stem}-{number:05d}-of-{total}.safetensors") not in present
    ]


def _partial_sets(weights: Iterable[str], absent: Iterable[str]) -> list[str]:
    """Return incomplete sets of shards, left by an earlier save, if another set is complete."""
    lacking, present = ({_SHARD.sub(r"\1-*-of-\3.safetensors", name) for name in of} for of in (absent, weights))
    return sorted(lacking) if present - lacking else []


def _no_weights_error(directory: Path, names: Sequence[str]) -> InputError:
    gguf = [name for name in names if name.endswith(".gguf")]
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return UnsupportedError(
            f"{directory}: pickled weights only, expected safetensors (a pickle can run code)",
            offenders=pickles,
            hint="load the model with transformers where you trust it and save it with `save_pretrained`",
        )
    if gguf:
        return UnsupportedError(f"{directory}: GGUF weights only, expected safetensors", offenders=gguf, hint=NO_GGUF)
    if parts := [name for name in names if ".safetensors." in name and name.endswith(_UNFINISHED)]:
        return _unfinished_error(directory, parts)
    return InputError(f"{directory}: no *.safetensors file", hint="pass the directory that holds the weights")


def _unfinished_error(directory: Path, marks: Sequence[str]) -> InputError:
    return InputError(
        f"{directory}: a download that is not finished",
        offenders=marks,
        hint="run the same download again, it goes on where it stopped",
    )


def disagreements(directory: Path, headers: Sequence[Header], weight_map: Mapping[str, str] | None) -> list[InputError]:
    """Return errors where index and shards, or two shards, disagree; only files with a valid header are compared.

    Args:
        directory: the checkpoint.
        headers: headers of the weight files.
        weight_map: the index; None without one.
    """
    files: dict[str, str] = {}
    errors = []
    for header in headers:
        for stored in header.tensors:
            first = files.setdefault(stored.name, stored.file)
            if first != stored.file:
                where = f"in {first} and in {stored.file}, expected in one shard"
                errors.append(InputError(f"{escape_unprintable(stored.name)}: {where}", hint=SAVE_AGAIN))
    if weight_map is None:
        twice = find_copies(directory, {h.file.name: [stored.name for stored in h.tensors] for h in headers})
        return [twice] if twice else errors
    read = {header.file.name for header in headers}
    remedy = SAVE_AGAIN if errors else _NO_INDEX
    errors.extend(
        InputError(f"{escape_unprintable(name)}: {INDEX} says {shard}, which does not hold it", hint=remedy)
        for name, shard in weight_map.items()
        if shard in read and files.get(name) != shard
    )
    errors.extend(
        InputError(f"{escape_unprintable(name)}: in {shard}, but not in {INDEX}", hint=remedy)
        for name, shard in files.items()
        if name not in weight_map
    )
    return errors

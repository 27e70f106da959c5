"""Compares the names of weight files with those that each engine reads.

    transformers   model.safetensors alone, else the files that model.safetensors.index.json names
                   (modeling_utils.py:591)
    vLLM           consolidated*.safetensors alone if the directory or a folder of it has any
                   (model_loader/default_loader.py:158), else every *.safetensors beside config.json, of which the
                   index leaves out those that it does not name (:204, weight_utils.py:590)
    SGLang         every *.safetensors beside config.json, of which the index leaves out those that it does not name
                   (model_loader/loader.py:548, weight_utils.py:757)

So files in a folder, which an index may name, are read by transformers alone.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.header import read_header
from g4convert.checkpoint.shards import CONSOLIDATED, INDEX, SINGLE, abbreviate
from g4convert.engines import CONTRACTS
from g4convert.engines.remarks import Topic
from g4convert.errors import InputError
from g4convert.inspection.file_faults import FileFault
from g4convert.tensors import TensorInfo

_OF_MISTRAL: Final = ("consolidated.safetensors", SINGLE)
"""Two files without an index, of which SGLang reads the second alone."""
_AS_WELL: Final = f"read as well, as there is no {INDEX}"
_IN_FOLDER: Final = "not found, as no folder is searched"
_MOVE: Final = f"move the weights beside config.json, and take the folder out of their names in {INDEX}"


def weights_as_read(out: Checkpoint) -> Iterator[FileFault]:
    """Yield a fault for weight files that an engine does not read, and for other files that it reads as weights."""
    yield from _transformers(out)
    inner = [name for name in out.weight_files if "/" in name]
    consolidated = sorted(path.relative_to(out.path).as_posix() for path in out.path.rglob(CONSOLIDATED))
    if consolidated and not inner:
        yield from _consolidated(out, consolidated)
    if inner:
        stops = ("vllm", "sglang") if len(inner) == len(out.weight_files) else ("vllm",)
        yield FileFault(stops, abbreviate(inner), f"{_IN_FOLDER}, so it does not start", _MOVE)
    if inner and len(inner) < len(out.weight_files):
        yield FileFault(("sglang",), abbreviate(inner), f"{_IN_FOLDER}: {CONTRACTS['sglang'].on_missing}", _MOVE)
    if not os.path.lexists(out.path / INDEX):
        yield from _beside(out, () if consolidated else ("vllm", "sglang"))


def _transformers(out: Checkpoint) -> Iterator[FileFault]:
    """Yield a fault if transformers does not read all weight files."""
    files = out.weight_files
    if SINGLE in files:
        if rest := [name for name in files if name != SINGLE]:
            remedy = f"rename {SINGLE}, in {INDEX} as well"
            yield FileFault(("transformers",), abbreviate(rest), f"not read, as {SINGLE} alone is", remedy)
    elif not os.path.lexists(out.path / INDEX):
        remedy = f"write {INDEX}: its `weight_map` has the file of each tensor"
        if len(files) == 1:
            remedy = f"rename {files[0]} to {SINGLE}"
        found = f"not read, as it is not {SINGLE} and there is no {INDEX}"
        yield FileFault(("transformers",), abbreviate(files), found, remedy)


def _consolidated(out: Checkpoint, names: Sequence[str]) -> Iterator[FileFault]:
    """Yield a fault if vLLM reads files of this name in place of the weights.

    Args:
        out: the checkpoint.
        names: all files of this name, those in folders too; at least one.
    """
    read = [name for name in names if "/" not in name]
    unread = [name for name in out.weight_files if name not in read]
    stray = [name for name in names if name not in out.weight_files]
    if not unread:
        return
    remedy = _delete(abbreviate(stray)) if stray else f"rename {abbreviate(names)}"
    if not read:
        found = f"not looked for, as {abbreviate(stray)} makes vLLM look for files of that name beside config.json"
        yield FileFault(("vllm",), abbreviate(unread), found, remedy)
    elif stray and _infos(out.path, read) == out.infos:
        found = f"read in place of {abbreviate(unread)}, of which it seems to be a copy"
        yield FileFault(("vllm",), abbreviate(stray), found, remedy, Topic.NAMES)
    else:
        yield FileFault(("vllm",), abbreviate(unread), f"not read, as {abbreviate(read)} is in its place", remedy)


def _beside(out: Checkpoint, engines: Collection[str]) -> Iterator[FileFault]:
    """Yield a fault for each file that is no part of the checkpoint, and that engines read as weights.

    Args:
        out: a checkpoint without an index.
        engines: engines that read every file beside config.json; SGLang does in any case.
    """
    strays = [name for name in out.stray_files if name.endswith(".safetensors") and "/" not in name]
    if tuple(sorted((*strays, *out.weight_files))) == _OF_MISTRAL:
        return
    for name in strays:
        try:
            found = {one.name for one in read_header(out.path, name).tensors}
        except InputError:
            yield FileFault(("vllm", "sglang"), name, f"{_AS_WELL}, and it is damaged", _delete(name))
            continue
        both, others = found & out.tensors.keys(), found - out.tensors.keys()
        if others and "vllm" in engines:
            text = f"{_AS_WELL}: its tensors are {CONTRACTS['vllm'].on_unknown}"
            yield FileFault(("vllm",), name, text, _delete(name))
        if both:
            text = f"{_AS_WELL}, and {len(both)} tensors are in both"
            hit = ("sglang",) if others or "vllm" not in engines else ("vllm", "sglang")
            yield FileFault(hit, name, text, _delete(name))


def _delete(name: str) -> str:
    return f"delete {name}, or move it out of the directory"


def _infos(directory: Path, names: Collection[str]) -> dict[str, TensorInfo]:
    """Return the tensors of files by name; none if a file cannot be read."""
    try:
        return {stored.name: stored.info for name in names for stored in read_header(directory, name).tensors}
    except InputError:
        return {}

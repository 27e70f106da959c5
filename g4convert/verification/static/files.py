"""Checks of an output's files that need no source: headers, index, sizes, and what lies beside the weights."""

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Final

from g4convert.checkpoint.beside import READ_BY_ENGINES, unreadable
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.leftovers import ADAPTER_CONFIG, is_adapter, is_leftover, is_read_by_loaders
from g4convert.checkpoint.output_names import JOURNALS
from g4convert.checkpoint.shards import CONSOLIDATED, INDEX
from g4convert.checkpoint.tokens import tokens_beyond
from g4convert.errors import InputError
from g4convert.gemma4 import is_drafter
from g4convert.report import Detail, Finding, Severity

_NEEDED: Final = READ_BY_ENGINES - {"generation_config.json"}
"""Files that stop engines if they cannot be read; vLLM 0.33 and SGLang 0.5.23 give a drafter those of its target."""
_MODELOPT: Final = "hf_quant_config.json"
"""Settings that vLLM (transformers_utils/config.py:957) and SGLang (configs/model_config.py:1815) follow if config.json
has none."""
_RESTORE: Final = "copy it from the model that this one was made from"


def broken_files(error: InputError) -> Iterator[Finding]:
    """Yield one finding for each offender that `Checkpoint.open` refused."""
    for line in error.offenders or (error.message,):
        subject, _, found = line.partition(": ")
        found, _, expected = (found or line).partition(", expected ")
        code = "static.index" if INDEX in line else "static.files"
        yield Finding(code, Severity.FAIL, subject, found, expected, error.hint)


def loose_files(out: Checkpoint) -> Iterator[Finding]:
    """Yield findings on journals of an unfinished conversion, and on weight files that the index does not name."""
    for name in out.side_files:
        if fnmatch(name, JOURNALS):
            found = "the journal of a conversion that did not finish: shards hold zeros where nothing was written"
            remedy = "run the same `g4convert quantize` again, it goes on"
            yield Finding("static.files", Severity.FAIL, name, found, "a finished checkpoint", remedy)
    needed = frozenset[str]() if is_drafter(out.config.get("model_type")) else _NEEDED
    for name, why in unreadable(out.path, out.side_files).items():
        stops = name in needed
        severity, detail = (Severity.FAIL, Detail.NO_START) if stops else (Severity.WARN, None)
        yield Finding("static.side_files", severity, name, why, "a file that engines can read", _RESTORE, detail)
    rows = (part(out.config, "text_config") or out.config).get("vocab_size")
    if (
        not is_drafter(out.config.get("model_type"))
        and isinstance(rows, int)
        and (beyond := tokens_beyond(out.path, rows))
    ):
        found = f"{beyond} tokens beyond the {rows:,} rows of the embedding: engines fail at each"
        remedy = "take the tokenizer of these weights"
        yield Finding("static.side_files", Severity.WARN, "tokenizer.json", found, "tokens that have a row", remedy)
    for name in out.stray_files:
        yield Finding("static.stray", Severity.WARN, name, _stray(name, out), "", "delete it")


def _stray(name: str, out: Checkpoint) -> str:
    """Return what a file that is no part of a checkpoint is, and who reads it."""
    file = name.rpartition("/")[2]
    what = f"{'weights of an adapter' if is_adapter(file) else 'weights that are no part of the checkpoint'}"
    readers = "no engine reads"
    if name == ADAPTER_CONFIG:
        what, readers = "settings of an adapter", "transformers applies if PEFT is installed"
    elif is_read_by_loaders(file):
        what = "settings of an adapter" if file == ADAPTER_CONFIG else "settings of another quantizer"
        if name == _MODELOPT and out.config.get("quantization_config") is None:
            readers = "vLLM and SGLang follow"
    elif is_leftover(name) and not is_adapter(file):
        what = "a file of a training run or another program"
    elif fnmatch(file, CONSOLIDATED):
        readers = "vLLM reads in place of all others, for its name"
    elif name.endswith(".safetensors") and name == file and not (out.path / INDEX).is_file():
        readers = f"vLLM and SGLang read too, as there is no {INDEX}"
    return f"{what}, which {readers}"


def total_size(out: Checkpoint) -> Iterator[Finding]:
    """Yield a finding if the total size that the index states is not the sum of the tensors' bytes."""
    path = out.path / INDEX
    if not path.is_file():
        return
    stated = part(json.loads(path.read_bytes()), "metadata").get("total_size")
    nbytes = sum(stored.info.nbytes for stored in out.tensors.values())
    if stated is not None and stated != nbytes:
        remedy = "correct metadata.total_size; programs show it, and size downloads by it"
        yield Finding("static.total_size", Severity.WARN, INDEX, f"total_size {stated}", str(nbytes), remedy)

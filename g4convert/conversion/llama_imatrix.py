"""Reads an importance matrix that llama.cpp's `llama-imatrix` wrote as GGUF, and returns statistics of inputs.

The file has two float32 tensors for each weight that was multiplied, by its name in GGUF:

    blk.3.attn_q.weight.in_sum2           [1, k]   sums of the squares of its inputs
    blk.3.attn_q.weight.counts            [1, 1]   rows that were summed
    blk.3.ffn_down_exps.weight.in_sum2    [e, k]   the same for each expert
    blk.3.ffn_down_exps.weight.counts     [e, 1]

`imatrix.chunk_count` and `imatrix.chunk_size` give the amount of text. The file does not name its model, so only shapes
can be checked. GGUF stores the norms of Gemma 4 unchanged and permutes no channel, so input channels correspond one to
one.

Letters: k inputs, e experts.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np

from g4convert.checkpoint.gguf import Gguf, read_gguf
from g4convert.conversion.statistics import InputStatistics, Statistics
from g4convert.errors import InputError

_MODULES: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_up_exps": "experts.gate_proj",
    "ffn_gate_exps": "experts.gate_proj",
    "ffn_down_exps": "experts.down_proj",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
}
"""Modules under which statistics are stored, by their name in a GGUF block; k, v and up share those of q and gate."""
_NAME: Final = re.compile(r"blk\.(\d{1,4})\.(\w+)\.weight\.in_sum2")
_HINT: Final = (
    "`llama-imatrix -m MODEL.gguf -f TEXT.txt -o FILE.gguf` makes one; older .dat files it rewrites with --in-file"
)


def read_imatrix(path: Path) -> Statistics:
    """Read an importance matrix.

    Raises:
        InputError: not an importance matrix, or tensors with wrong shapes or values; names all of them.
        FormatError: see `read_gguf`.
        UnsupportedError: see `read_gguf`.
    """
    file = read_gguf(path)
    if file.values.get("general.type") != "imatrix":
        found = file.values.get("general.type", "missing")
        raise InputError(f"{path}: general.type is {str(found)[:80]}, expected imatrix", hint=_HINT)
    wrong = [*_find_faults(file)]
    if wrong:
        raise InputError(f"{path}: not an importance matrix", offenders=wrong, hint=_HINT)
    inputs = dict(_convert_inputs(file))
    if not inputs:
        raise InputError(f"{path}: has none of the tensors of a Gemma 4 model, such as blk.0.attn_q", hint=_HINT)
    chunks, length = (_integer(file, f"imatrix.chunk_{what}") for what in ("count", "size"))
    return Statistics(inputs, None, "llama.cpp", sha256(path.read_bytes()).hexdigest(), chunks, length)


def _find_faults(file: Gguf) -> Iterator[str]:
    """Yield every fault in a tensor that is used."""
    for name, sums in file.tensors.items():
        if not _NAME.fullmatch(name):
            continue
        base = name.removesuffix(".in_sum2")
        counts = file.tensors.get(f"{base}.counts")
        if counts is None:
            yield f"{base}: sums without counts"
        elif sums.ndim != 2 or counts.size != len(sums):
            yield f"{base}: sums {[*sums.shape]} and counts {[*counts.shape]}"
        elif len(sums) > 1 and not base.endswith("_exps.weight"):
            yield f"{base}: {len(sums)} matrices, expected one"
        elif not np.isfinite(sums).all() or sums.min() < 0:
            yield f"{base}: a sum of squares is negative or not finite"
        elif not np.isfinite(counts).all() or counts.min() < 0:
            yield f"{base}: a count is negative or not finite"


def _convert_inputs(file: Gguf) -> Iterator[tuple[str, InputStatistics]]:
    """Yield the input statistics by module; skips modules without rows."""
    for name, sums in file.tensors.items():
        match = _NAME.fullmatch(name)
        if not match or match[2] not in _MODULES:
            continue
        module = f"layers.{match[1]}.{_MODULES[match[2]]}"
        counts = file.tensors[f"{name.removesuffix('.in_sum2')}.counts"].reshape(-1)
        mean = (sums.astype(np.float64) / np.maximum(counts, 1)[:, None]).astype(np.float32)
        mean[counts == 0] = 0
        if counts.any():
            tokens = np.rint(counts).astype(np.int64)
            yield (
                module,
                InputStatistics(mean, tokens) if ".experts." in module else InputStatistics(mean[0], tokens[:1]),
            )


def _integer(file: Gguf, key: str) -> int:
    """Return an integer from the file's metadata; 0 if missing."""
    value = file.values.get(key, 0)
    return value if isinstance(value, int) else 0

"""Conditions for leaving out a tensor: checked on the bytes, before anything is written.

A tied `lm_head.weight` may go only if it equals the embedding; the weight of a norm that has none in Gemma 4
only if it is all ones.
"""

from collections.abc import Iterable

from g4convert.checkpoint.directory import Checkpoint, StoredTensor
from g4convert.checkpoint.reader import Reader
from g4convert.errors import InputError
from g4convert.planning.steps import Drop, Plan
from g4convert.tensors import DType

__all__ = ["check_drops"]

_BLOCK = 8 << 20
_ONE = {DType.BF16: b"\x80\x3f", DType.F16: b"\x00\x3c", DType.F32: b"\x00\x00\x80\x3f"}
"""The bytes of 1.0."""


def check_drops(plan: Plan, checkpoint: Checkpoint, reader: Reader) -> None:
    """Read the dropped tensors that must have a certain value.

    Raises:
        InputError: one has another; names all of them.
    """
    wrong = [line for drop in plan.dropped if drop.must_equal for line in _check(drop, checkpoint, reader)]
    if wrong:
        raise InputError(
            "tensors that may only be left out with a certain value have another",
            offenders=wrong,
            hint="for a head of its own, set `tie_word_embeddings: false` at the top level of config.json",
        )


def _check(drop: Drop, checkpoint: Checkpoint, reader: Reader) -> Iterable[str]:
    stored = checkpoint.tensors[drop.source.name]
    if drop.must_equal == "ones":
        ones = _ONE.get(drop.source.dtype, b"") * drop.source.numel
        if _bytes(stored, reader, 0, drop.source.nbytes) != ones:
            yield f"{drop.source.name}: has values other than 1, but this norm has no weight in Gemma 4"
    elif drop.must_equal is not None and not _same(stored, checkpoint.tensors[drop.must_equal], reader):
        yield f"{drop.source.name}: differs from {drop.must_equal}, which config.json says it is tied to"


def _same(one: StoredTensor, other: StoredTensor, reader: Reader) -> bool:
    if (one.info.dtype, one.info.shape) != (other.info.dtype, other.info.shape):
        return False
    size = one.info.nbytes
    return all(
        _bytes(one, reader, at, min(_BLOCK, size - at)) == _bytes(other, reader, at, min(_BLOCK, size - at))
        for at in range(0, size, _BLOCK)
    )


def _bytes(stored: StoredTensor, reader: Reader, begin: int, nbytes: int) -> bytearray:
    return reader.read(stored.file, stored.begin + begin, nbytes)

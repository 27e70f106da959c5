"""Checks that a tensor may be dropped: on its bytes, before anything is written.

A tied `lm_head.weight` must equal the embedding, where fp32 may equal bf16 in value. The weight of a norm that has no
weight in Gemma 4 must be all ones, and the bias of a Linear that has no bias all zeros.
"""

from collections.abc import Iterable

from g4convert.checkpoint.directory import Checkpoint, StoredTensor
from g4convert.checkpoint.reader import Reader
from g4convert.errors import InputError
from g4convert.planning.plan import Drop, Plan
from g4convert.tensors import DType

_BLOCK = 8 << 20
_ONES, _ZEROS = "ones", "zeros"
_HEAD = "for a head of its own, set `tie_word_embeddings: false` at the top level of config.json"
_NORM = "no Gemma 4 computes with them: delete them, or convert the model that they belong to"
_BIAS = (
    "no engine adds these: where all q, k, v and o of the decoder have one, set attention_bias to true in its config; "
    "else delete them"
)
_HINTS = {_ONES: _NORM, _ZEROS: _BIAS}
_ONE = {DType.BF16: b"\x80\x3f", DType.F16: b"\x00\x3c", DType.F32: b"\x00\x00\x80\x3f"}
"""The bytes of 1.0."""


def check_drops(plan: Plan, checkpoint: Checkpoint, reader: Reader) -> None:
    """Check the values of dropped tensors that must equal another tensor or be constant.

    Raises:
        InputError: dropped tensors have other values; names all of them.
    """
    wrong = {line: drop for drop in plan.dropped if drop.must_equal for line in _check(drop, checkpoint, reader)}
    if wrong:
        hints = dict.fromkeys(_HINTS.get(drop.must_equal or "", _HEAD) for drop in wrong.values())
        raise InputError(
            "tensors that may only be left out with a certain value have another",
            offenders=[*wrong],
            hint="; ".join(hints),
        )


def _check(drop: Drop, checkpoint: Checkpoint, reader: Reader) -> Iterable[str]:
    stored = checkpoint.tensors[drop.source.name]
    if drop.must_equal == _ONES:
        ones = _ONE.get(drop.source.dtype, b"") * drop.source.numel
        if _read(stored, reader, 0, drop.source.nbytes) != ones:
            yield f"{drop.source.name}: has values other than 1, but this norm has no weight in Gemma 4"
    elif drop.must_equal == _ZEROS:
        if not all_zero(stored, reader):
            yield f"{drop.source.name}: has values other than 0, but this Linear has no bias in Gemma 4"
    elif drop.must_equal is not None and not same_values(stored, checkpoint.tensors[drop.must_equal], reader):
        yield f"{drop.source.name}: differs from {drop.must_equal}, which config.json says it is tied to"


def all_zero(stored: StoredTensor, reader: Reader) -> bool:
    """Return whether all values of a small tensor are 0."""
    return not any(_read(stored, reader, 0, stored.info.nbytes))


def same_values(tensor: StoredTensor, other: StoredTensor, reader: Reader) -> bool:
    """Return whether two tensors hold the same numbers; bf16 is compared with fp32 by value."""
    if tensor.info.shape != other.info.shape:
        return False
    narrow, wide = sorted((tensor, other), key=lambda stored: stored.info.nbytes)
    if narrow.info.dtype is not wide.info.dtype and (narrow.info.dtype, wide.info.dtype) != (DType.BF16, DType.F32):
        return False
    size, times = narrow.info.nbytes, wide.info.nbytes // max(narrow.info.nbytes, 1)
    return all(
        _widen(_read(narrow, reader, begin, length), times) == _read(wide, reader, begin * times, length * times)
        for begin in range(0, size, _BLOCK)
        for length in (min(_BLOCK, size - begin),)
    )


def _widen(numbers: bytearray, times: int) -> bytearray:
    """Return bf16 numbers as fp32: their bytes become the upper half, little-endian."""
    if times == 1:
        return numbers
    wide = bytearray(2 * len(numbers))
    wide[2::4], wide[3::4] = numbers[0::2], numbers[1::2]
    return wide


def _read(stored: StoredTensor, reader: Reader, begin: int, nbytes: int) -> bytearray:
    return reader.read(stored.file, stored.begin + begin, nbytes)

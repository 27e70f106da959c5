"""Level `weights`: compares every packed weight, decoded, with its source, and every kept tensor bit for bit.

    weights.form       a weight that cannot be decoded
    weights.decoder    compressed-tensors dequantizes some rows of each kind of weight with the same error; after a
                       conversion, recorded results of compressed-tensors are compared instead
    weights.error      squared error relative to the weight, beside the error of plain rounding of the same weight
    weights.groups     no group has a larger error than rounding can cause, even if the weight as a whole is right
    weights.scales     scales are finite, and zero only for groups of zeros
    weights.fit        scales belong to their codes: the best scales for these codes would save little
    weights.size       no weight as a whole is larger or smaller than its source
    weights.constant   no weight has equal words throughout, unless the source's values are equal
    weights.codes      share of zero and of saturated codes
    weights.exact      share of exact groups, high for sources that were trained on a grid
    weights.outlier    no weight has a much larger error than others of its kind
    weights.kept       bytes of every tensor that is not packed
    weights.tied_head  a stored head that the config ties has the values of the embedding
    weights.bias       a stored bias that no Linear has is zero

Level `static` finds missing and unknown tensors. A few threads read the tensors in pieces, each byte once, so memory
does not grow with the model; results do not depend on the number of threads. Only one check needs torch and
compressed-tensors; it imports them in a thread of its own while the others read.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import numpy as np

from g4convert.checkpoint.contents import Contents
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.reader import Reader
from g4convert.checkpoint.record import record
from g4convert.checkpoint.uses import inventory_for
from g4convert.gemma4 import Architecture
from g4convert.progress import Progress
from g4convert.report import Finding, join_alike
from g4convert.run_options import usable_cores
from g4convert.verification.static.config import has_head, read_architecture
from g4convert.verification.weights.judge import judge_kept, judge_packed
from g4convert.verification.weights.measured import Measured, PackedPair, measure
from g4convert.verification.weights.pairs import ElementCounts, KeptPair, Pairing
from g4convert.verification.weights.recorded import check_recorded
from g4convert.verification.weights.rows import band_of
from g4convert.verification.weights.spare import spare_values

_PIECE: Final = 16 << 20
"""Bytes of the source that one task reads."""
_BLOCK: Final = 1 << 18
"""Bytes of kept tensors that are compared at once: few enough to stay in a core's cache."""


def check_weights(  # noqa: PLR0913 - what is compared, how, and who is told
    out: Checkpoint,
    source: Checkpoint,
    *,
    progress: Progress | None = None,
    workers: int | None = None,
    table: list[dict[str, Any]] | None = None,
    recorded: bool = False,
) -> Iterator[Finding]:
    """Compare every value of a quantized checkpoint with its source.

    Args:
        out: the quantized checkpoint.
        source: the source, not quantized.
        progress: told of every piece that has been read.
        workers: number of threads; by default the number of cores that the process may use.
        table: a row of JSON numbers is appended to it for each packed weight.
        recorded: compare the decoder with recorded results of compressed-tensors instead of its code.

    Raises:
        InputError: the source is not a Gemma 4 checkpoint, or a file was truncated during the check.
        UnsupportedError: the source is quantized.
    """
    source_architecture = Architecture.from_config(source.config)
    architecture, _ = read_architecture(out.config, source_architecture, has_head=has_head(out.infos))
    inventory = inventory_for(architecture, source, source_architecture)
    contents = Contents.of(out.infos, architecture)
    with Reader(source.path, source.weight_files) as plain, Reader(out.path, out.weight_files) as written:
        paired = list(Pairing(source, out, plain, written).pairs(inventory, contents))
        yield from join_alike(pair for pair in paired if isinstance(pair, Finding))
        packed = {pair.name: pair for pair in paired if isinstance(pair, PackedPair)}
        kept = [pair for pair in paired if isinstance(pair, KeptPair)]
        pieces = [*_packed_pieces(packed), *_kept_pieces(kept, plain, written)]
        with ThreadPoolExecutor(1) as executor:
            decoded = executor.submit(_run_recorded if recorded else _run_decoder, packed)
            measured, different = _add_results(_run(pieces, progress or Progress(), workers or usable_cores()))
            (progress or Progress()).step("comparing some rows with compressed-tensors", 1, "part")
            yield from decoded.result()
        if table is not None:
            table += (_row_json(name, sums) for name, sums in measured.items())
        yield from judge_packed(packed, measured, method=_recorded_method(out))
        yield from judge_kept(kept, different)
    yield from spare_values(contents, out, "weights")


def bound(out: Checkpoint) -> str:
    """Describe the errors with which the tensors of a checkpoint pass."""
    most = band_of(_recorded_method(out)).usual
    return f"squared error of each packed tensor at most {most:g} times that of round-to-nearest, other tensors equal"


def _recorded_method(out: Checkpoint) -> str | None:
    """Return the quantization method that the output's record states; None if it states none."""
    method = part(record(out.path), "result").get("method")
    return None if method is None else str(method)


def _run_decoder(packed: Mapping[str, PackedPair]) -> list[Finding]:
    from g4convert.verification.weights.oracle import check_decoder  # noqa: PLC0415 -- brings torch and compressed-tensors

    return list(check_decoder(packed))


def _run_recorded(_: Mapping[str, PackedPair]) -> list[Finding]:
    return list(check_recorded())


def _row_json(name: str, sums: Measured) -> dict[str, Any]:
    return {
        "name": name,
        "relative_error": sums.relative_error,
        "zero": sums.zero_codes / max(1, sums.weights),
        "saturated": sums.saturated_codes / max(1, sums.weights),
        "exact": sums.exact_groups / max(1, sums.groups),
    }


Result = Measured | ElementCounts
"""Sums of a piece of a packed weight, or of a kept tensor."""
_Piece = tuple[str, int, Callable[[], Result]]
"""Name of the tensor, bytes to read, and the call that does the work."""


def _packed_pieces(packed: Mapping[str, PackedPair]) -> Iterator[_Piece]:
    for name, pair in packed.items():
        n, rows = pair.source.shape[0], max(1, _PIECE // pair.source.width)
        width = pair.source.width + pair.words.width + pair.scale.width
        for begin in range(0, n, rows):
            end = min(begin + rows, n)
            yield name, (end - begin) * width, partial(measure, pair, begin, end)


def _kept_pieces(kept: list[KeptPair], plain: Reader, written: Reader) -> Iterator[_Piece]:
    for pair in kept:
        if pair.moved:
            yield pair.name, 2 * pair.nbytes, partial(_compare_bytes, pair, 0, pair.nbytes, plain, written)
            continue
        for begin in range(0, pair.nbytes, _PIECE):
            nbytes = min(_PIECE, pair.nbytes - begin)
            yield pair.name, 2 * nbytes, partial(_compare_bytes, pair, begin, nbytes, plain, written)


def _compare_bytes(pair: KeptPair, begin: int, nbytes: int, plain: Reader, written: Reader) -> ElementCounts:
    """Return the numbers of elements that differ, and of those that are not finite."""
    size = nbytes if pair.moved else min(nbytes, _BLOCK)
    original, stored = np.empty((2, size), np.uint8)
    total = ElementCounts()
    for offset in range(begin, begin + nbytes, size):
        count = min(size, begin + nbytes - offset)
        plain.read_into(pair.source[0], pair.source[1] + offset, original[:count].data)
        written.read_into(pair.out[0], pair.out[1] + offset, stored[:count].data)
        first, second = (read[:count].view(f"u{pair.itemsize}") for read in (original, stored))
        if pair.moved:
            first = np.moveaxis(first.reshape(pair.moved), -1, 1).reshape(-1)
        endless = int(np.count_nonzero(first & pair.exponent == pair.exponent)) if pair.exponent else 0
        total += ElementCounts(int(np.count_nonzero(first != second)), endless)
    return total


def _run(pieces: list[_Piece], progress: Progress, workers: int) -> Iterator[tuple[str, Result]]:
    """Run all pieces on `workers` threads, and yield their results in the order of the pieces."""
    progress.start(sum(nbytes for _, nbytes, _ in pieces), 0)
    with ThreadPoolExecutor(workers) as pool:
        for (name, nbytes, _), result in zip(pieces, pool.map(_call, pieces), strict=True):
            progress.advance(nbytes, name)
            yield name, result


def _call(piece: _Piece) -> Result:
    return piece[2]()


def _add_results(results: Iterator[tuple[str, Result]]) -> tuple[dict[str, Measured], dict[str, ElementCounts]]:
    """Add up the results of the pieces of each packed weight and of each kept tensor."""
    measured: defaultdict[str, Measured] = defaultdict(Measured)
    different: defaultdict[str, ElementCounts] = defaultdict(ElementCounts)
    for name, result in results:
        if isinstance(result, Measured):
            measured[name] += result
        else:
            different[name] += result
    return dict(measured), dict(different)

"""Comparison of this level's decoder with recorded results of compressed-tensors, which takes seconds to import.

The check at the end of a conversion should cost less than the conversion. So it runs the decoder on one small weight
of each form, whose squared error was recorded from compressed-tensors' own code; a test compares the record with that
code. `verify` runs compressed-tensors itself, on rows of the checkpoint: see `oracle`.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np

from g4convert.report import Finding, Severity
from g4convert.verification.weights.measured import RowTile, measure_tile

_ROWS: Final = 4
_AGREE: Final = 2.0**-12
"""Largest relative difference between sums in float32 and sums in float64."""


class Form(NamedTuple):
    """A form of packed weights: bits of a code, weights in a row and in a group, and whether it has zero points."""

    num_bits: int
    k: int
    group: int
    zeros: bool


RECORDED: Final[Mapping[Form, tuple[float, float]]] = {
    Form(4, 64, 16, zeros=False): (93.60504150390625, 53.303955078125),
    Form(4, 64, 16, zeros=True): (113.62982177734375, 53.303955078125),
    Form(4, 64, 32, zeros=False): (98.53375244140625, 53.303955078125),
    Form(4, 64, 32, zeros=True): (140.71563720703125, 53.303955078125),
    Form(4, 128, 128, zeros=False): (179.96502685546875, 106.484375),
    Form(4, 128, 128, zeros=True): (296.91021728515625, 106.484375),
    Form(8, 64, 16, zeros=False): (8758.989379882812, 53.303955078125),
    Form(8, 64, 16, zeros=True): (8676.08544921875, 53.303955078125),
    Form(8, 64, 32, zeros=False): (10411.810668945312, 53.303955078125),
    Form(8, 64, 32, zeros=True): (10397.386596679688, 53.303955078125),
    Form(8, 128, 128, zeros=False): (22564.785217285156, 106.484375),
    Form(8, 128, 128, zeros=True): (22686.39483642578, 106.484375),
}
"""Squared error and squared weights of `tile_of(form)`, dequantized by compressed-tensors 0.20, by form."""


def check_recorded() -> Iterator[Finding]:
    """Decode a small weight of every form, and compare its squared error with the recorded one."""
    wrong = 0
    for form, (error, signal) in RECORDED.items():
        measured = measure_tile(tile_of(form)).error
        if not abs(measured - error) <= _AGREE * (signal + error):
            wrong += 1
            text = f"squared error {measured:.6g}, dequantized by compressed-tensors {error:.6g}"
            remedy = "report this with the version of g4convert and the kind of processor"
            subject = f"a recorded weight, int{form.num_bits} in groups of {form.group}"
            yield Finding("weights.decoder", Severity.FAIL, subject, text, "the same", remedy)
    if not wrong:
        text = "recorded answers of compressed-tensors; `g4convert verify` asks its code, too"
        yield Finding("weights.decoder", Severity.PASS, f"small weights of {len(RECORDED)} forms", text, "")


def tile_of(form: Form) -> RowTile:
    """Return a deterministic tile: every code occurs, scales have both signs, and the source is unrelated to both."""
    groups = form.k // form.group
    number = np.arange(_ROWS * form.k * form.num_bits // 32, dtype=np.uint64)
    words = ((number * 2654435761 + 40503) % 2**32).astype(np.uint32).view(np.int32)
    number_of_group = np.arange(_ROWS * groups)
    scale = ((number_of_group * 29 % 17 - 8.5) / 64).astype(np.float32)
    zeros = (number_of_group * 11 % 15 - 7).astype(np.float32) if form.zeros else np.empty(0, np.float32)
    source = ((np.arange(_ROWS * form.k) * 37 % 101 - 50) / 64).astype(np.float32)
    return RowTile(
        words=words.reshape(_ROWS, -1),
        scale=scale.reshape(_ROWS, groups),
        zeros=zeros.reshape(_ROWS, groups) if form.zeros else zeros.reshape(0, 0),
        source=(source.view(np.uint32) >> 16).astype(np.uint16).reshape(_ROWS, form.k),
        num_bits=form.num_bits,
    )

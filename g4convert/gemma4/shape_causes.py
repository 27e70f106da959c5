"""Causes of wrong shapes, where the shapes of all faults together prove the cause, with remedies.

no tensor has a value                    parts that training scattered were not gathered
the last two axes are swapped            a merge or an export transposed them
each is the same fraction of its tensor  one rank's part of a model that was cut in several
routers alone have more rows             training on several ranks padded them to a multiple
MLPs alone have other widths             pruning left each layer its own
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

Shape = tuple[int, ...]
Pair = tuple[Shape, Sequence[Shape]]
"""Shape of a tensor, and the shapes that it may have."""

_MATRIX = 2  # dimensions
_SEVERAL = 3  # this many tensors cut alike are no accident
_MLP = re.compile(r"(.*\.layers\.\d+\.mlp\.)(gate|up|down)_proj\.weight")


def turned_shapes(pairs: Iterable[Pair]) -> str:
    """Return the remedy for tensors that are empty or transposed; empty if they are not."""
    listed = tuple(pairs)
    if all(0 in actual for actual, _ in listed):
        return (
            "tensors without values, as DeepSpeed ZeRO-3 and FSDP leave them on one rank: gather the shards of this "
            "run (ZeRO's with its zero_to_fp32.py), or save again with stage3_gather_16bit_weights_on_model_save"
        )
    if all(
        len(actual) >= _MATRIX and (*actual[:-2], actual[-1], actual[-2]) in expected for actual, expected in listed
    ):
        return (
            "these are transposed: swap their last two axes, and those of tensors of their kind that happen to be "
            "square"
        )
    return ""


def cut_shapes(pairs: Iterable[Pair]) -> str:
    """Return the remedy for tensors that are all cut along one axis into equally many parts; empty if they are not."""
    listed = tuple(pairs)
    counts = [{*_count_parts(actual, expected)} for actual, expected in listed]
    common = set.intersection(*counts) if len(counts) >= _SEVERAL else set()
    if not common:
        return ""
    return (
        f"each is a part of its tensor, one of {min(common)}: gather the parts of all ranks with the program that cut "
        "it (tensor or expert parallelism)"
    )


def padded_routers(named: Mapping[str, Pair]) -> str:
    """Return the remedy for routers, and no experts, that have more rows than there are experts; empty if others do.

    Args:
        named: shape of each tensor of a wrong shape, and the shapes that it may have, by name.
    """
    rows = {actual[0] for actual, _ in named.values() if actual}
    has_more_rows = all(
        ".router." in name and any(actual[1:] == shape[1:] and actual[0] > shape[0] for shape in expected if shape)
        for name, (actual, expected) in named.items()
        if actual
    )
    if len(rows) != 1 or not has_more_rows:
        return ""
    count = min(shape[0] for _, expected in named.values() for shape in expected)
    return (
        f"routers of {rows.pop()} rows for {count} experts, as training on several ranks pads them: keep the first "
        f"{count} rows of each of these"
    )


def uneven_mlps(named: Mapping[str, Pair]) -> str:
    """Return the remedy for layers whose MLPs have widths of their own; empty if anything else has a wrong shape.

    Args:
        named: shape of each tensor of a wrong shape, and the shapes that it may have, by canonical name.
    """
    widths: dict[str, set[tuple[int, int]]] = {}
    for name, (actual, expected) in named.items():
        match = _MLP.fullmatch(name)
        if match is None or len(actual) != _MATRIX:
            return ""
        rows = match[2] != "down"
        kept, width = (actual[1], actual[0]) if rows else actual
        wanted, whole = (expected[0][1], expected[0][0]) if rows else expected[0]
        if kept != wanted:
            return ""
        widths.setdefault(match[1], set()).add((width, whole))
    if not widths or any(len(of) != 1 for of in widths.values()):
        return ""
    pairs = {pair for of in widths.values() for pair in of}
    why = "these layers have MLPs of widths of their own, as pruning leaves them, and no engine builds such a model"
    if any(width > whole for width, whole in pairs):
        return f"{why}: take the model that was pruned"
    wholes = {whole for _, whole in pairs}
    to = "the width of config.json" if len(wholes) > 1 else str(wholes.pop())
    return (
        f"{why}: widen them to {to}, with rows of zeros in gate_proj and up_proj and columns of zeros in down_proj, "
        "which changes no answer; or take the model that was pruned"
    )


def _count_parts(actual: Shape, expected: Sequence[Shape]) -> Iterator[int]:
    """Yield the number of equal parts of which a shape is one, along one axis of a shape that is expected."""
    for shape in expected:
        if len(shape) == len(actual):
            pairs = [(whole, part) for whole, part in zip(shape, actual, strict=True) if whole != part]
            if len(pairs) == 1 and 0 < pairs[0][1] < pairs[0][0] and pairs[0][0] % pairs[0][1] == 0:
                yield pairs[0][0] // pairs[0][1]

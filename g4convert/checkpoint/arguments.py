"""compressed-tensors' reading of the `weights` of a config group: defaults it fills in, and what it refuses.

    left out      means
    num_bits      8
    type          int
    symmetric     true
    strategy      tensor without group_size, channel with -1, group with a positive one

(`quantization/quant_args.py`, the same in compressed-tensors 0.17 and 0.20.) transformers, vLLM 0.33 and SGLang 0.5.23
all read a config with that class, so none of them starts with a config that it refuses.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from g4convert.suggestions import not_one_of

DEFAULTS: Final[Mapping[str, Any]] = {"num_bits": 8, "symmetric": True}
"""Default values of keys; the default of `type` is int."""

_KEYS: Final = {
    *DEFAULTS, "type", "group_size", "strategy", "block_structure", "dynamic", "actorder", "scale_dtype", "zp_dtype",
    "observer", "observer_kwargs",
}  # fmt: skip
_NEVER_NULL: Final = (*DEFAULTS, "type", "dynamic", "observer_kwargs")
_KNOWN: Final = {
    "type": ("int", "float"),
    "strategy": ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head"),
    "actorder": ("weight", "static", "group", "dynamic"),  # the one that is read with its case
}
_GROUPED: Final = {"group", "tensor_group"}


def implied_strategy(group_size: int | None) -> str | None:
    """Return the strategy that a group size implies if none is named; None for an invalid size."""
    if group_size is None:
        return "tensor"
    return "group" if group_size > 0 else "channel" if group_size == -1 else None


def refused(weights: Mapping[str, Any]) -> Iterator[str]:
    """Yield why compressed-tensors refuses a `weights` object, one reason a line; other types are left out."""
    yield from (f"{key!r:.40} is no key of compressed-tensors" for key in weights if key not in _KEYS)
    yield from (f"{key} is null" for key in _NEVER_NULL if key in weights and weights[key] is None)
    if not isinstance(weights.get("observer", ""), str | None):
        yield f"observer is {weights['observer']!r:.40}, expected text"
    for key, known in _KNOWN.items():
        if isinstance(given := weights.get(key), str) and (given if key == "actorder" else given.lower()) not in known:
            yield f"{key} {given!r:.40}: {not_one_of(known)}"
    named = str(weights.get("strategy") or "").lower()
    if named and named not in _KNOWN["strategy"]:
        return
    if named == "token" and not weights.get("dynamic"):
        yield "strategy token, which weights that are stored cannot have"
    size = weights.get("group_size")
    if size is None or type(size) is int:
        yield from _misfits(named, size, has_block=weights.get("block_structure") is not None)


def _misfits(named: str, size: int | None, *, has_block: bool) -> Iterator[str]:
    """Yield the reasons why a strategy and a group size do not fit together."""
    strategy = named or implied_strategy(size)
    if strategy is None or (size is not None and size < -1):
        yield f"group_size {size}, expected a positive number, or -1 for one scale per row"
    elif strategy in _GROUPED and (size is None or size <= 0):
        yield f"strategy {strategy} {'without a group_size' if size is None else f'with group_size {size}'}"
    elif size is not None and size > 0 and strategy not in _GROUPED:
        yield f"strategy {strategy} with group_size {size}, which only strategy group has"
    if (strategy == "block") is not has_block:
        yield "block_structure and strategy block, one without the other"

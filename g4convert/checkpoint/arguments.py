"""compressed-tensors' reading of quantization arguments: defaults it fills in, and what it refuses.

Arguments describe the `weights`, inputs and outputs of a config group, and the `kv_cache_scheme`.

    left out      means
    num_bits      8
    type          int
    symmetric     true
    strategy      tensor without group_size, channel with -1, group with a positive one

(`quantization/quant_args.py`, the same in compressed-tensors 0.17 and 0.20.) transformers, vLLM 0.33 and SGLang 0.5.23
all read a config with that class, so none of them starts with a config that it refuses.
"""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Final

from g4convert.suggestions import not_one_of

DEFAULTS: Final[Mapping[str, Any]] = {"num_bits": 8, "symmetric": True}
"""Default values of keys; the default of `type` is int."""

_KEYS: Final = {
    *DEFAULTS, "type", "group_size", "strategy", "block_structure", "dynamic", "actorder", "scale_dtype", "zp_dtype",
    "observer", "observer_kwargs",
}  # fmt: skip
_DTYPES: Final = frozenset(
    (
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (*range(1, 9), 16, 32, 64)),
        *("bfloat16", "float16", "float32", "float64", "bcomplex32", "complex32", "complex64", "complex128", "bool"),
        *("half", "float", "double", "chalf", "cfloat", "cdouble", "short", "int", "long"),
        *(
            "qint8",
            "qint32",
            "quint8",
            "quint4x2",
            "quint2x4",
            "bit",
            "bits1x8",
            "bits2x4",
            "bits4x2",
            "bits8",
            "bits16",
        ),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    )
)
"""Names of torch's dtypes, which `scale_dtype` and `zp_dtype` may have with or without `torch.` before them."""
_NEVER_NULL: Final = (*DEFAULTS, "type", "dynamic", "observer_kwargs")
_KNOWN: Final = {
    "type": ("int", "float"),
    "strategy": ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head"),
    "actorder": ("weight", "static", "group", "dynamic"),  # the one that is read with its case
}
_OTHER_TYPES: Final[Mapping[str, tuple[UnionType | type, str]]] = {
    "observer": (str, "text"),
    "observer_kwargs": (Mapping, "an object"),
    "dynamic": (int | float | str, "true, false or local"),
    "actorder": (bool | str, "weight, static or null"),
    "block_structure": (list | str, "two numbers"),
}
_TYPES: Final[Mapping[str, tuple[UnionType | type, str]]] = {
    "num_bits": (int | float | str, "a number"),
    "group_size": (int | float, "a number"),
    "symmetric": (int | float | str, "true or false"),
    "type": (str, "text"),
    "strategy": (str, "text"),
}
_GROUPED: Final = {"group", "tensor_group"}
_DYNAMIC: Final = {"token", "tensor", *_GROUPED}


def implied_strategy(group_size: int | None) -> str | None:
    """Return the strategy that a group size implies if none is named; None for an invalid size."""
    if group_size is None:
        return "tensor"
    return "group" if group_size > 0 else "channel" if group_size == -1 else None


def refusal_reasons(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield why compressed-tensors refuses quantization arguments, one reason a line; `type_faults` has other types."""
    yield from (f"{key!r:.40} is no key of compressed-tensors" for key in arguments if key not in _KEYS)
    yield from (f"{key} is null" for key in _NEVER_NULL if key in arguments and arguments[key] is None)
    yield from _check_other_keys(arguments)
    for key, names in _KNOWN.items():
        if (
            isinstance(value := arguments.get(key), str)
            and (value if key == "actorder" else value.lower()) not in names
        ):
            yield f"{key} {value!r:.40}: {not_one_of(names)}"
    named = str(arguments.get("strategy") or "").lower()
    if named and named not in _KNOWN["strategy"]:
        return
    size = arguments.get("group_size")
    if named == "token" and not arguments.get("dynamic"):
        yield "strategy token, which values that are stored cannot have"
    if size is None or type(size) is int:
        if dynamic := arguments.get("dynamic"):
            yield from _check_dynamic(dynamic, named or implied_strategy(size))
        yield from _check_sizes(named, size, has_block=arguments.get("block_structure") is not None)


def type_faults(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield values of quantization arguments of a type that compressed-tensors cannot read, which is lenient."""
    yield from _check_types(arguments, _TYPES)


def _check_types(arguments: Mapping[str, Any], types: Mapping[str, tuple[UnionType | type, str]]) -> Iterator[str]:
    for key, (kinds, expected) in types.items():
        if not isinstance(arguments.get(key), kinds | None):  # a null that is refused is said elsewhere
            yield f"{key} is {arguments[key]!r:.40}, expected {expected}"


def _check_other_keys(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield the reasons that lie in keys which say nothing of what is stored."""
    yield from _check_types(arguments, _OTHER_TYPES)
    for key in ("scale_dtype", "zp_dtype"):
        value = arguments.get(key)
        if value is not None and not (isinstance(value, str) and value.removeprefix("torch.") in _DTYPES):
            yield f"{key} is {value!r:.40}, expected a dtype of torch"


def _check_dynamic(dynamic: object, strategy: str | None) -> Iterator[str]:
    """Yield why values with this strategy cannot be quantized as they come."""
    is_local = isinstance(dynamic, str) and dynamic.lower() == "local"
    if isinstance(dynamic, str) and not is_local:
        yield f"dynamic {dynamic!r:.40}: expected true, false or local"
    elif strategy is not None and strategy not in ({"tensor_group"} if is_local else _DYNAMIC):
        yield f"dynamic {dynamic!r} with strategy {strategy}"


def _check_sizes(named: str, size: int | None, *, has_block: bool) -> Iterator[str]:
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

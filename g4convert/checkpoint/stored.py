"""Storage of quantized weights in a checkpoint, read off names, dtypes and shapes alone.

A quantized Linear is several tensors. Which ones tells the format, and their shapes tell the rest. With n
out_features, k in_features, g groups along k, b bits:

    pack-quantized        weight_packed I32 [n, k*b/32], weight_scale [n, g], (weight_zero_point, ...)
    nvfp4/mxfp4/mxfp6     weight_packed U8 [n, k*b/8], weight_scale F8_E4M3 or E8M0 as U8 [n, g]
    int-/float-quantized  weight I8 or F8 [n, k], weight_scale [], [1], [n, 1], [n, g] or [blocks, blocks]
    modelopt nvfp4        weight U8 [n, k/2], weight_scale F8_E4M3 [n, g], weight_scale_2
    GPTQ                  qweight I32 [k*b/32, n], scales [g, n], qzeros I32 [g, n*b/32], (g_idx [k])
    AWQ                   qweight I32 [k, n*b/32], scales [g, n], qzeros I32 [g, n*b/32]
    bitsandbytes          weight U8 [n*k/2, 1], weight.absmax [n*k/block], weight.quant_map, weight.quant_state.*
                          weight I8 [n, k], SCB [n], (weight_format)

Fused experts put the experts first and have the part's name joined by an underscore:
`experts.down_proj_packed` [e, n, k*b/32]. This module describes what it finds, whoever wrote it; it decides
nothing for a conversion.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Final

from g4convert.names import Name
from g4convert.tensors import DType, TensorInfo

_PAYLOADS: Final = ("weight_packed", "qweight", "weight")
_PARTS: Final = frozenset(
    (
        *_PAYLOADS, "weight_scale", "weight_scale_2", "weight_scale_inv", "weight_zero_point", "weight_shape",
        "weight_g_idx", "weight_global_scale", "input_scale", "input_zero_point", "input_global_scale",
        "output_scale", "qzeros", "scales", "g_idx", "SCB", "weight_format",
    )
)  # fmt: skip
_BELOW_WEIGHT: Final = re.compile(
    r"(.+)\.(weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+))"
)
"""Names of what bitsandbytes stores below the name of a weight."""
_STATE: Final = "weight.quant_state.bitsandbytes__"
_FUSED_PARTS: Final = ("_packed", "_scale", "_zero_point", "_shape", "_g_idx", "_global_scale")
_EIGHT_BIT: Final = {
    DType.I8: ("int-quantized", "int"),
    DType.F8_E4M3: ("float-quantized", "float"),
    DType.F8_E5M2: ("float-quantized", "float"),
}
_POWERS_OF_TWO: Final = {DType.U8, DType.F8_E8M0}  # an MX scale is an exponent
_WORD: Final = 32
_BYTE: Final = 8
_MOST_BITS: Final = 8
GAPS: Final = "packed by compressed-tensors before 0.18, which left bits of each word empty"
"""Words that explain the width of words of 3, 5, 6 or 7 bits."""
_READ_BITS: Final = range(2, 9)


@dataclass(frozen=True, slots=True)
class PackedModule:
    """One quantized module: its tensors by part.

    Args:
        module: the stored dotted path; for fused experts `...experts.down_proj`.
        parts: tensors by part, named as in compressed-tensors (`weight_packed`, ...), also for fused experts.
        fused: True if the module holds all experts of a layer.
    """

    module: str
    parts: Mapping[str, TensorInfo]
    fused: bool = False

    @property
    def weight_name(self) -> str:
        """Name of the weight before it was quantized."""
        return self.module if self.fused else f"{self.module}.weight"

    @property
    def has_plain_weight(self) -> bool:
        """True if the weight is also stored unquantized."""
        return "weight" in self.parts and not self.parts.keys().isdisjoint(("weight_packed", "qweight"))


@dataclass(frozen=True, slots=True)
class StoredScheme:
    """Scheme of a stored weight; None stands for a value that the tensors do not reveal.

    Args:
        format: name in compressed-tensors, or `gptq`, `awq`, `modelopt-nvfp4`.
        kind: `int` or `float`.
        num_bits: bits per weight.
        strategy: `tensor`, `channel`, `group` or `block`.
        group_size: weights along k that share a scale, with strategy `group`.
        symmetric: True if there is no zero point.
        shape: the weight's own shape [(e,) n, k].
        fault: sentence on tensors that do not fit together, or empty.
    """

    format: str
    kind: str
    num_bits: int | None = None
    strategy: str | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    shape: tuple[int, ...] | None = None
    fault: str = ""

    @property
    def label(self) -> str:
        """The scheme in one phrase: `int4 g32 symmetric (pack-quantized)`."""
        bits = f"{self.kind}{'?' if self.num_bits is None else self.num_bits}"
        extent = f"g{self.group_size}" if self.group_size else f"per {self.strategy or '?'}"
        zero = {True: " symmetric", False: " asymmetric", None: ""}[self.symmetric if self.kind == "int" else None]
        return f"{bits} {extent}{zero} ({self.format})"


def packed_modules(tensors: Mapping[str, TensorInfo]) -> dict[str, PackedModule]:
    """Return the quantized modules of a checkpoint, by stored path; all other tensors are plain."""
    candidates: defaultdict[tuple[str, bool], dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in tensors.items():
        below = _BELOW_WEIGHT.fullmatch(name)
        module, part = (Name(below[1]), below[2]) if below else Name(name).cut()
        if below or part in _PARTS:
            candidates[module, False][part] = info
            continue
        for suffix in _FUSED_PARTS:
            stem = name.removesuffix(suffix)
            if stem != name and f"{stem}_packed" in tensors:
                candidates[stem, True][f"weight{suffix}"] = info
                break
    return {
        module: PackedModule(module, parts, fused)
        for (module, fused), parts in candidates.items()
        if _is_quantized(parts)
    }


def stored_scheme(module: PackedModule, shape: tuple[int, ...] | None, num_bits: int | None) -> StoredScheme:
    """Return the scheme of a module, read from its tensors' names, dtypes and shapes.

    Args:
        module: the stored module.
        shape: [(e,) n, k] of the weight if known, from the config or a stored `weight_shape`.
        num_bits: declared bits; used only if the shapes leave a choice.
    """
    parts = module.parts
    if num_bits is not None and not 0 < num_bits <= _MOST_BITS:
        num_bits = None
    if "qweight" in parts:
        return _read_transposed(parts, num_bits)
    if "weight_packed" in parts:
        scale = parts.get("weight_scale")
        integers = scale is not None and scale.dtype.is_weight and "weight_global_scale" not in parts
        words = parts["weight_packed"].dtype is DType.I32 or integers
        return (_read_words if words else _read_bytes)(parts, shape, num_bits)
    return _eight_bit(parts) if parts.keys().isdisjoint(("SCB", "weight.absmax")) else _bitsandbytes(parts, shape)


def _is_quantized(parts: Mapping[str, TensorInfo]) -> bool:
    if "weight_packed" in parts or "qweight" in parts:
        return True
    weight = parts.get("weight")
    return weight is not None and len(parts) > 1 and weight.dtype in {*_EIGHT_BIT, DType.U8}


def _read_words(parts: Mapping[str, TensorInfo], shape: tuple[int, ...] | None, num_bits: int | None) -> StoredScheme:
    """Return the scheme of pack-quantized: int32 words along k."""
    words = parts["weight_packed"]
    *rows, width = words.shape or (0,)
    scheme = StoredScheme("pack-quantized", "int", symmetric="weight_zero_point" not in parts)
    if words.dtype is not DType.I32:
        return replace(scheme, fault=f"weight_packed is {words.dtype.value}, expected I32", shape=shape)
    if shape is None and num_bits:
        shape = (*rows, width * _WORD // num_bits)
    if shape is None:
        return replace(scheme, fault="neither weight_shape nor the config tells in_features")
    choices = [bits for bits in range(1, _MOST_BITS + 1) if ceil(shape[-1] * bits / _WORD) == width]
    if num_bits in choices:
        choices = [num_bits]
    elif with_gaps(width, shape[-1], num_bits) and (num_bits or not choices):
        return replace(scheme, shape=shape, fault=f"{_misfit(parts, shape)}, {GAPS}")
    bits = min(choices, default=None)
    fault = "" if bits and tuple(rows) == shape[:-1] else _misfit(parts, shape)
    return _add_scale(replace(scheme, num_bits=bits, shape=shape, fault=fault), parts)


def with_gaps(width: int, k: int, num_bits: int | None) -> bool:
    """Return whether `width` words hold k codes as compressed-tensors before 0.18 packs them: no code crosses words.

    Args:
        width: number of words.
        k: number of codes.
        num_bits: declared bits of a code; None tries all.
    """
    each = (_WORD // bits for bits in ([num_bits] if num_bits else range(1, _MOST_BITS)) if _WORD % bits)
    return any(ceil(k / codes) == width for codes in each)


def _read_bytes(parts: Mapping[str, TensorInfo], shape: tuple[int, ...] | None, num_bits: int | None) -> StoredScheme:
    """Return the scheme of nvfp4, mxfp4, mxfp6: uint8 along k; if k is unknown, the declared bits, else 4."""
    *rows, width = parts["weight_packed"].shape or (0,)
    shape = shape or (*rows, width * _BYTE // (num_bits or 4))
    bits = width * _BYTE // shape[-1] if shape[-1] else None
    scale = parts.get("weight_scale")
    form = "mxfp" if scale is not None and scale.dtype in _POWERS_OF_TWO else "nvfp"
    scheme = StoredScheme(f"{form}{bits}-pack-quantized", "float", bits, symmetric=True, shape=shape)
    fault = "" if tuple(rows) == shape[:-1] else _misfit(parts, shape)
    if parts["weight_packed"].dtype is not DType.U8:
        fault = f"weight_packed is {parts['weight_packed'].dtype.value}, expected U8"
    return _add_scale(replace(scheme, fault=fault), parts)


def _eight_bit(parts: Mapping[str, TensorInfo]) -> StoredScheme:
    """Return the scheme of formats with one weight per byte, or of modelopt's nvfp4 with two."""
    weight, scale = parts["weight"], parts.get("weight_scale")
    if weight.dtype is DType.U8:
        shape = (*weight.shape[:-1], weight.shape[-1] * 2) if weight.shape else ()
        return _add_scale(StoredScheme("modelopt-nvfp4", "float", 4, symmetric=True, shape=shape), parts)
    form, kind = _EIGHT_BIT[weight.dtype]
    if kind == "float" and scale is not None and scale.dtype in _POWERS_OF_TWO:
        form = "mxfp8-quantized"
    symmetric = "weight_zero_point" not in parts
    return _add_scale(StoredScheme(form, kind, _BYTE, symmetric=symmetric, shape=weight.shape), parts)


def _bitsandbytes(parts: Mapping[str, TensorInfo], shape: tuple[int, ...] | None) -> StoredScheme:
    """Return the scheme of bitsandbytes. Of 4 bits a file tells how many weights there are, and not in which rows."""
    weight, blocks = parts["weight"], parts.get("weight.absmax")
    if blocks is None:
        return StoredScheme("bitsandbytes-int8", "int", _BYTE, "channel", symmetric=True, shape=weight.shape)
    kind = next((part.removeprefix(_STATE) for part in parts if part.startswith(_STATE)), "4bit")
    count = 2 * weight.numel
    fault = f"weight has {count} codes for a weight {[*shape]}" if shape and prod(shape) != count else ""
    size = count // blocks.numel if blocks.numel else None
    return StoredScheme(f"bitsandbytes-{kind}", "float", 4, "group", size, True, shape or (count,), fault)  # noqa: FBT003


def _add_scale(scheme: StoredScheme, parts: Mapping[str, TensorInfo]) -> StoredScheme:
    """Return the scheme with strategy and group size, from the scale's shape."""
    scale = parts.get("weight_scale") or parts.get("weight_scale_inv")
    if scale is None:
        return replace(scheme, fault=scheme.fault or "no weight_scale")
    shape = scheme.shape or (0,)
    strategy, size = _extent(scale.shape, shape, scheme.kind)
    fault = ""
    if strategy is None:
        fault = f"weight_scale {[*scale.shape]} for {[*shape]}"
    elif strategy == "group" and size is None:
        fault = f"{scale.shape[-1]} groups do not divide {shape[-1]} in_features"
    return replace(scheme, strategy=strategy, group_size=size, fault=scheme.fault or fault)


def _extent(scale: tuple[int, ...], weight: tuple[int, ...], kind: str) -> tuple[str | None, int | None]:
    """Return strategy and group size implied by a scale's and a weight's shape; only floats come in blocks."""
    *rows, k = weight
    if prod(scale) == 1:
        return "tensor", None
    if scale in {(*rows, 1), (*rows,)}:
        return "channel", None
    if scale[:-1] == (*rows,):
        groups = scale[-1]
        return "group", k // groups if groups and k % groups == 0 else None
    if kind == "float" and len(scale) == len(weight) and all(a < b for a, b in zip(scale, weight, strict=True)):
        return "block", None
    return None, None


def _read_transposed(parts: Mapping[str, TensorInfo], num_bits: int | None) -> StoredScheme:
    """Return the scheme of GPTQ and AWQ: both store the transposed weight, packed along different dimensions."""
    scales, qweight, qzeros = parts.get("scales"), parts["qweight"], parts.get("qzeros")
    if scales is None or not len(scales.shape) == len(qweight.shape) == 2:
        return StoredScheme("gptq", "int", num_bits, fault="no scales that fit qweight")
    (groups, n), (rows, columns) = scales.shape, qweight.shape
    packed_along_k = columns == n
    if packed_along_k:
        bits_of_zeros = _WORD * qzeros.shape[-1] // n if qzeros is not None and qzeros.shape and n else None
        bits = bits_of_zeros or num_bits
        k = rows * _WORD // bits if bits else 0
    else:
        bits, k = (_WORD * columns // n if n else None), rows
    scheme = StoredScheme("gptq" if packed_along_k else "awq", "int", bits or None, shape=(n, k) if k else None)
    if groups == 1:
        return replace(scheme, strategy="channel")
    if not k or not groups or k % groups:
        return replace(scheme, strategy="group", fault=f"{groups} groups do not divide {k} in_features")
    return replace(scheme, strategy="group", group_size=k // groups)


def _misfit(parts: Mapping[str, TensorInfo], shape: tuple[int, ...]) -> str:
    return f"weight_packed {[*parts['weight_packed'].shape]} for a weight {[*shape]}"


def unreadable(module: PackedModule, scheme: StoredScheme) -> str:
    """Return the reason why a packed module cannot be run from its words; empty if it can."""
    if scheme.fault:
        return scheme.fault
    if scheme.format != "pack-quantized" or scheme.num_bits not in _READ_BITS:
        return f"{scheme.label}: only 2 to 8 bits of the format pack-quantized are read"
    scale = module.parts["weight_scale"]
    if scheme.strategy not in {"group", "channel"} or len(scale.shape) != len(module.parts["weight_packed"].shape):
        return f"weight_scale {[*scale.shape]}: expected one scale for each group or row"
    if not scale.dtype.is_weight:
        return f"weight_scale is {scale.dtype.value}, expected a float type"
    if "weight_g_idx" in module.parts:
        return "weight_g_idx: activation order is not read"
    return "the weight is stored plain as well" if module.has_plain_weight else ""

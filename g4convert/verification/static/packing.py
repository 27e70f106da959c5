"""Checks of packed weights: words, scales and shapes against the config's scheme and the model's dimensions.

    weight_packed  I32 [n, k*bits/32]      weight_scale  float [n, k/g], [n, 1]      weight_shape  I64 [2] = [n, k]
    weight_zero_point  I32 [n*bits/32, k/g]

Letters: n out_features, k in_features, g group_size. Only dtypes and shapes are checked, and the two values of each
`weight_shape`; level `weights` checks codes and scales.
"""

import struct
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from g4convert.checkpoint.contents import Contents
from g4convert.checkpoint.declared import DeclaredGroup
from g4convert.checkpoint.stored import GAPS, PackedModule, StoredScheme, stored_scheme, with_gaps
from g4convert.engines import CONTRACTS
from g4convert.engines.forms import ONE_TARGET
from g4convert.engines.groups import SomeMisfit, grouped_modules, misfits_of_all
from g4convert.engines.stored import StoredCheckpoint
from g4convert.engines.weights import Weights
from g4convert.gemma4 import Role
from g4convert.names import Name
from g4convert.report import Detail, Finding, Severity
from g4convert.tensors import DType, TensorInfo

_CAST: Final = {DType.I64, DType.U32}
"""Dtypes of words that vLLM 0.33 and SGLang 0.5.23 copy into int32 (`parameter.py`); transformers refuses them."""
_SHAPE_FORMATS: Final = {DType.I64: "<2q", DType.I32: "<2i"}
_SPLIT_ALONG_K: Final = ("o_proj", "down_proj")
_SPLIT_ALONG_N: Final = ("q_proj", "gate_proj", "up_proj")
_SPLIT_ROLES: Final = {Role.ATTENTION, Role.MLP, Role.EXPERTS}
_CORRECT: Final = "correct it: loaders go by the config"
AGAIN: Final = "quantize the source again: the file was changed, or its writer packed it wrongly"
"""Remedy for packed words that no converter means to write."""


def packing(stored: StoredCheckpoint) -> Iterator[Finding]:
    """Check every packed module against the model's shape and the scheme that an engine builds it by."""
    contents, groups = stored.contents, groups_of(stored)
    shapes = [info for module in contents.packed.values() if (info := module.parts.get("weight_shape"))]
    indices = [info for module in contents.packed.values() if (info := module.parts.get("weight_g_idx"))]
    read = (info.name for info in (*shapes, *indices) if _is_shape(info) or info.dtype is DType.I32)
    values = stored.checkpoint.read_many(read)
    for name, module in contents.packed.items():
        shape = contents.expected[name].shape
        yield from _check_module(module, shape, groups.get(Name(name).module))
        yield from _check_weight_shape(module, shape, values)
        yield from _check_g_idx(module, values)
    for name, module in contents.fused_packed.items():
        fused = contents.fused[name]
        yield from _check_module(module, fused.shape, groups.get(Name(fused.names[0]).module))
        yield from _check_g_idx(module, {})


def groups_of(stored: StoredCheckpoint) -> dict[str, DeclaredGroup]:
    """Return the config group of each module: that of the first engine of `CONTRACTS` that has one, else the first."""
    first = next(iter(stored.declared.groups), None) if stored.declared else None
    groups = dict.fromkeys(stored.weights.schemes, first)
    for contract in reversed([*CONTRACTS.values()]):
        groups |= {one.shard: one.group for one in grouped_modules(contract, stored.weights)}
    return {module: group for module, group in groups.items() if group is not None}


def _check_module(module: PackedModule, shape: tuple[int, ...], group: DeclaredGroup | None) -> Iterator[Finding]:
    if "weight_packed" not in module.parts:
        found = "another format's tensors"
        yield Finding("static.packed", Severity.FAIL, module.module, found, "weight_packed", AGAIN)
        return
    scheme = stored_scheme(module, shape, group.num_bits if group else None)
    bits = (group.num_bits if group else None) or scheme.num_bits or 4
    wrong_words = [*_check_words(module, shape, scheme, bits)]
    yield from wrong_words or _check_scale(module, shape, scheme, group)
    yield from _check_zero_point(module, shape, bits)
    if group is not None and group.static_int8:
        yield from _check_activation_scales(module)


def _check_words(module: PackedModule, shape: tuple[int, ...], scheme: StoredScheme, bits: int) -> Iterator[Finding]:
    words = module.parts["weight_packed"]
    if words.dtype is DType.I32 and words.shape[:-1] == shape[:-1] and scheme.num_bits is not None:
        return
    expected_shape = (*shape[:-1], -(-shape[-1] * bits // 32))
    is_cast = words.dtype in _CAST and words.shape == expected_shape
    found, expected = (
        f"weight_packed {words.dtype} {[*words.shape]}",
        f"I32 {[*expected_shape]} for a weight {[*shape]}",
    )
    remedy, detail = ("store it as int32, with the same values", Detail.CAST) if is_cast else (AGAIN, None)
    if words.shape[:-1] == shape[:-1] and with_gaps(words.shape[-1], shape[-1], bits):
        found, remedy = f"{found}, {GAPS}", "pack it with compressed-tensors 0.18 or newer, as vLLM reads it"
    yield Finding("static.packed", Severity.FAIL, module.module, found, expected, remedy, detail=detail)


def _check_scale(
    module: PackedModule, shape: tuple[int, ...], scheme: StoredScheme, group: DeclaredGroup | None
) -> Iterator[Finding]:
    scale, expected = module.parts.get("weight_scale"), _scale_text(shape, group)
    if scale is None:
        remedy = f"{AGAIN}; vLLM loads it without a word and computes with whatever is in memory"
        found = "no weight_scale"
        yield Finding("static.scale", Severity.FAIL, module.module, found, expected, remedy, detail=Detail.LOST)
    elif scheme.fault or not scale.dtype.is_weight:
        found = f"weight_scale {scale.dtype} {[*scale.shape]}"
        yield Finding("static.scale", Severity.FAIL, module.module, found, expected, AGAIN)


def _check_zero_point(module: PackedModule, shape: tuple[int, ...], bits: int) -> Iterator[Finding]:
    zero, scale = module.parts.get("weight_zero_point"), module.parts.get("weight_scale")
    if zero is None or scale is None or not len(shape) == len(scale.shape) == 2:
        return
    packed = (-(-shape[0] * bits // 32), scale.shape[1])
    if zero.dtype is not DType.I32 or zero.shape != packed:
        found, expected = f"weight_zero_point {zero.dtype} {[*zero.shape]}", f"I32 {[*packed]}, packed along the rows"
        yield Finding("static.packed", Severity.FAIL, module.module, found, expected, AGAIN)


def _check_g_idx(module: PackedModule, values: Mapping[str, bytes]) -> Iterator[Finding]:
    """Check that columns lie in the order of their groups: no loader reads another order."""
    index, scale = module.parts.get("weight_g_idx"), module.parts.get("weight_scale")
    if index is None:
        return
    stored = values.get(index.name, b"")
    group = [*struct.unpack(f"<{len(stored) // 4}i", stored)]
    groups = scale.shape[-1] if scale else 0
    if group and groups and group == [column * groups // len(group) for column in range(len(group))]:
        found, remedy = "weight_g_idx, in the order that groups have without it", "delete it: no loader reads it"
        yield Finding("static.scheme", Severity.WARN, module.module, found, "none", remedy)
        return
    found = "weight_g_idx: groups in another order"
    remedy = "quantize again with `actorder: weight`: no loader reads this one, and without it the weights are wrong"
    yield Finding("static.scheme", Severity.FAIL, module.module, found, "none", remedy, detail=Detail.ORDER)


def _check_activation_scales(module: PackedModule) -> Iterator[Finding]:
    """Check the two scales of static activations: one float each, F32 [1]."""
    for part in ("input_scale", "output_scale"):
        info = module.parts.get(part)
        if info is None:
            found, remedy = f"no {part}", f"{AGAIN}; vLLM loads it without a word and computes with what is in memory"
            yield Finding("static.scale", Severity.FAIL, module.module, found, "F32 [1]", remedy, detail=Detail.LOST)
        elif info.numel != 1 or not info.dtype.is_weight:
            found = f"{part} {info.dtype} {[*info.shape]}"
            yield Finding("static.scale", Severity.FAIL, module.module, found, "F32 [1]", AGAIN)
        elif not info.shape:
            found = f"{part} without a dimension: transformers from 5.23 on raises"
            yield Finding("static.scale", Severity.WARN, module.module, found, "F32 [1]", detail=Detail.SCALAR)


def _scale_text(shape: tuple[int, ...], group: DeclaredGroup | None) -> str:
    *rows, k = shape
    size = group.group_size if group else None
    columns = k // size if size else 1 if group and group.strategy == "channel" else "groups"
    return f"weight_scale BF16 [{', '.join(map(str, (*rows, columns)))}]"


def _is_shape(info: TensorInfo) -> bool:
    return info.dtype in _SHAPE_FORMATS and info.shape == (2,)


def _check_weight_shape(module: PackedModule, shape: tuple[int, ...], read: Mapping[str, bytes]) -> Iterator[Finding]:
    info = module.parts.get("weight_shape")
    code, right = "static.weight_shape", f"I64 [2], {[*shape]}"
    if info is None:
        remedy = f"{AGAIN}; compressed-tensors needs it to unpack"
        yield Finding(code, Severity.FAIL, module.module, "no weight_shape", right, remedy)
    elif not _is_shape(info):
        yield Finding(code, Severity.FAIL, module.module, f"{info.dtype} {[*info.shape]}", right, AGAIN)
    else:
        values = struct.unpack(_SHAPE_FORMATS[info.dtype], read[info.name])
        if values != shape:
            yield Finding(code, Severity.FAIL, module.module, f"{[*values]}", right, AGAIN)


def fused_experts(contents: Contents) -> Iterator[Finding]:
    """Warn of fused packed experts: only g4convert and vLLM (layers/fused_moe/routed_experts.py:1004) read them."""
    remedy = "for other programs quantize the source again: `g4convert quantize` writes experts one by one"
    for module in contents.fused_packed.values():
        found = "all experts packed in one tensor: vLLM 0.33 reads it, SGLang and transformers leave experts random"
        yield Finding("static.experts", Severity.WARN, module.module, found, "one module for each expert", remedy)


def fits_ranks(stored: StoredCheckpoint, ranks: Iterable[int]) -> Iterator[Finding]:
    """Yield a finding for each number of GPUs in `ranks`: whether packed matrices split without tearing a group.

    Engines split `o_proj` and `down_proj` along k and the others along n, by whole attention heads.
    """
    contents = stored.contents
    heads = contents.architecture.text.heads
    for count in ranks:
        misfits: defaultdict[str, int] = defaultdict(int)
        if heads % count:
            misfits[f"{heads} attention heads"] = 1
        for name, module in contents.packed.items():
            if misfit := _misfit(name, module, stored, count):
                misfits[misfit] += 1
        subject = f"tensor parallel {count}"
        if misfits:
            found = "; ".join(f"{text} ({n}x)" if n > 1 else text for text, n in misfits.items())
            severity = Severity.FAIL if count == 1 else Severity.INFO
            yield Finding("static.tensor_parallel", severity, subject, found, f"a multiple of {count}, groups whole")
        else:
            yield Finding("static.tensor_parallel", Severity.PASS, subject, "every packed matrix can be split", "")


def _misfit(name: str, module: PackedModule, stored: StoredCheckpoint, count: int) -> str:
    expected = stored.contents.expected[name]
    if expected.role not in _SPLIT_ROLES or "weight_scale" not in module.parts:
        return ""
    n, k = expected.shape
    part = Name(name).module.last
    subject = f"experts' {part}" if expected.role is Role.EXPERTS else part
    groups = (module.parts["weight_scale"].shape or (1,))[-1]
    by_row = groups == 1 and stored.weights.packed[Name(name).module].group_size is None
    if part in _SPLIT_ALONG_K and groups % count and not by_row:
        return f"{subject}: {k} inputs in {groups} group{'s' * (groups != 1)}"
    if part in _SPLIT_ALONG_K and k % count:
        return f"{subject}: {k} inputs"
    return f"{subject}: {n} outputs" if part in _SPLIT_ALONG_N and n % count else ""


def other_schemes(weights: Weights, required: Collection[str]) -> Iterator[Finding]:
    """Yield findings on modules whose stored scheme differs from the config group that engines build them by.

    Args:
        weights: weights of the output.
        required: engines that must load the output; a fault in other engines only warns.
    """
    members: defaultdict[str, set[str]] = defaultdict(set)
    for contract in CONTRACTS.values():
        for placed in grouped_modules(contract, weights):
            members[placed.group.name].add(placed.shard)
    alike: defaultdict[SomeMisfit, list[str]] = defaultdict(list)
    for misfit in misfits_of_all(weights):
        alike[replace(misfit, shard="")].append(misfit.shard)
    for fault, modules in alike.items():
        many = len(modules) > 1
        yield Finding(
            "static.scheme",
            Severity.WARN if fault.engines and set(fault.engines).isdisjoint(required) else Severity.FAIL,
            f"config_groups.{fault.group}" if many else modules[0],
            fault.text,
            "the same in both",
            ONE_TARGET if fault.engines else _CORRECT if many else AGAIN,
            Detail.GROUP,
            count=len(modules),
            total=len(members[fault.group]),
            first=modules[0],
        )

"""Resolves each tensor of a transformers model to the stored tensors it is made of, and lists what does not fit.

Keys are names of the model's `state_dict()`, which for the unified family are not those of the files.
"""

import struct
from math import prod

from g4convert.checkpoint.contents import Contents, Form
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.stored import PackedModule, stored_scheme, unreadable
from g4convert.engines import CONTRACTS
from g4convert.forward.misfits import Misfit, MisfitKind
from g4convert.forward.pieces import PackedGroup, Rows
from g4convert.gemma4 import Expected, FusedExperts, Role
from g4convert.tensors import DType, TensorInfo


def pieces_of(checkpoint: Checkpoint, contents: Contents, problems: list[Misfit]) -> dict[str, Rows | PackedGroup]:
    """Return the source of each tensor of the model; a packed Linear is keyed by the name of its weight.

    Args:
        checkpoint: the opened directory.
        contents: tensors of the checkpoint.
        problems: is added to: tensors that are missing, have another shape, or are packed in an unreadable way.
    """
    pieces: dict[str, Rows | PackedGroup] = {}
    fused = {one for experts in contents.fused.values() for one in experts.names}
    for name, expected in contents.expected.items():
        form = contents.stored.get(name)
        if form is None:
            if not expected.optional:
                problems.append(Misfit(MisfitKind.MISSING, name))
        elif name not in fused and expected.role is not Role.KV_SHARED:
            piece = _find_moved(form, expected) or _make_piece(checkpoint, name, (form,), expected.shape, problems)
            if piece:
                pieces[_in_model(contents, name)] = piece
    for name, experts in contents.fused.items():
        forms = _expert_forms(contents, experts)
        piece = _stack(forms, experts) or (
            _make_piece(checkpoint, name, forms, experts.shape, problems) if forms else None
        )
        if piece:
            pieces[name] = piece
    return pieces


def _find_moved(form: Form, expected: Expected) -> Rows | None:
    """Return the source of a convolution that is stored with channels last; None for any other tensor."""
    if not expected.convolution or isinstance(form, PackedModule) or form.shape != expected.channels_last:
        return None
    last = len(form.shape) - 1
    return Rows((form.name,), expected.shape, form.dtype, form.shape, (0, last, *range(1, last)))


def _stack(forms: tuple[Form, ...], experts: FusedExperts) -> Rows | None:
    """Join gate and up, stored as one tensor [e, i, k] each, to [e, 2i, k]; None for any other form."""
    e, rows, k = experts.shape
    shape_of_each = (e, rows // len(experts.projections), k)
    names = dict.fromkeys(form.name for form in forms if isinstance(form, TensorInfo) and form.shape == shape_of_each)
    if len(experts.projections) == 1 or len(names) != len(experts.projections):
        return None
    dtype = next(form.dtype for form in forms if isinstance(form, TensorInfo))
    return Rows(tuple(names), experts.shape, dtype, (len(names), *shape_of_each), (1, 0, 2, 3))


def _in_model(contents: Contents, name: str) -> str:
    return CONTRACTS["transformers"].speller(contents.architecture)(name) if contents.architecture.is_unified else name


def _expert_forms(contents: Contents, experts: FusedExperts) -> tuple[Form, ...]:
    """Return the stored tensors of a fused projection; empty if one is missing, which is reported already."""
    forms = [contents.stored.get(name) for name in experts.names]
    first = forms[0]
    if first is not None and all(form == first for form in forms):
        return (first,)
    present = tuple(form for form in forms if form is not None)
    return present if len(present) == len(forms) else ()


def _make_piece(
    checkpoint: Checkpoint, name: str, forms: tuple[Form, ...], shape: tuple[int, ...], problems: list[Misfit]
) -> Rows | PackedGroup | None:
    plain = [form for form in forms if isinstance(form, TensorInfo)]
    packed = tuple(form for form in forms if isinstance(form, PackedModule))
    if packed and plain:
        problems.append(Misfit(MisfitKind.MIXED, name, f"{len(packed)} experts are packed, {len(plain)} are not"))
        return None
    if packed:
        return _pack_group(checkpoint, name, packed, shape, problems)
    shape_of_each = _shape_of_each(shape, len(plain))
    wrong = [info for info in plain if info.shape != shape_of_each and not (info.numel == prod(shape_of_each) == 1)]
    texts = ((info.name, f"is {[*info.shape]}, the model's is {[*shape_of_each]}") for info in wrong)
    problems.extend(Misfit(MisfitKind.MISMATCHED, stored, text) for stored, text in texts)
    return None if wrong else Rows(tuple(info.name for info in plain), shape, plain[0].dtype)


def _shape_of_each(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the shape of each of `count` tensors stacked to `shape`: `shape` itself, or [n, k] of [e, rows, k]."""
    return shape if count == 1 else (prod(shape[:-1]) // count, shape[-1])


def _pack_group(
    checkpoint: Checkpoint, name: str, modules: tuple[PackedModule, ...], shape: tuple[int, ...], problems: list[Misfit]
) -> PackedGroup | None:
    shape_of_each = _shape_of_each(shape, len(modules))
    schemes = [stored_scheme(module, shape_of_each, None) for module in modules]
    faults = [
        Misfit(MisfitKind.PACKED, module.module, fault)
        for module, scheme in zip(modules, schemes, strict=True)
        if (fault := unreadable(module, scheme) or _stated_shape(checkpoint, module, shape_of_each))
    ]
    if not faults and len({(s.num_bits, s.group_size, s.strategy, s.symmetric) for s in schemes}) > 1:
        faults = [Misfit(MisfitKind.MIXED, name, "experts of one layer are packed in different schemes")]
    problems.extend(faults)
    return None if faults else PackedGroup(modules, schemes[0], shape)


def _stated_shape(checkpoint: Checkpoint, module: PackedModule, shape: tuple[int, ...]) -> str:
    """Return the fault of the stored `weight_shape`; empty if it is right or not stored."""
    info = module.parts.get("weight_shape")
    if info is None or module.fused:
        return ""
    letter = {DType.I64: "q", DType.I32: "i"}.get(info.dtype)
    if letter is None or info.shape != (2,):
        return f"weight_shape is {info.dtype.value} {[*info.shape]}, expected I64 [2]"
    stated = struct.unpack(f"<2{letter}", checkpoint.read(info.name))
    return "" if stated == shape else f"weight_shape says {[*stated]}, the model's is {[*shape]}"

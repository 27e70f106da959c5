"""Description of any checkpoint, quantized or not, from any writer: `g4convert inspect`.

The tensors (names, dtypes, shapes) are compared with config.json. Names are resolved by the same rules as for a
conversion; a quantized module is looked up as the weight that it was made from. Where a conversion raises an error, a
description goes on: it lists unknown names, shows a foreign model type unchanged, and turns mismatches into remarks.

    modules_of    every weight, by its canonical name                      `modules`
    Declaration   the config's lists, matched by every engine's names      `lists`
    describe      sizes by role, and remarks on mismatches and on dead entries, which name no module
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from g4convert.checkpoint.declared import declared_in
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.entries import COMPRESSED_TENSORS
from g4convert.checkpoint.stored import StoredScheme, stored_scheme
from g4convert.errors import InputError
from g4convert.gemma4 import Architecture, Role, quantized_format
from g4convert.inspection.description import Description, EntryUse, Mismatch, SourceRoleSize
from g4convert.inspection.lists import Declaration, entry_uses
from g4convert.inspection.modules import (
    DROPPABLE,
    FILES,
    UNKNOWN,
    WeightModule,
    implied,
    missing_from,
    modules_of,
    stored_shape,
)
from g4convert.names import Name
from g4convert.verification.static.section import PACKED, formats


def describe(checkpoint: Checkpoint) -> Description:
    """Return the description of an opened checkpoint.

    Args:
        checkpoint: checkpoint of any model, in any format that safetensors files hold.
    """
    architecture, remarks = _architecture(checkpoint.config)
    model_type = str(checkpoint.config.get("model_type", UNKNOWN))
    modules, match = modules_of(checkpoint, architecture)
    declared = declared_in(checkpoint.config)
    matching = Declaration.of(declared, checkpoint, architecture) if declared else None
    schemes = _schemes(checkpoint, modules, matching)
    remarks += _scheme_remarks(modules, schemes, matching)
    entries: tuple[EntryUse, ...] = ()
    if matching:
        remarks += _declared_remarks(modules, matching)
        if matching.declared.method == COMPRESSED_TENSORS and any(one.format == PACKED for one in schemes.values()):
            remarks += [Mismatch("config.json", f"format: {text}") for _, text, _ in formats(checkpoint.config)]
        entries = tuple(entry_uses([*modules, *implied(architecture, modules)], matching))
        remarks += [Mismatch(use.place, f"{use.entry} names no module") for use in entries if use.is_dead]
    unknown = tuple(sorted(module.stored for module in modules if module.role == UNKNOWN))
    if found := quantized_format(unknown):
        remarks.append(Mismatch(UNKNOWN, f"the names are those of {found[0]}", len(found[1]), found[1][0]))
    return Description(
        path=str(checkpoint.path),
        family=architecture.family if architecture else model_type,
        model_type=model_type,
        dialects=match.dialects if match else (),
        declared=declared,
        roles=_role_sizes(checkpoint, modules, schemes),
        entries=entries,
        remarks=tuple(remarks),
        unknown=unknown,
        missing=missing_from(match) if match else (),
        weight_files={file.name: file.size for file in checkpoint.files},
        side_files=checkpoint.side_files,
        stray_files=checkpoint.stray_files,
    )


def _architecture(config: Mapping[str, Any]) -> tuple[Architecture | None, list[Mismatch]]:
    try:
        return Architecture.from_config(config), []
    except InputError as error:
        return None, [Mismatch("config.json", text) for text in (error.message, *error.offenders)]


def _schemes(
    checkpoint: Checkpoint, modules: Iterable[WeightModule], matching: Declaration | None
) -> dict[str, StoredScheme]:
    """Return stored name -> scheme, for each quantized module."""
    found = {}
    for module in modules:
        if module.packed is not None:
            group = matching.group_for(module) if matching else None
            shape = module.shape or stored_shape(checkpoint, module.packed)
            scheme = stored_scheme(module.packed, shape, group.num_bits if group else None)
            found[module.stored] = group.meant_by(scheme) if group else scheme
    return found


def _role_sizes(
    checkpoint: Checkpoint, modules: Iterable[WeightModule], schemes: Mapping[str, StoredScheme]
) -> tuple[SourceRoleSize, ...]:
    """Return the sizes of all roles, in the order of `Role`; `droppable` and `unknown` come last."""
    sizes: dict[str, SourceRoleSize] = {}
    for module in modules:
        if module.packed is None:
            info = checkpoint.tensors[module.stored].info
            one = SourceRoleSize(module.role, 1, info.numel, info.nbytes, {info.dtype.value.lower(): 1})
        else:
            scheme, parts = schemes[module.stored], module.packed.parts.values()
            shape = module.shape or scheme.shape
            nbytes = sum(info.nbytes for info in parts)
            one = SourceRoleSize(module.role, len(parts), prod(shape) if shape else 0, nbytes, {scheme.label: 1})
        sizes[module.role] = _sum(sizes[module.role], one) if module.role in sizes else one
    order = [*map(str, Role), DROPPABLE, UNKNOWN]
    return tuple(sizes[role] for role in order if role in sizes)


def _sum(a: SourceRoleSize, b: SourceRoleSize) -> SourceRoleSize:
    schemes = Counter(a.schemes) + Counter(b.schemes)
    return SourceRoleSize(a.role, a.tensors + b.tensors, a.params + b.params, a.nbytes + b.nbytes, schemes)


def _scheme_remarks(
    modules: Sequence[WeightModule], schemes: Mapping[str, StoredScheme], matching: Declaration | None
) -> list[Mismatch]:
    """Return remarks on schemes that are inconsistent or differ from the config."""
    notes = _Notes()
    plain = {module.stored for module in modules if module.packed is None}
    for module in modules:
        if module.packed is None:
            continue
        scheme = schemes[module.stored]
        if module.stored in plain or module.packed.has_plain_weight:
            notes.add(module.role, "stored plain and quantized at once", module.stored)
        if scheme.fault:
            notes.add(module.role, scheme.fault, module.stored)
        group = matching.group_for(module) if matching else None
        if matching is None:
            notes.add(module.role, "quantized, but config.json has no quantization_config", module.stored)
        elif matching.misbuilt:
            if misfit := matching.misfits.get(Name(module.canonical or "").owner):
                notes.add(module.role, misfit, module.stored)
        elif group and (difference := group.differs_from(scheme)):
            notes.add(module.role, difference, module.stored)
    return notes.remarks()


def _declared_remarks(modules: Iterable[WeightModule], matching: Declaration) -> list[Mismatch]:
    """Return remarks on Linears that an engine would build in another form than stored, and on faults of the config."""
    notes = _Notes()
    for module in modules:
        wrong: defaultdict[str, list[str]] = defaultdict(list)
        for engine in matching.engines:
            if module.linear and matching.declared.groups and (text := matching.fault(module, engine)):
                wrong[text].append(engine)
        for text, engines in wrong.items():
            where = "" if len(engines) == len(matching.engines) else f", by the names of {', '.join(engines)}"
            notes.add(module.role, f"{text}{where}", module.stored)
    faults = [Mismatch("config.json", fault) for fault in matching.declared.faults]
    broken = [Mismatch("ignore", f"{entry} is no regular expression") for entry in matching.lists[FILES].ignore.broken]
    return [*faults, *broken, *notes.remarks()]


class _Notes:
    """Collector that joins equal remarks about many modules into one with a count."""

    def __init__(self) -> None:
        self._examples: dict[tuple[str, str], list[str]] = {}

    def add(self, subject: str, text: str, name: str) -> None:
        self._examples.setdefault((subject, text), []).append(name)

    def remarks(self) -> list[Mismatch]:
        return [Mismatch(str(subject), text, len(names), names[0]) for (subject, text), names in self._examples.items()]

"""Describes any checkpoint, quantized or not, by whoever: what `g4convert inspect` prints.

Two sources are held against each other: what the tensors are (names, dtypes, shapes) and what config.json
says about them. Names are resolved by the same rules as for a conversion; a quantized module is looked up
as the weight it was made from. Where a conversion refuses, a description goes on: unknown names are listed
as unknown, a foreign model type is shown as it is, and what does not fit becomes a remark.

Each entry of `ignore` and `targets` is tried on the module names of every engine, as these differ; an entry
that matches in none of them is dead, and usually a mistake.
"""

import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from g4convert.checkpoint.declared import Declared, DeclaredGroup, declared_in
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.entries import COMPRESSED_TENSORS, Entries
from g4convert.checkpoint.stored import PackedModule, StoredScheme, packed_modules, stored_scheme
from g4convert.engines import CONTRACTS, speller
from g4convert.engines.faults import Fault, judge
from g4convert.engines.groups import misfits_of_all
from g4convert.engines.matching import Matching
from g4convert.engines.stored import StoredCheckpoint
from g4convert.engines.weights import Weights
from g4convert.errors import InputError
from g4convert.gemma4 import Architecture, Role
from g4convert.gemma4.matching import Match, match_names
from g4convert.inspection.description import Description, EntryUse, Remark, RoleSize
from g4convert.names import Name
from g4convert.tensors import DType
from g4convert.verification.static.tensors import is_cache_scale

__all__ = ["Description", "describe"]

UNKNOWN: Final = "unknown"
DROPPABLE: Final = "droppable"
_FILES: Final = "files"
_LINEAR: Final = frozenset(("Linear", "Module"))
_EMBEDDING: Final = frozenset(("Embedding", "Module"))
_OTHER: Final = frozenset(("Module",))
_KNOWN_CLASSES: Final = _LINEAR | _EMBEDDING
_MOST_DIMENSIONS: Final = 3
_WORDS: Final[Mapping[Fault, str]] = {
    Fault.TARGETED: "plain, although targeted and not ignored",
    Fault.IGNORED: "quantized, although ignored",
    Fault.UNTARGETED: "quantized, although no target names it",
}
"""Ways in which a module may be built in another form than it is stored in."""
_SHAPE_FORMATS: Final = {DType.I64: "q", DType.I32: "i"}


@dataclass(frozen=True, slots=True)
class _Module:
    """A weight, plain or quantized, and what is known of it.

    Args:
        stored: its name; of a quantized one, what the weight was called before.
        spellings: name of its module in each engine, by engine.
        packed: its tensors, when it is quantized.
        canonical: its canonical name, where the model is known.
        role: a `Role`, or `unknown`, or `droppable`.
        shape: shape of the weight, as the config has it.
        linear: whether its module is a Linear.
    """

    stored: str
    spellings: Mapping[str, str]
    packed: PackedModule | None
    canonical: str | None = None
    role: str = UNKNOWN
    shape: tuple[int, ...] | None = None
    linear: bool = False

    @property
    def classes(self) -> frozenset[str]:
        """The class names that fit its module."""
        if self.linear or self.packed is not None:  # fused experts too: their scheme is declared for Linears
            return _LINEAR
        return _EMBEDDING if self.role in {Role.EMBEDDING, Role.PLE_EMBEDDING} else _OTHER

    def spelled(self, engine: str) -> str:
        """Its module's name in an engine."""
        return self.spellings[engine]


@dataclass(frozen=True, slots=True)
class _Lists:
    """`ignore` and the targets of a config as one engine, or the format's own library, reads them."""

    ignore: Entries
    groups: tuple[tuple[DeclaredGroup, Entries], ...]
    rules: Matching

    @classmethod
    def of(cls, declared: Declared, rules: Matching) -> "_Lists":
        def read(entries: Iterable[str]) -> Entries:
            return rules.entries(declared.method, entries)

        return cls(read(declared.ignore), tuple((group, read(group.targets)) for group in declared.groups), rules)


@dataclass(frozen=True, slots=True)
class _Matching:
    """Entries of a config, ready to be tried on modules under the names of several engines.

    Args:
        declared: the section.
        lists: as read with the names of the files, and by each engine.
        misbuilt: by engine, canonical modules that it would build in another form than stored; engines that are not
            asked, as the format is not theirs, are left out.
        misfits: by canonical module, how the config group that engines build it by differs from what is stored.
    """

    declared: Declared
    lists: Mapping[str, _Lists]
    misbuilt: Mapping[str, Mapping[str, Fault]]
    misfits: Mapping[str, str]

    @classmethod
    def of(cls, declared: Declared, checkpoint: Checkpoint, architecture: Architecture | None) -> "_Matching":
        rules = {_FILES: Matching()}
        misbuilt: dict[str, dict[str, Fault]] = {}
        others: dict[str, str] = {}
        if architecture:
            rules |= {engine: one.matching(architecture) for engine, one in CONTRACTS.items()}
            if declared.method == COMPRESSED_TENSORS:
                weights = StoredCheckpoint.of(checkpoint, architecture).weights
                misbuilt = _misbuilt(weights)
                others = {one.shard: one.text for one in misfits_of_all(weights)}
        return cls(declared, {engine: _Lists.of(declared, one) for engine, one in rules.items()}, misbuilt, others)

    @property
    def engines(self) -> tuple[str, ...]:
        """Whose names are tried."""
        return tuple(self.lists)

    def fault(self, module: _Module, engine: str) -> str:
        """Return the other form in which an engine would build a Linear; empty where it is built as stored."""
        if engine in self.misbuilt:
            found = self.misbuilt[engine].get(Name(module.canonical or "").owner)
            return _WORDS[found] if found else ""
        name, lists = module.spelled(engine), self.lists[engine]
        ignored = lists.ignore.hold(name, module.classes)
        targeted = any(entries.hold(name, module.classes) for _, entries in lists.groups)
        if module.packed is None:
            return _WORDS[Fault.TARGETED] if targeted and not ignored else ""
        if ignored:
            return _WORDS[Fault.IGNORED]
        return "" if targeted else _WORDS[Fault.UNTARGETED]

    def group_for(self, module: _Module) -> DeclaredGroup | None:
        """The group whose target names it, in any engine; a target of its name before one of its class."""
        for classes in (frozenset[str](), module.classes):
            for number, group in enumerate(self.declared.groups):
                spelled = ((lists.groups[number][1], module.spelled(engine)) for engine, lists in self.lists.items())
                if any(entries.hold(name, classes) for entries, name in spelled):
                    return group
        return None


def _misbuilt(weights: Weights) -> dict[str, dict[str, Fault]]:
    """Return the modules that an engine would build in another form than stored, with the fault, by engine."""
    found: dict[str, dict[str, Fault]] = {}
    for engine, contract in CONTRACTS.items():
        reading = contract.read(weights.architecture, weights.ignore, weights.targets or ())
        problems = judge(contract, weights.architecture, reading, weights.forms_read)
        found[engine] = {one.shard: one.fault for one in problems if one.fault in _WORDS}
    return found


class _Notes:
    """Gathers equal remarks about many modules into one with a count."""

    def __init__(self) -> None:
        self._examples: dict[tuple[str, str], list[str]] = {}

    def add(self, subject: str, text: str, name: str) -> None:
        self._examples.setdefault((subject, text), []).append(name)

    def remarks(self) -> list[Remark]:
        return [Remark(str(subject), text, len(names), names[0]) for (subject, text), names in self._examples.items()]


def describe(checkpoint: Checkpoint) -> Description:
    """Describes an opened checkpoint.

    Args:
        checkpoint: checkpoint of any model, in any format that safetensors files hold.
    """
    architecture, remarks = _architecture(checkpoint.config)
    model_type = str(checkpoint.config.get("model_type", UNKNOWN))
    modules, match = _modules(checkpoint, architecture)
    declared = declared_in(checkpoint.config)
    matching = _Matching.of(declared, checkpoint, architecture) if declared else None
    schemes = _schemes(checkpoint, modules, matching)
    remarks += _scheme_remarks(modules, schemes, matching)
    entries: tuple[EntryUse, ...] = ()
    if matching:
        remarks += _declared_remarks(modules, matching)
        entries = tuple(_entry_uses([*modules, *_implied(architecture, modules)], matching))
        remarks += [Remark(use.place, f"{use.entry} names no module") for use in entries if use.is_dead]
    return Description(
        path=str(checkpoint.path),
        family=architecture.family if architecture else model_type,
        model_type=model_type,
        dialects=match.dialects if match else (),
        declared=declared,
        roles=_role_sizes(checkpoint, modules, schemes),
        entries=entries,
        remarks=tuple(remarks),
        unknown=tuple(sorted(module.stored for module in modules if module.role == UNKNOWN)),
        missing=_missing(match) if match else (),
        weight_files={file.name: file.size for file in checkpoint.files},
        side_files=checkpoint.side_files,
        stray_files=checkpoint.stray_files,
    )


def _architecture(config: Mapping[str, Any]) -> tuple[Architecture | None, list[Remark]]:
    try:
        return Architecture.from_config(config), []
    except InputError as error:
        return None, [Remark("config.json", text) for text in (error.message, *error.offenders)]


def _modules(checkpoint: Checkpoint, architecture: Architecture | None) -> tuple[list[_Module], Match | None]:
    """Every weight, quantized ones first, under its canonical name where the model is known."""
    infos = checkpoint.infos
    packed = packed_modules(infos).values()
    owned = {info.name for module in packed for info in module.parts.values()}
    weights: list[tuple[str, PackedModule | None]] = [(module.weight_name, module) for module in packed]
    weights += [(name, None) for name in infos if name not in owned]
    if architecture is None:
        return [_Module(name, {_FILES: Name(name).owner}, of, linear=of is not None) for name, of in weights], None
    match = match_names({name for name, _ in weights}, architecture)
    canonical = {source: name for name, sources in match.sources.items() for source in sources}
    derived = dict.fromkeys(match.derived, DROPPABLE)
    spell = speller(architecture)
    modules = []
    for name, of in weights:
        known = canonical.get(name)
        names = spell(Name(known or name).owner)
        names[_FILES] = Name(name).owner
        other = DROPPABLE if is_cache_scale(name) else UNKNOWN
        role, shape, linear = derived.get(name, other), None, of is not None
        if known:
            role, shape, linear = _meaning(known, match)
        modules.append(_Module(name, names, of, known, role, shape, linear))
    return modules, match


def _meaning(name: str, match: Match) -> tuple[str, tuple[int, ...] | None, bool]:
    """Role, shape, and whether it is a Linear, of a canonical name."""
    if expected := match.schema.expected.get(name):
        return expected.role, expected.shape, expected.linear
    if fused := match.schema.fused.get(name) or match.schema.stacked.get(name):
        return Role.EXPERTS, fused.shape, False
    return DROPPABLE, match.schema.droppable[name].shape, False


def _implied(architecture: Architecture | None, modules: Sequence[_Module]) -> Iterator[_Module]:
    """The tied output head: a module without tensors of its own, and `ignore` must name it."""
    if architecture and not any(module.canonical == "lm_head.weight" for module in modules):
        names = speller(architecture)("lm_head")
        yield _Module("lm_head.weight", names, None, "lm_head.weight", Role.LM_HEAD, linear=True)


def _schemes(checkpoint: Checkpoint, modules: Iterable[_Module], matching: _Matching | None) -> dict[str, StoredScheme]:
    """Return the scheme of each quantized module, by stored name."""
    found = {}
    for module in modules:
        if module.packed is not None:
            group = matching.group_for(module) if matching else None
            shape = module.shape or _stored_shape(checkpoint, module.packed)
            found[module.stored] = stored_scheme(module.packed, shape, group.num_bits if group else None)
    return found


def _stored_shape(checkpoint: Checkpoint, packed: PackedModule) -> tuple[int, ...] | None:
    """Return the values of `weight_shape`, for a weight whose shape the config does not tell."""
    info = packed.parts.get("weight_shape")
    if info is None or info.dtype not in _SHAPE_FORMATS or not 0 < info.numel <= _MOST_DIMENSIONS:
        return None
    shape = struct.unpack(f"<{info.numel}{_SHAPE_FORMATS[info.dtype]}", checkpoint.read(info.name))
    if "weight_packed" not in packed.parts or min(shape) < 0:
        return None
    stored = packed.parts["weight_packed"].shape
    return (
        *stored[: max(0, len(stored) - len(shape))],
        *shape,
    )  # of fused experts, one expert's shape may be given


def _role_sizes(
    checkpoint: Checkpoint, modules: Iterable[_Module], schemes: Mapping[str, StoredScheme]
) -> tuple[RoleSize, ...]:
    """Sizes in the order of `Role`, what has none at the end."""
    sizes: dict[str, RoleSize] = {}
    for module in modules:
        if module.packed is None:
            info = checkpoint.tensors[module.stored].info
            one = RoleSize(module.role, 1, info.numel, info.nbytes, {info.dtype.value.lower(): 1})
        else:
            scheme, parts = schemes[module.stored], module.packed.parts.values()
            shape = module.shape or scheme.shape
            nbytes = sum(info.nbytes for info in parts)
            one = RoleSize(module.role, len(parts), prod(shape) if shape else 0, nbytes, {scheme.label: 1})
        sizes[module.role] = _sum(sizes[module.role], one) if module.role in sizes else one
    order = [*map(str, Role), DROPPABLE, UNKNOWN]
    return tuple(sizes[role] for role in order if role in sizes)


def _sum(a: RoleSize, b: RoleSize) -> RoleSize:
    schemes = Counter(a.schemes) + Counter(b.schemes)
    return RoleSize(a.role, a.tensors + b.tensors, a.params + b.params, a.nbytes + b.nbytes, schemes)


def _missing(match: Match) -> tuple[str, ...]:
    """Return the names that the architecture needs and no tensor has; fused experts stand for all of theirs."""
    fused = [of for name, of in match.schema.experts.items() if name in match.sources]
    covered = {(part.prefix, projection) for part in fused for projection in part.projections}
    return tuple(
        name
        for name, expected in match.schema.expected.items()
        if not expected.optional and name not in match.sources and _expert_part(name) not in covered
    )


def _expert_part(name: str) -> tuple[str, str]:
    """`...experts.7.gate_proj.weight` -> `...experts.`, `gate_proj`: the key of a fused tensor's share."""
    module = Name(name).owner
    return f"{module.owner.owner}.", module.last


def _scheme_remarks(
    modules: Sequence[_Module], schemes: Mapping[str, StoredScheme], matching: _Matching | None
) -> list[Remark]:
    """Schemes that do not hold together, or are not what the config declares."""
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


def _declared_remarks(modules: Iterable[_Module], matching: _Matching) -> list[Remark]:
    """Linears that an engine would build in another form than they are stored in."""
    notes = _Notes()
    for module in modules:
        wrong: defaultdict[str, list[str]] = defaultdict(list)
        for engine in matching.engines:
            if module.linear and matching.declared.groups and (text := matching.fault(module, engine)):
                wrong[text].append(engine)
        for text, engines in wrong.items():
            where = "" if len(engines) == len(matching.engines) else f", by the names of {', '.join(engines)}"
            notes.add(module.role, f"{text}{where}", module.stored)
    faults = [Remark("config.json", fault) for fault in matching.declared.faults]
    broken = [Remark("ignore", f"{entry} is no regular expression") for entry in matching.lists[_FILES].ignore.broken]
    return [*faults, *broken, *notes.remarks()]


def _entry_uses(modules: Sequence[_Module], matching: _Matching) -> Iterator[EntryUse]:
    """Every entry of `targets` and `ignore`, and how many modules it names in each engine."""
    declared = matching.declared
    count = _Counter.of(modules, matching)
    for group in declared.groups:
        yield from (EntryUse(f"targets of {group.name}", entry, count.targets(entry)) for entry in group.targets)
    yield from (EntryUse("ignore", entry, count.ignore(entry)) for entry in declared.ignore)


@dataclass(frozen=True, slots=True)
class _Counter:
    """Counts the modules that an entry names; a module with several tensors counts once.

    Args:
        matching: the lists.
        names: by engine, the names of all modules.
        ends: by engine, dotted ends of these names and how many have them; only where `ignore` is tried on them.
        classes: number of modules of each class.
    """

    matching: _Matching
    names: Mapping[str, frozenset[str]]
    ends: Mapping[str, Mapping[str, int]]
    classes: Mapping[str, int]

    @classmethod
    def of(cls, modules: Sequence[_Module], matching: _Matching) -> "_Counter":
        names = {engine: frozenset(module.spelled(engine) for module in modules) for engine in matching.lists}
        suffixed = [engine for engine, lists in matching.lists.items() if lists.rules.suffix]
        ends = {engine: Counter[str](end for name in names[engine] for end in Name(name).ends()) for engine in suffixed}
        once = {Name(module.stored).owner: module for module in modules}.values()
        return cls(matching, names, ends, Counter(name for module in once for name in module.classes))

    def targets(self, entry: str) -> Mapping[str, int] | None:
        """Count the modules that an entry of `targets` names, by engine; None for the name of an unknown class."""
        return self._count(entry, {})

    def ignore(self, entry: str) -> Mapping[str, int] | None:
        """Count the modules that an entry of `ignore` names, by engine; in some it also names what it is the end of."""
        return self._count(entry, self.ends)

    def _count(self, entry: str, ends: Mapping[str, Mapping[str, int]]) -> Mapping[str, int] | None:
        found = {}
        for engine, lists in self.matching.lists.items():
            one, names = lists.rules.entries(self.matching.declared.method, [entry]), self.names[engine]
            if one.classes:
                return dict.fromkeys(self.matching.engines, self.classes[entry]) if entry in _KNOWN_CLASSES else None
            fitting = sum(bool(matches(name)) for matches in one.patterns.values() for name in names)
            found[engine] = fitting + sum(
                ends[engine].get(plain, 0) if engine in ends else plain in names for plain in one.plain
            )
        return found

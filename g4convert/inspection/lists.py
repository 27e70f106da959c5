"""`ignore` and `targets` of a config, matched with the modules by the names of every engine, as these differ."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from g4convert.checkpoint.declared import Declared, DeclaredGroup
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.entries import COMPRESSED_TENSORS, Entries
from g4convert.engines import CONTRACTS
from g4convert.engines.faults import FaultKind, judge
from g4convert.engines.groups import misfits_of_all
from g4convert.engines.matching import Matching
from g4convert.engines.stored import StoredCheckpoint
from g4convert.engines.weights import Weights
from g4convert.gemma4 import Architecture
from g4convert.inspection.description import EntryUse
from g4convert.inspection.modules import FILES, KNOWN_CLASSES, WeightModule
from g4convert.names import Name

_WORDS: Final[Mapping[FaultKind, str]] = {
    FaultKind.TARGETED: "plain, although targeted and not ignored",
    FaultKind.IGNORED: "quantized, although ignored",
    FaultKind.UNTARGETED: "quantized, although no target names it",
}
"""Fault of a module that an engine builds in another form than the stored one -> its text."""


@dataclass(frozen=True, slots=True)
class EngineLists:
    """`ignore` and targets of a config, as one engine or the format's own library reads them."""

    ignore: Entries
    groups: tuple[tuple[DeclaredGroup, Entries], ...]
    rules: Matching

    @classmethod
    def of(cls, declared: Declared, rules: Matching) -> "EngineLists":
        """Read the lists of a quantization section by the rules of an engine."""

        def read(entries: Iterable[str]) -> Entries:
            return rules.entries(declared.method, entries)

        return cls(read(declared.ignore), tuple((group, read(group.targets)) for group in declared.groups), rules)


@dataclass(frozen=True, slots=True)
class Declaration:
    """Entries of a config, prepared to be matched with modules by the names of several engines.

    Args:
        declared: the quantization section.
        lists: `FILES` or engine -> the lists as it reads them.
        misbuilt: engine -> canonical modules that it would build in another form than stored, with the fault; empty for
            formats other than compressed-tensors and unknown models.
        misfits: canonical module -> difference between its config group and the stored scheme.
    """

    declared: Declared
    lists: Mapping[str, EngineLists]
    misbuilt: Mapping[str, Mapping[str, FaultKind]]
    misfits: Mapping[str, str]

    @classmethod
    def of(cls, declared: Declared, checkpoint: Checkpoint, architecture: Architecture | None) -> "Declaration":
        """Read a section by the rules of every engine, and compare it with the stored modules if the model is known."""
        rules = {FILES: Matching()}
        misbuilt: dict[str, dict[str, FaultKind]] = {}
        others: dict[str, str] = {}
        if architecture:
            rules |= {engine: one.matching(architecture) for engine, one in CONTRACTS.items()}
            if declared.method == COMPRESSED_TENSORS:
                weights = StoredCheckpoint.of(checkpoint, architecture).weights
                misbuilt = _misbuilt(weights)
                others = {one.shard: one.text for one in misfits_of_all(weights)}
        return cls(declared, {engine: EngineLists.of(declared, one) for engine, one in rules.items()}, misbuilt, others)

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines whose names are matched, and `FILES`."""
        return tuple(self.lists)

    def fault(self, module: WeightModule, engine: str) -> str:
        """Return the fault as text if an engine would build a Linear in another form than stored, otherwise empty."""
        if engine in self.misbuilt:
            found = self.misbuilt[engine].get(Name(module.canonical or "").owner)
            return _WORDS[found] if found else ""
        name, lists = module.spelled(engine), self.lists[engine]
        ignored = lists.ignore.hold(name, module.classes)
        targeted = any(entries.hold(name, module.classes) for _, entries in lists.groups)
        if module.packed is None:
            return _WORDS[FaultKind.TARGETED] if targeted and not ignored else ""
        if ignored:
            return _WORDS[FaultKind.IGNORED]
        return "" if targeted else _WORDS[FaultKind.UNTARGETED]

    def group_for(self, module: WeightModule) -> DeclaredGroup | None:
        """Return the group whose target names a module in any engine, by name before by class; None without one."""
        for classes in (frozenset[str](), module.classes):
            for number, group in enumerate(self.declared.groups):
                spelled = ((lists.groups[number][1], module.spelled(engine)) for engine, lists in self.lists.items())
                if any(entries.hold(name, classes) for entries, name in spelled):
                    return group
        return None


def _misbuilt(weights: Weights) -> dict[str, dict[str, FaultKind]]:
    """Return engine -> modules that it would build in another form than stored, with the fault."""
    found: dict[str, dict[str, FaultKind]] = {}
    for engine, contract in CONTRACTS.items():
        reading = contract.read(weights.architecture, weights.ignore, weights.targets or ())
        problems = judge(contract, weights.architecture, reading, weights.forms_read)
        found[engine] = {one.shard: one.fault for one in problems if one.fault in _WORDS}
    return found


def entry_uses(modules: Sequence[WeightModule], matching: Declaration) -> Iterator[EntryUse]:
    """Yield every entry of `targets` and `ignore` with the number of modules that it names in each engine."""
    declared = matching.declared
    count = _Counter.of(modules, matching)
    for group in declared.groups:
        yield from (EntryUse(f"targets of {group.name}", entry, count.targets(entry)) for entry in group.targets)
    yield from (EntryUse("ignore", entry, count.ignore(entry)) for entry in declared.ignore)


@dataclass(frozen=True, slots=True)
class _Counter:
    """Counter of the modules that an entry names; a module with several tensors counts once.

    Args:
        matching: the lists.
        names: engine -> names of all modules.
        ends: engine -> dotted ends of these names, with the number of names; only engines whose `ignore` matches ends.
        classes: class name -> number of modules.
    """

    matching: Declaration
    names: Mapping[str, frozenset[str]]
    ends: Mapping[str, Mapping[str, int]]
    classes: Mapping[str, int]

    @classmethod
    def of(cls, modules: Sequence[WeightModule], matching: Declaration) -> "_Counter":
        names = {engine: frozenset(module.spelled(engine) for module in modules) for engine in matching.lists}
        suffixed = [engine for engine, lists in matching.lists.items() if lists.rules.suffix]
        ends = {engine: Counter[str](end for name in names[engine] for end in Name(name).ends()) for engine in suffixed}
        once = {Name(module.stored).owner: module for module in modules}.values()
        return cls(matching, names, ends, Counter(name for module in once for name in module.classes))

    def targets(self, entry: str) -> Mapping[str, int] | None:
        """Return engine -> number of modules that an entry of `targets` names; None for an unknown class name."""
        return self._count(entry, {})

    def ignore(self, entry: str) -> Mapping[str, int] | None:
        """Return engine -> number of modules that an entry of `ignore` names, by dotted ends where the engine does."""
        return self._count(entry, self.ends)

    def _count(self, entry: str, ends: Mapping[str, Mapping[str, int]]) -> Mapping[str, int] | None:
        found = {}
        for engine, lists in self.matching.lists.items():
            one, names = lists.rules.entries(self.matching.declared.method, [entry]), self.names[engine]
            if one.classes:
                return dict.fromkeys(self.matching.engines, self.classes[entry]) if entry in KNOWN_CLASSES else None
            fitting = sum(bool(matches(name)) for matches in one.patterns.values() for name in names)
            found[engine] = fitting + sum(
                ends[engine].get(plain, 0) if engine in ends else plain in names for plain in one.plain
            )
        return found

"""Matching of `ignore` and `targets` entries with an engine's modules.

All engines match names and patterns as `checkpoint.entries` does. They differ in three points, which `Matching` holds:
other kinds of entry that they know, the entry that they take where several fit, and whether all shards of a fused
module must agree.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from g4convert.checkpoint.entries import COMPRESSED_TENSORS, Entries
from g4convert.engines.module import Module, ModuleKind, Renames, rename
from g4convert.engines.targets import Targets
from g4convert.names import Name

_EXPERT: Final = ("gate_proj", "up_proj", "down_proj")
_LINEAR: Final = "Linear"


class By(StrEnum):
    """Way in which a target names a module."""

    NAME = "the module's own name"
    SHARDS = "the names of all shards of a fused module"
    CLASS = "the name of its class"


@dataclass(frozen=True, slots=True)
class Matching:
    """Rules by which one engine matches entries, for one architecture.

    Args:
        fused: last part of a fused module's name -> last parts of its shards' names, which are looked up instead.
        renames: renames of plain entries that have a dot; patterns are never renamed.
        suffix: a plain entry of `ignore` also names every module whose name ends with it after a dot.
        fused_name: an entry of `ignore` that matches the fused module's own name ignores it, whatever the shards say.
        class_in_ignore: entries of `ignore` may also be class names.
        class_contains: a target matches a class whose name contains it, in any case, or fits it as a pattern;
            otherwise it must equal the class name.
        must_target: the engine stops at a Linear that is neither ignored nor targeted, and does not build it plain.
        head_by_name: the output head is packed only if a target names it, by the rule of `suffix`.
        order: ways in which a target names a module, in the order in which the engine tries them.
        by_alphabet: of several targets that match in one way, the engine takes whole names before patterns, each in
            alphabetical order; otherwise it takes the first in the config.
    """

    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renames: Renames = ()
    suffix: bool = False
    fused_name: bool = False
    class_in_ignore: bool = False
    class_contains: bool = False
    must_target: bool = False
    head_by_name: bool = False
    order: tuple[By, ...] = (By.NAME, By.CLASS)
    by_alphabet: bool = False

    def entries(self, method: str | None, entries: Iterable[str]) -> Entries:
        """Return a config's entries with whole names renamed as the engine renames them."""
        return Entries.of(method, entries, self.spelled)

    def spelled(self, name: str) -> str:
        """Return the engine's spelling of an entry that is a whole name."""
        return rename(name, self.renames)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Error of an engine at a module whose parts the entries treat differently, or that no entry names.

    Args:
        module: module that the engine was about to build.
        names: each looked-up name, and whether the entries pack it; all False where no target names any.
    """

    module: Module
    names: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Reading:
    """`ignore` and `targets` of a config, as one engine reads them for one architecture.

    Args:
        matching: the engine's rules.
        ignore: entries of `ignore`.
        targets: targets of all config groups.
        packed: cache of `packs`, by module name.
        ignored: cache of `ignores`, by module name.
        found: cache of targets, by looked-up name.
    """

    matching: Matching
    ignore: Entries
    targets: Targets
    packed: dict[str, bool | Disagreement] = field(default_factory=dict, compare=False, repr=False)
    ignored: dict[str, bool | Disagreement] = field(default_factory=dict, compare=False, repr=False)
    found: dict[str, str | None] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, matching: Matching, ignore: Iterable[str], targets: Iterable[str]) -> "Reading":
        """Read the entries of a config.

        Args:
            matching: the engine's rules.
            ignore: entries of `ignore`, as written in the config.
            targets: targets of all config groups, in the order of the config.
        """
        ignored = matching.entries(COMPRESSED_TENSORS, ignore)
        return cls(matching, ignored, Targets.of(targets, matching.spelled, by_alphabet=matching.by_alphabet))

    @property
    def broken(self) -> tuple[str, ...]:
        """Patterns that are not valid regular expressions."""
        return self.ignore.broken + self.targets.broken

    def packs(self, module: Module) -> bool | Disagreement:
        """Return whether the engine builds a module packed, or the `Disagreement` at which it stops."""
        if module.name not in self.packed:
            self.packed[module.name] = self._packs(module)
        return self.packed[module.name]

    def _packs(self, module: Module) -> bool | Disagreement:
        if not module.configured:
            return False
        ignored = self.ignores(module)
        if isinstance(ignored, Disagreement):
            return ignored
        targeted = {name: self._names_target(module, name) for name in self._separate(module)}
        if ignored or all(targeted.values()):
            return not ignored
        if any(targeted.values()):
            return Disagreement(module, targeted)
        if self.matching.must_target and module.kind in {ModuleKind.LINEAR, ModuleKind.EXPERTS}:
            return Disagreement(module, dict.fromkeys(self.lookups(module), False))
        return False

    def ignores(self, module: Module) -> bool | Disagreement:
        """Return whether `ignore` names a module, by its own name where the engine tries that, or by all `lookups`."""
        if module.name not in self.ignored:
            self.ignored[module.name] = self._ignores(module)
        return self.ignored[module.name]

    def _ignores(self, module: Module) -> bool | Disagreement:
        names = self.lookups(module)
        if len(names) > 1 and self._fused_name_ignored(module):
            return True
        ignored = {name: self.ignores_name(module, name) for name in names}
        if len(set(ignored.values())) == 1:
            return ignored[names[0]]
        return Disagreement(module, {name: not one for name, one in ignored.items()})

    def lookups(self, module: Module) -> tuple[str, ...]:
        """Return the names to match entries with: of a fused module's shards, of expert 0's projections, or its own."""
        if module.kind is ModuleKind.EXPERTS:
            return tuple(f"{module.name}.0.{part}" for part in _EXPERT)
        name = Name(module.name)
        parts = self.matching.fused.get(name.last)
        return tuple(f"{name.owner}.{part}" for part in parts) if parts else (module.name,)

    def lookup_of(self, module: Module, shard: str) -> str:
        """Return the name in a module's `lookups` that stands for a checkpoint module; the first where none does."""
        names = self.lookups(module)
        return next((name for name in names if Name(name).last == Name(shard).projection), names[0])

    def ignores_name(self, module: Module, name: str) -> bool:
        """Return whether `ignore` names a module by `name`, which is one of its `lookups`."""
        if self.ignore.name(name, suffix=self.matching.suffix):
            return True
        return self.matching.class_in_ignore and not self.ignore.plain.isdisjoint(module.classes)

    def targets_module(self, module: Module) -> bool:
        """Return whether targets name a module: by its name, by all of its shards, or by its class."""
        return all(self._names_target(module, name) for name in self._separate(module))

    def taken(self, module: Module) -> tuple[str | None, ...]:
        """Return the target of each part of a module that is looked up separately; None where no target names it."""
        return tuple(self._target(module, name) for name in self._separate(module))

    def target(self, module: Module, shard: str) -> str | None:
        """Return the target by which the engine builds a checkpoint module's place; None where no target names it."""
        return self._target(module, self.lookup_of(module, shard) if module.kind is ModuleKind.EXPERTS else module.name)

    def _separate(self, module: Module) -> tuple[str, ...]:
        """Return the names to look up in `targets` separately: expert projections, otherwise the module itself."""
        return self.lookups(module) if module.kind is ModuleKind.EXPERTS else (module.name,)

    def _names_target(self, module: Module, name: str) -> bool:
        return self._target(module, name) is not None

    def _target(self, module: Module, name: str) -> str | None:
        """Return the target that names a module by `name`, which is one of `_separate`; None without one."""
        if name not in self.found:
            self.found[name] = self._look_up(module, name)
        return self.found[name]

    def _look_up(self, module: Module, name: str) -> str | None:
        if module.kind is ModuleKind.HEAD and self.matching.head_by_name:
            return self.targets.named(name, suffix=True)
        for way in self.matching.order:
            match way:
                case By.NAME:
                    found = self.targets.named(name)
                case By.SHARDS:
                    found = self._by_shards(module)
                case By.CLASS:
                    found = self._by_class(module)
            if found is not None:
                return found
        return None

    def _by_shards(self, module: Module) -> str | None:
        names = self.lookups(module)
        if module.kind is not ModuleKind.LINEAR or len(names) == 1:
            return None
        found = [self.targets.named(name) for name in names]
        return found[0] if None not in found else None

    def _by_class(self, module: Module) -> str | None:
        if not self.matching.class_contains:
            return self.targets.of_class(module.classes)
        found = self.targets.within_class(module.classes)
        is_linear = module.kind is ModuleKind.EXPERTS and _LINEAR in self.targets.written
        return _LINEAR if found is None and is_linear else found

    def _fused_name_ignored(self, module: Module) -> bool:
        if module.kind is ModuleKind.EXPERTS:
            return False
        return module.name in self.ignore.plain or (self.matching.fused_name and self.ignore.name(module.name))

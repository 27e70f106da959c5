"""The modules of an engine, and the rules that make them from the checkpoint's modules.

    canonical module  --renames-->  engine's spelling  --first rule that fits-->  engine module, with its shards

The canonical modules are every Linear and embedding in `gemma4.expected_weights`, and `lm_head`, even if it is tied and
has no tensor.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from g4convert.engines.reason import Reason
from g4convert.gemma4 import TABLES, Architecture, Role, expected_weights
from g4convert.names import Name

Renames = tuple[tuple[str, str], ...]
"""Prefixes of tensor names and their replacements, applied one after the other, as in vLLM's WeightsMapper."""

_WEIGHT: Final = ".weight"
_NO_NOTE: Final = Reason()
_ALL: Final = r"\g<0>"
"""Template of the whole match."""
LM_HEAD: Final = "lm_head"


class ModuleKind(StrEnum):
    """Kind of an engine's module."""

    LINEAR = "linear"
    EXPERTS = "experts"
    """All experts of a layer in one module."""
    EMBEDDING = "embedding"
    HEAD = "head"
    """The output head; a tied one has no tensors of its own."""


class Accepts(StrEnum):
    """Forms of stored weights with which an engine's module works."""

    EITHER = "packed or plain"
    PLAIN = "plain"


class Cut(StrEnum):
    """The dimension along which tensor parallelism splits a weight [out_features, in_features]."""

    OUT = "out_features"
    IN = "in_features"
    WHOLE = "not split"


@dataclass(frozen=True, slots=True)
class Module:
    """A module that an engine builds and loads weights into.

    Args:
        name: name that `ignore` and `targets` are matched with; for experts, the part before `.0.gate_proj`.
        path: path to which tensors are loaded, without the parameter's name.
        kind: kind of the module.
        classes: class names by which an entry may name the module.
        shards: canonical checkpoint modules that fill it and that the architecture has, in the order of the
            checkpoint; empty for a tied head.
        cut: dimension along which tensor parallelism splits it.
        configured: True if the quantization config reaches it; otherwise it is built plain, whatever entries say.
        accepts: the stored forms that work.
        note: reason why no other form works, or a remark.
    """

    name: str
    path: str
    kind: ModuleKind
    classes: tuple[str, ...]
    shards: tuple[str, ...]
    cut: Cut
    configured: bool
    accepts: Accepts
    note: Reason


@dataclass(frozen=True, slots=True)
class ModuleRule:
    """A rule from checkpoint modules to an engine's module.

    Args:
        pattern: pattern that fits the whole module name, after the renames.
        classes: class names of the engine's module.
        name: template of the engine module's name, with the pattern's groups; None where the engine has no such module.
        path: template of the path to which its tensors are loaded; None for the name itself.
        cut: dimension along which tensor parallelism splits it.
        configured: True if the engine passes the quantization config to it.
        accepts: the stored forms that work.
        note: reason why no other form works, or a remark.
        kv_shared: restricts the rule to decoder layers that share keys and values (True) or do not (False).
        refused: True if the engine stops at tensors of a module that it lacks; otherwise it leaves them aside.
    """

    pattern: str
    classes: tuple[str, ...]
    name: str | None = _ALL
    path: str | None = None
    cut: Cut = Cut.WHOLE
    configured: bool = True
    accepts: Accepts = Accepts.EITHER
    note: Reason = _NO_NOTE
    kv_shared: bool | None = None
    refused: bool = False


def rename(name: str, renames: Renames) -> str:
    """Return a name with its prefix replaced by each rename that fits, in order."""
    for old, new in renames:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def renamed(module: str, renames: Renames) -> str:
    """Return a module's name after renames of its tensors: `lm_head.` renames `lm_head`, as it has `lm_head.weight`."""
    return Name(rename(f"{module}{_WEIGHT}", renames)).module


def build(
    architecture: Architecture, rules: Iterable[ModuleRule], names: Renames = (), paths: Renames = ()
) -> tuple[Module, ...]:
    """Return the modules of an engine, in the order of the checkpoint.

    Args:
        architecture: architecture of the model.
        rules: rules, of which the first that fits a checkpoint module applies; each module must fit a rule.
        names: renames from canonical names to the engine's, applied before the rules.
        paths: renames from the engine's names to the paths of its tensors, applied after the rules.

    Raises:
        LookupError: no rule fits a checkpoint module, so the engine's table is incomplete.
    """
    found: dict[str, Module] = {}
    for kind, shards, match, rule in _ruled(architecture, rules, names):
        if rule.name is None:
            continue
        name = _filled(rule.name, match)
        present = tuple(filter(None, shards))
        held = found[name].shards if name in found else ()
        path = renamed(_filled(rule.path, match) if rule.path else name, paths)
        found[name] = Module(
            name, path, kind, rule.classes, (*held, *present), rule.cut, rule.configured, rule.accepts, rule.note
        )
    return tuple(found.values())


def _filled(template: str, match: re.Match[str]) -> str:
    """Return a template with the parts of the match; `expand` would parse it again for each module."""
    return match[0] if template == _ALL else match.expand(template)


def unbuilt(architecture: Architecture, rules: Iterable[ModuleRule], names: Renames = ()) -> dict[str, bool]:
    """Return the canonical modules that the engine has no module for, each with True if it stops at their tensors."""
    return {shards[0]: rule.refused for _, shards, _, rule in _ruled(architecture, rules, names) if rule.name is None}


def _ruled(
    architecture: Architecture, rules: Iterable[ModuleRule], names: Renames
) -> Iterator[tuple[ModuleKind, tuple[str, ...], re.Match[str], ModuleRule]]:
    """Yield each checkpoint module (kind, canonical names) with the first rule that fits it, and the match.

    Raises:
        LookupError: no rule fits a module.
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    for kind, shards, shared in _checkpoint_modules(architecture):
        spelled = renamed(shards[0] or LM_HEAD, names)
        for pattern, rule in compiled:
            if rule.kv_shared in {None, shared} and (match := pattern.fullmatch(spelled)):
                yield kind, shards, match, rule
                break
        else:
            raise LookupError(f"no rule for {spelled}")


@lru_cache(maxsize=8)
def _checkpoint_modules(architecture: Architecture) -> tuple[tuple[ModuleKind, tuple[str, ...], bool], ...]:
    """Return each module's kind and canonical names, and True if its layer shares keys and values.

    All experts of a layer are one module. A tied head comes last, without a name.
    """
    layers = enumerate(architecture.text.layers)
    shared = tuple(f"{architecture.text_prefix}layers.{n}." for n, layer in layers if layer.kv_shared)
    experts: defaultdict[str, list[str]] = defaultdict(list)
    found: list[tuple[ModuleKind, tuple[str, ...], bool]] = []
    for name, expected in expected_weights(architecture).items():
        module = str(Name(name).module)
        if expected.role is Role.EXPERTS:
            experts[Name(module).experts].append(module)
        elif expected.role is Role.LM_HEAD:
            found.append((ModuleKind.HEAD, (module,), False))
        elif expected.linear or expected.role in TABLES:
            kind = ModuleKind.LINEAR if expected.linear else ModuleKind.EMBEDDING
            found.append((kind, (module,), module.startswith(shared)))
    found += ((ModuleKind.EXPERTS, tuple(modules), False) for modules in experts.values())
    if architecture.tied_embeddings:
        found.append((ModuleKind.HEAD, ("",), False))
    return tuple(found)

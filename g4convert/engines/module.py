"""The modules of an engine, and the rules that make them from the checkpoint's.

    canonical module  --renames-->  engine's spelling  --first rule that fits-->  module, with others as its shards

Canonical modules are those of `gemma4.expected_weights`: every Linear, the embeddings, and `lm_head` also where it
is tied and has no tensor.
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

__all__ = ["LM_HEAD", "Accepts", "Cut", "Kind", "Module", "Renames", "Rule", "build", "left_out", "rename", "renamed"]

Renames = tuple[tuple[str, str], ...]
"""Starts of tensor names and what replaces them, one after the other, as vLLM's WeightsMapper does."""

_WEIGHT: Final = ".weight"
_NO_NOTE: Final = Reason()
LM_HEAD: Final = "lm_head"


class Kind(StrEnum):
    """Kind of an engine's module."""

    LINEAR = "linear"
    EXPERTS = "experts"
    """All experts of a layer in one module."""
    EMBEDDING = "embedding"
    HEAD = "head"
    """The output head; a tied one has no tensors of its own."""


class Accepts(StrEnum):
    """Form in which a module's weights may be stored so that the engine works."""

    EITHER = "packed or plain"
    PLAIN = "plain"


class Cut(StrEnum):
    """The dimension along which tensor parallelism splits a weight [out_features, in_features]."""

    OUT = "out_features"
    IN = "in_features"
    WHOLE = "not split"


@dataclass(frozen=True, slots=True)
class Module:
    """A module that an engine builds and that weights are loaded into.

    Args:
        name: name that `ignore` and `targets` are tried on; for experts, the part before `.0.gate_proj`.
        path: path that the tensors are loaded to, without the parameter's name.
        kind: kind of the module.
        classes: names of its class that an entry may give.
        shards: canonical checkpoint modules that fill it, as far as the architecture has them, in the order of
            the checkpoint; empty for a tied head.
        cut: cut that tensor parallelism makes.
        configured: whether the quantization config reaches it; otherwise it is plain, whatever entries say.
        accepts: the forms that work.
        note: reason why only that form works, or a remark.
    """

    name: str
    path: str
    kind: Kind
    classes: tuple[str, ...]
    shards: tuple[str, ...]
    cut: Cut
    configured: bool
    accepts: Accepts
    note: Reason


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule from checkpoint modules to an engine's module.

    Args:
        pattern: pattern of the whole name, after the renames.
        classes: class names of the engine's module.
        name: name of the engine's module, with the pattern's groups; None where there is no such module.
        path: path that its tensors go to, in the same way; None for the name itself.
        cut: cut that tensor parallelism makes.
        configured: whether the quantization config is passed to it.
        accepts: the forms that work; a head that is not tied takes either.
        note: reason for the form, or a remark.
        kv_shared: holds in decoder layers that share keys and values only (True), in the others only (False).
        refused: True if tensors of a module that the engine lacks are an error; otherwise they are left aside.
    """

    pattern: str
    classes: tuple[str, ...]
    name: str | None = r"\g<0>"
    path: str | None = None
    cut: Cut = Cut.WHOLE
    configured: bool = True
    accepts: Accepts = Accepts.EITHER
    note: Reason = _NO_NOTE
    kv_shared: bool | None = None
    refused: bool = False


def rename(name: str, renames: Renames) -> str:
    """A name with its start replaced."""
    for old, new in renames:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def renamed(module: str, renames: Renames) -> str:
    """A module's name after the renames of tensors; `lm_head.` renames `lm_head`, for its tensors start with that."""
    return Name(rename(f"{module}{_WEIGHT}", renames)).module


def build(
    architecture: Architecture, rules: Iterable[Rule], names: Renames = (), paths: Renames = ()
) -> tuple[Module, ...]:
    """The modules of an engine, in the order of the checkpoint.

    Args:
        architecture: the model.
        rules: tried in their order; each checkpoint module must fit one.
        names: from canonical names to the engine's, before a rule is looked for.
        paths: from the engine's names to where tensors go, after it.

    Raises:
        LookupError: a checkpoint module that no rule knows; the tables are not complete.
    """
    found: dict[str, Module] = {}
    for kind, shards, match, rule in _ruled(architecture, rules, names):
        if rule.name is None:
            continue
        name = match.expand(rule.name)
        present = tuple(filter(None, shards))
        held = found[name].shards if name in found else ()
        path = renamed(match.expand(rule.path or rule.name), paths)
        accepts = Accepts.EITHER if kind is Kind.HEAD and present and rule.configured else rule.accepts
        found[name] = Module(
            name, path, kind, rule.classes, (*held, *present), rule.cut, rule.configured, accepts, rule.note
        )
    return tuple(found.values())


def left_out(architecture: Architecture, rules: Iterable[Rule], names: Renames = ()) -> dict[str, bool]:
    """Canonical modules that the engine has no module for, and whether their tensors are an error."""
    return {shards[0]: rule.refused for _, shards, _, rule in _ruled(architecture, rules, names) if rule.name is None}


def _ruled(
    architecture: Architecture, rules: Iterable[Rule], names: Renames
) -> Iterator[tuple[Kind, tuple[str, ...], re.Match[str], Rule]]:
    """Checkpoint modules with the first rule that fits each."""
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
def _checkpoint_modules(architecture: Architecture) -> tuple[tuple[Kind, tuple[str, ...], bool], ...]:
    """Kind, canonical names and whether keys and values of its layer are shared; the experts of a layer are one."""
    layers = enumerate(architecture.text.layers)
    shared = tuple(f"{architecture.text_prefix}layers.{n}." for n, layer in layers if layer.kv_shared)
    experts: defaultdict[str, list[str]] = defaultdict(list)
    found: list[tuple[Kind, tuple[str, ...], bool]] = []
    for name, expected in expected_weights(architecture).items():
        module = str(Name(name).module)
        if expected.role is Role.EXPERTS:
            experts[Name(module).experts].append(module)
        elif expected.role is Role.LM_HEAD:
            found.append((Kind.HEAD, (module,), False))
        elif expected.linear or expected.role in TABLES:
            kind = Kind.LINEAR if expected.linear else Kind.EMBEDDING
            found.append((kind, (module,), module.startswith(shared)))
    found += ((Kind.EXPERTS, tuple(modules), False) for modules in experts.values())
    if architecture.tied_embeddings:
        found.append((Kind.HEAD, ("",), False))
    return tuple(found)

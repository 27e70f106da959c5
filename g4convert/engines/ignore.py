"""The lists of a config: what `ignore` must say so that every engine packs what is packed, and the proof that it does.

    Weights: what is packed, what is not  -->  names and patterns  -->  each engine's modules, form by form

Stock vLLM and transformers refuse checkpoints whose `ignore` does not say exactly which modules are built packed.
Names differ: `model.language_model.layers.0...` on disk is `language_model.model.layers.0...` in vLLM, and SGLang's
towers have fused modules without the `.linear` of the file. So what is kept is named by regexes without an anchor,
one per part of the model, plus the exact names of the few Linears that stand alone. The result is proved before it
is returned: every module that an engine builds is found on the side it was written for, in each version that was
read.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from g4convert.engines import CONTRACTS, VERSIONS, speller
from g4convert.engines.matching import Disagreement
from g4convert.engines.module import LM_HEAD
from g4convert.engines.weights import Weights
from g4convert.errors import GateError
from g4convert.gemma4 import TABLES, Role
from g4convert.names import Name

__all__ = ["TARGETS", "listed", "prove"]

TARGETS: Final = ("Linear",)
"""The `targets` that go with a derived `ignore`."""

_PATTERNS: Final[Mapping[Role, tuple[str, ...]]] = {
    Role.ATTENTION: (r"re:.*\.self_attn\..*",),
    Role.KV_SHARED: (r"re:.*\.self_attn\..*",),
    Role.MLP: (r"re:.*\.mlp\..*",),
    Role.EXPERTS: (r"re:.*\.experts.*",),
    Role.ROUTER: (r"re:.*\.router.*",),
    Role.PLE_PROJECTION: (r"re:.*per_layer_.*",),
    Role.LM_HEAD: (r"re:.*lm_head.*",),
    Role.VISION_TOWER: (r"re:.*vision_tower.*",),
    Role.AUDIO_TOWER: (r"re:.*audio_tower.*",),
    Role.EMBEDDER: (r"re:.*vision_embedder.*", r"re:.*embed_vision.*", r"re:.*embed_audio.*"),
    Role.DRAFTER: (r"re:.*(pre|post)_projection", r"re:.*masked_embedding.*"),
}
_PATCH_EMBEDDER: Final = r"re:.*patch_embedder.*"
_ALSO_IN_TOWERS: Final = {Role.ATTENTION, Role.KV_SHARED, Role.MLP}
"""Roles whose module names the vision tower uses, too."""


def listed(weights: Weights) -> Weights:
    """A checkpoint with `ignore` and `targets` that say what is packed; without lists where nothing is.

    Args:
        weights: the checkpoint; lists it has are replaced.

    Raises:
        GateError: an entry would ignore a packed Linear, or a kept one would be built packed.
    """
    if not weights.packed:
        return replace(weights, ignore=(), targets=None)
    found = replace(weights, ignore=_ignore(weights), targets=TARGETS)
    prove(found)
    return found


def _ignore(weights: Weights) -> tuple[str, ...]:
    """Full names of what stands alone, then a regex for each part of the model that stays."""
    called = _spellings(weights)
    tower_is_packed = Role.VISION_TOWER in weights.packed_roles
    names = {LM_HEAD: None}
    patterns = {r"re:.*lm_head.*": None}
    for role, entries in _PATTERNS.items():
        if role is Role.EMBEDDER:
            exact = {spelled[place] for spelled in called[role] for place in ("files", "transformers")}
            names |= dict.fromkeys(sorted(exact))
        if role is Role.VISION_TOWER and tower_is_packed:
            patterns[_PATCH_EMBEDDER] = None
            continue
        used = [entry for entry in entries if any(_fits(entry, spelled) for spelled in called[role])]
        if tower_is_packed and role in _ALSO_IN_TOWERS:
            used = [entry.replace("re:", "re:(?!.*vision_tower)") for entry in used]
        patterns |= dict.fromkeys(used)
    return (*names, *patterns)


def _spellings(weights: Weights) -> Mapping[Role, list[dict[str, str]]]:
    """Return the names of every Linear that is not packed, in every engine, by role; for experts the names of one."""
    spell = speller(weights.architecture)
    called: defaultdict[Role, list[dict[str, str]]] = defaultdict(list)
    for module, role in weights.roles.items():
        kept = module not in weights.packed and role not in TABLES
        if kept and (role is not Role.EXPERTS or not called[role]):
            called[role].append(spell(module))
    return called


def _fits(entry: str, spelled: Mapping[str, str]) -> bool:
    pattern = re.compile(entry.removeprefix("re:"))
    return any(pattern.match(name) for name in spelled.values())


def prove(weights: Weights) -> None:
    """Show that every version of every engine builds packed what is packed, and nothing else.

    Args:
        weights: a checkpoint with its lists.

    Raises:
        GateError: an entry ignores a packed Linear, or a kept one would be built packed; names every kind of module.
    """
    wrong: dict[str, None] = {}
    for contract in VERSIONS:
        reading = contract.read(weights.architecture, weights.ignore, weights.targets or ())
        newest = contract is CONTRACTS[contract.engine]
        place = contract.engine if newest else f"{contract.engine} {contract.versions}"
        for module in contract.modules(weights.architecture):
            wanted = any(shard in weights.packed for shard in module.shards)
            built = reading.packs(module)
            if module.configured and built is not wanted:
                wrong[f"{Name(module.name).kind} ({place}): {_fault(built=built)}"] = None
    if wrong:
        raise GateError(
            f"ignore list: {len(wrong)} kinds of Linears would be built in the wrong form",
            offenders=list(wrong),
            hint="the recipe packs a set of roles that no short ignore list describes; pack whole roles",
        )


def _fault(*, built: bool | Disagreement) -> str:
    if isinstance(built, Disagreement):
        sides = (f"{name} {'packed' if packed else 'not'}" for name, packed in built.names.items())
        return f"one module in two forms: {', '.join(sides)}"
    return "kept, but not ignored" if built else "packed, but ignored"

"""Plan -> the `quantization_config` of config.json.

Engines decide from `targets` and `ignore`, matched against their own module names, which modules are built packed.
Names differ: `model.language_model.layers.0...` on disk is `language_model.model.layers.0...` in vLLM, and SGLang's
towers have fused modules without the `.linear` of the file. So what is kept is named by regexes without an anchor,
one per part of the model, plus the exact names of the few Linears that stand alone. The result is proved before it
is returned: every module that an engine builds (`engines`) is found on the side it was written for, in each version
that was read.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from g4convert.engines import CONTRACTS, VERSIONS, speller
from g4convert.engines.matching import Disagreement
from g4convert.errors import GateError
from g4convert.gemma4 import Role
from g4convert.planning.recipe import Recipe
from g4convert.planning.steps import Plan

__all__ = ["FORMAT_VERSION", "quantization_config"]

FORMAT_VERSION = "0.20.0"
"""The compressed-tensors release whose format is written."""

_PATTERNS: Mapping[Role, tuple[str, ...]] = {
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

_PATCH_EMBEDDER = r"re:.*patch_embedder.*"
_ALSO_IN_TOWERS = {Role.ATTENTION, Role.KV_SHARED, Role.MLP}
"""Roles whose module names the vision tower uses, too."""
_LM_HEAD = "lm_head"
_TARGETS = ("Linear",)


def quantization_config(plan: Plan) -> dict[str, Any]:
    """The `quantization_config` for a plan, in the form compressed-tensors 0.20 reads.

    Raises:
        GateError: an entry would ignore a packed Linear, or a kept one would be built packed.
    """
    ignore = _ignore(plan)
    _prove(plan, ignore)
    return {
        "config_groups": {
            "group_0": {
                "format": "pack-quantized",
                "input_activations": None,
                "output_activations": None,
                "targets": [*_TARGETS],
                "weights": _weights(plan.recipe),
            }
        },
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "version": FORMAT_VERSION,
    }


def _weights(recipe: Recipe) -> dict[str, Any]:
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": recipe.group_size,
        "num_bits": recipe.num_bits,
        "observer": "memoryless_minmax",
        "observer_kwargs": {},
        "strategy": "group" if recipe.group_size else "channel",
        "symmetric": True,
        "type": "int",
    }


def _kept_linears(plan: Plan) -> dict[str, Role]:
    """Module name and role of every Linear that is written but not packed, experts one by one."""
    source = plan.inventory.architecture
    gone = {step.weight.name for step in plan.quantized}
    gone_sources = {drop.source.name for drop in plan.dropped}
    kept: dict[str, Role] = {}
    for weight in plan.inventory.weights:
        if weight.linear and weight.name not in gone and weight.segment.source not in gone_sources:
            name = weight.name if plan.architecture is source else source.text_name(weight.name) or ""
            kept[name.removesuffix(".weight")] = weight.role
    return kept


def _ignore(plan: Plan) -> list[str]:
    """Full names of what stands alone, then a regex for each part of the model that stays."""
    spell = speller(plan.architecture)
    called: defaultdict[Role, list[dict[str, str]]] = defaultdict(list)
    for module, role in _kept_linears(plan).items():
        if role is not Role.EXPERTS or not called[role]:  # one of them says as much as all
            called[role].append(spell(module))
    tower_is_packed = any(step.weight.role is Role.VISION_TOWER for step in plan.quantized)
    names = {_LM_HEAD: None}
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
    return [*names, *patterns]


def _fits(entry: str, spelled: Mapping[str, str]) -> bool:
    pattern = re.compile(entry.removeprefix("re:"))
    return any(pattern.match(name) for name in spelled.values())


def _prove(plan: Plan, ignore: list[str]) -> None:
    """Every version of every engine builds packed what is packed, and nothing else."""
    packed = {step.packed.name.removesuffix(".weight_packed") for step in plan.quantized}
    wrong: dict[str, None] = {}
    for contract in VERSIONS:
        reading = contract.read(plan.architecture, ignore, _TARGETS)
        newest = contract is CONTRACTS[contract.engine]
        place = contract.engine if newest else f"{contract.engine} {contract.versions}"
        for module in contract.modules(plan.architecture):
            wanted = any(shard in packed for shard in module.shards)
            built = reading.packs(module)
            if module.configured and built is not wanted:
                wrong[f"{_without_numbers(module.name)} ({place}): {_fault(built=built)}"] = None
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


def _without_numbers(module: str) -> str:
    return re.sub(r"\b\d+\b", "*", module)

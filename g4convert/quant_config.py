"""Plan -> the `quantization_config` of config.json.

Engines decide from `targets` and `ignore`, matched against their own module names, which modules are built
packed. Names differ: `model.language_model.layers.0...` on disk is `language_model.model.layers.0...` in vLLM,
and SGLang's towers have fused modules without the `.linear` of the file. So what is kept is named by regexes
without an anchor, one per part of the model, plus the exact names of the few Linears that stand alone; the
result is proved against every spelling (`spellings`) before it is returned.

compressed-tensors matches a plain entry by equality and `re:` with `re.match`; 0.20, `utils/match.py`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from g4convert.errors import GateError
from g4convert.gemma4 import Architecture, Role
from g4convert.plan import Plan
from g4convert.recipe import Recipe

__all__ = ["FORMAT_VERSION", "is_ignored", "quantization_config", "spellings"]

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
_FUSED_TOWER = re.compile(r"(_tower\..*\.(?:q|k|v|gate|up)_proj)\.linear$")


def spellings(module: str, architecture: Architecture) -> dict[str, str]:
    """What a Linear is called in the files and, as a module, in each engine.

    transformers 5 builds the unified embedder's parts under `embed_vision` (its `conversion_mapping.py`). vLLM
    0.33 nests the decoder and the output head of a multimodal model and drops `model.` of the rest (`gemma4_mm.py`,
    `gemma4_unified.py`); a drafter's modules lie under `draft_model` (`gemma4_mtp.py`). SGLang 0.5 puts experts
    under `moe` (`gemma4_causal.py`) and fuses the towers' projections, whose names then lack `.linear`
    (`gemma4_vision.py`). Inside the audio tower it renames more; the tower's own name stays.
    """
    return {
        "files": module,
        "transformers": _in_transformers(module) if architecture.is_unified else module,
        "vllm": _in_vllm(module, architecture),
        "sglang": _in_sglang(module, architecture),
    }


def _in_transformers(module: str) -> str:
    """A part of a unified model."""
    return module.replace("model.vision_embedder.", "model.embed_vision.").replace(
        "model.embed_vision.embedding_projection", "model.embed_vision.multimodal_embedder.embedding_projection"
    )


def _in_vllm(module: str, architecture: Architecture) -> str:
    bare = module.removeprefix("model.")
    if architecture.is_assistant:
        return f"draft_model.{bare}"
    if not architecture.is_composite:
        return module
    if module.startswith(architecture.text_prefix):
        return f"language_model.model.{module.removeprefix(architecture.text_prefix)}"
    return f"language_model.{module}" if module == _LM_HEAD else bare


def _in_sglang(module: str, architecture: Architecture) -> str:
    if module == _LM_HEAD and architecture.is_composite and not architecture.is_unified:
        return f"model.{module}"
    return _FUSED_TOWER.sub(r"\1", module).replace(".experts.", ".moe.experts.")


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
                "targets": ["Linear"],
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


def is_ignored(module: str, ignore: Iterable[str]) -> bool:
    """Whether compressed-tensors takes `module` as ignored: equality, or `re:` from the start of the name."""
    return any(re.match(entry[3:], module) if entry.startswith("re:") else entry == module for entry in ignore)


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
    kept = _kept_linears(plan)
    tower_is_packed = any(step.weight.role is Role.VISION_TOWER for step in plan.quantized)
    names = {_LM_HEAD: None}
    patterns = {r"re:.*lm_head.*": None}
    for role, entries in _PATTERNS.items():
        called = [spellings(module, plan.architecture) for module, of in kept.items() if of is role]
        if role is Role.EMBEDDER:
            exact = sorted({spelled[place] for spelled in called for place in ("files", "transformers")})
            names |= dict.fromkeys(exact)
            patterns |= dict.fromkeys(entry for entry in entries if any(map(re.compile(entry[3:]).match, exact)))
        elif role is Role.VISION_TOWER and tower_is_packed:
            patterns[_PATCH_EMBEDDER] = None
        elif called and tower_is_packed and role in _ALSO_IN_TOWERS:
            patterns |= dict.fromkeys(entry.replace("re:", "re:(?!.*vision_tower)") for entry in entries)
        elif called:
            patterns |= dict.fromkeys(entries)
    return [*names, *patterns]


def _prove(plan: Plan, ignore: list[str]) -> None:
    """Every engine's name of every Linear falls on the side it was written for.

    No entry has a number in it, so Linears that differ in layer or expert only are looked at once.
    """
    modules = dict.fromkeys((step.packed.name.removesuffix(".weight_packed") for step in plan.quantized), False)
    modules |= dict.fromkeys([_LM_HEAD, *_kept_linears(plan)], True)  # a tied head is a module without a tensor
    wrong = []
    for module, should_ignore in dict.fromkeys((re.sub(r"\d+", "0", m), kept) for m, kept in modules.items()):
        for engine, name in spellings(module, plan.architecture).items():
            if is_ignored(name, ignore) != should_ignore:
                state = "kept, but not ignored" if should_ignore else "packed, but ignored"
                wrong.append(f"{name} ({engine}): {state}")
    if wrong:
        raise GateError(
            f"ignore list: {len(wrong)} Linears would be built in the wrong form",
            offenders=wrong,
            hint="the recipe packs a set of roles that no short ignore list describes; pack whole roles",
        )

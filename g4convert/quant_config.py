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
from g4convert.gemma4 import Role
from g4convert.plan import Plan
from g4convert.recipe import Recipe

__all__ = ["FORMAT_VERSION", "is_ignored", "quantization_config"]

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


def spellings(module: str, *, unified: bool) -> dict[str, str]:
    """What a Linear is called in the files and, as a module, in each engine.

    transformers 5 builds the unified embedder's parts under `embed_vision` (its `conversion_mapping.py`); vLLM
    0.33 drops `model.` of all but the decoder, which it nests (`gemma4_mm.py`, `gemma4_unified.py`); SGLang 0.5
    puts experts under `moe` and fuses tower projections, whose names then lack `.linear` (`gemma4_mm.py`).
    """
    transformers = module
    if unified:
        transformers = module.replace("model.vision_embedder.", "model.embed_vision.").replace(
            "model.embed_vision.embedding_projection",
            "model.embed_vision.multimodal_embedder.embedding_projection",
        )
    vllm = module.replace("model.language_model.", "language_model.model.")
    if vllm == module and not module.startswith("model.layers."):
        vllm = module.removeprefix("model.")
    sglang = module.replace(".linear", "").replace(".experts.", ".moe.experts.")
    return {"files": module, "transformers": transformers, "vllm": vllm, "sglang": sglang}


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
    names = {"lm_head": None}
    patterns = {r"re:.*lm_head.*": None}
    for role, entries in _PATTERNS.items():
        called = [spellings(module, unified=plan.architecture.is_unified) for module, of in kept.items() if of is role]
        if role is Role.EMBEDDER:
            exact = sorted({spelled[place] for spelled in called for place in ("files", "transformers")})
            names |= dict.fromkeys(exact)
            patterns |= dict.fromkeys(entry for entry in entries if any(map(re.compile(entry[3:]).match, exact)))
        elif role is Role.VISION_TOWER and tower_is_packed:
            patterns[_PATCH_EMBEDDER] = None
        elif called:
            patterns |= dict.fromkeys(entries)
    return [*names, *patterns]


def _prove(plan: Plan, ignore: list[str]) -> None:
    """Every engine's name of every Linear falls on the side it was written for.

    No entry has a number in it, so Linears that differ in layer or expert only are looked at once.
    """
    modules = dict.fromkeys((step.packed.name.removesuffix(".weight_packed") for step in plan.quantized), False)
    modules |= dict.fromkeys(_kept_linears(plan), True)
    wrong = []
    for module, should_ignore in dict.fromkeys((re.sub(r"\d+", "0", m), kept) for m, kept in modules.items()):
        for engine, name in spellings(module, unified=plan.architecture.is_unified).items():
            if is_ignored(name, ignore) != should_ignore:
                state = "kept, but not ignored" if should_ignore else "packed, but ignored"
                wrong.append(f"{name} ({engine}): {state}")
    if wrong:
        raise GateError(
            f"ignore list: {len(wrong)} Linears would be built in the wrong form",
            offenders=wrong,
            hint="the recipe packs a set of roles that no short ignore list describes; pack whole roles",
        )

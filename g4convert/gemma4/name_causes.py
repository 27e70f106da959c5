"""Causes of unknown names beside missing ones, where the names together prove the cause, with remedies.

a `_flat_param`                        FSDP's own parameters, of which a file does not say what they hold
`weight_g` and `weight_v`, or the like   a trainer computes each weight from others (weight norm, a parametrization)
a word before each missing name        the model was saved inside a wrapper that is not known
merged names for parts that are missing  an engine saved the model in its own form
other names in every layer             another program's names
"""

import re
from collections.abc import Collection, Sequence

from g4convert.gemma4.matching import Schema
from g4convert.names import Name

SEVERAL = 3
"""So many tensors, or layers, with something in common are no accident."""

_MERGED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w13_weight": ("experts.gate_up_proj",),
    "w2_weight": ("experts.down_proj",),
}
"""Tensors that engines merge, and the parts that a checkpoint has."""
_FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$")
_NORMED = re.compile(r"\.weight_[gv]$")
_PARAMETRIZED = re.compile(r"\.parametrizations\.weight\.")


def renaming_remedy(unknown: Sequence[str], missing: Collection[str], schema: Schema) -> str:
    """Return the remedy for other names in the place of missing ones; empty if they prove no cause."""
    return (
        _trainer_remedy(unknown)
        or _prefix_remedy(unknown, missing, schema)
        or _merged_remedy(unknown, missing)
        or _foreign_remedy(unknown, missing, schema)
    )


def _trainer_remedy(unknown: Sequence[str]) -> str:
    """Return the remedy for parameters in the form in which a trainer holds them, otherwise empty."""
    if any(map(_FLAT.search, unknown)):
        return (
            "FSDP's flat parameters, of which no file says what they hold: save the model in the training program with "
            "StateDictType.FULL_STATE_DICT"
        )
    if all(map(_NORMED.search, unknown)):
        return (
            "weights in two parts, as weight norm trains them: call torch.nn.utils.remove_weight_norm on each of these "
            "modules, then save"
        )
    if all(map(_PARAMETRIZED.search, unknown)):
        return (
            "weights that a parametrization computes: call torch.nn.utils.parametrize.remove_parametrizations(module, "
            "'weight') on each of these modules, then save"
        )
    return ""


def _prefix_remedy(unknown: Sequence[str], missing: Collection[str], schema: Schema) -> str:
    """Return the remedy if the unknown names are canonical ones behind one prefix, otherwise empty."""
    canonical, first = {*schema.names}, min(missing)
    for start in (name.removesuffix(first) for name in unknown if name.endswith(f".{first}")):
        plain = {name.removeprefix(start) for name in unknown if name.startswith(start)}
        if len(plain) == len(unknown) and {*missing} <= plain <= canonical:
            return f"save the tensors without the `{start}` that each of these names begins with"
    return ""


def _merged_remedy(unknown: Collection[str], missing: Collection[str]) -> str:
    """Return the remedy if all unknown tensors are merged ones of engines, and their parts alone are missing."""
    merged = {part for name in unknown for part in _MERGED if f".{part}" in name}
    parts = {part for one in merged for part in _MERGED[one]}
    if not all(any(f".{one}" in name for one in merged) for name in unknown):
        return ""
    if not all(
        any(name.endswith((part, f"{part}.weight", f"{part}.linear.weight")) for part in parts) for name in missing
    ):
        return ""
    return (
        f"{' and '.join(sorted(merged))}: merged as engines hold them, in an order that no header shows; take the "
        "checkpoint that was loaded into the engine, or save it with `save_pretrained`"
    )


def _foreign_remedy(unknown: Collection[str], missing: Collection[str], schema: Schema) -> str:
    """Return the remedy if other names stand in every layer for those that are missing there, otherwise empty."""
    layers = {number for name in schema.expected if (number := Name(name).decoder_layer) is not None}
    lacking = {number for name in missing if (number := Name(name).decoder_layer) is not None}
    strange = {number for name in unknown for number in Name(name).unnumbered()[1][:1]}
    if len(layers) < SEVERAL or lacking != layers or len(strange) < len(layers):
        return ""
    return "names of another program: export the model in Hugging Face's format with it, and convert that"

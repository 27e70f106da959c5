"""Checks of an output's tensors: each is stored exactly once, in an allowed form.

With a source, each of its tensors must be packed, kept with its dtype and shape, or left out for a known reason.
Without a source, the output must have exactly the tensors that its config implies.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from g4convert.checkpoint.contents import Contents, Form
from g4convert.checkpoint.declared import DeclaredGroup
from g4convert.checkpoint.files import part
from g4convert.checkpoint.stored import PackedModule
from g4convert.engines import CONTRACTS
from g4convert.engines.contract import Accepts
from g4convert.gemma4 import Architecture, ExtraKind, Inventory, Role, Weight, droppable
from g4convert.names import Name
from g4convert.report import Detail, Finding, Severity
from g4convert.tensors import TensorInfo

_PACKABLE: Final = {Role.ATTENTION, Role.MLP, Role.EXPERTS, Role.PLE_PROJECTION, Role.KV_SHARED}
_ELSEWHERE: Final = {Role.EMBEDDING, Role.PLE_EMBEDDING, Role.LM_HEAD}
"""Roles that g4convert keeps and that some engines read packed."""
_MAX_LISTED: Final = 4  # most names in one finding
_AGAIN: Final = "quantize the source again: the file was changed, or its writer lost it"
_FUSED_ATTENTION: Final = ("q_proj", "k_proj", "v_proj")


def accounted(contents: Contents, source: Inventory | None) -> Iterator[Finding]:
    """Yield findings on tensors that are lost, stored twice, misnamed or unknown.

    Args:
        contents: tensors of the output.
        source: tensors of the source; None to expect the tensors that the config implies.
    """
    expected, plain_head = _expected_names(contents, source), _plain_head(contents)
    for name, origin in expected.items():
        if name == plain_head:
            found, remedy = (
                "stored as its tied head alone, which only transformers reads",
                f"store it as {name}, or quantize the source again",
            )
            yield Finding("static.tensors", Severity.FAIL, name, found, origin, remedy, Detail.HEAD_ALONE)
        elif name not in contents.stored and Name(name).module not in contents.torn:
            yield Finding("static.tensors", Severity.FAIL, name, "lost", origin, _AGAIN)
    for name, sources in contents.twice.items():
        found = f"stored twice: {' and '.join(sources)}"
        remedy = "delete one; programs differ in which they read"
        yield Finding("static.duplicate", Severity.FAIL, name, found, "once", remedy)
    for name, canonical in contents.renamed.items():
        remedy = "quantize the source, under any of these names; or store the tensors under the expected ones"
        yield Finding("static.names", Severity.WARN, name, "a name that not every loader knows", canonical, remedy)
    for name in contents.unknown:
        if is_cache_scale(name):
            continue
        if _is_value_of_k_eq_v(name, contents.architecture):
            expected_text = "none: this layer's values are its keys, engines refuse the tensor"
            yield Finding("static.k_eq_v", Severity.FAIL, name, "a v_proj", expected_text, "delete it")
        else:
            yield Finding("static.unknown", Severity.FAIL, name, "fits no name of this model", "no such tensor")
    for name in _weights_of_norms(contents):
        found, remedy = "the weight of a norm that has none", "delete it if it is all ones: the model is whole without"
        yield Finding("static.unknown", Severity.FAIL, name, found, "no such tensor", remedy)


def _plain_head(contents: Contents) -> str | None:
    """Return the embedding's name if its tied head is stored in its place, which transformers 5 takes; else None."""
    table = f"{contents.architecture.text_prefix}embed_tokens.weight"
    heads = {contents.renamed.get(name, name) for name in contents.spare}
    return table if "lm_head.weight" in heads and table not in contents.stored else None


def _weights_of_norms(contents: Contents) -> Iterator[str]:
    """Yield the weights of norms that have none: a conversion drops ones, but an engine may stop at them."""
    droppable_names = droppable(contents.architecture) if contents.spare else {}
    for name in contents.spare:
        extra = droppable_names.get(contents.renamed.get(name, name))
        if extra is not None and extra.kind is ExtraKind.ONES:
            yield name


def _expected_names(contents: Contents, source: Inventory | None) -> dict[str, str]:
    """Return the name of every required tensor, with the reason why it is required."""
    if source is None:
        needed = {
            name: "the config implies it" for name, expected in contents.expected.items() if not expected.optional
        }
    else:
        needed = {name: "as in the source" for name, _ in _source_weights(source, contents)}
    shared = [name for name, expected in contents.expected.items() if expected.role is Role.KV_SHARED]
    layers_with_any = {Name(name).layer for name in shared if name in contents.stored}
    for name in shared:
        if Name(name).layer not in layers_with_any:
            needed.pop(name, None)  # a layer may lack all of these, but not some
        elif source is None:
            needed[name] = "the layer's other keys and values are there"
    return needed


def _source_weights(source: Inventory, contents: Contents) -> Iterator[tuple[str, Weight]]:
    """Yield the source's weights by their names in the output."""
    for weight in source.weights:
        name = source.architecture.name_in(contents.architecture, weight.name)
        if name is not None:
            yield name, weight


def _is_value_of_k_eq_v(name: str, architecture: Architecture) -> bool:
    path = architecture.decoder_path(name)
    return path is not None and architecture.reads_values_from_keys(path.owner)


def dropped_tensors(contents: Contents, source: Inventory) -> Iterator[Finding]:
    """Yield one finding for each valid reason why tensors of the source are not in the output."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for weight in source.weights:
        name = source.architecture.name_in(contents.architecture, weight.name)
        if name is None:
            reasons["not part of a text-only checkpoint"].append(weight.name)
        elif weight.role is Role.KV_SHARED and name not in contents.stored:
            reasons["this layer reads the keys and values of an earlier one"].append(weight.name)
    for extra in source.extras:
        if extra.source not in contents.spare:
            reasons[extra.reason].append(extra.source)
    for reason, names in reasons.items():
        yield Finding("static.dropped", Severity.INFO, f"{len(names)} tensors", f"left out, such as {names[0]}", reason)


def kept_as_they_were(contents: Contents, source: Inventory | None) -> Iterator[Finding]:
    """Yield findings on unpacked tensors whose shape is not the model's or whose dtype is not the source's."""
    weights = dict(_source_weights(source, contents)) if source else {}
    fused_of = {one: name for name, fused in contents.fused.items() for one in fused.names}
    for name, expected in contents.expected.items():
        form = contents.plain(name)
        if form is None:
            continue
        fused = fused_of.get(name) if form.name != name else None
        shape = contents.fused[fused].shape if fused else expected.shape
        subject = fused or name
        if form.shape != shape:
            yield Finding("static.shape", Severity.FAIL, subject, f"{[*form.shape]}", f"{[*shape]}", _AGAIN)
        elif (weight := weights.get(name)) and form.dtype is not weight.dtype:
            wanted = f"{weight.dtype}, as in the source"
            yield Finding("static.dtype", Severity.FAIL, subject, form.dtype.value, wanted, _AGAIN)
        elif weight is None and not (form.dtype.is_weight or expected.integer):
            yield Finding("static.dtype", Severity.FAIL, subject, form.dtype.value, "BF16, F16 or F32", _AGAIN)


def built_plain(contents: Contents, recipe: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings on packed modules that engines build unpacked, or whose packing costs quality.

    Args:
        contents: tensors of the output.
        recipe: the recipe in the output's record; a table that the recipe packs is noted, not warned of.
    """
    chosen = _packed_by(recipe)
    readable = _readers(contents.architecture)
    for name, module in contents.packed.items():
        role = contents.expected[name].role
        if role is Role.VISION_TOWER and Name(name).layer is not None:
            found = "packed; image quality and SGLang are untested ground"
            yield Finding("static.kept", Severity.WARN, module.module, found, f"the {role} kept")
        elif role in _ELSEWHERE and (readers := readable.get(Name(name).module)):
            if len(readers) < len(CONTRACTS):
                found = f"packed: {' and '.join(readers)} reads it, the others do not"
                severity = Severity.INFO if role.value in chosen else Severity.WARN
                yield Finding("static.kept", severity, module.module, found, f"the {role} kept")
        elif role not in _PACKABLE:
            remedy = f"quantize again with the {role} in `ignore`"
            yield Finding("static.kept", Severity.FAIL, module.module, "packed", f"the {role} kept", remedy)
    for name, form in contents.spare.items():
        if isinstance(form, PackedModule):
            found = "packed, and no model reads it: the head is the embedding" if "lm_head" in name else "packed"
            yield Finding("static.kept", Severity.FAIL, form.module, found, "no such tensor", "delete it")


def _packed_by(recipe: Mapping[str, Any]) -> set[str]:
    """Return the roles that a recipe packs by `bits` or by its rules."""
    rules = recipe.get("rules")
    named = [rule.get("role") for rule in rules if isinstance(rule, dict)] if isinstance(rules, list) else []
    return {*part(recipe, "bits"), *(role for role in named if isinstance(role, str))}


def _readers(architecture: Architecture) -> dict[str, list[str]]:
    """Return the labels of the engines that accept a module packed or plain, by name of the module."""
    readers: defaultdict[str, list[str]] = defaultdict(list)
    for contract in CONTRACTS.values():
        for module in contract.modules(architecture):
            if module.accepts is Accepts.EITHER:
                for shard in module.shards:
                    readers[shard].append(contract.label)
    return readers


def projections_agree(contents: Contents, required: Collection[str]) -> Iterator[Finding]:
    """Yield findings on projections that engines fuse into one matrix but that are stored in different forms.

    In KV-shared layers only SGLang builds keys and values; the other engines skip these projections.
    """
    remedy = "engines hold them as one matrix: pack all of them or none"
    for owner, names in _fused_groups(contents).items():
        stored = [name for name in names if name in contents.stored]
        found = ((name, _forms_of(contents.stored[name], contents.expected[name].shape[-1])) for name in stored)
        forms = {name: possible for name, possible in found if possible}
        common = Counter(form for possible in forms.values() for form in possible).most_common(1)
        odd = [f"{_last(name)} {possible[0]}" for name, possible in forms.items() if common[0][0] not in possible]
        if odd:
            shared = any(contents.expected[name].role is Role.KV_SHARED for name in forms)
            code = "static.kv_shared" if shared else "static.fused"
            severity = Severity.WARN if shared and "sglang" not in required else Severity.FAIL
            text = ", ".join(odd[:_MAX_LISTED]) + (
                f" and {len(odd) - _MAX_LISTED} more" if len(odd) > _MAX_LISTED else ""
            )
            yield Finding(code, severity, owner, text, f"{common[0][0]}, as the others", remedy)


def _fused_groups(contents: Contents) -> dict[str, list[str]]:
    """Return the weights that engines fuse into one matrix, by the module that owns them."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name, expected in contents.expected.items():
        if not expected.linear:
            continue
        module = Name(name).module
        owner, part = module.owner, module.last
        if expected.role is Role.EXPERTS:
            groups[module.experts].append(name)
        elif (expected.role in {Role.ATTENTION, Role.KV_SHARED} and part in _FUSED_ATTENTION) or (
            expected.role is Role.MLP and part != "down_proj"
        ):
            groups[owner].append(name)
    return groups


def _last(name: str) -> str:
    """Return the last part of the module's name: `q_proj`; for an expert `3.gate_proj`."""
    module = Name(name).module
    return module.last if module.expert is None else f"{module.expert}.{module.last}"


def _forms_of(form: Form, k: int) -> tuple[str, ...]:
    """Describe the form of a stored weight of k columns; none if a packed weight's shapes do not show its form.

    A scale [n, 1] has two: it may be one of each row, or of a group of all k.
    """
    if isinstance(form, TensorInfo):
        return ("plain",)
    words, scale = (form.parts.get(part) for part in ("weight_packed", "weight_scale"))
    if not (words and scale and words.shape and scale.shape and words.shape[:-1] == scale.shape[:-1]):
        return ()
    groups = scale.shape[-1]
    if not groups:
        return ()
    sizes = (*["one scale per row"] * (groups == 1), f"groups of {k / groups:g}")
    return tuple(f"packed, int{words.shape[-1] * 32 / k:g}, {size}" for size in sizes)


_CACHE_SCALES: Final = (".self_attn.k_scale", ".self_attn.v_scale", ".self_attn.q_scale")


def is_cache_scale(name: str) -> bool:
    """Return True if a tensor is a scale of a quantized key and value cache."""
    return name.endswith(_CACHE_SCALES)


def stray_scales(contents: Contents, groups: Mapping[str, DeclaredGroup]) -> Iterator[Finding]:
    """Yield findings on scales that the config does not provide for: vLLM has no parameter for them."""
    for name, module in contents.packed.items():
        group = groups.get(Name(name).module)
        strays = _OF_OTHERS if group is not None and group.has_activations else _OF_OTHERS | _OF_ACTIVATIONS
        for kind, info in module.parts.items():
            if kind in strays:
                found, remedy = f"{kind}: a scale that the config has no use for", "delete it"
                yield Finding("static.unknown", Severity.FAIL, info.name, found, "no such tensor", remedy)


_OF_OTHERS: Final = frozenset({"weight_global_scale", "input_global_scale"})
_OF_ACTIVATIONS: Final = frozenset({"input_scale", "input_zero_point", "output_scale"})


def stray_values(contents: Contents) -> Iterator[Finding]:
    """Yield findings on packed modules that have other parts but no `weight_packed`."""
    for module, parts in contents.torn.items():
        found = f"no weight_packed, only {', '.join(Name(part).last for part in parts)}"
        expected = "weight_packed, weight_scale and weight_shape"
        yield Finding("static.packed", Severity.FAIL, module, found, expected, detail=Detail.LOST)

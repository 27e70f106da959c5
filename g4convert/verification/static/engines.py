"""Comparison of what each engine would build from `targets` and `ignore` with what is stored.

`engines` knows the modules and the rules of transformers, vLLM and SGLang. A module that an engine never builds
packed (routers, unified embedders) is no disagreement there. Projections that vLLM and SGLang fuse must agree in
name, too: of a layer without `v_proj` the name of one is looked up all the same.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Final

from g4convert.checkpoint.contents import Contents, Form, module_of
from g4convert.checkpoint.declared import Declared, Entries
from g4convert.checkpoint.stored import PackedModule
from g4convert.engines import CONTRACTS
from g4convert.engines.faults import Fault, Stored, judge
from g4convert.engines.matching import Disagreement, Reading
from g4convert.engines.module import LM_HEAD, Kind, Module
from g4convert.report import Finding, Severity

__all__ = ["ENGINES", "NO_PATTERN", "dead_entries", "stored_forms", "wrong_forms"]

ENGINES: Final = tuple(CONTRACTS)
NO_PATTERN: Final = "no regular expression"

_FIX: Final = "`g4convert check DIR --fix` corrects it"
_BY_NAME: Final = {Fault.IGNORED, Fault.UNTARGETED, Fault.TARGETED, Fault.UNNAMED}
_STACK: Final = 3  # dimensions of experts in one tensor
_NONE: Final[frozenset[str]] = frozenset()
_ELSEWHERE: Final = (
    "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear",
    "model.vision_tower.patch_embedder.input_proj",
    "model.audio_tower.layers.0.self_attn.q_proj.linear",
    "model.embed_vision.embedding_projection",
    "model.embed_vision.multimodal_embedder.embedding_projection",
    "model.embed_audio.embedding_projection",
    "model.vision_embedder.patch_dense",
    "model.embed_vision.patch_dense",
    "model.language_model.embed_tokens_per_layer",
    "model.language_model.per_layer_model_projection",
    "model.language_model.layers.0.per_layer_input_gate",
    "model.language_model.layers.0.router.proj",
    "model.language_model.layers.0.experts.0.up_proj",
    "masked_embedding.centroids",
    "pre_projection",
    LM_HEAD,
)
"""A module of each part that only some Gemma 4 have: lists are written for all of them at once."""


def stored_forms(contents: Contents) -> dict[str, Stored]:
    """Return the form of each canonical module as stored, without experts packed in one tensor, which no engine reads."""
    forms = {module_of(name): _form(form) for name, form in contents.stored.items()}
    return {module: form for module, form in forms.items() if form is not None}


def _form(form: Form) -> Stored | None:
    if isinstance(form, PackedModule):
        return None if form.fused else Stored.PACKED
    return Stored.STACKED if len(form.shape) == _STACK else Stored.PLAIN


def _readings(contents: Contents, declared: Declared) -> dict[str, Reading]:
    targets = [entry for group in declared.groups for entry in group.targets]
    return {engine: one.read(contents.architecture, declared.ignore, targets) for engine, one in CONTRACTS.items()}


def wrong_forms(contents: Contents, declared: Declared, required: Collection[str]) -> Iterator[Finding]:
    """Modules an engine would build in another form than they are stored in.

    Args:
        contents: of the output.
        declared: what its config says.
        required: engines that must load it: a disagreement with one of them fails, with another one warns.
    """
    readings = _readings(contents, declared)
    for entry in dict.fromkeys(entry for reading in readings.values() for entry in reading.broken):
        yield Finding("static.ignore", Severity.FAIL, entry, NO_PATTERN, "one that Python's re reads", _FIX)
    stored = stored_forms(contents)
    wrong: defaultdict[tuple[str, Fault], list[str]] = defaultdict(list)
    for engine, contract in CONTRACTS.items():
        for problem in judge(contract, contents.architecture, readings[engine], stored):
            named = problem.fault is not Fault.UNNAMED or stored.get(problem.shard) is not Stored.PACKED
            if problem.fault in _BY_NAME and named:
                wrong[problem.shard, problem.fault].append(engine)
    for (shard, fault), engines in wrong.items():
        yield _wrong(shard, fault, engines, required)
    for engine, contract in CONTRACTS.items():
        for module in contract.modules(contents.architecture):
            yield from _names_that_disagree(readings[engine], module, stored, engine, required)


def _wrong(module: str, fault: Fault, engines: list[str], required: Collection[str]) -> Finding:
    everywhere = len(engines) == len(ENGINES)
    found = fault.value if everywhere else f"{fault}, by the names of {' and '.join(engines)}"
    severity = Severity.WARN if set(engines).isdisjoint(required) else Severity.FAIL
    code = "static.lm_head" if module == LM_HEAD else "static.ignore"
    expected = "an entry of `ignore` that names it"
    remedy = "name it in `ignore` as every engine spells it: `g4convert check DIR --fix` writes such a list"
    if fault is Fault.IGNORED:
        expected, remedy = "no entry of `ignore` that names it", f"take that entry out of `ignore`; {_FIX}"
    elif fault is Fault.UNTARGETED:
        expected, remedy = "a target that names it", f"add `Linear` to `targets`; {_FIX}"
    return Finding(code, severity, module, found, expected, remedy)


def _names_that_disagree(
    reading: Reading, module: Module, stored: Mapping[str, Stored], engine: str, required: Collection[str]
) -> Iterator[Finding]:
    """Parts that an engine would build in two forms, for the sake of a name without a tensor."""
    built = reading.packs(module)
    present = [shard for shard in module.shards if shard in stored]
    if not isinstance(built, Disagreement) or not present:
        return
    names = {reading.lookup_of(module, shard) for shard in present}
    first = reading.lookup_of(module, present[0])
    odd = [
        name.rpartition(".")[2] for name, one in built.names.items() if name not in names and one != built.names[first]
    ]
    if odd:
        owner, _, part = present[0].rpartition(".")
        state = "packed" if built.names[first] else "ignored"
        found = f"{', '.join(odd)} not {state} as {part} is, by the names of {engine}"
        remedy = f"a pattern for the whole layer, or the name of its {odd[0]}, too"
        severity = Severity.FAIL if engine in required else Severity.WARN
        yield Finding("static.fused_names", severity, owner, found, "one form for q, k and v", remedy)


def dead_entries(contents: Contents, declared: Declared) -> Iterator[Finding]:
    """Entries that name no module in any engine."""
    modules = {engine: one.modules(contents.architecture) for engine, one in CONTRACTS.items()}
    readings = _readings(contents, declared)
    spelled = {
        engine: {name for module in of for name in (module.name, *readings[engine].lookups(module), *_experts(module))}
        for engine, of in modules.items()
    }
    classes = {name for of in modules.values() for module in of for name in module.classes}
    every = {name for found in spelled.values() for name in found} | {module_of(name) for name in contents.expected}
    ends = cache(lambda: {end for name in spelled["sglang"] for end in _ends(name)})
    owners = cache(lambda: {owner for name in every for owner in _owners(name)})
    for place, entry in _entries(declared):
        one = Entries.of(declared.method, [entry])
        if one.broken or entry in classes or entry in every:
            continue
        if any(matches(name) for matches in one.patterns.values() for name in every) or (one.exact and entry in ends()):
            continue
        remedy = "whole names must be complete, patterns start at the beginning: `re:.*name.*`"
        severity, found = Severity.WARN, "names no module"
        if any(one.hold(name, name, _NONE) for name in _ELSEWHERE):
            severity, found = Severity.INFO, "names a module that other Gemma 4 have"
        elif entry in owners():
            found = "names a part of the model; only its modules' own names count"
        yield Finding("static.dead_entry", severity, f"{place}: {entry}", found, "a module of this model", remedy)


def _experts(module: Module) -> Iterator[str]:
    """The names that single experts have; only those of the first are looked up."""
    if module.kind is Kind.EXPERTS:
        yield from (f"{module.name}.{'.'.join(shard.split('.')[-2:])}" for shard in module.shards)


def _ends(name: str) -> Iterator[str]:
    """`a.b.c`, `b.c`, `c`."""
    while name:
        yield name
        name = name.partition(".")[2]


def _entries(declared: Declared) -> Iterable[tuple[str, str]]:
    yield from (("ignore", entry) for entry in declared.ignore)
    yield from ((f"targets of {group.name}", entry) for group in declared.groups for entry in group.targets)


def _owners(name: str) -> Iterator[str]:
    """`a.b` and `a`, of `a.b.c`."""
    while name := name.rpartition(".")[0]:
        yield name

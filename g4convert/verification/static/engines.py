"""Comparison of what each engine would build from `targets` and `ignore` with what is stored.

`g4convert.engines` has the modules and rules of transformers, vLLM and SGLang. A module that an engine never builds
packed (routers, unified embedders) is not compared for that engine. Projections that vLLM and SGLang fuse must agree
by name, too: these engines look up the name `v_proj` even in a layer that has no `v_proj`.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Final

from g4convert.checkpoint.declared import Declared
from g4convert.checkpoint.entries import Entries
from g4convert.engines import CONTRACTS
from g4convert.engines.faults import FaultKind, Stored, judge
from g4convert.engines.matching import Disagreement, Reading
from g4convert.engines.module import LM_HEAD, Module, ModuleKind
from g4convert.engines.stored import StoredCheckpoint
from g4convert.engines.weights import Weights
from g4convert.names import Name
from g4convert.report import Detail, Finding, Severity

ENGINES: Final = tuple(CONTRACTS)

_BY_NAME: Final = {FaultKind.IGNORED, FaultKind.UNTARGETED, FaultKind.TARGETED, FaultKind.UNNAMED}
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
"""One module of each part that only some Gemma 4 models have; shared `ignore` lists name the parts of all models."""


def _readings(weights: Weights) -> dict[str, Reading]:
    return {
        engine: one.read(weights.architecture, weights.ignore, weights.targets or ())
        for engine, one in CONTRACTS.items()
    }


def wrong_forms(weights: Weights, required: Collection[str]) -> Iterator[Finding]:
    """Yield findings on modules that an engine would build in another form than they are stored in.

    Experts packed in one tensor are left to `fused_experts`.

    Args:
        weights: weights of the output.
        required: engines that must load the output; a fault in one of them fails, in other engines warns.
    """
    readings = _readings(weights)
    for entry in dict.fromkeys(entry for reading in readings.values() for entry in reading.broken):
        found, expected = "no regular expression", "one that Python's re reads"
        yield Finding("static.ignore", Severity.FAIL, entry, found, expected, detail=Detail.NO_PATTERN)
    stored = weights.forms_read
    wrong: defaultdict[tuple[str, FaultKind], list[str]] = defaultdict(list)
    for engine, contract in CONTRACTS.items():
        for problem in judge(contract, weights.architecture, readings[engine], stored):
            named = problem.fault is not FaultKind.UNNAMED or stored.get(problem.shard) is not Stored.PACKED
            if problem.fault in _BY_NAME and named:
                wrong[problem.shard, problem.fault].append(engine)
    for (shard, fault), engines in wrong.items():
        yield _fault_finding(shard, fault, engines, required)
    for engine, contract in CONTRACTS.items():
        for module in contract.modules(weights.architecture):
            yield from _names_that_disagree(readings[engine], module, stored, engine, required)


def _fault_finding(module: str, fault: FaultKind, engines: list[str], required: Collection[str]) -> Finding:
    everywhere = len(engines) == len(ENGINES)
    found = fault.value if everywhere else f"{fault}, by the names of {' and '.join(engines)}"
    severity = Severity.WARN if set(engines).isdisjoint(required) else Severity.FAIL
    code = "static.lm_head" if module == LM_HEAD else "static.ignore"
    expected = "an entry of `ignore` that names it"
    remedy = "name it in `ignore` as every engine spells it"
    if fault is FaultKind.IGNORED:
        expected, remedy = "no entry of `ignore` that names it", "take that entry out of `ignore`"
    elif fault is FaultKind.UNTARGETED:
        expected, remedy = "a target that names it", "add `Linear` to `targets`"
    return Finding(code, severity, module, found, expected, remedy)


def _names_that_disagree(
    reading: Reading, module: Module, stored: Mapping[str, Stored], engine: str, required: Collection[str]
) -> Iterator[Finding]:
    """Yield a finding if an engine would build a fused module in two forms because of a name without a tensor."""
    built = reading.packs(module)
    present = [shard for shard in module.shards if shard in stored]
    if not isinstance(built, Disagreement) or not present:
        return
    names = {reading.lookup_of(module, shard) for shard in present}
    first = reading.lookup_of(module, present[0])
    odd = [Name(name).last for name, one in built.names.items() if name not in names and one != built.names[first]]
    if odd:
        owner, part = Name(present[0]).owner, Name(present[0]).last
        state = "packed" if built.names[first] else "ignored"
        found = f"{', '.join(odd)} not {state} as {part} is, by the names of {engine}"
        remedy = f"a pattern for the whole layer, or the name of its {odd[0]}, too"
        severity = Severity.FAIL if engine in required else Severity.WARN
        yield Finding("static.fused_names", severity, owner, found, "one form for q, k and v", remedy)


def dead_entries(stored: StoredCheckpoint) -> Iterator[Finding]:
    """Yield findings on entries of `ignore` and `targets` that name no module in any engine."""
    if stored.declared is None:
        return
    modules = {engine: one.modules(stored.weights.architecture) for engine, one in CONTRACTS.items()}
    readings = _readings(stored.weights)
    spelled = {
        engine: {
            name for module in listed for name in (module.name, *readings[engine].lookups(module), *_experts(module))
        }
        for engine, listed in modules.items()
    }
    classes = {name for listed in modules.values() for module in listed for name in module.classes}
    every = {name for found in spelled.values() for name in found} | {
        Name(name).module for name in stored.contents.expected
    }
    ends = cache(lambda: {end for name in spelled["sglang"] for end in Name(name).ends()})
    owners = cache(lambda: {owner for name in every for owner in Name(name).owners()})
    for place, entry in _entries(stored.declared):
        one = Entries.of(stored.declared.method, [entry])
        if one.broken or entry in classes or entry in every:
            continue
        if any(matches(name) for matches in one.patterns.values() for name in every) or (one.plain and entry in ends()):
            continue
        remedy = "whole names must be complete, patterns start at the beginning: `re:.*name.*`"
        severity, found = Severity.WARN, "names no module"
        if any(one.name(name) for name in _ELSEWHERE):
            severity, found = Severity.INFO, "names a module that other Gemma 4 have"
        elif entry in owners():
            found = "names a part of the model; only its modules' own names count"
        yield Finding("static.dead_entry", severity, f"{place}: {entry}", found, "a module of this model", remedy)


def _experts(module: Module) -> Iterator[str]:
    """Yield the names of the single experts of a fused module, of which engines look up only the first expert's."""
    if module.kind is ModuleKind.EXPERTS:
        yield from (f"{module.name}.{Name(shard).in_experts}" for shard in module.shards)


def _entries(declared: Declared) -> Iterable[tuple[str, str]]:
    yield from (("ignore", entry) for entry in declared.ignore)
    yield from ((f"targets of {group.name}", entry) for group in declared.groups for entry in group.targets)

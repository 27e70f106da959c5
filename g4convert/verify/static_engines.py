"""What each engine would build from `targets` and `ignore`, against what is stored.

An engine makes a module packed when a target names it and no entry of `ignore` does, under the engine's own
module names. The rules, as read in compressed-tensors 0.20, vLLM 0.33 and SGLang 0.5:

    transformers   an entry is a whole module name, a class, or `re:` matched from the start
    vllm           renames whole names as it renames tensors; patterns are tried on its own names; `ignore`
                   knows no classes
    sglang         renames nothing; a whole name also fits as the end of a longer one

Modules that an engine never builds packed (routers, heads, unified embedders) are no disagreement there when they
are plain. Projections that vLLM and SGLang fuse must agree in name, too: of a layer without `v_proj` the name
of one is looked up all the same.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from g4convert.gemma4 import Architecture, Role
from g4convert.inspection.declared_scheme import Declared, Entries
from g4convert.inspection.stored_scheme import PackedModule
from g4convert.quant_config import spellings
from g4convert.report import Finding, Severity
from g4convert.tensors import TensorInfo
from g4convert.verify.contents import Contents, module_of

__all__ = ["ENGINES", "dead_entries", "wrong_forms"]

ENGINES: Final = ("transformers", "vllm", "sglang")

_CLASSES: Final = frozenset(("Linear", "Module"))
_EMBEDDING_CLASSES: Final = frozenset(("Embedding", "Module"))
_KNOWN_CLASSES: Final = _CLASSES | _EMBEDDING_CLASSES
_NONE: Final[frozenset[str]] = frozenset()
_LM_HEAD: Final = "lm_head"
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
    _LM_HEAD,
)
"""A module of each part that only some Gemma 4 have: lists are written for all of them at once."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """A config's entries, tried as each engine does."""

    ignore: Entries
    targets: Entries
    architecture: Architecture

    @classmethod
    def of(cls, declared: Declared, architecture: Architecture) -> "_Rules":
        targets = [entry for group in declared.groups for entry in group.targets]
        method = declared.method
        return cls(Entries.of(method, declared.ignore), Entries.of(method, targets), architecture)

    def packs(self, module: str, engine: str, classes: frozenset[str]) -> bool:
        """Whether an engine builds a module packed."""
        return self.targeted(module, engine, classes) and not self.ignored(module, engine, classes)

    def targeted(self, module: str, engine: str, classes: frozenset[str]) -> bool:
        """Whether a target names it."""
        return self._holds(self.targets, module, engine, classes)

    def ignored(self, module: str, engine: str, classes: frozenset[str]) -> bool:
        """Whether an entry of `ignore` names it."""
        return self._holds(self.ignore, module, engine, _NONE if engine == "vllm" else classes)

    def _holds(self, entries: Entries, module: str, engine: str, classes: frozenset[str]) -> bool:
        name = spellings(module, self.architecture)[engine]
        whole = {"vllm": (module, name), "sglang": tuple(_ends(name))}.get(engine, (name,))
        return entries.hold(name, name, classes) or any(one in entries.exact for one in whole)


def _ends(name: str) -> Iterator[str]:
    """`a.b.c`, `b.c`, `c`."""
    while name:
        yield name
        name = name.partition(".")[2]


def wrong_forms(contents: Contents, declared: Declared, required: Collection[str]) -> Iterator[Finding]:
    """Modules an engine would build in another form than they are stored in.

    Args:
        contents: of the output.
        declared: what its config says.
        required: engines that must load it: a disagreement with one of them fails, with another one warns.
    """
    for entry in (*Entries.of(declared.method, declared.ignore).broken, *_broken_targets(declared)):
        yield Finding("static.ignore", Severity.FAIL, entry, "no regular expression", "one that Python's re reads")
    rules = _Rules.of(declared, contents.architecture)
    for name, form in _modules(contents):
        wrong: defaultdict[str, list[str]] = defaultdict(list)
        for engine in ENGINES:
            if text := _disagreement(contents, rules, name, form, engine):
                wrong[text].append(engine)
        for text, engines in wrong.items():
            yield _wrong(name, text, engines, required)
    yield from _names_that_disagree(contents, rules, required)


def _broken_targets(declared: Declared) -> Iterator[str]:
    for group in declared.groups:
        yield from Entries.of(declared.method, group.targets).broken


def _modules(contents: Contents) -> Iterator[tuple[str, PackedModule | TensorInfo | None]]:
    """Every Linear and embedding with its form; None for a tied head, a module without a tensor."""
    for name, expected in contents.expected.items():
        if expected.linear or expected.role in {Role.EMBEDDING, Role.PLE_EMBEDDING}:
            form = contents.stored.get(name)
            if form is not None:
                yield name, form
    if f"{_LM_HEAD}.weight" not in contents.expected:
        yield f"{_LM_HEAD}.weight", None


def _disagreement(
    contents: Contents, rules: _Rules, name: str, form: PackedModule | TensorInfo | None, engine: str
) -> str:
    expected = contents.expected.get(name)
    role = expected.role if expected else Role.LM_HEAD
    module = module_of(name)
    if role is Role.KV_SHARED and engine != "sglang":
        return ""  # no such module there: the tensors are left aside
    classes = _CLASSES if role is Role.LM_HEAD or (expected and expected.linear) else _EMBEDDING_CLASSES
    if isinstance(form, PackedModule):
        if form.fused or _never_packed(role, module, engine, contents.architecture):
            return ""  # reported for what it is: static.experts, static.kept
        if rules.ignored(module, engine, classes):
            return "packed, although ignored"
        return "" if rules.targeted(module, engine, classes) else "packed, although no target names it"
    if _never_packed(role, module, engine, contents.architecture) or _is_stack(form, engine):
        return ""
    return "plain, although targeted and not ignored" if rules.packs(module, engine, classes) else ""


def _is_stack(form: PackedModule | TensorInfo | None, engine: str) -> bool:
    """Whether it is part of plain experts in one 3-D tensor, which transformers never takes for Linears."""
    return engine == "transformers" and isinstance(form, TensorInfo) and len(form.shape) == 3


def _never_packed(role: Role, module: str, engine: str, architecture: Architecture) -> bool:
    """Whether an engine builds a module unpacked, whatever the config says.

    vLLM: `GateLinear`, `ParallelLMHead`, embeddings and the unified projections (`gemma4_unified.py`) have no
    quantization config. SGLang: neither have they, nor the parts of the unified embedder and `input_proj`.
    """
    if engine == "transformers":
        return False
    if role in {Role.ROUTER, Role.LM_HEAD, Role.EMBEDDING, Role.PLE_EMBEDDING}:
        return True
    if role is Role.EMBEDDER and architecture.is_unified:
        return engine == "sglang" or module.endswith(".embedding_projection")
    return engine == "sglang" and module.endswith(".patch_embedder.input_proj")


def _wrong(name: str, text: str, engines: list[str], required: Collection[str]) -> Finding:
    module = module_of(name)
    everywhere = len(engines) == len(ENGINES)
    found = text if everywhere else f"{text}, by the names of {' and '.join(engines)}"
    severity = Severity.WARN if set(engines).isdisjoint(required) else Severity.FAIL
    code = "static.lm_head" if module == _LM_HEAD else "static.ignore"
    if text.startswith("plain"):
        pattern = f"re:.*{module.rpartition('.')[2]}.*"
        remedy = f"name it in `ignore` as every engine spells it: `{_LM_HEAD if module == _LM_HEAD else pattern}`"
    else:
        remedy = "take the entry that names it out of `ignore`" if "ignored" in text else "add `Linear` to `targets`"
    return Finding(code, severity, module, found, "config and tensors agree", remedy)


def _names_that_disagree(contents: Contents, rules: _Rules, required: Collection[str]) -> Iterator[Finding]:
    """Attention whose shards an engine would build in two forms, for the sake of a name without a tensor."""
    text = contents.architecture.text
    for n, layer in enumerate(text.layers):
        owner = f"{contents.architecture.text_prefix}layers.{n}.self_attn"
        if f"{owner}.q_proj.weight" not in contents.stored:
            continue
        phantom = [part for part in ("k_proj", "v_proj") if f"{owner}.{part}.weight" not in contents.stored]
        for engine in ("vllm", "sglang") if phantom else ():
            if layer.kv_shared and engine == "vllm":
                continue  # q_proj stands alone there
            packs = {part: rules.packs(f"{owner}.{part}", engine, _CLASSES) for part in ("q_proj", *phantom)}
            odd = [part for part in phantom if packs[part] != packs["q_proj"]]
            if odd:
                state = "packed" if packs["q_proj"] else "ignored"
                found = f"{', '.join(odd)} not {state} as q_proj is, by the names of {engine}"
                remedy = f"a pattern for the whole layer, or the name of its {odd[0]}, too"
                severity = Severity.FAIL if engine in required else Severity.WARN
                yield Finding("static.fused_names", severity, owner, found, "one form for q, k and v", remedy)


def dead_entries(contents: Contents, declared: Declared) -> Iterator[Finding]:
    """Entries that name no module in any engine."""
    names = [module_of(name) for name, _ in _modules(contents)]
    spelled = {engine: {spellings(name, contents.architecture)[engine] for name in names} for engine in ENGINES}
    spelled["files"] = {*names}
    every = {name for found in spelled.values() for name in found}
    ends = cache(lambda: {end for name in spelled["sglang"] for end in _ends(name)})
    others = {module_of(name) for name, expected in contents.expected.items() if not expected.linear}
    owners = cache(lambda: {owner for name in every for owner in _owners(name)})
    for place, entry in _entries(declared):
        one = Entries.of(declared.method, [entry])
        if one.broken or one.classes & _KNOWN_CLASSES:
            continue
        if entry in every or any(matches(name) for matches in one.patterns.values() for name in every):
            continue
        if one.exact and (entry in ends() or entry in others):
            continue
        remedy = "whole names must be complete, patterns start at the beginning: `re:.*name.*`"
        severity, found = Severity.WARN, "names no module"
        if any(one.hold(name, name, _NONE) for name in _ELSEWHERE):
            severity, found = Severity.INFO, "names a module that other Gemma 4 have"
        elif entry in owners():
            found = "names a part of the model; only its modules' own names count"
        yield Finding("static.dead_entry", severity, f"{place}: {entry}", found, "a module of this model", remedy)


def _entries(declared: Declared) -> Iterable[tuple[str, str]]:
    yield from (("ignore", entry) for entry in declared.ignore)
    yield from ((f"targets of {group.name}", entry) for group in declared.groups for entry in group.targets)


def _owners(name: str) -> Iterator[str]:
    """`a.b` and `a`, of `a.b.c`."""
    while name := name.rpartition(".")[0]:
        yield name

"""Questions to engines, and their recorded answers: a text that is the same for the contracts and for real code.

For each family: every module with its class and place, where each tensor of the default recipe's output goes, and,
for each shipped recipe's `ignore` and each list below, which modules are built packed and which stop the engine; where
there are several config groups, which of them each module is built by.
"""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import suppress
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from g4convert.engines import VERSIONS
from g4convert.engines.contract import OnUnknown
from g4convert.engines.matching import Disagreement
from g4convert.engines.module import Accepts, ModuleKind
from g4convert.errors import UsageError
from g4convert.gemma4 import Architecture
from g4convert.planning.recipe import DEFAULT
from g4convert.planning.recipe_files import load, load_shipped
from g4convert.planning.steps import make_plan
from helpers.headers import opened, section, written_config
from helpers.released_configs import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from g4convert.engines.contract import Contract
    from g4convert.planning.plan import Plan
    from helpers.released_configs import Config

__all__ = ["GOLDEN", "GROUPS", "LISTS", "SPELLINGS", "Case", "Contracted", "Engine", "Row", "report"]

GOLDEN: Mapping[str, str] = {"vLLM 0.33": "vllm-0.33.0", "SGLang 0.5.23": "sglang-0.5.23", "vLLM 0.23": "vllm-0.23.0"}
"""File of recorded answers and the version that gave them, by the contract's label."""


class Row(NamedTuple):
    """A module: `form` is packed, plain, stops or `no config`; `group` counts config groups from 1."""

    name: str
    path: str
    class_name: str
    form: str
    group: int = 0


class Case(NamedTuple):
    """One config for one family; `groups` are the targets of each config group."""

    config: Config
    architecture: Architecture
    ignore: list[str]
    groups: tuple[list[str], ...]

    @property
    def places(self) -> dict[str, int]:
        """The config group of each target, counted from 1: the last one that names it."""
        return {target: number for number, group in enumerate(self.groups, 1) for target in group}


class Engine(Protocol):
    """Code that answers."""

    def built(self, case: Case) -> list[Row]:
        """Every module that a form is asked for, and every plain Linear."""
        ...

    def loaded(self, case: Case, tensors: Iterable[str]) -> dict[str, str]:
        """Return the place of each tensor: that of a module, `dropped` or `refused`."""
        ...

    def reads(self, case: Case, pairs: Iterable[tuple[str, str]]) -> dict[str, bool]:
        """Return canonical name -> True if a tensor of the other name has the same place."""
        ...


_LAYER = "model.language_model.layers.0"
_TOWER = "model.vision_tower.encoder.layers.0"
_VISION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_L = ["Linear"]
LISTS: Mapping[str, tuple[list[str], list[str]]] = {
    "nothing ignored": ([], _L),
    "head by its name": (["lm_head"], _L),
    "patterns for every part": (
        [
            "re:.*lm_head",
            "re:.*router.*",
            "re:.*vision_tower.*",
            "re:.*audio_tower.*",
            "re:.*embed.*",
            "re:.*per_layer.*",
        ],
        _L,
    ),
    "patch_dense without its prefix": (["vision_embedder.patch_dense", "re:.*embedding_projection"], _L),
    "patch_dense as in the files": (["model.vision_embedder.patch_dense", "re:.*embedding_projection"], _L),
    "patch_dense as in transformers": (["model.embed_vision.patch_dense", "re:.*embedding_projection"], _L),
    "patch_dense by pattern": (["re:.*patch_dense.*", "re:.*embedding_projection"], _L),
    "tower as in the files": ([f"{_TOWER}.{part}.linear" for part in (*_VISION, *_MLP)], _L),
    "tower without .linear": ([f"{_TOWER}.{part}" for part in (*_VISION, *_MLP)], _L),
    "tower of vLLM": ([f"{_TOWER.removeprefix('model.')}.{part}.linear" for part in (*_VISION, *_MLP)], _L),
    "tower's own name": (["model.vision_tower", "vision_tower", "model.audio_tower"], _L),
    "towers by pattern from model": ([r"re:^model\.(vision|audio)_tower.*"], _L),
    "towers by pattern without model": (["re:vision_tower.*", "re:audio_tower.*"], _L),
    "towers by .linear": ([r"re:.*\.linear$"], _L),
    "globs": (["*vision_tower*", "model.vision_tower.*"], _L),
    "audio as in the files": (["re:.*audio_tower.layers.*", "model.audio_tower.output_proj"], _L),
    "audio as in SGLang": (["re:.*audio_tower.conformer.*"], _L),
    "class names": (["Linear"], _L),
    "class names of engines": (["ReplicatedLinear", "QKVParallelLinear", "RoutedExperts", "FusedMoE"], _L),
    "ends of names": (["self_attn.o_proj", "mlp.down_proj", "per_layer_input_gate", "q_proj", "qkv_proj"], _L),
    "q alone": (["re:.*self_attn.q_proj"], _L),
    "q, k, v": ([r"re:.*self_attn\.[qkv]_proj"], _L),
    "q and k of a layer by name": ([f"{_LAYER}.self_attn.{part}_proj" for part in "qk"], _L),
    "q, k, v of a layer by name": ([f"{_LAYER}.self_attn.{part}_proj" for part in "qkv"], _L),
    "full layer without its v": ([f"model.language_model.layers.5.self_attn.{part}_proj" for part in "qko"], _L),
    "gate alone": (["re:.*mlp.gate_proj"], _L),
    "fused names by pattern": (["re:.*qkv_proj", "re:.*gate_up_proj"], _L),
    "fused names of vLLM": (
        ["language_model.model.layers.0.self_attn.qkv_proj", "draft_model.layers.0.mlp.gate_up_proj"],
        _L,
    ),
    "fused names as in the files": ([f"{_LAYER}.mlp.gate_up_proj", "model.layers.0.mlp.gate_up_proj"], _L),
    "decoder by its name in vLLM": ([r"re:language_model\.model\..*"], _L),
    "decoder by its name in the files": ([r"re:model\.language_model\..*"], _L),
    "decoder's names from llm-compressor": ([f"{_LAYER}.mlp", f"{_LAYER}.self_attn", f"{_LAYER}.experts"], _L),
    "drafter's names": (["model.layers.0.mlp.down_proj", "pre_projection", "re:.*post_projection"], _L),
    "experts by pattern": (["re:.*experts.*"], _L),
    "experts below moe": ([r"re:.*\.moe\..*"], _L),
    "first expert by name": ([f"{_LAYER}.experts.0.{part}_proj" for part in ("gate", "up", "down")], _L),
    "second expert by name": ([f"{_LAYER}.experts.1.{part}_proj" for part in ("gate", "up", "down")], _L),
    "one projection of the experts": (["re:.*experts.*gate_proj"], _L),
    "router": (["re:.*router.*"], _L),
    "target: patterns": ([], [r"re:.*(self_attn|mlp)\..*_proj$"]),
    "target: decoder as in the files": (["re:.*lm_head"], [r"re:model\.language_model\.layers.*"]),
    "target: rest ignored": (["re:.*tower.*", "re:.*embed.*", "re:.*router.*"], ["re:.*(mlp|experts|self_attn).*"]),
    "target: one name": ([], [f"{_LAYER}.mlp.down_proj", "model.layers.0.mlp.down_proj"]),
    "target: one shard": ([], ["re:.*self_attn.q_proj"]),
    "target: all shards": ([], ["re:.*self_attn.q_proj", "re:.*self_attn.k_proj", "re:.*self_attn.v_proj"]),
    "target: part of a class": ([], ["linear"]),
    "target: a class of engines": ([], ["QKVParallelLinear", "RowParallelLinear"]),
    "target: classes by pattern": ([], ["re:.*Linear"]),
    "target: everything": (["re:.*lm_head"], ["re:.*"]),
    "target: head": (["re:.*tower.*"], ["Linear", "lm_head"]),
    "target: the head's class": (["re:.*tower.*"], ["Linear", "ParallelLMHead"]),
    "target: tables": (["re:.*tower.*"], ["Linear", "re:.*embed_tokens.*"]),
    "target: experts": ([], [r"re:.*experts\.\d+\.(gate|up)_proj"]),
}
"""`ignore` and `targets`, good ones and bad ones, by what they are."""


_REST = ["re:.*lm_head", "re:.*router.*", "re:.*_tower.*", "re:.*embed.*", "re:.*per_layer.*"]
GROUPS: Mapping[str, tuple[list[str], tuple[list[str], ...]]] = {
    "pattern beside a class": (_REST, (_L, ["re:.*self_attn.*"])),
    "shards by pattern beside a class": (_REST, (_L, [r"re:.*self_attn\.(q|k|v|o)_proj$"])),
    "shards by pattern, no class": (_REST, ([r"re:.*(mlp|experts).*"], [r"re:.*self_attn\.(q|k|v|o)_proj$"])),
    "pattern from the start of the files' names": (_REST, (_L, [r"re:^model\.language_model\.layers\.\d+\.mlp\..*"])),
    "layers by name": (
        _REST,
        (
            _L,
            [f"{_LAYER}.self_attn.{part}_proj" for part in "qkvo"]
            + [f"model.language_model.layers.5.self_attn.{part}_proj" for part in "qko"]
            + [f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up")],
        ),
    ),
    "end of a fused name": (_REST, (_L, ["re:.*v_proj$", "re:.*up_proj$"])),
    "one shard": (_REST, (_L, [r"re:.*self_attn\.v_proj$", r"re:.*mlp\.up_proj$"])),
    "wide pattern last": (_REST, (["re:.*mlp.*"], ["re:.*"])),
    "wide pattern first": (_REST, (["re:.*"], ["re:.*mlp.*"])),
    "class first": (_REST, (["RowParallelLinear"], _L)),
    "part of a class first": (_REST, (["linear"], ["RowParallelLinear"], _L)),
    "one target twice": (_REST, (_L, ["re:.*mlp.*"], _L)),
    "one projection of the experts": (_REST, (_L, [r"re:.*experts\.\d+\.down_proj"])),
    "experts by pattern": (_REST, (_L, ["re:.*experts.*"])),
    "head and tables": (["re:.*_tower.*", "re:.*router.*"], (_L, ["re:.*embed_tokens.*", "lm_head"])),
    "layers by pattern": (["re:.*lm_head"], ([r"re:.*layers\.0\.mlp\.(gate|up|down)_proj"], [r"re:.*layers\.[1-9].*"])),
}
"""`ignore` and the targets of several config groups."""


def _substitute(*rules: tuple[str, str]) -> Callable[[str], str]:
    def write(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return write


SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "of vLLM": _substitute(
        (r"^lm_head", "language_model.lm_head"),
        (r"^model\.(?=\w+_tower|embed_(vision|audio)|vision_emb)", ""),
        (r"^model\.language_model\.", "language_model.model."),
    ),
    "of the inner model": _substitute((r"^model\.", "")),
    "doubled": _substitute((r"^model\.", "model.model.")),
    "nested": _substitute((r"^model\.language_model\.", "model.language_model.model.")),
    "of a multimodal model": _substitute((r"^model\.(?=layers|embed_tokens|norm|per_layer)", "model.language_model.")),
    "of a text-only model": _substitute((r"^model\.language_model\.", "model.")),
    "compiled": _substitute((r"^", "_orig_mod.")),
    "of PEFT": _substitute((r"^", "base_model.model.")),
    "of FSDP": _substitute((r"(layers\.\d+)\.", r"\1._fsdp_wrapped_module.")),
    "of unified modules": _substitute(
        (r"(embed_\w+)\.embedding_projection", r"\1.multimodal_embedder.embedding_projection"),
        (r"vision_embedder\.", "embed_vision."),
    ),
    "of short embedders": _substitute((r"\.embedding_projection\.", ".proj.")),
    "of towers without a wrapper": _substitute((r"\.linear\.weight$", ".weight")),
    "of SGLang's towers": _substitute(
        (r"(_tower.*\.self_attn)\.([qkv]_proj)\.(?:linear\.)?weight$", r"\1.qkv.\2.weight"),
        (r"(_tower.*\.mlp)\.(gate|up)_proj\.(?:linear\.)?weight$", r"\1.gate_up.\2_proj.weight"),
    ),
    "of experts below moe": _substitute((r"(language_model\.layers\.\d+)\.(experts|router)\.", r"\1.moe.\2.")),
    "of a router below moe": _substitute((r"(language_model\.layers\.\d+)\.router\.", r"\1.moe.router.")),
    "of SGLang's drafter": _substitute((r"^masked_embedding\.", "")),
}
"""Other names of tensors than those that transformers writes."""


_O = "*.self_attn.o_proj"
MIXED: Mapping[str, dict[str, Any]] = {
    "bits by role": {"bits": {"attention": 8, "mlp": 4}},
    "first layers": {"rules": [{"layers": "0-1", "bits": 8}]},
    "parts of layers": {"rules": [{"names": _O, "layers": "0,2-3", "bits": 8}, {"names": "*.down_proj", "bits": 8}]},
    "layers that are kept": {"rules": [{"role": "mlp", "layers": "1", "bits": 16}, {"names": _O, "bits": 16}]},
    "experts of a layer": {"rules": [{"role": "experts", "layers": "2", "bits": 8, "group_size": 64}]},
    "shared keys and values": {"kv_shared": "keep", "rules": [{"role": "attention", "layers": "3-5", "bits": 8}]},
    "tables and head": {"bits": {"embedding": 4, "ple_embedding": 8, "lm_head": 8, "ple_projection": 8}},
    "head alone": {"bits": {"lm_head": 8}, "rules": [{"role": "lm_head", "group_size": "channel"}]},
}
"""Recipes that pack weights in several ways."""


_KEPT = {"kv_shared": "keep"}
_TOWER_TOO = {"pack": ["mlp", "vision_tower"], "group_size": 16}


def report(engine: Engine, families: Iterable[str] = tuple(FAMILIES)) -> str:
    """Everything that an engine answers."""
    lines: list[str] = []
    for family in families:
        config = FAMILIES[family]
        lines += [*([""] if lines else []), f"== {family}"]
        lines += _modules(engine, Case(config, Architecture.from_config(config), [], (_L,)))
        lines += _tensors(engine, "kept keys and values", *_stored(family, tuple(_KEPT)))
        case, stored = _stored(family)
        lines += _tensors(engine, "nothing but the head ignored", case._replace(ignore=["re:.*lm_head"]), stored)
        if (config.get("vision_config") or {}).get("model_type") == "gemma4_vision":
            lines += _tensors(engine, "packed tower", *_stored(family, tuple(_TOWER_TOO)))
        lines += _spelled(engine, case, stored)
        lines.append("built")
        lines += [f"  {name}: {_answer(engine.built(case))}" for name, case in _cases(family)]
        lines.append("groups")
        lines += [f"  {name}: {_groups(engine.built(case))}" for name, case in _grouped(family)]
    return "\n".join(lines) + "\n"


def _modules(engine: Engine, case: Case) -> Iterator[str]:
    yield "modules"
    by_kind: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in engine.built(case):
        outside = row.form == "no config"
        name = row.path if outside else row.name
        tail = "plain" if outside else "" if row.path == name else f"at {_numberless(row.path)}"
        by_kind["" if outside else row.class_name, tail].append(name)
    for (class_name, tail), names in sorted(by_kind.items()):
        yield from (f"  {' '.join(filter(None, (name, class_name, tail)))}" for name in collapsed(names))


def _tensors(engine: Engine, title: str, case: Case, stored: Iterable[str]) -> Iterator[str]:
    """Yield a line on the fate of each tensor."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, place in engine.loaded(case, stored).items():
        module, _, part = name.rpartition(".")
        found[f"{_numberless(place)}{'' if part == 'weight' else ' packed'}"].append(module)
    yield f"tensors, {title}"
    for place, names in sorted(found.items()):
        yield f"  {' '.join(collapsed(dict.fromkeys(names)))} -> {place}"


def _spelled(engine: Engine, case: Case, stored: tuple[str, ...]) -> Iterator[str]:
    """Yield a line for each spelling: whether the engine reads it, in all names that it changes, in none, or which."""
    yield "other names"
    for title, write in SPELLINGS.items():
        pairs = [(name, other) for name in stored if (other := write(name)) != name]
        if pairs:
            said = engine.reads(case, pairs)
            read = [name for name, _ in pairs if said[name]]
            parts = collapsed({name.rpartition(".")[0] for name in read})
            text = "read" if len(read) == len(pairs) else "not read" if not read else f"read of {' '.join(parts)}"
            yield f"  {title}: {text}"


@cache
def _stored(family: str, changed: tuple[str, ...] = ()) -> tuple[Case, tuple[str, ...]]:
    """Return the output of the default recipe, some values changed: the config and the tensors of Linears."""
    plan = _plan(family, DEFAULT, **{key: value for key, value in (_KEPT | _TOWER_TOO).items() if key in changed})
    stored = [info.name for step in plan.quantized for info in step.outputs]
    linear = {weight.name for weight in plan.inventory.weights if weight.linear}
    stored += [step.target.name for step in plan.copied if step.target.name in linear]
    return Case(FAMILIES[family], plan.architecture, section(plan)["ignore"], (_L,)), tuple(stored)


@cache
def _cases(family: str) -> tuple[tuple[str, Case], ...]:
    config = FAMILIES[family]
    found = []
    for recipe in (name for name, one in load_shipped().items() if not one.is_calibrated):
        with suppress(UsageError):
            found.append((f"recipe {recipe}", _written(family, _plan(family, recipe))))
    lists = Case(config, Architecture.from_config(config), [], (_L,))
    found += [(name, lists._replace(ignore=ignore, groups=(targets,))) for name, (ignore, targets) in LISTS.items()]
    return tuple(found)


def _grouped(family: str) -> tuple[tuple[str, Case], ...]:
    config = FAMILIES[family]
    architecture = Architecture.from_config(config)
    found = [(name, Case(config, architecture, ignore, groups)) for name, (ignore, groups) in GROUPS.items()]
    for name, options in MIXED.items():
        with suppress(UsageError):
            found.append((f"recipe of {name}", _written(family, _plan(family, DEFAULT, **options))))
    return tuple(found)


def _written(family: str, plan: Plan) -> Case:
    """Return the output of a plan: its config, untied where the plan unties it, and its lists."""
    written = written_config(FAMILIES[family], plan)
    said = written.pop("quantization_config", {"ignore": [], "config_groups": {}})
    groups = tuple(group["targets"] for group in said["config_groups"].values())
    return Case(written, plan.architecture, said["ignore"], groups or (_L,))


def _plan(family: str, recipe: str, **options: object) -> Plan:
    return make_plan(opened(FAMILIES[family]), load(recipe, {"assistant": "pack", **options}).recipe)


def _answer(rows: Iterable[Row]) -> str:
    forms: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        forms[row.form].append(row.name)
    packed, plain, stops = (collapsed(forms[form]) for form in ("packed", "plain", "stops"))
    short = f"all but {', '.join(plain)}" if packed and len(plain) < len(packed) else ", ".join(packed) or "nothing"
    stop = f"; stops at {', '.join(stops)}" if stops else ""
    return f"packs {short}{stop}"


def _groups(rows: Iterable[Row]) -> str:
    """Modules that each config group is taken for; plain ones are left out."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.form in {"packed", "stops"}:
            found[f"by {row.group}" if row.form == "packed" else "stops at"].append(row.name)
    return "; ".join(f"{how} {', '.join(collapsed(names))}" for how, names in sorted(found.items())) or "nothing"


def _numberless(name: str) -> str:
    return re.sub(r"\b\d+\b", "*", name)


def collapsed(names: Iterable[str]) -> list[str]:
    """Names that differ in their numbers as one, with the numbers: `layers.[0-4,6].mlp`."""
    alike: defaultdict[str, set[tuple[int, ...]]] = defaultdict(set)
    for name in names:
        alike[_numberless(name)].add(tuple(int(number) for number in re.findall(r"\b\d+\b", name)))
    return sorted(text for template, found in alike.items() for text in _ranges(template, found))


def _ranges(template: str, found: set[tuple[int, ...]]) -> Iterator[str]:
    columns = [sorted(set(column)) for column in zip(*found, strict=True)]
    whole = found == set(product(*columns))
    for numbers in [columns] if whole else [[[one] for one in row] for row in sorted(found)]:
        text = template
        for values in numbers:
            text = text.replace("*", _range(values), 1)
        yield text


def _range(values: list[int]) -> str:
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][-1] + 1 == value:
            runs[-1].append(value)
        else:
            runs.append([value])
    return f"[{','.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)}]"


class Contracted:
    """Answers from a contract."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract

    def built(self, case: Case) -> list[Row]:
        """Return the contract's modules; an embedding or a tied head that no config reaches is not asked about."""
        reading = self.contract.read(case.architecture, case.ignore, case.places)
        rows = []
        for module in self.contract.modules(case.architecture):
            if module.kind in {ModuleKind.EMBEDDING, ModuleKind.HEAD} and not module.configured:
                continue
            if module.kind is ModuleKind.HEAD and not module.shards and self.contract.engine == "sglang":
                continue  # built with pipeline parallelism only
            found = reading.packs(module)
            form = "stops" if isinstance(found, Disagreement) else "packed" if found else "plain"
            form = form if module.configured else "no config"
            groups = {case.places[one] for one in reading.taken(module) if one} if form == "packed" else {0}
            form = form if len(groups) == 1 else "stops"
            rows.append(Row(module.name, module.path, module.classes[0], form, min(groups)))
        return rows

    def loaded(self, case: Case, tensors: Iterable[str]) -> dict[str, str]:
        """Return the contract's places."""
        reading = self.contract.read(case.architecture, case.ignore, case.places)
        left = self.contract.unbuilt(case.architecture)
        modules = {shard: module for module in self.contract.modules(case.architecture) for shard in module.shards}
        found = {}
        for name in tensors:
            shard, _, part = name.rpartition(".")
            if shard in left:
                found[name] = "refused" if left[shard] else "dropped"
            elif (
                part != "weight"
                and modules[shard].accepts is Accepts.PLAIN
                and modules[shard].kind is ModuleKind.LINEAR
            ):
                found[name] = "dropped"
            elif (reading.packs(modules[shard]) is True) == (part != "weight"):
                found[name] = modules[shard].path
            else:
                lenient = case.architecture.is_assistant and _DRAFTERS_REST in self.contract.drops
                found[name] = _FATE[OnUnknown.DROPS if lenient else self.contract.on_unknown]
        return found

    def reads(self, case: Case, pairs: Iterable[tuple[str, str]]) -> dict[str, bool]:
        """Return what the contract says."""
        known = self.contract.spellings
        return {name: known.has(other, name, case.architecture) for name, other in pairs}


_DRAFTERS_REST = "every tensor of a drafter that fits nothing"
_FATE = {OnUnknown.RAISES: "refused", OnUnknown.DROPS: "dropped"}


def contracts() -> dict[str, Contract]:
    """Return the contracts by label of `GOLDEN`."""
    return {contract.label: contract for contract in VERSIONS if contract.label in GOLDEN}

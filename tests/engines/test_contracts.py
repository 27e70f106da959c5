"""The contracts of `g4convert.engines`: against what the engines' own code answered, and against compressed-tensors.

`tests/golden/engines` is written by `tests/engines/compare.py`, which runs the real code; nothing here writes it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from compressed_tensors.utils.match import is_match, match_targets
from helpers import ROOT, engines_reference
from helpers.engine_cases import GOLDEN, GROUPS, LISTS, Contracted, contracts, report
from helpers.grids import one_in, two_when_quick
from helpers.headers import opened, section
from helpers.released_configs import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from g4convert.demo import Family
from g4convert.engines import CONTRACTS, VERSIONS, sglang, speller, transformers, vllm
from g4convert.engines.faults import FaultKind, ModuleFault, Stored, judge
from g4convert.engines.matching import Disagreement, Matching
from g4convert.engines.module import LM_HEAD, Accepts, Module, ModuleKind, renamed
from g4convert.errors import UsageError
from g4convert.forward.models import model_class
from g4convert.gemma4 import Architecture, expected_weights
from g4convert.planning.recipe_files import load, load_shipped
from g4convert.planning.steps import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Checkpoints

    from g4convert.engines.contract import Contract
    from g4convert.planning.plan import Plan

LABELS = [contract.label for contract in VERSIONS]
UNIFIED = Architecture.from_config(FAMILIES["12B"])


@cache
def architecture_of(family: str) -> Architecture:
    return Architecture.from_config(FAMILIES[family])


def labelled(label: str) -> Contract:
    return next(contract for contract in VERSIONS if contract.label == label)


def plans(family: str) -> Iterator[tuple[str, Plan]]:
    for recipe in load_shipped():
        with suppress(UsageError):
            yield recipe, make_plan(opened(FAMILIES[family]), load(recipe, {"assistant": "pack"}).recipe)


def stored_by(plan: Plan) -> dict[str, Stored]:
    """Return the form of each Linear and embedding in a plan's output, by canonical name."""
    stored = {step.packed.name.removesuffix(".weight_packed"): Stored.PACKED for step in plan.quantized}
    for name, what in expected_weights(plan.architecture).items():
        module = name.removesuffix(".weight")
        if module not in stored and not what.optional:  # a recipe drops what is optional
            stored[module] = Stored.STACKED if ".experts." in module else Stored.PLAIN
    return stored


# Recorded answers of real code.


@pytest.mark.parametrize("label", two_when_quick(GOLDEN))
def test_contracts_say_what_the_real_code_answered(label: str) -> None:
    recorded = (ROOT / "tests" / "golden" / "engines" / f"{GOLDEN[label]}.txt").read_text(encoding="utf-8")
    assert report(Contracted(contracts()[label])) == recorded, "make test-engines says which of the two is right"


FLAGS = [field.name for field in fields(Matching) if field.name not in {"fused", "renames"}]


@cache
def said(label: str, family: str) -> str:
    return report(Contracted(contracts()[label]), (family,))


@pytest.mark.parametrize("label", one_in(3, GOLDEN))
@pytest.mark.parametrize("flag", two_when_quick(["fused", "renames", *FLAGS]))
def test_a_wrong_rule_would_be_seen(label: str, flag: str) -> None:
    """The lists are such that no property of the matching could be another one."""
    contract = contracts()[label]

    def other(architecture: Architecture) -> Matching:
        right = contract.matching(architecture)
        swapped = (right.order[0], right.order[2], right.order[1])
        renames = () if right.renames else vllm.CONTRACT.matching(architecture).renames
        values = {"fused": {}, "renames": renames, "order": swapped}
        return replace(right, **{flag: values[flag] if flag in values else not getattr(right, flag)})  # type: ignore[arg-type]

    wrong = Contracted(replace(contract, matching=other))
    assert any(report(wrong, (family,)) != said(label, family) for family in ("text", "31B"))


@pytest.mark.parametrize("name", GROUPS)
def test_transformers_takes_the_group_that_compressed_tensors_takes(name: str) -> None:
    ignore, groups = GROUPS[name]
    targets = list(dict.fromkeys(target for group in groups for target in group))
    reading = transformers.CONTRACT.read(architecture_of("31B"), ignore, targets)
    linear = torch.nn.Linear(1, 1)
    for module in transformers.CONTRACT.modules(architecture_of("31B")):
        if module.kind is ModuleKind.LINEAR:
            found = match_targets(module.name, linear, targets)
            assert reading.target(module, module.shards[0]) == (found[0] if found else None), module.name


def test_every_version_but_transformers_is_recorded() -> None:
    assert set(GOLDEN) == {contract.label for contract in VERSIONS if contract.engine != "transformers"}


@pytest.mark.parametrize(
    ("label", "line"),
    [
        ("vLLM 0.33", "patch_dense as in transformers: packs all but embed"),  # the historic failure: built packed
        ("SGLang 0.5.23", "tower as in the files: packs"),
    ],
)
def test_the_recorded_answers_hold_the_historic_failures(label: str, line: str) -> None:
    recorded = (ROOT / "tests" / "golden" / "engines" / f"{GOLDEN[label]}.txt").read_text(encoding="utf-8")
    family = "12B" if "patch_dense" in line else "31B"
    section = recorded.partition(f"== {family}\n")[2].partition("\n== ")[0]
    built = section.partition("built\n")[2]
    assert built
    bare = section.partition("tensors, nothing but the head ignored\n")[2].partition("\nbuilt")[0]
    if "patch_dense" in line:
        assert re.search(r"model\.vision_embedder\.patch_dense -> refused", bare)
    else:
        files = re.search(r"  tower as in the files: (.*)", built)
        assert files
        assert "vision_tower.encoder.layers.[0].self_attn.o_proj.linear" in files[1].partition("all but")[2]
        assert "self_attn.qkv_proj" not in files[1].partition("all but")[2]


def test_before_pull_request_44571_no_entry_could_name_patch_dense() -> None:
    """It had no prefix in vLLM then: a pattern for everything alone would have held."""
    dense = next(one for one in vllm.CONTRACT.modules(UNIFIED) if one.name == "vision_embedder.patch_dense")
    unnamed = replace(dense, name="")
    for _, plan in plans("12B"):
        reading = vllm.CONTRACT.read(plan.architecture, section(plan)["ignore"])
        assert reading.packs(unnamed) is True
    assert vllm.CONTRACT.read(UNIFIED, ["re:.*"]).packs(unnamed) is False


# transformers: compressed-tensors' own matching, on the real modules.


@pytest.mark.parametrize("family", two_when_quick(Family))
def test_transformers_modules_and_matching_are_those_of_compressed_tensors(
    family: Family, checkpoints: Checkpoints
) -> None:
    config = AutoConfig.from_pretrained(checkpoints(family))
    architecture = Architecture.from_config(config.to_dict())
    with torch.device("meta"):
        model = model_class(config.model_type)(config)
    wanted = (torch.nn.Linear, torch.nn.Embedding)
    theirs = {name: module for name, module in model.named_modules() if isinstance(module, wanted)}
    contract = CONTRACTS["transformers"]
    ours = {one.name: one for one in contract.modules(architecture) if one.kind is not ModuleKind.EXPERTS}
    positions = {name for name in theirs if "position_embedding" in name}  # tables that are not stored as weights
    assert theirs.keys() - positions == ours.keys()
    for name, module in theirs.items():
        classes = {one.__name__ for one in type(module).__mro__ if issubclass(one, torch.nn.Module)}
        assert name in positions or classes >= set(ours[name].classes), name
    for title, (ignore, targets) in LISTS.items():
        reading = contract.read(architecture, ignore, targets)
        for name, one in ours.items():
            assert reading.packs(one) == is_match(name, theirs[name], targets, ignore), f"{title}: {name}"


# The tables.


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_checkpoint_module_fills_one_module_or_is_left_out(label: str, family: str) -> None:
    contract, architecture = labelled(label), architecture_of(family)
    modules = contract.modules(architecture)
    shards = [shard for module in modules for shard in module.shards]
    left = contract.unbuilt(architecture)
    tables = {"embedding", "ple_embedding"}
    known = {
        n.removesuffix(".weight")
        for n, what in expected_weights(architecture).items()
        if what.linear or what.role in tables
    }
    assert len(set(shards)) == len(shards)
    assert {*shards, *left} == known
    assert set(shards).isdisjoint(left)
    assert len({module.name for module in modules if module.configured}) == sum(module.configured for module in modules)
    assert all(module.note for module in modules if module.accepts is Accepts.PLAIN)
    assert all(module.accepts is Accepts.PLAIN for module in modules if not module.configured)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_accepts_what_its_rule_says(label: str, family: str) -> None:
    contract = labelled(label)
    tied = architecture_of(family)
    for architecture in (tied, tied.untied()):
        (head,) = (module for module in contract.modules(architecture) if module.kind is ModuleKind.HEAD)
        spelled = renamed(LM_HEAD, contract.names(architecture))
        rule = next(rule for rule in contract.rules(architecture) if re.fullmatch(rule.pattern, spelled))
        assert head.accepts is rule.accepts
        assert (head.accepts is Accepts.EITHER) is (head.configured and not architecture.tied_embeddings)
        assert ("tied" in str(head.note)) is (architecture.tied_embeddings and head.configured)


def test_every_vllm_looks_packed_tables_up() -> None:
    """`compressed_tensors_embedding.py` of 0.23.0 and of 0.33.0 are the same file."""
    architecture = architecture_of("E2B").untied()
    for contract in (vllm.OLDEST, vllm.CONTRACT):
        tables = [module for module in contract.modules(architecture) if module.kind is ModuleKind.EMBEDDING]
        assert [module.accepts for module in tables] == [Accepts.EITHER] * 2
        assert {module.note.source for module in tables} == {"compressed_tensors_embedding.py"}


def test_no_rule_is_dead() -> None:
    """Without it, some version builds something else for some family."""
    patterns: dict[str, bool] = {}
    for contract in VERSIONS:
        for family in FAMILIES:
            for rule in contract.rules(architecture_of(family)):
                needed = patterns.get(rule.pattern) or _needs(contract, architecture_of(family), rule)
                patterns[rule.pattern] = needed
    assert [pattern for pattern, needed in patterns.items() if not needed] == []


def _needs(contract: Contract, architecture: Architecture, rule: object) -> bool:
    """Return True if something changes without the rule."""
    fewer = replace(contract, rules=lambda one: tuple(r for r in contract.rules(one) if r != rule))
    try:
        return fewer.modules(architecture) != contract.modules(architecture)
    except LookupError:
        return True


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_shards_are_those_that_entries_are_tried_on(family: str) -> None:
    architecture = architecture_of(family)
    spell = speller(architecture)
    for engine, contract in CONTRACTS.items():
        reading = contract.read(architecture, ())
        for module in contract.modules(architecture):
            for shard in module.shards:
                name = spell(shard)[engine]
                expert = re.sub(r"\.experts\.\d+\.", ".experts.0.", name)
                assert (expert if module.kind is ModuleKind.EXPERTS else name) in reading.lookups(module)
    assert spell("model.unheard_of")["files"] == "model.unheard_of"


# Entries: how they are read.


def fused(contract: Contract) -> Module:
    return next(m for m in contract.modules(architecture_of("31B")) if m.name.endswith("layers.0.self_attn.qkv_proj"))


PARTS = ("q_proj", "k_proj", "v_proj")


@given(st.sets(st.sampled_from(PARTS)), st.sampled_from([vllm.CONTRACT, vllm.OLDEST, sglang.CONTRACT]))
def test_a_fused_module_is_ignored_whole_or_not_at_all(parts: set[str], contract: Contract) -> None:
    module = fused(contract)
    ignore = [f"re:.*layers.0.self_attn.{part}" for part in parts]
    built = contract.read(architecture_of("31B"), ignore).packs(module)
    if len(parts) in {0, 3}:
        assert built is not bool(parts)
    else:
        assert isinstance(built, Disagreement)
        assert {name.rpartition(".")[2] for name, packed in built.names.items() if not packed} == parts


def test_a_list_that_is_no_pattern_names_nothing_and_is_told() -> None:
    reading = vllm.CONTRACT.read(UNIFIED, ["re:.*(", "lm_head"], ["Linear", "re:["])
    assert reading.broken == ("re:.*(", "re:[")


# Faults: what would go wrong.


@pytest.mark.parametrize("family", two_when_quick(FAMILIES))
def test_what_a_recipe_writes_is_built_as_stored_by_every_version(family: str) -> None:
    for recipe, plan in plans(family):
        written, stored = section(plan), stored_by(plan)
        targets = [target for group in written["config_groups"].values() for target in group["targets"]]
        for contract in VERSIONS:
            reading = contract.read(plan.architecture, written["ignore"], targets)
            found = list(judge(contract, plan.architecture, reading, stored))
            assert [one for one in found if one.fault is not FaultKind.REFUSED] == [], f"{recipe}, {contract.label}"
            refused = {one.module.kind for one in found} | {"drafter" for _ in found if plan.architecture.is_assistant}
            neither = {ModuleKind.EXPERTS, ModuleKind.EMBEDDING}
            engine_refuses = {"sglang": neither, "transformers": neither, "vllm": set()}[contract.engine]
            if contract is vllm.OLDEST and plan.architecture.is_assistant:
                engine_refuses = {ModuleKind.LINEAR, "drafter"}
            assert refused <= engine_refuses


def problems(
    engine: str, ignore: list[str], targets: tuple[str, ...] = ("Linear",), **changed: Stored | None
) -> list[ModuleFault]:
    """Return the problems of an engine with the default 31B, some of its modules stored otherwise or not at all."""
    plan = dict(plans("31B"))["w4a16-g32"]
    stored = stored_by(plan)
    for module, form in changed.items():
        name = f"model.language_model.layers.0.{module.replace('__', '.')}"
        del stored[name]
        if form:
            stored[name] = form
    reading = CONTRACTS[engine].read(plan.architecture, ignore, targets)
    return list(judge(CONTRACTS[engine], plan.architecture, reading, stored))


GOOD = ["lm_head", "re:.*lm_head.*", "re:.*vision_tower.*", "re:.*embed_vision.*"]


@pytest.mark.parametrize("engine", CONTRACTS)
def test_judge_has_nothing_to_say_about_a_good_output(engine: str) -> None:
    assert problems(engine, GOOD) == []


@pytest.mark.parametrize(
    ("engine", "ignore", "targets", "changed", "fault", "shard"),
    [
        ("vllm", [*GOOD, "re:.*o_proj"], ("Linear",), {}, FaultKind.IGNORED, "self_attn.o_proj"),
        ("vllm", GOOD, ("re:.*self_attn.*",), {}, FaultKind.UNTARGETED, "mlp.up_proj"),
        ("vllm", GOOD, ("Linear",), {"mlp__up_proj": Stored.PLAIN}, FaultKind.TARGETED, "mlp.up_proj"),
        ("vllm", GOOD, ("Linear",), {"mlp__up_proj": None}, FaultKind.MISSING, "mlp.up_proj"),
        ("vllm", [*GOOD, "re:.*q_proj"], ("Linear",), {}, FaultKind.PARTS, "self_attn.q_proj"),
        ("sglang", GOOD, ("re:.*self_attn.*",), {}, FaultKind.UNNAMED, "mlp.gate_proj"),
        ("transformers", [*GOOD, "re:.*o_proj"], ("Linear",), {}, FaultKind.IGNORED, "self_attn.o_proj"),
    ],
)
def test_judge_names_the_fault_and_the_module(  # noqa: PLR0913, PLR0917 -- the columns of the table
    engine: str,
    ignore: list[str],
    targets: tuple[str, ...],
    changed: dict[str, Stored | None],
    fault: FaultKind,
    shard: str,
) -> None:
    found = problems(engine, ignore, targets, **changed)
    assert (fault, f"model.language_model.layers.0.{shard}") in {(one.fault, one.shard) for one in found}


def test_judge_says_why_an_engine_takes_plain_weights_only() -> None:
    plan = next(plan for recipe, plan in plans("26B-A4B") if recipe == "w4a16-g32")
    reading = sglang.CONTRACT.read(plan.architecture, section(plan)["ignore"])
    found = list(judge(sglang.CONTRACT, plan.architecture, reading, stored_by(plan)))
    assert {one.fault for one in found} == {FaultKind.REFUSED}
    assert all("SiLU" in str(one.detail) for one in found)


# Surroundings.


def test_contracts_need_no_engine_and_no_torch() -> None:
    heavy = "{'torch', 'numpy', 'vllm', 'sglang', 'transformers'}"
    code = f"import sys, g4convert.engines.faults as _; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.golden
def test_the_page_is_up_to_date() -> None:
    path, found = ROOT / "docs" / "concepts" / "engines.md", engines_reference.text()
    if os.environ.get("G4CONVERT_GOLDEN") == "write":
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8"), "docs/concepts/engines.md is old; `make golden` writes it anew"

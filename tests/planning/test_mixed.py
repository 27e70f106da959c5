"""Several packings in one checkpoint: rules, what they may not say, and config groups that every engine resolves."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import match_targets
from helpers import ROOT
from helpers.grids import one_in, two_when_quick
from helpers.headers import opened, planned, section
from helpers.released_configs import FAMILIES, RELEASED, released
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from g4convert.engines import CONTRACTS, VERSIONS, speller
from g4convert.engines.groups import grouped_modules, misfits_of_all
from g4convert.engines.limits import Packing
from g4convert.errors import UsageError
from g4convert.gemma4 import Role
from g4convert.names import Name
from g4convert.planning.layout import lay_out
from g4convert.planning.plan import Plan
from g4convert.planning.weights import make_planned_weights

PART = {
    "attention": ["*.self_attn.[qkv]_proj", "*.self_attn.o_proj", None],
    "mlp": ["*.mlp.[gu]*_proj", "*.mlp.down_proj", None],
    "experts": [None],
    "ple_projection": ["*.per_layer_input_gate", "*.per_layer_model_projection", None],
}
"""Names of a role's parts that engines hold as one matrix each."""


def packed(plan: Plan) -> dict[str, Packing]:
    return {str(Name(step.packed.name).owner): step.packing for step in plan.quantized}


@st.composite
def recipes(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """Bits by role, then rules by role, layers and parts, of what the family has."""
    present = [role for role in PART if (role == "experts") <= (family == "26B-A4B")]
    present = [role for role in present if (role == "ple_projection") <= (family == "E2B")]
    layers = len((FAMILIES[family].get("text_config") or FAMILIES[family])["layer_types"])
    rules = []
    for _ in range(draw(st.integers(0, 5))):
        role = draw(st.sampled_from(present))
        rule: dict[str, Any] = {"role": role, "bits": draw(st.sampled_from([4, 8, 16]))}
        if draw(st.booleans()):
            rule["group_size"] = draw(st.sampled_from([16, 32, "channel"]))
        name = draw(st.sampled_from(PART[role]))
        if name is not None:
            rule["names"] = name
        if name is None or "model_projection" not in name:
            first = draw(st.integers(0, layers - 1))
            rule["layers"] = f"{first}-{draw(st.integers(first, layers - 1))}"
        rules.append(rule)
    bits = draw(st.dictionaries(st.sampled_from(present), st.sampled_from([4, 8, 16])))
    return {"bits": bits, "rules": rules, "assistant": "pack", "kv_shared": draw(st.sampled_from(["keep", "drop"]))}


@pytest.mark.parametrize("family", two_when_quick(FAMILIES))
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_every_engine_takes_the_packing_of_the_plan(family: str, data: st.DataObject) -> None:
    options = data.draw(recipes(family))
    try:
        plan = planned(FAMILIES[family], **options)
    except UsageError as error:
        assert "keeps every weight" in error.message  # noqa: PT017 -- nothing else is wrong with them
        return
    weights, wanted = make_planned_weights(plan), packed(plan)
    assert not [*misfits_of_all(weights)]
    assert len({group.name for group in weights.groups.values()}) == len({*wanted.values()})
    for contract in VERSIONS:
        found = {
            one.shard: Packing(one.group.num_bits or 0, one.group.group_size)
            for one in grouped_modules(contract, weights)
        }
        assert found == {shard: wanted[shard] for shard in found}, contract.label
        left = contract.unbuilt(plan.architecture)
        plain = {
            s for module in contract.modules(plan.architecture) if module.accepts == "plain" for s in module.shards
        }
        assert wanted.keys() - left.keys() - plain == found.keys() - plain, contract.label


@pytest.mark.parametrize("family", two_when_quick(FAMILIES))
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_compressed_tensors_takes_the_packing_of_the_plan(family: str, data: st.DataObject) -> None:
    """The library's own parser and matcher, on the names that transformers gives its modules."""
    try:
        plan = planned(FAMILIES[family], **data.draw(recipes(family)))
    except UsageError:
        return
    parsed = QuantizationConfig.model_validate(section(plan))
    groups = {target: group for group in parsed.config_groups.values() for target in group.targets}
    spell, linear = speller(plan.architecture), nn.Linear(1, 1)
    wanted = packed(plan)
    for module, role in make_planned_weights(plan).roles.items():
        if role in {Role.EMBEDDING, Role.PLE_EMBEDDING, Role.EXPERTS}:
            continue
        name = spell(module)["transformers"]
        ignored = bool(match_targets(name, linear, parsed.ignore))
        assert ignored is (module not in wanted), name
        if module in wanted:
            args = groups[match_targets(name, linear, list(groups))[0]].weights
            assert (args.num_bits, args.group_size) == (wanted[module].num_bits, wanted[module].group_size), name


def test_the_last_rule_that_says_it_wins_and_what_it_leaves_out_stays() -> None:
    rules = [
        {"layers": "0-3", "bits": 8},
        {"layers": "2", "group_size": 64},
        {"role": "mlp", "layers": "1,3", "bits": 16},
        {"names": "*.layers.3.mlp.*", "bits": 4, "group_size": "channel"},
    ]
    found = packed(planned(FAMILIES["31B"], rules=rules))
    mlp = [found.get(f"model.language_model.layers.{n}.mlp.down_proj") for n in range(5)]
    assert mlp == [Packing(8, 32), None, Packing(8, 64), Packing(4, None), Packing(4, 32)]
    assert found["model.language_model.layers.3.self_attn.o_proj"] == Packing(8, 32)


def test_a_rule_without_a_role_leaves_alone_what_the_recipe_does_not_pack() -> None:
    rules = [{"layers": "0-1", "bits": 8}]
    roles = {step.weight.role for step in planned(FAMILIES["E2B"], rules=rules).quantized}
    assert Role.PLE_PROJECTION not in roles
    wide = planned(FAMILIES["E2B"], bits={"ple_projection": 16}, rules=rules)
    gates = [step.weight.module.layer for step in wide.quantized if step.weight.role is Role.PLE_PROJECTION]
    assert {*gates} == {0, 1}


def test_bits_pack_a_role_that_pack_has_not() -> None:
    plan = planned(FAMILIES["E2B"], bits={"ple_projection": 8, "attention": 16})
    forms = {step.weight.role: step.packing.num_bits for step in plan.quantized}
    assert forms == {Role.MLP: 4, Role.PLE_PROJECTION: 8}


@pytest.mark.parametrize(
    ("family", "options", "message", "offenders"),
    [
        (
            "31B",
            {"bits": {"experts": 8}, "rules": [{"layers": "4-9", "bits": 8}, {"names": "*.moe.*", "bits": 8}]},
            "weights that this model has not",
            [
                "bits.experts: this gemma4 has no such weights",
                "rules.0 (layers 4-9): layer 9: the decoder has 6, 0 to 5",
                "rules.1 (names *.moe.*): it is for no weight of this model",
            ],
        ),
        (
            "31B",
            {"rules": [{"names": "*.1.self_attn.q_proj", "bits": 8}, {"names": "*.2.mlp.up_proj", "group_size": 64}]},
            "2 modules are one matrix in engines",
            [
                r"model.language_model.layers.1.self_attn: q_proj int8 g32; k_proj, v_proj int4 g32",
                r"model.language_model.layers.2.mlp: gate_proj int4 g32; up_proj int4 g64",
            ],
        ),
        (
            "26B-A4B",
            {"rules": [{"names": "*.0.experts.1.*", "bits": 16}]},
            "a module is one matrix in engines",
            ["model.language_model.layers.0.experts: 6 projections int4 g32; gate_proj, up_proj, down_proj kept"],
        ),
        (
            "26B-A4B",
            {
                "rules": [
                    {"role": "mlp", "group_size": 128},
                    {"role": "experts", "group_size": 64},
                    {"role": "experts", "layers": 0, "group_size": 256},
                ]
            },
            "group sizes 128 and 256 do not divide",
            [],
        ),
        ("31B", {"bits": {"attention": 16, "mlp": 16}}, "the recipe keeps every weight", []),
        ("31B", {"bits": {"attention": 8, "mlp": 8}, "method": "lattice"}, "lattice finds 4-bit grids", []),
    ],
)
def test_what_rules_may_not_say(family: str, options: Mapping[str, Any], message: str, offenders: list[str]) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        planned(FAMILIES[family], **options)
    assert caught.value.hint
    if offenders:
        assert [*caught.value.offenders] == offenders


@pytest.mark.parametrize("size", one_in(2, RELEASED))
def test_entries_stay_few_for_whole_roles_and_runs_of_layers(size: str) -> None:
    rules = [{"layers": "0-1", "bits": 8}]
    written = section(planned(released(size), bits={"attention": 8}, rules=rules))
    assert len(written["config_groups"]) == 2
    assert sum(len(group["targets"]) for group in written["config_groups"].values()) <= 4
    entries = [entry for group in written["config_groups"].values() for entry in group["targets"]] + written["ignore"]
    assert all(re.compile(entry.removeprefix("re:")) for entry in entries)
    assert not any("^" in entry for entry in entries)


def test_contracts_name_the_engines_of_the_tests() -> None:
    assert set(CONTRACTS) == {"transformers", "vllm", "sglang"}


@pytest.mark.parametrize("size", one_in(2, RELEASED))
def test_the_documented_sizes_are_those_of_the_plans(size: str) -> None:
    lines = (ROOT / "docs" / "reference" / "recipes.md").read_text().partition("| GB |")[2].splitlines()
    place = [cell.strip() for cell in lines[0].split("|")].index(size)
    rows = {cells[1].strip(" `"): cells[place + 2].strip() for cells in (line.split("|") for line in lines[2:7])}
    assert rows.pop("bf16") == f"{sum(info.nbytes for info in opened(released(size)).infos.values()) / 1e9:.2f}"
    for recipe, said in rows.items():
        if said:
            assert said == f"{lay_out(planned(released(size), recipe)).tensor_bytes / 1e9:.2f}", recipe
        else:
            with pytest.raises(UsageError, match="weights that this model has not"):
                planned(released(size), recipe)

"""Verdicts: which engine loads which plan of a released variant, on how many GPUs, and why not."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from io import StringIO
from math import lcm

import pytest
from helpers.grids import every, few
from helpers.headers import planned
from helpers.released_configs import RELEASED, assistant, released, small
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from g4convert.cli import show_engines
from g4convert.engines import CONTRACTS
from g4convert.engines.advice import advised, refuse
from g4convert.engines.faults import Stored
from g4convert.engines.limits import (
    Packing,
    Part,
    Refused,
    Taken,
    sglang_linear,
    vllm_cpu_experts,
    vllm_cpu_linear,
    vllm_experts,
    vllm_linear,
)
from g4convert.engines.reason import Reason
from g4convert.engines.remarks import Remark, Topic, Way
from g4convert.engines.remedies import NO_CHOICE
from g4convert.engines.verdicts import BASIS, TENSOR_PARALLEL, Loads, Verdict, verdicts
from g4convert.engines.weights import Weights
from g4convert.errors import GateError
from g4convert.gemma4 import Role
from g4convert.planning.gate import Outlook
from g4convert.planning.recipe import Engine
from g4convert.planning.sizes import role_sizes
from g4convert.planning.weights import planned_weights

MOE = "26B-A4B"
YES, CAVEAT, NO = Loads.YES, Loads.CAVEAT, Loads.NO
DENSE_PARTS = {"pack": ["attention", "mlp"]}
EXPERTS = {"pack": ["experts"]}
Row = tuple[str, dict[str, object], str, int, Loads, tuple[str, ...]]


@cache
def planned_once(size: str, options: str) -> Weights:
    return planned_weights(planned(released(size), **json.loads(options)))


@cache
def thin_once(size: str, options: str) -> Weights:
    config = small(size)
    if config["text_config"].get("num_experts"):
        config["text_config"] |= {"num_experts": 8, "top_k_experts": 2}
    return planned_weights(planned(config, **json.loads(options)))


def thin(size: str, options: dict[str, object]) -> Weights:
    """A model of few layers and experts, of every width: its size on disk is not the released one's."""
    return thin_once(size, json.dumps(options, sort_keys=True))


def weights_of(size: str, options: dict[str, object]) -> Weights:
    return planned_once(size, json.dumps(options, sort_keys=True))


def verdict(weights: Weights, engine: str, tp: int) -> Verdict:
    (found,) = verdicts(weights, [engine], [tp])
    return found


def with_remedies(weights: Weights, engines: list[str], tps: Iterable[int] = TENSOR_PARALLEL) -> tuple[Verdict, ...]:
    return advised(weights, verdicts(weights, engines, tps))


def row(size: str, options: dict[str, object], place: str, loads: Loads, *texts: str) -> Row:
    engine, _, tp = place.partition(" ")
    return size, options, engine, int(tp or 1), loads, texts


ROWS = (
    # 26B-A4B: 704 inputs of an expert's down_proj, 2112 of the dense MLP's
    row(MOE, {}, "vllm 1", YES),
    row(MOE, {}, "vllm 2", CAVEAT, "experts: padded from 352 to 384", "mlp.down_proj: padded from 1056 to 1088"),
    row(MOE, {}, "vllm 4", NO, "experts: 704 inputs / 4 = 176, not a multiple of 32", "2112 inputs / 4 = 528"),
    row(MOE, {}, "vllm 8", NO, "704 inputs / 8 = 88, not a multiple of 32", "2112 inputs / 8 = 264"),
    row(MOE, {"group_size": 64}, "vllm 1", YES),
    row(MOE, {"group_size": 64}, "vllm 2", NO, "704 inputs / 2 = 352, not a multiple of 64", "2112 inputs / 2 = 1056"),
    row(MOE, {"group_size": "channel"}, "vllm 4", CAVEAT, "experts: padded from 176 to 192"),
    row(MOE, EXPERTS, "vllm 2", CAVEAT, "padded from 352 to 384"),
    row(MOE, EXPERTS, "vllm 4", CAVEAT, "--enable-expert-parallel", "704 inputs / 4 = 176"),
    row(MOE, {**EXPERTS, "group_size": 64}, "vllm 2", CAVEAT, "--enable-expert-parallel", "704 inputs / 2 = 352"),
    row(MOE, {**EXPERTS, "group_size": 16}, "vllm 1", CAVEAT, "Triton, slower: Marlin takes no groups of 16"),
    row(MOE, DENSE_PARTS, "vllm 4", NO, "mlp.down_proj: 2112 inputs / 4 = 528, not a multiple of 32"),
    row(MOE, {"pack": ["attention"]}, "vllm 8", YES),
    row(
        MOE,
        {},
        "sglang 1",
        NO,
        "experts: both kernels, Marlin and Triton, assert SiLU at the first forward pass, Gemma has GELU",
    ),
    row(MOE, EXPERTS, "sglang 8", NO, "Gemma has GELU"),
    row(MOE, DENSE_PARTS, "sglang 1", YES),
    row(MOE, DENSE_PARTS, "sglang 2", NO, "mlp.down_proj: 2816 x 1056 fits no tile of Marlin"),
    row(MOE, DENSE_PARTS, "sglang 4", NO, "mlp.gate_up_proj: 1056 x 2816 fits no tile", "2112 inputs / 4 = 528"),
    row(MOE, {"pack": ["attention"]}, "sglang 8", YES),
    row(MOE, {}, "transformers", NO, "experts: get random weights, without an error"),
    row(MOE, DENSE_PARTS, "transformers", YES),
    row(MOE, {}, "vllm 3", NO, "16 heads cannot be split over 3 GPUs", "704 inputs cannot be split over 3 GPUs"),
    # dense variants: nothing is refused at the usual sizes, but for towers and kernels
    row("E2B", {}, "vllm 8", YES),
    row("E2B", {}, "vllm 16", NO, "8 heads cannot be split over 16 GPUs"),
    row("E2B", {}, "sglang 4", YES),
    row("E2B", {}, "sglang 8", NO, "vision_tower.encoder.layers.*.self_attn.qkv_proj: 12 heads cannot be split over 8"),
    row("E4B", {}, "sglang 8", NO, "12 heads cannot be split over 8 GPUs"),
    row("E2B", {"pack": ["attention", "vision_tower"]}, "sglang 1", NO, "vision_tower", "packed ones are dropped"),
    row("E2B", {"pack": ["attention", "vision_tower"]}, "vllm 8", YES),
    row("E4B", {"group_size": 128}, "vllm 8", YES),
    row("12B", {}, "vllm 8", YES),
    row("12B", {}, "sglang 8", YES),
    row("12B", {}, "transformers", YES),
    row("31B", {}, "vllm 8", YES),
    row("31B", {}, "vllm 64", NO, "32 heads cannot be split over 64 GPUs"),
    row("31B", {}, "vllm 12", NO, "32 heads cannot be split over 12 GPUs"),
    row("31B", {"group_size": 256}, "vllm 1", CAVEAT, "Triton, slower: Marlin takes no groups of 256"),
    row("31B", {"group_size": 256, "num_bits": 8}, "vllm 1", NO, "no kernel for groups of 256"),
    row("31B", {"group_size": 256}, "sglang 1", NO, "no kernel for groups of 256"),
    row("31B", {"group_size": 16}, "vllm 1", NO, "no kernel for groups of 16"),
    row("31B", {"group_size": 16}, "sglang 1", NO, "no kernel for groups of 16"),
    row("31B", {"group_size": 16}, "transformers", YES),
    row("31B", {"group_size": "channel", "num_bits": 8}, "vllm 8", YES),
)


@pytest.mark.parametrize("case", ROWS, ids=lambda case: f"{case[0]} {case[1]} {case[2]} {case[3]}")
def test_verdict(case: Row) -> None:
    size, options, engine, tp, loads, texts = case
    found = verdict(thin(size, options), engine, tp)
    lines = [one.line for one in found.told]
    assert found.loads is loads, lines
    for text in texts:
        assert any(text in line for line in lines), lines
    assert bool(lines) is (loads is not YES)


BARE = "`--pack attention` to leave mlp and experts in bf16 (about 50.0 GB; 1, 2, 4 or 8 GPUs)"
NO_MLP = (
    "`--pack attention --pack experts` to leave mlp in bf16 "
    "(about 17.1 GB; 1 or 2 GPUs, 4 or 8 GPUs with `--enable-expert-parallel`)"
)
NO_MLP_64 = NO_MLP.replace("17.1 GB; 1 or 2 GPUs, 4", "16.4 GB; 1 GPU, 2, 4")
NO_EXPERTS = "`--pack attention --pack mlp` to leave experts in bf16 (about 49.2 GB"


@pytest.mark.parametrize(
    ("options", "place", "ways"),
    every(
        2,
        [
            ({}, "vllm 1", ()),
            ({}, "vllm 4", ("1 or 2 GPUs", NO_MLP)),
            ({}, "sglang 1", (f"{NO_EXPERTS}; 1 GPU)",)),
            ({}, "sglang 2", (BARE,)),
            ({}, "transformers 1", (f"{NO_EXPERTS})",)),
            (EXPERTS, "sglang 1", (NO_CHOICE.text,)),
            (DENSE_PARTS, "sglang 2", ("1 GPU", BARE.replace(" and experts", ""))),
            ({**DENSE_PARTS, "group_size": 16}, "vllm 1", ("`--group-size 32` (1 or 2 GPUs)",)),
            ({"group_size": 64}, "vllm 2", ("1 GPU", "`--group-size 32` (1 or 2 GPUs)", NO_MLP_64)),
            ({"group_size": 64}, "vllm 64", ("1 GPU",)),
        ],
    ),
)
def test_a_refusal_comes_with_remedies(options: dict[str, object], place: str, ways: tuple[str, ...]) -> None:
    engine, tp = place.split()
    (found,) = with_remedies(weights_of(MOE, options), [engine], [int(tp)])
    assert tuple(map(str, found.remedies)) == ways
    assert all(one.remedy == ", or ".join(ways) for one in found.problems)


def options_of(way: str) -> dict[str, object]:
    """The options of a recipe that a remedy names."""
    told = way.strip("`").partition("`")[0].split()
    if told[0] == "--group-size":
        return {"group_size": int(told[1])}
    return {"pack": told[1::2]} if told[0] == "--pack" else {}


def counts_of(way: str) -> set[int]:
    """The numbers of GPUs that a remedy names."""
    return {int(one) for one in re.findall(r"(?<!-)\b\d+\b", re.split(r"; | \(", way)[-1]) if "GPU" in way}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("options", [{}, {"group_size": 64}, DENSE_PARTS], ids=str)
def test_what_a_remedy_says_is_true(engine: str, options: dict[str, object]) -> None:
    """The options make a plan that loads, on the numbers of GPUs that are named and on no others."""
    refused = [one for one in with_remedies(thin(MOE, options), [engine]) if one.loads is NO]
    assert refused
    for one in refused:
        for way in one.remedies:
            if way.is_none:
                continue
            tried = {**options, **options_of(way.text)}
            loads = {tp for tp in TENSOR_PARALLEL if verdict(thin(MOE, tried), engine, tp).loads is not NO}
            named = counts_of(way.text)
            assert named == loads if named else one.tp in loads, way


@pytest.mark.wide
def test_no_smaller_choice_of_roles_would_load() -> None:
    """On 4 GPUs vLLM has two problems; with one of them left in bf16 the experts need a flag only."""
    whole = weights_of(MOE, {})
    sizes = {way: weights_of(MOE, options_of(way)).nbytes for way in (NO_MLP, BARE)}
    assert whole.nbytes < sizes[NO_MLP] < sizes[BARE]
    assert sizes[NO_MLP] == whole.without([Role.MLP]).nbytes
    assert verdict(weights_of(MOE, options_of(NO_MLP)), "vllm", 4).loads is CAVEAT


@pytest.mark.parametrize("size", few(RELEASED))
def test_the_size_that_is_told_is_that_of_the_files(size: str) -> None:
    plan = planned(released(size))
    files = sum(one.after for one in role_sizes(plan))
    assert planned_weights(plan).nbytes == pytest.approx(files, rel=0.01)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_router_that_others_packed_is_left_in_bf16(engine: str) -> None:
    weights = planned_weights(planned(small(MOE), pack=["attention"]))
    router = "model.language_model.layers.0.router.proj"
    (found,) = with_remedies(replace(weights, packed={**weights.packed, router: Packing(4, 32)}), [engine], [1])
    assert [one.text.partition(" (")[0] for one in found.remedies] == ["`--pack attention` to leave router in bf16"]


@pytest.mark.parametrize("size", few(RELEASED))
@pytest.mark.parametrize("engine", CONTRACTS)
def test_a_model_that_is_not_packed_loads_everywhere(size: str, engine: str) -> None:
    weights = weights_of(size, {"pack": ["attention"]})
    stacked = frozenset(module for module in weights.shapes if ".experts." in module)
    plain = replace(weights, packed={}, stacked=stacked, ignore=(), targets=None)
    found = verdict(plain, engine, 1)
    assert (found.loads, found.kernels) == (YES, ())


@pytest.mark.parametrize("size", ["31B", "12B"])
@pytest.mark.parametrize("engine", CONTRACTS)
def test_a_drafter_loads_kept_and_packed(size: str, engine: str) -> None:
    for option in ("keep", "pack"):
        plan = planned(assistant(size), assistant=option)
        assert bool(plan.quantized) is (option == "pack")
        assert verdict(planned_weights(plan), engine, 1).loads is YES


def test_hopper_has_machete_for_larger_groups_only() -> None:
    assert verdict(weights_of("31B", {}), "vllm", 1).kernels == ("Marlin",)
    assert verdict(weights_of("31B", {"group_size": 128}), "vllm", 1).kernels == ("Marlin (Machete on Hopper)",)


def test_a_cpu_has_no_kernel_for_experts_in_groups_of_32() -> None:
    (note,) = verdict(weights_of(MOE, {}), "vllm", 1).notes
    assert "experts" in note
    assert "AMX" in note
    assert verdict(weights_of("31B", {}), "vllm", 1).notes == ()


# what recipes cannot pack, and others do


@pytest.mark.parametrize(
    ("size", "module", "engine", "text"),
    [
        (MOE, "model.language_model.layers.0.router.proj", "vllm", "GateLinear has no quantization config"),
        (MOE, "model.language_model.layers.0.router.proj", "sglang", "without a quantization config"),
        ("12B", "model.vision_embedder.patch_dense", "sglang", "a plain nn.Linear"),
        ("12B", "model.embed_vision.embedding_projection", "vllm", "without a quantization config"),
        ("31B", "model.language_model.embed_tokens", "vllm", "tied with the head"),
        ("E2B", "model.vision_tower.patch_embedder.input_proj", "transformers", "reads the dtype of its `weight`"),
    ],
)
def test_a_module_that_must_stay_plain_is_refused_packed(size: str, module: str, engine: str, text: str) -> None:
    weights = planned_weights(planned(small(size), pack=["attention"]))
    assert verdict(weights, engine, 1).loads is YES
    packed = replace(weights, packed={**weights.packed, module: Packing(4, 32)})
    found = verdict(packed, engine, 1)
    assert found.loads is NO
    assert any(text in one.text for one in found.problems if one.topic is Topic.REFUSED)


@pytest.mark.parametrize(
    ("ignore", "engine", "text"),
    [
        ("patch_dense", "vllm", "vision_embedder.patch_dense: plain, although targeted and not ignored: stops"),
        ("lm_head only", "sglang", ""),  # SGLang builds it plain whatever the list says
    ],
)
def test_the_prefix_that_was_missing(ignore: str, engine: str, text: str) -> None:
    weights = planned_weights(planned(small("12B")))
    kept = [entry for entry in weights.ignore if "vision_embedder" not in entry]
    found = verdict(replace(weights, ignore=(*kept, ignore)), engine, 1)
    assert [one.line.startswith(text) for one in found.problems] == ([True] if text else [])


def test_the_linear_that_sglang_does_not_know() -> None:
    """Full names of a tower, as in its files: q, k, v, gate and up are fused there, without `.linear`."""
    weights = planned_weights(planned(small("31B")))
    tower = [module for module in weights.shapes if "vision_tower" in module]
    listed = replace(weights, ignore=(*(entry for entry in weights.ignore if "vision_tower" not in entry), *tower))
    assert verdict(listed, "vllm", 1).loads is YES
    found = verdict(listed, "sglang", 1)
    assert {one.subject.rpartition(".")[2] for one in found.problems} == {"qkv_proj", "gate_up_proj"}
    assert all("uninitialised memory" in one.text for one in found.problems)


def test_half_a_fused_module_is_refused_by_those_that_fuse() -> None:
    weights = planned_weights(planned(small("31B")))
    gate = "model.language_model.layers.0.mlp.gate_proj"
    packed = {module: how for module, how in weights.packed.items() if module != gate}
    half = replace(weights, packed=packed, ignore=(*weights.ignore, gate))
    assert {engine: verdict(half, engine, 1).loads for engine in CONTRACTS} == {
        "transformers": YES,
        "vllm": NO,
        "sglang": NO,
    }


def test_a_lost_weight_is_named_with_what_the_engine_does_about_it() -> None:
    weights = planned_weights(planned(small("31B")))
    lost = "model.language_model.layers.0.mlp.down_proj"
    shapes = {module: shape for module, shape in weights.shapes.items() if module != lost}
    packed = {module: how for module, how in weights.packed.items() if module != lost}
    for engine, contract in CONTRACTS.items():
        (problem,) = verdict(replace(weights, shapes=shapes, packed=packed), engine, 1).problems
        assert (problem.topic, problem.text) == (Topic.MISSING, f"not stored: {contract.on_missing}")


def test_one_expert_speaks_for_all_that_are_stored_alike() -> None:
    weights = planned_weights(planned(small(MOE)))
    thin = weights.thinned()
    assert len(thin.shapes) < len(weights.shapes)
    assert set(thin.forms.values()) == {Stored.PACKED, Stored.PLAIN}
    odd = next(module for module in weights.packed if ".experts.2." in module)
    mixed = replace(weights, packed={module: how for module, how in weights.packed.items() if module != odd})
    assert mixed.thinned() is mixed


# the gate


def held(weights: Weights, engines: list[str], tps: list[int]) -> None:
    refuse(weights, verdicts(weights, tps=tps), engines, tps)


def test_the_gate_asks_for_named_engines_and_sizes_only() -> None:
    weights = weights_of(MOE, {})
    held(weights, ["vllm"], [1, 2])
    held(weights, [], [8])
    with pytest.raises(GateError) as error:
        held(weights, ["vllm", "sglang"], [4])
    assert error.value.exit_code == 1
    assert any("vLLM 0.33, TP 4: experts: 704 inputs / 4 = 176" in line for line in error.value.offenders)
    assert any("GELU" in line for line in error.value.offenders)
    with pytest.raises(GateError):
        held(weights, ["transformers"], [4])  # has one verdict, for any number


@pytest.mark.wide
@pytest.mark.parametrize(
    ("engines", "tps", "hint"),
    every(
        3,
        [
            (["vllm", "sglang"], [1], f"{NO_EXPERTS}; 1 GPU)"),
            (["vllm", "sglang"], [2], BARE),
            (["vllm", "sglang"], [1, 4], BARE),
            (["vllm", "sglang", "transformers"], [2], BARE),
            (["vllm", "transformers"], [2], f"{NO_EXPERTS}; 1 or 2 GPUs)"),
            (["vllm"], [2, 4], f"`--tp 2` (1 or 2 GPUs), or {NO_MLP}"),
            (["transformers"], [1], f"{NO_EXPERTS})"),
        ],
    ),
)
def test_the_hint_of_the_gate_passes_it(engines: list[str], tps: list[int], hint: str) -> None:
    """One way for all engines and sizes at once; the sizes that it names are those of all engines."""
    with pytest.raises(GateError) as error:
        held(weights_of(MOE, {}), engines, tps)
    assert error.value.hint == hint
    held(weights_of(MOE, options_of(hint.rpartition(", or ")[2])), engines, tps)


def test_a_recipe_that_names_engines_holds_its_plan() -> None:
    plan = planned(released(MOE), engines=["vllm"])
    outlook = Outlook.of(plan, [1, 2, 4])
    outlook.hold(plan.recipe, [1, 2])
    with pytest.raises(GateError):
        outlook.hold(plan.recipe, [4])
    with pytest.raises(GateError):
        outlook.hold(planned(released(MOE), engines=["vllm", "sglang"]).recipe, [1])
    outlook.hold(planned(released(MOE)).recipe, [4])  # none is named


def test_recipes_know_the_engines_that_there_are() -> None:
    assert {engine.value for engine in Engine} == set(CONTRACTS)


# the table


def told(found: Iterable[Verdict], **how: str) -> str:
    written = StringIO()
    show_engines.verdicts(Console(file=written, width=400), found, **how)
    return written.getvalue()


def test_the_table_tells_advice_from_rows() -> None:
    text = told(with_remedies(weights_of(MOE, DENSE_PARTS), [*CONTRACTS]))
    rows, _, advice = text.partition("\n\n`quantize` with these options packs less, and more engines or GPUs load it")
    (way,) = advice.splitlines()[1:]  # its rows have the numbers of GPUs
    loads = "transformers, vLLM (1, 2, 4 or 8 GPUs), SGLang (1, 2, 4 or 8 GPUs)"
    assert way == f"  --pack attention  mlp in bf16, output about 50.0 GB; loads in {loads}"
    assert rows.splitlines()[-1].strip() == BASIS
    assert "other engines load it" not in told(with_remedies(thin("31B", {}), [*CONTRACTS], [1]))


def test_the_options_for_most_engines_come_first_and_in_full() -> None:
    found = with_remedies(thin(MOE, {}), [*CONTRACTS])
    lines = (
        told(found, command="g4convert quantize gemma -o out")
        .partition("and more engines or GPUs load it")[2]
        .splitlines()
    )
    loads = "transformers, vLLM (1 or 2 GPUs), SGLang (1 GPU)"  # vLLM, which loads it now, does so then
    assert lines[1] == f"  --pack attention --pack mlp      experts in bf16, output about 2.3 GB; loads in {loads}"
    assert lines[-1] == "  the first in full: g4convert quantize gemma -o out --pack attention --pack mlp"


def test_a_size_without_a_way_leaves_the_ways_of_others() -> None:
    found = with_remedies(thin(MOE, {}), ["sglang"], [1, 64])
    assert found[1].remedies == (NO_CHOICE,)
    assert NO_CHOICE.text not in told(found)
    assert NO_CHOICE.text in told(found[1:])


def test_a_way_that_writes_all_anew_is_the_only_one() -> None:
    """A change of the config alone does not make it load."""
    mends = Remark(Topic.STORED, "config", Reason("wrong"), (Way("mend it"),))
    assert replace(Verdict("vllm", "vLLM", 1), problems=(mends,)).ways == (Way("mend it"),)
    (refused,) = with_remedies(thin(MOE, {}), ["sglang"], [1])
    assert refused.remedies
    assert replace(refused, problems=(*refused.problems, mends)).ways == refused.remedies


def test_sizes_in_one_row_have_their_own_numbers() -> None:
    lines = told(verdicts(thin(MOE, {}), ["vllm"])).splitlines()
    (merged,) = (line for line in lines if " 4, 8 " in line)
    assert "mlp.down_proj: 2112 inputs / 4 = 528 and / 8 = 264, not a multiple of 32" in merged
    assert "experts: 704 inputs / 4 = 176 and / 8 = 88, not a multiple of 32" in merged
    (heads,) = (line for line in told(verdicts(thin("31B", {}), ["vllm"], [64, 128])).splitlines() if "64, 128" in line)
    assert "32 heads cannot be split over 64 GPUs and over 128 GPUs" in heads


def test_the_json_says_where_the_rules_come_from() -> None:
    assert all(one.to_dict()["basis"] == BASIS for one in verdicts(thin("31B", {})))


# kernels

SIZES = st.integers(1, 64).map(lambda number: number * 16)
GROUPS = st.sampled_from([None, 16, 32, 64, 128, 256])


@given(SIZES, SIZES, GROUPS, st.sampled_from([1, 2, 4]))
def test_whole_groups_on_every_gpu_or_no_kernel(n: int, k: int, g: int | None, tp: int) -> None:
    for kernel in (vllm_linear, sglang_linear, vllm_cpu_linear):
        found = kernel(Part(n, k, k * tp), Packing(4, g))
        if g is not None and k % g:
            assert isinstance(found, Refused)
            assert str(g) in str(found.reason)


@given(SIZES, SIZES, st.sampled_from([None, 32, 64, 128]))
def test_marlin_pads_in_vllm_what_has_no_tile_in_sglang(n: int, k: int, g: int | None) -> None:
    fits = (n % 64 == 0 and k % 128 == 0) or (n % 128 == 0 and k % 64 == 0)
    part, packing = Part(n, k, k), Packing(4, g)
    theirs, ours = sglang_linear(part, packing), vllm_linear(part, packing)
    if g is not None and k % g:
        assert isinstance(theirs, Refused)
        assert isinstance(ours, Refused)
        return
    assert isinstance(ours, Taken)
    assert isinstance(theirs, Taken) is fits is (ours.padded == "")


@given(st.integers(1, 64).map(lambda number: number * 32), st.sampled_from([32, 64, 128, None]))
def test_experts_are_padded_to_the_next_tile(i: int, g: int | None) -> None:
    found = vllm_experts(2816, i, i, Packing(4, g))
    if g is not None and i % g:
        assert isinstance(found, Refused)
        return
    assert isinstance(found, Taken)
    wide = int(found.padded.rpartition(" ")[2]) if found.padded else i
    assert wide >= i
    assert wide % lcm(64, g or 1) == 0
    assert wide - i < lcm(64, g or 1)


def test_experts_without_marlin() -> None:
    assert vllm_experts(2816 + 32, 704, 704, Packing(4, 32)) == Taken(
        "Triton", slow="Marlin takes no hidden size of 2848"
    )
    assert isinstance(vllm_experts(2816 + 32, 704, 704, Packing(4, None)), Refused)
    assert isinstance(vllm_cpu_experts(Packing(8, 64)), Refused)
    assert isinstance(vllm_cpu_experts(Packing(4, 64)), Taken)
    assert isinstance(vllm_cpu_linear(Part(48, 64, 64), Packing(4, 32)), Refused)
    assert isinstance(vllm_cpu_linear(Part(64, 64, 64), Packing(8, 32)), Refused)

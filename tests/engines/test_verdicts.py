"""Verdicts: which engine loads which plan of a released variant, on how many GPUs, and why not."""

from dataclasses import replace

import pytest
from helpers.grids import two_when_quick
from helpers.headers import planned
from helpers.judged import CAVEAT, DENSE_PARTS, EXPERTS, MOE, NO, YES, thin, verdict, verdicts_with_remedies, weights_of
from helpers.released_configs import RELEASED, assistant, released, small

from g4convert.engines import CONTRACTS
from g4convert.engines.faults import Stored
from g4convert.engines.limits import (
    Packing,
)
from g4convert.engines.remarks import Topic
from g4convert.engines.verdicts import BASIS, Loads, verdicts
from g4convert.planning.recipe import EngineName
from g4convert.planning.sizes import add_up_sizes
from g4convert.planning.weights import make_planned_weights

Row = tuple[str, dict[str, object], str, int, Loads, tuple[str, ...]]


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
    row(
        MOE, {"group_size": "channel"}, "vllm 1", CAVEAT, "experts: Marlin, on Hopper only with `--moe-backend marlin`"
    ),
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
    row(
        "31B",
        {"group_size": 256, "num_bits": 8},
        "vllm 1",
        CAVEAT,
        "Humming is compiled when the server starts: Marlin takes no groups of 256",
    ),
    row("31B", {"group_size": 256}, "sglang 1", NO, "no kernel for groups of 256"),
    row("31B", {"group_size": 8}, "vllm 1", NO, "no kernel for groups of 8"),
    row(
        "31B",
        {"group_size": 16},
        "vllm 1",
        CAVEAT,
        "Humming is compiled when the server starts: Marlin takes no groups of 16",
    ),
    row("31B", {"group_size": 16}, "sglang 1", NO, "no kernel for groups of 16"),
    row("31B", {"group_size": 16}, "transformers", YES),
    row("31B", {"group_size": "channel", "num_bits": 8}, "vllm 8", YES),
)


@pytest.mark.parametrize("case", ROWS, ids=lambda case: f"{case[0]} {case[1]} {case[2]} {case[3]}")
def test_an_engine_loads_what_its_limits_allow(case: Row) -> None:
    size, options, engine, tp, loads, texts = case
    found = verdict(thin(size, options), engine, tp)
    lines = [one.line for one in found.told]
    assert found.loads is loads, lines
    for text in texts:
        assert any(text in line for line in lines), lines
    assert bool(lines) is (loads is not YES)


@pytest.mark.parametrize("size", two_when_quick(RELEASED))
def test_the_size_that_is_told_is_that_of_the_files(size: str) -> None:
    plan = planned(released(size))
    files = sum(one.after for one in add_up_sizes(plan))
    assert make_planned_weights(plan).nbytes == pytest.approx(files, rel=0.01)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_router_that_others_packed_is_left_in_bf16(engine: str) -> None:
    weights = make_planned_weights(planned(small(MOE), pack=["attention"]))
    router = "model.language_model.layers.0.router.proj"
    (found,) = verdicts_with_remedies(
        replace(weights, packed={**weights.packed, router: Packing(4, 32)}), [engine], [1]
    )
    assert [one.text.partition(" (")[0] for one in found.remedies] == ["`--pack attention` to leave router in bf16"]


@pytest.mark.parametrize("size", two_when_quick(RELEASED))
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
        assert verdict(make_planned_weights(plan), engine, 1).loads is YES


def test_hopper_has_machete_for_larger_groups_and_humming_for_others() -> None:
    assert verdict(weights_of("31B", {}), "vllm", 1).kernels == ("Marlin (Humming on Hopper)",)
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
    weights = make_planned_weights(planned(small(size), pack=["attention"]))
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
    weights = make_planned_weights(planned(small("12B")))
    kept = [entry for entry in weights.ignore if "vision_embedder" not in entry]
    found = verdict(replace(weights, ignore=(*kept, ignore)), engine, 1)
    assert [one.line.startswith(text) for one in found.problems] == ([True] if text else [])


def test_the_linear_that_sglang_does_not_know() -> None:
    """Full names of a tower, as in its files: q, k, v, gate and up are fused there, without `.linear`."""
    weights = make_planned_weights(planned(small("31B")))
    tower = [module for module in weights.shapes if "vision_tower" in module]
    listed = replace(weights, ignore=(*(entry for entry in weights.ignore if "vision_tower" not in entry), *tower))
    assert verdict(listed, "vllm", 1).loads is YES
    found = verdict(listed, "sglang", 1)
    assert {one.subject.rpartition(".")[2] for one in found.problems} == {"qkv_proj", "gate_up_proj"}
    assert all("uninitialised memory" in one.text for one in found.problems)


def test_half_a_fused_module_is_refused_by_those_that_fuse() -> None:
    weights = make_planned_weights(planned(small("31B")))
    gate = "model.language_model.layers.0.mlp.gate_proj"
    packed = {module: how for module, how in weights.packed.items() if module != gate}
    half = replace(weights, packed=packed, ignore=(*weights.ignore, gate))
    assert {engine: verdict(half, engine, 1).loads for engine in CONTRACTS} == {
        "transformers": YES,
        "vllm": NO,
        "sglang": NO,
    }


def test_a_lost_weight_is_named_with_what_the_engine_does_about_it() -> None:
    weights = make_planned_weights(planned(small("31B")))
    lost = "model.language_model.layers.0.mlp.down_proj"
    shapes = {module: shape for module, shape in weights.shapes.items() if module != lost}
    packed = {module: how for module, how in weights.packed.items() if module != lost}
    for engine, contract in CONTRACTS.items():
        (problem,) = verdict(replace(weights, shapes=shapes, packed=packed), engine, 1).problems
        assert (problem.topic, problem.text) == (Topic.MISSING, f"not stored: {contract.on_missing}")


def test_one_expert_speaks_for_all_that_are_stored_alike() -> None:
    weights = make_planned_weights(planned(small(MOE)))
    thin = weights.thinned()
    assert len(thin.shapes) < len(weights.shapes)
    assert set(thin.forms.values()) == {Stored.PACKED, Stored.PLAIN}
    odd = next(module for module in weights.packed if ".experts.2." in module)
    mixed = replace(weights, packed={module: how for module, how in weights.packed.items() if module != odd})
    assert mixed.thinned() is mixed


def test_recipes_know_the_engines_that_there_are() -> None:
    assert {engine.value for engine in EngineName} == set(CONTRACTS)


def test_the_json_says_where_the_rules_come_from() -> None:
    assert all(one.to_dict()["basis"] == BASIS for one in verdicts(thin("31B", {})))

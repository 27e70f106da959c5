"""Parts and their bytes, targets that cannot be, and recipes that say exactly what was chosen."""

import re
from collections.abc import Mapping
from random import Random
from typing import Any

import numpy as np
import pytest
from helpers.grids import diagonal, one_in
from helpers.headers import opened, planned
from helpers.released_configs import FAMILIES, RELEASED, released
from hypothesis import given, settings
from hypothesis import strategies as st

from g4convert.engines import VERSIONS
from g4convert.engines.limits import Packing
from g4convert.engines.module import Accepts
from g4convert.errors import GateError, UnsupportedError, UsageError
from g4convert.fitting.choices import DEFAULT_CHOICES, label_form, parse_choices
from g4convert.fitting.measures import smooth_losses
from g4convert.fitting.problem import Assignment, Losses, Problem
from g4convert.fitting.target import Bits, Loss, Size, check_budget, parse_target
from g4convert.fitting.writing import format_yaml, make_checked_plan, make_values
from g4convert.plain_yaml import parse
from g4convert.planning.layout import lay_out
from g4convert.planning.recipe_files import load
from g4convert.planning.steps import make_plan

CHOICES = parse_choices(DEFAULT_CHOICES)
MODELS = [name for name in FAMILIES if "assistant" not in name]
TABLES = {"bits": {"embedding": 4, "lm_head": 8}}
BASES: Mapping[str, dict[str, Any]] = {
    "default": {},
    "with tables": TABLES,
    "head alone": {"bits": {"lm_head": 8}},
    "with rules": {"rules": [{"layers": 0, "bits": 16}, {"role": "mlp", "layers": 1, "bits": 8, "group_size": 32}]},
    "text-only": {"layout": "text-only", "method": "gptq", "engines": ["vllm"], "kv_shared": "keep"},
}


def problem(family: str, **options: object) -> Problem:
    return Problem.of(planned(FAMILIES[family], **options), CHOICES)


def losses(found: Problem) -> dict[str, dict[str, float]]:
    """Losses that grow with the part's place and fall with its bytes."""
    return {
        part.name: {label_form(form): 1e6 * (1 + number % 7) / part.nbytes(form) for form in part.forms if form}
        for number, part in enumerate(found.free)
    }


@pytest.mark.parametrize(("family", "base"), diagonal(MODELS, BASES))
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=3, deadline=None)
def test_a_written_recipe_says_exactly_what_was_chosen(family: str, base: str, random: Random) -> None:
    found = problem(family, **BASES[base])
    few = random.randint(1, 9)
    chosen: Assignment = {
        part.name: random.choice(part.forms) if random.randrange(few) == 0 else part.forms[0] for part in found.parts
    }
    values = make_values(found, chosen)
    text = format_yaml(values, ["a comment"])
    assert parse(text) == values
    plan = make_checked_plan(opened(FAMILIES[family]), values, found, chosen)
    assert lay_out(plan).tensor_bytes == found.nbytes(chosen)
    rest = {"method", "engines", "kv_shared", "layout"}
    assert plan.recipe.model_dump(include=rest) == found.plan.recipe.model_dump(include=rest)


@pytest.mark.parametrize("family", MODELS)
def test_no_engine_splits_a_part(family: str) -> None:
    found = problem(family, bits={"ple_projection": 4} if family == "E2B" else {}, kv_shared="keep")
    owners = {str(weight.module): part.name for part in found.parts for weight in part.weights}
    for contract in VERSIONS:
        for module in contract.modules(found.plan.architecture):
            if module.accepts is not Accepts.PLAIN:
                assert len({owners[shard] for shard in module.shards if shard in owners}) <= 1, module.name


@pytest.mark.parametrize(("family", "share"), diagonal(MODELS, [0.0, 0.3, 0.7]))
def test_a_choice_fits_its_budget_and_no_uniform_one_of_its_size_is_better(family: str, share: float) -> None:
    found = problem(family, **TABLES)
    solved = found.solve(losses(found))
    nbytes = found.smallest_bytes + int(share * (found.kept_bytes - found.smallest_bytes))
    chosen = solved.within(nbytes)
    assert found.nbytes(chosen) <= nbytes
    lost = total(found, chosen)
    for form in CHOICES:
        uniform = {part.name: form if form in part.forms else part.forms[0] for part in found.parts}
        assert found.nbytes(uniform) > nbytes or total(found, uniform) >= lost


def test_noise_of_single_losses_is_taken_out() -> None:
    """Levels of parts and factors of packings are found again; the best of noise is no longer preferred."""
    found, random = problem("31B"), np.random.default_rng(0)
    factors = {"int4 g128": 1.5, "int4 g64": 1.2, "int4 g32": 1.0, "int8 per row": 0.01, "int8 g32": 0.001}
    true = {
        part.name: {k: f * level for k, f in factors.items()}
        for part, level in zip(found.free, random.uniform(1, 9, len(found.free)), strict=True)
    }
    exact = smooth_losses(found, true)
    assert all(exact[name] == pytest.approx(forms) for name, forms in true.items())
    noisy = {name: {k: kl * random.lognormal(0, 0.2) for k, kl in forms.items()} for name, forms in true.items()}

    def off(losses: Losses) -> float:
        ratios = [losses[name]["int4 g128"] / losses[name]["int4 g32"] for name in true]
        return float(np.std(np.log(ratios)))

    assert off(smooth_losses(found, noisy)) < 0.5 * off(noisy)


def test_uniform_choices_take_what_fits() -> None:
    found = problem("26B-A4B")
    forms = {
        part.name: {label_form(one[part.name]) for one in dict(found.assign_uniformly()).values()}
        for part in found.free
    }
    assert forms["layers.0.experts"] == {"int4 g64", "int4 g32", "int8 per row", "int8 g32", "kept"}
    assert forms["layers.0.self_attn.o_proj"] == {label_form(form) for form in CHOICES}


def total(found: Problem, chosen: Assignment) -> float:
    known = losses(found)
    return sum(known[name][label_form(form)] for name, form in chosen.items() if form and name in known)


def test_a_tied_head_is_one_tensor_as_long_as_neither_is_packed() -> None:
    found = problem("31B", **TABLES)
    chosen = {part.name: None if part.role in {"embedding", "lm_head"} else Packing(4, 32) for part in found.parts}
    assert found.nbytes(chosen) == lay_out(planned(FAMILIES["31B"])).tensor_bytes
    assert lay_out(planned(FAMILIES["31B"], **TABLES)).tensor_bytes == found.nbytes(
        chosen | {"embed_tokens": Packing(4, 32), "lm_head": Packing(8, 32)}
    )


def test_rules_of_the_base_recipe_are_kept() -> None:
    found = problem("31B", **BASES["with rules"])
    fixed = {part.name: label_form(part.base) for part in found.parts if not part.is_free}
    assert {"layers.0.self_attn.o_proj", "layers.1.mlp.down_proj"} <= fixed.keys()
    assert {fixed["layers.0.mlp.gate_up_proj"], fixed["layers.1.mlp.gate_up_proj"]} == {"kept", "int8 g32"}


def test_packings_that_do_not_divide_a_row_are_no_choice() -> None:
    found = problem("26B-A4B")
    forms = {part.unit.part: [label_form(form) for form in part.forms] for part in found.free}
    assert forms[r"(moe\.)?experts"] == ["int4 g64", "int4 g32", "int8 per row", "int8 g32", "kept"]


def test_a_part_with_one_packing_left_is_fixed_at_it() -> None:
    found = problem("31B", **TABLES)
    packed = [form for form in CHOICES if form]
    fewer = found.without({"embedding *embed_tokens": packed, "lm_head *lm_head": packed})
    assert {part.name: part.base for part in fewer.parts if not part.is_free} == {"embed_tokens": None, "lm_head": None}
    assert fewer.fixed_bytes == problem("31B").fixed_bytes
    with pytest.raises(GateError, match="no choice of packing is left") as caught:
        found.without({"mlp *.mlp.down_proj": CHOICES})
    assert [*caught.value.offenders] == [
        "mlp *.mlp.down_proj: int4 g128, int4 g64, int4 g32, int8 per row, int8 g32, kept refused"
    ]


@pytest.mark.wide
@pytest.mark.parametrize("size", one_in(5, RELEASED))
def test_few_rules_say_a_choice_for_a_released_size(size: str) -> None:
    checkpoint = opened(released(size))
    found = Problem.of(make_plan(checkpoint, load().recipe), CHOICES)
    chosen = found.solve(losses(found)).within(Bits(5.0).bytes_of(found))
    values = make_values(found, chosen)
    assert len(values["rules"]) <= 20
    make_checked_plan(checkpoint, values, found, chosen)


def test_bits_are_those_of_a_uniform_recipe() -> None:
    found = problem("31B")
    for bits, form in ((4.125, Packing(4, 128)), (4.5, Packing(4, 32))):
        uniform = {part.name: form if part.is_free else part.base for part in found.parts}
        assert found.bits(found.nbytes(uniform)) == bits
        assert Bits(bits).bytes_of(found) == found.nbytes(uniform)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Size(10), "--target-size 10: below the smallest output, "),
        (Bits(4.1), "--target-bits 4.1: below the smallest output, .* 4.125 bits a weight"),
        (Bits(17), "--target-bits 17: not below every weight as it is, .* 16.000 bits a weight"),
        (Size(10**15), "not below every weight as it is, "),
    ],
)
def test_budgets_that_cannot_be(target: Size | Bits, message: str) -> None:
    found = problem("31B")
    with pytest.raises(UsageError, match=message) as caught:
        check_budget(target, found)
    assert "not decided on" in caught.value.hint or "nothing is decided" in caught.value.hint


def test_a_budget_that_is_too_small_is_told_what_else_could_be_packed() -> None:
    found, coarse = problem("E2B"), Problem.of(planned(released("E2B"), "w4a16-g32"), parse_choices(["8:32", "16"]))
    for one in (found, coarse):
        with pytest.raises(UsageError) as caught:
            check_budget(Size(10**9), one)
        assert re.search(r"are not decided on; --bits ple_embedding=4 \(.*\) or --bits \w+=4 \(", caught.value.hint)
        assert ("--choice 4:32 " in caught.value.hint) is (one is coarse)
    rest = problem("31B", bits={"embedding": 4, "lm_head": 4})
    with pytest.raises(UsageError) as caught:
        check_budget(Size(10**8), rest)
    assert "--bits" not in caught.value.hint


def test_one_target_is_asked_for() -> None:
    assert parse_target("14GB", None, None) == Size(14 * 10**9)
    assert parse_target(None, 4.75, None) == Bits(4.75)
    assert parse_target(None, None, 0.02) == Loss(0.02)
    for asked in ((None, None, None), ("14GB", 4.5, None), ("14 bananas", None, None), ("0", None, None)):
        with pytest.raises(UsageError):
            parse_target(*asked)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="above 0"):
            parse_target(None, wrong, None)


def test_choices_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="no engine has a kernel") as caught:
        parse_choices(["4:32", "3:32", "8:12", "16:32", "5", "4:channel"])
    assert [line.partition(": ")[0].partition(": expected")[0] for line in caught.value.offenders] == [
        "3:32",
        "8:12",
        "16:32",
        "5",
    ]


@pytest.mark.parametrize(
    ("family", "options", "error", "message"),
    [
        ("assistant", {"assistant": "pack"}, UnsupportedError, "a drafter has no loss"),
        ("31B", {"rules": [{"role": "attention", "bits": 8}, {"role": "mlp", "bits": 4}]}, UsageError, "nothing to"),
        ("31B", {"pack": ["vision_tower", "mlp"], "rules": [{"role": "vision_tower", "bits": 8}]}, UsageError, "tower"),
        ("31B", {"bits": {"experts": 8}}, UsageError, "weights that this model has not"),
        ("31B", {"rules": [{"layers": "4-9", "bits": 8}]}, UsageError, "weights that this model has not"),
    ],
)
def test_problems_that_cannot_be(family: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        problem(family, **options)

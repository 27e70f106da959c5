"""Prices of methods: arithmetic over released sizes, in the order that is known of them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from helpers import ROOT
from helpers.headers import planned
from helpers.released_configs import FAMILIES, released

from g4convert.planning.costs import BUNDLED_TOKENS, KL, KL_OF_EXPERTS, MethodCost, estimate_costs
from g4convert.planning.recipe import RecipeMethod
from g4convert.planning.sizes import add_up_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping


def found(
    size: str, workers: int = 2, tokens: int = BUNDLED_TOKENS, recipe: str = "w4a16-g32"
) -> dict[RecipeMethod, MethodCost]:
    plan = planned(released(size), recipe)
    return {one.method: one for one in estimate_costs(plan, add_up_sizes(plan), workers, tokens)}


@pytest.mark.parametrize("size", ["E2B", "26B-A4B", "31B"])
def test_what_gains_more_takes_longer(size: str) -> None:
    auto, *others = found(size).values()
    assert (auto.disk, auto.tokens) == (0, 0)
    assert all(one.disk > 0 for one in others)
    for less, more in pairwise([auto, *others]):
        assert less.seconds < more.seconds
        assert less.memory <= more.memory
        assert less.kl is not None
        assert more.kl is not None
        assert less.kl > more.kl


def test_tokens_and_workers_show() -> None:
    one, more, slow = found("31B"), found("31B", tokens=2 * BUNDLED_TOKENS), found("31B", workers=1)
    for method in (RecipeMethod.IMATRIX, RecipeMethod.GPTQ, RecipeMethod.BEST):
        assert more[method].disk == 2 * one[method].disk
        assert one[method].seconds < more[method].seconds < 2 * one[method].seconds
        assert 1.9 * one[method].seconds < slow[method].seconds


def test_experts_see_a_part_of_the_tokens() -> None:
    """31B has 30.7 billion weights in its layers for each token, 26B-A4B 3.8 of its 25."""
    assert found("26B-A4B")[RecipeMethod.IMATRIX].seconds < found("31B")[RecipeMethod.IMATRIX].seconds / 4


def test_the_recipes_method_comes_first_and_a_gain_is_of_its_group_size() -> None:
    assert [*found("31B", recipe="w4a16-g32-gptq")] == [
        RecipeMethod.GPTQ,
        RecipeMethod.AUTO,
        RecipeMethod.IMATRIX,
        RecipeMethod.BEST,
    ]
    kl = [one.kl for one in found("31B", recipe="w4a16-g128").values()]
    assert kl == [
        KL.get(128, {}).get(method)
        for method in (RecipeMethod.AUTO, RecipeMethod.IMATRIX, RecipeMethod.GPTQ, RecipeMethod.BEST)
    ]
    assert {one.kl for one in found("31B", recipe="w8a16-g32").values()} == {None}


def test_a_drafter_has_no_choice() -> None:
    plan = planned(FAMILIES["assistant"], assistant="pack")
    assert [one.method for one in estimate_costs(plan, add_up_sizes(plan), 1)] == [RecipeMethod.AUTO]


@pytest.mark.wide
def test_losses_of_models_with_experts_are_those_of_a_mixture() -> None:
    for size, model in (("31B", "Gemma 3 270M"), ("26B-A4B", "Gemma 3 270M with its MLPs split into experts")):
        assert {one.measured_on for one in found(size).values()} == {model}
    assert found("26B-A4B")[RecipeMethod.GPTQ].kl == KL_OF_EXPERTS[32][RecipeMethod.GPTQ]


@pytest.mark.parametrize(
    ("title", "known"),
    [
        ("Groups of 32", KL[32]),
        ("Groups of 128", KL[128]),
        ("A mixture of experts, groups of 32", KL_OF_EXPERTS[32]),
    ],
)
def test_the_losses_are_those_of_the_page_on_quality(title: str, known: Mapping[RecipeMethod, float]) -> None:
    page = (ROOT / "docs" / "quality.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in page.splitlines() if "+-" in line]
    measured: dict[str, float] = {}
    for name, kl in rows:
        measured.setdefault(name.partition(",")[0], float(kl.split()[0]))  # later rows have other data
    for method in (RecipeMethod.MINMAX, RecipeMethod.MSE, RecipeMethod.IMATRIX, RecipeMethod.GPTQ, RecipeMethod.BEST):
        assert known[method] == measured[method.value]

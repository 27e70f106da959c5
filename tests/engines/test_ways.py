"""Ways out of a refusal: the remedies of a verdict, the gate that asks for one, and the table that lists them."""

import re
from collections.abc import Iterable
from dataclasses import replace
from io import StringIO

import pytest
from helpers.grids import one_in
from helpers.headers import planned
from helpers.judged import CAVEAT, DENSE_PARTS, EXPERTS, MOE, NO, thin, verdict, verdicts_with_remedies, weights_of
from helpers.released_configs import released
from rich.console import Console

from g4convert.cli import show_engines
from g4convert.engines import CONTRACTS
from g4convert.engines.advice import raise_if_refused
from g4convert.engines.reason import Reason
from g4convert.engines.remarks import Remark, Remedy, Topic
from g4convert.engines.remedies import NO_CHOICE
from g4convert.engines.verdicts import BASIS, TENSOR_PARALLEL, Verdict, verdicts
from g4convert.engines.weights import Weights
from g4convert.errors import GateError
from g4convert.gemma4 import Role
from g4convert.planning.gate import Outlook

BARE = "`--pack attention` to leave mlp and experts in bf16 (about 50.0 GB; 1, 2, 4 or 8 GPUs)"
NO_MLP = (
    "`--pack attention --pack experts` to leave mlp in bf16 "
    "(about 17.1 GB; 1 or 2 GPUs, 4 or 8 GPUs with `--enable-expert-parallel`)"
)
NO_MLP_64 = NO_MLP.replace("17.1 GB; 1 or 2 GPUs, 4", "16.4 GB; 1 GPU, 2, 4")
NO_EXPERTS = "`--pack attention --pack mlp` to leave experts in bf16 (about 49.2 GB"


@pytest.mark.parametrize(
    ("options", "place", "ways"),
    one_in(
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
    (found,) = verdicts_with_remedies(weights_of(MOE, options), [engine], [int(tp)])
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
    refused = [one for one in verdicts_with_remedies(thin(MOE, options), [engine]) if one.loads is NO]
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


# the gate


def held(weights: Weights, engines: list[str], tps: list[int]) -> None:
    raise_if_refused(weights, verdicts(weights, tps=tps), engines, tps)


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
    one_in(
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
    outlook.require_engines(plan.recipe, [1, 2])
    with pytest.raises(GateError):
        outlook.require_engines(plan.recipe, [4])
    with pytest.raises(GateError):
        outlook.require_engines(planned(released(MOE), engines=["vllm", "sglang"]).recipe, [1])
    outlook.require_engines(planned(released(MOE)).recipe, [4])  # none is named


# the table


def told(found: Iterable[Verdict], **how: str) -> str:
    written = StringIO()
    show_engines.print_verdicts(Console(file=written, width=400), found, **how)
    return written.getvalue()


def test_the_table_tells_advice_from_rows() -> None:
    text = told(verdicts_with_remedies(weights_of(MOE, DENSE_PARTS), [*CONTRACTS]))
    rows, _, advice = text.partition("\n\n`quantize` with these options packs less, and more engines or GPUs load it")
    (way,) = advice.splitlines()[1:]  # its rows have the numbers of GPUs
    loads = "transformers, vLLM (1, 2, 4 or 8 GPUs), SGLang (1, 2, 4 or 8 GPUs)"
    assert way == f"  --pack attention  mlp in bf16, output about 50.0 GB; loads in {loads}"
    assert rows.splitlines()[-1].strip() == BASIS
    assert "other engines load it" not in told(verdicts_with_remedies(thin("31B", {}), [*CONTRACTS], [1]))


def test_the_options_for_most_engines_come_first_and_in_full() -> None:
    found = verdicts_with_remedies(thin(MOE, {}), [*CONTRACTS])
    lines = (
        told(found, command="g4convert quantize gemma -o out")
        .partition("and more engines or GPUs load it")[2]
        .splitlines()
    )
    loads = "transformers, vLLM (1 or 2 GPUs), SGLang (1 GPU)"  # vLLM, which loads it now, does so then
    assert lines[1] == f"  --pack attention --pack mlp      experts in bf16, output about 2.3 GB; loads in {loads}"
    assert lines[-1] == "  the first in full: g4convert quantize gemma -o out --pack attention --pack mlp"


def test_a_size_without_a_way_leaves_the_ways_of_others() -> None:
    found = verdicts_with_remedies(thin(MOE, {}), ["sglang"], [1, 64])
    assert found[1].remedies == (NO_CHOICE,)
    assert NO_CHOICE.text not in told(found)
    assert NO_CHOICE.text in told(found[1:])


def test_a_way_that_writes_all_anew_is_the_only_one() -> None:
    """A change of the config alone does not make it load."""
    mends = Remark(Topic.STORED, "config", Reason("wrong"), (Remedy("mend it"),))
    assert replace(Verdict("vllm", "vLLM", 1), problems=(mends,)).ways == (Remedy("mend it"),)
    (refused,) = verdicts_with_remedies(thin(MOE, {}), ["sglang"], [1])
    assert refused.remedies
    assert replace(refused, problems=(*refused.problems, mends)).ways == refused.remedies


def test_sizes_in_one_row_have_their_own_numbers() -> None:
    lines = told(verdicts(thin(MOE, {}), ["vllm"])).splitlines()
    (merged,) = (line for line in lines if " 4, 8 " in line)
    assert "mlp.down_proj: 2112 inputs / 4 = 528 and / 8 = 264, not a multiple of 32" in merged
    assert "experts: 704 inputs / 4 = 176 and / 8 = 88, not a multiple of 32" in merged
    (heads,) = (line for line in told(verdicts(thin("31B", {}), ["vllm"], [64, 128])).splitlines() if "64, 128" in line)
    assert "32 heads cannot be split over 64 GPUs and over 128 GPUs" in heads

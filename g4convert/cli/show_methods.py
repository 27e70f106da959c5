"""Printing of what each method of quantization takes, and what it left on a real model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.table import Table

from g4convert.cli.tables import make_table
from g4convert.planning.costs import SHARE_LEFT_BY_8_BITS, look_up_kl, look_up_kl_of_model
from g4convert.planning.recipe import EIGHT_BITS, RecipeMethod
from g4convert.planning.recipe_files import load
from g4convert.quantities import nats, plural, rough_duration, rough_size
from g4convert.request import DEFAULTS

if TYPE_CHECKING:
    from g4convert.planning.costs import MethodCost
    from g4convert.planning.recipe import Recipe

_EIGHT = 8
_MEASURED_GROUP = 32
"""Group size at which models with and without experts were measured."""
_WORTH_ADVISING = 0.9
"""A method is recommended if it leaves less than this part of what the plan's method leaves."""
_VERDICT_WORDS = {"fail": "fails", "warn": "warns", "pass": "passes"}
"""Expected verdicts as verbs."""


def make_methods_table(costs: Sequence["MethodCost"]) -> Table:
    """Return a table of each method, and of 8 bits: option, time, memory and disk, loss on a real model, verdict."""
    columns = ["method", "option", "time", "memory", "disk"]
    is_measured = all(cost.kl is not None for cost in costs)
    eight = _cost_of_8_bits(costs) if is_measured else None
    rows = []
    for cost in (*costs, eight) if eight else costs:
        name = "8 bits" if cost is eight else str(cost.method)
        row = [name, cost.option or "(this plan)", rough_duration(cost.seconds), rough_size(cost.memory)]
        row.append(rough_size(cost.disk) if cost.disk else "none")
        rows.append([*row, *_loss_cells(cost, estimated=cost is eight)] if is_measured else row)
    columns += ["KL, nats", "verify"] if is_measured else []
    return make_table(columns, rows, right=columns[2:-1] if is_measured else columns[2:])


def _cost_of_8_bits(costs: Sequence["MethodCost"]) -> "MethodCost | None":
    """Return the cost of 8 bits, which takes the time of 4 bits without data; None where the loss is not known."""
    kl_of_4_bits = look_up_kl_of_model(costs[0].measured_on, load(EIGHT_BITS).recipe.group_size).get(RecipeMethod.MSE)
    without_data = next((cost for cost in costs if not cost.tokens), None)
    if without_data is None or kl_of_4_bits is None:
        return None
    return replace(without_data, kl=SHARE_LEFT_BY_8_BITS * kl_of_4_bits, option=f"-r {EIGHT_BITS}")


def _loss_cells(cost: "MethodCost", *, estimated: bool = False) -> tuple[str, str]:
    """Return the loss of a method on a real model, and the expected verdict; empty texts if it was not measured."""
    if cost.kl is None:
        return "", ""
    return f"{cost.kl:.2g}" if estimated else nats(cost.kl), _VERDICT_WORDS[_expected_verdict(cost.kl)]


def _expected_verdict(kl: float) -> str:
    """Return the verdict of `verify` to expect for a mean KL, with default limits: `fail`, `warn` or `pass`."""
    from g4convert.verification.gates import WIDER, expected_severity
    from g4convert.verification.profiles import load

    return expected_severity(WIDER * kl, load(DEFAULTS.profile)).value


def _expected_only_of_8_bits(costs: Sequence["MethodCost"]) -> str:
    """Return the verdict to expect for 8 bits if every method in 4 bits is expected to fail; otherwise empty."""
    eight = _cost_of_8_bits(costs)
    if (
        eight is None
        or eight.kl is None
        or not all(cost.kl is not None and _expected_verdict(cost.kl) == "fail" for cost in costs)
    ):
        return ""
    return _expected_verdict(eight.kl)


def describe_outlook(costs: Sequence["MethodCost"]) -> str:
    """Say that every method in 4 bits is expected to fail, and what to expect of 8 bits; otherwise empty."""
    words = {"pass": "8 bits to pass", "warn": "8 bits to pass with a warning", "fail": "so are 8 bits"}
    if not (eight := _expected_only_of_8_bits(costs)):
        return ""
    return f"On that model every 4-bit method is expected to fail `verify` and {words[eight]}; yours may differ"


def describe_doubt(costs: Sequence["MethodCost"], *, but: str = "") -> str:
    """Advise 8 bits for a conversion in 4 bits, if only 8 bits are not expected to fail; otherwise empty.

    Args:
        costs: cost of the method, then of others.
        but: condition under which it does not fail.
    """
    return f"may fail{but}; 8 bits: -r {EIGHT_BITS}" if _expected_only_of_8_bits(costs) in {"pass", "warn"} else ""


def describe_basis(costs: Sequence["MethodCost"], workers: int, *, own_texts: bool) -> str:
    """Describe the origin of the numbers in the table of methods.

    Args:
        costs: rows of the table.
        workers: threads that they are for.
        own_texts: whether the tokens are of the user's texts, whose number is known.
    """
    tokens = max(cost.tokens for cost in costs)
    about = float(f"{tokens:.2g}")
    texts = (
        f"{plural(tokens, 'token')} of your texts" if own_texts else f"about {about:,.0f} tokens of the bundled texts"
    )
    estimated = (
        f"estimates for {plural(workers, 'thread')} on idle cores; times include the check of every weight, disk is "
        f"temporary. {', '.join(str(cost.method) for cost in costs if cost.tokens)}: calibrated on {texts}"
    )
    if any(cost.method is RecipeMethod.BEST for cost in costs):
        estimated += ". best: gptq, with its scales trained"
    if any(cost.kl is None for cost in costs):
        return estimated
    eight = "; that of 8 bits is an estimated upper bound" if _cost_of_8_bits(costs) else ""
    measured = (
        "KL: mean KL divergence of the next token's probabilities from the original's, 0 if equal, "
        f"{describe_measurement(costs)}{eight}. {explain_verdicts()}"
    )
    return ". ".join(filter(None, (estimated, measured, describe_outlook(costs))))


def explain_verdicts() -> str:
    """Explain the verdicts in a table of methods, which follow from the mean KL and the default limits."""
    from g4convert.verification.gates import WIDER
    from g4convert.verification.profiles import load

    limits = load(DEFAULTS.profile).thresholds["kl_mean"]
    return (
        "verify: the verdict to expect. It judges the upper end of the 95 % interval, taken here as "
        f"{WIDER:.2g} times the KL shown: above {limits.passes:g} warns, above {limits.fail:g} fails"
    )


def failing_kl() -> float:
    """Return the mean KL above which `verify` fails by default."""
    from g4convert.verification.profiles import load

    return load(DEFAULTS.profile).thresholds["kl_mean"].fail


def describe_measurement(costs: Sequence["MethodCost"]) -> str:
    """Name the text and the model that the losses were measured with."""
    return f"measured on held-out text with {name_measured_model(costs)}, not with your model"


def name_measured_model(costs: Sequence["MethodCost"]) -> str:
    """Name the model that the losses were measured with; a mixture of experts stands in for others."""
    name = costs[0].measured_on
    return f"a stand-in MoE ({name})" if name == look_up_kl(_MEASURED_GROUP, has_experts=True)[1] else name


def advise_method(costs: Sequence["MethodCost"]) -> str:
    """Say when to take the plan's method and when another; empty if no method is known to lose less."""
    own, *others = costs
    if doubt := describe_doubt(costs, but="" if own.tokens else " unless the source is QAT"):
        return doubt
    gptq = next((cost for cost in others if cost.method == RecipeMethod.GPTQ and cost.option), None)
    if own.tokens or own.kl is None or gptq is None or gptq.kl is None or gptq.kl > _WORTH_ADVISING * own.kl:
        return ""
    return f"quick: for a first try or a QAT source; for real use add {gptq.option}"


def make_better_methods_table(costs: Sequence["MethodCost"], method: str) -> Table | None:
    """Return a table of what an output's method left of a real model, and of methods that left less; None without any.

    Args:
        costs: cost of the output's method, then of others.
        method: the output's method, which `auto` chose.
    """
    own_cost, *others = costs
    if own_cost.kl is None:
        return None
    rows = [[method, "(as here)", *_loss_cells(own_cost), ""]]
    for cost in others:
        if cost.tokens and cost.kl is not None and cost.kl < own_cost.kl:
            name = "best (gptq, trained)" if cost.method is RecipeMethod.BEST else str(cost.method)
            rows.append([name, cost.option, *_loss_cells(cost), rough_duration(cost.seconds)])
    if not rows[1:]:
        return None
    if eight := _cost_of_8_bits(costs):
        kl, verdict = _loss_cells(eight, estimated=True)
        rows.append(["8 bits (estimated)", eight.option, f"up to {kl}", verdict, rough_duration(eight.seconds)])
    columns = ("method", "option", "KL, nats", "verify", "time here")
    return make_table(columns, rows, right=("KL, nats", "time here"))


def describe_expected_loss(recipe: "Recipe", *, has_experts: bool) -> str:
    """Describe the loss to expect of a recipe of 8 bits; empty for any other recipe."""
    losses, model = look_up_kl(recipe.group_size, has_experts=has_experts)
    if recipe.num_bits != _EIGHT or not recipe.is_uniform or not losses:
        return ""
    kl_of_4_bits = losses[RecipeMethod.MSE]
    return (
        f"expected mean KL: at most about {SHARE_LEFT_BY_8_BITS * kl_of_4_bits:.2g} nats (by rule of thumb: the "
        f"{nats(kl_of_4_bits)} of 4 bits on {model}, a quarter for each further bit); `verify` fails above "
        f"{failing_kl():g}"
    )

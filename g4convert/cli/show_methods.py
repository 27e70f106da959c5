"""Printing of what each method of quantization takes, and what it left on a real model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from g4convert.cli.tables import table
from g4convert.planning.costs import OF_EIGHT, measured_kl
from g4convert.planning.recipe import EIGHT_BITS, Method, load
from g4convert.quantities import nats, plural, rough_duration, rough_size
from g4convert.request import DEFAULTS

if TYPE_CHECKING:
    from g4convert.planning.costs import Cost
    from g4convert.planning.recipe import Recipe
    from g4convert.verification.gates import Threshold

_EIGHT = 8
_LESS = 0.9
"""A method is named if it leaves less than this part of what the one named before leaves."""


def worth(found: Sequence["Cost"]) -> Sequence["Cost"]:
    """Return the plan's method and the others without those that take longer than one that loses about as little."""
    own, *others = found
    kept, least = [own], float("inf")
    for one in others:
        if one.kl is None or one.kl < _LESS * least:
            kept.append(one)
            least = least if one.kl is None else one.kl
    return kept


def methods(found: Sequence["Cost"]) -> Table:
    """Return a table with the option, estimated time, memory and disk of each method, and its loss on a real model."""
    columns = ["method", "option", "time", "memory", "scratch disk"]
    known = all(one.kl is not None for one in found)
    rows = []
    for one in found:
        row = [str(one.method), one.option or "(this plan)", rough_duration(one.seconds), rough_size(one.memory)]
        row.append(rough_size(one.disk) if one.disk else "none")
        rows.append([*row, nats(one.kl)] if known and one.kl is not None else row)
    columns += ["KL, nats"] if known else []
    return table(columns, rows, right=columns[2:])


def basis(found: Sequence["Cost"], workers: int, *, own_texts: bool) -> str:
    """Return a sentence on the origin of the numbers in the table of methods.

    Args:
        found: rows of the table.
        workers: threads that they are for.
        own_texts: whether the tokens are of the user's texts, whose number is known.
    """
    tokens = max(one.tokens for one in found)
    about = float(f"{tokens:.2g}")
    texts = (
        f"{plural(tokens, 'token')} of your texts" if own_texts else f"about {about:,.0f} tokens of the bundled texts"
    )
    estimated = (
        f"estimates for {plural(workers, 'thread')} on idle cores; times include the check of every weight. "
        f"{', '.join(str(one.method) for one in found if one.tokens)}: calibrated on {texts}"
    )
    if any(one.method is Method.BEST for one in found):
        estimated += ". best: gptq, with its scales trained"
    limits = _limits()
    measured = (
        "KL: mean KL divergence of the next token's probabilities from the original's, 0 if equal, measured on "
        f"{found[0].measured_on}; other models lose other amounts. `verify` judges the upper end of the mean's "
        f"95 % interval: above {limits.passes:g} it warns, above {limits.fail:g} it fails"
    )
    return f"{estimated}. {measured}" if all(one.kl is not None for one in found) else estimated


def _limits() -> "Threshold":
    """Return the limits of the mean KL that `verify` takes by default."""
    from g4convert.verification.gates import load

    return load(DEFAULTS.profile).thresholds["kl_mean"]


def fails_above() -> float:
    """Return the mean KL above which `verify` fails by default."""
    return _limits().fail


def choice(found: Sequence["Cost"]) -> str:
    """Return words on when to take the plan's method and when `gptq`; empty where `gptq` is not known to lose less."""
    own, *others = found
    gptq = next((one for one in others if one.method == Method.GPTQ and one.option), None)
    if own.tokens or own.kl is None or gptq is None or gptq.kl is None or gptq.kl > _LESS * own.kl:
        return ""
    return f"quick: for a first try or a QAT source; for real use add {gptq.option}"


def others(found: Sequence["Cost"], own: str, *, has_experts: bool) -> Table | None:
    """Return a table of what an output's method left of a real model, and of methods that left less; None without any.

    Args:
        found: cost of the output's method, then of others.
        own: the output's method, which `auto` chose.
        has_experts: whether the model has experts.
    """
    mine, *rest = found
    if mine.kl is None:
        return None
    least, rows = mine.kl, [[own, "(as here)", nats(mine.kl), ""]]
    for one in rest:
        if one.tokens and one.kl is not None and one.kl < _LESS * least:
            least = one.kl
            name = "best (gptq, trained scales)" if one.method is Method.BEST else str(one.method)
            rows.append([name, one.option, nats(one.kl), rough_duration(one.seconds)])
    if not rows[1:]:
        return None
    known, _ = measured_kl(load(EIGHT_BITS).recipe.group_size, has_experts=has_experts)
    rows.append(["8 bits (estimated)", f"-r {EIGHT_BITS}", f"up to {OF_EIGHT * known[Method.MSE]:.2g}", ""])
    columns = ("method", "option", "KL, nats", "time here")
    return table(columns, rows, right=columns[2:])


def expected(recipe: "Recipe", *, has_experts: bool) -> str:
    """Return words on the loss to expect of a recipe of 8 bits; empty for any other recipe."""
    known, model = measured_kl(recipe.group_size, has_experts=has_experts)
    if recipe.num_bits != _EIGHT or not recipe.is_uniform or not known:
        return ""
    four = known[Method.MSE]
    return (
        f"a mean KL of at most about {OF_EIGHT * four:.2g} nats is expected, a 256th of the {nats(four)} of 4 bits on "
        f"{model}, as each bit halves the error and KL goes with its square; `verify` fails above {fails_above():g}"
    )

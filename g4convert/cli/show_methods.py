"""Printing of what each method of quantization takes, and what it left on a real model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.table import Table

from g4convert.cli.tables import table
from g4convert.planning.costs import OF_EIGHT, left_of, measured_kl
from g4convert.planning.recipe import EIGHT_BITS, RecipeMethod
from g4convert.planning.recipe_files import load
from g4convert.quantities import nats, plural, rough_duration, rough_size
from g4convert.request import DEFAULTS

if TYPE_CHECKING:
    from g4convert.planning.costs import MethodCost
    from g4convert.planning.recipe import Recipe

_EIGHT = 8
_GROUP = 32
"""Group size at which models with and without experts were measured."""
_LESS = 0.9
"""A method is recommended if it leaves less than this part of what the plan's method leaves."""
_WORDS = {"fail": "fails", "warn": "warns", "pass": "passes"}
"""Expected verdicts, as words."""


def methods(found: Sequence["MethodCost"]) -> Table:
    """Return a table of each method, and of 8 bits: option, time, memory and disk, loss on a real model, verdict."""
    columns = ["method", "option", "time", "memory", "disk"]
    known = all(one.kl is not None for one in found)
    eight = _eight_bits(found) if known else None
    rows = []
    for one in (*found, eight) if eight else found:
        name = "8 bits" if one is eight else str(one.method)
        row = [name, one.option or "(this plan)", rough_duration(one.seconds), rough_size(one.memory)]
        row.append(rough_size(one.disk) if one.disk else "none")
        rows.append([*row, *_loss(one, estimated=one is eight)] if known else row)
    columns += ["KL, nats", "verify"] if known else []
    return table(columns, rows, right=columns[2:-1] if known else columns[2:])


def _eight_bits(found: Sequence["MethodCost"]) -> "MethodCost | None":
    """Return the cost of 8 bits, which takes the time of 4 bits without data; None where the loss is not known."""
    known = left_of(found[0].measured_on, load(EIGHT_BITS).recipe.group_size)
    plain = next((one for one in found if not one.tokens), None)
    if plain is None or RecipeMethod.MSE not in known:
        return None
    return replace(plain, kl=OF_EIGHT * known[RecipeMethod.MSE], option=f"-r {EIGHT_BITS}")


def _loss(one: "MethodCost", *, estimated: bool = False) -> tuple[str, str]:
    """Return the loss of a method on a real model, and the verdict to expect of it; empty if it was not measured."""
    if one.kl is None:
        return "", ""
    return f"{one.kl:.2g}" if estimated else nats(one.kl), _WORDS[_outlook(one.kl)]


def _outlook(kl: float) -> str:
    """Return what `verify` is expected to say by default of a mean KL: `fail`, `warn` or `pass`."""
    from g4convert.verification.gates import WIDER, expected_severity
    from g4convert.verification.profiles import load

    return expected_severity(WIDER * kl, load(DEFAULTS.profile)).value


def _eight_alone(found: Sequence["MethodCost"]) -> str:
    """Return what is expected of 8 bits where every method in 4 bits is expected to fail; empty elsewhere."""
    eight = _eight_bits(found)
    if eight is None or eight.kl is None or not all(one.kl is not None and _outlook(one.kl) == "fail" for one in found):
        return ""
    return _outlook(eight.kl)


def conclusion(found: Sequence["MethodCost"]) -> str:
    """Return words where every method in 4 bits is expected to fail; empty elsewhere."""
    words = {"pass": "8 bits to pass", "warn": "8 bits to pass with a warning", "fail": "so are 8 bits"}
    if not (eight := _eight_alone(found)):
        return ""
    return f"On that model every 4-bit method is expected to fail `verify` and {words[eight]}; yours may differ"


def doubt(found: Sequence["MethodCost"], *, but: str = "") -> str:
    """Return words on a conversion in 4 bits where only 8 bits should not fail; empty elsewhere.

    Args:
        found: cost of the method, then of others.
        but: words on when it does not fail.
    """
    return f"may fail{but}; 8 bits: -r {EIGHT_BITS}" if _eight_alone(found) in {"pass", "warn"} else ""


def basis(found: Sequence["MethodCost"], workers: int, *, own_texts: bool) -> str:
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
        f"estimates for {plural(workers, 'thread')} on idle cores; times include the check of every weight, disk is "
        f"temporary. {', '.join(str(one.method) for one in found if one.tokens)}: calibrated on {texts}"
    )
    if any(one.method is RecipeMethod.BEST for one in found):
        estimated += ". best: gptq, with its scales trained"
    if any(one.kl is None for one in found):
        return estimated
    eight = "; that of 8 bits is an estimated upper bound" if _eight_bits(found) else ""
    measured = (
        "KL: mean KL divergence of the next token's probabilities from the original's, 0 if equal, "
        f"{measured_on(found)}{eight}. {verdict_legend()}"
    )
    drawn = conclusion(found)
    return f"{estimated}. {measured}{drawn and f'. {drawn}'}"


def verdict_legend() -> str:
    """Return words on the verdicts in a table of methods, which go by the mean KL and the default limits."""
    from g4convert.verification.gates import WIDER
    from g4convert.verification.profiles import load

    limits = load(DEFAULTS.profile).thresholds["kl_mean"]
    return (
        "verify: the verdict to expect. It judges the upper end of the 95 % interval, taken here as "
        f"{WIDER:.2g} times the KL shown: above {limits.passes:g} warns, above {limits.fail:g} fails"
    )


def fails_above() -> float:
    """Return the mean KL above which `verify` fails by default."""
    from g4convert.verification.profiles import load

    return load(DEFAULTS.profile).thresholds["kl_mean"].fail


def measured_on(found: Sequence["MethodCost"]) -> str:
    """Return words on the text and model of the losses; of a mixture of experts that it stands in for others."""
    name = found[0].measured_on
    model = f"a stand-in MoE ({name})" if name == measured_kl(_GROUP, has_experts=True)[1] else name
    return f"measured on held-out text with {model}, not with your model"


def choice(found: Sequence["MethodCost"]) -> str:
    """Return words on when to take the plan's method and when another; empty where none is known to lose less."""
    own, *others = found
    if doubted := doubt(found, but="" if own.tokens else " unless the source is QAT"):
        return doubted
    gptq = next((one for one in others if one.method == RecipeMethod.GPTQ and one.option), None)
    if own.tokens or own.kl is None or gptq is None or gptq.kl is None or gptq.kl > _LESS * own.kl:
        return ""
    return f"quick: for a first try or a QAT source; for real use add {gptq.option}"


def others(found: Sequence["MethodCost"], own: str) -> Table | None:
    """Return a table of what an output's method left of a real model, and of methods that left less; None without any.

    Args:
        found: cost of the output's method, then of others.
        own: the output's method, which `auto` chose.
    """
    mine, *rest = found
    if mine.kl is None:
        return None
    rows = [[own, "(as here)", *_loss(mine), ""]]
    for one in rest:
        if one.tokens and one.kl is not None and one.kl < mine.kl:
            name = "best (gptq, trained)" if one.method is RecipeMethod.BEST else str(one.method)
            rows.append([name, one.option, *_loss(one), rough_duration(one.seconds)])
    if not rows[1:]:
        return None
    if eight := _eight_bits(found):
        kl, verdict = _loss(eight, estimated=True)
        rows.append(["8 bits (estimated)", eight.option, f"up to {kl}", verdict, rough_duration(eight.seconds)])
    columns = ("method", "option", "KL, nats", "verify", "time here")
    return table(columns, rows, right=("KL, nats", "time here"))


def expected(recipe: "Recipe", *, has_experts: bool) -> str:
    """Return words on the loss to expect of a recipe of 8 bits; empty for any other recipe."""
    known, model = measured_kl(recipe.group_size, has_experts=has_experts)
    if recipe.num_bits != _EIGHT or not recipe.is_uniform or not known:
        return ""
    four = known[RecipeMethod.MSE]
    return (
        f"expected mean KL: at most about {OF_EIGHT * four:.2g} nats (by rule of thumb: the {nats(four)} of 4 bits on "
        f"{model}, a quarter for each further bit); `verify` fails above {fails_above():g}"
    )

"""Printing of what each method of quantization takes, and what it left on a real model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from g4convert.cli.tables import table
from g4convert.planning.recipe import EIGHT_BITS, Method
from g4convert.quantities import nats, plural, rough_duration, rough_size
from g4convert.request import DEFAULTS

if TYPE_CHECKING:
    from g4convert.planning.costs import Cost
    from g4convert.verification.gates import Threshold

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
    texts = f"{plural(tokens, 'token')} of your texts" if own_texts else f"about {tokens:,} tokens of the bundled texts"
    estimated = (
        f"estimates for {plural(workers, 'worker')} on idle cores; times include the check of every weight. "
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


def choice(found: Sequence["Cost"]) -> str:
    """Return words on when to take the plan's method and when `gptq`; empty where `gptq` is not known to lose less."""
    own, *others = found
    gptq = next((one for one in others if one.method == Method.GPTQ and one.option), None)
    if own.tokens or own.kl is None or gptq is None or gptq.kl is None or gptq.kl > _LESS * own.kl:
        return ""
    return f"quick: for a first try or a QAT source; for real use add {gptq.option}"


def untried(found: Sequence["Cost"]) -> str:
    """Return a sentence on methods that calibrate, with time and loss; empty if nothing is known of their loss."""
    own, *others = found
    if own.kl is None:
        return ""
    better, least = [], own.kl
    for one in others:
        if one.tokens and one.kl is not None and one.kl < _LESS * least:
            least = one.kl
            what = "gptq, then trained scales; " if one.method is Method.BEST else ""
            better.append(f"`{one.option}` {nats(one.kl)} ({what}about {rough_duration(one.seconds)} here)")
    left = f"; on {own.measured_on} this method left a mean KL of {nats(own.kl)} nats, "
    if better and least > _limits().fail:
        better.append(f"`-r {EIGHT_BITS}`, in 8 bits, an estimated 256th of the first")
    return f"{left}{', '.join(better)}; `verify` fails above {_limits().fail:g}" if better else ""

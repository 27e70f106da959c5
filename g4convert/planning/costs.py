"""Time, memory and disk that each method takes on this machine, and its loss on a real model.

Rates are per core, on the machine named in docs/decisions.md; other machines differ. `KL` is the loss of a 270M
parameter language model at 4 bits, from docs/quality.md: other models lose other amounts, in the same order.

Letters: n rows (out_features), k columns (in_features), t tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from g4convert.engines.limits import Packing
from g4convert.planning.between import state_bytes, target_bytes
from g4convert.planning.plan import Plan
from g4convert.planning.recipe import RecipeMethod
from g4convert.planning.recipe_files import find_method_option
from g4convert.planning.sizes import START, RoleSize, estimate_write_seconds
from g4convert.planning.training import BATCH, EPOCHS, TrainingMemory

MOST_ROWS: Final = 128
"""Default of the most rows that `calibrate` makes."""
LONGEST_ROW: Final = 2_048
"""Default of the most tokens in a row of `calibrate`."""
ENDS: Final = 2
"""Ids that open and close a picture in a row, in addition to its placeholders."""
BUNDLED_TOKENS: Final = 34_816
"""Tokens of the bundled texts in the released vocabulary: 17 rows of 2,048."""
BUNDLED_PICTURES: Final = 6_144
"""Further tokens for a model that takes pictures: 18 pictures of 260 soft tokens, and texts about them."""
KL: Final[Mapping[int, Mapping[RecipeMethod, float]]] = {
    32: {
        RecipeMethod.MINMAX: 0.462,
        RecipeMethod.MSE: 0.301,
        RecipeMethod.AUTO: 0.301,
        RecipeMethod.IMATRIX: 0.175,
        RecipeMethod.GPTQ: 0.054,
        RecipeMethod.BEST: 0.053,
    },
    128: {
        RecipeMethod.MINMAX: 0.712,
        RecipeMethod.MSE: 0.628,
        RecipeMethod.AUTO: 0.628,
        RecipeMethod.IMATRIX: 0.302,
        RecipeMethod.GPTQ: 0.087,
        RecipeMethod.BEST: 0.084,
    },
}
"""Measured mean KL to the original in nats, by group size and method."""
KL_OF_EXPERTS: Final[Mapping[int, Mapping[RecipeMethod, float]]] = {
    32: {
        RecipeMethod.MINMAX: 0.935,
        RecipeMethod.MSE: 0.749,
        RecipeMethod.AUTO: 0.749,
        RecipeMethod.IMATRIX: 0.458,
        RecipeMethod.GPTQ: 0.300,
        RecipeMethod.BEST: 0.234,
    },
}
"""Measured mean KL of a mixture of experts that was made from that model."""

SHARE_LEFT_BY_8_BITS: Final = 4.0**-4
"""Mean KL of 8 bits as a share of that of 4 bits in groups of 32 without data: four more bits make steps of a 16th.

It was less where it was measured: a 280th of a trained demo MoE, a 1,120th of the real model, whose weights come from
an 8-bit file.
"""
_PASS_FLOP: Final = 35e9
"""Floating-point operations per core and second while statistics are recorded."""
_LAYERS_FLOP: Final = 30e9
"""Floating-point operations per core and second while `gptq` quantizes layers."""
_ROUNDED_PER_SECOND: Final = 4e6
"""Weights per core and second that `gptq` rounds in three ways and compares, in addition to `_LAYERS_FLOP`."""
_BASE_MEMORY: Final = 750_000_000
"""Resident bytes of the interpreter with torch and transformers."""
_TILES_MEMORY: Final = 350_000_000
"""Resident bytes of a process that rounds tiles, without torch."""
_FLOAT32: Final = 4
_MEASURED_BITS: Final = 4
"""Bits at which `KL` was measured."""
_CALIBRATED: Final = (RecipeMethod.IMATRIX, RecipeMethod.GPTQ, RecipeMethod.BEST)
_SHARED_INPUTS: Final = frozenset({"k_proj", "v_proj", "up_proj"})
"""Projections that share the inputs of a projection before them."""


@dataclass(frozen=True, slots=True)
class MethodCost:
    """Cost of a method, and its loss.

    Args:
        method: the method.
        seconds: time from the command to a checked output, calibration included.
        memory: largest resident size of the process, in bytes.
        disk: temporary bytes beside the output.
        tokens: number of calibration token ids; 0 for a method that reads weights alone.
        kl: mean KL in nats to the original on a real model; None if not measured.
        measured_on: name of that model; empty if not measured.
        option: option of the command line that chooses the method; empty for the recipe's own.
    """

    method: RecipeMethod
    seconds: float
    memory: int
    disk: int
    tokens: int
    kl: float | None = None
    measured_on: str = ""
    option: str = ""


def look_up_kl(group_size: int | str | None, *, has_experts: bool) -> tuple[Mapping[RecipeMethod, float], str]:
    """Return the mean KL of each method at 4 bits on a real model, and the model's name; empty if not measured.

    Args:
        group_size: weights that share a scale.
        has_experts: whether the model in question has experts; one with experts stands for it where it was measured.
    """
    size = group_size if isinstance(group_size, int) else 0
    if has_experts and size in KL_OF_EXPERTS:
        return KL_OF_EXPERTS[size], "Gemma 3 270M with its MLPs split into experts"
    return (KL[size], "Gemma 3 270M") if size in KL else ({}, "")


def look_up_kl_of_model(model: str, group_size: int | str | None) -> Mapping[RecipeMethod, float]:
    """Return the mean KL of each method at 4 bits on the model with this name; empty if not measured."""
    both = (look_up_kl(group_size, has_experts=has_experts) for has_experts in (True, False))
    return next((losses for losses, name in both if name == model), {})


def estimate_costs(
    plan: Plan, sizes: Iterable[RoleSize], workers: int, tokens: int = BUNDLED_TOKENS
) -> tuple[MethodCost, ...]:
    """Return the cost of the recipe's method, then of the alternatives: the default and the calibrated methods.

    Args:
        plan: plan under any method.
        sizes: bytes by role.
        workers: number of threads.
        tokens: number of calibration token ids; by default those of the bundled texts.
    """
    rows, own_method = tuple(sizes), plan.recipe.method
    others: tuple[RecipeMethod, ...] = (RecipeMethod.AUTO, *_CALIBRATED) if own_method in _CALIBRATED else _CALIBRATED
    if not plan.quantized or plan.architecture.is_assistant:
        others = ()
    is_measured = {step.packing for step in plan.quantized} == {Packing(_MEASURED_BITS, plan.recipe.group_size)}
    losses, model = look_up_kl(
        plan.recipe.group_size if is_measured else None, has_experts=plan.architecture.text.experts is not None
    )
    return tuple(
        replace(
            _estimate_cost(plan, rows, workers, tokens, method),
            kl=losses.get(method),
            measured_on=model,
            option="" if method == own_method else find_method_option(plan.recipe, method),
        )
        for method in dict.fromkeys((own_method, *others))
    )


def _estimate_cost(
    plan: Plan, sizes: tuple[RoleSize, ...], workers: int, tokens: int, method: RecipeMethod
) -> MethodCost:
    """Return the cost of a method without its loss."""
    text = plan.architecture.text
    linears = tuple(_find_linears(plan)) if method in _CALIBRATED else ()
    match method:
        case RecipeMethod.IMATRIX:
            seconds = (
                START
                + _pass_flop(linears, tokens) / _PASS_FLOP / workers
                + estimate_write_seconds(sizes, method, workers)
            )
            memory = max(_TILES_MEMORY, _BASE_MEMORY + _layer_bytes(plan))
            return MethodCost(method, seconds, memory, state_bytes(text, tokens, layered=False), tokens)
        case RecipeMethod.GPTQ:
            rounded = sum(linear.n * linear.k for linear in linears) / _ROUNDED_PER_SECOND
            seconds = (
                START + (rounded + _layers_flop(linears, tokens, aimed=text.experts is None) / _LAYERS_FLOP) / workers
            )
            widest = max((linear.k for linear in linears), default=0)
            aimed = 0 if text.experts else 2 * max((linear.n * linear.k for linear in linears), default=0)
            memory = _BASE_MEMORY + _layer_bytes(plan) + _FLOAT32 * (widest**2 + aimed)  # H, which becomes its factor
            return MethodCost(method, seconds, memory, state_bytes(text, tokens, layered=True), tokens)
        case RecipeMethod.BEST:
            layers = _estimate_cost(plan, sizes, workers, tokens, RecipeMethod.GPTQ)
            running = min(BATCH, workers)
            seconds = layers.seconds + _training_flop(plan, linears, tokens) / _LAYERS_FLOP / running
            memory = max(layers.memory, _BASE_MEMORY + TrainingMemory.of(plan, min(tokens, LONGEST_ROW), running).total)
            return MethodCost(method, seconds, memory, layers.disk + target_bytes(text, tokens), tokens)
        case _:
            return MethodCost(method, START + estimate_write_seconds(sizes, method, workers), _TILES_MEMORY, 0, 0)


@dataclass(frozen=True, slots=True)
class _Linear:
    """A packed Linear of the decoder.

    Args:
        n: out_features.
        k: in_features.
        share: share of the tokens that reach the Linear; below 1 for experts.
        first: True if no earlier Linear has the same inputs.
    """

    n: int
    k: int
    share: float
    first: bool


def _find_linears(plan: Plan) -> Iterable[_Linear]:
    """Yield the packed Linears of the decoder."""
    experts, path = plan.architecture.text.experts, plan.inventory.architecture.decoder_path
    for step in plan.quantized:
        module = step.weight.module
        if step.weight.linear and path(module) is not None:
            share = experts.top_k / experts.count if experts and module.expert is not None else 1.0
            n, k = step.weight.shape
            yield _Linear(n, k, share, module.projection not in _SHARED_INPUTS)


def _pass_flop(linears: Iterable[_Linear], tokens: int) -> float:
    """Return the floating-point operations of one forward pass through the layers."""
    return sum(2 * tokens * linear.share * linear.n * linear.k for linear in linears)


def _training_flop(plan: Plan, linears: Iterable[_Linear], tokens: int) -> float:
    """Return the operations of training scales: forward, backward (twice the forward), and the original's logits."""
    text = plan.architecture.text
    return (1 + 3 * EPOCHS) * _pass_flop(linears, tokens) + 2 * tokens * text.hidden_size * text.vocab_size


def _layers_flop(linears: tuple[_Linear, ...], tokens: int, *, aimed: bool) -> float:
    """Return the operations of `gptq`.

    Forward, H (once per shared input), its factor, and the rounding loop; without experts also the forward of the
    unquantized layers, the sum with their inputs, and weights moved by it.
    """
    total = (1 + aimed) * _pass_flop(linears, tokens)
    for linear in linears:
        total += (1 + 6 * aimed) * linear.n * linear.k**2
        if linear.first:
            total += tokens * linear.share * linear.k**2 + 2 / 3 * linear.k**3
            total += aimed * tokens * min(2 * linear.k**2, 4 * linear.n * linear.k)
    return total


def _layer_bytes(plan: Plan) -> int:
    """Return the bytes of the largest layer in float32, without its experts, which are read one by one."""
    layers: dict[int | None, int] = {}
    for step in plan.quantized:
        module = step.weight.module
        if module.expert is None and module.decoder_layer is not None:
            n, k = step.weight.shape
            layers[module.decoder_layer] = layers.get(module.decoder_layer, 0) + _FLOAT32 * n * k
    return max(layers.values(), default=0)

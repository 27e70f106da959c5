"""Check of the activation functions of gated modules, on inputs that expose a wrong activation.

A whole forward hardly shows a wrong activation: exact GELU in place of its tanh form changes an expert's output by
3e-4 on usual inputs, less than bf16 rounding. Where the gate lies between -4 and -2.7, both forms are nearly zero and
the output changes by 5 to 45 %. So this module solves for inputs that put every gate of an MLP or expert there (as
many gates as its shape allows), and compares the output with the outputs of the right activation and of each wrong
activation, computed in float32:

    c = <output - right, wrong - right> / |wrong - right|^2     0: right, 1: wrong

Rounding errors spread over all elements, so they have hardly any component along this direction. A layer is probed
while it runs inside a forward of both models, since the weights of a streamed model exist only then.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch.nn import functional

from g4convert.forward.candidate import ModelCandidate
from g4convert.forward.models import Model
from g4convert.forward.probe import Probe
from g4convert.report import Finding, Severity
from g4convert.verification.logits.parts import decoder_layers, label
from g4convert.verification.logits.states import decibels
from g4convert.verification.logits.teacher import adapt_arguments

Activation = Callable[[torch.Tensor], torch.Tensor]

_WRONG: Final[Mapping[str, Activation]] = {
    "exact GELU": functional.gelu,
    "tanh GELU": partial(functional.gelu, approximate="tanh"),
    "SiLU": functional.silu,
    "quick GELU": lambda x: x * torch.sigmoid(1.702 * x),
    "ReLU": functional.relu,
}
_BAND: Final = (-4.0, -2.7)
_ELEMENTS: Final = 1 << 15
"""Fewest elements of an output: the standard error of a share falls with the square root of their number."""
_PROBED_EXPERTS: Final = 2
_CERTAIN: Final = 0.2
_MARGIN: Final = 6.0
"""Decibels by which two outputs may be farther apart than the rounding of one."""


@dataclass(frozen=True, slots=True)
class OutputStatistics:
    """Statistics of a gated module's output.

    Args:
        activation: wrong activation that the output is most like.
        share: share of `activation` in the output: 0 if the right activation was computed, 1 if `activation` was.
        error: standard error of `share`, from the residual.
        sqnr: SQNR of the output against that of the right activation, dB.
        rounding: the same of the right activation in float32 against itself in float64, dB. Where the gate is negative,
            both forms of GELU subtract nearly equal numbers, and two gates that differ in their last bit give answers
            that are this far apart.
    """

    activation: str
    share: float
    error: float
    sqnr: float
    rounding: float = float("inf")


@dataclass(frozen=True, slots=True)
class _Gated:
    """Weights of an MLP or one expert, float32: gate and up [i, h], down [h, i]."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    def __call__(self, x: torch.Tensor, act: Activation) -> torch.Tensor:
        hidden = act(functional.linear(x, self.gate)) * functional.linear(x, self.up)
        return functional.linear(hidden, self.down)

    def rounding(self, x: torch.Tensor, act: Activation) -> torch.Tensor:
        """Return what the activation's rounding to float32 changes in the output."""
        gates = functional.linear(x, self.gate)
        lost = (act(gates).double() - act(gates.double())).float()
        return functional.linear(lost * functional.linear(x, self.up), self.down)


def activation_answers(
    reference: Model, candidate: Model, *, dtype: torch.dtype, seed: int = 0
) -> dict[str, OutputStatistics]:
    """Probe the gated modules of one decoder layer; the weights of both layers must be in memory.

    Args:
        reference: decoder layer of the reference, with dense weights.
        candidate: the same layer of the candidate.
        dtype: dtype in which the candidate runs.
        seed: seed of the inputs; also chooses the experts that are probed.

    Returns:
        The answer of each probed part of the layer, by name: `mlp`, `experts.7`.
    """
    generator = torch.Generator().manual_seed(seed)
    mlp = reference.mlp
    gated = _Gated(*(getattr(mlp, f"{part}_proj").weight.float() for part in ("gate", "up", "down")))
    answers = {"mlp": _probe_module(gated, mlp.act_fn, candidate.mlp, dtype, generator)}
    if (experts := getattr(reference, "experts", None)) is not None:
        for number in range(_PROBED_EXPERTS):
            expert = (seed * _PROBED_EXPERTS + number) % experts.num_experts
            gate, up = experts.gate_up_proj[expert].float().chunk(2)
            gated = _Gated(gate, up, experts.down_proj[expert].float())
            run = partial(_run_expert, candidate.experts, expert)
            answers[f"experts.{expert}"] = _probe_module(gated, experts.act_fn, run, dtype, generator)
    return answers


def check_activations(
    reference: ModelCandidate, candidate: ModelCandidate, probe: Probe, *, limit: float
) -> Iterator[Finding]:
    """Probe the gated modules of all decoder layers.

    Args:
        reference: the reference model, with dense weights; it is run once on `probe`.
        candidate: the model to check, of the same dtype.
        probe: a short probe; its forward serves only to load the layers.
        limit: SQNR in dB below which an output is wrong.
    """
    answers: dict[str, OutputStatistics] = {}
    dtype = candidate.model.config.dtype  # the embedding tables of a streamed model keep their stored dtype

    def visit(number: int, name: str, layer: Model, other: Model) -> None:
        for part, answer in activation_answers(layer, other, dtype=dtype, seed=number).items():
            answers[f"{label(name)}.{part}"] = answer

    with _visiting_layers(reference.model, candidate.model, visit):
        reference.run(probe)
    yield from _group_answers(answers, limit)


@contextmanager
def _visiting_layers(
    reference: Model, candidate: Model, visit: Callable[[int, str, Model, Model], None]
) -> Iterator[None]:
    """Call `visit` on each pair of decoder layers while the reference runs; streamed weights are loaded then."""
    others = decoder_layers(candidate)
    with ExitStack() as stack:
        for number, (name, layer) in enumerate(decoder_layers(reference).items()):

            def hook(
                module: Model,
                args: Any,  # noqa: ANN401 -- of any layer
                kwargs: Any,  # noqa: ANN401 -- the same
                _: object,
                number: int = number,
                name: str = name,
            ) -> None:
                other = others[name]
                with other.register_forward_hook(lambda *_: visit(number, name, module, other), prepend=True):
                    other(*adapt_arguments(args, reference, candidate), **adapt_arguments(kwargs, reference, candidate))

            stack.enter_context(layer.register_forward_hook(hook, prepend=True, with_kwargs=True))
        yield


def _run_expert(experts: Model, expert: int, x: torch.Tensor) -> torch.Tensor:
    """Run one expert on all rows of `x` [t, h]."""
    chosen = torch.full((len(x), 1), expert, device=x.device)
    answer: torch.Tensor = experts(x, chosen, torch.ones(len(x), 1, device=x.device))
    return answer


def _solve_inputs(gate: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Solve for inputs [t, h] whose gate outputs lie in `_BAND`, gate being [i, h]; least squares where i > h."""
    low, high = _BAND
    rows = max(32, _ELEMENTS // gate.shape[1])
    gates = low + (high - low) * torch.rand(rows, len(gate), generator=generator).to(gate.device)
    square = gate @ gate.T if len(gate) <= gate.shape[1] else gate.T @ gate
    square += 1e-6 * square.diagonal().mean() * torch.eye(len(square), device=gate.device)
    if len(gate) <= gate.shape[1]:
        solved: torch.Tensor = torch.linalg.solve(square, gates.T).T @ gate
    else:
        solved = torch.linalg.solve(square, (gates @ gate).T).T
    return solved


def _probe_module(
    gated: _Gated,
    act: Activation,
    run: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> OutputStatistics:
    """Run a gated module on the solved inputs, and return which wrong activation its output is most like."""
    x = _solve_inputs(gated.gate, generator).to(dtype)
    with torch.no_grad():
        right = gated(x.float(), act)
        rest = run(x).float() - right
        power = float(right.square().sum())
        rounding = decibels(float(gated.rounding(x.float(), act).square().sum()) / power)
        best = OutputStatistics("", 0.0, float("inf"), decibels(float(rest.square().sum()) / power), rounding)
        for name, wrong in _WRONG.items():
            way = gated(x.float(), wrong) - right
            size = float(way.square().sum())
            if size < 1e-10 * power:
                continue  # the right activation under another name
            share = float((rest * way).sum()) / size
            error = float((rest - share * way).square().mean().sqrt()) / size**0.5
            if abs(share - 1) < abs(best.share - 1) or not best.activation:
                best = replace(best, activation=name, share=share, error=error)
    return best


def _group_answers(answers: Mapping[str, OutputStatistics], limit: float) -> Iterator[Finding]:
    """Yield one finding for each wrong activation, listing its modules, and one for all right modules."""
    groups: dict[tuple[Severity, str], list[str]] = {}
    for module, answer in answers.items():
        groups.setdefault(_judge_answer(answer, limit), []).append(module)
    for (severity, verdict), modules in groups.items():
        least = min((answers[module].sqnr for module in modules), default=float("nan"))
        words = f"{verdict}, in {len(modules)} of {len(answers)} modules ({least:.0f} dB)"
        expected = "the activation of the config, where the gate is negative (-4 to -2.7)"
        yield Finding("logits.activation", severity, _list_some(modules), words, expected)


def _judge_answer(answer: OutputStatistics, limit: float) -> tuple[Severity, str]:
    limit = min(limit, answer.rounding - _MARGIN)
    if not answer.error <= _CERTAIN:
        wrong = not answer.sqnr >= limit
        return (Severity.FAIL, "answers like no activation known") if wrong else (Severity.INCONCLUSIVE, "not told")
    if abs(answer.share - 1) < _CERTAIN + answer.error:
        return Severity.FAIL, f"answers as {answer.activation} does"
    if not answer.sqnr >= limit:
        return Severity.FAIL, "a wrong answer, of no other activation"
    return Severity.PASS, "the right answer"


def _list_some(modules: list[str]) -> str:
    return ", ".join(modules[:3]) + (f" and {len(modules) - 3} more" if len(modules) > 3 else "")

"""Activations of gated modules, on inputs that tell a wrong one, which whole forwards cannot see.

Exact GELU for its tanh form differs by 3e-4 of an expert's output on usual inputs, below bf16 rounding; but by 5 to
45 % where the gate is between -2.7 and -4, and both are nearly zero. So inputs are solved for that put every gate of
an MLP or expert there (as many as its shape allows), and the answer is compared with what the right activation and
each wrong one would give, in float32:

    c = <answer - right, wrong - right> / |wrong - right|^2     0: right, 1: wrong

Rounding is spread over all elements and has nearly no part along that one direction. The weights of a layer are
looked at while it runs inside a forward of both models, which may be streamed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
from g4convert.verification.logits.teacher import like

__all__ = ["Answer", "activation_answers", "check_activations"]

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
"""Fewest elements of an answer: the error of a share falls with their root."""
_EXPERTS: Final = 2
_CERTAIN: Final = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """Statistics of a module's output.

    Args:
        activation: the wrong one that it is most like.
        share: share of this activation: 0 is the right one, 1 this one.
        error: standard error of that, from what is left over.
        sqnr: SQNR of the answer, against the right one, dB.
    """

    activation: str
    share: float
    error: float
    sqnr: float


@dataclass(frozen=True, slots=True)
class _Gated:
    """Weights of an MLP or one expert, float32: gate and up [i, h], down [h, i]."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    def __call__(self, x: torch.Tensor, act: Activation) -> torch.Tensor:
        hidden = act(functional.linear(x, self.gate)) * functional.linear(x, self.up)
        return functional.linear(hidden, self.down)


def activation_answers(reference: Model, candidate: Model, *, dtype: torch.dtype, seed: int = 0) -> dict[str, Answer]:
    """Probe the gated modules of one decoder layer; both must be in memory.

    Args:
        reference: the layer that is right, with dense weights.
        candidate: the other one.
        dtype: in which the candidate runs.
        seed: seed of the inputs; also chooses the experts that are probed.

    Returns:
        By part of the layer: `mlp`, `experts.7`.
    """
    generator = torch.Generator().manual_seed(seed)
    mlp = reference.mlp
    gated = _Gated(*(getattr(mlp, f"{part}_proj").weight.float() for part in ("gate", "up", "down")))
    found = {"mlp": _answer(gated, mlp.act_fn, candidate.mlp, dtype, generator)}
    if (experts := getattr(reference, "experts", None)) is not None:
        for number in range(_EXPERTS):
            expert = (seed * _EXPERTS + number) % experts.num_experts
            gate, up = experts.gate_up_proj[expert].float().chunk(2)
            gated = _Gated(gate, up, experts.down_proj[expert].float())
            run = partial(_run_expert, candidate.experts, expert)
            found[f"experts.{expert}"] = _answer(gated, experts.act_fn, run, dtype, generator)
    return found


def check_activations(
    reference: ModelCandidate, candidate: ModelCandidate, probe: Probe, *, limit: float
) -> Iterator[Finding]:
    """Probe the gated modules of all decoder layers.

    Args:
        reference: the model that is right, to be run; its weights are dense.
        candidate: the other one, of the same dtype.
        probe: a short one, only so that layers are loaded.
        limit: SQNR in dB below which an answer is wrong.
    """
    found: dict[str, Answer] = {}
    dtype = candidate.model.config.dtype  # a streamed model's tables keep their stored one

    def visit(number: int, name: str, layer: Model, other: Model) -> None:
        for part, answer in activation_answers(layer, other, dtype=dtype, seed=number).items():
            found[f"{label(name)}.{part}"] = answer

    with _visiting(reference.model, candidate.model, visit):
        reference.run(probe)
    yield from _grouped_answers(found, limit)


@contextmanager
def _visiting(reference: Model, candidate: Model, visit: Callable[[int, str, Model, Model], None]) -> Iterator[None]:
    """Show each pair of decoder layers, when the reference's runs inside; streamed weights are there then."""
    others = decoder_layers(candidate)
    with ExitStack() as stack:
        for number, (name, layer) in enumerate(decoder_layers(reference).items()):

            def hook(
                module: Model,
                args: Any,  # noqa: ANN401 -- of any layer
                kwargs: Any,  # noqa: ANN401
                _: object,
                number: int = number,
                name: str = name,
            ) -> None:
                other = others[name]
                handle = other.register_forward_hook(lambda *_: visit(number, name, module, other), prepend=True)
                try:
                    other(*like(args, reference, candidate), **like(kwargs, reference, candidate))
                finally:
                    handle.remove()

            stack.callback(layer.register_forward_hook(hook, prepend=True, with_kwargs=True).remove)
        yield


def _run_expert(experts: Model, expert: int, x: torch.Tensor) -> torch.Tensor:
    """One expert on all rows [t, h]."""
    chosen = torch.full((len(x), 1), expert, device=x.device)
    answer: torch.Tensor = experts(x, chosen, torch.ones(len(x), 1, device=x.device))
    return answer


def _negative(gate: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rows [t, h] for which gate [i, h] gives what lies in the band; as nearly as it can where i > h."""
    low, high = _BAND
    rows = max(32, _ELEMENTS // gate.shape[1])
    wanted = low + (high - low) * torch.rand(rows, len(gate), generator=generator).to(gate.device)
    square = gate @ gate.T if len(gate) <= gate.shape[1] else gate.T @ gate
    square += 1e-6 * square.diagonal().mean() * torch.eye(len(square), device=gate.device)
    if len(gate) <= gate.shape[1]:
        solved: torch.Tensor = torch.linalg.solve(square, wanted.T).T @ gate
    else:
        solved = torch.linalg.solve(square, (wanted @ gate).T).T
    return solved


def _answer(
    gated: _Gated,
    act: Activation,
    run: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Answer:
    """Ask a module, and say which activation it answers like."""
    x = _negative(gated.gate, generator).to(dtype)
    with torch.no_grad():
        right = gated(x.float(), act)
        rest = run(x).float() - right
        best = Answer("", 0.0, float("inf"), decibels(float(rest.square().sum() / right.square().sum())))
        for name, wrong in _WRONG.items():
            way = gated(x.float(), wrong) - right
            size = float(way.square().sum())
            if size < 1e-10 * float(right.square().sum()):
                continue  # the right one, by another name
            share = float((rest * way).sum()) / size
            error = float((rest - share * way).square().mean().sqrt()) / size**0.5
            if abs(share - 1) < abs(best.share - 1) or not best.activation:
                best = Answer(name, share, error, best.sqnr)
    return best


def _grouped_answers(answers: Mapping[str, Answer], limit: float) -> Iterator[Finding]:
    """A finding for each wrong activation with its modules, and one for all that are right."""
    groups: dict[tuple[Severity, str], list[str]] = {}
    for module, answer in answers.items():
        groups.setdefault(_judged(answer, limit), []).append(module)
    for (severity, found), modules in groups.items():
        least = min((answers[module].sqnr for module in modules), default=float("nan"))
        words = f"{found}, in {len(modules)} of {len(answers)} modules ({least:.0f} dB)"
        expected = "the activation of the config, where the gate is negative (-4 to -2.7)"
        yield Finding("logits.activation", severity, _listed(modules), words, expected)


def _judged(answer: Answer, limit: float) -> tuple[Severity, str]:
    if not answer.error <= _CERTAIN:
        wrong = not answer.sqnr >= limit
        return (Severity.FAIL, "answers like no activation known") if wrong else (Severity.INCONCLUSIVE, "not told")
    if abs(answer.share - 1) < _CERTAIN + answer.error:
        return Severity.FAIL, f"answers as {answer.activation} does"
    if not answer.sqnr >= limit:
        return Severity.FAIL, "a wrong answer, of no other activation"
    return Severity.PASS, "the right answer"


def _listed(modules: list[str]) -> str:
    return ", ".join(modules[:3]) + (f" and {len(modules) - 3} more" if len(modules) > 3 else "")

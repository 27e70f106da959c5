"""Values that a model computes between its modules: masks, position embeddings, and where soft tokens are placed.

A wrong sliding window or an unrecognized soft token is the fault of no module: every module is right, given its
inputs. So the inputs of the decoder layers are compared, and can be forced on a candidate to measure their effect.

    attention mask of sliding_attention       bool or float [b, 1, s, s]; None lets the kernel make a causal mask
    position embeddings of sliding_attention  cos and sin [b, s, head_dim]
    embeddings                                [b, s, hidden], input of the first layer; in models with per-layer
                                              embeddings also the per-layer embeddings of each layer
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import torch

from g4convert.forward.models import Model
from g4convert.verification.logits.parts import decoder_layers

Inputs = dict[str, tuple[torch.Tensor, ...]]
"""Inputs by place; an empty tuple stands for a mask of None, which leaves the mask to the kernel."""

EMBEDDINGS: Final = "embeddings"
_ARGUMENTS: Final = {"attention_mask": "attention mask", "position_embeddings": "position embeddings"}


@contextmanager
def recording_inputs(model: Model) -> Iterator[Inputs]:
    """Record the inputs of a model's decoder layers during one forward inside."""
    recorded: Inputs = {}
    kinds = model.config.get_text_config().layer_types

    def before(_: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, number: int) -> None:
        if number == 0:
            recorded[EMBEDDINGS] = (args[0].clone(),)
        recorded[EMBEDDINGS] += tuple(value.clone() for value in args[1:] if isinstance(value, torch.Tensor))
        for argument, words in _ARGUMENTS.items():
            value = kwargs.get(argument)
            place = f"{words} of {kinds[number]}"
            if place not in recorded:
                recorded[place] = () if value is None else value if isinstance(value, tuple) else (value,)

    with ExitStack() as stack:
        for number, layer in enumerate(decoder_layers(model).values()):
            hook = partial(before, number=number)
            stack.enter_context(layer.register_forward_pre_hook(hook, prepend=True, with_kwargs=True))
        yield recorded


@contextmanager
def resting_layers(model: Model) -> Iterator[None]:
    """Make decoder layers return their states unchanged during forwards inside, where only their inputs are needed."""
    layers = decoder_layers(model).values()
    for layer in layers:
        layer.forward = _unchanged
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _unchanged(states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return states


def differences(reference: Inputs, candidate: Inputs, *, relative: float) -> dict[str, str]:
    """Return a description of the difference, by place, for each layer input in which two forwards differ.

    Args:
        reference: recorded inputs of the reference.
        candidate: recorded inputs of the candidate.
        relative: differences up to this part of the largest value count as rounding.
    """
    notes = {}
    for place, expected in reference.items():
        other = candidate.get(place, ())
        if len(expected) != len(other) or any(a.shape != b.shape for a, b in zip(expected, other, strict=True)):
            shapes = [[list(tensor.shape) for tensor in tensors] or "none" for tensors in (expected, other)]
            notes[place] = f"{shapes[1]}, expected {shapes[0]}"
            continue
        wrong = [_differing_elements(a, b, relative) for a, b in zip(expected, other, strict=True)]
        if count := sum(int(entries.sum()) for entries in wrong):
            notes[place] = f"{count} of {sum(entries.numel() for entries in wrong)} entries differ"
            if place == EMBEDDINGS:
                rows = wrong[0].any(-1).nonzero()[:, 1].unique().tolist()  # type: ignore[no-untyped-call]
                notes[place] += f", at {len(rows)} positions, the first {rows[0]}"
    return notes


@contextmanager
def forcing_input(model: Model, inputs: Inputs, place: str) -> Iterator[None]:
    """Replace one input (`place`) of a model's decoder layers by its value in `inputs` during forwards inside."""
    kinds = model.config.get_text_config().layer_types
    with ExitStack() as stack:
        for number, layer in enumerate(decoder_layers(model).values()):

            def before(
                _: Model, args: tuple[Any, ...], kwargs: dict[str, Any], number: int = number
            ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                if place == EMBEDDINGS:
                    return _with_embeddings(args, inputs[place], number), kwargs
                for argument, words in _ARGUMENTS.items():
                    if place == f"{words} of {kinds[number]}":
                        value = inputs[place]
                        kwargs = kwargs | {argument: value if len(value) > 1 else value[0] if value else None}
                return args, kwargs

            stack.enter_context(layer.register_forward_pre_hook(before, with_kwargs=True))
        yield


def _with_embeddings(args: tuple[Any, ...], embeddings: tuple[torch.Tensor, ...], number: int) -> tuple[Any, ...]:
    """Return the positional arguments of layer `number`, with embeddings replaced."""
    states, *per_layer = embeddings
    first = states if number == 0 else args[0]
    return (first, per_layer[number], *args[2:]) if per_layer else (first, *args[1:])


def _differing_elements(expected: torch.Tensor, actual: torch.Tensor, relative: float) -> torch.Tensor:
    """Return a mask, bool of the tensors' shape, of the elements that differ by more than rounding."""
    if torch.bool in {expected.dtype, actual.dtype}:
        return expected.bool() != actual.bool()
    a, b = expected.float(), actual.float()
    finite = a.isfinite() & (a > torch.finfo(torch.bfloat16).min / 2)
    scale = a[finite].abs().amax().clamp(min=1e-30) if bool(finite.any()) else torch.tensor(1.0)
    return ~((a - b).abs() <= relative * scale) & (a != b)

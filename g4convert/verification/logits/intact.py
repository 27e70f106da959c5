"""Checks of a stored reference: it is undamaged, its tensors have the expected shapes, and it is of this model.

The digest finds any damage. The shapes are checked all the same, because the maker of a malformed file can also give
it a valid digest.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import torch
from xxhash import xxh3_128

from g4convert.forward.logits import HeldLogits
from g4convert.forward.models import Config
from g4convert.forward.probe import Probe
from g4convert.names import Name
from g4convert.verification.logits.kept import KeptProbe
from g4convert.verification.logits.scores import TopLogits

DIGEST: Final = "xxh3_128"
"""Key of the digest among the facts."""
MOST_PROBES: Final = 10_000
"""Most probes of a file; the bundled probes are some dozen."""

_Expected: TypeAlias = tuple[torch.Tensor, torch.dtype, tuple[int, ...]]
"""A tensor, and the dtype and shape that it must have."""


def digest(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash the metadata and tensors of a stored reference.

    Args:
        facts: the metadata, without the digest itself.
        tensors: the tensors, by name.

    Returns:
        32 hexadecimal digits.
    """
    state = xxh3_128(json.dumps(dict(facts), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
        state.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def faults_of(probe: Probe, kept: KeptProbe) -> Iterator[str]:
    """Yield a message for each tensor of a probe or of its outputs that has another dtype or shape than expected.

    Args:
        probe: the probe, as read from the file.
        kept: outputs of the probe, as read from the file.
    """
    response = probe.response
    if response.dtype is not torch.bool or response.ndim != 2 or not response.numel():
        yield "response: expected bool [b, t]"
        return
    ids = probe.arguments.get("input_ids", response)  # a drafter gets states instead
    if not isinstance(ids, torch.Tensor) or ids.dtype not in {torch.int64, torch.bool} or ids.shape != response.shape:
        yield f"input_ids: expected int64 {[*response.shape]}"
        return
    count = int(probe.response.sum())
    expected: dict[str, _Expected] = {"targets": (probe.targets, torch.int64, (count,))}
    match kept.logits:
        case HeldLogits(after, before):
            width = after.shape[-1] if after.ndim == 2 else 1
            expected["logits"] = after, torch.float32, (count, width)
            if before is not None:
                expected["raw_logits"] = before, torch.float32, (count, width)
        case TopLogits(ids=top):
            width = top.shape[-1] if top.ndim == 2 else 1
            expected["top.ids"] = top, torch.int64, (count, width)
            expected["top.logprobs"] = kept.logits.logprobs, torch.float32, (count, width)
            expected["top.log_sum_exp"] = kept.logits.log_sum_exp, torch.float32, (count,)
            expected["top.target_logprob"] = kept.logits.target_logprob, torch.float32, (count,)
    yield from _tensor_faults(expected)
    yield from _state_faults(probe, kept)


def _state_faults(probe: Probe, kept: KeptProbe) -> Iterator[str]:
    """Yield a message for each table of states or chosen experts that has not one row per token, padding aside."""
    tokens = int(probe.attended.sum())
    states = {**kept.states.layers, **kept.states.routers}
    for name, tensor in states.items():
        if tensor.ndim != 2 or len(tensor) != tokens:
            yield f"{name}: {[*tensor.shape]}, expected {tokens} rows"


def _tensor_faults(expected: Mapping[str, _Expected]) -> Iterator[str]:
    for name, (tensor, dtype, shape) in expected.items():
        if tensor.dtype is not dtype or tensor.shape != shape:
            found = f"{str(tensor.dtype).removeprefix('torch.')} {[*tensor.shape]}"
            yield f"{name}: {found}, expected {str(dtype).removeprefix('torch.')} {[*shape]}"


def misfits(probes: Iterable[Probe], kept: Mapping[str, KeptProbe], config: Config) -> Iterator[str]:
    """Yield reasons why a stored reference cannot be of a model."""
    text = config.get_text_config()
    for probe in probes:
        named = [probe.targets]
        if "input_ids" in probe.arguments:
            named.append(probe.arguments["input_ids"])
        match kept[probe.name].logits:
            case TopLogits(ids=top):
                named.append(top)
            case HeldLogits(after):
                if after.shape[-1] != text.vocab_size:
                    yield f"{probe.name}: logits of {after.shape[-1]} tokens, the model has {text.vocab_size}"
        low, high = (int(getattr(torch.cat([tensor.flatten() for tensor in named]), end)()) for end in ("min", "max"))
        if low < 0 or high >= text.vocab_size:
            yield f"{probe.name}: tokens {low} to {high}, the model has {text.vocab_size}"
        layers = sum(Name(name).layer is not None for name in kept[probe.name].states.layers)
        if layers not in {0, text.num_hidden_layers}:
            yield f"{probe.name}: states of {layers} layers, the model has {text.num_hidden_layers}"

"""Candidates to judge: models that turn a probe into logits, and show their inner tensors.

A candidate shows its residual stream after each decoder layer, the experts that its routers chose, and the outputs of
towers and embedders, under the same names for every family. Everything is float32 and on the CPU, tokens of a batch
one after the other, padding included.

A probe marks the scored rows of the logits. A model's forward stops before the head and keeps the states of these rows;
`forward.logits` makes logits from them for a comparison.

Letters: t tokens of all sequences, n scored tokens, V vocabulary, h hidden size, k experts of a token, e experts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch

from g4convert.devices import device_of, moved
from g4convert.forward.logits import Head, HeadLogits, HeldLogits, Logits
from g4convert.forward.media import videos_encoded
from g4convert.forward.models import Model
from g4convert.forward.probe import Probe
from g4convert.forward.streaming import run_together

T = TypeVar("T")

_EMBEDDERS = ("vision_tower", "embed_vision", "audio_tower", "embed_audio")


@dataclass(frozen=True, slots=True)
class ProbeOutputs:
    """Outputs of a model for one probe.

    Args:
        rows: logits of the probe's scored rows.
        layers: residual after each layer, [t, h], by `layers.N`.
        embedders: output of `vision_tower`, `embed_vision`, `audio_tower`, `embed_audio`, [rows, width]; outputs of
            several calls (an image and a video) are concatenated by rows.
        routers: experts of each token, the most important first, int64 [t, k], by `layers.N`.
        expert_hits: number of tokens of each expert, int64 [e], by `layers.N`.
    """

    rows: Logits
    layers: Mapping[str, torch.Tensor] = field(default_factory=dict)
    embedders: Mapping[str, torch.Tensor] = field(default_factory=dict)
    routers: Mapping[str, torch.Tensor] = field(default_factory=dict)
    expert_hits: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def logits(self) -> torch.Tensor:
        """All logits, [n, V], float32, after the softcap."""
        return self.rows.rows(0, len(self.rows))[0]

    @property
    def raw_logits(self) -> torch.Tensor | None:
        """All logits before the softcap; None if unknown."""
        if isinstance(self.rows, HeldLogits):
            return self.rows.before
        return self.rows.rows(0, len(self.rows))[1]


@dataclass(frozen=True, slots=True)
class ModelCandidate:
    """A model in this process.

    Args:
        model: a transformers model: packed, dequantized, streamed.
        inside: whether to keep inner tensors; False keeps logits only.
        whole: whether the head runs within the forward, for callers that watch its module.
    """

    model: Model
    inside: bool = True
    whole: bool = False

    def run(self, probe: Probe) -> ProbeOutputs:
        """Run one probe; for several probes `run_all` reads a streamed model's weights only once."""
        seen = _Seen()
        with torch.no_grad(), _hooking_parts(self.model, seen, probe.scored, inside=self.inside, whole=self.whole):
            arguments = videos_encoded(self.model, moved(probe.arguments, device_of(self.model)))
            result = self.model(**{"use_cache": False, **arguments})
        return ProbeOutputs(
            rows=self._logits(seen, _rows(result.logits), probe.scored),
            layers=seen.layers,
            embedders={name: torch.cat(parts) for name, parts in seen.embedders.items()},
            routers=seen.routers,
            expert_hits=seen.expert_hits,
        )

    def _logits(self, seen: "_Seen", logits: torch.Tensor, scored: torch.Tensor) -> Logits:
        """Make logits from the states before the head, or take the forward's if no states were recorded."""
        return HeldLogits(logits[scored]) if seen.states is None else HeadLogits(Head.of(self.model), seen.states)


def run_all(
    candidate: ModelCandidate, probes: Sequence[Probe], keep: Callable[[Probe, ProbeOutputs], T] | None = None
) -> list[T]:
    """Run probes, on a streamed model with one pass over its weights.

    Args:
        candidate: model to run.
        probes: probes of any number and kind.
        keep: function applied to each output at once, since full logits of many probes are large; None keeps the
            outputs themselves.

    Returns:
        Results of `keep`, in the order of the probes.
    """

    def run(probe: Probe) -> Any:  # noqa: ANN401 -- T, or Outputs
        outputs = candidate.run(probe)
        return outputs if keep is None else keep(probe, outputs)

    return run_together(candidate.model, [partial(run, probe) for probe in probes])


@dataclass(slots=True)
class _Seen:
    """Tensors that hooks have seen in one forward."""

    states: torch.Tensor | None = None
    layers: dict[str, torch.Tensor] = field(default_factory=dict)
    embedders: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    routers: dict[str, torch.Tensor] = field(default_factory=dict)
    expert_hits: dict[str, torch.Tensor] = field(default_factory=dict)

    def layer(self, name: str, output: Any) -> None:  # noqa: ANN401 -- here and below: what a module returns
        self.layers[name] = _rows(_tensor(output))

    def router(self, name: str, experts: int, output: Any) -> None:  # noqa: ANN401
        index = next(part for part in output if not part.is_floating_point())
        self.routers[name] = index.reshape(-1, index.shape[-1]).cpu()
        self.expert_hits[name] = self.routers[name].flatten().bincount(minlength=experts)

    def embedder(self, name: str, output: Any) -> None:  # noqa: ANN401
        self.embedders.setdefault(name, []).append(_rows(_tensor(output)))


_current: ContextVar[_Seen | None] = ContextVar("g4_seen", default=None)
"""Record of the running forward: forwards of a streamed model take turns, and each hook sees all of them."""


@contextmanager
def _hooking_parts(model: Model, seen: _Seen, scored: torch.Tensor, *, inside: bool, whole: bool) -> Iterator[None]:
    """Hook the parts of a model during one forward."""
    with ExitStack() as stack:
        token = _current.set(seen)
        stack.callback(_current.reset, token)
        if (head := model.get_output_embeddings()) is not None:
            select = partial(_select, seen, scored, whole=whole)
            stack.enter_context(head.register_forward_pre_hook(select, prepend=True))
        for module, see in _hooked_modules(model, seen) if inside else ():
            stack.enter_context(module.register_forward_hook(partial(_show, seen, see)))
        yield


def _select(
    seen: _Seen, scored: torch.Tensor, _: torch.nn.Module, states: tuple[torch.Tensor], *, whole: bool
) -> torch.Tensor | None:
    """Keep the scored states [n, h] and pass none or only these to the head: [b, t, h] -> [1, 0 or n, h]."""
    if _current.get() is not seen:
        return None
    (every,) = states
    rows = every.flatten(0, -2)
    seen.states = rows[scored.to(rows.device)]
    return (seen.states if whole else seen.states[:0])[None]


def _show(seen: _Seen, see: Callable[[Any], None], _: torch.nn.Module, __: object, output: object) -> None:
    if _current.get() is seen:
        see(output)


def _hooked_modules(model: Model, seen: _Seen) -> Iterator[tuple[torch.nn.Module, Callable[[Any], None]]]:
    for number, layer in enumerate(model.get_decoder().layers):
        name = f"layers.{number}"
        yield layer, partial(seen.layer, name)
        if (router := getattr(layer, "router", None)) is not None:
            yield router, partial(seen.router, name, router.config.num_experts)
    for name in _EMBEDDERS:
        if (module := getattr(model.base_model, name, None)) is not None:
            yield module, partial(seen.embedder, name)


def _tensor(output: Any) -> torch.Tensor:  # noqa: ANN401
    """Return a module's output tensor, or the first of several."""
    tensor: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return tensor


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Flatten [..., width] to [rows, width], in float32 on the CPU."""
    return tensor.detach().flatten(0, -2).float().cpu()

"""Makes the arguments of each decoder layer, without running the layers before it.

The model's own forward runs once for each sequence, with layers that return their input unchanged. So transformers
makes embeddings, per-layer inputs (for each sequence), masks and rotary tables. Then the weights are read one layer at
a time, except those of experts: `experts` reads them one by one.

A sequence with pictures runs through the whole model but its head, with its own pictures alone: tower or embedder make
their soft tokens, which replace the placeholders. In families whose sliding layers let a picture see itself whole,
such a sequence has masks of its own.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from g4convert.array_types import F32
from g4convert.calibration.forwards import forward_arguments, row, without_pixels
from g4convert.calibration.states import States
from g4convert.calibration.tokens import Tokens
from g4convert.devices import CPU, device_of, moved
from g4convert.forward.load import load
from g4convert.forward.models import Model, layers_path, replaced_layers
from g4convert.forward.streaming import Stream, stream_of

_EXPERTS = ".experts."
_PER_LAYER = "per-layer"


class _Recorder(torch.nn.Module):
    """Replacement of a decoder layer that records its arguments and returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.per_layer: torch.Tensor | None = None
        self.arguments: dict[str, Any] = {}

    def forward(
        self,
        hidden_states: torch.Tensor,
        per_layer_input: torch.Tensor | None = None,
        **arguments: Any,  # noqa: ANN401 -- whatever transformers gives a layer
    ) -> torch.Tensor:
        """Record the arguments and return `hidden_states` [1, t, h] unchanged."""
        self.per_layer, self.arguments = per_layer_input, arguments
        return hidden_states


@dataclass(frozen=True, slots=True)
class Replay:
    """A model whose layers run one at a time.

    Args:
        model: streamed model in float32.
        stream: loads its parts.
        tokens: token ids of all sequences.
        states: files of the computed values.
        arguments: arguments of each layer that sequences share: `position_embeddings`, `attention_mask`, ...
        masks: attention masks of each layer, of the sequences whose own differ from these.
        device: device of the layers and of what they are given.
    """

    model: Model
    stream: Stream
    tokens: Tokens
    states: States
    arguments: tuple[Mapping[str, Any], ...]
    masks: Mapping[int, tuple[Any, ...]]
    device: torch.device = CPU

    @classmethod
    def open(cls, source: Path, tokens: Tokens, states: States, device: torch.device = CPU) -> "Replay":
        """Load a checkpoint, and record the layers' arguments on the first sequence.

        Raises:
            G4Error: see `forward.load.load`.
            EnvironmentFault: the disk is full.
        """
        model = load(source, memory="stream", device=device)
        stream = _streamed(model)
        with _recorders(model) as recorders:
            _embed(model, {"input_ids": row(tokens.ids[0])})
            arguments = tuple(
                {key: value for key, value in one.arguments.items() if key in _GIVEN} for one in recorders
            )
            masks = {}
            for s in sorted(tokens.pictured):
                _embed(model, without_pixels(tokens, s, model.config))
                masks[s] = tuple(
                    _one_of(shared.get(_MASK), one.arguments.get(_MASK))
                    for shared, one in zip(arguments, recorders, strict=True)
                )
        return cls(model, stream, tokens, states, arguments, masks, device)

    def embed(self, out: F32, each: Callable[[int], None] | None = None) -> None:
        """Fill `out` [samples, length, hidden] with the first layer's inputs, and store the per-layer inputs.

        Args:
            out: filled by all ranks.
            each: called behind each sequence of this rank.
        """
        ranks = self.states.ranks
        with _recorders(self.model) as recorders:
            kept = self.states.make(_PER_LAYER, self._per_layer_shape) if self._width else None
            for number in range(ranks.rank, self.tokens.samples, ranks.world):
                out[number] = (
                    _embed(self.model, forward_arguments(self.tokens, number, self.model.config))[0].cpu().numpy()
                )
                for layer, recorder in enumerate(recorders):
                    if kept is not None and recorder.per_layer is not None:
                        kept[layer, number] = recorder.per_layer[0].cpu().numpy()
                if each is not None:
                    each(number)
        ranks.wait()

    def arguments_of(self, layer: int, s: int) -> Mapping[str, Any]:
        """Return the arguments of a layer for sequence `s`, besides its states."""
        shared, own = self.arguments[layer], self.masks.get(s)
        return shared if own is None else {**shared, _MASK: own[layer]}

    def per_layer(self, layer: int) -> F32 | None:
        """Return the per-layer inputs of a layer, [samples, length, width]; None if the model has none."""
        if not self._width:
            return None
        whole = self.states.open(_PER_LAYER, self._per_layer_shape)
        one: F32 = whole[layer]
        return one

    def sequence(self, array: F32, s: int) -> torch.Tensor:
        """Copy one sequence of an array to the device, [1, t, k]: a mapped page is read once."""
        return torch.from_numpy(np.array(array[s]))[None].to(self.device)

    @contextmanager
    def layer(self, number: int, without: Collection[str] = ()) -> Iterator[torch.nn.Module]:
        """Yield a decoder layer with its weights in memory, except those of experts; free them on exit.

        Args:
            number: number of the layer.
            without: paths in the layer of Linears whose weights are not read, as the caller puts others there.
        """
        prefix = self._prefix(number)
        names = [name for name in self.stream.filling.pieces if name.startswith(prefix) and _EXPERTS not in name]
        put = {f"{prefix}{path}.weight" for path in without}
        self.stream.filling.fill(self.model, [name for name in names if name not in put])
        try:
            yield self.model.get_submodule(prefix.rstrip("."))
        finally:
            self.stream.filling.empty(self.model, names)

    def forget(self, number: int, part: str) -> None:
        """Free the weights of a part of a layer, by the beginning of their paths."""
        prefix = self._prefix(number) + part
        self.stream.filling.empty(self.model, [one for one in self.stream.filling.pieces if one.startswith(prefix)])

    def fill_experts(self, number: int) -> None:
        """Read the weights of a layer's experts, for a recipe that keeps them."""
        prefix = self._prefix(number)
        names = [name for name in self.stream.filling.pieces if name.startswith(prefix) and _EXPERTS in name]
        self.stream.filling.fill(self.model, names)

    @property
    def config(self) -> Any:  # noqa: ANN401 -- transformers ships no types
        """Settings of the decoder."""
        return self.model.get_decoder().config

    @property
    def shape(self) -> tuple[int, int, int]:
        """[samples, length, hidden]."""
        return self.tokens.samples, self.tokens.length, self.config.hidden_size

    def _prefix(self, number: int) -> str:
        """Return the beginning of the names of a layer's tensors, dot included."""
        return f"{layers_path(self.model)}.{number}."

    @property
    def _per_layer_shape(self) -> tuple[int, int, int, int]:
        return self.config.num_hidden_layers, self.tokens.samples, self.tokens.length, self._width

    @property
    def _width(self) -> int:
        """Width of per-layer inputs; 0 if the model has none."""
        return getattr(self.config, "hidden_size_per_layer_input", 0)


_MASK = "attention_mask"
_GIVEN = ("position_embeddings", _MASK, "position_ids")


def _streamed(model: Model) -> Stream:
    stream = stream_of(model)
    if stream is None:
        raise TypeError("the model is not streamed")
    return stream


def _embed(model: Model, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Run the recorders on one sequence, given as arguments, and return the first layer's input, [1, t, h]."""
    kept: list[torch.Tensor] = []
    decoder = model.get_decoder()
    body = decoder if given.keys() == {"input_ids"} else model.model
    with torch.no_grad(), decoder.layers[0].register_forward_pre_hook(lambda _, args: kept.append(args[0])):
        body(**moved(given, device_of(model)), use_cache=False)
    return kept[0]


def _one_of(shared: Any, own: Any) -> Any:  # noqa: ANN401 -- a tensor, or what transformers gives in its place
    """Return a mask, the shared one where it is the same, so that it is kept once."""
    both = isinstance(shared, torch.Tensor) and isinstance(own, torch.Tensor)
    return shared if both and torch.equal(shared, own) else own


@contextmanager
def _recorders(model: Model) -> Iterator[list[_Recorder]]:
    """Replace the decoder's layers by recorders; restore them on exit."""
    recorders = [_Recorder() for _ in model.get_decoder().layers]
    with replaced_layers(model, recorders):
        yield recorders

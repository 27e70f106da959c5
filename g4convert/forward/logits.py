"""Logits of the scored rows, made on demand, some rows at a time.

    decoder --> states [n, h], kept --> head, block by block of the vocabulary --> raw [r, V] --> softcap --> [r, V]

At 1 MiB a row of the released vocabulary, logits are most of the memory and much of the time of a comparison; the
states before the head take a four-hundredth of that. So a forward stops before the head, and a comparison makes a few
rows of logits at a time in reused buffers: touching new memory costs more than the product. Blocks of the vocabulary
are cast from the stored weight, so a streamed model's head is never in memory as a whole.

Letters: n scored rows, r rows of a piece, h hidden size, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import torch

from g4convert.devices import device_of
from g4convert.forward.models import Model
from g4convert.forward.streaming import stream_of

Rows: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
"""Some rows of logits, float32 [r, V], after the softcap and before it; None if unknown."""

_BLOCK: Final = 1 << 24
"""Weights of the head that are cast at a time."""
_CACHED: Final = 1 << 20
"""Weights of the head cast at a time on the CPU: a block and its products fit the cache, which halves the time."""
PIECE: Final = 1 << 25
"""Logits of a piece: 128 rows of the released vocabulary. Each piece casts the whole head."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Head of a model, which turns the last states into logits.

    Args:
        module: module of the head, run if its weight is not a plain matrix.
        weight: [V, h], any dtype and device; None for a packed head.
        cap: cap of the softcap after the head; None without a softcap.
        device: device of the model.
    """

    module: torch.nn.Module
    weight: torch.Tensor | None
    cap: float | None
    device: torch.device

    @classmethod
    def of(cls, model: Model) -> "Head":
        """Return the head of a transformers model, which must have one."""
        module = model.get_output_embeddings()
        weight = module.weight if type(module) is torch.nn.Linear and module.bias is None else None
        if weight is not None and weight.is_meta and (stream := stream_of(model)) is not None:
            weight = stream.head_weight()
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return cls(module, weight, cap, device_of(model))

    @property
    def matrix(self) -> torch.Tensor:
        """The weight, [V, h], of a head that is a plain matrix, as an original's is."""
        if self.weight is None:
            raise TypeError("a packed head")
        return self.weight

    @torch.no_grad()
    def raw(self, states: torch.Tensor, out: torch.Tensor) -> None:
        """Fill `out`, float32 [r, V] on the CPU, from states [r, h]; products are made in the dtype of the states."""
        if self.weight is None:
            out.copy_(self.module(states[None])[0])
        else:
            _multiply(self.weight, [(states, out)])


def _multiply(weight: torch.Tensor, outputs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Fill each `out`, float32 [r, V], with states [r, h] times the head; each block of the head is cast once."""
    cached = [pair for pair in outputs if _is_plain(pair[0])]
    if cached:
        _multiply_cached(weight, cached)
    uncached = [pair for pair in outputs if not _is_plain(pair[0])]
    step = max(1, _BLOCK // weight.shape[1])
    for begin in range(0, len(weight) if uncached else 0, step):
        cast: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        for states, out in uncached:
            kind = states.device, states.dtype
            if kind not in cast:
                cast[kind] = weight[begin : begin + step].to(*kind).T
            out[:, begin : begin + step].copy_(states @ cast[kind])


def _is_plain(factor: torch.Tensor) -> bool:
    """Return whether `factor` is multiplied in float32 on the CPU."""
    return factor.dtype is torch.float32 and factor.device.type == "cpu"


def _multiply_cached(weight: torch.Tensor, outputs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Fill each `out` as `_multiply` does, with blocks that fit the cache; W s^T is the faster way round in MKL."""
    step = min(len(weight), max(1, _CACHED // weight.shape[1]))
    block = torch.empty(step, weight.shape[1])
    columns = [states.T.contiguous() for states, _ in outputs]
    products = [torch.empty(step, len(states)) for states, _ in outputs]
    for begin in range(0, len(weight), step):
        end = min(begin + step, len(weight))
        rows = weight[begin:end] if _is_plain(weight) else block[: end - begin].copy_(weight[begin:end])
        for (_, out), states, product in zip(outputs, columns, products, strict=True):
            part = product[: end - begin]
            torch.mm(rows, states, out=part)
            out[:, begin:end].copy_(part.T)


@dataclass(slots=True)
class Page:
    """Two buffers, [r, V], that grow to the largest piece and are reused for the next piece."""

    _buffers: list[torch.Tensor] = field(default_factory=lambda: [torch.empty(0, 0), torch.empty(0, 0)])

    def buffer(self, number: int, rows: int, width: int) -> torch.Tensor:
        """Return `rows` rows of buffer `number`."""
        held = self._buffers[number]
        if held.shape[0] < rows or held.shape[1] != width:
            held = self._buffers[number] = torch.empty(rows, width)
        return held[:rows]


@dataclass(frozen=True, slots=True, eq=False)
class HeadLogits:
    """Logits that are made from states on demand.

    Args:
        head: head of the model.
        states: [n, h], in the dtype and on the device of the model.
    """

    head: Head
    states: torch.Tensor

    def __len__(self) -> int:
        return len(self.states)

    def rows(self, begin: int, end: int, page: Page | None = None) -> Rows:
        """Make rows [begin, end) after and before the softcap, float32 [r, V]; valid until the page is reused."""
        page = page or Page()
        self.head.raw(self.states[begin:end], page.buffer(0, end - begin, self.width))
        return self.finished(begin, end, page)

    def finished(self, begin: int, end: int, page: Page) -> Rows:
        """Apply the softcap to rows whose products are in the page already; return them after and before it."""
        states = self.states[begin:end]
        raw = page.buffer(0, len(states), self.width)
        if self.head.cap is None:
            return raw, raw
        after = page.buffer(1, len(states), self.width)
        if states.dtype is torch.float32:
            torch.div(raw, self.head.cap, out=after).tanh_().mul_(self.head.cap)
        else:  # rounded as the model does after each step
            after.copy_(torch.tanh(raw.to(states.dtype) / self.head.cap) * self.head.cap)
        return after, raw

    @property
    def width(self) -> int:
        """Size of the vocabulary."""
        weight = self.head.weight
        return int(str(self.head.module.out_features)) if weight is None else len(weight)


@dataclass(frozen=True, slots=True, eq=False)
class HeldLogits:
    """Logits in memory, float32 [n, V].

    Args:
        after: logits after the softcap.
        before: logits before the softcap; None if unknown.
    """

    after: torch.Tensor
    before: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.after)

    @property
    def width(self) -> int:
        """Size of the vocabulary."""
        return self.after.shape[1]

    def rows(self, begin: int, end: int, _: Page | None = None) -> Rows:
        """Return rows [begin, end) after the softcap and, if known, before it."""
        return self.after[begin:end], None if self.before is None else self.before[begin:end]


Logits: TypeAlias = HeadLogits | HeldLogits
"""Logits of the scored rows."""


@torch.no_grad()
def compute_together(
    models: Mapping[str, HeadLogits], begin: int, end: int, pages: Mapping[str, Page]
) -> dict[str, Rows]:
    """Make rows [begin, end) of several models.

    A head's weight that several models share is cast once, and logits of equal states are made once: a packed model
    with the states of its dequantized twin costs no product.

    Args:
        models: logits to make, by name of the model.
        begin: first row.
        end: row after the last.
        pages: buffers by name; the rows are valid until these are reused.
    """
    first = _first_alike(models, begin, end)
    sharing: dict[int, list[str]] = {}
    for name in dict.fromkeys(first.values()):
        weight = models[name].head.weight
        sharing.setdefault(id(models[name]) if weight is None else weight.data_ptr(), []).append(name)
    for names in sharing.values():
        outputs = [
            (models[name].states[begin:end], pages[name].buffer(0, end - begin, models[name].width)) for name in names
        ]
        weight = models[names[0]].head.weight
        if weight is None:
            models[names[0]].head.raw(*outputs[0])
        else:
            _multiply(weight, outputs)
    finished = {name: models[name].finished(begin, end, pages[name]) for name in dict.fromkeys(first.values())}
    return {name: finished[other] for name, other in first.items()}


def _first_alike(models: Mapping[str, HeadLogits], begin: int, end: int) -> dict[str, str]:
    """Map each model to the first model with the same head and the same states."""
    first: dict[str, str] = {}
    for name, logits in models.items():
        alike = (other for other in dict.fromkeys(first.values()) if _are_alike(logits, models[other], begin, end))
        first[name] = next(alike, name)
    return first


def _are_alike(logits: HeadLogits, other: HeadLogits, begin: int, end: int) -> bool:
    a, b = logits.head, other.head
    if a.weight is None or b.weight is None or a.weight.data_ptr() != b.weight.data_ptr() or a.cap != b.cap:
        return False
    states, other_states = logits.states[begin:end], other.states[begin:end]
    return (
        states.dtype is other_states.dtype
        and states.device == other_states.device
        and torch.equal(states, other_states)
    )


def join_logits(parts: Sequence[Logits]) -> list[Logits]:
    """Join the logits of several probes into one if one head makes them all; otherwise return the parts."""
    computed = [part for part in parts if isinstance(part, HeadLogits)]
    if len(computed) < len(parts) or len({id(part.head.module) for part in computed}) > 1 or not computed:
        return list(parts)
    return [HeadLogits(computed[0].head, torch.cat([part.states for part in computed]))]


def concatenate_logits(parts: Sequence[Logits]) -> torch.Tensor:
    """Return the logits of several probes after the softcap, [n, V], with the bits of piecewise comparison."""
    return torch.cat(
        [
            part.rows(begin, end)[0].clone()
            for part in join_logits(parts)
            for begin, end in pieces(len(part), part.width)
        ]
    )


def pieces(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each piece of `rows` rows."""
    step = max(1, PIECE // max(1, width))
    yield from ((begin, min(begin + step, rows)) for begin in range(0, rows, step))

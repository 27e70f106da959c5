"""Runs a model a part at a time: a decoder layer, a tower or the head has memory only while it runs.

The model's own forward stays as it is; masks, rotary tables, shared keys and values, per-layer inputs and softcap are
transformers'. Hooks do the rest:

    decoder layer, tower, head    before its forward: read from the files; after it: back to meta
    embedding tables              before: the rows that are asked for, as a small table; after: the mapped file

What is not copied (tables and head of a bf16 model on bf16 files, on the CPU) stays mapped and is left alone. A
streamed model gives the same bits as a resident one, since the same modules multiply the same numbers.

`run_together` runs many forwards with one pass over the weights. Each runs in a thread of its own, one thread at a
time: before a part, a thread waits until all others are at a part, too; then the earliest part is loaded, once, and
all that wait for it go on. It works for any calls that use the model, such as prefill and decode with a cache.
"""

import contextvars
import ctypes
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from g4convert.forward.filling import Filling, put
from g4convert.forward.models import Model
from g4convert.names import Name

__all__ = ["Stream", "run_together", "stream_of"]

T = TypeVar("T")

_ATTRIBUTE = "g4_stream"
_TOWERS = ("model.vision_tower", "model.audio_tower")
_HEAD, _HEAD_WEIGHT = "lm_head", "lm_head.weight"
_TABLES = ("embed_tokens.weight", "embed_tokens_per_layer.weight")


@dataclass(frozen=True, slots=True)
class _Part:
    """A module that comes and goes.

    Args:
        name: dotted path.
        order: when a forward reaches it.
        tensors: name of each tensor it needs, and of the one to read for it: its own, or the embedding's.
    """

    name: str
    order: int
    tensors: dict[str, str]


class Stream:
    """Loads the parts of one model as they are needed; at most one is there at any time.

    Args:
        model: on meta.
        filling: source of its tensors.

    Attributes:
        filling: source of its tensors.
        loads: count of reads of each part.
    """

    def __init__(self, model: Model, filling: Filling) -> None:
        self.loads: Counter[str] = Counter()
        self.filling = filling
        self._model, self._filling = model, filling
        self._live: _Part | None = None
        self._head: str | None = None

    @classmethod
    def attach(cls, model: Model, filling: Filling, *, tied: bool) -> None:
        """Fill what stays, put hooks on what comes and goes.

        Args:
            model: on meta.
            filling: source of its tensors.
            tied: whether the head is the embedding.
        """
        stream = cls(model, filling)
        tables = _tables(model, filling)
        parts = _parts(model, filling, tables, tied=tied)
        coming = {name for part in parts for name in part.tensors}
        filling.fill(model, [name for name in filling.pieces if name not in coming and name not in tables])
        for name in tables:
            stream._gather(name)
        for part in parts:
            stream._hook(part)
            stream._head = part.tensors.get(_HEAD_WEIGHT, stream._head)
        if tied and _HEAD_WEIGHT not in coming:
            model.tie_weights()
        setattr(model, _ATTRIBUTE, stream)

    @property
    def live(self) -> str | None:
        """The part that is in memory."""
        return self._live.name if self._live else None

    def head_weight(self) -> torch.Tensor | None:
        """The weight of the head as the file has it, mapped; None where the head does not come and go."""
        return None if self._head is None else self._filling.stored(self._head)

    def free(self) -> None:
        """Let the part that is in memory go."""
        if self._live:
            for name in self._live.tensors:
                put(self._model, name, self._empty(name))
            _give_back()
        self._live = None

    def _hook(self, part: _Part) -> None:
        def before(*_: object) -> None:
            if isinstance(thread := threading.current_thread(), _Worker):
                thread.wait_for(part)
            self._load(part)

        def after(*_: object) -> None:
            if not isinstance(threading.current_thread(), _Worker):
                self.free()

        module = self._model.get_submodule(part.name)
        module.register_forward_pre_hook(before, prepend=True)
        module.register_forward_hook(after, always_call=True)

    def _load(self, part: _Part) -> None:
        if self._live is part:
            return
        self.free()
        self._live = part
        self.loads[part.name] += 1
        if _HEAD_WEIGHT in part.tensors and part.tensors[_HEAD_WEIGHT] != _HEAD_WEIGHT:
            put(self._model, _HEAD_WEIGHT, self._filling.read(part.tensors[_HEAD_WEIGHT]))
        else:
            self._filling.fill(self._model, part.tensors)

    def _empty(self, name: str) -> torch.Tensor:
        place = self._filling.places.get(name)
        return torch.empty_like(self._model.get_parameter(name), device="meta") if place is None else place

    def _gather(self, name: str) -> None:
        """Let an embedding look its rows up in the mapped file, and cast and move only those."""
        table = self._filling.stored(name)
        dtype = self._filling.places[name].dtype
        put(self._model, name, table)

        def before(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            ids, *rest = args
            rows, inverse = torch.unique(ids, return_inverse=True)
            put(self._model, name, table[rows.cpu()].to(self._filling.device, dtype))
            return (inverse, *rest)

        def after(*_: object) -> None:
            put(self._model, name, table)

        module = self._model.get_submodule(Name(name).module)
        module.register_forward_pre_hook(before)
        module.register_forward_hook(after, always_call=True)


def _give_back() -> None:
    """Return freed memory to the system: glibc keeps what each thread has freed, here a thread for each probe."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def stream_of(model: Model) -> Stream | None:
    """Return the stream of a model; None for a resident one."""
    stream: Stream | None = getattr(model, _ATTRIBUTE, None)
    return stream


def _is_assistant(model: Model) -> bool:
    """Drafters read the head's weight without running the head; they are small."""
    return bool(model.config.model_type.endswith("assistant"))


def _tables(model: Model, filling: Filling) -> list[str]:
    """Embedding tables that would have to be copied as a whole.

    On a GPU only the per-layer one, which is larger than all else: a row of the other is read by transformers' own
    forward (that of padding, in place of soft tokens), so it has to be there.
    """
    tables = () if _is_assistant(model) else _TABLES if filling.device.type == "cpu" else _TABLES[1:]
    return [name for name in filling.pieces if name.endswith(tables) and filling.is_copied(name)]


def _parts(model: Model, filling: Filling, tables: Sequence[str], *, tied: bool) -> list[_Part]:
    """Everything that comes and goes, in the order of a forward."""
    layers = model.get_decoder().layers
    prefix = next(name for name, module in model.named_modules() if module is layers)
    names = [name for name in _TOWERS if any(piece.startswith(f"{name}.") for piece in filling.pieces)]
    names += [f"{prefix}.{number}" for number in range(len(layers))]
    owners = [{key: key for key in filling.pieces if key.startswith(f"{name}.")} for name in names]
    embedding = next((name for name in tables if name.endswith(_TABLES[0])), None)
    if tied and embedding:
        names.append(_HEAD)
        owners.append({_HEAD_WEIGHT: embedding})
    elif not _is_assistant(model) and _HEAD_WEIGHT in filling.pieces and filling.is_copied(_HEAD_WEIGHT):
        names.append(_HEAD)
        owners.append({_HEAD_WEIGHT: _HEAD_WEIGHT})
    return [_Part(name, order, tensors) for order, (name, tensors) in enumerate(zip(names, owners, strict=True))]


class _AbandonedError(BaseException):
    """Raised in a thread whose companions have failed."""


class _Worker(threading.Thread, Generic[T]):
    """One call, run in turns: `step` runs it up to the next part, or to its end."""

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__(daemon=True, name="forward")
        self.at: _Part | None = None
        self.result: list[T] = []
        self.error: BaseException | None = None
        self._call = call
        self._context = contextvars.copy_context()
        self._grad = torch.is_grad_enabled()
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = False
        self.start()

    def run(self) -> None:
        """Run the whole call in the thread, in turns."""
        self._go.acquire()
        try:
            if not self._abandoned:
                with torch.set_grad_enabled(self._grad):  # a setting of each thread
                    self.result.append(self._context.run(self._call))
        except BaseException as error:  # noqa: BLE001 -- raised again in the thread that waits for it
            self.error = error
        self.at = None
        self._back.release()

    def wait_for(self, part: _Part) -> None:
        """Give the turn back, in the thread, until the part's time has come."""
        self.at = part
        self._back.release()
        self._go.acquire()
        if self._abandoned:
            raise _AbandonedError

    def step(self) -> None:
        """Let it run up to the next part.

        Raises:
            BaseException: the error of the call.
        """
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """Make it end, and wait for that."""
        self._abandoned = True
        while self.is_alive():
            self._go.release()
            self.join(timeout=0.1)


def run_together(model: Model, calls: Sequence[Callable[[], T]]) -> list[T]:
    """Run calls that each run the model; if it is streamed, with one pass over its weights.

    Args:
        model: model that the calls run.
        calls: functions without arguments, run in threads by turns: what one changes while it runs, such as
            `sys.stderr`, the others see.

    Returns:
        The results, in the order of the calls.

    Raises:
        BaseException: the error of the first call that failed; the others are abandoned.
    """
    stream = stream_of(model)
    if stream is None:
        return [call() for call in calls]
    workers = [_Worker(call) for call in calls]
    try:
        for worker in workers:
            worker.step()
        while waiting := [worker.at for worker in workers if worker.at is not None]:
            part = min(waiting, key=lambda part: part.order)
            for worker in workers:
                if worker.at is part:
                    worker.step()
    finally:
        for worker in workers:
            worker.abandon()
        stream.free()
    return [result for worker in workers for result in worker.result]

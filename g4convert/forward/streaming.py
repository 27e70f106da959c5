"""Runs a model part by part: the weights of a decoder layer, a tower or the head are in memory only while it runs.

The model's own forward is unchanged; masks, rotary tables, shared keys and values, per-layer inputs and softcap are
transformers'. Hooks load and free the weights:

    decoder layer, tower, head    before its forward: read from the files; after it: back to meta
    embedding tables              before: only the looked-up rows, as a small table; after: the mapped file

Tensors that need no copy (tables and head of a bf16 model on bf16 files, on the CPU) stay mapped. A streamed model
gives the same bits as a resident one, since the same modules multiply the same numbers.

`run_together` runs many forwards with one pass over the weights. Each forward has its own thread, and one thread runs
at a time: it stops before each part until all other threads have stopped, too. Then the earliest part is loaded once,
and all threads waiting for it run on. This works for any calls of the model, such as prefill and decode with a cache.
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
from g4convert.forward.models import Model, layers_path
from g4convert.gemma4 import is_drafter
from g4convert.names import Name

T = TypeVar("T")

_ATTRIBUTE = "g4_stream"
_TOWERS = ("model.vision_tower", "model.audio_tower")
_HEAD, _HEAD_WEIGHT = "lm_head", "lm_head.weight"
_TABLES = ("embed_tokens.weight", "embed_tokens_per_layer.weight")


@dataclass(frozen=True, slots=True)
class _Part:
    """A module whose weights are loaded before it runs and freed after it.

    Args:
        name: dotted path.
        order: position in a forward.
        tensors: names of its tensors, each with the name of the tensor to read: its own, or the embedding's if tied.
    """

    name: str
    order: int
    tensors: dict[str, str]


class Stream:
    """Loader of one model's parts; at most one part is in memory at any time.

    Args:
        model: model on the meta device.
        filling: source of its tensors.

    Attributes:
        filling: source of its tensors.
        loads: number of loads by part name.
    """

    def __init__(self, model: Model, filling: Filling) -> None:
        self.loads: Counter[str] = Counter()
        self.filling = filling
        self._model = model
        self._live: _Part | None = None
        self._head: str | None = None

    @classmethod
    def attach(cls, model: Model, filling: Filling, *, tied: bool) -> None:
        """Fill the resident tensors, and hook the tables and parts that are loaded on demand.

        Args:
            model: model on the meta device.
            filling: source of its tensors.
            tied: whether head and embedding share one weight.
        """
        stream = cls(model, filling)
        tables = _mapped_tables(model, filling)
        parts = _streamed_parts(model, filling, tables, tied=tied)
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

    def head_weight(self) -> torch.Tensor | None:
        """Return the head's stored weight, mapped; None if the head is not loaded on demand."""
        return None if self._head is None else self.filling.stored(self._head)

    def free(self) -> None:
        """Free the part in memory: its tensors go back to meta."""
        if self._live:
            for name in self._live.tensors:
                put(self._model, name, self._empty(name))
            _give_back()
        self._live = None

    def _hook(self, part: _Part) -> None:
        def before(*_: object) -> None:
            if isinstance(thread := threading.current_thread(), _LoadingThread):
                thread.wait_for(part)
            self._load(part)

        def after(*_: object) -> None:
            if not isinstance(threading.current_thread(), _LoadingThread):
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
            put(self._model, _HEAD_WEIGHT, self.filling.read(part.tensors[_HEAD_WEIGHT]))
        else:
            self.filling.fill(self._model, part.tensors)

    def _empty(self, name: str) -> torch.Tensor:
        place = self.filling.places.get(name)
        return torch.empty_like(self._model.get_parameter(name), device="meta") if place is None else place

    def _gather(self, name: str) -> None:
        """Hook an embedding: it looks its rows up in the mapped file, and only these rows are cast and moved."""
        table = self.filling.stored(name)
        dtype = self.filling.places[name].dtype
        put(self._model, name, table)

        def before(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            ids, *rest = args
            rows, inverse = torch.unique(ids, return_inverse=True)
            put(self._model, name, table[rows.cpu()].to(self.filling.device, dtype))
            return (inverse, *rest)

        def after(*_: object) -> None:
            put(self._model, name, table)

        module = self._model.get_submodule(Name(name).module)
        module.register_forward_pre_hook(before)
        module.register_forward_hook(after, always_call=True)


def _give_back() -> None:
    """Return freed memory to the system: glibc keeps the memory that each thread, one per probe, has freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def stream_of(model: Model) -> Stream | None:
    """Return the stream of a model; None for a resident one."""
    stream: Stream | None = getattr(model, _ATTRIBUTE, None)
    return stream


def _mapped_tables(model: Model, filling: Filling) -> list[str]:
    """Return the names of the embedding tables whose rows are looked up in the file, since a copy would be large.

    On a GPU this is only the per-layer table, the largest tensor: transformers' forward reads the other table's padding
    row directly, in place of soft tokens, so that table stays resident. A drafter has none: it is small.
    """
    tables = () if is_drafter(model.config.model_type) else _TABLES if filling.device.type == "cpu" else _TABLES[1:]
    return [name for name in filling.pieces if name.endswith(tables) and filling.is_copied(name)]


def _streamed_parts(model: Model, filling: Filling, tables: Sequence[str], *, tied: bool) -> list[_Part]:
    """Return the parts that are loaded on demand, in the order of a forward."""
    names = [name for name in _TOWERS if any(piece.startswith(f"{name}.") for piece in filling.pieces)]
    names += [f"{layers_path(model)}.{number}" for number in range(len(model.get_decoder().layers))]
    owners = [{key: key for key in filling.pieces if key.startswith(f"{name}.")} for name in names]
    embedding = next((name for name in tables if name.endswith(_TABLES[0])), None)
    if tied and embedding:
        names.append(_HEAD)
        owners.append({_HEAD_WEIGHT: embedding})
    elif is_drafter(model.config.model_type):
        pass  # it reads the head's weight without running the head
    elif _HEAD_WEIGHT in filling.pieces and filling.is_copied(_HEAD_WEIGHT):
        names.append(_HEAD)
        owners.append({_HEAD_WEIGHT: _HEAD_WEIGHT})
    return [_Part(name, order, tensors) for order, (name, tensors) in enumerate(zip(names, owners, strict=True))]


class _AbandonedError(BaseException):
    """Raised in a thread to end it after another thread has failed."""


class _LoadingThread(threading.Thread, Generic[T]):
    """Thread of one call, run in turns: `step` runs the call up to the next part or to its end."""

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
        """Run the call, in the thread; starts with the first `step`."""
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
        """Give the turn back, in the thread, until `part` is next."""
        self.at = part
        self._back.release()
        self._go.acquire()
        if self._abandoned:
            raise _AbandonedError

    def step(self) -> None:
        """Run the call up to the next part or to its end.

        Raises:
            BaseException: any error of the call.
        """
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """End the thread and wait for its end."""
        self._abandoned = True
        while self.is_alive():
            self._go.release()
            self.join(timeout=0.1)


def run_together(model: Model, calls: Sequence[Callable[[], T]]) -> list[T]:
    """Run calls of a model; a streamed model is read once for all of them.

    Args:
        model: model that the calls run.
        calls: functions without arguments, run by turns in threads; they share global state such as `sys.stderr`.

    Returns:
        The results, in the order of the calls.

    Raises:
        BaseException: the error of the first call that failed; the others are abandoned.
    """
    stream = stream_of(model)
    if stream is None:
        return [call() for call in calls]
    workers = [_LoadingThread(call) for call in calls]
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

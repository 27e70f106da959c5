"""Runs a model once, layer by layer and unquantized, and adds up the squares of what its Linears are given.

    hidden-0.f32, hidden-1.f32      what a layer is given and what it gives, in turns
    layer-3.safetensors             sums of a layer that is done; a killed run continues behind it
    scratch-experts-*.f32           normed states and routing: an expert is read when it is its turn, alone

Sums are float64, over the tokens of a sequence and then over the sequences, in their order: the number of threads does
not show. Sequences that judge are left out. Every layer with experts runs twice, first up to its experts and then with
what they gave.

Letters: s sequences, t tokens, h hidden size, k inputs, e experts.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from g4convert.calibration.layer import Shared, in_order, sequence
from g4convert.calibration.replay import Replay
from g4convert.calibration.run import threads
from g4convert.calibration.states import SCRATCH, States
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.statistics import Inputs, Model, Statistics, source_of
from g4convert.errors import Interrupted
from g4convert.forward.pieces import Rows, TensorFiles
from g4convert.planning.sizes import default_workers
from g4convert.progress import Quiet

__all__ = ["record"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Sums = dict[str, tuple[F64, I64]]
"""Sums of squares [k] or [e, k] and tokens [1] or [e], by module."""

_ROWS = 256
_RUN = "run.json"
_EMBEDDING = "embedding"


def record(
    source: Path, tokens: Tokens, scratch: Path, *, workers: int = 0, progress: Quiet | None = None
) -> Statistics:
    """Count what the Linears of a model are given.

    Args:
        source: the checkpoint, not quantized.
        tokens: what it runs on.
        scratch: directory for what flows between layers, removed at the end. An unfinished run of the same model and
            tokens in it continues; one of others starts again.
        workers: threads; 0 is one for each core.
        progress: told of each layer.

    Returns:
        Statistics over all sequences but those that judge.

    Raises:
        G4Error: see `forward.load.load`.
        InputError: the disk is full.
        Interrupted: Ctrl-C; finished layers are kept.
    """
    watch = progress or Quiet()
    model = Model.of(Checkpoint.open(source))
    taken = Tokens(np.delete(tokens.ids, sorted(tokens.judges), axis=0))
    kept = _Kept(scratch, {"tokens": tokens.hash, **asdict(model)})
    try:
        with threads(workers or default_workers()) as pool:
            sums = _run(source, taken, kept, pool, watch)
    except KeyboardInterrupt as error:
        raise Interrupted("stopped; finished layers are kept", hint="the same command continues") from error
    kept.states.drop()
    inputs = {name: _mean(*one) for name, one in sorted(sums.items())}
    return Statistics(inputs, model, "g4convert", tokens.hash, tokens.samples, tokens.length)


def _run(source: Path, tokens: Tokens, kept: "_Kept", pool: Executor, progress: Quiet) -> Sums:
    """Every layer that is left, in order."""
    begun = kept.is_begun()
    replay = Replay.open(source, tokens, kept.states)
    get = kept.states.open if begun else kept.states.make
    hidden = [get(f"hidden-{turn}", replay.shape) for turn in range(2)]
    if not begun:
        kept.keep(_EMBEDDING, _embed(replay, hidden[0]))
        kept.begin()
    sums = kept.sums(_EMBEDDING)
    count = replay.config.num_hidden_layers
    progress.step("layers", count, "layers")
    for number in range(count):
        if not kept.has(f"layer-{number}"):
            layer = _Layer(replay, number, pool)
            kept.keep(f"layer-{number}", layer.run(hidden[number % 2], hidden[(number + 1) % 2]))
        sums |= kept.sums(f"layer-{number}")
        progress.tick(1)
    return sums


def _embed(replay: Replay, out: F32) -> Sums:
    """Fill `out` with what the first layer is given; what is packed before the layers is hooked."""
    hooks = _Hooks(replay.model.get_decoder(), "", ("per_layer_model_projection",))
    with hooks.placed():
        hooks.begin()
        replay.embed(out)
    return hooks.end(int(out.shape[0] * out.shape[1]))


@dataclass(frozen=True, slots=True)
class _Kept:
    """The directory of a run.

    Args:
        directory: where it is.
        facts: what it is of.
    """

    directory: Path
    facts: Mapping[str, str]

    @property
    def states(self) -> States:
        """Arrays in it."""
        return States(self.directory)

    def is_begun(self) -> bool:
        """True if a run of the same is here; another's is removed."""
        path = self.directory / _RUN
        if path.is_file() and path.read_bytes() == self._facts:
            return True
        self.states.drop()
        return False

    def begin(self) -> None:
        """Say that the first layer can run."""
        (self.directory / _RUN).write_bytes(self._facts)

    def has(self, name: str) -> bool:
        """True if something is done."""
        return self._path(name).is_file()

    def keep(self, name: str, sums: Sums) -> None:
        """Keep what was found, once the states are on disk."""
        arrays = {f"{module}{end}": one for module, both in sums.items() for end, one in zip("sn", both, strict=True)}
        unfinished = self._path(f"{SCRATCH}sums")
        save_file(arrays, unfinished)
        self.states.sync()
        unfinished.replace(self._path(name))

    def sums(self, name: str) -> Sums:
        """Sums that were kept."""
        arrays = load_file(self._path(name))
        return {key[:-1]: (arrays[key], arrays[f"{key[:-1]}n"]) for key in arrays if key.endswith("s")}

    @property
    def _facts(self) -> bytes:
        return json.dumps(dict(self.facts), sort_keys=True).encode()

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"


class _Hooks:
    """Adds up the squares of what Linears are given, in whatever thread their model is called."""

    def __init__(self, model: Any, prefix: str, paths: tuple[str, ...]) -> None:  # noqa: ANN401 -- of transformers
        self._modules = {f"{prefix}{path}": _found(model, path) for path in paths}
        self._thread = local()

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Hooks in their places."""
        handles = [
            module.register_forward_pre_hook(self._hook(name))
            for name, module in self._modules.items()
            if module is not None
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self) -> None:
        """Begin in this thread."""
        self._thread.sums = {}

    def end(self, tokens: int) -> Sums:
        """Sums of this thread."""
        found: dict[str, F64] = self._thread.sums
        return {name: (one, np.array([tokens])) for name, one in found.items()}

    def _hook(self, name: str) -> Callable[[torch.nn.Module, Any], None]:
        def add(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            sums: dict[str, F64] = self._thread.sums
            found = _squares(given[0])
            sums[name] = sums[name] + found if name in sums else found

        return add


class _Routed(torch.nn.Module):
    """Stands where the experts of a layer do: takes note of what they are given, or gives what they gave."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = local()

    def begin(self, gives: torch.Tensor | None) -> None:
        """Begin in this thread."""
        self._thread.gives = gives

    def noted(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Normed states [t, h], experts [t, k] and weights [t, k] of this thread."""
        noted: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self._thread.noted
        return noted

    def forward(self, states: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[t, h] -> [t, h]."""
        self._thread.noted = states, index, weights
        gives: torch.Tensor | None = self._thread.gives
        return torch.zeros_like(states) if gives is None else gives


class _Layer:
    """One layer and all sequences."""

    def __init__(self, replay: Replay, number: int, pool: Executor) -> None:
        self._replay, self._number, self._pool = replay, number, pool

    def run(self, states: F32, out: F32) -> Sums:
        """Fill `out` with what the layer gives for `states` [s, t, h]; what its Linears are given."""
        with torch.no_grad(), self._replay.layer(self._number) as layer:
            if not hasattr(layer, "experts"):
                return self._pass(layer, states, out)
            experts, routed = layer.experts, _Routed()
            layer.experts = routed
            try:
                sums, given = self._to_experts(layer, states, routed)
                added, theirs = self._experts(experts, given)
                sums |= theirs
                self._pass(layer, states, out, routed, added)
            finally:
                layer.experts = experts
            return sums

    def _pass(
        self,
        layer: Any,  # noqa: ANN401
        states: F32,
        out: F32,
        routed: _Routed | None = None,
        added: F32 | None = None,
    ) -> Sums:
        """Call the layer with each sequence."""
        total: Sums = {}
        for s, (given, sums) in self._called(layer, states, routed, added):
            out[s] = given[0].numpy()
            _add(total, sums)
        return total

    def _to_experts(self, layer: Any, states: F32, routed: _Routed) -> tuple[Sums, "_Given"]:  # noqa: ANN401
        """Call the layer for what it gives its experts."""
        total: Sums = {}
        top_k = self._replay.config.top_k_experts
        given = _Given.make(self._replay.states, states.shape, top_k)
        for _, (_, sums) in self._called(layer, states, routed, None, note=given.note):
            _add(total, sums)
        return total, given

    def _called(
        self,
        layer: Any,  # noqa: ANN401
        states: F32,
        routed: _Routed | None,
        added: F32 | None,
        *,
        note: Callable[[int, Any], None] | None = None,
    ) -> Iterator[tuple[int, tuple[torch.Tensor, Sums]]]:
        hooks = _Hooks(layer, f"layers.{self._number}.", tuple(_paths(layer)))
        arguments, shared = self._replay.arguments[self._number], Shared(self._replay, layer)
        per_layer, length = self._replay.per_layer(self._number), states.shape[1]

        def call(s: int) -> tuple[torch.Tensor, Sums]:
            with torch.no_grad():  # a setting of each thread
                hooks.begin()
                if routed is not None:
                    routed.begin(None if added is None else torch.from_numpy(np.array(added[s])))
                own = {} if per_layer is None else {"per_layer_input": sequence(per_layer, s)}
                given = shared.given(s)
                # not `layer(...)`, whose hooks would take the weights out again
                found = layer.forward(sequence(states, s), **own, shared_kv_states=given, **arguments)
                shared.keep(s, given)
                if note is not None and routed is not None:
                    note(s, routed.noted())
                return found, hooks.end(length)

        with hooks.placed():
            yield from in_order(self._pool, call, range(len(states)))

    def _experts(self, experts: Any, given: "_Given") -> tuple[F32, Sums]:  # noqa: ANN401
        """Run the experts one by one; what they add [s, t, h], and what they are given."""
        count, path = self._replay.config.num_experts, f"layers.{self._number}.experts."
        added = self._replay.states.make(f"{SCRATCH}experts-added", given.states.shape)
        added[:] = 0
        flat, index, weights = (_flat(one) for one in (added, given.index, given.weights))
        states = _flat(given.states)
        read = self._reader()
        gate: list[F64] = []
        down: list[F64] = []
        tokens: list[int] = []

        def call(expert: int) -> tuple[I64, F32, F64, F64]:
            with torch.no_grad():
                token, place = np.nonzero(index == expert)
                x = torch.from_numpy(states[token])
                gate_up, out = read("gate_up_proj", expert), read("down_proj", expert)
                first, second = (x @ gate_up.T).chunk(2, dim=-1)
                inner = experts.act_fn(first) * second
                gives = (inner @ out.T).numpy() * weights[token, place, None]
                return token, gives, _squares(x), _squares(inner)

        for _, (token, gives, outer, inner) in in_order(self._pool, call, range(count)):
            flat[token] += gives
            gate.append(outer)
            down.append(inner)
            tokens.append(len(token))
        each = np.array(tokens)
        return added, {f"{path}gate_proj": (np.stack(gate), each), f"{path}down_proj": (np.stack(down), each)}

    def _reader(self) -> Callable[[str, int], torch.Tensor]:
        """Reads a weight of one expert, float32."""
        filling = self._replay.stream.filling
        prefix = next(
            name.removesuffix("gate_up_proj")
            for name in filling.pieces
            if name.endswith(f"layers.{self._number}.experts.gate_up_proj")
        )
        files = TensorFiles(filling.checkpoint)

        def read(name: str, expert: int) -> torch.Tensor:
            piece = filling.pieces[prefix + name]
            if isinstance(piece, Rows):
                return piece.part(files, expert, torch.float32)
            return piece.read(files, torch.float32)[expert]

        return read


@dataclass(frozen=True, slots=True)
class _Given:
    """Inputs of the experts of a layer, of all sequences: states [s, t, h], experts and weights [s, t, k]."""

    states: F32
    index: F32
    weights: F32

    @classmethod
    def make(cls, states: States, shape: tuple[int, ...], top_k: int) -> "_Given":
        """Room for it in files."""
        of = (*shape[:2], top_k)
        return cls(
            states.make(f"{SCRATCH}experts-states", shape),
            states.make(f"{SCRATCH}experts-index", of),
            states.make(f"{SCRATCH}experts-weights", of),
        )

    def note(self, s: int, given: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        """Keep that of one sequence."""
        self.states[s], self.index[s], self.weights[s] = (one.numpy() for one in given)


def _found(model: Any, path: str) -> torch.nn.Module | None:  # noqa: ANN401
    """A module by its path; None where there is none."""
    found: torch.nn.Module | None = dict(model.named_modules()).get(path)
    return found


def _paths(layer: torch.nn.Module) -> Iterator[str]:
    """Linears of a layer that are the first to take their inputs; the router is never packed."""
    for path, module in layer.named_modules():
        if isinstance(module, torch.nn.Linear) and not path.startswith("router") and source_of(path) == path:
            yield path


def _squares(x: torch.Tensor) -> F64:
    """Sum of the squares of rows [..., k], float64 [k]."""
    total = np.zeros(x.shape[-1])
    flat = x.reshape(-1, x.shape[-1])
    for first in range(0, len(flat), _ROWS):
        total += flat[first : first + _ROWS].double().square_().sum(0).numpy()
    return total


def _add(total: Sums, sums: Sums) -> None:
    for name, (squares, tokens) in sums.items():
        before = total.get(name)
        total[name] = (squares, tokens) if before is None else (before[0] + squares, before[1] + tokens)


def _mean(squares: F64, tokens: I64) -> Inputs:
    counts = np.maximum(tokens, 1)
    mean = squares / (counts[:, None] if squares.ndim > 1 else counts)
    return Inputs(mean.astype(np.float32), tokens)


def _flat(array: F32) -> F32:
    return array.reshape(-1, array.shape[-1])

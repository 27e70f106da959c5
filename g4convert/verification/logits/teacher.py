"""Search for modules whose outputs differ from the reference's although they are given exactly the same inputs.

    reference root (a decoder layer, a tower, an embedder, the head)
        its descendants run:  inputs and outputs are recorded
        the root has run:     the candidate's root is called with the same inputs
            its descendants run:  each is called once more, with the recorded inputs of its namesake

So errors do not propagate: if a module's outputs differ, the module itself or a module inside it is wrong. Both models
may be streamed, since a layer of one runs inside the same layer of the other, and one layer is recorded at a time.

As long as the outputs of the roots are bit-equal, as on the packed path on the CPU, their descendants count as equal
and are not run again. From the first root that differs on, the descendants of every root are compared.

A module is a culprit if its SQNR is below a limit and no module inside it is a culprit. An experts module with errors
is also run expert by expert. `g4convert.verification.logits.inputs` compares what is computed between the roots
(masks, positions, placement of soft tokens).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch

from g4convert.devices import device_of
from g4convert.forward.models import Model
from g4convert.names import Name
from g4convert.verification.logits.parts import label, roots, towers
from g4convert.verification.logits.states import StateMetrics, StateSums

_SMALL = 1 << 16


@dataclass(frozen=True, slots=True)
class ModuleError:
    """Error of a candidate's module on the reference's inputs.

    Args:
        name: dotted path of the module; a single expert is `...experts.7`.
        sqnr: SQNR of the module's outputs, dB.
        cosine: cosine of the module's and the reference's outputs.
        tensors: names of the module's own small tensors (scalars, norms, scales) whose values differ.
    """

    name: str
    sqnr: float
    cosine: float
    tensors: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Path without the prefix of all text modules, and the name of the differing tensor if there is only one."""
        name = label(self.name)
        return f"{name}.{self.tensors[0]}" if len(self.tensors) == 1 and self.tensors[0] != "weight" else name


class Teacher:
    """Context manager that compares modules while the reference runs inside it, any number of times.

    Args:
        reference: the reference model.
        candidate: the model to compare; modules are matched by name, and modules that it lacks are not compared.
        limit: SQNR in dB below which an experts module is run expert by expert.
    """

    def __init__(self, reference: Model, candidate: Model, *, limit: float) -> None:
        self._reference = reference
        self._candidate = candidate
        self._limit = limit
        self._sums: dict[str, StateSums] = {}
        self._tensors: dict[str, tuple[str, ...]] = {}
        self._inputs: dict[str, tuple[Any, Any]] = {}
        self._recorded: dict[str, list[tuple[Any, Any, Any]]] = {}
        self._is_own_run = False  # the teacher runs a module, not the caller: nothing is recorded
        self._replays = False  # the candidate's descendants are compared as they run
        self._all_equal = True
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        candidates = dict(self._candidate.named_modules())
        closed: list[str] = []
        for tower, module in towers(self._reference).items():
            if tower in candidates and not tower.startswith(tuple(closed)):
                self._hook_root(tower, module, candidates[tower], inside=True)
                if _is_unloaded(candidates[tower]):  # the tower is loaded as a whole: its layers cannot run alone
                    closed.append(f"{tower}.")
        for root, module in roots(self._reference).items():
            if root not in candidates or root.startswith(tuple(closed)):
                continue
            for name, inner in _descendants(root, module):
                if name in candidates:
                    self._hook(inner, partial(self._record, name))
                    self._hook(candidates[name], partial(self._replay, name, inner))
            self._hook_root(root, module, candidates[root], inside=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def errors(self) -> tuple[ModuleError, ...]:
        """Return the errors of all compared modules, in the order in which they first ran."""
        errors = []
        for name, sums in self._sums.items():
            metrics: StateMetrics = sums.metrics(name)
            errors.append(ModuleError(name, metrics.sqnr, metrics.cosine, self._tensors.get(name, ())))
        return tuple(errors)

    def _hook(self, module: Model, hook: Callable[..., None]) -> None:
        # before all other hooks: the hook that frees a streamed layer must run after this one
        self._stack.enter_context(module.register_forward_hook(hook, prepend=True, with_kwargs=True))

    def _hook_root(self, name: str, module: Model, candidate: Model, *, inside: bool) -> None:
        self._hook(module, partial(self._run_root, name, candidate, inside=inside))
        give = partial(self._store_inputs, name)
        self._stack.enter_context(module.register_forward_pre_hook(give, prepend=True, with_kwargs=True))

    def _record(self, name: str, _module: Model, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
        if not self._is_own_run:
            self._recorded.setdefault(name, []).append(
                (args, kwargs, [tensor.clone() for tensor in _float_tensors(output)])
            )

    def _store_inputs(self, root: str, _module: Model, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        """Store the inputs of the reference's root before it runs, before a hook that streams weights changes them."""
        if not self._is_own_run:
            self._inputs[root] = args, kwargs

    def _run_root(self, root: str, candidate: Model, module: Model, *rest: Any, inside: bool) -> None:  # noqa: ANN401
        """Run the candidate's root after the reference's; with `inside`, without comparing its descendants."""
        if self._is_own_run:
            return
        args, kwargs = self._inputs.pop(root)
        expected = list(_float_tensors(rest[-1]))
        self._is_own_run = True
        try:
            replays = not (inside or self._all_equal)
            output = self._run(candidate, args, kwargs, replays=replays)
            self._all_equal = self._all_equal and _are_equal(expected, output)
            if not (inside or replays or self._all_equal):  # the first root that differs: compare inside
                output = self._run(candidate, args, kwargs, replays=True)
            self._compare(root, expected, output)
            if self._all_equal:
                self._count_as_equal()
        finally:
            self._is_own_run = False
            self._recorded.clear()
        self._tensors.setdefault(root, tuple(_differing_tensors(module, candidate)))

    def _run(self, candidate: Model, args: Any, kwargs: Any, *, replays: bool) -> Any:  # noqa: ANN401
        """Run a candidate's root on the inputs of the reference's; with `replays`, compare its descendants."""
        self._replays = replays
        try:
            return candidate(*self._adapt(args), **self._adapt(kwargs))
        finally:
            self._replays = False

    def _replay(self, name: str, reference: Model, module: Model, *_: object) -> None:
        """Run the candidate's module again, after it ran inside its root, on the recorded inputs of its namesake."""
        if not self._replays or (calls := self._recorded.pop(name, None)) is None:
            return
        self._replays = False  # not again, by the calls below
        self._tensors.setdefault(name, tuple(_differing_tensors(reference, module)))
        try:
            for args, kwargs, output in calls:
                inputs = self._adapt(args), self._adapt(kwargs)
                self._compare(name, output, module(*inputs[0], **inputs[1]))
                if Name(name).last == "experts" and self._sums[name].metrics(name).sqnr < self._limit:
                    self._expert_by_expert(name, reference, module, args)
        finally:
            self._replays = True

    def _count_as_equal(self) -> None:
        """Count the modules recorded inside a root as equal, since the outputs of the root are."""
        for name, calls in self._recorded.items():
            for _, _, output in calls:
                self._compare(name, output, output)

    def _expert_by_expert(self, name: str, reference: Model, module: Model, args: Any) -> None:  # noqa: ANN401
        states, chosen = args[0], args[1]
        for expert in sorted(set(chosen.flatten().tolist())):
            rows = (chosen == expert).any(-1)
            inputs = states[rows], torch.full_like(chosen[rows, :1], expert), torch.ones_like(args[2][rows, :1])
            self._compare(f"{name}.{expert}", [reference(*inputs)], module(*self._adapt(inputs)))

    def _adapt(self, value: Any) -> Any:  # noqa: ANN401
        return adapt_arguments(value, self._reference, self._candidate)

    def _compare(self, name: str, expected: list[torch.Tensor], output: Any) -> None:  # noqa: ANN401
        sums = self._sums.setdefault(name, StateSums())
        for a, b in zip(expected, _float_tensors(output), strict=False):
            sums.add(_rows(a), _rows(b))


def adapt_arguments(value: Any, original: Model, model: Model) -> Any:  # noqa: ANN401 -- arguments of any module
    """Return arguments of one model for another: on its device, tensors of dtype `given.dtype` cast to `model.dtype`.

    Containers are copied, since layers write into some of them.
    """

    def change(x: torch.Tensor) -> torch.Tensor:
        return x.to(device_of(model), model.dtype if x.dtype is original.dtype else None)

    return _map_tensors(value, change)


def culprits(errors: Iterable[ModuleError], limit: float) -> tuple[ModuleError, ...]:
    """Return the modules that are wrong and contain no wrong module, worst first.

    Args:
        errors: errors of all compared modules.
        limit: SQNR in dB below which a module is wrong.
    """
    bad = {error.name: error for error in errors if not error.sqnr >= limit}
    for name in [name for name in bad if Name(name).last == "experts"]:
        inner = [other for other in bad if Name(other).owner == name and Name(other).last.isdecimal()]
        tried = sum(Name(error.name).owner == name for error in errors)
        if len(inner) > 1 and 2 * len(inner) > tried:  # most experts are wrong: blame the experts module
            for other in inner:
                del bad[other]
    inside = {owner for name in bad for owner in Name(name).owners()}
    leaves = [error for name, error in bad.items() if name not in inside]
    return tuple(sorted(leaves, key=lambda error: error.sqnr))


def _is_unloaded(module: Model) -> bool:
    """Return whether the module's weights are loaded only while it runs."""
    return any(tensor.is_meta for tensor in module.state_dict().values())


def _descendants(root: str, module: Model) -> Iterator[tuple[str, Model]]:
    for name, inner in module.named_modules():
        if name:
            yield f"{root}.{name}", inner


def _differing_tensors(reference: Model, candidate: Model) -> Iterator[str]:
    """Yield the names of small tensors that both modules own and whose values differ."""
    own, others = (
        dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for module in (reference, candidate)
    )
    for name, tensor in own.items():
        other = others.get(name)
        if other is None or tensor.numel() > _SMALL or tensor.is_meta or other.is_meta:
            continue
        if tensor.shape != other.shape or not torch.equal(tensor.to(other), other):
            yield name


def _float_tensors(value: object) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors in a module's output, scalars left out."""
    match value:
        case torch.Tensor():
            if value.is_floating_point() and value.ndim:
                yield value
        case Mapping():
            for item in value.values():
                yield from _float_tensors(item)
        case tuple() | list():
            for item in value:
                yield from _float_tensors(item)


def _are_equal(expected: Sequence[torch.Tensor], output: object) -> bool:
    """Return whether two outputs are bit-equal; they may be on different devices."""
    actual = list(_float_tensors(output))
    return len(actual) == len(expected) and all(
        a.dtype is b.dtype and torch.equal(a, b.to(a.device)) for a, b in zip(expected, actual, strict=True)
    )


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:  # noqa: ANN401
    """Return a copy of nested tuples, lists and mappings with `change` applied to every tensor."""
    match value:
        case torch.Tensor():
            return change(value)
        case tuple() | list():
            return type(value)(_map_tensors(item, change) for item in value)
        case MutableMapping():
            copied = copy(value)  # keeps the class of the mapping, which some layers test
            for key, item in value.items():
                copied[key] = _map_tensors(item, change)
            return copied
        case _:
            return value

"""Verdicts: whether an engine loads a checkpoint, on how many GPUs, and with which kernels.

    class and config of the model              -- needs ---->  the engine does not start, and is judged no further
    forms of all weights, `ignore`, `targets`  -- judge ---->  problems at any number of GPUs
    sizes of each GPU's part                   -- kernels -->  the kernel, or the reason why there is none
    other roles, groups, numbers of GPUs       -- advice --->  changes that were tried and would load

A verdict is `yes`, `caveat` (the user passes a flag, a kernel pads with zeros, or a slower kernel runs) or `no`, with
the reason and the remedies. transformers spreads a model over GPUs and splits no weight, so it gets one verdict.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from g4convert.engines import CONTRACTS
from g4convert.engines.contract import Contract
from g4convert.engines.forms import wrong_forms
from g4convert.engines.limits import (
    Kernel,
    NoKernel,
    Packing,
    Partition,
    crosses_words,
    sglang_linear,
    vllm_cpu_experts,
    vllm_cpu_linear,
    vllm_experts,
    vllm_linear,
    vllm_table,
)
from g4convert.engines.module import Module, ModuleKind
from g4convert.engines.reason import Reason
from g4convert.engines.remarks import Remark, Remedy, Topic
from g4convert.engines.remedies import EXPERT_PARALLEL
from g4convert.engines.split import Uneven, part_of, uneven
from g4convert.engines.weights import Weights, label
from g4convert.gemma4 import Role

TENSOR_PARALLEL: Final = (1, 2, 4, 8)
"""Default numbers of GPUs to give verdicts for."""

BASIS: Final = "judged by the engines' source code, not tried on a GPU"
"""Source of the rules behind every verdict."""

_UNPACKS: Final = "unpacks at the first forward pass, into as much memory as bf16"
_NO_GAPS: Final = "needs compressed-tensors 0.18 or newer; older releases leave bits of each word empty"
_DENSE: Final[Mapping[str, Callable[[Partition, Packing], Kernel | NoKernel]]] = {
    "vllm": vllm_linear,
    "sglang": sglang_linear,
}
SPLITTING: Final = frozenset(_DENSE)
"""Engines that split a model over GPUs."""
_TORN: Final = {Topic.UNEVEN, Topic.GROUP}


class Loads(StrEnum):
    """Verdict on whether an engine loads a checkpoint and computes with the weights that it stores."""

    YES = "yes"
    CAVEAT = "caveat"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on a checkpoint in one engine at one tensor parallel size.

    Args:
        engine: key of `CONTRACTS`.
        label: name and versions of the engine.
        tp: tensor parallel size.
        kernels: names of the kernels that run the packed weights; for transformers, the way it runs them.
        caveats: remarks on a checkpoint that loads.
        problems: reasons why the engine does not load the checkpoint, or computes with other weights than it stores.
        notes: other remarks.
        remedies: alternative changes that would make the checkpoint load; `with_remedies` finds them.
    """

    engine: str
    label: str
    tp: int
    kernels: tuple[str, ...] = ()
    caveats: tuple[Remark, ...] = ()
    problems: tuple[Remark, ...] = ()
    notes: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()

    @property
    def name(self) -> str:
        """Name of the engine, without its versions."""
        return self.label.partition(" ")[0]

    @property
    def loads(self) -> Loads:
        """`no` with problems, `caveat` with caveats only, otherwise `yes`."""
        return Loads.NO if self.problems else Loads.CAVEAT if self.caveats else Loads.YES

    @property
    def told(self) -> tuple[Remark, ...]:
        """The problems, or the caveats where there are none; size problems only where there is no other problem."""
        whole = tuple(one for one in self.problems if one.topic not in _TORN)
        return whole or self.problems or self.caveats

    @property
    def ways(self) -> tuple[Remedy, ...]:
        """Alternative ways to make it load; `remedies` alone where a new recipe helps, as that mends the rest, too."""
        if any(one.may_be_lifted for one in self.told):
            return self.remedies
        return tuple(dict.fromkeys(way for one in self.told for way in one.ways))

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON."""
        return {
            "engine": self.engine,
            "version": self.label,
            "tp": self.tp,
            "loads": self.loads.value,
            "kernels": [*self.kernels],
            "caveats": [one.to_dict() for one in self.caveats],
            "problems": [one.to_dict() for one in self.problems],
            "notes": [*self.notes],
            "basis": BASIS,
        }


def verdicts(
    weights: Weights, engines: Iterable[str] = tuple(CONTRACTS), tps: Iterable[int] = TENSOR_PARALLEL
) -> tuple[Verdict, ...]:
    """Return each engine's verdict on a checkpoint, without remedies: `with_remedies` adds them.

    Returns:
        One verdict for each engine and size; a single verdict for transformers.
    """
    sizes, thin = tuple(dict.fromkeys(tps)), weights.thinned()
    return tuple(
        one
        for engine in engines
        for one in verdicts_of_engine(thin, CONTRACTS[engine], sizes, wrong_forms(thin, CONTRACTS[engine]))
    )


def select_verdicts(found: Iterable[Verdict], engines: Iterable[str], tps: Iterable[int]) -> tuple[Verdict, ...]:
    """Return the verdicts on the given engines and sizes; an engine that does not split has one verdict for all sizes.

    Args:
        found: verdicts to choose from.
        engines: keys of `CONTRACTS`, in the order wanted.
        tps: tensor parallel sizes, in the order wanted.
    """
    given = {(one.engine, one.tp): one for one in found}
    sizes = tuple(dict.fromkeys(tps))
    places = ((engine, tp) for engine in dict.fromkeys(engines) for tp in (sizes if engine in _DENSE else (1,)))
    return tuple(given[place] for place in places if place in given)


def verdicts_of_engine(
    weights: Weights, contract: Contract, tps: Iterable[int], problems: tuple[Remark, ...]
) -> Iterator[Verdict]:
    """Yield one engine's verdicts. An engine that does not start with the model is judged by nothing else.

    Args:
        weights: the checkpoint, or its `thinned` form.
        contract: contract of the engine.
        tps: tensor parallel sizes.
        problems: problems that exist at every number of GPUs.
    """
    caveats = tuple(contract.caveats(weights.architecture))
    whole = Verdict(contract.engine, contract.label, 1, caveats=caveats, problems=problems)
    if lacks := tuple(contract.needs(weights.architecture)):
        yield from (replace(whole, tp=tp, problems=lacks) for tp in (tps if contract.engine in _DENSE else (1,)))
        return
    if contract.engine not in _DENSE:
        odd = sorted({one.num_bits for one in weights.packed.values() if crosses_words(one)})
        newer = (Remark(Topic.RELEASE, "", Reason(f"{bits} bits: {_NO_GAPS}")) for bits in odd)
        yield replace(whole, kernels=(_UNPACKS,) if weights.packed else (), caveats=(*caveats, *newer))
        return
    split = _Split.of(weights, contract)
    for tp in tps:
        notes = split.on_a_cpu() if contract.engine == "vllm" else ()
        yield split.verdict(replace(whole, tp=tp, notes=tuple(dict.fromkeys(notes))))


@dataclass(frozen=True, slots=True)
class _Split:
    """A checkpoint in an engine that splits; one module stands for all modules that differ only in their layer."""

    weights: Weights
    contract: Contract
    modules: tuple[Module, ...]

    @classmethod
    def of(cls, weights: Weights, contract: Contract) -> "_Split":
        stored = (module for module in contract.modules(weights.architecture) if weights.holds(module))
        return cls(weights, contract, tuple({weights.likeness(module): module for module in stored}.values()))

    def verdict(self, whole: Verdict) -> Verdict:
        """Return the verdict for one number of GPUs.

        Args:
            whole: verdict with the problems that exist at every number of GPUs; its `tp` is the number to judge.
        """
        remarks = tuple(dict.fromkeys(self._remarks(whole.tp)))
        torn = tuple(one for one in remarks if one.topic in _TORN)
        caveats = tuple(one for one in remarks if one.topic in {Topic.PADDING, Topic.SLOW})
        if torn and not whole.problems and self._saved_by_expert_parallel(torn):
            caveats += tuple(_expert_parallel(one) for one in torn)
            torn = ()
        kernels = tuple(one.text for one in remarks if one.topic is Topic.KERNEL)
        return replace(whole, kernels=kernels, caveats=(*whole.caveats, *caveats), problems=(*whole.problems, *torn))

    def on_a_cpu(self) -> Iterator[str]:
        """Yield a note for each module that vLLM's CPU build has no kernel for."""
        for module in self.modules:
            packing = self.weights.packing(module)
            if packing is None:
                continue
            if module.kind is ModuleKind.EMBEDDING:
                yield f"on a CPU: {label(module)}: rows are decoded by a Triton kernel"
                continue
            part = None if module.kind is ModuleKind.EXPERTS else self._part(module, 1)
            found = vllm_cpu_linear(part, packing) if isinstance(part, Partition) else vllm_cpu_experts(packing)
            if isinstance(found, NoKernel):
                yield f"on a CPU: {label(module)}: {found.reason}"

    def _remarks(self, tp: int) -> Iterator[Remark]:
        """Yield remarks about every module on `tp` GPUs."""
        for module in self.modules:
            subject, role = label(module), self.weights.role(module)
            packing = self.weights.packing(module)
            match self._taken(module, packing, tp):
                case Uneven(reason):
                    yield Remark(Topic.UNEVEN, subject, reason, role=role)
                case NoKernel(reason):
                    yield Remark(Topic.GROUP, subject, reason, role=role)
                case Kernel(kernel, padded, slow, note):
                    yield Remark(Topic.KERNEL, "", Reason(kernel))
                    if padded:
                        yield Remark(
                            Topic.PADDING,
                            subject,
                            Reason(f"padded from {padded}", rest=", same results in more memory"),
                            role=role,
                        )
                    if slow:
                        yield Remark(Topic.SLOW, subject, Reason(f"{kernel}, {slow}"), role=role)
                    if note:
                        yield Remark(Topic.SLOW, "", Reason(note))

    def _taken(self, module: Module, packing: Packing | None, tp: int) -> Kernel | NoKernel | Uneven | None:
        """Return the kernel of a module, or the reason why there is none; None for a plain module."""
        if module.kind is ModuleKind.LINEAR or (module.kind is ModuleKind.HEAD and packing is not None):
            part = self._part(module, tp)
            if isinstance(part, Uneven) or packing is None:
                return part if isinstance(part, Uneven) else None
            return _DENSE[self.contract.engine](part, packing)
        if module.kind is ModuleKind.EMBEDDING and packing and self.contract.engine == "vllm":
            return vllm_table(packing)
        experts = self.weights.architecture.text.experts
        if module.kind is not ModuleKind.EXPERTS or experts is None:
            return None  # engines pad tables, and heads that are not packed
        h, i = self.weights.architecture.text.hidden_size, experts.intermediate_size
        if i % tp:
            return uneven(f"{i} inputs", tp)
        return vllm_experts(h, i // tp, i, packing) if packing and self.contract.engine == "vllm" else None

    def _part(self, module: Module, tp: int) -> Partition | Uneven:
        return part_of(module, self.weights.architecture, self.weights.shapes, tp)

    def _saved_by_expert_parallel(self, torn: Iterable[Remark]) -> bool:
        """Return whether experts alone do not fit, and fit unsplit (vLLM 0.33, `fused_moe/config.py:1198`)."""
        if self.contract.engine != "vllm" or any(one.role is not Role.EXPERTS for one in torn):
            return False
        return not any(one.role is Role.EXPERTS and one.topic in _TORN for one in self._remarks(1))


def _expert_parallel(torn: Remark) -> Remark:
    """Return a remark that names the flag to pass because experts do not fit when split."""
    reason = replace(torn.reason, text=f"needs {EXPERT_PARALLEL}, which leaves experts whole: {torn.reason.text}")
    return Remark(Topic.FLAG, torn.subject, reason, role=torn.role, option=EXPERT_PARALLEL.strip("`"))

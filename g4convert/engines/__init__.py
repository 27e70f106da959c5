"""Says what serving engines do with a checkpoint; imports no engine and no torch.

contract      Defines what is known of one engine
vllm          vLLM: names, modules, what it accepts
sglang        SGLang: the same
transformers  transformers: the same
module        Makes an engine's modules from those of a checkpoint
targets       Finds the target that is the first to name something
matching      Matches `ignore` and `targets` as each engine does
split         Computes the part of a weight that each GPU gets
limits        Knows which kernels take which sizes
weights       Holds a checkpoint as engines meet it
remarks       Holds what there is to say of it, and what to do
reason        Holds why an engine does not take something, in parts
stored        Makes `Weights` of a stored checkpoint
units         Names what engines hold as one matrix, by the spelling of every engine
ignore        Derives `ignore` and config groups from `Weights`, and proves them for every engine
faults        Finds modules that would be built in another form than stored
groups        Finds modules that would be built by another config group than they are stored
forms         Says so in words
verdicts      Judges: loads, with a caveat, or not
remedies      Finds changes that would make an engine load it
advice        Tries them: remedies of verdicts, and the gate of engines that must load it
"""

from collections.abc import Callable, Mapping
from typing import Final

from g4convert.engines import sglang, transformers, vllm
from g4convert.engines.contract import Contract
from g4convert.gemma4 import Architecture

__all__ = ["CONTRACTS", "VERSIONS", "speller"]

CONTRACTS: Final[Mapping[str, Contract]] = {
    one.engine: one for one in (transformers.CONTRACT, vllm.CONTRACT, sglang.CONTRACT)
}
"""Newest version that was read of each engine, by engine."""

VERSIONS: Final[tuple[Contract, ...]] = (*CONTRACTS.values(), vllm.OLDEST)
"""Every version whose names or rules differ: what is written must hold for all of them."""


def speller(architecture: Architecture) -> Callable[[str], dict[str, str]]:
    """Return a function that gives a module's name in the files and, as entries are tried on it, in each engine."""
    spell = {engine: contract.speller(architecture) for engine, contract in CONTRACTS.items()}
    return lambda module: {"files": module, **{engine: of(module) for engine, of in spell.items()}}

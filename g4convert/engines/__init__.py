"""Predicts what serving engines do with a checkpoint; imports no engine and no torch.

contract         Defines the facts about an engine
vllm             Defines names, modules and accepted forms of vLLM
sglang           Defines names, modules and accepted forms of SGLang
transformers     Defines names, modules and accepted forms of transformers
module           Makes an engine's modules from the modules of a checkpoint
targets          Finds the first target that names a module
matching         Matches `ignore` and `targets` as each engine does
split            Computes the part of a weight that each GPU gets
limits           Finds the kernel that takes a weight's size
weights          Holds the shapes, roles and packings of a checkpoint, and its lists
needs            Finds what a model lacks for an engine to start with it
remarks          Holds remarks on a checkpoint, and ways to mend it
reason           Holds the reason why an engine refuses a module, in parts
spellings        Tells which other names of tensors an engine reads
refused_formats  Refuses checkpoints in formats that no contract has rules for
stored           Makes `Weights` of a stored checkpoint
units            Groups modules that engines hold as one matrix, and names them for every engine
ignore           Derives `ignore` and config groups from `Weights`, and proves them for every engine
faults           Finds modules that an engine would build in another form than the stored one
groups           Finds modules that an engine would build in another scheme than the stored one
forms            Turns these faults into remarks
verdicts         Judges whether an engine loads a checkpoint: yes, with a caveat, or no
remedies         Finds changes that would make an engine load a checkpoint
advice           Adds remedies to verdicts, and raises if a required engine refuses a checkpoint
"""

from collections.abc import Callable, Mapping
from typing import Final

from g4convert.engines import sglang, transformers, vllm
from g4convert.engines.contract import Contract
from g4convert.gemma4 import Architecture

CONTRACTS: Final[Mapping[str, Contract]] = {
    one.engine: one for one in (transformers.CONTRACT, vllm.CONTRACT, sglang.CONTRACT)
}
"""Engine -> contract of the newest version that was read."""

VERSIONS: Final[tuple[Contract, ...]] = (*CONTRACTS.values(), vllm.OLDEST)
"""Contracts of all versions that differ in names or rules; written lists must be right for all of them."""


def speller(architecture: Architecture) -> Callable[[str], dict[str, str]]:
    """Return a function from a module to its names: in the files, and in each engine, for matching with entries."""
    spell = {engine: contract.speller(architecture) for engine, contract in CONTRACTS.items()}
    return lambda module: {"files": module, **{engine: of(module) for engine, of in spell.items()}}

"""What serving engines do with a checkpoint: names, fused modules, `ignore` and `targets`, forms that load.

Pure values and functions: no engine, no torch. `contract` has the types, `module` how modules are made from the
checkpoint's, `matching` how entries name them, `judge` what would go wrong; `vllm`, `sglang` and `transformers`
have the facts.
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
"""By engine, the newest version that was read."""

VERSIONS: Final[tuple[Contract, ...]] = (*CONTRACTS.values(), vllm.OLDEST)
"""Every version whose names or rules differ: what is written must hold for all of them."""


def speller(architecture: Architecture) -> Callable[[str], dict[str, str]]:
    """What a checkpoint module is called in the files and, when entries are tried on it, in each engine."""
    spell = {engine: contract.speller(architecture) for engine, contract in CONTRACTS.items()}
    return lambda module: {"files": module, **{engine: of(module) for engine, of in spell.items()}}

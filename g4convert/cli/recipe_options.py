"""The options that override values of a recipe, defined once for all commands that take a recipe."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING

from g4convert.cli.recipe_values import (
    Assistant,
    Bits,
    Carry,
    Engines,
    GroupSize,
    KvShared,
    Layout,
    Leave,
    Method,
    NumBits,
    Pack,
    RecipeName,
    ShardSize,
    Signed,
)

if TYPE_CHECKING:
    from g4convert.planning.recipe import Resolved

__all__ = ["with_recipe"]


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the recipe's options in its signature, which Typer reads.

    Args:
        command: command with a parameter `resolved`, which gets the recipe; the options replace it in the signature.
    """
    own, options = (inspect.signature(function).parameters for function in (command, _resolved))

    @wraps(command)
    def run(**given: object) -> None:
        chosen = {name: given.pop(name) for name in options}
        command(resolved=_resolved(**chosen), **given)  # type: ignore[arg-type] # Typer has checked them

    shown = [one for name in own for one in (options.values() if name == "resolved" else [own[name]])]
    run.__dict__ |= {"__signature__": inspect.Signature(shown)}
    run.__annotations__ = {}
    return run


def _resolved(  # noqa: PLR0913 - one parameter for each option
    *,
    recipe: RecipeName = "w4a16-g32",
    num_bits: NumBits = None,
    group_size: GroupSize = None,
    method: Method = None,
    signed: Signed = None,
    pack: Pack = None,
    bits: Bits = None,
    kv_shared: KvShared = None,
    assistant: Assistant = None,
    layout: Layout = None,
    max_shard_size: ShardSize = None,
    engine: Engines = None,
    carry: Carry = None,
    leave: Leave = None,
) -> "Resolved":
    from g4convert.planning.recipe import load

    values = {
        "num_bits": num_bits,
        "group_size": group_size,
        "method": method,
        "signed": signed,
        "pack": pack,
        "bits": bits,
        "kv_shared": kv_shared,
        "assistant": assistant,
        "layout": layout,
        "max_shard_size": max_shard_size,
        "engines": engine,
        "carry": carry,
        "leave": leave,
    }
    return load(recipe, values)

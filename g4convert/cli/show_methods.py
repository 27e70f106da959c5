"""Printing of what each method of quantization takes, and what it left on a real model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from g4convert.cli.tables import table
from g4convert.quantities import duration, nats, size

if TYPE_CHECKING:
    from g4convert.planning.costs import Cost

__all__ = ["KL_OF", "methods"]

KL_OF = (
    "KL is the mean that each left on a real model of 270M parameters, calibrated on texts like those that judged: "
    "yours has another"
)


def methods(found: Sequence["Cost"]) -> Table:
    """Return a table with the estimated time, memory and disk of each method, and its loss on a real model."""
    columns = ("method", "time", "memory", "disk", "KL, nats")
    rows = [
        (
            str(one.method),
            duration(one.seconds),
            size(one.memory),
            size(one.disk) if one.disk else "",
            "" if one.kl is None else nats(one.kl),
        )
        for one in found
    ]
    return table(columns, rows, right=columns[1:])

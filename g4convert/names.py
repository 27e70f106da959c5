"""Dotted names of stored tensors and of modules, and the parts of such names.

    model.language_model.layers.3.experts.7.up_proj.weight
    |--------------- module -----------------------|
    |---------- experts --------------|              layer 3, expert 7, projection `up_proj`

A `Name` is a `str`, so it serves as a key, as text and as JSON; its parts are Names, too. Large tables with frequent
look-ups have keys of the type `str` itself, which are faster to look up.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

_WEIGHT: Final = ".weight"
_CLIPPED: Final = ".linear"
_LAYER: Final = re.compile(r"(?:^|\.)layers\.(\d+)(?=\.|$)")
_EXPERT: Final = re.compile(r"(?:^|\.)experts\.(\d+)(?=\.|$)")
_LAST_EXPERTS: Final = re.compile(r"^(?:.*\.)?experts(?=\.|$)")


class Name(str):
    """The name of a stored tensor or of a module."""

    __slots__ = ()

    @property
    def owner(self) -> "Name":
        """The name without its last part; empty for a name of one part."""
        return Name(self.rpartition(".")[0])

    @property
    def last(self) -> str:
        """The last part of the name."""
        return self.rpartition(".")[2]

    def cut(self) -> tuple["Name", str]:
        """Return the owner and the last part: `a.b` and `c` for `a.b.c`."""
        owner, _, last = self.rpartition(".")
        return Name(owner), last

    @property
    def module(self) -> "Name":
        """The name without `.weight`: the module of a plain weight; other names are unchanged."""
        return Name(self.removesuffix(_WEIGHT))

    @property
    def unclipped(self) -> "Name":
        """The module without the `.linear` that towers put behind the names of Linears whose values they clip."""
        return Name(self.removesuffix(_WEIGHT).removesuffix(_CLIPPED))

    @property
    def projection(self) -> str:
        """Last part of the module's name: `q_proj`, also for `q_proj.linear` and for its weight."""
        return self.unclipped.last

    @property
    def layer(self) -> int | None:
        """The number of the decoder's or tower's layer; None outside of layers."""
        match = _LAYER.search(self)
        return int(match[1]) if match else None

    @property
    def decoder_layer(self) -> int | None:
        """The number of the decoder's layer; None elsewhere, also in towers."""
        return None if self.in_tower else self.layer

    @property
    def in_layer(self) -> "Name":
        """The part after the number of the decoder's layer; the whole name outside of these layers."""
        return self if self.in_tower else self.in_any_layer

    @property
    def in_any_layer(self) -> "Name":
        """The part after the number of the decoder's or tower's layer; the whole name outside of layers."""
        match = _LAYER.search(self)
        return Name(self[match.end() + 1 :]) if match else self

    @property
    def in_tower(self) -> bool:
        """True if it is part of a vision or audio tower."""
        return "_tower." in self

    @property
    def expert(self) -> int | None:
        """The number of the expert; None if the name is not of a single expert."""
        match = _EXPERT.search(self)
        return int(match[1]) if match else None

    @property
    def experts(self) -> "Name":
        """The module of all experts of the layer; empty if the name is not of experts."""
        match = _LAST_EXPERTS.match(self)
        return Name(match[0]) if match else Name()

    @property
    def in_experts(self) -> "Name":
        """The part after the module of all experts: `7.up_proj`; empty if the name is not of experts."""
        return Name(self[len(self.experts) + 1 :]) if self.experts else Name()

    @property
    def kind(self) -> "Name":
        """The name with `*` for each number, so that names that differ only in their numbers are equal."""
        return Name(".".join("*" if part.isdigit() else part for part in self.split(".")))

    def unnumbered(self) -> tuple["Name", tuple[str, ...]]:
        """Return the name with each number set to 0, and the numbers: `layers.0.norm` and 7 for `layers.7.norm`."""
        parts = self.split(".")
        numbers = tuple(part for part in parts if part.isdigit())
        return (Name(".".join("0" if part.isdigit() else part for part in parts)) if numbers else self), numbers

    def numbered(self, numbers: Iterable[str]) -> "Name":
        """Return the name with its first numbers replaced by `numbers`, in order."""
        rest = iter(numbers)
        return Name(".".join(next(rest, part) if part.isdigit() else part for part in self.split(".")))

    def below(self, owner: str) -> "Name | None":
        """Return the part after `owner` and a dot: `b.c` for `a.b.c` below `a`; None if the name is not below it."""
        start = f"{owner}."
        return Name(self[len(start) :]) if self.startswith(start) else None

    def owners(self) -> Iterator["Name"]:
        """Yield the owner, its owner and so on: `a.b` and `a` for `a.b.c`."""
        name = self
        while name := name.owner:
            yield name

    def ends(self) -> Iterator["Name"]:
        """Yield the name and its dotted ends: `a.b.c`, `b.c` and `c` for `a.b.c`."""
        name: str = self
        while name:
            yield Name(name)
            name = name.partition(".")[2]

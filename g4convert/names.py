"""Dotted names of stored tensors and of modules, and what they say.

    model.language_model.layers.3.experts.7.up_proj.weight
    |--------------- module -----------------------|
    |---------- experts --------------|              layer 3, expert 7, projection `up_proj`

A `Name` is a `str`, so it is a key, a text and JSON like any other; parts that are cut off are Names, too. Large tables
that are asked often have keys of the type `str` itself, which are found faster.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

__all__ = ["Name"]

_WEIGHT: Final = ".weight"
_LAYER: Final = re.compile(r"(?:^|\.)layers\.(\d+)(?=\.|$)")
_EXPERT: Final = re.compile(r"(?:^|\.)experts\.(\d+)(?=\.|$)")
_LAST_EXPERTS: Final = re.compile(r"^(?:.*\.)?experts(?=\.|$)")


class Name(str):
    """The name of a stored tensor or of a module."""

    __slots__ = ()

    @property
    def owner(self) -> "Name":
        """The name without its last part; empty where it has one part."""
        return Name(self.rpartition(".")[0])

    @property
    def last(self) -> str:
        """Its last part."""
        return self.rpartition(".")[2]

    def cut(self) -> tuple["Name", str]:
        """`a.b` and `c`, of `a.b.c`: the owner and the last part."""
        owner, _, last = self.rpartition(".")
        return Name(owner), last

    @property
    def module(self) -> "Name":
        """The module that a plain weight belongs to; of other names, the name itself."""
        return Name(self.removesuffix(_WEIGHT))

    @property
    def projection(self) -> str:
        """Name of the module where it is: `q_proj`, also of `q_proj.linear` and of its weight."""
        return Name(self.removesuffix(_WEIGHT).removesuffix(".linear")).last

    @property
    def layer(self) -> int | None:
        """The number of the layer, of the decoder or of a tower; None outside of layers."""
        found = _LAYER.search(self)
        return int(found[1]) if found else None

    @property
    def decoder_layer(self) -> int | None:
        """The number of the decoder's layer; None elsewhere, in towers too."""
        return None if self.in_tower else self.layer

    @property
    def in_layer(self) -> "Name":
        """The part after the number of the decoder's layer; elsewhere the whole name."""
        found = None if self.in_tower else _LAYER.search(self)
        return Name(self[found.end() + 1 :]) if found else self

    @property
    def in_tower(self) -> bool:
        """True if it is part of a vision or audio tower."""
        return "_tower." in self

    @property
    def expert(self) -> int | None:
        """The number of the expert; None of what is no single expert's."""
        found = _EXPERT.search(self)
        return int(found[1]) if found else None

    @property
    def experts(self) -> "Name":
        """The module of all experts of the layer; empty of what is no expert's."""
        found = _LAST_EXPERTS.match(self)
        return Name(found[0]) if found else Name()

    @property
    def kind(self) -> "Name":
        """A name that is equal for names that differ in their numbers only: each number is a `*`."""
        return Name(".".join("*" if part.isdigit() else part for part in self.split(".")))

    def unnumbered(self) -> tuple["Name", tuple[str, ...]]:
        """The name with each number set to 0, and its numbers: `layers.7.norm` is `layers.0.norm` and 7."""
        parts = self.split(".")
        numbers = tuple(part for part in parts if part.isdigit())
        return (Name(".".join("0" if part.isdigit() else part for part in parts)) if numbers else self), numbers

    def numbered(self, numbers: Iterable[str]) -> "Name":
        """The name with other numbers, in order, as far as they reach."""
        rest = iter(numbers)
        return Name(".".join(next(rest, part) if part.isdigit() else part for part in self.split(".")))

    def owners(self) -> Iterator["Name"]:
        """`a.b` and `a`, of `a.b.c`."""
        one = self
        while one := one.owner:
            yield one

    def ends(self) -> Iterator["Name"]:
        """`a.b.c`, `b.c` and `c`, of `a.b.c`."""
        one: str = self
        while one:
            yield Name(one)
            one = one.partition(".")[2]

"""Rules of a recipe: other bits and group sizes for some weights, by role, layer of the decoder and name.

    bits: {attention: 8, experts: 4}                              for whole roles
    rules:
      - {layers: "0-1", bits: 8}                                  then in order, and what is said last wins
      - {names: "*.o_proj", layers: "3,5-7", group_size: 64}

A rule sets bits, a group size or both; a value that it leaves out stays unchanged. Rules are values only: `packings`
applies them to a model and checks the result.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from g4convert.gemma4 import Role

KEPT_BITS: Final = 16
"""Bits of a weight that is kept as it is."""
MOST_RULES: Final = 512
"""Largest number of rules in a recipe: a few for each unit of the largest model."""

_RANGE: Final = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_MAX_CHARACTERS: Final = 400
"""Largest number of characters of `layers` and `names`."""


class PackRole(StrEnum):
    """Roles that can be packed; values are those of `Role`."""

    ATTENTION = Role.ATTENTION.value
    MLP = Role.MLP.value
    EXPERTS = Role.EXPERTS.value
    PLE_PROJECTION = Role.PLE_PROJECTION.value
    VISION_TOWER = Role.VISION_TOWER.value
    EMBEDDING = Role.EMBEDDING.value
    PLE_EMBEDDING = Role.PLE_EMBEDDING.value
    LM_HEAD = Role.LM_HEAD.value


def _parse_group_size(value: object) -> object:
    """Return `channel` as None and a number in text as an int; any other value unchanged."""
    if value == "channel":
        return None
    return int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def parse_role_bits(value: object) -> object:
    """Return `["attention=8"]`, the form of options, as a mapping; other values unchanged, for pydantic to refuse."""
    if (
        not isinstance(value, list | tuple)
        or not value
        or not all(isinstance(text, str) and "=" in text for text in value)
    ):
        return value
    pairs = (text.partition("=") for text in value)
    return {role.strip(): int(bits) if _NUMBER.fullmatch(bits.strip()) else bits for role, _, bits in pairs}


def _check_layer_ranges(value: str) -> str:
    """Return ranges of layers unchanged; raise ValueError, for pydantic, if the text is not a list of ranges."""
    for part in value.split(","):
        match = _RANGE.fullmatch(part.strip())
        if not match or (match[2] is not None and int(match[2]) < int(match[1])):
            raise ValueError(part)
    return value


def _format_number(value: object) -> object:
    return str(value) if type(value) is int else value


GroupSize = Annotated[
    Annotated[int, Field(ge=8, multiple_of=8)] | None,
    BeforeValidator(_parse_group_size, json_schema_input_type=int | Literal["channel"]),
    PlainSerializer(lambda size: "channel" if size is None else size),
]
Bits = Literal[4, 8, 16]
RoleBits = Annotated[Mapping[PackRole, Bits], BeforeValidator(parse_role_bits)]
_Layers = Annotated[
    str,
    Field(max_length=_MAX_CHARACTERS),
    BeforeValidator(_format_number, json_schema_input_type=int | str),
    AfterValidator(_check_layer_ranges),
]


class Rule(BaseModel):
    """Other bits or another group size for weights that meet all conditions set: role, layers and names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    role: PackRole | None = Field(None, description="Role of the weights; left out, every role of `pack` and `bits`.")
    layers: _Layers | None = Field(None, description='Layers of the decoder, as 3, "0-1" or "0,5-7".')
    names: Annotated[str, Field(min_length=1, max_length=_MAX_CHARACTERS)] | None = Field(
        None, description="Pattern of the module's name in the output, as `*.self_attn.o_proj`."
    )
    bits: Bits | None = Field(None, description="4 or 8 bits, or 16: kept as it is.")
    group_size: GroupSize = Field(None, description="Weights that share a scale: a multiple of 8, or `channel`.")

    @model_validator(mode="after")
    def _check_decides(self) -> Self:
        if self.bits is None and not self.says_group_size:
            raise ValueError("no bits and no group_size")
        return self

    @model_serializer(mode="wrap")
    def _serialize_set_values(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return only the values that the rule sets."""
        return {key: value for key, value in whole(self).items() if key in self.model_fields_set}

    @property
    def says_group_size(self) -> bool:
        """True if the rule sets a group size; `group_size` alone cannot tell, since None stands for `channel`."""
        return "group_size" in self.model_fields_set

    @property
    def ranges(self) -> tuple[range, ...]:
        """Layers of the rule as ranges; empty if it names none."""
        matches = _RANGE.finditer(self.layers or "")
        return tuple(range(int(match[1]), int(match[2] or match[1]) + 1) for match in matches)

    def matches(self, role: PackRole, layer: int | None, module: str) -> bool:
        """Return whether the rule matches a weight.

        Args:
            role: role of the weight; K/V weights of KV-shared layers have the role of attention.
            layer: decoder layer of the weight; None outside the decoder.
            module: module of the weight, as the output names it.
        """
        if self.role is not None and self.role is not role:
            return False
        if self.layers is not None and not any(layer in layers for layers in self.ranges):
            return False
        return self.names is None or fnmatchcase(module, self.names)

    @property
    def text(self) -> str:
        """Description of the weights that the rule matches."""
        conditions = (("role", self.role), ("layers", self.layers), ("names", self.names))
        return ", ".join(f"{key} {value}" for key, value in conditions if value is not None) or "every weight"

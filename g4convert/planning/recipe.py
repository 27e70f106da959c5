"""A recipe: the few decisions that a conversion needs, in their strict form. All defaults are here."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from g4convert.checkpoint.patterns import MOST_PATTERNS, fault_of
from g4convert.planning.rules import KEPT_BITS, MOST_RULES, GroupSize, PackRole, RoleBits, Rule
from g4convert.quantities import parse_size

DEFAULT = "w4a16-g32"
"""Recipe that is used if none is named."""
LEAST_SHARD = 1000
"""Smallest `max_shard_size` in bytes: `5`, meant as 5GB, would be one file for each tensor."""
EIGHT_BITS = "w8a16-g32"
"""The recipe of eight bits."""


class RecipeMethod(StrEnum):
    """Ways to choose the scale of a group."""

    AUTO = "auto"
    MINMAX = "minmax"
    MSE = "mse"
    LATTICE = "lattice"
    IMATRIX = "imatrix"
    GPTQ = "gptq"
    BEST = "best"


class EngineName(StrEnum):
    """Engines that serve a checkpoint; values are the keys of `engines.CONTRACTS`."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"
    SGLANG = "sglang"


def _parse_bytes(value: object) -> object:
    """Return `5GB`, `500 MB`, `2GiB` or a number of bytes as an int; other values unchanged, for pydantic to refuse."""
    nbytes = parse_size(value) if isinstance(value, str) else None
    return value if nbytes is None else nbytes


def _check_pattern(value: str) -> str:
    """Return a pattern of file names unchanged; raise ValueError, for pydantic, if it is not a valid pattern."""
    if fault := fault_of(value):
        raise ValueError(fault)
    return value


ShardSize = Annotated[int, Field(ge=LEAST_SHARD), BeforeValidator(_parse_bytes, json_schema_input_type=int | str)]

Patterns = Annotated[tuple[Annotated[str, AfterValidator(_check_pattern)], ...], Field(max_length=MOST_PATTERNS)]


class Recipe(BaseModel):
    """The decisions of a conversion. Values only: no names of Python objects, no paths."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    description: str = Field("", description="One line for `recipe list`.")
    num_bits: Literal[4, 8] = Field(4, description="Bits per packed weight.")
    group_size: GroupSize = Field(
        32,
        description="Weights that share a scale, along in_features: a multiple of 8, or `channel` for a whole row.",
    )
    method: RecipeMethod = Field(
        RecipeMethod.AUTO,
        description="Scale of a group: minmax, mse (signed search), lattice (the grid of a QAT source), "
        "auto (lattice where a sample is on one, otherwise mse), imatrix (weighted by what inputs are), "
        "gptq (layer by layer, on calibration data), best (gptq, with scales trained end to end).",
    )
    signed: bool = Field(default=True, description="Let mse choose negative scales; false searches positive ones only.")
    pack: tuple[PackRole, ...] = Field(
        (PackRole.ATTENTION, PackRole.MLP, PackRole.EXPERTS),
        min_length=1,
        description="What is packed, in `num_bits` bits; everything else keeps its bytes.",
    )
    bits: RoleBits = Field(
        {}, description="Other bits for a role: 4 or 8, or 16 to keep it; a role that `pack` has not is packed, too."
    )
    rules: tuple[Rule, ...] = Field(
        (),
        max_length=MOST_RULES,
        description="Other bits and group sizes by role, layers and names, in order; what is said last wins.",
    )
    kv_shared: Literal["drop", "keep"] = Field(
        "drop", description="K/V tensors of KV-shared layers, where the source still ships them."
    )
    qat: Literal["keep", "recalibrate"] = Field(
        "keep",
        description="Sources on the grid of their quantization-aware training: keep refuses methods that calibrate, "
        "which take weights off it; recalibrate lets them.",
    )
    assistant: Literal["keep", "pack"] = Field(
        "keep", description="MTP drafters: keep as they are, or pack their attention and MLP."
    )
    layout: Literal["full", "text-only"] = Field("full", description="The whole model, or its decoder alone.")
    max_shard_size: ShardSize = Field(
        5 * 10**9,
        description="Largest output file, in bytes or with a unit; a larger tensor gets its own file.",
    )
    engines: tuple[EngineName, ...] = Field(
        (), description="Engines that must load the result: with one that cannot, nothing is written."
    )
    carry: Patterns = Field(
        (), description="Patterns of files to carry over that would stay behind, such as .gitattributes."
    )
    leave: Patterns = Field((), description="Patterns of files beside the weights to leave behind, such as *.png.")

    @property
    def is_calibrated(self) -> bool:
        """True if the method looks at inputs, not at weights alone."""
        return self.method in {RecipeMethod.IMATRIX, RecipeMethod.GPTQ, RecipeMethod.BEST}

    @property
    def is_uniform(self) -> bool:
        """True if all packed weights have `num_bits` bits in groups of `group_size`."""
        return not self.rules and not {*self.bits.values()} - {KEPT_BITS}

    @property
    def is_layered(self) -> bool:
        """True if the method goes layer by layer."""
        return self.method in {RecipeMethod.GPTQ, RecipeMethod.BEST}


def make_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file."""
    document = Recipe.model_json_schema(mode="validation")
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    document["properties"]["extends"] = {
        "type": "string",
        "description": "A recipe, by name or by path relative to this file: its values hold where none is given.",
    }
    return document

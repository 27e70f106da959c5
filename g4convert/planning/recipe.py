"""A recipe: the few decisions a conversion needs, from YAML, from options, or by default.

`Recipe` is the strict form and the only home of the defaults. `load` reads a shipped recipe by name or a file by
path, follows `extends`, lays the command line's options on top, and records the origin of each value for
`--show-config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from g4convert.bounded import MOST_YAML, read_text
from g4convert.checkpoint.patterns import MOST_PATTERNS, fault_of
from g4convert.errors import UsageError
from g4convert.plain_yaml import parse
from g4convert.planning.recipe_faults import refusal, shown
from g4convert.planning.rules import KEPT_BITS, MOST_RULES, GroupSize, PackRole, RoleBits, Rule, by_role
from g4convert.quantities import as_bytes
from g4convert.suggestions import nearest

DEFAULT = "w4a16-g32"
"""The recipe used when none is named."""
EIGHT_BITS = "w8a16-g32"
"""The recipe of eight bits."""

_PACKAGE = Path(__file__).parents[1]
_SHIPPED = {
    path.stem: path
    for directory in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")  # installed, and in a checkout
    for path in sorted(directory.glob("*.yaml"))
}

_OPTIONS = {"engines": "--engine", "rules": "keyword rules"}
"""Names of what overrides the recipe keys that have no option `--key`; rules have none, but a keyword in Python."""


class Method(StrEnum):
    """Ways to choose the scale of a group."""

    AUTO = "auto"
    MINMAX = "minmax"
    MSE = "mse"
    LATTICE = "lattice"
    IMATRIX = "imatrix"
    GPTQ = "gptq"
    BEST = "best"


class Engine(StrEnum):
    """Engines that serve a checkpoint; values are the keys of `engines.CONTRACTS`."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"
    SGLANG = "sglang"


def _bytes(value: object) -> object:
    """Return `5GB`, `500 MB`, `2GiB` or a number of bytes as an int; other values unchanged, for pydantic to refuse."""
    found = as_bytes(value) if isinstance(value, str) else None
    return value if found is None else found


def _pattern(value: str) -> str:
    """Return a pattern of file names unchanged; raise ValueError, for pydantic, if it is not a valid pattern."""
    if fault := fault_of(value):
        raise ValueError(fault)
    return value


ShardSize = Annotated[int, Field(gt=0), BeforeValidator(_bytes, json_schema_input_type=int | str)]

Patterns = Annotated[tuple[Annotated[str, AfterValidator(_pattern)], ...], Field(max_length=MOST_PATTERNS)]


class Recipe(BaseModel):
    """The decisions of a conversion. Values only: no names of Python objects, no paths."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    description: str = Field("", description="One line for `recipe list`.")
    num_bits: Literal[4, 8] = Field(4, description="Bits per packed weight.")
    group_size: GroupSize = Field(
        32,
        description="Weights that share a scale, along in_features: a multiple of 8, or `channel` for a whole row.",
    )
    method: Method = Field(
        Method.AUTO,
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
    engines: tuple[Engine, ...] = Field(
        (), description="Engines that must load the result: with one that cannot, nothing is written."
    )
    carry: Patterns = Field(
        (), description="Patterns of files to carry over that would stay behind, such as .gitattributes."
    )
    leave: Patterns = Field((), description="Patterns of files beside the weights to leave behind, such as *.png.")

    @property
    def is_calibrated(self) -> bool:
        """True if the method looks at inputs, not at weights alone."""
        return self.method in {Method.IMATRIX, Method.GPTQ, Method.BEST}

    @property
    def is_uniform(self) -> bool:
        """True if all that is packed has `num_bits` bits in groups of `group_size`."""
        return not self.rules and not {*self.bits.values()} - {KEPT_BITS}

    @property
    def is_layered(self) -> bool:
        """True if the method goes layer by layer."""
        return self.method in {Method.GPTQ, Method.BEST}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe, the name or path it was loaded by, and the origin of each value, by key."""

    name: str
    recipe: Recipe
    origins: Mapping[str, str]

    def settings(self) -> dict[str, Any]:
        """Return the recipe's values as JSON, without the description."""
        return self.recipe.model_dump(mode="json", exclude={"description"})


def shipped() -> dict[str, Recipe]:
    """Return the recipes shipped with the package, by name."""
    return {name: load(name).recipe for name in _SHIPPED}


def option_for(recipe: Recipe, method: Method) -> str:
    """Return the option of the command line that gives a recipe another method: a shipped recipe if one is the same."""
    wanted = recipe.model_copy(update={"method": method, "description": ""})
    same = (name for name, one in shipped().items() if one.model_copy(update={"description": ""}) == wanted)
    return next((f"-r {name}" for name in same), f"--method {method}")


def source_text(name: str) -> tuple[str, str]:
    """Return a recipe's YAML text and its origin: the path, or `recipe NAME` for a shipped recipe.

    Args:
        name: a shipped name, or a path (anything with a slash or ending in .yaml/.yml).

    Raises:
        UsageError: no such recipe, or its file cannot be read.
    """
    if _is_path(name):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"recipe {name}: no such file", hint="`g4convert recipe list` shows the shipped ones")
        try:
            return read_text(path, MOST_YAML), name
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"recipe {name}: cannot be read: {error}") from error
    if name not in _SHIPPED:
        hint = nearest(name, _SHIPPED) or "`g4convert recipe list` shows them; a path works too"
        raise UsageError(f"recipe {name}: not one of the shipped recipes", hint=hint)
    return _SHIPPED[name].read_text(encoding="utf-8"), f"recipe {name}"


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def load(name: str = DEFAULT, options: Mapping[str, object] | None = None) -> Resolved:
    """Read a recipe and those it extends, lay options over it, and validate the result.

    Args:
        name: a shipped name or a path.
        options: values from the command line, by recipe key; None means not given.

    Raises:
        UsageError: no such recipe, not YAML, an unknown key, a value out of range, or a recipe that extends itself.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = dict.fromkeys(Recipe.model_fields, "default")
    for origin, layer in reversed(_layers(name)):
        values |= {key: _over(key, values.get(key), value) for key, value in layer.items()}
        origins |= dict.fromkeys(layer, origin)
    for key, value in (options or {}).items():
        if value is not None:
            values[key] = _over(key, values.get(key), value)
            origins[key] = _option(key, value)
    return Resolved(name, _validate(name, values, origins), origins)


def _option(key: str, value: object) -> str:
    """Return the option of the command line that gives a key this value."""
    return "--positive" if (key, value) == ("signed", False) else _OPTIONS.get(key, f"--{key.replace('_', '-')}")


def _over(key: str, below: object, value: object) -> object:
    """Return `value` laid over `below`: `bits` are merged role by role, any other key is replaced."""
    given = by_role(value) if key == "bits" else value
    return {**below, **given} if key == "bits" and isinstance(below, dict) and isinstance(given, dict) else given


def schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file."""
    document = Recipe.model_json_schema(mode="validation")
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    document["properties"]["extends"] = {
        "type": "string",
        "description": "A recipe, by name or by path relative to this file: its values hold where none is given.",
    }
    return document


def _layers(name: str) -> list[tuple[str, dict[str, object]]]:
    """Return the YAML mappings of `name` and of each recipe down its `extends` chain, with their origins."""
    layers: list[tuple[str, dict[str, object]]] = []
    seen: dict[str, str] = {}  # place -> the name that it was given
    following: object = name
    while following is not None:
        if not isinstance(following, str):
            raise UsageError(f"recipe {[*seen.values()][-1]}: extends is {shown(following)}, expected a name or a path")
        place = str(Path(following).resolve()) if _is_path(following) else following
        if place in seen:
            raise UsageError(f"recipe {name}: extends itself through {' -> '.join([*seen.values(), following])}")
        seen[place] = following
        text, origin = source_text(following)
        layer = dict(_mapping(text, origin))
        base = layer.pop("extends", None)
        layers.append((origin, layer))
        if isinstance(base, str) and base.endswith((".yaml", ".yml")) and "/" in following:
            base = str(Path(following).parent / base)
        following = base
    return layers


@lru_cache(maxsize=64)
def _mapping(text: str, origin: str) -> Mapping[str, object]:
    try:
        layer = parse(text) or {}
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        why = getattr(error, "problem", None) or " ".join(str(error).split())
        hint = "`g4convert recipe show w4a16-g32` shows one"
        raise UsageError(f"{origin}: not YAML: {where}{why}", hint=hint) from error
    if not isinstance(layer, dict):
        raise UsageError(f"{origin}: holds a {type(layer).__name__}, expected keys and values")
    unknown = [key for key in layer if key not in Recipe.model_fields and key != "extends"]
    if unknown:
        raise UsageError(
            f"{origin}: unknown {'key' if len(unknown) == 1 else 'keys'}",
            offenders=[_suggest(str(key)) for key in unknown],
            hint="`g4convert recipe schema` lists every key",
        )
    return layer


def _suggest(key: str) -> str:
    near = nearest(key, [*Recipe.model_fields, "extends"])
    return f"{key}: {near}" if near else key


def _validate(name: str, values: Mapping[str, object], origins: Mapping[str, str]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise refusal(name, error, values, origins) from error

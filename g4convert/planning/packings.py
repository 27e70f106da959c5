"""Packing of each weight under a recipe: `pack` and `bits` by role, then the rules, then three checks.

    every rule applies                its layers and role exist, and its name pattern matches a packable weight
    groups divide rows                in every packed weight
    fused weights agree               q, k and v; gate and up; all experts of a layer: each is one matrix in engines

Each check raises one error with every offender, before anything is written.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from g4convert.engines import VERSIONS
from g4convert.engines.limits import Packing
from g4convert.engines.module import Accepts
from g4convert.errors import UsageError
from g4convert.gemma4 import TABLES, Architecture, Inventory, Role, Weight
from g4convert.names import Name
from g4convert.planning.recipe import Recipe, RecipeMethod
from g4convert.planning.rules import KEPT_BITS, PackRole, Rule

_ROLES = {role.value for role in PackRole}
LATTICE_BITS: Final = 4
"""Bits of the QAT grids that method lattice finds."""
_GROUPS = (32, 64, 128)
_SMALL_GROUPS = (8, 16)
"""Group sizes that transformers reads; of kernels for Linears, vLLM has only Humming for 16, and SGLang has none."""
_CODES_IN_A_WORD = 8  # codes of 4 bits in an int32


def decide_packings(
    recipe: Recipe, architecture: Architecture, inventory: Inventory, names: Mapping[str, str]
) -> dict[str, Packing]:
    """Return the packing of each packed weight, by canonical name.

    Raises:
        UsageError: the recipe names weights that the model does not have, a group size does not divide a weight's
            rows, or weights that engines fuse into one matrix get different packings.
    """
    packables = tuple(find_packable(recipe, inventory, names))
    _refuse_absent(recipe, inventory, packables)
    if inventory.architecture.is_assistant and recipe.assistant == "keep":
        return {}
    packings = dict(_decide_each(recipe, packables))
    packed = {packable: packing for packable, packing in packings.items() if packing is not None}
    if not packed:
        raise UsageError("the recipe keeps every weight", hint="`bits` and `rules` leave nothing to pack at 4 or 8")
    if recipe.method is RecipeMethod.LATTICE and all(packing.num_bits != LATTICE_BITS for packing in packed.values()):
        raise UsageError(
            "method lattice finds 4-bit grids, and no weight has 4 bits", hint="--num-bits 4, or --method mse"
        )
    _refuse_misfit(recipe, packed)
    _refuse_torn(architecture, {str(packable.module): packings[packable] for packable in packables})
    return {packable.weight.name: packing for packable, packing in packed.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Packable:
    """A weight that a recipe may pack, with its module in the output, its role in recipes and its decoder layer."""

    weight: Weight
    module: Name
    role: PackRole
    layer: int | None


def find_packable(recipe: Recipe, inventory: Inventory, names: Mapping[str, str]) -> Iterator[Packable]:
    """Yield every weight that a recipe may pack.

    In the vision tower only the Linears of encoder layers; in a drafter no table and no head.
    """
    for weight in inventory.weights:
        role = Role.ATTENTION if weight.role is Role.KV_SHARED else weight.role
        is_matrix = weight.linear or role in TABLES
        if not is_matrix or role.value not in _ROLES or weight.name not in names:
            continue
        if inventory.architecture.is_assistant and role in {*TABLES, Role.LM_HEAD}:
            continue
        if weight.role is Role.KV_SHARED and recipe.kv_shared == "drop":
            continue
        module = Name(names[weight.name]).module
        if role is not Role.VISION_TOWER or module.layer is not None:
            yield Packable(weight, module, PackRole(role.value), module.decoder_layer)


def _refuse_absent(recipe: Recipe, inventory: Inventory, packables: Iterable[Packable]) -> None:
    """Raise if the model has no role of `pack` and `bits`, lacks a role of `bits`, or a rule matches no weight."""
    model = inventory.architecture
    present = {packable.role for packable in packables}
    if present.isdisjoint({*recipe.pack, *recipe.bits}):
        raise UsageError(
            f"pack: {', '.join(recipe.pack)}: this {model.model_type} has none of these",
            hint="`g4convert plan MODEL` lists the roles it has",
        )
    faults = [
        f"bits.{role}: this {model.model_type} has no such weights" for role in recipe.bits if role not in present
    ]
    for number, rule in enumerate(recipe.rules):
        if why := _why_useless(recipe, rule, packables, len(model.text.layers)):
            faults.append(f"rules.{number} ({rule.text}): {why}")
    if faults:
        raise UsageError(
            "the recipe decides on weights that this model has not",
            offenders=faults,
            hint="`g4convert plan MODEL -v` lists every module",
        )


def _why_useless(recipe: Recipe, rule: Rule, packables: Iterable[Packable], layers: int) -> str:
    """Return the reason why a rule matches no weight; empty if it matches."""
    if too_high := [packable for packable in rule.ranges if packable.stop > layers]:
        return f"layer {too_high[-1].stop - 1}: the decoder has {layers}, 0 to {layers - 1}"
    return "" if any(applies(recipe, rule, packable) for packable in packables) else "it is for no weight of this model"


def applies(recipe: Recipe, rule: Rule, weight: Packable) -> bool:
    """Return whether a rule matches a weight; a rule without a role matches only roles of `pack` and `bits`."""
    in_scope = rule.role is not None or weight.role in recipe.pack or weight.role in recipe.bits
    return in_scope and rule.matches(weight.role, weight.layer, weight.module)


def _decide_each(recipe: Recipe, packables: Iterable[Packable]) -> Iterator[tuple[Packable, Packing | None]]:
    """Yield each weight and its packing; None if the weight is kept."""
    by_name = any(rule.names is not None for rule in recipe.rules)
    decided: dict[tuple[PackRole, int | None, str], Packing | None] = {}
    for packable in packables:
        key = packable.role, packable.layer, packable.module if by_name else ""
        if key not in decided:
            decided[key] = _decide(recipe, packable)
        yield packable, decided[key]


def _decide(recipe: Recipe, packable: Packable) -> Packing | None:
    bits = recipe.bits.get(packable.role, recipe.num_bits if packable.role in recipe.pack else KEPT_BITS)
    size = recipe.group_size
    for rule in recipe.rules:
        if applies(recipe, rule, packable):
            bits = rule.bits or bits
            size = rule.group_size if rule.says_group_size else size
    return None if bits == KEPT_BITS else Packing(bits, size)


def _refuse_misfit(recipe: Recipe, packed: Mapping[Packable, Packing]) -> None:
    """Raise one error with every weight whose rows its group size does not divide, and the sizes that would."""
    sizes = {packable: packing.group_size or _CODES_IN_A_WORD for packable, packing in packed.items()}
    misfits = {packable: size for packable, size in sizes.items() if packable.weight.shape[1] % size}
    if not misfits:
        return
    rows: dict[tuple[str, int, int], int] = defaultdict(int)
    for packable, size in misfits.items():
        rows[packable.weight.module.kind, packable.weight.shape[1], size] += 1
    wrong_sizes = sorted(set(misfits.values()))
    has_several = len(wrong_sizes) > 1
    named = " and ".join(map(str, wrong_sizes))
    subject = f"group sizes {named} do" if has_several else f"group size {named} does"
    raise UsageError(
        f"{subject} not divide the inputs of {len(misfits)} layers",
        offenders=[
            f"{module}: {k} inputs{f', groups of {size}' if has_several else ''} ({count} layers)"
            for (module, k, size), count in rows.items()
        ],
        hint=_advise_group_size(recipe, packed, wrong_sizes),
    )


def _advise_group_size(recipe: Recipe, packed: Iterable[Packable], wrong: Sequence[int]) -> str:
    """Return the group sizes that divide the rows of all packed weights, or a remedy if engines take none of them."""
    inputs = {packable.weight.shape[1] for packable in packed}
    fits, small = ([g for g in sizes if all(k % g == 0 for k in inputs)] for sizes in (_GROUPS, _SMALL_GROUPS))
    option = "--group-size" if wrong == [recipe.group_size or _CODES_IN_A_WORD] else "in `rules`, too, group_size"
    if fits:
        return f"{option} {' or '.join(map(str, fits))} divides all of them"
    odd = {packable.weight.shape[1]: packable.role for packable in packed if packable.weight.shape[1] % _GROUPS[0]}
    kept = " ".join(f"--bits {role}=16" for role in sorted({*odd.values()}))
    sizes = ", ".join(map(str, sorted(odd)))
    also = (
        f", or {option} {' or '.join(map(str, small))} (of Linears, SGLang reads none, vLLM those of 16)"
        if small
        else ""
    )
    return f"none of 32, 64, 128 divides {sizes}: {kept}, or --group-size channel{also}"


def _refuse_torn(architecture: Architecture, decided: Mapping[str, Packing | None]) -> None:
    """Raise one error with every engine module whose parts would get different packings."""
    torn: dict[str, str] = {}
    for contract in VERSIONS:
        for module in contract.modules(architecture):
            parts = {shard: decided[shard] for shard in module.shards if shard in decided}
            if module.accepts is not Accepts.PLAIN and len(set(parts.values())) > 1:
                first = Name(next(iter(parts)))
                torn.setdefault(first.experts or first.owner, _describe_forms(parts))
    if torn:
        raise UsageError(
            f"{'a module is' if len(torn) == 1 else f'{len(torn)} modules are'} one matrix in engines, and the recipe "
            f"packs {'its' if len(torn) == 1 else 'their'} parts differently",
            offenders=[f"{owner}: {forms}" for owner, forms in torn.items()],
            hint="decide alike on q, k and v, on gate and up, and on all experts of a layer: by `role` and `layers`",
        )


def _describe_forms(parts: Mapping[str, Packing | None]) -> str:
    """Return a module's parts grouped by packing; more than three parts, as in experts, as a number."""
    named: dict[str, list[str]] = defaultdict(list)
    for shard, packing in parts.items():
        named[packing.label if packing else "kept"].append(Name(shard).projection)
    most = 3
    return "; ".join(
        f"{', '.join(names) if len(names) <= most else f'{len(names):,} projections'} {form}"
        for form, names in named.items()
    )

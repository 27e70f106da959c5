"""A choice as a plain recipe: bits by role, then as few rules as possible for the exceptions.

    bits: {attention: 8}                          the packing of most kinds of parts of a role
    rules: [{role, names, layers, bits, ...}]     a different packing for one kind of part in some layers
    rules: [{role, layers, bits, ...}]            a different packing for all kinds of a role in the same layers

A written recipe extends no other recipe, so the one file reproduces the choice. `make_checked_plan` makes the recipe's
plan and compares its packings with the choice.

Packings that the recipe's engines do not load are removed before any measurement: for each packing, one plan packs
every part that allows it. If an engine refuses that plan, one plan for each kind of part packs only this kind and
keeps the rest; a refused plan removes the packing from the kind.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import yaml

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import GateError, InternalFault
from g4convert.fitting.choices import Form
from g4convert.fitting.parts import Part
from g4convert.fitting.problem import Assignment, Problem
from g4convert.planning.gate import Outlook
from g4convert.planning.plan import Plan
from g4convert.planning.recipe import Recipe
from g4convert.planning.rules import KEPT_BITS, PackRole
from g4convert.planning.steps import make_plan

_LINE_WIDTH: Final = 10_000
"""Width of a YAML line; wide enough that no rule is wrapped."""


def make_values(problem: Problem, assignment: Assignment) -> dict[str, Any]:
    """Return the recipe values for an assignment, without values that equal the defaults.

    Args:
        problem: has the base recipe, whose other values are kept.
        assignment: packing of each part.
    """
    base, roles = problem.plan.recipe, _Roles.of(problem, assignment)
    sizes = Counter(form.group_size for form in roles.common.values() if form is not None)
    group = sizes.most_common(1)[0][0] if sizes else base.group_size
    bits = {role: KEPT_BITS if form is None else form.num_bits for role, form in roles.common.items()}
    bits_of_roles = {role: number for role, number in bits.items() if number != _default_bits(base, role)}
    kept_bits = {role: number for role, number in base.bits.items() if role not in bits}
    resized = ((role, form) for role, form in roles.common.items() if form is not None and form.group_size != group)
    rules = [
        *({"role": role.value, "group_size": form.group_size or "channel"} for role, form in resized),
        *roles.exceptions(),
    ]
    changed = {"group_size": group, "bits": {**kept_bits, **bits_of_roles}, "rules": rules}
    values, default = (
        Recipe.model_validate(settings).model_dump(mode="json")
        for settings in ({**base.model_dump(), **changed, "description": ""}, {})
    )
    return {key: value for key, value in values.items() if value != default[key]}


def make_checked_plan(
    checkpoint: Checkpoint, values: Mapping[str, Any], problem: Problem, assignment: Assignment
) -> Plan:
    """Make the plan of the recipe written for an assignment, and check it.

    Raises:
        InternalFault: the plan's packings differ from the assignment.
    """
    plan = make_plan(checkpoint, Recipe.model_validate(values))
    packed = {step.weight.name: step.packing for step in plan.quantized}
    wrong = [
        part.name
        for part in problem.parts
        for weight in part.weights
        if packed.get(weight.name) != assignment[part.name]
    ]
    if wrong:
        raise InternalFault("the recipe of a fit does not say what was chosen", offenders=dict.fromkeys(wrong))
    return plan


def format_yaml(values: Mapping[str, Any], comments: Sequence[str]) -> str:
    """Format the recipe as YAML: comments first, one line for each rule."""
    lines = [f"# {line}".rstrip() for line in comments]
    for key, value in values.items():
        if key == "rules":
            lines += ["rules:", *(f"  - {_dump_line(rule)}" for rule in value)]
        else:
            lines.append(_dump_line({key: value}).removeprefix("{").removesuffix("}"))
    return "\n".join(lines) + "\n"


def _dump_line(value: object) -> str:
    """Dump a value as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=_LINE_WIDTH, sort_keys=False).strip()


def _default_bits(base: Recipe, role: PackRole) -> int:
    """Return the bits of a role that `bits` does not list."""
    return base.num_bits if role in base.pack else KEPT_BITS


class _Roles:
    """An assignment, grouped by role.

    Args:
        parts: parts of each role; roles that are kept as a whole are left out.
        assignment: packing of each part.

    Attributes:
        common: packing of each role that needs the fewest exceptions.
    """

    def __init__(self, parts: Mapping[PackRole, Sequence[Part]], assignment: Assignment) -> None:
        self._parts, self._assignment = parts, assignment
        self.common = {role: _find_commonest(members, assignment) for role, members in parts.items()}

    @classmethod
    def of(cls, problem: Problem, assignment: Assignment) -> "_Roles":
        """Group the parts by role; leave out roles that neither the recipe nor the assignment packs."""
        recipe, parts_by_role = problem.plan.recipe, defaultdict[PackRole, list[Part]](list)
        for part in problem.parts:
            parts_by_role[part.role].append(part)
        packed = {
            role: parts
            for role, parts in parts_by_role.items()
            if role in recipe.pack or role in recipe.bits or any(assignment[part.name] for part in parts)
        }
        return cls(packed, assignment)

    def exceptions(self) -> Iterator[dict[str, Any]]:
        """Yield rules for the parts whose packing differs from the common packing of their role."""
        for role, members in self._parts.items():
            layers: dict[Form, dict[str, list[int | None]]] = defaultdict(lambda: defaultdict(list))
            for part in members:
                if (form := self._assignment[part.name]) != self.common[role]:
                    layers[form][part.unit.pattern].append(part.unit.layer)
            for form, by_part in layers.items():
                yield from self._rules(role, members, form, by_part)

    def _rules(
        self, role: PackRole, members: Sequence[Part], form: Form, by_part: Mapping[str, list[int | None]]
    ) -> Iterator[dict[str, Any]]:
        """Yield rules for one packing: a single rule if all kinds of the role have it in the same layers."""
        patterns = dict.fromkeys(part.unit.pattern for part in members)
        is_common = len({tuple(numbers) for numbers in by_part.values()}) == 1 and by_part.keys() == patterns.keys()
        for pattern, numbers in [*by_part.items()][: 1 if is_common else None]:
            every = [part.unit.layer for part in members if part.unit.pattern == pattern]
            yield {
                "role": role.value,
                **({} if is_common else {"names": pattern}),
                **({} if numbers == every else {"layers": _format_ranges(numbers)}),
                **_form_to_rule(form),
            }


def _find_commonest(parts: Sequence[Part], assignment: Assignment) -> Form:
    """Return the packing of most kinds of parts; ties go to the one with more parts, then to the first."""
    kinds: dict[Form, set[str]] = defaultdict(set)
    counts = Counter(assignment[part.name] for part in parts)
    for part in parts:
        kinds[assignment[part.name]].add(part.unit.pattern)
    return max(counts, key=lambda form: (len(kinds[form]), counts[form]))


def _form_to_rule(form: Form) -> dict[str, Any]:
    """Return the `bits` and `group_size` entries of a rule."""
    return {"bits": KEPT_BITS} if form is None else {"bits": form.num_bits, "group_size": form.group_size or "channel"}


def _format_ranges(numbers: Iterable[int | None]) -> str:
    """Format layer numbers as a recipe does: `0-3,5`."""
    runs: list[list[int]] = []
    for number in sorted(number for number in numbers if number is not None):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def remove_refused(problem: Problem, checkpoint: Checkpoint, tps: Collection[int]) -> Problem:
    """Return the problem with only the packings that its recipe's engines load at every tensor parallel size.

    Args:
        problem: the problem; it is returned unchanged if its recipe names no engines.
        checkpoint: the source.
        tps: tensor parallel sizes.

    Raises:
        GateError: a part has no allowed packing left.
    """
    refused: dict[str, list[Form]] = {}
    choices = dict.fromkeys(form for part in problem.free for form in part.forms)
    for form in choices if problem.plan.recipe.engines else ():
        allowing = [part for part in problem.free if form in part.forms]
        if form is None or _loads(problem, checkpoint, allowing, form, tps):
            continue
        for kind in dict.fromkeys(part.kind for part in allowing):
            same_kind = [part for part in allowing if part.kind == kind]
            if not _loads(problem, checkpoint, same_kind, form, tps):
                refused.setdefault(kind, []).append(form)
    return problem.without(refused)


def _loads(problem: Problem, checkpoint: Checkpoint, parts: Iterable[Part], form: Form, tps: Collection[int]) -> bool:
    """Return whether all engines load an output with `parts` packed and all other free parts kept."""
    assignment = {part.name: None if part.is_free else part.base for part in problem.parts}
    assignment |= {part.name: form for part in parts}
    plan = make_checked_plan(checkpoint, make_values(problem, assignment), problem, assignment)
    try:
        Outlook.of(plan, tps).require_engines(plan.recipe, tps)
    except GateError:
        return False
    return True

"""Advice for when quantization costs a model too much, although the file is right.

If the loss fails and the parity passes, the file is right. Then users need to know which recipe loses less, how large
its output is, whether it would pass, and how to ask for it. What each loses of this model is estimated:

    another method               the measured KL, times what it left of a real model relative to the output's method;
                                 none for a drafter, which is not calibrated
    8 bits                       the same of `mse`, of whose KL four more bits leave a 256th: a bit halves the error
    a role in bf16               the measured KL, without the role's share of it

The upper end of the measured KL's interval, changed in proportion, tells whether the recipe passes, warns or fails.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.record import record
from g4convert.gemma4 import Architecture, is_drafter
from g4convert.planning.costs import SHARE_LEFT_BY_8_BITS, look_up_kl, look_up_kl_of_model
from g4convert.planning.recipe import DEFAULT, EIGHT_BITS, Recipe, RecipeMethod
from g4convert.planning.recipe_files import load
from g4convert.planning.recipe_options import find_options, read_recorded
from g4convert.planning.rules import PackRole
from g4convert.planning.sizes import add_up_sizes
from g4convert.planning.steps import make_plan
from g4convert.quantities import size
from g4convert.report import Finding, Severity
from g4convert.verification.gates import expected_severity
from g4convert.verification.logits.earlier import RIGHT
from g4convert.verification.profiles import Profile

_CALIBRATED: Final = (RecipeMethod.GPTQ, RecipeMethod.BEST)
_BITS: Final = 4
_LESS: Final = 0.9
"""A method is advised if it leaves less than this part of the KL of the methods that take less time."""
_BETTER: Final = (
    "{judged} Better recipes, with size and the upper end of the mean KL to expect ({here}); `should pass` looks at "
    "this KL alone:"
)
_KEPT: Final = " kept in bf16"
_EIGHT_BITS: Final = "8 bits"
_OF_ALL_BITS: Final = ("kv_shared", "qat", "assistant", "layout", "max_shard_size", "engines", "carry", "leave")
"""Keys of a recipe that hold for any number of bits."""
_FIT: Final = "`g4convert fit`: bits chosen for each part of the model, for a size that you name"


@dataclass(frozen=True, slots=True)
class BetterRecipe:
    """A recipe that loses less.

    Args:
        options: options of `g4convert quantize`.
        what: what they do.
        kl: mean KL to expect, in nats.
        high: upper end of its interval, which is judged; the same where no interval was measured.
        limit: largest upper end with which the profile passes.
        passes: whether it is expected to pass.
        fails: whether it is expected to fail; if neither, it passes with a warning.
        nbytes: size of the output; None if the original is not at hand.
        name: end of a name for the output, as `W8A16`.
    """

    options: str
    what: str
    kl: float
    high: float
    limit: float
    passes: bool
    fails: bool
    nbytes: int | None
    name: str

    @property
    def line(self) -> str:
        """The recipe in one line."""
        large = "" if self.nbytes is None else f", {size(self.nbytes)}"
        about = "at most about" if self.what == _EIGHT_BITS else "about"
        return f"`{self.options}`: {self.what}{large}, KL {about} {self.high:.2g}, {self.expected}"

    @property
    def expected(self) -> str:
        """The outcome to expect."""
        if self.fails:
            return "should fail, too"
        return "should pass" if self.passes else "should pass with a warning"


def better_recipes(
    out: Checkpoint, source: Checkpoint | None, metrics: Mapping[str, Any], profile: Profile
) -> tuple[BetterRecipe, ...]:
    """Return the recipes that lose less than an output's: by size what should not fail, then the others by their loss.

    Args:
        out: the output.
        source: the original; None without it.
        metrics: metrics of the level.
        profile: limits of the loss.
    """
    values, recipe, drafts = metrics["loss"], _recorded_recipe(out), is_drafter(out.config.get("model_type"))
    judged = profile.thresholds.get("kl_mean")
    limit = judged.passes if judged else 0.0
    high = judged_kl(values)

    def make(what: str, share: float, other: Recipe, end: str = "") -> BetterRecipe | None:
        if (options := find_options(other)) is None:
            return None
        nbytes = None if source is None else sum(role.after for role in add_up_sizes(make_plan(source, other)))
        kl, most = share * values["kl_mean"], share * high
        severity, name = expected_severity(most, profile), f"W{other.num_bits}A16{end}"
        passes, fails = severity is Severity.PASS, severity is Severity.FAIL
        return BetterRecipe(options.strip(), what, kl, most, limit, passes, fails, nbytes, name)

    losses, model = _measured_losses(out, recipe)
    recipes: list[BetterRecipe | None] = []
    if own_loss := losses.get(recipe.method):
        least = own_loss
        for method in () if drafts else _CALIBRATED:
            if losses[method] < _LESS * least:
                least, other = losses[method], _change(recipe, method=method)
                recipes.append(make("4 bits, calibrated", least / own_loss, other, f"-{method}"))
        eight = _change(load(EIGHT_BITS).recipe, **{key: getattr(recipe, key) for key in _OF_ALL_BITS})
        four = look_up_kl_of_model(model, eight.group_size)[RecipeMethod.MSE]
        recipes.append(make(_EIGHT_BITS, SHARE_LEFT_BY_8_BITS * four / own_loss, eight))
    roles = [row for row in metrics["blame"].get("loss", {}).get("rows", ()) if row["kind"] == "role"]
    for row in roles:
        others = sorted(other["module"] for other in roles if other is not row)
        if row["share"] > 0 and others:
            packed = _change(recipe, pack=tuple(map(PackRole, others)))
            recipes.append(make(row["module"] + _KEPT, 1 - row["share"], packed, f"-{'-'.join(others)}"))
    known = (way for way in recipes if way is not None)
    return tuple(sorted(known, key=lambda way: (way.fails, way.kl if way.fails else way.nbytes or 0, way.kl)))


def judged_kl(values: Mapping[str, float]) -> float:
    """Return the upper end of the mean KL's interval; the mean itself if no interval was measured."""
    return values["kl_mean"] if math.isnan(values["kl_high"]) else values["kl_high"]


def _recorded_recipe(out: Checkpoint) -> Recipe:
    """Return the recipe in an output's record; the default recipe if there is none that is valid."""
    return read_recorded(part(record(out.path), "recipe")) or load(DEFAULT).recipe


def _measured_losses(out: Checkpoint, recipe: Recipe) -> tuple[Mapping[RecipeMethod, float], str]:
    """Return what each method left of the real model that stands for an output's, and its name; empty if unknown.

    Args:
        out: the output.
        recipe: its recipe, whose bits and groups may be ones that were not measured.
    """
    if recipe.num_bits != _BITS or not recipe.is_uniform:
        return {}, ""
    has_experts = Architecture.from_config(out.config).text.experts is not None
    return look_up_kl(recipe.group_size, has_experts=has_experts)


def _change(recipe: Recipe, **values: object) -> Recipe:
    return recipe.model_copy(update=values)


def is_right(findings: Iterable[Finding]) -> bool:
    """Return whether the loss alone is too large: the packed path was judged, and nothing else fails."""
    others = [finding for finding in findings if not finding.code.startswith("logits.loss.")]
    judged = any(
        finding.code.startswith("logits.parity.") and finding.severity is not Severity.INFO for finding in others
    )
    return judged and not any(finding.severity is Severity.FAIL for finding in others)


def measured_on(out: Checkpoint) -> str:
    """Return the name of the real model that stands for an output's; empty where nothing like it was measured."""
    return _measured_losses(out, _recorded_recipe(out))[1]


def add_advice(  # noqa: PLR0913 -- what is known of an output
    findings: Iterable[Finding],
    recipes: Sequence[BetterRecipe],
    *,
    high: float,
    model: str,
    judged: str = RIGHT,
    drafts: bool = False,
) -> Iterator[Finding]:
    """Yield findings, with better recipes as the remedy of failures, or else warnings, of the loss.

    Args:
        findings: findings of the level, of an output that is right.
        recipes: recipes that lose less.
        high: mean KL of the output that is judged, in nats.
        model: name of the real model whose losses are set in proportion.
        judged: what is known of the file, by `earlier.judge_file`.
        drafts: whether the output is a drafter, for which `fit` measures nothing.
    """
    all_findings = list(findings)
    lost = [finding for finding in all_findings if finding.code.startswith("logits.loss.")]
    severities = {finding.severity for finding in lost}
    worst = next((severity for severity in (Severity.FAIL, Severity.WARN) if severity in severities), None)
    useful = [recipe for recipe in recipes if not recipe.fails] or recipes
    keeps_role = [recipe.what.endswith(_KEPT) for recipe in useful]
    scaled = [f"times the ratio of the two recipes on {model}"] if not all(keeps_role) else []
    how = " or ".join([*scaled, *(["less the kept part's share"] if any(keeps_role) else [])])
    here = f"{high:.2g} here{how and f', {how}'}"
    ways = [*(recipe.line for recipe in useful), *([] if drafts else [_FIT])]
    remedy = "\n".join([_BETTER.format(judged=judged, here=here), *ways])
    for finding in all_findings:
        is_advised = finding in lost and finding.severity is worst and not finding.remedy
        yield replace(finding, remedy=remedy) if is_advised else finding

"""`g4convert.plan`: what would be written, from headers alone."""

import os
from collections.abc import Sequence
from typing import Unpack

from g4convert.api.bundled import count_bundled_tokens
from g4convert.api.recipes import Overrides, RecipeLike, resolve_recipe
from g4convert.checkpoint import source
from g4convert.engines.verdicts import TENSOR_PARALLEL
from g4convert.planning.recipe import DEFAULT
from g4convert.planning.report import PlanReport, report_plan
from g4convert.run_options import check_run


def plan(
    model: str | os.PathLike[str],
    *,
    recipe: RecipeLike = DEFAULT,
    tp: Sequence[int] = TENSOR_PARALLEL,
    workers: int = 0,
    **overrides: Unpack[Overrides],
) -> PlanReport:
    """Plan an output: every tensor, its file, the config and what each engine makes of it. Reads no weight.

    Args:
        model: a directory, or `org/name[@revision]` on the Hugging Face hub.
        recipe: a shipped recipe or the path of a YAML file.
        tp: numbers of GPUs (tensor parallel sizes) at which engines are judged.
        workers: threads that the estimated time assumes; 0 is one for each core.
        **overrides: values of the recipe, as `group_size=64`: num_bits, group_size, method, signed, qat, pack, bits,
            rules, kv_shared, assistant, layout, max_shard_size, engines, carry, leave; docs/reference/recipes.md.

    Returns:
        The plan in numbers. An engine that cannot load the output is a verdict, not an error.

    Raises:
        UsageError: no such recipe or keyword, or a value out of range.
        InputError: no such model, or its tensors are not those of its config; names all of them.
        GateError: the recipe cannot be carried out on this model.
        EnvironmentFault: the model is not in the cache and cannot be fetched.
    """
    check_run(tp=tp, workers=workers)
    settings = resolve_recipe(recipe, overrides)  # before the model: it costs no look-up
    return report_plan(source.resolve(os.fspath(model)), settings, workers, tp, count_bundled_tokens)

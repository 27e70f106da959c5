"""Files that describe an output: config.json, and g4convert.json with its provenance and errors.

Everything here is a function of the plan and the statistics: no clock, no host name, no path of the machine, so
the same conversion gives the same bytes wherever and however it runs.
"""

from typing import Any

from g4convert import __version__
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.conversion.result import Summary
from g4convert.planning.quantization_config import quantization_config
from g4convert.planning.recipe import Resolved
from g4convert.planning.steps import Plan

__all__ = ["CARRIED_README", "config", "provenance", "recipe_name"]

CARRIED_README = "README.source.md"
"""Name of the source's own README in the output, as README.md is the model card."""

_FROM_WHOLE_CONFIG = (
    "dtype",
    "torch_dtype",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "transformers_version",
)

_STALE = {"quantization_config", "compression_config", "quantization"}
"""Sections about how weights were quantized before; the last one is MLX's."""


def config(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """The output's config.json: every key of the source's, the class of its model type, the new `quantization_config`.

    A text-only output of a composite source takes its `text_config`, under the class that reads it.
    """
    kept = {key: value for key, value in checkpoint.config.items() if key not in _STALE}
    if plan.architecture is not plan.inventory.architecture:
        whole, kept = kept, dict(kept["text_config"])
        kept = {"architectures": [], **{k: whole[k] for k in _FROM_WHOLE_CONFIG if k in whole}, **kept}
        kept["tie_word_embeddings"] = plan.architecture.tied_embeddings
    if isinstance(kept.get("text_config"), dict):
        kept["text_config"] = {k: v for k, v in kept["text_config"].items() if k not in _STALE}
    kept["architectures"] = [plan.architecture.class_name]
    if plan.quantized:
        kept["quantization_config"] = quantization_config(plan)
    return kept


def recipe_name(recipe: Resolved) -> str:
    """The recipe's name, or its file's: where that lies on this machine is nobody's business."""
    return recipe.name.rpartition("/")[2]


def provenance(
    recipe: Resolved, source: Source, checkpoint: Checkpoint, plan: Plan, summary: Summary
) -> dict[str, Any]:
    """The content of g4convert.json: where the output comes from and what it cost."""
    return {
        "schema_version": 1,
        "g4convert": __version__,
        "source": {
            "name": source.name,
            "revision": source.revision,
            "files": {
                name: {key: value for key, value in stamp.items() if key != "mtime_ns"}
                for name, stamp in checkpoint.fingerprint().items()
            },
        },
        "recipe": {"name": recipe_name(recipe), **recipe.settings()},
        "family": plan.architecture.family,
        "dialects": [{"name": use.name, "tensors": use.count} for use in plan.inventory.dialects],
        "dropped": [{"name": drop.source.name, "reason": drop.reason} for drop in plan.dropped],
        "result": summary.to_dict(),
    }

"""Warnings of a plan: things a user should know and can act on. None of them makes the output wrong."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.leftovers import ADAPTER_CONFIG, is_adapter, summarize_names
from g4convert.checkpoint.needed import has_chat_template, has_processor, has_tokenizer
from g4convert.checkpoint.sections import sections_of
from g4convert.checkpoint.tokens import tokens_beyond
from g4convert.gemma4 import Architecture, Inventory, Role
from g4convert.planning.recipe import Recipe

_MAX_NAMED: Final = 12
"""Largest number of files that a remark names."""
_COPY: Final = "copy that of the model it was made from"
DRAFTER_KEPT = "a drafter is small and wrong guesses cost speed; `assistant: pack` packs it"


def find_remarks(checkpoint: Checkpoint, inventory: Inventory, recipe: Recipe) -> Iterator[str]:
    """Yield the warnings of a plan, one line each.

    Args:
        checkpoint: the source.
        inventory: tensors of the source, none of them quantized.
        recipe: recipe of the output.
    """
    stale = tuple(_find_stale_sections(checkpoint.config))
    yield from stale
    if not stale and recipe.method == "lattice":
        yield "method lattice, but nothing in config.json says the source is quantization-aware trained"
    yield from _check_class(checkpoint.config, inventory.architecture)
    if inventory.architecture.is_assistant and recipe.assistant == "keep":
        yield f"nothing is packed: {DRAFTER_KEPT}"
    if Role.VISION_TOWER in {Role(role.value) for role in recipe.pack}:
        yield "vision_tower is packed: SGLang and image quality are untested ground"
    if recipe.layout != "text-only" and (missing := inventory.missing_limits):
        yield f"{missing} limits of the towers' inputs and outputs are not in the source: nothing is clipped there"
    if not inventory.architecture.is_assistant:  # a drafter uses its target's files
        media = inventory.architecture.is_composite and recipe.layout != "text-only"
        yield from _find_missing_files(checkpoint, media=media)
    rows = inventory.architecture.text.vocab_size
    if not inventory.architecture.is_assistant and (beyond := tokens_beyond(checkpoint.path, rows)):
        yield (
            f"tokenizer.json has {beyond} tokens beyond the {rows:,} rows of the embedding, at which every engine "
            "fails: take the tokenizer of these weights, or save the model after `resize_token_embeddings`"
        )
    yield from _name_left_behind(checkpoint.stray_files)
    if left := checkpoint.beside.left:
        named = ", ".join(f"{name} ({why})" for name, why in left[:_MAX_NAMED])
        yield f"perhaps private and left behind: {named}{_count_unnamed(left)}"


def _find_missing_files(checkpoint: Checkpoint, *, media: bool) -> Iterator[str]:
    """Yield a remark on each kind of file that engines need beside the weights and that the output will lack.

    Args:
        checkpoint: the source.
        media: whether engines take the output for a model of pictures and sound.
    """
    names = checkpoint.side_files
    if not has_tokenizer(names):
        yield f"no tokenizer.json: vLLM and SGLang do not start without it; {_COPY}"
    if media and not has_processor(names):
        starts = "SGLang does not start without it, vLLM with `--language-model-only` alone"
        yield f"no processor_config.json: {starts}; {_COPY}"
    if has_tokenizer(names) and not has_chat_template(checkpoint.path, names):
        yield f"no chat template: engines refuse requests to chat; if the model was trained to chat, {_COPY}"


def _count_unnamed(names: Sequence[object]) -> str:
    return f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""


def _find_stale_sections(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a remark on each quantization section of a config whose weights are not quantized."""
    for place, section in sections_of(config):
        method = section.get("quant_method") if isinstance(section, Mapping) else section
        if method is None:
            yield f"config.json has a {place} without quant_method (a QAT export): it is replaced"
        else:
            yield f"config.json has a {place} of {method!s:.40}, but no tensor is quantized: it is replaced"


def _check_class(config: Mapping[str, Any], architecture: Architecture) -> Iterator[str]:
    """Yield a remark if `architectures`, by which engines choose the model's code, differs from the output's."""
    architectures, class_name = config.get("architectures"), architecture.class_name
    if architectures != [class_name]:
        state = "is missing" if architectures is None else f"is {architectures!s:.80}"
        yield f"config.json: architectures {state}: the output has {class_name}, the class of {architecture.model_type}"


def _name_left_behind(names: Iterable[str]) -> Iterator[str]:
    """Yield remarks on files that are not part of the model."""
    every = tuple(names)
    if every:
        yield f"not part of the checkpoint and left behind: {', '.join(summarize_names(every))}"
    if ADAPTER_CONFIG in every or any(map(is_adapter, every)):
        yield "the adapter beside the weights is not applied: if they are its base model's, merge it first"

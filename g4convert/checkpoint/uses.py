"""Opens a checkpoint for one use or takes its inventory, and refuses it by its path if it has none.

Modules that do the work bring torch and transformers, which take seconds to import; these refusals come before.
"""

from pathlib import Path

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import InputError, UnsupportedError, UsageError
from g4convert.gemma4 import Architecture, Inventory, is_drafter, quantized_format, resolve


def open_for_generation(directory: Path) -> Checkpoint:
    """Open a checkpoint that text can be generated with.

    Raises:
        UnsupportedError: a drafter.
        InputError: not a Gemma 4 checkpoint, or no tokenizer.
    """
    checkpoint = Checkpoint.open(directory)
    kind = checkpoint.config.get("model_type")
    if is_drafter(kind):
        raise UnsupportedError(
            f"{directory}: a drafter ({kind}) says nothing itself: it guesses tokens from another model's states",
            hint="generate with the model that it drafts for; `g4convert verify` judges drafters",
        )
    if not (directory / "tokenizer.json").is_file():
        text = f"{directory}: no tokenizer.json, so it has no words"
        raise InputError(text, hint="copy tokenizer.json from the model's repository")
    return checkpoint


def is_quantized(checkpoint: Checkpoint) -> bool:
    """Return whether what is stored is quantized, whatever the config says."""
    stored = checkpoint.tensors
    return quantized_format(stored) is not None or not all(one.info.dtype.is_weight for one in stored.values())


def original(directory: Path) -> Checkpoint:
    """Open a checkpoint whose answers others are compared with.

    Raises:
        UsageError: it is quantized.
        InputError: not a Gemma 4 checkpoint.
    """
    checkpoint = Checkpoint.open(directory)
    if format_name := quantized_format(checkpoint.tensors):
        hint = "a reference holds what the original answers: name the original"
        raise UsageError(f"{directory}: already quantized ({format_name[0]})", hint=hint)
    return checkpoint


def inventory_of(checkpoint: Checkpoint, architecture: Architecture, *, decoder_only: bool = False) -> Inventory:
    """Return the inventory of a source; see `gemma4.resolve`.

    Raises:
        UnsupportedError: it is quantized; names the directory.
        InputError: the tensors do not make the architecture.
    """
    try:
        return resolve(checkpoint.infos, architecture, config=checkpoint.config, decoder_only=decoder_only)
    except UnsupportedError as error:
        raise UnsupportedError(f"{checkpoint.path}: {error.message}", hint=error.hint) from error


def inventory_for(output: Architecture, source: Checkpoint, architecture: Architecture) -> Inventory:
    """Return the inventory of a source as an output has it: the decoder alone, or with a head of its own.

    Raises:
        G4Error: as for `inventory_of`.
    """
    inventory = inventory_of(source, architecture, decoder_only=not output.is_composite)
    return inventory if output.tied_embeddings else inventory.untied()

"""The transformers classes of Gemma 4, and silence while they work."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from inspect import signature
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers

from g4convert.errors import EnvironmentFault, FormatError, UnsupportedError

_CLASSES = {
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
    "gemma4_unified_text": "Gemma4UnifiedForCausalLM",
    "gemma4_assistant": "Gemma4AssistantForCausalLM",
    "gemma4_unified_assistant": "Gemma4UnifiedAssistantForCausalLM",
}

# transformers ships no types: a model class, a PreTrainedModel and a PreTrainedConfig are Any to a checker.
ModelClass: TypeAlias = Any
Model: TypeAlias = Any
Config: TypeAlias = Any


def model_class(model_type: str) -> ModelClass:
    """Return the transformers class that loads a whole checkpoint of this model type.

    Raises:
        UnsupportedError: not a Gemma 4 model type.
    """
    if model_type not in _CLASSES:
        raise UnsupportedError(f"model_type {model_type!r} is not one of {', '.join(_CLASSES)}")
    return getattr(transformers, _CLASSES[model_type])


@contextmanager
def constructing(model_type: str) -> Iterator[None]:
    """Report a model that this release of transformers cannot construct: 5.23.0 and assistants.

    Raises:
        EnvironmentFault: the constructor called inside refuses the config.
    """
    try:
        yield
    except ValueError as error:
        raise EnvironmentFault(
            f"transformers {transformers.__version__} does not construct {model_type}: {error}",
            hint="take another release: 5.22.2 and 5.24.0 do",
        ) from error


def read_config(directory: Path) -> Config:
    """Read config.json as transformers does.

    Raises:
        FormatError: transformers refuses a value in it.
    """
    with reading(f"{directory}: config.json", "compare with the config.json of the model's repository"):
        return transformers.AutoConfig.from_pretrained(directory, local_files_only=True)


def context_of(config: Config) -> int:
    """Return the most tokens that a model reads and writes at a time."""
    return int(config.get_text_config().max_position_embeddings)


@contextmanager
def reading(subject: str, hint: str) -> Iterator[None]:
    """Report whatever transformers and tokenizers raise inside for files that are damaged; they print nothing.

    Args:
        subject: the files, as first words of the message.
        hint: the remedy.

    Raises:
        FormatError: they cannot be read.
        OSError: the device cannot read them.
    """
    try:
        with quiet_transformers():
            yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # tokenizers raises plain ones, and transformers whatever a damaged value leads to
        if isinstance(error, OSError) and error.errno:
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise FormatError(f"{subject} cannot be read: {why}", hint=hint) from error


def cache_name(model: Model) -> str:
    """Return the name of the key/value cache in the arguments and output of `forward`: `cache` from 5.24.0 on."""
    return "cache" if "cache" in signature(type(model).forward).parameters else "past_key_values"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn progress bars and load reports off while inside; the strict checks here say more."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()), _no_stdout():  # compressed-tensors' bars have no switch
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextmanager
def _no_stdout() -> Iterator[None]:
    """Drop what libraries, of any language, print on stdout inside: it would spoil results printed there."""
    sys.stdout.flush()
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def layers_path(model: Model) -> str:
    """Return the path of the decoder's list of layers."""
    layers = model.get_decoder().layers
    path: str = next(name for name, module in model.named_modules() if module is layers)
    return path


@contextmanager
def replaced_layers(model: Model, layers: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Replace the decoder's layers; restore them on exit."""
    decoder = model.get_decoder()
    original, decoder.layers = decoder.layers, torch.nn.ModuleList(layers)
    try:
        yield
    finally:
        decoder.layers = original


def dtype_name(model: Model) -> str:
    """Return the name of the dtype of a model's forward: `float32`, `bfloat16` or `float16`."""
    return str(model.config.dtype).removeprefix("torch.")  # a streamed model's tables keep their stored dtype

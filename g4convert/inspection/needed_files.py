"""Faults of a checkpoint that lacks files which engines need beside the weights.

    tokenizer        vLLM and SGLang do not start without one; with tokenizer_config.json alone, transformers 5.22 makes
                     one without a vocabulary, and every text is unknown tokens
    processor        of a model that takes media: SGLang makes one when it starts (managers/tokenizer_manager.py:616);
                     vLLM does (models/gemma4_mm.py:522), but with `--language-model-only` (config/model.py:957)
    chat template    a request to chat gets status 400 (vllm/renderers/hf.py:306); a base model has none

transformers loads a model without any of them. A drafter is given those of its target.
"""

from collections.abc import Iterator
from typing import Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.needed import (
    CHAT_TEMPLATE,
    TOKENIZER_CONFIG,
    has_chat_template,
    has_processor,
    has_tokenizer,
    present,
)
from g4convert.engines.remarks import Topic
from g4convert.gemma4 import Architecture
from g4convert.inspection.file_faults import CODE, FileFault
from g4convert.report import Finding, Severity

_FROM: Final = "from the model that this one was made from"
_TEXT_ALONE: Final = "--language-model-only"


def missing_files(out: Checkpoint, architecture: Architecture) -> Iterator[FileFault]:
    """Yield a fault for each file that engines need to start."""
    if architecture.is_assistant:
        return
    names = present(out.path)
    if not has_tokenizer(names):
        found = "missing, so it does not start"
        if TOKENIZER_CONFIG in names:
            found = f"missing beside {TOKENIZER_CONFIG}, so every text is unknown tokens"
        yield FileFault(("vllm", "sglang"), "tokenizer.json", found, f"copy tokenizer.json {_FROM}")
    if architecture.is_composite and not has_processor(names):
        file = "processor_config.json"
        copy = f"copy {file} {_FROM}"
        yield FileFault(("sglang",), file, "missing, so it does not start", copy)
        found = f"missing: needs `{_TEXT_ALONE}`, and takes text alone"
        yield FileFault(("vllm",), file, found, copy, Topic.FLAG, _TEXT_ALONE)


def missing_template(out: Checkpoint, architecture: Architecture) -> Iterator[Finding]:
    """Yield a note if a checkpoint has a tokenizer, and no chat template."""
    names = present(out.path)
    if architecture.is_assistant or not has_tokenizer(names) or has_chat_template(out.path, names):
        return
    found = "no chat template: engines refuse requests to chat; a base model has none"
    yield Finding(CODE, Severity.INFO, CHAT_TEMPLATE, found, "", f"if the model was trained to chat, copy it {_FROM}")

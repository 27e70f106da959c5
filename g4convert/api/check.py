"""`g4convert.check`: which engines load a checkpoint, whoever wrote it."""

import os
from collections.abc import Sequence
from dataclasses import replace

from g4convert.checkpoint import source
from g4convert.inspection import engines as inspection
from g4convert.inspection.engines import Checked, CheckRequest
from g4convert.places import expand_home


def check(
    model: str | os.PathLike[str],
    *,
    engines: Sequence[str] = (),
    tp: Sequence[int] = (),
    assistant_of: str | os.PathLike[str] | None = None,
) -> Checked:
    """Judge which engines load a checkpoint, from its headers, and what each would get wrong. Reads no weight.

    Args:
        model: a directory, or `org/name[@revision]` on the Hugging Face hub.
        engines: those that must load it, of `transformers`, `vllm` and `sglang`; empty judges all, and one must.
        tp: numbers of GPUs (tensor parallel sizes); empty judges the usual ones, and it must load on one.
        assistant_of: the model that an MTP drafter is to draft for.

    Returns:
        The findings, and a verdict for each engine and number of GPUs.

    Raises:
        UsageError: no such engine, or a drafter and a target that are none.
        InputError: no such model, or no Gemma 4 checkpoint.
        UnsupportedError: weights of another format than compressed-tensors' packed one.
        EnvironmentFault: a model is not in the cache and cannot be fetched.
    """
    request = CheckRequest.of(expand_home(model), engines, tp)  # names first: they cost no look-up
    directory = source.resolve(os.fspath(model)).path
    target = None if assistant_of is None else source.resolve(os.fspath(assistant_of)).path
    checked = inspection.check(replace(request, directory=directory, target=target))
    reference = None if assistant_of is None else source.display_name(os.fspath(assistant_of))
    report = replace(checked.report, output=source.display_name(os.fspath(model)), reference=reference)
    return replace(checked, report=report)

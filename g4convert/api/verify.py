"""`g4convert.verify`: checks that an output matches its source and runs as written, and measures its loss."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from g4convert.checkpoint import source
from g4convert.places import expand_home
from g4convert.progress import Progress, with_messages_to
from g4convert.report import Report
from g4convert.request import Level, Request, ServedEngine
from g4convert.run_options import DeviceLike, MemoryUse, check_run, device_name, dtype_name, parse_choice
from g4convert.verification.run import verify as run_verification

if TYPE_CHECKING:
    import torch


def verify(  # noqa: PLR0913 - the choices of a verification
    output: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None = None,
    level: str | None = None,
    profile: str | os.PathLike[str] | None = None,
    prompts: str | os.PathLike[str] | None = None,
    memory: str | None = None,
    dtype: "str | torch.dtype | None" = None,
    device: "DeviceLike | None" = None,
    engine: str | None = None,
    engine_python: str | os.PathLike[str] | None = None,
    engine_url: str | None = None,
    engine_timeout: float | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Verify a quantized checkpoint, also another program's. None takes the default in `request.Settings`.

    Args:
        output: a directory, or `org/name[@revision]` on the Hugging Face hub.
        reference: the original: a directory, a hub name, or a file of `g4convert reference`.
        level: last level: `static`, `weights`, `logits` or `engine`; None follows from the other arguments.
        profile: thresholds of level `logits`: `w4a16`, `qat`, `parity`, or the path of a YAML file.
        prompts: a file of conversations, as JSON lines, in place of the bundled text.
        memory: way to hold models: `resident`, `stream` (one layer at a time) or `auto`.
        dtype: dtype of the forward: `float32` or `bfloat16`.
        device: device that runs the model: `cpu`, `cuda` or `cuda:N`.
        engine: engine that serves the checkpoint at level `engine`: `vllm` or `sglang`.
        engine_python: the interpreter that has vLLM.
        engine_url: address of the SGLang server.
        engine_timeout: seconds to wait for the engine to start, and for each answer.
        progress: told of finished bytes; a subclass of `g4convert.progress.Progress`.
        say: told what is done next, in place of `progress.say`.

    Returns:
        Every finding and measured number; `verdict` is the worst of them.

    Raises:
        UsageError: a value that is not one of those above, or arguments that do not go together.
        InputError: no such checkpoint or reference.
        EnvironmentFault: no such device, or not enough memory.
    """
    device = None if device is None else device_name(device)
    dtype = None if dtype is None else dtype_name(dtype)
    check_run(device=device, memory=memory, dtype=dtype)  # before the model: it costs no look-up
    request = Request(
        output=source.resolve(os.fspath(output)).path,
        reference=None if reference is None else source.file_or_model(os.fspath(reference)),
        level=parse_choice("--level", level, Level),
        profile=None if profile is None else os.fspath(profile),
        prompts=None if prompts is None else expand_home(prompts),
        memory=parse_choice("--memory", memory, MemoryUse),
        dtype=dtype,
        device=device,
        engine=parse_choice("--engine", engine, ServedEngine),
        engine_python=None if engine_python is None else expand_home(engine_python),
        engine_url=engine_url,
        engine_timeout=engine_timeout,
    )
    report = run_verification(request, progress=with_messages_to(progress, say))
    reference_name = None if reference is None else source.display_name(os.fspath(reference))
    return replace(report, output=source.display_name(os.fspath(output)), reference=reference_name)

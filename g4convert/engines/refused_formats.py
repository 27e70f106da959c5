"""Refuses checkpoints in formats that no contract or check has rules for, before one calls a sound tensor wrong.

`verify`, `check` and `check --fix` all ask here first: what FP8, NVFP4, AWQ or GPTQ store is not a damaged
pack-quantized checkpoint, and advice to delete or repack its tensors would destroy it.
"""

from typing import Final

from g4convert.checkpoint.declared import declared_in
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.stored import packed_modules, stored_scheme
from g4convert.errors import UnsupportedError
from g4convert.gemma4 import quantized_format

_JUDGED: Final = {"compressed-tensors", "FP8 or INT8", "quantization-aware training"}
"""Formats, by names of tensors, that have a form of their own or are a remark of the static level."""


def refuse_other_formats(out: Checkpoint) -> None:
    """Raise if a checkpoint is stored in a format other than pack-quantized.

    Raises:
        UnsupportedError: another format, or quantized activations with stored scales.
    """
    judged, hint = "g4convert judges pack-quantized", "`g4convert inspect` describes it"
    for one in packed_modules(out.infos).values():
        form = stored_scheme(one, None, None).format
        if form != "pack-quantized":
            raise UnsupportedError(f"{one.module}: stored as {form}: {judged}", hint=hint)
    found = quantized_format(out.tensors)
    if found is not None and found[0] not in _JUDGED:
        raise UnsupportedError(f"{found[1][0]}: stored by {found[0]}: {judged}", hint=hint)
    declared = declared_in(out.config)
    for group in declared.groups if declared else ():
        known = group.static_int8 or not group.activations
        if not known and any(tensor.endswith(".input_scale") for tensor in out.tensors):
            text = f"config_groups.{group.name}: activations are quantized, too, with stored scales"
            raise UnsupportedError(f"{text}: g4convert judges quantized weights alone", hint=hint)

"""Diagnosis of names that belong to no Gemma 4 tensor: another format, a forgotten merge, or the nearest name."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from g4convert.errors import InputError, UnsupportedError
from g4convert.names import Name
from g4convert.tensors import TensorInfo

# The first pattern that fits decides the format: suffixes of one format come before suffixes that formats share.
_FORMATS = (
    ("bitsandbytes", r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|quant_state\.\w+)$"),
    ("HQQ", r"\.W_q$"),
    ("quanto", r"\.weight\._(data|shift)$"),
    ("torchao", r"[._:]_?weight[._:]*(qdata|int_data|packed_weight)$|\.weight:_data$"),
    ("AQLM", r"\.codebooks$"),
    ("VPTQ", r"_proj\.(indices|res_indices)$"),
    ("ExLlama", r"\.(q_weight|q_scale_max|trellis)$"),
    ("SpQR", r"\.dense_weights$"),
    ("MXFP4", r"(\.weight|_proj)_blocks$"),
    ("ModelOpt AWQ or SmoothQuant", r"\.(pre_quant|smooth)_scale$"),
    ("EETQ", r"\.weight_scales$"),
    ("ModelOpt NVFP4", r"[._]weight_scale_2$"),
    (
        "compressed-tensors",
        r"(_packed|weight_shape|weight_zero_point|weight_global_scale|input_global_scale)$",
    ),
    ("MLX", r"\.biases$"),
    ("GPTQ or AWQ", r"\.(qweight|qzeros|g_idx|scales)$"),
    ("FP8 or INT8", r"(weight_scale_inv|weight_scale|input_scale|_proj_scale)$"),
    (
        "quantization-aware training",
        r"\.(\w+_fake_quant(izer)?|\w+_quantizer|activation_post_process|(weight|input|output)_observer)\.[\w.]+$",
    ),
)
_LEFTOVER = re.compile(
    r"(\.weight)?\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|quant_state\.\w+|weight_scale(_2|_inv)?"
    r"|(\w+_fake_quant(izer)?|\w+_quantizer|activation_post_process|(weight|input|output)_observer)\.[\w.]+"
    r"|weight_zero_point|weight_shape|weight_g_idx|(weight|input|output)_(global_)?scale)$"
)
"""Parts that quantizers put beside a weight; none of these holds the weight itself."""
_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in _FORMATS)
_TUNERS = (
    "lora|vera_lambda|vblora|randlora|oft|boft|ia3|hada|lokr|hra|fourierft|bone|miss|shira|road|c3a|trainable_tokens"
)
_ADAPTER = re.compile(
    rf"\.(({_TUNERS})_\w+|base_layer|modules_to_save|original_module|token_adapter|ln_tuning_layers)(\.|$)"
)
"""Parts that PEFT's tuners add to a module, and what they put in its place."""
_MAX_KINDS = 32  # kinds of unknown names to search for; a checkpoint with more is no Gemma 4


def quantized_format(names: Iterable[str]) -> tuple[str, tuple[str, ...]] | None:
    """Return the quantization format that stored names show, and the names that show it; None without a format.

    Args:
        names: all stored names, or the unknown names only.
    """
    listed = tuple(names)
    telling = {name: tuple(n for n in listed if pattern.search(n)) for name, pattern in _PATTERNS}
    format_name = next((name for name, hits in telling.items() if hits), None)
    return (format_name, telling[format_name]) if format_name else None


def refuse_quantized(unknown: Iterable[str], tensors: Mapping[str, TensorInfo]) -> None:
    """Raise an error if unknown names belong to a quantized checkpoint.

    Args:
        unknown: stored names that match no canonical name.
        tensors: every stored tensor, by name.

    Raises:
        UnsupportedError: the checkpoint is quantized; names the format, the number of tensors and an example.
        InputError: scales are left over beside weights that are not quantized.
    """
    names = tuple(unknown)
    if format_name := quantized_format(names):
        name, hits = format_name
        every = [one for one in names if any(pattern.search(one) for _, pattern in _PATTERNS)]
        weights = [tensors.get(_LEFTOVER.sub(".weight", one)) for one in every if _LEFTOVER.search(one)]
        if len(weights) == len(every) and all(one is not None and one.dtype.is_weight for one in weights):
            raise InputError(
                f"{len(every)} tensors of {name} beside weights that are not quantized, such as {hits[0]}",
                hint="a merge or a quantizer left them: delete them, unless the weights are codes that none has scaled",
            )
        raise UnsupportedError(
            f"already quantized: {name}, {len(hits)} tensors such as {hits[0]}",
            hint="start from the bf16 checkpoint; `g4convert inspect` describes this one",
        )


def refuse_adapters(unknown: Iterable[str]) -> None:
    """Raise an error if unknown names belong to an adapter that was not merged.

    Raises:
        InputError: there is such an adapter; names all of its tensors.
    """
    if adapters := [name for name in unknown if _ADAPTER.search(name)]:
        raise InputError(
            f"an adapter that is not merged: {len(adapters)} tensors",
            offenders=adapters,
            hint="merge the adapter first (peft: model.merge_and_unload()), then save and convert that",
        )


class Neighbours:
    """Search for the canonical name that is nearest to an unknown name.

    Names are compared without their numbers: a model has about a hundred such kinds of names, and thousands of unknown
    names are of few kinds. Each kind is searched for once.

    Args:
        bodies: body of a canonical name (the name without prefix) -> the canonical name.
    """

    def __init__(self, bodies: Mapping[str, str]) -> None:
        self._bodies = bodies
        self._examples: dict[str, str] = {}
        for body in bodies:
            self._examples.setdefault(Name(body).unnumbered()[0], body)
        self._found: dict[str, str | None] = {}

    def nearest(self, body: str) -> str | None:
        """Return the nearest canonical name, with the same numbers if such a name exists; None if no name is near."""
        kind, numbers = Name(body).unnumbered()
        if kind not in self._found:
            if len(self._found) >= _MAX_KINDS:
                return None
            near = get_close_matches(kind, self._examples, n=1, cutoff=0.7)
            self._found[kind] = near[0] if near else None
        found = self._found[kind]
        if found is None:
            return None
        return self._bodies.get(Name(found).numbered(numbers)) or self._bodies[self._examples[found]]

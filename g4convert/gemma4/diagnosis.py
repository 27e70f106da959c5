"""Diagnosis of names that belong to no Gemma 4 tensor: another format, a forgotten merge, or the nearest name."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from g4convert.errors import InputError, UnsupportedError
from g4convert.names import Name
from g4convert.tensors import TensorInfo

__all__ = ["Neighbours", "quantized_format", "refuse_adapters", "refuse_quantized"]

# The first that fits names the format: the telling suffixes come before the shared ones.
_FORMATS = (
    ("bitsandbytes", r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|quant_state\.\w+)$"),
    ("ModelOpt NVFP4", r"[._]weight_scale_2$"),
    (
        "compressed-tensors",
        r"(_packed|weight_shape|weight_zero_point|weight_global_scale|input_global_scale)$",
    ),
    ("MLX", r"\.biases$"),
    ("GPTQ or AWQ", r"\.(qweight|qzeros|g_idx|scales)$"),
    ("FP8", r"(weight_scale_inv|weight_scale|input_scale|_proj_scale)$"),
)
_BITSANDBYTES = _FORMATS[0][0]
_LEFTOVER = re.compile(r"(\.weight)?\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|quant_state\.\w+)$")
_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in _FORMATS)
_ADAPTER = re.compile(r"\.(lora_[A-Za-z_]+|base_layer|modules_to_save|original_module)(\.|$)")
_NEAREST_MOST = 32  # kinds of unknown names worth a search; a checkpoint with more is something else altogether


def quantized_format(names: Iterable[str]) -> tuple[str, tuple[str, ...]] | None:
    """The quantization format that stored names betray, and those names; None for none.

    Args:
        names: stored names, all of them or the unknown ones.
    """
    listed = tuple(names)
    telling = {name: tuple(n for n in listed if pattern.search(n)) for name, pattern in _PATTERNS}
    found = next((name for name, hits in telling.items() if hits), None)
    return (found, telling[found]) if found else None


def refuse_quantized(unknown: Iterable[str], tensors: Mapping[str, TensorInfo]) -> None:
    """Raise where names belong to a checkpoint that is already quantized.

    Args:
        unknown: names that fit nothing.
        tensors: every stored tensor.

    Raises:
        UnsupportedError: names the format, how many tensors and one of them.
        InputError: scales are left over beside weights that are not quantized.
    """
    if found := quantized_format(unknown):
        name, hits = found
        weights = [tensors.get(_LEFTOVER.sub(".weight", hit)) for hit in hits]
        if name == _BITSANDBYTES and all(one is not None and one.dtype.is_weight for one in weights):
            raise InputError(
                f"{len(hits)} tensors of bitsandbytes beside weights that are not quantized, such as {hits[0]}",
                hint="a merge left them: delete them, unless the weights are whole numbers, which none has scaled back",
            )
        raise UnsupportedError(
            f"already quantized: {name}, {len(hits)} tensors such as {hits[0]}",
            hint="start from the bf16 checkpoint; `g4convert inspect` describes this one",
        )


def refuse_adapters(unknown: Iterable[str]) -> None:
    """Raise where an adapter was not merged.

    Raises:
        InputError: names every tensor of the adapter.
    """
    if left := [name for name in unknown if _ADAPTER.search(name)]:
        raise InputError(
            f"an adapter that is not merged: {len(left)} tensors",
            offenders=left,
            hint="merge the adapter first (peft: model.merge_and_unload()), then save and convert that",
        )


class Neighbours:
    """Finds the known name nearest to an unknown one.

    Only kinds of names are compared, numbers taken out: a model has about a hundred of them, and thousands of
    unknown names are a few kinds as well, each searched for once.

    Args:
        bodies: canonical names, by what is left of them without their prefix.
    """

    def __init__(self, bodies: Mapping[str, str]) -> None:
        self._bodies = bodies
        self._examples: dict[str, str] = {}
        for body in bodies:
            self._examples.setdefault(Name(body).unnumbered()[0], body)
        self._found: dict[str, str | None] = {}

    def nearest(self, body: str) -> str | None:
        """The nearest canonical name, with the same numbers where there is one; None where none is near."""
        kind, numbers = Name(body).unnumbered()
        if kind not in self._found:
            if len(self._found) >= _NEAREST_MOST:
                return None
            near = get_close_matches(kind, self._examples, n=1, cutoff=0.7)
            self._found[kind] = near[0] if near else None
        found = self._found[kind]
        if found is None:
            return None
        return self._bodies.get(Name(found).numbered(numbers)) or self._bodies[self._examples[found]]

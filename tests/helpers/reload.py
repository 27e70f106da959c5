"""Does transformers load what was written, and does it compute the same?

    packed checkpoint ---- reload() -------> model --logits()--+
                                                               +-- compare()   (demo.comparison)
    original + packed ---- dequantized() --> model --logits()--+

`reload` is the checkpoint's own way through transformers: its config, its ignore list, its names. It is
strict, because transformers is not: a tensor that it does not find is initialised at random, and one that
it does not expect is dropped, both with a log line only. `dequantized` is a second way to the same numbers
that uses neither: the original model, whose Linears and experts are replaced by what compressed-tensors
unpacks from the stored words. Both must give the same logits; the original's logits are another question
(how much the quantization costs).

None of this shares code with the quantizer: unpacking is compressed-tensors', scheme and sizes are read
from the stored shapes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors import safe_open
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from g4convert.errors import GateError
from g4convert.forward.models import Model, ModelClass, model_class, quiet_transformers
from g4convert.names import Name

__all__ = ["dequantized", "reload"]

_PACKED = frozenset({"weight_packed", "weight_scale", "weight_shape"})


@cache
def _per_expert_class(model_type: str) -> ModelClass:
    """The class of a MoE model, taught to stack `experts.E.{gate,up,down}_proj` into its 3-D parameters.

    transformers has no conversion mapping for `gemma4`, so stock classes leave the experts of a per-expert
    checkpoint random. Its registry is global: a mapping under the name `gemma4` would also change what
    `save_pretrained` writes for every other model in the process. Class names are looked up first, so the
    mapping is registered for a subclass that exists only here.
    """
    stock = model_class(model_type)
    subclass = type(f"PerExpert{stock.__name__}", (stock,), {"__module__": __name__})
    mapping = [
        WeightConverter(
            source_patterns=["experts.*.gate_proj.weight", "experts.*.up_proj.weight"],
            target_patterns="experts.gate_up_proj",
            operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter(
            source_patterns="experts.*.down_proj.weight",
            target_patterns="experts.down_proj",
            operations=[MergeModulelist(dim=0)],
        ),
    ]
    register_checkpoint_conversion_mapping(subclass.__name__, mapping)
    return subclass


def reload(directory: Path, dtype: str = "float32") -> Model:
    """Load a checkpoint with transformers, strictly.

    Args:
        directory: a checkpoint, quantized or not.
        dtype: the model's; `float32` to compare logits, since bf16 rounding flips routers.

    Returns:
        The model, in eval mode.

    Raises:
        GateError: a tensor is missing, unexpected or of another shape, or could not be converted.
        UnsupportedError: not a Gemma 4 checkpoint.
    """
    config = transformers.AutoConfig.from_pretrained(directory)
    if "quant_method" not in (getattr(config, "quantization_config", None) or {"quant_method": ""}):
        del config.quantization_config  # a QAT export's: says how it was trained, transformers refuses it
    is_moe = getattr(config.get_text_config(), "enable_moe_block", False)
    loader = _per_expert_class(config.model_type) if is_moe else model_class(config.model_type)
    with quiet_transformers():
        try:
            model, report = loader.from_pretrained(
                directory,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported, and refused here: its own error does not name them
                local_files_only=True,
            )
        except RuntimeError as error:  # experts that cannot be stacked
            raise GateError(
                f"{directory}: transformers does not load it: {error}",
                offenders=_incomplete_experts(directory),
            ) from error
    problems = [f"{kind}: {key}" for kind in ("missing", "unexpected") for key in sorted(report[f"{kind}_keys"])]
    problems += [_mismatch(*entry) for entry in sorted(report["mismatched_keys"])]
    problems = problems or _wrong_shapes(model)
    if problems:
        raise GateError(f"{directory}: {len(problems)} tensors do not fit the model", offenders=problems)
    for parameter in model.parameters():  # unpacked experts come in the dtype of their scales
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


def _wrong_shapes(model: Model) -> list[str]:
    """Loaded tensors whose shape is not the architecture's.

    Up to 5.22, transformers compares shapes only in models without a quantization config.
    """
    with torch.device("meta"):
        stock = model_class(model.config.model_type)(model.config).state_dict()
    wrong = []
    for name, tensor in model.state_dict().items():
        module, kind = Name(name).owner, Name(name).last
        packed = kind in _PACKED
        expected = _packed_shapes(model.get_submodule(module))[kind] if packed else tuple(stock[name].shape)
        if tuple(tensor.shape) != expected:
            wrong.append(_mismatch(name, tensor.shape, expected))
    return wrong


def _mismatch(name: str, stored: Sequence[int], expected: Sequence[int]) -> str:
    return f"mismatched: {name} is {list(stored)}, the model's is {list(expected)}"


def _packed_shapes(linear: torch.nn.Linear) -> dict[str, tuple[int, ...]]:
    """The shapes that a packed Linear's config group asks for."""
    n, k = linear.out_features, linear.in_features
    weights: QuantizationArgs = linear.quantization_scheme.weights  # type: ignore[union-attr] # compressed-tensors adds it
    return {
        "weight_packed": (n, k * weights.num_bits // 32),
        "weight_scale": (n, k // weights.group_size if weights.group_size else 1),
        "weight_shape": (2,),
    }


def _incomplete_experts(directory: Path) -> list[str]:
    """Layers in which one expert has a tensor that another lacks; stacking them fails without a name."""
    found: dict[str, dict[str, set[int]]] = {}
    for module, tensors in _packed_modules(directory).items():
        name = Name(module)
        if name.expert is not None:
            for kind in tensors:
                found.setdefault(name.experts, {}).setdefault(f"{name.last}.{kind}", set()).add(name.expert)
    return [
        f"missing: {experts}.{number}.{part}"
        for experts, parts in found.items()
        for part, numbers in parts.items()
        for number in sorted(set().union(*parts.values()) - numbers)
    ]


def dequantized(source: Path, quantized: Path, dtype: str = "float32") -> Model:
    """Load the original model and put the dequantized weights of the quantized checkpoint in it.

    Args:
        source: the original checkpoint, in names that transformers loads.
        quantized: the packed one; a text-only checkpoint of a composite source is understood.
        dtype: the model's.

    Returns:
        The original model; Linears and experts that are packed in `quantized` have their values.

    Raises:
        GateError: the source does not load, or a packed tensor has no place in it.
    """
    model = reload(source, dtype)
    parameters = dict(model.named_parameters())
    prefix = "model.language_model." if _is_text_of_composite(quantized, model) else "model."
    dropped = getattr(model.get_decoder(), "_keys_to_ignore_on_load_unexpected", None) or ()
    strays = []
    with torch.no_grad():
        for module, tensors in _packed_modules(quantized).items():
            # transformers casts a Linear's scales to the model's dtype and multiplies there, but unpacks
            # experts while loading, in the dtype of the stored scales.
            inner = tensors["weight_scale"].dtype if Name(module).experts else model.dtype
            weight = _unpack(tensors, inner)
            slot = _slot(parameters, re.sub(r"^model\.", prefix, module))
            if slot is not None and slot.shape == weight.shape:
                slot.copy_(weight)
            elif not any(f".{key}" in module for key in dropped):  # K/V of KV-shared layers are not modules
                strays.append(f"{module} {list(weight.shape)}")
    if strays:
        raise GateError(f"{quantized}: packed tensors that the model has no place for", offenders=strays)
    return model


def _is_text_of_composite(directory: Path, model: Model) -> bool:
    """Return whether the checkpoint holds the text model alone, and the model is the whole."""
    model_type = json.loads((directory / "config.json").read_text())["model_type"]
    return bool(model_type == f"{model.config.model_type}_text")


def _slot(parameters: Mapping[str, torch.Tensor], module: str) -> torch.Tensor | None:
    """The parameter, or the part of a fused one, that holds this module's weight; None when there is none."""
    name = Name(module)
    if name.expert is None:
        return parameters.get(f"{module}.weight")
    down = name.last == "down_proj"
    fused = parameters.get(f"{name.experts}.{'down_proj' if down else 'gate_up_proj'}")
    if fused is None or name.expert >= len(fused):
        return None
    one = fused[name.expert]
    return one if down else one.chunk(2)[name.last == "up_proj"]


def _packed_modules(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Module -> {weight_packed, weight_scale, weight_shape}, as stored."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- a safetensors file is not iterable
                module, kind = Name(name).owner, Name(name).last
                if kind in _PACKED:
                    modules.setdefault(module, {})[kind] = file.get_tensor(name)
    return modules


def _unpack(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Dequantize one module.

    Args:
        tensors: `weight_packed` int32 [n, k * bits / 32], `weight_scale` [n, groups], `weight_shape` [2].
        dtype: in which codes and scales are multiplied.

    Returns:
        The weight [n, k], in that dtype.
    """
    n, k = (int(size) for size in tensors["weight_shape"])
    words, scale = tensors["weight_packed"], tensors["weight_scale"]
    bits, groups = words.shape[1] * 32 // k, scale.shape[1]
    grouping = {"strategy": "channel"} if groups == 1 else {"strategy": "group", "group_size": k // groups}
    codes = unpack_from_int32(words, bits, torch.Size((n, k)))
    weight: torch.Tensor = dequantize(codes, scale.to(dtype), args=QuantizationArgs(num_bits=bits, **grouping))
    return weight

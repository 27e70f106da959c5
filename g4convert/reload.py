"""Does transformers load what was written, and does it compute the same?

    packed checkpoint ---- reload() ----------------> model --logits--+
                                                                      +-- compare()
    original + packed ---- dequantized() -----------> model --logits--+

`reload` is the checkpoint's own way through transformers: its config, its ignore list, its names. It is
strict, because transformers is not: a tensor that it does not find is initialised at random, and one that
it does not expect is dropped, both with a log line only. `dequantized` is a second way to the same numbers
that uses neither: the original model, whose Linears and experts are replaced by what compressed-tensors
unpacks from the stored words. Both must give the same logits; the original's logits are another question
(how much the quantization costs).

None of this shares code with the quantizer: unpacking is compressed-tensors', scheme and sizes are read
from the stored shapes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors import safe_open
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from g4convert.errors import GateError, UnsupportedError

__all__ = [
    "LogitsDifference",
    "Prompt",
    "compare",
    "dequantized",
    "logits",
    "model_class",
    "prompts",
    "quiet_transformers",
    "reload",
]

_CLASSES = {
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
    "gemma4_unified_text": "Gemma4UnifiedForCausalLM",
    "gemma4_assistant": "Gemma4AssistantForCausalLM",
    "gemma4_unified_assistant": "Gemma4UnifiedAssistantForCausalLM",
}
_MEDIA_TOKENS = (
    *("boi_token_id", "image_token_id", "eoi_token_id", "video_token_id"),
    *("boa_token_id", "audio_token_id", "eoa_token_index"),
)
_PACKED = frozenset({"weight_packed", "weight_scale", "weight_shape"})
_EXPERT = re.compile(r"^(?P<experts>.+\.experts)\.(?P<index>\d+)\.(?P<projection>gate|up|down)_proj$")

# transformers ships no types: a model class, a PreTrainedModel and a PreTrainedConfig are Any to a checker.
ModelClass: TypeAlias = Any
Model: TypeAlias = Any
Config: TypeAlias = Any


def model_class(model_type: str) -> ModelClass:
    """The transformers class that loads a whole checkpoint of this model type.

    Raises:
        UnsupportedError: not a Gemma 4 model type.
    """
    if model_type not in _CLASSES:
        raise UnsupportedError(f"model_type {model_type!r} is not one of {', '.join(_CLASSES)}")
    return getattr(transformers, _CLASSES[model_type])


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports inside; the strict checks here say more."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # compressed-tensors' bars have no switch
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


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
    problems = [
        f"{kind}: {key}" for kind in ("missing", "unexpected") for key in sorted(report[f"{kind}_keys"])
    ]
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
        module, _, kind = name.rpartition(".")
        if kind in _PACKED:
            expected = _packed_shapes(model.get_submodule(module))[kind]
        else:
            expected = tuple(stock[name].shape)
        if tuple(tensor.shape) != expected:
            wrong.append(_mismatch(name, tensor.shape, expected))
    return wrong


def _mismatch(name: str, stored: Sequence[int], expected: Sequence[int]) -> str:
    return f"mismatched: {name} is {list(stored)}, the model's is {list(expected)}"


def _packed_shapes(linear: torch.nn.Linear) -> dict[str, tuple[int, ...]]:
    """The shapes that a Linear's config group asks for."""
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
        if (expert := _EXPERT.match(module)) is not None:
            for kind in tensors:
                part = f"{expert['projection']}_proj.{kind}"
                found.setdefault(expert["experts"], {}).setdefault(part, set()).add(int(expert["index"]))
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
    packed = _packed_modules(quantized)
    parameters = dict(model.named_parameters())
    nested = next((name for name in parameters if name.startswith("model.language_model.")), None)
    dropped = getattr(model.get_decoder(), "_keys_to_ignore_on_load_unexpected", None) or ()
    strays = []
    with torch.no_grad():
        for module, tensors in packed.items():
            # transformers casts a Linear's scales to the model's dtype and multiplies there, but unpacks
            # experts while loading, in the dtype of the stored scales.
            inner = tensors["weight_scale"].dtype if _EXPERT.match(module) else model.dtype
            weight = _unpack(tensors, inner)
            name = (
                module
                if nested is None
                else re.sub(r"^model\.layers\.", "model.language_model.layers.", module)
            )
            slot = _slot(parameters, name)
            if slot is not None and slot.shape == weight.shape:
                slot.copy_(weight)
            elif not any(f".{key}" in name for key in dropped):  # K/V of KV-shared layers are not modules
                strays.append(f"{module} {list(weight.shape)}")
    if strays:
        raise GateError(f"{quantized}: packed tensors that the model has no place for", offenders=strays)
    return model


def _slot(parameters: Mapping[str, torch.Tensor], module: str) -> torch.Tensor | None:
    """The parameter, or the part of a fused one, that holds this module's weight; None when there is none."""
    if (expert := _EXPERT.match(module)) is None:
        return parameters.get(f"{module}.weight")
    down = expert["projection"] == "down"
    fused = parameters.get(f"{expert['experts']}.{'down_proj' if down else 'gate_up_proj'}")
    if fused is None or int(expert["index"]) >= len(fused):
        return None
    one = fused[int(expert["index"])]
    return one if down else one.chunk(2)[expert["projection"] == "up"]


def _packed_modules(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Module -> {weight_packed, weight_scale, weight_shape}, as stored."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- a safetensors file is not iterable
                module, _, kind = name.rpartition(".")
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
    weight: torch.Tensor = dequantize(
        codes, scale.to(dtype), args=QuantizationArgs(num_bits=bits, **grouping)
    )
    return weight


@dataclass(frozen=True, slots=True)
class Prompt:
    """One forward call: what it exercises, the arguments, and which output is looked at."""

    kind: str
    arguments: Mapping[str, Any]
    output: str = "logits"


def prompts(model: Model, *, seed: int = 0) -> tuple[Prompt, ...]:
    """A prompt for each input the model takes: text, then image and audio.

    An assistant takes a draft; its second output is the state that it hands to its next draft.
    Tokens, pixels and sound are random; shapes, masks and placeholder tokens are what the processors give.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    if config.model_type.endswith("assistant"):
        arguments = _draft_arguments(model, generator)
        return (Prompt("draft", arguments), Prompt("state", arguments, output="last_hidden_state"))
    text = _text_ids(config, 40, generator)
    found = [Prompt("text", {"input_ids": text[None]})]
    for kind, media in (("image", _image), ("audio", _audio)):
        if getattr(config, f"{'vision' if kind == 'image' else 'audio'}_config", None) is not None:
            count, arguments = media(config, generator)
            found.append(Prompt(kind, {**arguments, **_with_placeholders(config, kind, count, text)}))
    return tuple(found)


def _text_ids(config: Config, count: int, generator: torch.Generator) -> torch.Tensor:
    """int64 [count]: ids of the vocabulary that no media token has."""
    media = {getattr(config, key, None) for key in _MEDIA_TOKENS} - {None}
    ids = torch.randperm(config.get_text_config().vocab_size, generator=generator)
    return torch.tensor([id_ for id_ in ids[: count + len(media)].tolist() if id_ not in media][:count])


def _with_placeholders(config: Config, kind: str, count: int, text: torch.Tensor) -> dict[str, torch.Tensor]:
    """Text with `count` soft tokens in its middle, between their opening and closing token."""
    opening, closing = {
        "image": (config.boi_token_id, config.eoi_token_id),
        "audio": (config.boa_token_id, config.eoa_token_index),
    }[kind]
    soft = [getattr(config, f"{kind}_token_id")] * count
    half = len(text) // 2
    ids = torch.cat([text[:half], torch.tensor([opening, *soft, closing]), text[half:]])[None]
    types = torch.zeros_like(ids)
    types[0, half + 1 : half + 1 + count] = {"image": 1, "audio": 3}[kind]
    return {"input_ids": ids, "mm_token_type_ids": types}


def _image(config: Config, generator: torch.Generator) -> tuple[int, dict[str, torch.Tensor]]:
    """A picture of 3 x 2 soft tokens, wider than high, with the padding of one more soft token."""
    vision = config.vision_config
    pool = vision.pooling_kernel_size
    if config.model_type == "gemma4_unified":  # patches arrive merged, one for each soft token
        side, merge = vision.patch_size * pool, 1
    else:
        side, merge = vision.patch_size, pool
    x, y = torch.meshgrid(torch.arange(3 * merge), torch.arange(2 * merge), indexing="xy")
    positions = torch.cat([torch.stack([x, y], dim=-1).reshape(-1, 2), torch.full((merge**2, 2), -1)])
    pixels = torch.rand(len(positions), 3 * side**2, generator=generator)
    pixels[positions[:, 0] < 0] = 0
    return 6, {"pixel_values": pixels[None], "image_position_ids": positions[None]}


def _audio(config: Config, generator: torch.Generator) -> tuple[int, dict[str, torch.Tensor]]:
    """Sound of 20 soft tokens and some padding: waveform frames, or mel frames that the tower merges by 4."""
    audio = config.audio_config
    merge = 1 if config.model_type == "gemma4_unified" else 4
    width = audio.audio_embed_dim if merge == 1 else audio.subsampling_conv_channels[0]
    frames = torch.randn(22 * merge, width, generator=generator)
    mask = torch.arange(len(frames)) < 20 * merge
    return 20, {"input_features": (frames * mask[:, None])[None], "input_features_mask": mask[None]}


def _draft_arguments(model: Model, generator: torch.Generator) -> dict[str, Any]:
    """Eight drafts of one token each: the target's embedding and state, and its keys and values.

    The target's part is random, of the shapes a target with the drafter's head sizes hands over.
    """
    config = model.config.get_text_config()
    context = 24
    states = {}
    for layer, kind in zip(model.model.layers, config.layer_types, strict=True):
        attention = layer.self_attn
        heads = config.num_attention_heads // attention.num_key_value_groups
        shape = (8, heads, context, attention.head_dim)
        keys = torch.randn(shape, generator=generator) * attention.head_dim**-0.5
        states[kind] = (keys.to(model.dtype), torch.randn(shape, generator=generator).to(model.dtype))
    embeddings = torch.randn(8, 1, 2 * model.config.backbone_hidden_size, generator=generator)
    return {
        "inputs_embeds": embeddings.to(model.dtype),
        "position_ids": torch.full((8, 1), context),
        "shared_kv_states": states,
    }


def logits(model: Model, prompt: Prompt) -> torch.Tensor:
    """The logits of one prompt, float32 [tokens, vocabulary]; for `state` the state, [tokens, hidden]."""
    with torch.no_grad(), quiet_transformers():  # packed modules are unpacked in the first forward
        output: torch.Tensor = model(**prompt.arguments, use_cache=False)[prompt.output]
    return output.float().flatten(0, -2)


@dataclass(frozen=True, slots=True)
class LogitsDifference:
    """How far one set of logits is from another; `reference` is the largest |logit| of the first."""

    max_abs: float
    mean_abs: float
    kl_mean: float
    top1_agreement: float
    reference: float

    @property
    def relative(self) -> float:
        """The largest difference as a part of the largest logit."""
        return self.max_abs / self.reference


def compare(expected: torch.Tensor, found: torch.Tensor) -> LogitsDifference:
    """Compare logits of the same prompt, both float32 [tokens, vocabulary].

    Returns:
        The difference; `kl_mean` is KL(expected, found) in nats, averaged over tokens.

    Raises:
        GateError: a logit is not finite: nothing could be concluded.
    """
    for name, values in (("expected", expected), ("found", found)):
        if not bool(values.isfinite().all()):
            raise GateError(
                f"{name} logits: {int((~values.isfinite()).sum())} of {values.numel()} are not finite"
            )
    difference = (expected - found).abs()
    log_p, log_q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return LogitsDifference(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        kl_mean=max(0.0, float((log_p.exp() * (log_p - log_q)).sum(-1).mean())),
        top1_agreement=float((expected.argmax(-1) == found.argmax(-1)).float().mean()),
        reference=float(expected.abs().max()),
    )

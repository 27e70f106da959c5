"""The Gemma 4 architecture that a config describes: the sizes that decide its tensors.

Two dialects of config are read: the published dialect (`global_head_dim`, `num_global_key_value_heads`) and the dialect
that transformers 5 saves (`per_layer_config`, a map from layer number to the values that differ in that layer).
Defaults are those of transformers' classes; the decoder's sizes have no defaults, as every writer stores them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from g4convert.errors import InputError, UnsupportedError, UsageError
from g4convert.gemma4.config_reader import ConfigReader
from g4convert.gemma4.decoder_config import read_decoder
from g4convert.gemma4.left_out import left_out
from g4convert.gemma4.media_config import read_audio, read_vision
from g4convert.gemma4.other_keys import check_other_keys, read_dtype
from g4convert.gemma4.parts import AudioPart, Drafter, TextModel, VisionPart
from g4convert.names import Name
from g4convert.tensors import DType

TEXT_ONLY = "gemma4_text"
"""Model type of a decoder alone."""
UNIFIED_TEXT = "gemma4_unified_text"
"""Model type of a unified decoder alone, for which serving engines have no class."""
WITHOUT_PARTS: Mapping[str, object] = {"hidden_size_per_layer_input": 0, "enable_moe_block": False}
"""Keys by which a `TEXT_ONLY` config says that it has what a unified decoder has: no PLE and no experts."""
_COMPOSITE_PREFIX = "model.language_model."
_TEXT_PREFIX = "model."


@dataclass(frozen=True, slots=True)
class _Kind:
    """Class and parts that a model_type has."""

    class_name: str
    text_types: tuple[str, ...]
    composite: bool = False
    unified: bool = False
    assistant: bool = False


_KINDS: Mapping[str, _Kind] = {
    "gemma4": _Kind("Gemma4ForConditionalGeneration", ("gemma4_text",), composite=True),
    "gemma4_text": _Kind("Gemma4ForCausalLM", ("gemma4_text",)),
    "gemma4_assistant": _Kind("Gemma4AssistantForCausalLM", ("gemma4_text", "gemma4_unified_text"), assistant=True),
    "gemma4_unified": _Kind(
        "Gemma4UnifiedForConditionalGeneration", ("gemma4_unified_text",), composite=True, unified=True
    ),
    "gemma4_unified_text": _Kind("Gemma4UnifiedForCausalLM", ("gemma4_unified_text",), unified=True),
    "gemma4_unified_assistant": _Kind(
        "Gemma4UnifiedAssistantForCausalLM", ("gemma4_unified_text", "gemma4_text"), unified=True, assistant=True
    ),
}

_REFUSED: Mapping[str, str] = {
    "diffusion_gemma": "a block diffusion model; its encoder and decoder share tied layers",
    "embedding_gemma2": "an embedding model; it has no language model head to serve",
}

# hidden size, layers, experts: enough to tell the released sizes apart
_RELEASED: Mapping[tuple[int, int, int], str] = {
    (1536, 35, 0): "E2B",
    (2560, 42, 0): "E4B",
    (3840, 48, 0): "12B",
    (2816, 30, 128): "26B-A4B",
    (5376, 60, 0): "31B",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a Gemma 4 model that decide its tensors.

    Args:
        model_type: `model_type` of the config.
        text: the decoder.
        vision: the vision tower or embedder, or None.
        audio: the audio tower or embedder, or None.
        drafter: the parts of an MTP assistant beside its decoder, or None.
        tied_embeddings: True if the output head shares the embedding's weight and is not stored.
        dtype: dtype that the config gives, or None; stored tensors may have another.
        left_out: keys that the config leaves out and an engine reads; they decide no tensor, so two architectures that
            differ in them alone are equal.
    """

    model_type: str
    text: TextModel
    vision: VisionPart | None
    audio: AudioPart | None
    drafter: Drafter | None
    tied_embeddings: bool
    dtype: DType | None
    left_out: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """Read a config.json.

        Raises:
            UnsupportedError: a model type that g4convert does not convert.
            InputError: no model type, or missing and ill-typed values; names all of them.
        """
        kind = _kind_of(config)
        top = ConfigReader(config)
        text = _text_section(top, kind)
        decoder = read_decoder(text, unified=_is_unified_text(text, kind), assistant=kind.assistant)
        architecture = cls(
            model_type=str(config["model_type"]),
            text=decoder,
            vision=read_vision(top, unified=kind.unified) if kind.composite else None,
            audio=read_audio(top, unified=kind.unified) if kind.composite else None,
            drafter=_drafter(top) if kind.assistant else None,
            tied_embeddings=top.flag("tie_word_embeddings", default=True),
            dtype=read_dtype(top) or read_dtype(text),
            left_out=tuple(left_out(config)),
        )
        if kind.composite or kind.assistant:
            check_other_keys(top, "drafter" if kind.assistant else "whole model")
        top.raise_problems()
        return architecture

    @property
    def class_name(self) -> str:
        """Name of the transformers class, as in `architectures` of a config."""
        return _KINDS[self.model_type].class_name

    @property
    def is_composite(self) -> bool:
        """True if the decoder is a part of a multimodal model."""
        return _KINDS[self.model_type].composite

    @property
    def is_unified(self) -> bool:
        """True for the encoder-free line (12B)."""
        return _KINDS[self.model_type].unified

    @property
    def is_assistant(self) -> bool:
        """True for an MTP drafter."""
        return self.drafter is not None

    @property
    def has_vision(self) -> bool:
        """True if it takes images."""
        return self.vision is not None

    @property
    def has_audio(self) -> bool:
        """True if it takes sound."""
        return self.audio is not None

    @property
    def text_prefix(self) -> str:
        """Prefix of the decoder's stored names."""
        return _COMPOSITE_PREFIX if self.is_composite else _TEXT_PREFIX

    @property
    def family(self) -> str:
        """Usual name, such as `Gemma 4 MoE (26B-A4B)`; with a size only for released sizes."""
        line = "Gemma 4 unified" if self.is_unified else "Gemma 4"
        text = self.text
        size = _RELEASED.get((text.hidden_size, len(text.layers), text.experts.count if text.experts else 0), "")
        if self.is_assistant:
            return f"{line} MTP assistant"
        form = "MoE" if text.experts else "dense with per-layer embeddings" if text.ple else "dense"
        label = line if self.is_unified else f"{line} {form}"
        return label + ("" if self.is_composite else ", text-only") + (f" ({size})" if size else "")

    def text_only(self) -> "Architecture":
        """Return the architecture of the decoder alone, as `Gemma4ForCausalLM` stores it.

        A unified decoder is one without per-layer embeddings and experts, so that this class computes the same; serving
        engines have no class for `gemma4_unified_text`.

        Raises:
            UsageError: an assistant, which has no text-only form.
        """
        if self.is_assistant:
            raise UsageError(f"layout text-only: {self.model_type} is a drafter, it has no text-only form")
        return replace(self, model_type=TEXT_ONLY, vision=None, audio=None, left_out=())

    @property
    def text_types(self) -> tuple[str, ...]:
        """Model types under which the decoder alone may be stored; none for an assistant."""
        if self.is_assistant:
            return ()
        return (TEXT_ONLY, UNIFIED_TEXT) if self.is_unified else (TEXT_ONLY,)

    def untied(self) -> "Architecture":
        """Return the architecture with an output head of its own."""
        return replace(self, tied_embeddings=False)

    def text_name(self, name: str) -> str | None:
        """Return a canonical name as the text-only form spells it; None for tensors and modules outside that form."""
        if not self.is_composite:
            return name
        path = self.decoder_path(name)
        if path is not None:
            return _TEXT_PREFIX + path
        return name if name.startswith("lm_head") else None

    def name_in(self, output: "Architecture", name: str) -> str | None:
        """Return a canonical name as an output spells it, which may be the decoder alone; None if that has no such."""
        return name if output.is_composite else self.text_name(name)

    def decoder_path(self, name: str) -> Name | None:
        """Return the path of a name in the decoder: `layers.3.mlp.up_proj`; None in towers and for the head."""
        return Name(name).below(self.text_prefix.removesuffix("."))

    def reads_values_from_keys(self, module: Name) -> bool:
        """Return whether a module is the v_proj of a layer that has none, since its values are its keys (k_eq_v)."""
        number, layers = module.decoder_layer, self.text.layers
        is_value = module.in_layer == "self_attn.v_proj"
        return is_value and number is not None and number < len(layers) and layers[number].k_eq_v


def _kind_of(config: Mapping[str, Any]) -> _Kind:
    model_type = config.get("model_type")
    supported = f"supported: {', '.join(_KINDS)}"
    if not isinstance(model_type, str):
        found = "missing" if model_type is None else repr(model_type)
        raise InputError(f"config.json: model_type: {found}, expected the name of a Gemma 4 model", hint=supported)
    if kind := _KINDS.get(model_type):
        return kind
    family = next((known for known in _REFUSED if model_type.startswith(known)), None)
    problem = _REFUSED[family] if family else "not a Gemma 4 model that g4convert knows"
    raise UnsupportedError(f"config.json: model_type {model_type!r}: {problem}", hint=supported)


def _text_section(top: ConfigReader, kind: _Kind) -> ConfigReader:
    """Return the section with the decoder's values: the top level, or `text_config`.

    Raises:
        UnsupportedError: `text_config` is of a model type that does not fit.
        InputError: `text_config` is missing.
    """
    if not (kind.composite or kind.assistant):
        _refuse_nested(top, kind)
        return top
    text = top.section("text_config")
    if text is None:
        if kind.composite and "num_hidden_layers" in top.values:
            raise InputError(
                f"config.json: model_type {top.values['model_type']!r}, but the decoder's keys are at the top level",
                hint=f"set model_type to {kind.text_types[0]}, the decoder alone",
            )
        if top.values.get("text_config") is None:
            top.note("text_config", "missing")
        top.raise_problems()
        return top
    model_type = text.text("model_type")
    if model_type is not None and model_type not in kind.text_types:
        parent, expected = top.values["model_type"], kind.text_types[0]
        raise UnsupportedError(f"config.json: text_config.model_type {model_type!r}: a {parent} has {expected}")
    return text


def _refuse_nested(top: ConfigReader, kind: _Kind) -> None:
    """Raise if a decoder's config has its keys in `text_config`, as only models with other parts have them.

    Raises:
        InputError: it has; names the model type of the whole.
    """
    if isinstance(top.values.get("text_config"), Mapping) and "num_hidden_layers" not in top.values:
        whole = next(name for name, one in _KINDS.items() if one.composite and one.unified is kind.unified)
        raise InputError(
            f"config.json: model_type {top.values['model_type']!r}, but the decoder's keys are in text_config",
            hint=f"set model_type to {whole}, the model with a text_config",
        )


def is_drafter(model_type: object) -> bool:
    """Return whether the `model_type` of a config is that of an MTP drafter; for a config that may not be Gemma 4's."""
    return str(model_type).endswith("assistant")


def _is_unified_text(text: ConfigReader, kind: _Kind) -> bool:
    return (text.text("model_type") or kind.text_types[0]) == "gemma4_unified_text"


def _drafter(top: ConfigReader) -> Drafter:
    default = 3840 if _KINDS[str(top.values["model_type"])].unified else 1536
    ordered = top.flag("use_ordered_embeddings", default=False)
    return Drafter(
        backbone_hidden_size=top.integer("backbone_hidden_size", default),
        centroids=top.integer("num_centroids", 2048) if ordered else None,
    )

"""Causes of faults, where the faults together prove the cause, with remedies.

    two spellings of several weights         the directory has two copies of one model
    only a whole tower is missing            its weights were removed, or never saved
    a tower that the config does not have    the config was saved with another model
    only buffers are missing                 the writer stored parameters only
    only the output head is missing          it is the embedding, which config.json does not say
    other names for those that are missing   the form in which a trainer or an engine holds them: see `name_causes`
    layers beyond the last, and gaps         layers were removed, and the others kept their numbers
    only dtypes                              the model is to be saved again

If no cause is proved, `fitting_remedy` may find the config key that does not fit. If no key is found, and every fault
is an unknown tensor, the model is whole without these (`spare`).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from g4convert.gemma4.architecture import Architecture
from g4convert.gemma4.dialects import body_of
from g4convert.gemma4.matching import Schema
from g4convert.gemma4.name_causes import SEVERAL, renaming_remedy
from g4convert.names import Name

_VISION = ("vision_tower.", "vision_embedder.", "embed_vision.")
_AUDIO = ("audio_tower.", "embed_audio.")
_PROJECTIONS = ("embed_vision.", "embed_audio.")
_BUFFERS = ("layer_scalar", "std_bias", "std_scale")
_HEADS = {
    "v_head.": "v_head is the value head of a trainer (TRL): delete its tensors, or save the model without it",
    "score.": "score is the head of a classifier (...ForSequenceClassification), which does not generate text",
    "classifier.": "classifier is the head of a classifier, which does not generate text",
}
_COMPUTED = {".experts.": "experts", ".router.": "experts", "per_layer_": "per-layer embeddings"}
"""Parts of names that only some Gemma 4 models have: these never come from elsewhere."""


@dataclass(frozen=True, slots=True)
class TensorFault:
    """A fault of one tensor; `name` is the tensor, `line` the sentence about it."""

    kind: str
    name: str
    line: str


def cause(faults: Collection[TensorFault], schema: Schema, architecture: Architecture) -> str:
    """Return the remedy for the common cause of faults; empty if they prove no cause."""
    return _wrong_numbers(faults, schema) or _of_kinds(faults, schema, architecture)


def _of_kinds(faults: Collection[TensorFault], schema: Schema, architecture: Architecture) -> str:
    """Return the remedy for faults of one kind, or for unknown tensors beside missing ones; empty if there is none."""
    kinds = {fault.kind for fault in faults}
    names = [fault.name for fault in faults]
    if kinds == {"ambiguous"} and len(faults) >= SEVERAL:
        return "two copies of one model in one directory, under different names: delete the files of one"
    if kinds == {"unknown"}:
        return _unknown(names, architecture)
    if kinds == {"missing"}:
        return _missing(names, schema)
    if kinds == {"of the wrong dtype"}:
        return "load the model in bfloat16 and save it with `save_pretrained`"
    if kinds == {"unknown", "missing"}:
        unknown = [fault.name for fault in faults if fault.kind == "unknown"]
        missing = {fault.name for fault in faults if fault.kind == "missing"}
        return renaming_remedy(unknown, missing, schema)
    return ""


def _missing(names: Sequence[str], schema: Schema) -> str:
    """Return the remedy for missing tensors that are all of one kind, otherwise empty."""
    if all(Name(name).last in _BUFFERS for name in names):
        modules = " and ".join(dict.fromkeys(Name(name).last for name in names))
        return (
            f"{modules}: buffers, which a writer of parameters only leaves out; copy them from the model it was made of"
        )
    if names == ["lm_head.weight"]:
        return "no output head is stored: if it is the embedding, set tie_word_embeddings to true in config.json"
    if set(names) == {name for name in schema.expected if name.startswith("masked_embedding.")}:
        return 'a drafter that scores the whole vocabulary: `"use_ordered_embeddings": false` in config.json says so'
    return _missing_media(set(names), schema)


def spare(faults: Collection[TensorFault], schema: Schema) -> str:
    """Return the remedy if a model is whole without its unknown tensors, or has other experts in some layers.

    Args:
        faults: all faults of the checkpoint; no key of its config mends them.
        schema: canonical names of the architecture.
    """
    if all(fault.kind == "of the wrong shape" and _is(fault.name, (".experts.", ".router.")) for fault in faults):
        return "every layer has as many experts as num_experts says: no engine reads others; prune all layers alike"
    if any(fault.kind != "unknown" for fault in faults):
        return ""
    for part, owner in _COMPUTED.items():
        foreign = not any(part in name for name in schema.expected)
        if foreign and any(part in fault.name for fault in faults):
            return f"config.json is that of a model without {owner}: take the one saved with these weights"
    return "the model is whole without them: delete them, unless it computes with them, which no engine would do"


def _unknown(names: Collection[str], architecture: Architecture) -> str:
    """Return the remedy for unknown tensors that are all of one kind, otherwise empty."""
    if all(_is(name, _VISION + _AUDIO) for name in names):
        return _unknown_media(names, architecture)
    if all(architecture.reads_values_from_keys(Name(name).module) for name in names):
        alike = len({layer.kv_heads for layer in architecture.text.layers}) == 1
        other = ", or else set attention_k_eq_v to false" if alike else "; with other values it is no Gemma 4"
        return f"attention_k_eq_v says that these layers have no v_proj: delete it if it is a copy of k_proj{other}"
    return _foreign_heads(names)


def _wrong_numbers(faults: Iterable[TensorFault], schema: Schema) -> str:
    """Return the remedy if layers are there under numbers beyond the last, and as many below are not; else empty."""
    count = len({number for name in schema.expected if (number := Name(name).decoder_layer) is not None})
    beyond, gaps = set(), set()
    for fault in faults:
        number = Name(fault.name).decoder_layer
        if number is not None and fault.kind == "unknown" and number >= count:
            beyond.add(number)
        if number is not None and fault.kind == "missing" and fault.name.endswith(".input_layernorm.weight"):
            gaps.add(number)
    if not beyond or len(beyond) != len(gaps):
        return ""
    found, absent = (", ".join(map(str, sorted(numbers))) for numbers in (beyond, gaps))
    return f"layers are numbered with gaps: there is {found}, but no {absent}; number them from 0 on, in their order"


def _foreign_heads(names: Collection[str]) -> str:
    """Return the remedy for the head of a trainer or classifier; empty if other names are unknown, too."""
    remedies = [remedy for start, remedy in _HEADS.items() if all(name.startswith(start) for name in names)]
    return remedies[0] if remedies else ""


def _is(name: str, parts: Sequence[str]) -> bool:
    return any(part in name for part in parts)


def _unknown_media(names: Collection[str], architecture: Architecture) -> str:
    """Return the remedy for weights of towers that the config does not have; empty if none applies."""
    if not architecture.is_composite:
        return "config.json describes the text model alone: use the multimodal one (and --layout text-only)"
    for key, parts, present in (
        ("vision_config", _VISION, architecture.has_vision),
        ("audio_config", _AUDIO, architecture.has_audio),
    ):
        whole = architecture.is_unified and key == "audio_config"  # its projection is all that it has
        if not present and not whole and all(body_of(name).startswith(_PROJECTIONS) for name in names):
            return "these belong to a tower that is not there, neither here nor in config.json: delete them"
        if not present and all(_is(name, parts) for name in names):
            return f"config.json has no {key}, but the files have its weights: put it back, as the base model's has it"
    return ""


def _missing_media(missing: set[str], schema: Schema) -> str:
    """Return the remedy if exactly the weights of whole towers are missing, otherwise empty."""
    needed = [name for name, expected in schema.expected.items() if not expected.optional]
    whole = {
        key: names
        for key, parts in (("vision_config", _VISION), ("audio_config", _AUDIO))
        if (names := {name for name in needed if _is(name, parts)})
    }
    towers = {key: {name for name in names if "embed_" not in name} for key, names in whole.items()}
    gone = {key: names for key, names in whole.items() if names <= missing}
    torn = {key: names for key, names in towers.items() if key not in gone and names and names <= missing}
    if missing != {name for names in (*gone.values(), *torn.values()) for name in names}:
        return ""
    alone = "--layout text-only converts the decoder alone"
    then = ", which vLLM does not load" if "vision_config" in {*gone, *torn} else ""
    if torn:
        parts = " and ".join(f"embed_{key.removesuffix('_config')}" for key in torn)
        keys = " and ".join(f'`"{key}": null`' for key in torn)
        rest = f"to keep the rest, delete {parts} and write {keys} into config.json{then}"
        return f"{parts} is there without its tower: {alone}; {rest}"
    if gone.keys() == whole.keys():
        return "decoder weights under a multimodal config.json: --layout text-only converts them"
    if then:
        rest = f'to keep the sound, write `"vision_config": null` into config.json{then}'
        return f"the files have no vision weights: {alone}; {rest}"
    return 'the files have no audio weights: `"audio_config": null` in config.json says so'

"""Reader of the decoder's part of a config, in either dialect, resolved layer by layer."""

from collections.abc import Collection, Mapping, Sequence

from g4convert.gemma4.config_reader import ConfigReader
from g4convert.gemma4.other_keys import check_other_keys
from g4convert.gemma4.parts import Experts, Layer, PerLayerEmbedding, TextModel

_SLIDING, _FULL = "sliding_attention", "full_attention"
_DEFAULT_PATTERN = 6  # transformers: without layer_types every sixth layer is full
_MAX_LAYERS = 1024
_MAX_EXPERTS = 4096
# transformers lets a layer override any key, but its Gemma 4 classes then fail at each key beside these two.
_READ_OVERRIDES = ("head_dim", "num_key_value_heads")


def read_decoder(read: ConfigReader, *, unified: bool, assistant: bool) -> TextModel:
    """Return the decoder that a section describes, and note problems in the reader.

    Args:
        read: reader of the text section.
        unified: True for `gemma4_unified_text`, which has neither per-layer embeddings nor experts.
        assistant: True for a drafter, all of whose layers use the target's keys and values.
    """
    count = read.integer("num_hidden_layers", most=_MAX_LAYERS)
    if assistant and not unified:
        _check_drafter(read)
    text = TextModel(
        vocab_size=read.integer("vocab_size"),
        hidden_size=read.integer("hidden_size"),
        heads=read.integer("num_attention_heads"),
        layers=_layers(read, count, _kv_shared(read, count, assistant=assistant)),
        ple=None if unified or assistant else _ple(read),
        experts=None if unified or assistant else _experts(read),
        attention_bias=read.flag("attention_bias", default=False),
    )
    if not assistant:
        _check_shared(read, text.layers)
    check_other_keys(read, "unified decoder" if unified else "decoder")
    _check_rotation(read, {_FULL if layer.full else _SLIDING for layer in text.layers})
    return text


_DRAFTER: Mapping[str, tuple[object, object]] = {
    "hidden_size_per_layer_input": (256, 0),
    "vocab_size_per_layer_input": (262_144, 0),
    "enable_moe_block": (False, False),
    "use_double_wide_mlp": (False, False),
}
"""Key -> its default in transformers' class, and the only value that a drafter's class allows."""


def _check_drafter(read: ConfigReader) -> None:
    """Note the keys that a drafter's class refuses, which may also be missing: their defaults are a whole model's."""
    for key, (default, only) in _DRAFTER.items():
        value = read.values.get(key, default)
        if value != only or type(value) is not type(only):
            found = "missing" if key not in read.values else "null" if value is None else f"{value!r:.40}"
            read.note(key, f"{found}, an assistant has {str(only).lower()}")


def _check_rotation(read: ConfigReader, kinds: Collection[str]) -> None:
    """Note rotary embeddings that no engine computes: each kind of layer needs a part of its own.

    transformers 5.18 to 5.24 reads `rope_scaling`, if it is there (even null), in place of `rope_parameters`, and fails
    without a part for each kind of layer; vLLM 0.33 then turns all layers alike. Full attention turns a part of each
    head's columns, which the type `proportional` alone spreads over the head: of another type transformers 5.22 makes
    too few angles and fails, and vLLM turns other columns.
    """
    replaced = "rope_scaling" in read.values
    key = "rope_scaling" if replaced else "rope_parameters"
    rotation = read.section(key)
    if replaced and not (rotation and rotation.values.keys() & {_FULL, _SLIDING}):
        read.note(key, "replaces rope_parameters, which has a part for each kind of layer: delete it")
    elif rotation is None:
        return
    elif missing := [kind for kind in sorted(kinds) if kind not in rotation.values]:
        read.note(key, f"no {' and no '.join(missing)} in it, and each kind of layer has its own")
    elif (full := rotation.section(_FULL)) and full.values.get("partial_rotary_factor") not in (None, 1.0):
        kind = full.text("rope_type")
        if kind not in (None, "proportional", "default"):
            full.note("rope_type", f"{kind!r:.40}, expected 'proportional': no other turns a part of each head")


def _kv_shared(read: ConfigReader, count: int, *, assistant: bool) -> int:
    """Return how many layers, counted from the last, have no keys and values of their own."""
    shared = read.integer("num_kv_shared_layers", 0, least=0, most=count)
    if assistant and shared not in {0, count}:
        read.note("num_kv_shared_layers", f"{shared}, an assistant shares all {count}")
    return count if assistant else shared


def _check_shared(read: ConfigReader, layers: Sequence[Layer]) -> None:
    """Note kinds of layers that share the keys of a layer of their kind, where none before them has any.

    transformers 5.23 and 5.24 refuse the config; earlier releases fail at the first token.
    """
    kinds = [{layer.full for layer in layers if layer.kv_shared is shared} for shared in (True, False)]
    if lost := [_FULL if full else _SLIDING for full in sorted(kinds[0] - kinds[1])]:
        text = f"layers of {' and of '.join(lost)} share the keys of an earlier one, and none has any"
        read.note("num_kv_shared_layers", f"{sum(layer.kv_shared for layer in layers)}: {text}")


def _ple(read: ConfigReader) -> PerLayerEmbedding | None:
    width = read.integer("hidden_size_per_layer_input", 256, least=0)
    return PerLayerEmbedding(read.integer("vocab_size_per_layer_input", 262_144), width) if width else None


def _experts(read: ConfigReader) -> Experts | None:
    if not read.flag("enable_moe_block", default=False):
        return None
    count = read.integer("num_experts", most=_MAX_EXPERTS)
    intermediate_size = read.integer("moe_intermediate_size")
    most = count if read.values.get("num_experts") == count else _MAX_EXPERTS
    return Experts(count, intermediate_size, top_k=read.integer("top_k_experts", most=most))


def _layers(read: ConfigReader, count: int, shared: int) -> tuple[Layer, ...]:
    kinds = read.strings("layer_types", count, (_SLIDING, _FULL))
    if kinds is None:
        kinds = [_SLIDING if (i + 1) % _DEFAULT_PATTERN else _FULL for i in range(count)]
    full = [kind == _FULL for kind in kinds[:-1]] + [True]  # transformers forces the last layer
    k_eq_v = read.flag("attention_k_eq_v", default=False)
    head_dim, kv_heads = read.integer("head_dim"), read.integer("num_key_value_heads")
    overrides = _overrides(read, full, k_eq_v=k_eq_v)
    width = read.integer("intermediate_size")
    wide = read.flag("use_double_wide_mlp", default=False)
    first_shared = count - shared
    return tuple(
        Layer(
            full=full[i],
            head_dim=overrides.get(i, {}).get("head_dim", head_dim),
            kv_heads=overrides.get(i, {}).get("num_key_value_heads", kv_heads),
            kv_shared=i >= first_shared,
            k_eq_v=k_eq_v and full[i],
            intermediate_size=width * (2 if wide and i >= first_shared else 1),
        )
        for i in range(count)
    )


def _overrides(read: ConfigReader, full: list[bool], *, k_eq_v: bool) -> Mapping[int, Mapping[str, int]]:
    """Return layer number -> values that differ in that layer, from either dialect."""
    if "per_layer_config" in read.values:
        return _saved_overrides(read, len(full))
    changed = {"head_dim": read.integer("global_head_dim", 512)}
    kv_heads = read.optional_integer("num_global_key_value_heads")
    if k_eq_v and kv_heads is not None:
        changed["num_key_value_heads"] = kv_heads
    return {i: changed for i, is_full in enumerate(full) if is_full}


def _saved_overrides(read: ConfigReader, count: int) -> Mapping[int, Mapping[str, int]]:
    """Return layer number -> overrides, from `{"05": {"head_dim": 512}}`: keys are zero-padded layer numbers."""
    section = read.section("per_layer_config")
    overrides: dict[int, Mapping[str, int]] = {}
    if section is None:
        return overrides
    for key in section.values:
        if not _is_layer(key, count):
            section.note(key, f"expected the number of a layer, 0 to {count - 1}")
        elif layer := section.section(key):
            overrides[int(key)] = {name: layer.integer(name) for name in _READ_OVERRIDES if name in layer.values}
            for name, value in layer.values.items():
                if name not in _READ_OVERRIDES and (name not in read.values or read.values[name] != value):
                    layer.note(name, "differs from layer to layer, which it does in no Gemma 4")
    return overrides


def _is_layer(key: str, count: int) -> bool:
    return key.isascii() and key.isdigit() and len(key) <= len(str(_MAX_LAYERS)) and int(key) < count

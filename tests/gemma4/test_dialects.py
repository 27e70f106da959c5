"""Names come back from every spelling of them, in any order; anything else is an error that names it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

import pytest
from helpers.grids import two_when_quick
from helpers.released_configs import FAMILIES, RELEASED, released, stored
from hypothesis import given
from hypothesis import strategies as st

from g4convert.errors import InputError, UnsupportedError
from g4convert.gemma4 import (
    Architecture,
    ExtraKind,
    Inventory,
    Role,
    droppable,
    expected_weights,
    fused_experts,
    quantized_format,
    resolve,
)
from g4convert.gemma4.dialects import BODIES, WRAPPERS, body_of, spell
from g4convert.tensors import DType, TensorInfo

Tensors = dict[str, TensorInfo]

ARCHITECTURES = {name: Architecture.from_config(config) for name, config in FAMILIES.items()}
STORED = {name: stored(architecture) for name, architecture in ARCHITECTURES.items()}
INVENTORIES = {name: resolve(STORED[name], architecture) for name, architecture in ARCHITECTURES.items()}

family = st.sampled_from(sorted(FAMILIES))


def refusal(tensors: Mapping[str, TensorInfo], architecture: Architecture) -> InputError:
    with pytest.raises(InputError) as caught:
        resolve(tensors, architecture)
    return caught.value


def renamed(tensors: Mapping[str, TensorInfo], rename: Callable[[str], str]) -> Tensors:
    return {rename(name): replace(info, name=rename(name)) for name, info in tensors.items()}


# ---- writers: canonical names in the spelling of somebody


def substitute(*rules: tuple[str, str]) -> Callable[[str], str]:
    """A writer from regex substitutions, in order."""

    def write(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return write


def sglang_audio(name: str) -> str:
    """The names of SGLang's audio tower, in the order its loader replaces them."""
    if "audio_tower." not in name:
        return name
    name = re.sub(r"subsample_conv_projection\.layer(\d)\.", r"subsample_conv_projection.conv_\1.", name)
    found = re.fullmatch(r"(.*audio_tower)\.layers\.(\d+)\.(.*)", name)
    if not found:
        return name
    tower, layer, rest = found.groups()
    for old, new in (
        ("self_attn.relative_k_proj.", "attention.attn.relative_position_embedding.pos_proj."),
        ("self_attn.post.", "attention.post."),
        ("self_attn.", "attention.attn."),
        ("norm_pre_attn.", "attention.pre_attn_norm."),
        ("norm_post_attn.", "attention.post_norm."),
        ("norm_out.", "norm."),
        ("feed_forward1.", "ffw_layer_start."),
        ("feed_forward2.", "ffw_layer_end."),
    ):
        rest = rest.replace(old, new)
    return f"{tower}.conformer.{layer}.{rest}"


SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "engines' MoE": substitute((r"\.(experts|router)\.", r".moe.\1."), (r"\.moe\.router\.per_e", ".moe.per_e")),
    "early MoE": substitute((r"(?<!\.moe)\.experts\.(\w+_proj)$", r".moe.\1")),
    "MLX experts": substitute((r"\.experts\.(down_proj)$", r".experts.switch_glu.\1.weight")),
    "experts with .weight": substitute((r"(experts\.\w+_proj)$", r"\1.weight")),
    "unified modules": substitute(
        (r"(embed_\w+)\.embedding_projection", r"\1.multimodal_embedder.embedding_projection"),
        (r"vision_embedder\.", "embed_vision."),
    ),
    "short embedders": substitute((r"\.embedding_projection\.", ".proj.")),
    "towers without wrapper": substitute((r"\.linear\.weight$", ".weight")),
    "SGLang towers": substitute(
        (r"(_tower.*\.self_attn)\.([qkv]_proj)\.(?:linear\.)?weight$", r"\1.qkv.\2.weight"),
        (r"(_tower.*\.self_attn)\.([qkv])_proj\.output_", r"\1.qkv.\2_output_"),
        (r"(_tower.*\.mlp)\.(gate|up)_proj\.(?:linear\.)?weight$", r"\1.gate_up.\2_proj.weight"),
        (r"(_tower.*\.mlp)\.(gate|up)_proj\.output_", r"\1.gate_up.\2_output_"),
    ),
    "SGLang audio": sglang_audio,
    "SGLang drafter": substitute((r"^masked_embedding\.", "")),
}
"""Spellings of the rest of a name; they do not disturb each other."""

PREFIXED: Mapping[str, Callable[[str], str]] = {
    "as stored": substitute(),
    "vLLM": substitute(
        (r"^lm_head", "language_model.lm_head"),
        (r"^model\.(?=\w+_tower|embed_(vision|audio)|vision_emb)", ""),
        (r"^model\.language_model\.", "language_model.model."),
    ),
    "inner model": substitute((r"^model\.", "")),
    "doubled": substitute((r"^model\.", "model.model.")),
    "nested": substitute((r"^model\.language_model\.", "model.language_model.model.")),
    "multimodal names": substitute((r"^model\.(?=layers|embed_tokens|norm|per_layer)", "model.language_model.")),
    "text-only names": substitute((r"^model\.language_model\.", "model.")),
}

WRAPPED: Mapping[str, Callable[[str], str]] = {
    "compiled": substitute((r"^", "_orig_mod.")),
    "layers compiled": substitute((r"(layers\.\d+)\.", r"\1._orig_mod.")),
    "peft": substitute((r"^", "base_model.model.")),
    "parallel": substitute((r"^", "module.")),
    "fabric": substitute((r"^", "_forward_module.")),
    "value head": substitute((r"^", "pretrained_model.")),
    "xla": substitute((r"(layers\.\d+)\.", r"\1._orig_module.")),
    "fsdp": substitute((r"(layers\.\d+)\.", r"\1._fsdp_wrapped_module.")),
    "checkpointed": substitute((r"(layers\.\d+)\.", r"\1._checkpoint_wrapped_module.")),
}


@st.composite
def writers(draw: st.DrawFn) -> Callable[[str], str]:
    """Any composition: some spellings, one prefix, some wrappers."""
    chosen = draw(st.sets(st.sampled_from(sorted(SPELLINGS))))
    steps = [SPELLINGS[name] for name in SPELLINGS if name in chosen]
    steps.append(PREFIXED[draw(st.sampled_from(sorted(PREFIXED)))])
    wrappers = draw(st.lists(st.sampled_from(sorted(WRAPPED)), max_size=3, unique=True))
    steps += [WRAPPED[name] for name in wrappers]

    def write(name: str) -> str:
        for step in steps:
            name = step(name)
        return name

    return write


def split(tensors: Mapping[str, TensorInfo], architecture: Architecture) -> Tensors:
    """Experts one by one."""
    fused = fused_experts(architecture)
    expected = expected_weights(architecture)
    single = {
        name: TensorInfo(name, tensors[whole].dtype, expected[name].shape)
        for whole, experts in fused.items()
        for name in experts.names
    }
    return {name: info for name, info in tensors.items() if name not in fused} | single


def facts(inventory: Inventory) -> list[tuple[object, ...]]:
    """An inventory without where the bytes lie."""
    return [(w.name, w.role, w.dtype, w.shape, w.linear, w.segment.end - w.segment.begin) for w in inventory.weights]


# ---- every spelling leads back


@given(family, writers(), st.booleans(), st.randoms())
def test_every_spelling_leads_back(
    name: str,
    write: Callable[[str], str],
    single: bool,  # noqa: FBT001 -- drawn by hypothesis
    random: Random,
) -> None:
    architecture = ARCHITECTURES[name]
    source = split(STORED[name], architecture) if single else STORED[name]
    tensors = list(renamed(source, write).items())
    random.shuffle(tensors)
    inventory = resolve(dict(tensors), architecture)
    assert facts(inventory) == facts(INVENTORIES[name])
    assert not inventory.extras
    canonical = resolve(source, architecture)
    assert [w.segment for w in inventory.weights] == [
        replace(w.segment, source=write(w.segment.source)) for w in canonical.weights
    ]
    changed = sum(write(n) != n for n in source)
    reported = [use for use in inventory.dialects if use.name != "single-experts"]
    assert bool(reported) == bool(changed)
    for use in reported:
        assert 0 < use.count <= changed
        source_name, canonical_name = use.example
        assert write(canonical_name) == source_name != canonical_name


@pytest.mark.parametrize("name", FAMILIES)
def test_canonical_names_are_no_dialect(name: str) -> None:
    assert INVENTORIES[name].dialects == ()
    assert INVENTORIES[name].extras == ()
    assert {w.name for w in INVENTORIES[name].weights} == set(expected_weights(ARCHITECTURES[name]))
    assert all(w.module == w.name.removesuffix(".weight") for w in INVENTORIES[name].weights if w.linear)


def test_fused_experts_are_cut_into_rows() -> None:
    architecture = ARCHITECTURES["26B-A4B"]
    weights = {w.name: w for w in INVENTORIES["26B-A4B"].weights}
    for whole, experts in fused_experts(architecture).items():
        parts = [weights[name] for name in experts.names]
        assert {w.segment.source for w in parts} == {whole}
        ends = [0, *(w.segment.end for w in parts)]
        assert [w.segment.begin for w in parts] == ends[:-1]
        assert ends[-1] == STORED["26B-A4B"][whole].nbytes
        assert all(w.segment.end - w.segment.begin == w.info.nbytes for w in parts)
    # expert 1: gate rows, then up rows, of [3, 2 * 704, 2816] bf16
    layer = "model.language_model.layers.0.experts"
    row = 2816 * 2
    assert weights[f"{layer}.1.gate_proj.weight"].segment.begin == 2 * 704 * row
    assert weights[f"{layer}.1.up_proj.weight"].segment.begin == 3 * 704 * row


@pytest.mark.parametrize("size", two_when_quick(RELEASED))
def test_no_two_names_share_a_body(size: str) -> None:
    for architecture in (base := Architecture.from_config(released(size)), base.text_only()):
        names = [*expected_weights(architecture), *fused_experts(architecture), *droppable(architecture)]
        bodies = {body_of(name) for name in names}
        assert len(bodies) == len(names)
        assert all(spell(name, bodies).rules == () for name in names)


def test_every_rule_is_written_by_a_test() -> None:
    fired: set[str] = set()
    for name, architecture in ARCHITECTURES.items():
        bodies = {body_of(known) for known in [*expected_weights(architecture), *fused_experts(architecture)]}
        for write in (*SPELLINGS.values(), *WRAPPED.values()):
            for canonical in STORED[name]:
                spelling = spell(write(canonical), bodies)
                assert spelling.body == body_of(canonical)
                fired |= {rule.pattern.pattern for rule in spelling.rules}
    missing = {rule.pattern.pattern for rule in (*BODIES, *WRAPPERS)} - fired
    assert all("pre_proj_norm" in pattern for pattern in missing)  # of a tensor that is dropped, below


def test_dialects_are_counted_with_an_example() -> None:
    tensors = renamed(STORED["12B"], lambda n: "_orig_mod." + SPELLINGS["unified modules"](n))
    uses = {use.name: use for use in resolve(tensors, ARCHITECTURES["12B"]).dialects}
    assert uses["compiled"].count == len(tensors)
    assert (uses["unified-modules"].count, uses["unified-audio"].count) == (10, 1)
    assert uses["unified-audio"].example == (
        "_orig_mod.model.embed_audio.multimodal_embedder.embedding_projection.weight",
        "model.embed_audio.embedding_projection.weight",
    )
    assert set(uses) == {"compiled", "unified-modules", "unified-audio"}


# ---- what may be there and is not needed


def test_keys_and_values_of_shared_layers_are_weights_of_their_own_role() -> None:
    shared = [w for w in INVENTORIES["E2B"].weights if w.role is Role.KV_SHARED]
    assert len(shared) == 2 * 3
    without = {n: i for n, i in STORED["E2B"].items() if n not in {w.name for w in shared}}
    assert facts(resolve(without, ARCHITECTURES["E2B"])) == [
        fact for fact in facts(INVENTORIES["E2B"]) if fact[1] is not Role.KV_SHARED
    ]


def test_what_is_dropped_says_what_must_hold() -> None:
    architecture = ARCHITECTURES["E2B"]
    prefix = "language_model.model."
    written = renamed(STORED["E2B"], PREFIXED["vLLM"])
    embedding = written[f"{prefix}embed_tokens.weight"]
    extras = {
        "language_model.lm_head.weight": embedding.shape,
        f"{prefix}layers.4.self_attn.v_norm.weight": (512,),
        "embed_vision.pre_proj_norm.weight": (768,),
        "vision_tower.encoder.layers.0.self_attn.v_norm.weight": (64,),
        f"{prefix}rotary_emb.full_attention_inv_freq": (256,),
        f"{prefix}embed_tokens.embed_scale": (),
        "audio_tower.rel_pos_enc.inv_timescales": (1, 1, 512),
    }
    written |= {name: TensorInfo(name, DType.BF16, shape) for name, shape in extras.items()}
    found = {extra.source: extra for extra in resolve(written, architecture).extras}
    assert set(found) == set(extras)
    assert found["language_model.lm_head.weight"].kind is ExtraKind.TIED
    assert found["language_model.lm_head.weight"].twin == f"{prefix}embed_tokens.weight"
    assert found["embed_vision.pre_proj_norm.weight"].kind is ExtraKind.ONES
    assert found["audio_tower.rel_pos_enc.inv_timescales"].kind is ExtraKind.DERIVED
    assert all(extra.reason for extra in found.values())


def test_a_norm_that_should_be_ones_must_have_its_shape() -> None:
    name = "model.embed_vision.embedding_pre_projection_norm.weight"
    error = refusal(STORED["E2B"] | {name: TensorInfo(name, DType.BF16, (5,))}, ARCHITECTURES["E2B"])
    assert error.offenders == (f"of the wrong shape: {name}: [5], expected [768]",)


# ---- anything else is an error that names it


def required(name: str) -> list[str]:
    """Stored names that must be there."""
    expected = expected_weights(ARCHITECTURES[name])
    return [n for n in STORED[name] if n not in expected or not expected[n].optional]


@given(family, writers(), st.data())
def test_all_faults_are_named_at_once(name: str, write: Callable[[str], str], data: st.DataObject) -> None:
    needed = required(name)
    gone = data.draw(st.sampled_from(needed))
    bent = data.draw(st.sampled_from([n for n in needed if n != gone]))
    tensors = renamed(STORED[name], write)
    del tensors[write(gone)]
    shape = tensors[write(bent)].shape
    tensors[write(bent)] = replace(tensors[write(bent)], shape=(*shape, 7))
    strange = f"{write(bent)}.strange"
    tensors[strange] = TensorInfo(strange, DType.BF16, (3,))
    offenders = refusal(tensors, ARCHITECTURES[name]).offenders
    assert len(offenders) == 3
    assert any(line.startswith("missing: ") and gone in line for line in offenders)
    assert any(line.startswith(f"unknown: {strange}") for line in offenders)
    assert any(line.startswith(f"of the wrong shape: {write(bent)}: {[*shape, 7]}") for line in offenders)


@given(family, writers(), st.data())
def test_two_sources_of_one_name_are_ambiguous(name: str, write: Callable[[str], str], data: st.DataObject) -> None:
    twice = data.draw(st.sampled_from(sorted(STORED[name])))
    if write(twice) == twice:
        return
    tensors = renamed(STORED[name], write) | {twice: STORED[name][twice]}
    (line,) = refusal(tensors, ARCHITECTURES[name]).offenders
    assert line.startswith("ambiguous: ")
    assert twice in line
    assert write(twice) in line


def test_an_expert_both_fused_and_alone_is_ambiguous() -> None:
    architecture = ARCHITECTURES["26B-A4B"]
    alone = "model.language_model.layers.3.experts.1.up_proj.weight"
    fused = "model.language_model.layers.3.experts.gate_up_proj"
    info = TensorInfo(alone, DType.BF16, expected_weights(architecture)[alone].shape)
    (line,) = refusal(STORED["26B-A4B"] | {alone: info}, architecture).offenders
    assert line == f"ambiguous: {fused} and {alone} both hold {alone}"


def test_a_missing_expert_is_named() -> None:
    architecture = ARCHITECTURES["26B-A4B"]
    tensors = split(STORED["26B-A4B"], architecture)
    gone = "model.language_model.layers.3.experts.1.up_proj.weight"
    del tensors[gone]
    assert refusal(tensors, architecture).offenders == (f"missing: {gone}",)


TEXT, VISION = "model.language_model.layers", "model.vision_tower.encoder.layers"


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        (f"{TEXT}.3.self_attn.q_porj.weight", f"{TEXT}.3.self_attn.q_proj.weight"),
        ("language_model.model.layers.99.mlp.up_proj.weight", f"{TEXT}.0.mlp.up_proj.weight"),
        ("vision_tower.encoder.layer.0.mlp.up_proj.linear.weight", f"{VISION}.0.mlp.up_proj.linear.weight"),
        (f"{TEXT}.0.self_attn.qkv_proj.weight", f"{TEXT}.0.self_attn.v_proj.weight"),
        ("optimizer.step", None),
    ],
)
def test_unknown_names_come_with_the_nearest(unknown: str, nearest: str | None) -> None:
    tensors = STORED["31B"] | {unknown: TensorInfo(unknown, DType.BF16, (1,))}
    (line,) = refusal(tensors, ARCHITECTURES["31B"]).offenders
    assert line == f"unknown: {unknown}" + (f"; nearest: {nearest}" if nearest else "")


def test_thousands_of_unknown_names_are_all_listed() -> None:
    names = [f"model.layers.{i}.strange_{i % 100}.{i}.weight" for i in range(5000)]
    tensors = STORED["31B"] | {name: TensorInfo(name, DType.BF16, (1,)) for name in names}
    offenders = refusal(tensors, ARCHITECTURES["31B"]).offenders
    assert {line.split(";")[0] for line in offenders} == {f"unknown: {name}" for name in names}


def test_config_and_weights_of_different_forms_get_a_hint() -> None:
    multimodal, text = ARCHITECTURES["31B"], ARCHITECTURES["31B"].text_only()
    assert "--layout text-only" in refusal(STORED["31B"], text).hint
    assert "--layout text-only" in refusal(stored(text), multimodal).hint


@pytest.mark.parametrize(
    "left",
    [
        "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight",
        "base_model.model.model.language_model.layers.0.self_attn.q_proj.base_layer.weight",
        "base_model.model.lm_head.modules_to_save.default.weight",
        "model.language_model.embed_tokens.token_adapter.trainable_tokens_delta",
        "model.language_model.layers.0.self_attn.q_proj.vera_lambda_b.default",
        "model.language_model.layers.0.self_attn.q_proj.oft_R.default.weight",
        "model.language_model.layers.0.mlp.down_proj.ia3_l.default",
    ],
)
def test_adapters_must_be_merged_first(left: str) -> None:
    error = refusal(STORED["31B"] | {left: TensorInfo(left, DType.BF16, (1, 1))}, ARCHITECTURES["31B"])
    assert "not merged" in error.message
    assert error.offenders == (left,)
    assert "merge" in error.hint


QUANTIZED = {
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_shape"),
    "GPTQ or AWQ": ("qweight", "qzeros", "scales", "g_idx"),
    "FP8 or INT8": ("weight_scale_inv",),
    "HQQ": ("W_q", "scale", "zero", "nbits", "group_size", "shape"),
    "quanto": ("weight._data", "weight._scale", "input_scale", "output_scale"),
    "torchao": ("_weight_qdata", "_weight_scale"),
    "torchao of 2024": ("weight:_data", "weight:scale"),
    "AQLM": ("codes", "codebooks", "scales"),
    "VPTQ": ("indices", "centroids.weight", "weight_scale", "weight_bias"),
    "ExLlama": ("q_weight", "q_scale", "q_scale_max", "q_groups"),
    "ExLlama of version 3": ("trellis", "suh", "svh"),
    "SpQR": ("dense_weights", "row_offsets"),
    "MXFP4": ("weight_blocks", "weight_scales"),
    "EETQ": ("weight_scales",),
    "ModelOpt AWQ": ("weight_scale", "pre_quant_scale"),
    "quantization-aware": ("weight_fake_quant.scale",),
    "ModelOpt NVFP4": ("weight_scale", "weight_scale_2", "input_scale"),
    "bitsandbytes": ("weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"),
    "MLX": ("scales", "biases"),
}


@pytest.mark.parametrize("form", QUANTIZED)
def test_quantized_sources_are_refused_by_format(form: str) -> None:
    module = "model.language_model.layers.0.mlp.up_proj"
    names = [f"{module}.{suffix}" for suffix in QUANTIZED[form]]
    tensors = {n: i for n, i in STORED["31B"].items() if n != f"{module}.weight"}
    tensors |= {name: TensorInfo(name, DType.I32, (1,)) for name in names}
    error = refusal(tensors, ARCHITECTURES["31B"])
    assert isinstance(error, UnsupportedError)
    assert error.message.startswith(f"already quantized: {form.partition(' of ')[0]}")
    assert module in error.message
    assert quantized_format(STORED["31B"]) is None


def test_eight_bit_weights_are_a_quantized_source() -> None:
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    tensors = STORED["31B"] | {name: replace(STORED["31B"][name], dtype=DType.F8_E4M3)}
    error = refusal(tensors, ARCHITECTURES["31B"])
    assert isinstance(error, UnsupportedError)
    assert "F8_E4M3" in error.message
    assert name in error.message


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32])
def test_float_sources_keep_their_dtype(dtype: DType) -> None:
    inventory = resolve(stored(ARCHITECTURES["assistant"], dtype), ARCHITECTURES["assistant"])
    assert {w.dtype for w in inventory.weights} == {dtype, DType.I64}


def test_every_tensor_may_have_a_dtype_of_its_own() -> None:
    linear = "model.language_model.layers.0.mlp.up_proj.weight"
    norm = "model.language_model.layers.0.input_layernorm.weight"
    tensors = {n: replace(i, dtype=DType.F32) if n in {linear, norm} else i for n, i in STORED["31B"].items()}
    inventory = resolve(tensors, ARCHITECTURES["31B"])
    assert {w.name for w in inventory.weights if w.dtype is DType.F32} == {linear, norm}


def test_weights_are_floats_and_indices_are_integers() -> None:
    norm, order = "model.norm.weight", "masked_embedding.token_ordering"
    tensors = STORED["assistant"] | {
        norm: TensorInfo(norm, DType.F64, STORED["assistant"][norm].shape),
        order: TensorInfo(order, DType.BF16, STORED["assistant"][order].shape),
    }
    assert set(refusal(tensors, ARCHITECTURES["assistant"]).offenders) == {
        f"of the wrong dtype: {norm}: F64, expected BF16, F16 or F32",
        f"of the wrong dtype: {order}: BF16, expected I64 or I32",
    }

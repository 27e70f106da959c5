"""Tensors that an architecture stores: against transformers' own classes, and against the published totals."""

import json
import subprocess
import sys
from collections import Counter
from math import prod
from typing import Any

import pytest
import torch
from conftest import Checkpoints
from helpers import ROOT
from helpers.released_configs import FAMILIES, RELEASED, Config, assistant, released, small
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.core_model_loading import revert_weight_conversion

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import InputError, UnsupportedError, UsageError
from g4convert.forward.models import model_class, quiet_transformers
from g4convert.gemma4 import Architecture, Role, expected_weights, fused_experts
from g4convert.tensors import DType

Shapes = dict[str, tuple[int, ...]]

BUFFERS = (Role.SCALAR, Role.CLIP)

# Parameters by role, from transformers' classes on the meta device; the totals are the published ones.
TOTALS = {"E2B": 5_104_297_504, "E4B": 7_941_100_832, "12B": 11_959_730_176} | {
    "26B-A4B": 25_805_933_872,
    "31B": 31_273_086_512,
}
PARTS = {
    ("E2B", Role.EMBEDDING): 402_653_184,
    ("E2B", Role.PLE_EMBEDDING): 2_348_810_240,
    ("E2B", Role.VISION_TOWER): 167_364_608,
    ("E2B", Role.AUDIO_TOWER): 304_824_608,
    ("E2B", Role.EMBEDDER): 1_179_648 + 2_359_296,
    ("E4B", Role.EMBEDDING): 671_088_640,
    ("E4B", Role.PLE_EMBEDDING): 2_818_572_288,
    ("E4B", Role.EMBEDDER): 1_966_080 + 3_932_160,
    ("12B", Role.EMBEDDER): 49_922_304 + 2_457_600,
    ("26B-A4B", Role.EXPERTS): 22_837_985_280,
    ("26B-A4B", Role.EMBEDDER): 3_244_032,
    ("31B", Role.VISION_TOWER): 569_548_080,
    ("31B", Role.EMBEDDER): 6_193_152,
}
TEXT_LINEARS = {"E2B": 1_876_819_968, "E4B": 3_972_792_320, "12B": 10_899_947_520} | {
    "26B-A4B": 1_656_258_560,
    "31B": 29_286_727_680,
}


def parameters(architecture: Architecture) -> dict[str, int]:
    """Numbers of elements of everything that is a parameter and has a use."""
    return {
        name: prod(expected.shape)
        for name, expected in expected_weights(architecture).items()
        if expected.role not in (*BUFFERS, Role.KV_SHARED) and not name.endswith(("std_bias", "std_scale"))
    }


def shapes_of(architecture: Architecture) -> tuple[Shapes, Shapes]:
    """Names and shapes as stored, experts fused: those that must be there, and those that may."""
    required = {name: fused.shape for name, fused in fused_experts(architecture).items()}
    optional: Shapes = {}
    for name, expected in expected_weights(architecture).items():
        if expected.role is not Role.EXPERTS:
            (optional if expected.optional else required)[name] = expected.shape
    return {name: tuple(shape) for name, shape in required.items()}, optional


def assert_same(found: Shapes, architecture: Architecture) -> None:
    """Check that all that transformers stores must be there, and that the rest is clip limits."""
    required, optional = shapes_of(architecture)
    clips = {name for name in optional if name.endswith(("_min", "_max"))}
    assert found == required | {name: optional[name] for name in clips}


# ---- the released sizes


@pytest.mark.parametrize("size", RELEASED)
def test_released_sizes_have_the_published_number_of_parameters(size: str) -> None:
    architecture = Architecture.from_config(released(size))
    expected = expected_weights(architecture)
    counts = parameters(architecture)
    assert sum(counts.values()) == TOTALS[size]
    by_role: Counter[Role] = Counter()
    for name, count in counts.items():
        by_role[expected[name].role] += count
    for (of, role), count in PARTS.items():
        assert of != size or by_role[role] == count, role
    linears = (Role.ATTENTION, Role.MLP, Role.ROUTER, Role.PLE_PROJECTION)
    assert (
        sum(n for name, n in counts.items() if expected[name].linear and expected[name].role in linears)
        == (TEXT_LINEARS[size])
    )


@pytest.mark.parametrize(
    ("size", "family"),
    [
        ("E2B", "Gemma 4 dense with per-layer embeddings (E2B)"),
        ("12B", "Gemma 4 unified (12B)"),
        ("26B-A4B", "Gemma 4 MoE (26B-A4B)"),
        ("31B", "Gemma 4 dense (31B)"),
    ],
)
def test_family_is_what_people_say(size: str, family: str) -> None:
    architecture = Architecture.from_config(released(size))
    assert architecture.family == family
    alone = family.replace("unified", "dense")  # what sets it apart is in its embedders
    assert architecture.text_only().family == alone.replace(" (", ", text-only (")
    assert Architecture.from_config(small(size)).family == family.partition(" (")[0]
    assert Architecture.from_config(assistant(size)).family.endswith(" MTP assistant")


def test_released_structure() -> None:
    e2b = Architecture.from_config(released("E2B"))
    assert [layer.kv_shared for layer in e2b.text.layers] == [False] * 15 + [True] * 20
    assert {layer.intermediate_size for layer in e2b.text.layers[15:]} == {12288}
    assert e2b.has_vision
    assert e2b.has_audio
    moe = Architecture.from_config(released("26B-A4B"))
    assert {(layer.head_dim, layer.kv_heads, layer.k_eq_v) for layer in moe.text.layers if layer.full} == {
        (512, 2, True)
    }
    assert {(layer.head_dim, layer.kv_heads, layer.k_eq_v) for layer in moe.text.layers if not layer.full} == {
        (256, 8, False)
    }
    assert moe.dtype is DType.BF16
    assert not moe.has_audio
    assert moe.text_prefix == "model.language_model."


# ---- transformers as the oracle


def stored_by_transformers(config: Config) -> tuple[Shapes, set[str], Config]:
    """Return names and shapes that `save_pretrained` would write, the weights of Linears, and the config."""
    with quiet_transformers(), torch.device("meta"):
        values = dict(config)
        loaded = AutoConfig.for_model(values.pop("model_type"), **values)
        model = model_class(loaded.model_type)(loaded)
        tensors = {k: v for k, v in model.state_dict().items() if k not in model.all_tied_weights_keys}
        linears = {f"{k}.weight" for k, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        on_disk = revert_weight_conversion(model, tensors)
        linears_on_disk = revert_weight_conversion(model, {k: v for k, v in tensors.items() if k in linears})
    return {k: tuple(v.shape) for k, v in on_disk.items()}, set(linears_on_disk), loaded.to_dict()


def check_against_transformers(config: Config) -> None:
    found, linears, saved = stored_by_transformers(config)
    architecture = Architecture.from_config(config)
    assert_same(found, architecture)
    flagged = {name for name, expected in expected_weights(architecture).items() if expected.linear}
    dead = {name for name in flagged if ".experts." in name} | set(shapes_of(architecture)[1])
    assert flagged - dead == linears
    # the form that transformers saves says the same, layer by layer
    assert Architecture.from_config(json.loads(json.dumps(saved))) == architecture


@pytest.mark.parametrize(
    "family", ["moe", "dense", "unified", "e2b", "text", "unified_text", "assistant", "unified_assistant"]
)
def test_saved_checkpoints_have_exactly_these_tensors(family: str, checkpoints: Checkpoints) -> None:
    checkpoint = Checkpoint.open(checkpoints(family))
    found = {name: stored.info.shape for name, stored in checkpoint.tensors.items()}
    assert_same(found, Architecture.from_config(checkpoint.config))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_against_its_class(name: str) -> None:
    check_against_transformers(FAMILIES[name])


FLAG = st.booleans()
LAYER_KIND = st.sampled_from(["sliding_attention", "full_attention"])


@st.composite
def text_configs(draw: st.DrawFn, *, unified: bool) -> Config:
    """Any small decoder, defaults left out at random."""
    count = draw(st.integers(1, 7))
    heads = draw(st.sampled_from([2, 4]))
    config: Config = {
        "model_type": "gemma4_unified_text" if unified else "gemma4_text",
        "vocab_size": 48,
        "hidden_size": draw(st.sampled_from([32, 48])),
        "intermediate_size": 24,
        "num_hidden_layers": count,
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([1, heads])),
        "head_dim": 8,
    }
    optional: dict[str, st.SearchStrategy[Any]] = {
        "global_head_dim": st.sampled_from([8, 16]),
        "num_global_key_value_heads": st.sampled_from([None, 1, 2]),
        "attention_k_eq_v": FLAG,
        "attention_bias": FLAG,
        "use_double_wide_mlp": FLAG,
        "num_kv_shared_layers": st.integers(0, count - 1),
        "layer_types": st.lists(LAYER_KIND, min_size=count, max_size=count),
        "tie_word_embeddings": FLAG,
    }
    if not unified:
        optional |= {
            "hidden_size_per_layer_input": st.sampled_from([0, 8]),
            "vocab_size_per_layer_input": st.sampled_from([32, 64]),
        }
        if draw(FLAG):
            config |= {"enable_moe_block": True, "num_experts": 3, "top_k_experts": 2}
            config["moe_intermediate_size"] = 16
    chosen: Config = draw(st.fixed_dictionaries({}, optional=optional))
    return config | chosen


TOWER = st.fixed_dictionaries(
    {"num_hidden_layers": st.integers(1, 2), "hidden_size": st.just(32), "head_dim": st.just(16)},
    optional={
        "intermediate_size": st.just(40),
        "num_attention_heads": st.just(4),
        "num_key_value_heads": st.sampled_from([2, 4]),
        "patch_size": st.just(4),
        "position_embedding_size": st.just(64),
        "use_clipped_linears": FLAG,
        "standardize": FLAG,
    },
)
CONFORMER = st.fixed_dictionaries(
    {"num_hidden_layers": st.integers(1, 2), "hidden_size": st.just(32), "num_attention_heads": st.just(4)},
    optional={
        "subsampling_conv_channels": st.just([16, 8]),
        "conv_kernel_size": st.just(3),
        "output_proj_dims": st.just(24),
        "use_clipped_linears": FLAG,
    },
)
PATCHES = st.fixed_dictionaries(
    {"mm_embed_dim": st.just(32)},
    optional={
        "patch_size": st.just(4),
        "pooling_kernel_size": st.just(2),
        "mm_posemb_size": st.just(16),
        "output_proj_dims": st.just(32),
    },
)
FRAMES = st.fixed_dictionaries({}, optional={"audio_embed_dim": st.just(64)})


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any small text-only or multimodal config."""
    unified = draw(FLAG)
    text = draw(text_configs(unified=unified))
    if draw(FLAG):
        return text
    vision, audio = (PATCHES, FRAMES) if unified else (TOWER, CONFORMER)
    return {
        "model_type": "gemma4_unified" if unified else "gemma4",
        "text_config": text,
        "vision_config": draw(st.none() | vision),
        "audio_config": draw(st.none() | audio),
        "tie_word_embeddings": draw(FLAG),
    }


def is_run(config: Config) -> bool:
    """Return whether each layer that shares keys has some to share."""
    try:
        Architecture.from_config(config)
    except InputError as error:
        return not any("and none has any" in line for line in error.offenders)
    return True


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs().filter(is_run))
@example(
    {
        **small("12B")["text_config"],
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "num_kv_shared_layers": 1,
        "use_double_wide_mlp": True,
    }
)
def test_any_config_against_its_class(config: Config) -> None:
    check_against_transformers(config)


@pytest.mark.parametrize(("shared", "kinds"), [(2, "sliding_attention and of full_attention"), (1, "full_attention")])
def test_layers_share_the_keys_of_their_kind(shared: int, kinds: str) -> None:
    """Transformers 5.23 refuses the others at once, 5.22 when it runs them."""
    config = {**small("12B")["text_config"], "num_hidden_layers": 2, "num_kv_shared_layers": shared}
    config["layer_types"] = ["sliding_attention", "full_attention"]
    assert refusal(config).offenders == (
        f"num_kv_shared_layers: {shared}: layers of {kinds} share the keys of an earlier one, and none has any",
    )
    three = {**config, "num_hidden_layers": 3, "layer_types": ["full_attention", *config["layer_types"]]}
    Architecture.from_config({**three, "num_kv_shared_layers": 1})


# ---- configs that are wrong


def refusal(config: Config) -> InputError:
    with pytest.raises(InputError) as caught:
        Architecture.from_config(config)
    return caught.value


@pytest.mark.parametrize(
    "model_type",
    ["diffusion_gemma", "diffusion_gemma_text", "embedding_gemma2", "gemma3", "llama", "gemma4_vision"],
)
def test_other_model_types_are_refused_by_name(model_type: str) -> None:
    error = refusal(released("31B") | {"model_type": model_type})
    assert isinstance(error, UnsupportedError)
    assert repr(model_type) in error.message
    assert "gemma4_unified" in error.hint


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 4}])
def test_a_config_without_model_type(config: Config) -> None:
    assert "model_type" in refusal(config).message


def test_a_decoder_of_another_kind_is_refused() -> None:
    config = released("31B")
    config["text_config"]["model_type"] = "gemma3_text"
    error = refusal(config)
    assert isinstance(error, UnsupportedError)
    assert "text_config.model_type 'gemma3_text'" in error.message


def test_all_wrong_values_are_named_at_once() -> None:
    config = released("26B-A4B")
    del config["text_config"]["hidden_size"]
    config["text_config"] |= {
        "num_experts": None,
        "head_dim": "256",
        "vocab_size": True,
        "num_attention_heads": 16.0,
        "num_key_value_heads": 0,
        "attention_k_eq_v": "yes",
        "layer_types": ["sliding_attention"],
    }
    config["vision_config"] |= {"hidden_size": -1, "standardize": 1}
    config["dtype"] = 16
    named = {line.partition(":")[0] for line in refusal(config).offenders}
    assert named == {
        "dtype",
        *(f"text_config.{key}" for key in ("hidden_size", "num_experts", "head_dim", "vocab_size")),
        *(f"text_config.{key}" for key in ("num_attention_heads", "num_key_value_heads", "attention_k_eq_v")),
        "text_config.layer_types",
        "vision_config.hidden_size",
        "vision_config.standardize",
    }


@pytest.mark.parametrize("text", [None, [], "gemma4_text", {}])
def test_a_config_without_a_decoder(text: object) -> None:
    assert any("text_config" in line for line in refusal({"model_type": "gemma4", "text_config": text}).offenders)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"60": {"head_dim": 512}}, "per_layer_config.60"),
        ({"-1": {"head_dim": 512}}, "per_layer_config.-1"),
        ({"five": {"head_dim": 512}}, "per_layer_config.five"),
        ({"5": {"head_dim": None}}, "per_layer_config.5.head_dim"),
        ({"5": 512}, "per_layer_config.5"),
        ({"5": {"intermediate_size": 8}}, "per_layer_config.5.intermediate_size"),
        ({"5": {"skip": ["mlp"]}}, "per_layer_config.5.skip"),
        ([], "per_layer_config"),
    ],
)
def test_overrides_that_no_gemma4_has(overrides: object, named: str) -> None:
    config = released("31B")
    config["text_config"]["per_layer_config"] = overrides
    assert [line.partition(":")[0] for line in refusal(config).offenders] == [f"text_config.{named}"]


def test_sizes_that_would_fill_memory_are_refused() -> None:
    config = released("26B-A4B")
    config["text_config"] |= {"num_hidden_layers": 10**9, "num_experts": 10**9, "layer_types": None}
    assert len(refusal(config).offenders) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"hidden_size_per_layer_input": 256},
            "hidden_size_per_layer_input",
        ),
        ({"num_kv_shared_layers": 1}, "num_kv_shared_layers"),
        (
            {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 1, "moe_intermediate_size": 8},
            "enable_moe",
        ),
    ],
)
def test_an_assistant_is_plain_and_shares_everything(change: Config, named: str) -> None:
    config = assistant("31B")
    config["text_config"] |= change
    (line,) = refusal(config).offenders
    assert line.startswith(f"text_config.{named}")


# ---- text-only


@pytest.mark.parametrize("size", RELEASED)
def test_the_text_only_form_has_the_decoder_under_its_own_names(size: str) -> None:
    architecture = Architecture.from_config(small(size) | {"tie_word_embeddings": False})
    text = architecture.text_only()
    renamed = {
        new: expected
        for name, expected in expected_weights(architecture).items()
        if (new := architecture.text_name(name)) is not None
    }
    assert renamed == expected_weights(text)
    assert text.text_only() == text
    assert all(text.text_name(name) == name for name in renamed)
    assert architecture.text_name("model.embed_vision.embedding_projection.weight") is None


def test_an_assistant_has_no_text_only_form() -> None:
    with pytest.raises(UsageError, match="drafter"):
        Architecture.from_config(assistant("12B")).text_only()


def test_names_are_known_without_torch() -> None:
    program = "import sys, g4convert.gemma4; print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert found.stdout.strip() == "[]"

"""Sources as people really have them, converted: the output is that of the clean source, and every level says so."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Checkpoints
from helpers.clean import CLASSES, assert_verified, same
from helpers.conversions import quantized, same_bits, stored
from helpers.dialect_sources import mlx as mlx_of
from helpers.grids import one_in
from helpers.prompts import logits, prompts
from helpers.rewriting import Tensors, rewritten

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import GateError, InputError
from g4convert.forward.load import load
from g4convert.gemma4 import Architecture, resolve
from g4convert.inspection import describe
from g4convert.planning.recipe_files import load as load_recipe
from g4convert.planning.steps import make_plan
from g4convert.report import Severity
from g4convert.request import Level, Request
from g4convert.verification.run import verify


def assert_same_tensors(one: Path, other: Path) -> None:
    mine, others = stored(one), stored(other)
    assert mine.keys() == others.keys()
    assert all(same_bits(mine[name], others[name]) for name in mine)


# ---- MLX: names, experts and convolutions


@pytest.mark.parametrize("family", one_in(2, ["moe", "e2b", "dense", "unified", "text"]))
def test_a_directory_of_mlx_is_read_bit_for_bit(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints(family)
    mlx = rewritten(source, tmp_path / "mlx", mlx_of, metadata="mlx")
    quantized(source, tmp_path / "clean")
    quantized(mlx, tmp_path / "out")
    assert_same_tensors(tmp_path / "out", tmp_path / "clean")
    assert_verified(tmp_path / "out", mlx)


def test_kept_experts_of_mlx_are_fused_again(moe: Path, tmp_path: Path) -> None:
    mlx = rewritten(moe, tmp_path / "mlx", mlx_of)
    quantized(mlx, tmp_path / "out", pack=["mlp"])
    mine, original = stored(tmp_path / "out"), stored(moe)
    experts = [name for name in original if ".experts." in name]
    assert all(same_bits(mine[name], original[name]) for name in experts)
    assert_verified(tmp_path / "out", mlx)


@pytest.mark.parametrize("family", one_in(2, ["e2b", "moe"]))
def test_a_directory_of_mlx_computes_the_same(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    original = load(checkpoints(family))
    loaded = load(rewritten(checkpoints(family), tmp_path / "mlx", mlx_of))
    for prompt in prompts(original):
        assert torch.equal(logits(original, prompt), logits(loaded, prompt))


# ---- single values


def reshaped(tensors: Tensors) -> Tensors:
    """Scales of layers as values without a dimension, and limits of towers with one."""
    single = (name for name, tensor in tensors.items() if tensor.numel() == 1)
    return {**tensors, **{name: tensors[name].reshape([] if tensors[name].dim() else [1]) for name in single}}


@pytest.mark.parametrize("family", one_in(2, ["e2b", "dense"]))
def test_single_values_are_written_in_the_shape_that_all_engines_load(
    family: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source = rewritten(checkpoints(family), tmp_path / "source", reshaped)
    quantized(source, tmp_path / "out", method="minmax")
    quantized(checkpoints(family), tmp_path / "clean", method="minmax")
    assert_same_tensors(tmp_path / "out", tmp_path / "clean")
    assert_verified(tmp_path / "out", source)
    original, loaded = load(checkpoints(family)), load(source)
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in loaded.state_dict().items())


# ---- biases that no Linear has


BIASED = ("self_attn.q_proj", "mlp.down_proj")


def with_biases(value: float) -> Callable[[Tensors], Tensors]:
    """Biases beside two Linears of each layer, as some converters write them."""

    def change(tensors: Tensors) -> Tensors:
        linears = [name for name in tensors if name.endswith(tuple(f"{of}.weight" for of in BIASED))]
        return {**tensors, **{f"{n[:-7]}.bias": tensors[n].new_full(tensors[n].shape[:1], value) for n in linears}}

    return change


@pytest.mark.parametrize("family", one_in(2, ["dense", "text", "moe"]))
def test_biases_of_zeros_are_left_out(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = rewritten(checkpoints(family), tmp_path / "source", with_biases(0.0))
    quantized(source, tmp_path / "out", method="minmax")
    quantized(checkpoints(family), tmp_path / "clean", method="minmax")
    assert_same_tensors(tmp_path / "out", tmp_path / "clean")
    assert_verified(tmp_path / "out", source)
    assert load(source).lm_head is not None


def test_biases_of_other_values_are_refused(dense: Path, tmp_path: Path) -> None:
    source = rewritten(dense, tmp_path / "source", with_biases(0.5))
    with pytest.raises(InputError, match="may only be left out with a certain value") as caught:
        quantized(source, tmp_path / "out")
    assert "q_proj.bias: has values other than 0, but this Linear has no bias" in caught.value.offenders[0]
    assert "else delete them" in caught.value.hint
    assert not (tmp_path / "out").exists()
    with pytest.raises(GateError, match="has values other than 0"):
        load(source)


def with_norms(tensors: Tensors) -> Tensors:
    """Weights of the norms of values, which have none in Gemma 4."""
    keys = [name for name in tensors if re.search(r"language_model.*k_norm.weight$", name)]
    return {**tensors, **{name.replace("k_norm", "v_norm"): tensors[name] * 3 for name in keys}}


@pytest.mark.parametrize(("part", "change"), [(".bias", with_biases(0.5)), ("v_norm", with_norms)])
def test_what_no_gemma_computes_with_is_deleted(
    part: str, change: Callable[[Tensors], Tensors], dense: Path, tmp_path: Path
) -> None:
    """The hint names that; the output is that of the model without them, as the answers are."""
    source = rewritten(dense, tmp_path / "source", change)
    with pytest.raises(InputError) as caught:
        quantized(source, tmp_path / "out")
    assert "delete them" in caught.value.hint
    mended = rewritten(source, tmp_path / "mended", lambda t: {n: w for n, w in t.items() if part not in n})
    quantized(mended, tmp_path / "out", method="minmax")
    quantized(dense, tmp_path / "clean", method="minmax")
    assert_same_tensors(tmp_path / "out", tmp_path / "clean")


def test_biases_of_attention_need_a_flag(dense: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        linears = [name for name in tensors if re.search(r"language_model.*[qkvo]_proj.weight$", name)]
        return {**tensors, **{f"{n[:-7]}.bias": tensors[n].new_full(tensors[n].shape[:1], 0.5) for n in linears}}

    config = json.loads((dense / "config.json").read_text())
    source = rewritten(dense, tmp_path / "source", change)
    with pytest.raises(InputError) as caught:
        quantized(source, tmp_path / "out")
    assert "set attention_bias to true in its config" in caught.value.hint
    flagged = rewritten(
        source, tmp_path / "flagged", same, text_config=config["text_config"] | {"attention_bias": True}
    )
    quantized(flagged, tmp_path / "out")
    assert any(name.endswith("o_proj.bias") for name in stored(tmp_path / "out"))
    assert_verified(tmp_path / "out", flagged)


# ---- values that no model computes with, and values of new blocks


@pytest.mark.parametrize(
    "end", ["language_model.norm.weight", "embed_tokens.weight", "layers.0.self_attn.q_norm.weight"]
)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_kept_values_that_are_not_finite_are_said_to_be(end: str, value: float, dense: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        (name,) = (name for name in tensors if name.endswith(end) and "vision" not in name)
        changed = tensors[name].clone()
        changed.view(-1)[1] = value
        return tensors | {name: changed}

    source = rewritten(dense, tmp_path / "source", change)
    quantized(source, tmp_path / "out", method="minmax")
    (found,) = verify(Request(tmp_path / "out", source, Level.WEIGHTS)).of(Severity.FAIL)
    assert (found.code, found.subject.endswith(end)) == ("weights.kept", True)
    assert "1 of" in found.found
    assert "NaN or infinite, in the source, too" in found.found


def test_weights_beyond_float32_are_said_to_be(dense: Path, tmp_path: Path) -> None:
    end = "layers.1.self_attn.q_proj.weight"
    scaled = rewritten(
        dense,
        tmp_path / "source",
        lambda tensors: {n: t * 1e30 if n.endswith(end) and "language" in n else t for n, t in tensors.items()},
    )
    quantized(scaled, tmp_path / "out", method="minmax")
    (found,) = verify(Request(tmp_path / "out", scaled, Level.WEIGHTS)).of(Severity.FAIL)
    assert found.code == "weights.error"
    assert "beyond 1e18, so that their squares exceed float32" in found.found
    assert "its training diverged" in found.remedy


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_new_blocks_begin_with_zeros(zero: float, dense: Path, tmp_path: Path) -> None:
    """As LLaMA Pro adds them: what a block adds to its input is 0 before it is trained."""

    def change(tensors: Tensors) -> Tensors:
        ends = ("layers.1.self_attn.o_proj.weight", "layers.1.mlp.down_proj.weight")
        return {n: t * zero if n.endswith(ends) and "language" in n else t for n, t in tensors.items()}

    source = rewritten(dense, tmp_path / "source", change)
    quantized(source, tmp_path / "out")
    assert_verified(tmp_path / "out", source)


# ---- dtypes


@pytest.mark.parametrize("family", one_in(2, ["dense", "moe"]))
def test_trained_layers_may_be_fp32(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints(family)

    def some_in_fp32(tensors: Tensors) -> Tensors:
        return {name: t.float() if "layers.1." in name else t for name, t in tensors.items()}

    mixed = rewritten(source, tmp_path / "mixed", some_in_fp32)
    quantized(mixed, tmp_path / "out", method="minmax")
    quantized(source, tmp_path / "clean", method="minmax")
    mine, clean = stored(tmp_path / "out"), stored(tmp_path / "clean")
    packed = [name for name in clean if "weight_" in name.rpartition(".")[2]]
    assert all(same_bits(mine[name], clean[name]) for name in packed)
    assert mine["model.language_model.layers.1.input_layernorm.weight"].dtype is torch.float32
    assert_verified(tmp_path / "out", mixed)


# ---- the embedding by the name of the head


def by_its_head(tensors: Tensors) -> Tensors:
    """As safetensors' `save_model` leaves tensors that share their memory: the first name in the alphabet."""
    return {"lm_head.weight" if n.endswith("embed_tokens.weight") else n: t for n, t in tensors.items()}


@pytest.mark.parametrize(("family", "layout"), [("dense", "full"), ("moe", "text-only"), ("unified", "full")])
def test_an_embedding_that_is_stored_as_its_head(
    family: str, layout: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source = rewritten(checkpoints(family), tmp_path / "source", by_its_head)
    quantized(source, tmp_path / "out", method="minmax", layout=layout)
    quantized(checkpoints(family), tmp_path / "clean", method="minmax", layout=layout)
    assert_same_tensors(tmp_path / "out", tmp_path / "clean")
    assert_verified(tmp_path / "out", source)
    assert not describe(Checkpoint.open(source)).missing
    original, loaded = load(checkpoints(family)), load(source)
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("family", ["text", "unified_text"])
def test_a_head_of_its_own_is_no_embedding(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = rewritten(checkpoints(family), tmp_path / "source", by_its_head, tie_word_embeddings=False)
    with pytest.raises(InputError, match="1 missing"):
        make_plan(Checkpoint.open(source), load_recipe().recipe)


def test_an_output_has_the_embedding(dense: Path, tmp_path: Path) -> None:
    """Only transformers takes the head for it: vLLM stops, and SGLang serves what memory holds."""
    quantized(dense, tmp_path / "clean", method="minmax")
    out = rewritten(tmp_path / "clean", tmp_path / "out", by_its_head)
    assert {one.code for one in verify(Request(out, dense, Level.STATIC)).of(Severity.FAIL)} == {"static.tensors"}


# ---- pruned and grown


def fewer_experts(tensors: Tensors) -> Tensors:
    """The first six experts, as REAP leaves them, and the decoder alone."""
    ends = ("experts.gate_up_proj", "experts.down_proj", "router.proj.weight", "router.per_expert_scale")
    return {name: tensor[:6] if name.endswith(ends) else tensor for name, tensor in decoder_of(tensors).items()}


def test_a_pruned_mixture_of_experts(moe: Path, tmp_path: Path) -> None:
    text = json.loads((moe / "config.json").read_text())["text_config"]
    pruned = rewritten(moe, tmp_path / "pruned", fewer_experts)
    config = text | {"architectures": [CLASSES["text"]], "num_experts": 6, "norm_topk_prob": True}
    (pruned / "config.json").write_text(json.dumps(config))
    quantized(pruned, tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert (written["num_experts"], written["norm_topk_prob"]) == (6, True)
    assert_verified(tmp_path / "out", pruned)


@pytest.mark.parametrize("family", ["dense", "e2b"])
def test_a_vocabulary_that_has_grown(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints(family)
    text = json.loads((source / "config.json").read_text())["text_config"]

    def grown(tensors: Tensors) -> Tensors:
        return {n: torch.cat([t, t[:64]]) if n.endswith("embed_tokens.weight") else t for n, t in tensors.items()}

    larger = rewritten(source, tmp_path / "larger", grown, text_config=text | {"vocab_size": text["vocab_size"] + 64})
    quantized(larger, tmp_path / "out")
    assert_verified(tmp_path / "out", larger)


# ---- parts that are not there


def decoder_of(tensors: Tensors) -> Tensors:
    return {n.replace("language_model.", ""): t for n, t in tensors.items() if "language_model." in n}


@pytest.mark.parametrize("family", one_in(2, ["moe", "dense", "unified", "e2b"]))
def test_decoder_weights_under_a_multimodal_config(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints(family)
    decoder = rewritten(source, tmp_path / "decoder", decoder_of)
    quantized(decoder, tmp_path / "out", layout="text-only")
    quantized(source, tmp_path / "clean", layout="text-only")
    assert_same_tensors(tmp_path / "out", tmp_path / "clean")
    assert (tmp_path / "out/config.json").read_bytes() == (tmp_path / "clean/config.json").read_bytes()
    assert_verified(tmp_path / "out", decoder)


@pytest.mark.parametrize("family", one_in(2, ["dense", "moe", "e2b", "unified"]))
def test_the_decoder_alone_computes_what_it_does_in_the_whole(
    family: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    whole = load(checkpoints(family))
    alone = load(checkpoints(family), decoder_only=True)
    stripped = load(rewritten(checkpoints(family), tmp_path / "decoder", decoder_of), decoder_only=True)
    prompt = next(
        prompt for prompt in prompts(whole) if not {"pixel_values", "input_features"} & prompt.arguments.keys()
    )
    assert torch.equal(logits(whole, prompt), logits(alone, prompt))
    assert torch.equal(logits(alone, prompt), logits(stripped, prompt))


def test_a_declared_modality_is_gone_in_the_output_too(e2b: Path, tmp_path: Path) -> None:
    stripped = rewritten(
        e2b, tmp_path / "source", lambda t: {n: v for n, v in t.items() if "audio" not in n}, audio_config=None
    )
    quantized(stripped, tmp_path / "out")
    assert_verified(tmp_path / "out", stripped)
    load(tmp_path / "out")


LIMITS = ("input_min", "input_max", "output_min", "output_max")


def test_towers_without_limits_are_loaded_as_transformers_loads_them(e2b: Path, tmp_path: Path) -> None:
    source = rewritten(e2b, tmp_path / "source", lambda t: {n: v for n, v in t.items() if not n.endswith(LIMITS)})
    quantized(source, tmp_path / "out")
    assert_verified(tmp_path / "out", source)
    for directory in (source, tmp_path / "out"):
        limits = {n: b for n, b in load(directory, packed=False).named_buffers() if n.endswith(LIMITS)}
        assert limits
        assert all(b.item() == (-torch.inf if n.endswith("min") else torch.inf) for n, b in limits.items())
    missing = resolve(
        {name: found.info for name, found in Checkpoint.open(source).tensors.items()},
        Architecture.from_config(Checkpoint.open(source).config),
    ).missing_limits
    assert missing == len(limits)


def test_lost_limits_are_still_a_fault_of_the_output(e2b: Path, tmp_path: Path) -> None:
    quantized(e2b, tmp_path / "out")
    lost = rewritten(
        tmp_path / "out", tmp_path / "lost", lambda t: {n: v for n, v in t.items() if not n.endswith(LIMITS)}
    )
    assert verify(Request(lost, e2b, Level.STATIC)).of(Severity.FAIL)

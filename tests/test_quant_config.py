"""`targets` and `ignore`: every engine builds exactly those modules packed that are packed.

Oracles: compressed-tensors' parser and matcher on the real modules of transformers, and the names that vLLM 0.33
and SGLang 0.5.23 match under, written out here by hand from their model files.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import is_match, match_name
from conftest import Checkpoints
from headers import opened, planned
from released_configs import FAMILIES, RELEASED, released
from transformers import AutoConfig

from g4convert import quant_config
from g4convert.checkpoint import Checkpoint
from g4convert.errors import GateError, UsageError
from g4convert.fixtures import Family
from g4convert.forward.models import Model, model_class
from g4convert.gemma4 import Architecture
from g4convert.plan import Plan, make_plan
from g4convert.quant_config import is_ignored, quantization_config, spellings
from g4convert.recipe import load, shipped

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
"""`packed_modules_mapping` of both engines."""

RECIPES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    **{name: (name, {}) for name in shipped()},
    "with PLE": ("w4a16-g32", {"pack": ["attention", "mlp", "experts", "ple_projection"]}),
    "mlp alone": ("w4a16-g32", {"pack": ["mlp"]}),
    "attention alone": ("w4a16-g32", {"pack": ["attention"]}),
    "tower too": ("w4a16-g32", {"pack": ["attention", "mlp", "experts", "vision_tower"], "group_size": 16}),
    "tower alone": ("w4a16-g32", {"pack": ["vision_tower"], "group_size": 16}),
    "tower and MLP": ("w4a16-g32", {"pack": ["mlp", "vision_tower"], "group_size": 16}),
    "K/V kept": ("w4a16-g32", {"kv_shared": "keep"}),
    "K/V kept, not packed": ("w4a16-g32", {"kv_shared": "keep", "pack": ["mlp"]}),
    "channel": ("w8a16-g32", {"group_size": "channel"}),
}


@cache
def skeleton(directory: str) -> tuple[Model, Checkpoint]:
    """The transformers model of a fixture, without memory, and its checkpoint."""
    config = AutoConfig.from_pretrained(directory)
    if "quant_method" not in (getattr(config, "quantization_config", None) or {"quant_method": ""}):
        del config.quantization_config
    with torch.device("meta"):
        return model_class(config.model_type)(config), Checkpoint.open(directory)


def plans(checkpoint: Checkpoint) -> Iterator[tuple[str, Plan]]:
    """The plan of a checkpoint under each recipe that has something for it."""
    count = 0
    for recipe, (name, options) in RECIPES.items():
        with suppress(UsageError):
            yield recipe, make_plan(checkpoint, load(name, {"assistant": "pack", **options}).recipe)
            count += 1
    assert count >= 8


def packed_modules(plan: Plan) -> set[str]:
    return {step.packed.name.removesuffix(".weight_packed") for step in plan.quantized}


def linears(model: Model) -> Iterable[tuple[str, torch.nn.Linear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))


@pytest.mark.parametrize("family", Family)
def test_transformers_builds_what_is_packed(family: Family, checkpoints: Checkpoints) -> None:
    whole, checkpoint = skeleton(str(checkpoints(family)))
    for recipe, plan in plans(checkpoint):
        model = whole if plan.architecture is plan.inventory.architecture else text_only(family)
        config = QuantizationConfig.model_validate(quantization_config(plan))
        targets = config.config_groups["group_0"].targets
        found = {name for name, module in linears(model) if is_match(name, module, targets, config.ignore)}
        expected = {spellings(name, plan.architecture)["transformers"] for name in packed_modules(plan)}
        dead = {name for name in expected if "K/V kept" in recipe and name not in dict(linears(model))}
        assert found == {name for name in expected - dead if ".experts." not in name}, recipe
        assert all(is_match(name, torch.nn.Linear(1, 1), targets, config.ignore) for name in expected), recipe


def text_only(family: Family) -> Model:
    """The causal LM that the text-only output of a composite family is."""
    from g4convert.fixtures.checkpoints import _CONFIGS  # noqa: PLC0415 - the decoder's config, unwrapped

    unified = family is Family.UNIFIED
    model_type = "gemma4_unified_text" if unified else "gemma4_text"
    with torch.device("meta"):
        return model_class(model_type)(AutoConfig.for_model(model_type, **_CONFIGS[family]["text_config"]))


@pytest.mark.parametrize("family", Family)
def test_compressed_tensors_reads_the_config_and_gives_it_back(family: Family, checkpoints: Checkpoints) -> None:
    for recipe, plan in plans(skeleton(str(checkpoints(family)))[1]):
        written = quantization_config(plan)
        parsed = QuantizationConfig.model_validate(written)
        weights = parsed.config_groups["group_0"].weights
        assert (weights.num_bits, weights.group_size) == (plan.recipe.num_bits, plan.recipe.group_size), recipe
        assert weights.symmetric
        assert weights.actorder is None
        assert weights.strategy == ("group" if plan.recipe.group_size else "channel")
        assert written.pop("version") == quant_config.FORMAT_VERSION
        assert_within(written, parsed.model_dump(mode="json"))


def assert_within(ours: object, theirs: object, path: str = "") -> None:
    """Every leaf of ours is in theirs, which may have more, and leaves some keys out that are None or empty."""
    if not isinstance(ours, Mapping) or not ours:
        assert (ours or None) == (theirs or None), path
        return
    assert isinstance(theirs, Mapping), path
    for key, value in ours.items():
        assert_within(value, theirs.get(key), f"{path}.{key}")


@pytest.mark.parametrize("family", Family)
def test_ignore_is_short_and_names_no_layer(family: Family, checkpoints: Checkpoints) -> None:
    for recipe, plan in plans(skeleton(str(checkpoints(family)))[1]):
        ignore = quantization_config(plan)["ignore"]
        assert len(ignore) <= 12, recipe
        assert len(set(ignore)) == len(ignore)
        assert not any(character.isdigit() for entry in ignore for character in entry)
        assert not any("^" in entry or ("*" in entry and not entry.startswith("re:")) for entry in ignore)
        assert "lm_head" in ignore


# What each kind of Linear of a file is called in the engines; N is a number. vLLM: gemma4_mm.py, gemma4_unified.py,
# gemma4.py, gemma4_mtp.py; SGLang: gemma4_mm.py, gemma4_causal.py, gemma4_vision.py, gemma4_audio.py, gemma4_mtp.py.
# None: a plain nn.Linear that no quantization config reaches. A fused name stands for all its parts.
DECODER = {
    "self_attn.q_proj": ("self_attn.qkv_proj", "self_attn.qkv_proj"),
    "self_attn.o_proj": ("self_attn.o_proj", "self_attn.o_proj"),
    "mlp.gate_proj": ("mlp.gate_up_proj", "mlp.gate_up_proj"),
    "mlp.down_proj": ("mlp.down_proj", "mlp.down_proj"),
    "per_layer_input_gate": ("per_layer_input_gate", "per_layer_input_gate"),
    "per_layer_projection": ("per_layer_projection", "per_layer_projection"),
    "router.proj": ("router.proj", "router.proj"),
    "experts.0.gate_proj": ("experts.0.gate_proj", "moe.experts.0.gate_proj"),
    "experts.0.up_proj": ("experts.0.up_proj", "moe.experts.0.up_proj"),
    "experts.0.down_proj": ("experts.0.down_proj", "moe.experts.0.down_proj"),
}
TOWERS = {
    "vision_tower.patch_embedder.input_proj": ("vision_tower.patch_embedder.input_proj", None),
    "vision_tower.encoder.layers.0.self_attn.q_proj.linear": (
        "vision_tower.encoder.layers.0.self_attn.q_proj.linear",
        "model.vision_tower.encoder.layers.0.self_attn.qkv_proj",
    ),
    "vision_tower.encoder.layers.0.self_attn.o_proj.linear": (
        "vision_tower.encoder.layers.0.self_attn.o_proj.linear",
        "model.vision_tower.encoder.layers.0.self_attn.o_proj.linear",
    ),
    "vision_tower.encoder.layers.0.mlp.gate_proj.linear": (
        "vision_tower.encoder.layers.0.mlp.gate_proj.linear",
        "model.vision_tower.encoder.layers.0.mlp.gate_up_proj",
    ),
    "vision_tower.encoder.layers.0.mlp.down_proj.linear": (
        "vision_tower.encoder.layers.0.mlp.down_proj.linear",
        "model.vision_tower.encoder.layers.0.mlp.down_proj.linear",
    ),
    "audio_tower.layers.0.self_attn.q_proj.linear": (
        "audio_tower.layers.0.self_attn.q_proj.linear",
        "model.audio_tower.conformer.0.attention.attn.qkv_proj",
    ),
    "audio_tower.layers.0.self_attn.relative_k_proj": (
        "audio_tower.layers.0.self_attn.relative_k_proj",
        "model.audio_tower.conformer.0.attention.attn.relative_position_embedding.pos_proj",
    ),
    "audio_tower.layers.0.self_attn.post.linear": (
        "audio_tower.layers.0.self_attn.post.linear",
        "model.audio_tower.conformer.0.attention.post.linear",
    ),
    "audio_tower.layers.0.feed_forward1.ffw_layer_1.linear": (
        "audio_tower.layers.0.feed_forward1.ffw_layer_1.linear",
        "model.audio_tower.conformer.0.ffw_layer_start.ffw_layer_1.linear",
    ),
    "audio_tower.layers.0.lconv1d.linear_start.linear": (
        "audio_tower.layers.0.lconv1d.linear_start.linear",
        "model.audio_tower.conformer.0.lconv1d.linear_start",
    ),
    "audio_tower.output_proj": ("audio_tower.output_proj", "model.audio_tower.output_proj"),
    "audio_tower.subsample_conv_projection.input_proj_linear": (
        "audio_tower.subsample_conv_projection.input_proj_linear",
        "model.audio_tower.subsample_conv_projection.input_proj_linear",
    ),
    "embed_vision.embedding_projection": (
        "embed_vision.embedding_projection",
        "model.embed_vision.embedding_projection",
    ),
    "embed_audio.embedding_projection": ("embed_audio.embedding_projection", "model.embed_audio.embedding_projection"),
}
UNIFIED = {
    "vision_embedder.patch_dense": ("vision_embedder.patch_dense", None),
    "embed_vision.embedding_projection": (None, None),
    "embed_audio.embedding_projection": (None, None),
}
EXPERT_PARTS = ("gate", "up", "down")
PREFIXES = {  # of the decoder: in files, vLLM, SGLang
    "composite": ("model.language_model.", "language_model.model.", "model.language_model."),
    "text": ("model.", "model.", "model."),
    "assistant": ("model.", "draft_model.", "model."),
}


def engine_names(architecture: Architecture) -> dict[str, dict[str, str]]:
    """Name in the files -> engine -> name it is matched under, for every kind of Linear an architecture may have."""
    kind = "assistant" if architecture.is_assistant else "composite" if architecture.is_composite else "text"
    files, vllm, sglang = PREFIXES[kind]
    names = {
        f"{files}layers.0.{name}": {"vllm": f"{vllm}layers.0.{one}", "sglang": f"{sglang}layers.0.{other}"}
        for name, (one, other) in DECODER.items()
    }
    ple = "per_layer_model_projection"
    names[f"{files}{ple}"] = {"vllm": f"{vllm}{ple}", "sglang": f"{sglang}{ple}"}
    if kind == "composite":
        for name, (one, other) in (UNIFIED if architecture.is_unified else TOWERS).items():
            names[f"model.{name}"] = {k: v for k, v in (("vllm", one), ("sglang", other)) if v}
    if kind == "assistant":
        for name in ("pre_projection", "post_projection"):
            names[name] = {"vllm": f"draft_model.{name}", "sglang": name}
    heads = {"composite": ("language_model.lm_head", "model.lm_head"), "text": ("lm_head", "lm_head")}
    if kind in heads and not architecture.is_unified:
        names["lm_head"] = dict(zip(("vllm", "sglang"), heads[kind], strict=True))
    return names


def shards_of(name: str) -> list[str]:
    """The names that stand for a fused module."""
    stem, _, last = name.rpartition(".")
    return [f"{stem}.{part}" for part in FUSED.get(last, [last])]


@pytest.mark.parametrize("family", FAMILIES)
def test_engines_build_what_is_packed(family: str) -> None:
    for recipe, plan in plans(opened(FAMILIES[family])):
        ignore = quantization_config(plan)["ignore"]
        packed = {re.sub(r"layers\.\d+|experts\.\d+", _zero, module) for module in packed_modules(plan)}
        for module, names in engine_names(plan.architecture).items():
            for engine, name in names.items():
                parts = {is_ignored(part, ignore) for part in shards_of(name)}
                assert len(parts) == 1, f"{recipe}: {name} ({engine}): the parts of one module differ"
                if module in packed or role_of(module) in roles_of(plan):
                    assert parts == {module not in packed}, f"{recipe}: {name} ({engine})"


def _zero(match: re.Match[str]) -> str:
    return match.group().split(".")[0] + ".0"


def role_of(module: str) -> str:
    """A Linear's place in its part of the model, whatever the layer."""
    return re.sub(r"\d+", "0", module)


def roles_of(plan: Plan) -> set[str]:
    """`role_of` of every Linear that the output has."""
    names = {*packed_modules(plan), *(copy.target.name.removesuffix(".weight") for copy in plan.copied)}
    experts = {
        f"{name.rpartition('.')[0]}.0.{part}_proj" for name in names for part in EXPERT_PARTS if ".experts." in name
    }
    return {role_of(name) for name in names | experts} | {"lm_head"}


@pytest.mark.parametrize("family", FAMILIES)
def test_spellings_are_those_of_the_engines(family: str) -> None:
    architecture = Architecture.from_config(FAMILIES[family])
    for module, names in engine_names(architecture).items():
        found = spellings(module, architecture)
        assert found["files"] == module
        for engine, name in names.items():
            if "audio_tower" in module and engine == "sglang":
                assert "audio_tower" in found[engine]
            else:
                assert found[engine] in {*shards_of(name), name}, engine


@pytest.mark.parametrize("size", ["E2B", "12B", "26B-A4B", "31B"])
def test_ours_and_their_matcher_agree(size: str) -> None:
    for _, plan in plans(opened(FAMILIES[size])):
        ignore = quantization_config(plan)["ignore"]
        names = [name for spelled in engine_names(plan.architecture).values() for name in spelled.values()]
        for name in [*names, *packed_modules(plan)]:
            assert is_ignored(name, ignore) == any(match_name(name, entry) for entry in ignore)


GOOD_31B = ["lm_head", "re:.*lm_head.*", "re:.*vision_tower.*", "re:.*embed_vision.*"]


@pytest.mark.parametrize(
    ("size", "ignore", "wrong"),
    [
        ("31B", ["lm_head", "re:.*lm_head.*", r"re:^model\.vision_tower.*", "re:.*embed_vision.*"], "(vllm): kept"),
        ("31B", ["lm_head", "re:.*lm_head.*", "*vision_tower*", "re:.*embed_vision.*"], "(transformers): kept"),
        ("31B", ["lm_head", "re:.*lm_head.*", "model.vision_tower", "re:.*embed_vision.*"], "(files): kept"),
        ("31B", [entry for entry in GOOD_31B if "lm_head" not in entry], "language_model.lm_head (vllm): kept"),
        ("31B", ["lm_head", *GOOD_31B[2:]], "language_model.lm_head (vllm): kept"),
        ("31B", [*GOOD_31B, r"re:.*\.self_attn\..*"], "self_attn.q_proj (vllm): packed, but ignored"),
        ("31B", [*GOOD_31B, r"re:model\.language_model\..*"], "(sglang): packed, but ignored"),
        ("31B", [*GOOD_31B, r"re:language_model\..*"], "(vllm): packed, but ignored"),
        ("12B", ["re:.*lm_head.*", "re:.*embed_vision.*", "re:.*embed_audio.*"], "vision_embedder.patch_dense (vllm)"),
        ("12B", ["re:.*lm_head.*", "re:.*vision_embedder.*", "re:.*embed_audio.*"], "patch_dense (transformers)"),
        ("26B-A4B", GOOD_31B, "router.proj (files): kept"),
        ("26B-A4B", [*GOOD_31B, r"re:model\..*\.layers\.\d+\.router\.proj$"], "router.proj (vllm): kept"),
        ("26B-A4B", [*GOOD_31B, "re:.*router.*", r"re:.*\.moe\..*"], "experts.0.gate_proj (sglang): packed"),
        ("E2B", [*GOOD_31B, "re:.*audio_tower.*", "re:.*embed_audio.*"], "per_layer_projection (vllm): kept"),
    ],
)
def test_a_bad_ignore_list_is_seen(size: str, ignore: list[str], wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(FAMILIES[size])
    monkeypatch.setattr(quant_config, "_ignore", lambda _: ignore)
    with pytest.raises(GateError, match="would be built in the wrong form") as caught:
        quantization_config(plan)
    assert any(wrong in line for line in caught.value.offenders), caught.value.offenders
    assert all(
        re.search(r"\((files|transformers|vllm|sglang)\): (kept|packed), but ", x) for x in caught.value.offenders
    )


def test_a_good_list_given_by_hand_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(FAMILIES["31B"])
    monkeypatch.setattr(quant_config, "_ignore", lambda _: GOOD_31B)
    assert quantization_config(plan)["ignore"] == GOOD_31B


@pytest.mark.parametrize("size", RELEASED)
def test_released_sizes_have_a_config_that_is_proved(size: str) -> None:
    assert quantization_config(planned(released(size)))["ignore"]


def test_the_literal_config_of_the_default_recipe_on_the_moe() -> None:
    assert quantization_config(planned(FAMILIES["26B-A4B"])) == {
        "config_groups": {
            "group_0": {
                "format": "pack-quantized",
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": {
                    "actorder": None,
                    "block_structure": None,
                    "dynamic": False,
                    "group_size": 32,
                    "num_bits": 4,
                    "observer": "memoryless_minmax",
                    "observer_kwargs": {},
                    "strategy": "group",
                    "symmetric": True,
                    "type": "int",
                },
            }
        },
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": [
            "lm_head",
            "model.embed_vision.embedding_projection",
            "re:.*lm_head.*",
            r"re:.*\.router.*",
            "re:.*vision_tower.*",
            "re:.*embed_vision.*",
        ],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "version": "0.20.0",
    }

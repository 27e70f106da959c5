"""`targets` and `ignore`: every engine builds exactly those modules packed that are packed.

Oracles: compressed-tensors' parser and matcher on the real modules of transformers. What vLLM and SGLang build from
the lists of these recipes is recorded from their own code: `engines/test_contracts.py`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import is_match
from conftest import Checkpoints
from helpers.grids import one_in, two_when_quick
from helpers.headers import planned, section
from helpers.released_configs import FAMILIES, RELEASED, released
from transformers import AutoConfig

from g4convert.checkpoint.directory import Checkpoint
from g4convert.demo import Family
from g4convert.engines import VERSIONS, speller
from g4convert.engines.contract import Contract
from g4convert.engines.ignore import LINEARS, prove
from g4convert.errors import GateError, UsageError
from g4convert.forward.models import Model, model_class
from g4convert.planning.config import FORMAT_VERSION
from g4convert.planning.plan import Plan
from g4convert.planning.recipe_files import load, load_shipped
from g4convert.planning.steps import make_plan
from g4convert.planning.weights import make_planned_weights

RECIPES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    **{name: (name, {}) for name in load_shipped()},
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


@pytest.mark.parametrize("family", two_when_quick(Family))
def test_transformers_builds_what_is_packed(family: Family, checkpoints: Checkpoints) -> None:
    whole, checkpoint = skeleton(str(checkpoints(family)))
    for recipe, plan in plans(checkpoint):
        model = whole if plan.architecture is plan.inventory.architecture else text_only(family)
        config = QuantizationConfig.model_validate(section(plan))
        targets = [target for group in config.config_groups.values() for target in group.targets]
        found = {name for name, module in linears(model) if is_match(name, module, targets, config.ignore)}
        spell = speller(plan.architecture)
        expected = {spell(name)["transformers"] for name in packed_modules(plan) if "embed_tokens" not in name}
        dead = {name for name in expected if "K/V kept" in recipe and name not in dict(linears(model))}
        assert found == {name for name in expected - dead if ".experts." not in name}, recipe
        assert all(is_match(name, torch.nn.Linear(1, 1), targets, config.ignore) for name in expected), recipe


def text_only(family: Family) -> Model:
    """The causal LM that the text-only output of a family is."""
    from g4convert.demo.checkpoints import _CONFIGS  # noqa: PLC0415 - the decoder's config, unwrapped

    spec = _CONFIGS[family]
    config = {"hidden_size_per_layer_input": 0, **spec.get("text_config", spec), "model_type": "gemma4_text"}
    with torch.device("meta"):
        return model_class("gemma4_text")(AutoConfig.for_model(**config))


@pytest.mark.parametrize("family", two_when_quick(Family))
def test_compressed_tensors_reads_the_config_and_gives_it_back(family: Family, checkpoints: Checkpoints) -> None:
    for recipe, plan in plans(skeleton(str(checkpoints(family)))[1]):
        written = section(plan)
        parsed = QuantizationConfig.model_validate(written)
        weights = parsed.config_groups["group_0"].weights
        assert (weights.num_bits, weights.group_size) == (plan.recipe.num_bits, plan.recipe.group_size), recipe
        assert weights.symmetric
        assert weights.actorder is None
        assert weights.strategy == ("group" if plan.recipe.group_size else "channel")
        assert written.pop("version") == FORMAT_VERSION
        assert_within(written, parsed.model_dump(mode="json"))


def assert_within(ours: object, theirs: object, path: str = "") -> None:
    """Every leaf of ours is in theirs, which may have more, and leaves some keys out that are None or empty."""
    if not isinstance(ours, Mapping) or not ours:
        assert (ours or None) == (theirs or None), path
        return
    assert isinstance(theirs, Mapping), path
    for key, value in ours.items():
        assert_within(value, theirs.get(key), f"{path}.{key}")


@pytest.mark.parametrize("family", two_when_quick(Family))
def test_ignore_is_short_and_names_no_layer(family: Family, checkpoints: Checkpoints) -> None:
    for recipe, plan in plans(skeleton(str(checkpoints(family)))[1]):
        ignore = section(plan)["ignore"]
        assert len(ignore) <= 12, recipe
        assert len(set(ignore)) == len(ignore)
        assert not any(character.isdigit() for entry in ignore for character in entry)
        assert not any("^" in entry or ("*" in entry and not entry.startswith("re:")) for entry in ignore)
        assert "lm_head" in ignore or "lm_head" in packed_modules(plan)


GOOD_31B = ["lm_head", "re:.*lm_head.*", "re:.*vision_tower.*", "re:.*embed_vision.*"]


@pytest.mark.parametrize(
    ("size", "ignore", "wrong"),
    [
        ("31B", ["lm_head", "re:.*lm_head.*", r"re:^model\.vision_tower.*", "re:.*embed_vision.*"], "(vllm): kept"),
        ("31B", ["lm_head", "re:.*lm_head.*", "*vision_tower*", "re:.*embed_vision.*"], "(transformers): kept"),
        ("31B", ["lm_head", "re:.*lm_head.*", "model.vision_tower", "re:.*embed_vision.*"], "(transformers): kept"),
        ("31B", [entry for entry in GOOD_31B if "lm_head" not in entry], "lm_head (transformers): kept"),
        ("31B", [*GOOD_31B, "re:.*mlp.gate_proj"], "gate_up_proj (vllm): one module in two forms"),
        ("31B", [*GOOD_31B, r"re:.*\.self_attn\..*"], "self_attn.qkv_proj (vllm): packed, but ignored"),
        ("31B", [*GOOD_31B, r"re:model\.language_model\..*"], "(sglang): packed, but ignored"),
        ("31B", [*GOOD_31B, r"re:language_model\..*"], "(vllm): packed, but ignored"),
        ("12B", ["re:.*lm_head.*", "re:.*embed_vision.*", "re:.*embed_audio.*"], "vision_embedder.patch_dense (vllm)"),
        ("12B", ["re:.*lm_head.*", "re:.*vision_embedder.*", "re:.*embed_audio.*"], "patch_dense (transformers)"),
        ("26B-A4B", GOOD_31B, "router.proj (transformers): kept"),
        ("E2B", [*GOOD_31B, "re:.*audio.*", r"re:model\..*\.per_layer_.*"], "per_layer_model_projection (vllm): kept"),
        ("26B-A4B", [*GOOD_31B, "re:.*router.*", r"re:.*\.moe\..*"], "moe.experts (sglang): packed"),
        ("E2B", [*GOOD_31B, "re:.*audio_tower.*", "re:.*embed_audio.*"], "per_layer_projection (vllm): kept"),
    ],
)
def test_a_bad_ignore_list_is_seen(size: str, ignore: list[str], wrong: str) -> None:
    weights = make_planned_weights(planned(FAMILIES[size]))
    with pytest.raises(GateError, match="would be built in the wrong form") as caught:
        prove(replace(weights, ignore=tuple(ignore)))
    assert any(wrong in line for line in caught.value.offenders), caught.value.offenders
    says = r" \((transformers|vllm|vllm 0\.23|sglang)\): ((kept|packed), but |one module in two forms)"
    assert [line for line in caught.value.offenders if not re.search(says, line)] == []


@pytest.mark.parametrize("ignore", [GOOD_31B, ["lm_head", *GOOD_31B[2:]]])
def test_a_good_list_given_by_hand_passes(ignore: list[str]) -> None:
    """The second leaves the head to its name: `Linear` names that of transformers only."""
    weights = make_planned_weights(planned(FAMILIES["31B"]))
    assert weights.targets == (LINEARS,)
    prove(replace(weights, ignore=tuple(ignore)))


def test_no_entry_of_a_written_list_is_dead() -> None:
    """A drafter with ordered embeddings has a table of centroids; the unified one of the 12B has none."""
    for family, config in FAMILIES.items():
        plan = planned(config, assistant="pack")
        names = {name for contract in VERSIONS for name in _names(contract, plan)}
        for entry in section(plan)["ignore"]:
            pattern = re.compile(entry.removeprefix("re:") if entry.startswith("re:") else re.escape(entry) + "$")
            assert any(map(pattern.match, names)), f"{family}: {entry}"


def _names(contract: Contract, plan: Plan) -> set[str]:
    modules = contract.modules(plan.architecture)
    reading = contract.read(plan.architecture, ())
    return {name for module in modules for name in (*module.shards, *reading.lookups(module))}


@pytest.mark.parametrize("size", one_in(3, RELEASED))
def test_released_sizes_have_a_config_that_is_proved(size: str) -> None:
    assert section(planned(released(size)))["ignore"]


def test_the_literal_config_of_the_default_recipe_on_the_moe() -> None:
    assert section(planned(FAMILIES["26B-A4B"])) == {
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

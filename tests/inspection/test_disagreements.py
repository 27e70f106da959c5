"""Configs and tensors that disagree: what is told of each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.described import MOE, TEXT, UNIFIED, WEIGHTS, described, packed, plain, quantized, texts
from helpers.rewriting import rewritten

from g4convert.checkpoint.directory import Checkpoint
from g4convert.inspection.describe import describe

DISAGREEMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"weights": {**WEIGHTS, "num_bits": 8}}, "num_bits 8 in the config, 4 stored"),
    "group": ({"weights": {**WEIGHTS, "group_size": 64}}, "group_size 64 in the config, 32 stored"),
    "symmetric": ({"weights": {**WEIGHTS, "symmetric": False}}, "symmetric False in the config, True stored"),
    "type": ({"weights": {**WEIGHTS, "type": "float"}}, "type float in the config, int stored"),
    "format": ({"weights": WEIGHTS, "format": "int-quantized"}, "format int-quantized in the config"),
    "channel": (
        {"weights": {"num_bits": 4, "strategy": "channel"}},
        "strategy channel in the config, group stored",
    ),
    "bits left out": (
        {"weights": {"group_size": 32}},
        "num_bits 8 in the config (the default, as it is left out), 4 stored",
    ),
    "group_size left out": (
        {"weights": {"num_bits": 4}},
        "strategy tensor in the config (the default, as it is left out), group stored",
    ),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_config_and_shapes_disagree(tmp_path: Path, case: str) -> None:
    change, words = DISAGREEMENTS[case]
    config = quantized(TEXT, ["lm_head"], config_groups={"group_0": {"targets": ["Linear"], **change}})
    found = described(tmp_path, packed(plain(TEXT)), config)
    assert {r.subject for r in found.remarks} == {"attention", "mlp"}
    assert all(words in remark.text for remark in found.remarks)
    assert sum(remark.count for remark in found.remarks) == 14


@pytest.mark.parametrize(
    ("ignore", "dead"),
    [
        ("lm_head", False),
        ("model.layers.0.self_attn.q_proj", False),
        (r"re:.*\.q_proj$", False),
        ("re:model.layers.1", False),
        ("Linear", False),
        ("Embedding", False),
        ("model.layers.0", False),  # layer_scalar is a tensor of the layer itself
        ("model.layers", True),
        ("model.layers.*", True),
        ("q_proj", False),  # SGLang takes dotted ends of names, as `check` says
        ("re:q_proj", True),
        ("re:.*vision_tower.*", True),
        ("model.layers.0.self_attn.q_proj.weight", True),
        ("re:(", True),
    ],
)
def test_dead_entries(tmp_path: Path, ignore: str, *, dead: bool) -> None:
    found = described(tmp_path, plain(TEXT), quantized(TEXT, [ignore]))
    (use,) = [use for use in found.entries if use.place == "ignore"]
    assert use.is_dead is dead
    assert any("names no module" in text for text in texts(found)) is dead


def test_an_unknown_class_is_not_judged(tmp_path: Path) -> None:
    found = described(tmp_path, plain(TEXT), quantized(TEXT, ["Gemma4TextRouter"]))
    (use,) = [use for use in found.entries if use.place == "ignore"]
    assert use.matches is None
    assert not use.is_dead


def test_one_group_is_as_good_as_a_channel(tmp_path: Path) -> None:
    config = {**TEXT, "hidden_size": 32}
    found = described(tmp_path, packed(plain(config)), quantized(config, ["lm_head"]))
    assert found.remarks == ()


def test_quantized_although_ignored(tmp_path: Path) -> None:
    found = described(tmp_path, packed(plain(TEXT)), quantized(TEXT, ["lm_head", "re:.*self_attn.*"]))
    assert texts(found) == ["attention: quantized, although ignored x8"]


def test_entries_count_as_each_engine_reads_them(tmp_path: Path) -> None:
    """VLLM renames whole names that have a dot, and those only; SGLang takes dotted ends of names, too."""
    found = described(
        tmp_path, plain(UNIFIED), quantized(UNIFIED, ["lm_head", "q_proj", "embed_vision.embedding_projection"])
    )
    uses = {use.entry: use.matches for use in found.entries if use.place == "ignore"}
    layers = UNIFIED["text_config"]["num_hidden_layers"]
    assert uses["lm_head"] == {"files": 1, "transformers": 1, "vllm": 0, "sglang": 1}
    assert uses["q_proj"] == {"files": 0, "transformers": 0, "vllm": 0, "sglang": layers}
    assert uses["embed_vision.embedding_projection"] is not None
    assert uses["embed_vision.embedding_projection"]["vllm"] == 1


def test_plain_although_targeted(tmp_path: Path) -> None:
    found = described(tmp_path, packed(plain(MOE)), quantized(MOE, ["lm_head"]))
    routers = "router: plain, although targeted and not ignored, by the names of files, transformers x2"
    assert texts(found) == [routers]  # vLLM and SGLang build routers plain, whatever a config says
    assert found.remarks[0].example == "model.layers.0.router.proj.weight"


def test_quantized_although_no_target_names_it(tmp_path: Path) -> None:
    groups = {"group_0": {"targets": ["re:.*mlp.*"], "weights": WEIGHTS}}
    found = described(tmp_path, packed(plain(TEXT)), quantized(TEXT, [], config_groups=groups))
    assert texts(found) == ["attention: quantized, although no target names it x8"]


def test_names_that_hold_in_one_engine_only(tmp_path: Path) -> None:
    """Google's 12B ignores modules under the names of transformers, which are not those in the files."""
    names = [
        "lm_head",
        "model.embed_vision.patch_dense",
        "model.embed_vision.multimodal_embedder.embedding_projection",
    ]
    found = described(tmp_path, packed(plain(UNIFIED)), quantized(UNIFIED, names))
    uses = {use.entry: use.matches for use in found.entries if use.place == "ignore"}
    assert uses["model.embed_vision.patch_dense"] == {"files": 0, "transformers": 1, "vllm": 0, "sglang": 0}
    assert not any(use.is_dead for use in found.entries)
    assert any("plain, although targeted and not ignored, by the names of" in text for text in texts(found))


def test_groups_by_name_come_before_classes(tmp_path: Path) -> None:
    eight = {"targets": ["re:.*mlp.*"], "weights": {**WEIGHTS, "num_bits": 8}}
    groups = {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}, "group_1": eight}
    mixed = packed(packed(plain(TEXT), r".*\.mlp\..*_proj", bits=8))
    found = described(tmp_path, mixed, quantized(TEXT, ["lm_head"], config_groups=groups))
    assert found.remarks == ()
    schemes = {str(size.role): list(size.schemes) for size in found.roles}
    assert schemes["mlp"] == ["int8 g32 symmetric (pack-quantized)"]
    assert schemes["attention"] == ["int4 g32 symmetric (pack-quantized)"]


def test_a_section_without_a_method_declares_nothing(tmp_path: Path) -> None:
    """Google's QAT sources carry one."""
    found = described(tmp_path, plain(TEXT), {**TEXT, "quantization_config": {"qat": True}})
    assert (found.remarks, found.entries) == ((), ())


def test_quantized_without_a_word_in_the_config(tmp_path: Path) -> None:
    found = described(tmp_path, packed(plain(TEXT)), TEXT)
    assert {r.text for r in found.remarks} == {"quantized, but config.json has no quantization_config"}


def test_names_of_another_quantizer_are_said_to_be_its(dense: Path, tmp_path: Path) -> None:
    """The hint of a refused source promises as much."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        (name,) = (name for name in tensors if name.endswith("language_model.layers.0.mlp.up_proj.weight"))
        parts = {"W_q": torch.zeros(4, dtype=torch.uint8), "scale": torch.ones(4), "zero": torch.ones(4)}
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        return rest | {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}

    found = describe(Checkpoint.open(rewritten(dense, tmp_path / "hqq", change)))
    assert [(one.text, one.count) for one in found.remarks] == [("the names are those of HQQ", 1)]

"""Several config groups and precisions in one checkpoint: which of them each engine takes."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.checked import assert_loads_as, checked, codes, dense_out, loads, modules, section
from helpers.conversions import quantized, stored
from helpers.grids import two_when_quick
from helpers.rewriting import Tensors, rewritten

from g4convert.checkpoint.directory import Checkpoint
from g4convert.engines.verdicts import Loads
from g4convert.inspection import describe
from g4convert.inspection.fix import fix
from g4convert.report import Severity

__all__ = ["dense_out"]


@pytest.mark.parametrize("num_bits", [4, 8])
def test_experts_with_a_scale_per_row_are_in_one_form(num_bits: int, moe: Path, tmp_path: Path) -> None:
    quantized(moe, tmp_path / "out", group_size="channel", num_bits=num_bits, method="minmax")
    found = checked(tmp_path / "out")
    assert "static.fused" not in codes(found)
    assert loads(found)["vllm"] is not Loads.NO


@pytest.mark.parametrize(("family", "end"), [("dense", ".v_proj"), ("dense", ".up_proj"), ("moe", ".down_proj")])
def test_two_precisions_in_what_engines_fuse(
    family: str, end: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(family)
    quantized(source, tmp_path / "four", method="minmax")
    quantized(source, tmp_path / "eight", method="minmax", num_bits=8)
    eight = stored(tmp_path / "eight")

    def change(tensors: Tensors) -> Tensors:
        odd = [m for m in modules(tensors) if m.endswith(end) and (family == "dense" or ".experts." in m)]
        return tensors | {name: eight[name] for name in eight if name.rpartition(".")[0] in odd}

    found = checked(rewritten(tmp_path / "four", tmp_path / "out", change))
    assert "static.fused" in codes(found)
    assert loads(found)["vllm"] is Loads.NO
    assert loads(found)["sglang"] is Loads.NO
    text = next(one.found for one in found.report.findings if one.code == "static.fused")
    assert "int8, groups of 32" in text or "int4, groups of 32" in text


@pytest.mark.parametrize(
    ("family", "end", "answer"),
    two_when_quick(
        [
            ("dense", "v_proj", Loads.YES),
            ("dense", "up_proj", Loads.YES),
            ("e2b", "v_proj", Loads.YES),
            ("moe", "down_proj", Loads.NO),  # it has no mapping for single experts
        ]
    ),
)
def test_transformers_loads_two_precisions_that_the_groups_name(
    family: str, end: str, answer: Loads, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It builds each projection alone; vLLM and SGLang fuse them, and a fused module has one scheme."""
    source = request.getfixturevalue(family)
    quantized(source, tmp_path / "four", method="minmax")
    quantized(source, tmp_path / "eight", method="minmax", num_bits=8)
    eight = stored(tmp_path / "eight")

    def change(tensors: Tensors) -> Tensors:
        return tensors | {name: eight[name] for name in tensors if f".{end}.weight_" in name}

    said = section(tmp_path / "four")
    group = said["config_groups"]["group_0"]
    wide = group | {"targets": [rf"re:.*\.{end}$"], "weights": group["weights"] | {"num_bits": 8}}
    said["config_groups"] |= {"group_1": wide}
    found = checked(rewritten(tmp_path / "four", tmp_path / "out", change, quantization_config=said))
    assert loads(found) == {"transformers": answer, "vllm": Loads.NO, "sglang": Loads.NO}


Groups = list[tuple[list[str], int | str]]
"""Targets of each config group, and what it says: the bits, per row where they are 8, in groups of 32 where 4."""


@pytest.fixture(scope="module")
def two_precisions(tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401 -- a function
    """A family in int4 by groups with its attention in int8 by row, and the groups of the config to choose."""
    root = tmp_path_factory.mktemp("precisions")

    def make(source: Path, out: Path, groups: Groups) -> Path:
        four, eight = root / f"{source.name}-4", root / f"{source.name}-8"
        if not four.exists():
            quantized(source, four, method="minmax")
            quantized(source, eight, method="minmax", num_bits=8, group_size="channel")
        wide = stored(eight)

        def change(tensors: Tensors) -> Tensors:
            attention = {name: wide[name] for name in tensors if ".self_attn." in name and ".weight_" in name}
            return tensors | attention

        said = section(four)
        one = said["config_groups"]["group_0"]
        per_row = {"num_bits": 8, "group_size": None, "strategy": "channel"}
        said["config_groups"] = {
            f"group_{number}": one | {"targets": targets, "weights": one["weights"] | (per_row if bits == 8 else {})}
            for number, (targets, bits) in enumerate(groups)
        }
        return rewritten(four, out, change, quantization_config=said)

    return make


def by_name(source: Path, *, with_values: bool) -> list[str]:
    """Every projection of attention by its name, and where values are keys the name of a v_proj that is not there."""
    config = json.loads((source / "config.json").read_text())
    layers = config["text_config"]["num_hidden_layers"]
    names = [f"model.language_model.layers.{n}.self_attn.{part}_proj" for n in range(layers) for part in "qkvo"]
    tensors = stored(source)
    return names if with_values else [name for name in names if f"{name}.weight" in tensors]


WHOLE = r"re:.*self_attn\..*"
SHARDS = r"re:.*self_attn\.(q|k|v|o)_proj$"
ANCHORED = r"re:^model\.language_model\.layers\.\d+\.self_attn\..*"
OF_VLLM = r"re:^language_model\.model\.layers\.\d+\.self_attn\..*"
YES = {"transformers", "vllm", "sglang"}


@pytest.mark.parametrize(
    ("groups", "loaded"),
    two_when_quick(
        [
            ([(["Linear"], 4), ([WHOLE], 8)], YES),
            ([([WHOLE], 8), (["Linear"], 4)], YES),
            ([([SHARDS], 8), ([r"re:.*mlp\..*"], 4)], YES),
            ([(["Linear"], 4), ([ANCHORED], 8)], {"transformers", "sglang"}),
            ([(["Linear"], 4), ([OF_VLLM], 8)], {"vllm"}),
            ([(["Linear"], 4), ([SHARDS], 8)], {"transformers", "vllm"}),  # SGLang tries the class before the shards
            (
                [([r"re:.*proj.*"], 4), ([r"re:.*attn\..*"], 8)],
                {"transformers"},
            ),  # the first pattern, but by the alphabet
            ([(["Linear"], 8), ([WHOLE], 4)], set()),
        ]
    ),
)
def test_each_engine_takes_the_group_of_its_own_order(
    groups: Groups,
    loaded: set[str],
    dense: Path,
    two_precisions: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    found = checked(two_precisions(dense, tmp_path / "out", groups))
    assert {engine for engine, one in loads(found).items() if one is not Loads.NO} == loaded
    wrong = [one for one in found.report.findings if one.code == "static.scheme" and one.severity is Severity.FAIL]
    assert bool(wrong) is not ({"transformers", "vllm"} <= loaded)
    assert any("--fix" in one.remedy for one in found.report.findings) >= bool(wrong)
    if wrong:
        assert fix(tmp_path / "out")
        mended = loads(checked(tmp_path / "out"))
        assert {engine for engine, one in mended.items() if one is not Loads.NO} == YES
        assert_loads_as(tmp_path / "out", two_precisions(dense, tmp_path / "good", [(["Linear"], 4), ([WHOLE], 8)]))


@pytest.mark.parametrize("family", ["dense", "unified", "e2b"])
def test_names_of_values_that_are_keys(
    family: str,
    request: pytest.FixtureRequest,
    two_precisions: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    source = request.getfixturevalue(family)
    groups = [(["Linear"], 4), (by_name(source, with_values=False), 8)]
    found = checked(two_precisions(source, tmp_path / "out", groups))
    assert (loads(found)["vllm"] is Loads.NO) is (family != "e2b")
    assert loads(found)["transformers"] is not Loads.NO
    assert loads(found)["sglang"] is Loads.NO  # `Linear` is a part of the class name, which it tries first
    whole = [(["Linear"], 4), (by_name(source, with_values=True), 8)]
    assert loads(checked(two_precisions(source, tmp_path / "whole", whole)))["vllm"] is not Loads.NO


def test_a_pattern_for_one_shard_may_fit_the_fused_name(
    dense: Path,
    two_precisions: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    """`.*v_proj` fits `qkv_proj`, too, which is what vLLM and SGLang look up first."""
    groups = [(["Linear"], 4), ([r"re:.*self_attn.*v_proj", r"re:.*self_attn\.[qko]_proj"], 8)]
    found = checked(two_precisions(dense, tmp_path / "out", groups))
    assert set(loads(found).values()) == {Loads.YES}


@pytest.mark.parametrize(
    ("setting", "value", "verdict"),
    [
        ("actorder", "weight", Loads.NO),
        ("observer", "mse", Loads.NO),
        ("actorder", None, Loads.YES),
        ("observer_kwargs", {}, Loads.YES),
    ],
)
def test_groups_of_experts_that_differ_in_what_is_not_stored(
    setting: str, value: object, verdict: Loads, moe: Path, tmp_path: Path
) -> None:
    """Engines compare the whole schemes of a layer's projections, as compressed-tensors reads them."""
    quantized(moe, tmp_path / "four", method="minmax")
    said = section(tmp_path / "four")
    other = json.loads(json.dumps(said["config_groups"]["group_0"])) | {"targets": [r"re:.*experts.*down_proj$"]}
    other["weights"][setting] = value
    said["config_groups"] = {"experts": other, **said["config_groups"]}
    found = checked(rewritten(tmp_path / "four", tmp_path / "out", dict, quantization_config=said))
    assert loads(found)["vllm"] is verdict


def test_inspect_says_what_check_says_of_groups(
    dense: Path,
    two_precisions: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    right = two_precisions(dense, tmp_path / "right", [(["Linear"], 4), ([WHOLE], 8)])
    assert not describe(Checkpoint.open(right)).remarks
    wrong = two_precisions(dense, tmp_path / "wrong", [(["Linear"], 4), ([ANCHORED], 8)])
    texts = [remark.text for remark in describe(Checkpoint.open(wrong)).remarks]
    assert any("num_bits 4 in the config, 8 stored" in text and "by the names of vllm" in text for text in texts)


def test_sglang_stops_at_what_nothing_names(dense_out: Path, tmp_path: Path) -> None:
    """`find_matched_target` raises where neither `ignore` nor a target names a Linear: no memory is left as it was."""
    said = section(dense_out)
    said["config_groups"]["group_0"]["targets"] = [r"re:.*self_attn.*", r"re:.*mlp.*"]
    said["ignore"] = [r"re:.*vision_tower.*", "lm_head"]
    found = checked(rewritten(dense_out, tmp_path / "out", dict, quantization_config=said))
    (verdict,) = [one for one in found.verdicts if one.engine == "sglang"]
    (line,) = [remark.line for remark in verdict.problems]
    assert "neither ignored nor targeted: stops with an error" in line
    assert loads(found)["vllm"] is Loads.YES

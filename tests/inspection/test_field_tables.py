"""Parts that only some engines read packed: tables, embeddings, experts in one tensor."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checked import checked, codes, loads, section
from helpers.conversions import quantized
from helpers.rewriting import Tensors, rewritten

from g4convert.engines.verdicts import Loads
from g4convert.report import Severity


def packed_table(module: str, tensors: Tensors, *, bits: int = 4) -> Tensors:
    """A table as words of so many bits, with a scale for 32 of them."""
    n, k = tensors[f"{module}.weight"].shape
    parts = {
        "weight_packed": torch.zeros(n, k * bits // 32, dtype=torch.int32),
        "weight_scale": torch.ones(n, k // 32, dtype=torch.bfloat16),
        "weight_shape": torch.tensor([n, k]),
    }
    rest = {name: tensor for name, tensor in tensors.items() if name != f"{module}.weight"}
    return rest | {f"{module}.{part}": tensor for part, tensor in parts.items()}


def targeted(directory: Path, *entries: str) -> dict[str, Any]:
    """A section whose targets name tables, too, and whose `ignore` does not."""
    said = section(directory)
    said["config_groups"]["group_0"]["targets"] = ["Linear", *entries]
    said["ignore"] = [entry for entry in said["ignore"] if "lm_head" not in entry and "per_layer" not in entry]
    said["ignore"] += [r"re:.*per_layer_(input_gate|projection|model_projection)$"]
    return said


def test_vllm_alone_reads_a_packed_per_layer_table(e2b: Path, tmp_path: Path) -> None:
    quantized(e2b, tmp_path / "four", method="minmax")
    table = "model.language_model.embed_tokens_per_layer"
    said = targeted(tmp_path / "four", r"re:.*embed_tokens_per_layer$")
    said["ignore"] += ["lm_head"]
    out = rewritten(tmp_path / "four", tmp_path / "out", lambda t: packed_table(table, t), quantization_config=said)
    found = checked(out)
    assert not codes(found)
    assert loads(found) == {"transformers": Loads.NO, "vllm": Loads.YES, "sglang": Loads.NO}
    (kept,) = [one for one in found.report.of(Severity.WARN) if one.code == "static.kept"]
    assert "vLLM 0.33 reads it" in kept.found
    said["config_groups"]["group_0"]["targets"] = ["Linear"]
    bare = rewritten(out, tmp_path / "bare", dict, quantization_config=said)
    assert loads(checked(bare))["vllm"] is Loads.NO  # no class name of a Linear names a table


def test_no_engine_reads_a_packed_table_with_zero_points(e2b: Path, tmp_path: Path) -> None:
    quantized(e2b, tmp_path / "four", method="minmax")
    table = "model.language_model.embed_tokens_per_layer"

    def change(tensors: Tensors) -> Tensors:
        found = packed_table(table, tensors)
        n, groups = found[f"{table}.weight_scale"].shape
        return found | {f"{table}.weight_zero_point": torch.zeros(n // 8, groups, dtype=torch.int32)}

    said = targeted(tmp_path / "four")
    said["ignore"] += ["lm_head"]
    group = json.loads(json.dumps(said["config_groups"]["group_0"])) | {"targets": [r"re:.*embed_tokens_per_layer$"]}
    group["weights"]["symmetric"] = False
    said["config_groups"]["tables"] = group
    found = checked(rewritten(tmp_path / "four", tmp_path / "out", change, quantization_config=said))
    assert set(loads(found).values()) == {Loads.NO}
    (vllm,) = [one for one in found.verdicts if one.engine == "vllm"]
    assert ["no parameter for `weight_zero_point`" in remark.line for remark in vllm.problems] == [True]


@pytest.mark.parametrize("tied", [False, True])
def test_vllm_reads_packed_embeddings_with_a_head_of_their_own(
    tied: bool,  # noqa: FBT001 -- a parameter
    text: Path,
    tmp_path: Path,
) -> None:
    quantized(text, tmp_path / "four", method="minmax")
    table = "model.embed_tokens"

    def change(tensors: Tensors) -> Tensors:
        head = {} if tied else {"lm_head.weight": tensors[f"{table}.weight"].clone()}
        found = packed_table(table, tensors | head)
        return found if tied else packed_table("lm_head", found)

    said = targeted(tmp_path / "four", r"re:.*embed_tokens$", *([] if tied else [r"re:.*lm_head$"]))
    said["ignore"] += ["lm_head"] if tied else []
    out = rewritten(tmp_path / "four", tmp_path / "out", change, quantization_config=said, tie_word_embeddings=tied)
    found = checked(out)
    assert (loads(found)["vllm"] is Loads.NO) is tied
    assert loads(found)["transformers"] is Loads.NO
    assert loads(found)["sglang"] is Loads.NO
    reasons = [remark.line for one in found.verdicts for remark in one.problems]
    assert any("tied with the head" in line for line in reasons) is tied
    assert any("AttributeError" in line for line in reasons)


def joined(tensors: Tensors) -> Tensors:
    """All packed experts of a layer in one tensor of words and one of scales."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    owners = {name.partition(".experts.")[0] + ".experts" for name in tensors if ".experts." in name}
    for owner in owners:
        count = len(
            {name for name in tensors if name.startswith(f"{owner}.") and name.endswith("down_proj.weight_scale")}
        )
        for part in ("packed", "scale"):
            of = [
                {name: tensors[f"{owner}.{e}.{name}_proj.weight_{part}"] for name in ("gate", "up", "down")}
                for e in range(count)
            ]
            found[f"{owner}.gate_up_proj_{part}"] = torch.stack([torch.cat([one["gate"], one["up"]]) for one in of])
            found[f"{owner}.down_proj_{part}"] = torch.stack([one["down"] for one in of])
    return found


@pytest.mark.parametrize("group_size", [32, "channel"])
def test_vllm_alone_reads_experts_that_are_packed_in_one_tensor(
    group_size: int | str, moe: Path, tmp_path: Path
) -> None:
    quantized(moe, tmp_path / "four", method="minmax", group_size=group_size)
    found = checked(rewritten(tmp_path / "four", tmp_path / "out", joined))
    assert not codes(found)
    reads = Loads.YES if group_size == 32 else Loads.CAVEAT  # Hopper needs a flag for scales of rows
    assert loads(found) == {"transformers": Loads.NO, "vllm": reads, "sglang": Loads.NO}
    said = section(tmp_path / "four")
    said["config_groups"]["group_0"]["weights"] |= {"group_size": 64, "strategy": "group"}
    wrong = checked(rewritten(tmp_path / "out", tmp_path / "wrong", dict, quantization_config=said))
    assert loads(wrong)["vllm"] is Loads.NO

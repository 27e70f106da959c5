"""Words, scales, zero points and orders of columns as people publish them, and what each engine makes of them."""

from pathlib import Path

import pytest
import torch
from conftest import Checkpoints, Packed
from helpers.checked import beside, checked, codes, dense_out, loads, modules, section
from helpers.conversions import quantized
from helpers.other_bits import in_bits
from helpers.rewriting import Tensors, rewritten

from g4convert.checkpoint.directory import Checkpoint
from g4convert.engines.verdicts import Loads
from g4convert.errors import GateError
from g4convert.inspection import describe
from g4convert.inspection.fix import fix
from g4convert.report import Severity

__all__ = ["dense_out"]


@pytest.mark.parametrize("order", ["group", "dynamic"])
@pytest.mark.parametrize("has_index", [True, False])
def test_another_order_of_columns_is_never_fixed(
    order: str,
    has_index: bool,  # noqa: FBT001 -- a parameter
    dense_out: Path,
    tmp_path: Path,
) -> None:
    said = section(dense_out)
    said["config_groups"]["group_0"]["weights"]["actorder"] = order
    index = beside("weight_g_idx", torch.zeros(128, dtype=torch.int32)) if has_index else dict
    out = rewritten(dense_out, tmp_path / "out", index, quantization_config=said)
    before = (out / "config.json").read_bytes()
    with pytest.raises(GateError, match="another order") as caught:
        fix(out)
    assert "quantize the source again" in caught.value.hint
    assert (out / "config.json").read_bytes() == before
    assert {path.name for path in out.glob("config.json*")} == {"config.json"}
    assert not any("delete" in one.remedy for one in checked(out).report.of(Severity.FAIL))


@pytest.mark.parametrize("order", ["weight", "static"])
def test_an_order_that_is_in_the_weights_loads(order: str, dense_out: Path, tmp_path: Path) -> None:
    said = section(dense_out)
    said["config_groups"]["group_0"]["weights"]["actorder"] = order
    assert not codes(checked(rewritten(dense_out, tmp_path / "out", dict, quantization_config=said)))


@pytest.mark.parametrize("part", ["input_scale", "output_scale", "weight_global_scale", "input_global_scale"])
def test_a_stray_scale_stops_vllm_and_no_other(part: str, dense_out: Path, tmp_path: Path) -> None:
    found = checked(rewritten(dense_out, tmp_path / "out", beside(part, torch.tensor(0.05))))
    assert loads(found)["vllm"] is Loads.NO
    assert loads(found)["transformers"] is not Loads.NO
    assert "static.unknown" in codes(found)
    kept = rewritten(tmp_path / "out", tmp_path / "mended", lambda t: {n: v for n, v in t.items() if part not in n})
    assert loads(checked(kept))["vllm"] is not Loads.NO


@pytest.mark.parametrize("family", ["dense", "text", "e2b"])
def test_scales_of_a_cache_are_known(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    quantized(request.getfixturevalue(family), tmp_path / "out", method="minmax")

    def change(tensors: Tensors) -> Tensors:
        owners = [m.removesuffix(".k_proj") for m in modules(tensors) if m.endswith("self_attn.k_proj")]
        scale = torch.tensor([0.02], dtype=torch.bfloat16)
        return tensors | {f"{owner}.{part}": scale.clone() for owner in owners for part in ("k_scale", "v_scale")}

    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    said = section(tmp_path / "out") | {"kv_cache_scheme": cache}
    found = checked(rewritten(tmp_path / "out", tmp_path / "cache", change, quantization_config=said))
    assert not codes(found)
    assert loads(found)["vllm"] is not Loads.NO
    assert not describe(Checkpoint.open(tmp_path / "cache")).unknown
    assert loads(found)["transformers"] is Loads.CAVEAT  # heads of full layers are wider, and releases before 5.24 stop
    bare = rewritten(tmp_path / "out", tmp_path / "bare", dict, quantization_config=said)
    assert loads(checked(bare))["transformers"] is Loads.CAVEAT
    dynamic = rewritten(tmp_path / "cache", tmp_path / "scales", dict, quantization_config=section(tmp_path / "out"))
    refused = {"sglang"} if family == "text" else set()  # whatever is stored: its layers differ in their heads
    assert {engine for engine, said in loads(checked(dynamic)).items() if said is not Loads.YES} == refused


def test_zero_points_are_a_caveat_of_transformers(dense_out: Path, tmp_path: Path) -> None:
    said = section(dense_out)
    said["config_groups"]["group_0"]["weights"]["symmetric"] = False

    def change(tensors: Tensors) -> Tensors:
        zeros = {}
        for module in modules(tensors):
            n, groups = tensors[f"{module}.weight_scale"].shape
            zeros[f"{module}.weight_zero_point"] = torch.zeros(n // 8, groups, dtype=torch.int32)
        return tensors | zeros

    found = checked(rewritten(dense_out, tmp_path / "out", change, quantization_config=said))
    assert loads(found)["transformers"] is Loads.CAVEAT
    assert loads(found)["vllm"] is not Loads.NO


@pytest.mark.parametrize("has_zeros", [True, False])
def test_what_no_engine_builds_as_stored_is_no_matter_of_targets(
    has_zeros: bool,  # noqa: FBT001 -- a parameter
    dense_out: Path,
    tmp_path: Path,
) -> None:
    said = section(dense_out)
    said["config_groups"]["group_0"]["weights"]["symmetric"] = has_zeros

    def change(tensors: Tensors) -> Tensors:
        sizes = {module: tensors[f"{module}.weight_scale"].shape for module in modules(tensors) if has_zeros}
        zeros = {m: torch.zeros(-(-n // 8), groups, dtype=torch.int32) for m, (n, groups) in sizes.items()}
        return tensors | {f"{module}.weight_zero_point": zero for module, zero in zeros.items()}

    found = checked(rewritten(dense_out, tmp_path / "out", change, quantization_config=said))
    assert set(loads(found).values()) == {Loads.NO}
    remedies = {remark.remedy for one in found.verdicts for remark in one.problems if "group_0" in remark.line}
    assert remedies == {"a config group that says how the weights are stored, or weights that are stored as it says"}


@pytest.mark.parametrize("kind", ["one byte each", "packed along the columns"])
def test_zero_points_in_another_form_stop_all_engines(kind: str, dense_out: Path, tmp_path: Path) -> None:
    """As AWQ and GPTQ hold them: compressed-tensors packs them along the rows, and all engines make room for that."""
    said = section(dense_out)
    said["config_groups"]["group_0"]["weights"]["symmetric"] = False

    def change(tensors: Tensors) -> Tensors:
        sizes = {module: tensors[f"{module}.weight_scale"].shape for module in modules(tensors)}
        byte, word = torch.int8, torch.int32
        zeros = {m: torch.zeros(n, g, dtype=byte) for m, (n, g) in sizes.items()}
        if kind == "packed along the columns":
            zeros = {m: torch.zeros(n, -(-g // 8), dtype=word) for m, (n, g) in sizes.items()}
        return tensors | {f"{module}.weight_zero_point": zero for module, zero in zeros.items()}

    found = checked(rewritten(dense_out, tmp_path / "out", change, quantization_config=said))
    assert set(loads(found).values()) == {Loads.NO}
    assert any(one.code == "static.packed" and "weight_zero_point" in one.found for one in found.report.findings)


@pytest.mark.parametrize("bits", [3, 6])
@pytest.mark.parametrize("family", ["dense", "moe"])
def test_other_bits_have_humming_in_vllm_and_no_kernel_in_sglang(
    family: str, bits: int, checkpoints: Checkpoints, packed: Packed, tmp_path: Path
) -> None:
    """Transformers 5.22.2 loads them; of vLLM 0.33 and SGLang the sources were read."""
    out = in_bits(checkpoints(family), packed(family, num_bits=8, method="minmax"), tmp_path / "out", bits)
    found = checked(out)
    assert not codes(found) - {"engines.sglang", "engines.transformers"}
    assert loads(found)["transformers"] is (Loads.NO if family == "moe" else Loads.CAVEAT)  # no mapping for experts
    assert any("compressed-tensors 0.18" in remark.line for one in found.verdicts for remark in one.caveats)
    assert (loads(found)["vllm"], loads(found)["sglang"]) == (Loads.CAVEAT, Loads.NO)
    said = [remark.line for one in found.verdicts if one.engine == "vllm" for remark in one.told]
    assert said == [f"Humming is compiled when the server starts: Marlin takes no {bits} bits"]
    lines = [remark.line for one in found.verdicts if one.engine == "sglang" for remark in one.problems]
    assert any((f"no kernel for {bits} bits" if family == "dense" else "Gemma has GELU") in line for line in lines)


@pytest.mark.parametrize(("bits", "read"), [(2, True), (6, False)])
def test_vllm_looks_up_codes_that_keep_to_their_words(
    *, bits: int, read: bool, checkpoints: Checkpoints, packed: Packed, tmp_path: Path
) -> None:
    tables = packed("e2b", num_bits=8, method="minmax", bits={"ple_embedding": 8})
    out = in_bits(checkpoints("e2b"), tables, tmp_path / "out", bits)
    found = checked(out)
    problems = [remark.line for one in found.verdicts if one.engine == "vllm" for remark in one.problems]
    assert any("which its lookup does not read" in line for line in problems) is not read


def test_scales_that_zero_points_belong_to_are_never_read_without_them(dense_out: Path, tmp_path: Path) -> None:
    said = section(dense_out)
    said["config_groups"]["group_0"]["weights"]["symmetric"] = False
    out = rewritten(dense_out, tmp_path / "out", dict, quantization_config=said)
    found = checked(out)
    assert set(loads(found).values()) == {Loads.NO}
    assert not any("--fix" in one.remedy for one in found.report.findings)
    before = (out / "config.json").read_bytes()
    with pytest.raises(GateError, match="cannot confirm") as caught:
        fix(out)
    assert "no weight_zero_point" in caught.value.offenders[0]
    assert (out / "config.json").read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_words_of_another_dtype_are_said_to_be(dtype: torch.dtype, dense_out: Path, tmp_path: Path) -> None:
    """They are no NVFP4, whose scales have one byte."""

    def change(tensors: Tensors) -> Tensors:
        return {n: t.view(dtype) if n.endswith("weight_packed") else t for n, t in tensors.items()}

    found = checked(rewritten(dense_out, tmp_path / "out", change))
    assert set(loads(found).values()) == {Loads.NO}
    said = [one.found for one in found.report.of(Severity.FAIL) if one.code == "static.packed"]
    assert said
    assert all(str(dtype).removeprefix("torch.").upper()[0] in line for line in said)

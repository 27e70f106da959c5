"""Other formats than packed words, and where each engine reads the format."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from helpers.checked import assert_loads_as, beside, checked, codes, dense_out, loaded_values, loads, modules, section
from helpers.conversions import quantized, stored
from helpers.grids import two_when_quick
from helpers.rewriting import Tensors, rewritten

from g4convert.checkpoint.directory import Checkpoint
from g4convert.engines.verdicts import Loads
from g4convert.errors import UnsupportedError
from g4convert.inspection import describe
from g4convert.inspection.fix import fix
from g4convert.request import Request
from g4convert.verification.run import verify

__all__ = ["dense_out"]


def assert_refused(out: Path, said: str) -> None:
    """Each command that judges refuses the checkpoint in the same words; none calls a sound tensor wrong."""
    for judge in (checked, fix, lambda path: verify(Request(path))):
        with pytest.raises(UnsupportedError, match=said):
            judge(out)


def renamed(tensors: Tensors, part: str, *others: str) -> Tensors:
    """Packed words as bytes under another name, and tensors of another format beside them."""
    found = {name: tensor for name, tensor in tensors.items() if ".weight_" not in name}
    for module in modules(tensors):
        words = tensors[f"{module}.weight_packed"]
        found[f"{module}.{part}"] = words.view(torch.uint8).clone()
        found |= {f"{module}.{other}": torch.ones(1) for other in others}
    return found


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("weight_packed", "weight_scale", "weight_global_scale"), "nvfp"),
        (("weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"), "bitsandbytes"),
        (("weight", "weight_scale", "weight_scale_2", "input_scale"), "modelopt-nvfp4"),
        (("qweight", "qzeros", "scales", "g_idx"), "gptq"),
    ],
)
def test_other_formats_are_refused_by_name(parts: tuple[str, ...], said: str, dense_out: Path, tmp_path: Path) -> None:
    out = rewritten(dense_out, tmp_path / "out", lambda tensors: renamed(tensors, *parts))
    assert_refused(out, said)


COMPRESSED = {"float-quantized": torch.float8_e4m3fn, "int-quantized": torch.int8}


@pytest.mark.parametrize("form", COMPRESSED)
def test_other_formats_of_compressed_tensors_are_refused_by_name(
    form: str, dense: Path, dense_out: Path, tmp_path: Path
) -> None:
    """FP8 and INT8 as llm-compressor writes them, activations quantized as they come."""
    said = section(dense_out)
    weights = INT8 | {"type": form.partition("-")[0], "strategy": "channel"}
    activations = weights | {"strategy": "token", "dynamic": True}
    said["config_groups"]["group_0"] |= {"format": form, "weights": weights, "input_activations": activations}

    def change(tensors: Tensors) -> Tensors:
        originals = stored(dense)
        found = {name: tensor for name, tensor in tensors.items() if ".weight_" not in name}
        for module in modules(tensors):
            weight = originals[f"{module}.weight"].float()
            scale = weight.abs().amax(1, keepdim=True) / 127
            found[f"{module}.weight"] = (weight / scale).to(COMPRESSED[form])
            found[f"{module}.weight_scale"] = scale.bfloat16()
        return found

    out = rewritten(dense_out, tmp_path / "out", change, quantization_config=said | {"format": form})
    assert_refused(out, form)


def test_quantized_activations_with_their_scales_are_not_judged(dense_out: Path, tmp_path: Path) -> None:
    said = section(dense_out)
    said["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "int", "dynamic": False}
    scales = beside("input_scale", torch.tensor(0.05))
    out = rewritten(dense_out, tmp_path / "out", scales, quantization_config=said)
    assert_refused(out, "activations are quantized, too")


INT8 = {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": True, "dynamic": False}


@pytest.mark.parametrize(("shape", "loaded"), [((1,), Loads.YES), ((), Loads.CAVEAT)])
def test_static_activations_with_their_scales(
    shape: tuple[int, ...], loaded: Loads, dense_out: Path, tmp_path: Path
) -> None:
    said = section(dense_out)
    said["config_groups"]["group_0"] |= {"input_activations": INT8, "output_activations": INT8}
    scale = torch.full(shape, 0.05)

    def change(tensors: Tensors) -> Tensors:
        return beside("output_scale", scale)(beside("input_scale", scale)(tensors))

    out = rewritten(dense_out, tmp_path / "out", change, quantization_config=said)
    found = checked(out)
    assert not codes(found)
    assert loads(found) == {"transformers": loaded, "vllm": Loads.YES, "sglang": Loads.NO}
    assert not any("delete" in one.remedy or "null" in one.remedy for one in found.report.findings)
    lost = rewritten(
        out, tmp_path / "lost", lambda t: {n: v for n, v in t.items() if not n.endswith("q_proj.input_scale")}
    )
    assert loads(checked(lost))["vllm"] is Loads.NO
    bare = rewritten(out, tmp_path / "bare", dict, quantization_config=section(dense_out))
    assert loads(checked(bare))["vllm"] is Loads.NO
    two = checked(rewritten(out, tmp_path / "two", beside("input_scale", torch.ones(2))))
    assert loads(two)["vllm"] is Loads.NO
    assert "input_scale F32 [2]" in {one.found for one in two.report.findings if one.code == "static.scale"}


def test_experts_take_no_quantized_activations(moe: Path, tmp_path: Path) -> None:
    quantized(moe, tmp_path / "four", method="minmax")
    said = section(tmp_path / "four")
    said["config_groups"]["group_0"] |= {"input_activations": INT8, "output_activations": INT8}
    scales = beside("input_scale", torch.ones(1))
    out = rewritten(
        tmp_path / "four",
        tmp_path / "out",
        lambda t: beside("output_scale", torch.ones(1))(scales(t)),
        quantization_config=said,
    )
    found = checked(out)
    assert loads(found)["vllm"] is Loads.NO
    assert any(
        "experts take no quantized activations" in remark.line for one in found.verdicts for remark in one.problems
    )


@pytest.mark.parametrize(
    ("globs", "missed"),
    [
        (["model.vision_tower*", "model.embed_vision*"], set()),
        (["*vision*"], set()),
        (["*visual*", "model.embed_vision*"], {"model.vision_tower"}),
        (["model.vision_tower*", "*multi_modal_projector*"], {"model.embed_vision"}),
    ],
)
def test_globs_of_modelopt_hold_in_vllm_which_renames_them(
    globs: list[str], missed: set[str], dense_out: Path, tmp_path: Path
) -> None:
    said = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", *globs]}
    parts = ("weight", "weight_scale", "weight_scale_2", "input_scale")
    out = rewritten(dense_out, tmp_path / "out", lambda t: renamed(t, *parts), quantization_config=said)
    found = [remark for remark in describe(Checkpoint.open(out)).remarks if "although" in remark.text]
    assert bool(found) is bool(missed), found
    assert all(any(part in one.example for one in found) for part in missed), found


STOPS, ALL_LOAD, NONE_LOADS = {"vllm", "sglang"}, set[str](), {"transformers", "vllm", "sglang"}
FORMATS: Mapping[str, tuple[dict[str, object], dict[str, object], set[str]]] = {
    "at the top": ({"format": "pack-quantized"}, {}, ALL_LOAD),
    "at the group": ({}, {"format": "pack-quantized"}, ALL_LOAD),
    "at the group, another at the top": ({"format": "mixed-precision"}, {"format": "pack-quantized"}, ALL_LOAD),
    "null at the group": ({"format": "pack-quantized"}, {"format": None}, ALL_LOAD),
    "nowhere": ({}, {}, STOPS),
    "dense": ({"format": "dense"}, {}, STOPS),
    "int-quantized": ({"format": "int-quantized"}, {}, STOPS),
    "mixed-precision": ({"format": "mixed-precision"}, {}, STOPS),
    "a word that no engine knows": ({"format": "packed"}, {"format": None}, STOPS),
    "null": ({"format": None}, {}, NONE_LOADS),
    "null, another at the group": ({"format": None}, {"format": "pack-quantized"}, {"transformers"}),
    "no text": ({"format": 3}, {"format": "pack-quantized"}, NONE_LOADS),
    "dense at the group": ({"format": "pack-quantized"}, {"format": "dense"}, NONE_LOADS),
    "int-quantized at the group": ({"format": "pack-quantized"}, {"format": "int-quantized"}, NONE_LOADS),
    "mixed-precision at the group": ({"format": "pack-quantized"}, {"format": "mixed-precision"}, NONE_LOADS),
}
"""Name -> keys at the top of the section, keys of the group, engines that do not load it."""


def with_format(out: Path, to: Path, top: Mapping[str, object], own: Mapping[str, object]) -> Path:
    said = section(out)
    said.pop("format")
    (group,) = said["config_groups"].values()
    group.pop("format", None)
    said["config_groups"] = {"group_0": group | own}
    return rewritten(out, to, dict, quantization_config=said | top)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_where_the_engine_reads_it(name: str, dense_out: Path, tmp_path: Path) -> None:
    top, own, refusing = FORMATS[name]
    out = with_format(dense_out, tmp_path / "out", top, own)
    found = checked(out)
    assert {engine for engine, answer in loads(found).items() if answer is Loads.NO} == refusing
    assert bool(codes(found)) == bool(refusing)
    remarks = [one.text for one in describe(Checkpoint.open(out)).remarks]
    assert bool(remarks) == bool(refusing), remarks
    if refusing:
        assert fix(out) is not None
        assert not codes(checked(out))


@pytest.mark.parametrize(
    "name", two_when_quick([name for name, (*_, refusing) in FORMATS.items() if "transformers" not in refusing])
)
def test_transformers_infers_a_format_that_the_group_lacks(name: str, dense_out: Path, tmp_path: Path) -> None:
    top, own, _ = FORMATS[name]
    assert_loads_as(with_format(dense_out, tmp_path / "out", top, own), dense_out)


@pytest.mark.parametrize("name", [name for name, (*_, refusing) in FORMATS.items() if "transformers" in refusing])
def test_transformers_fails_where_it_is_said_to(name: str, dense_out: Path, tmp_path: Path) -> None:
    top, own, _ = FORMATS[name]
    with pytest.raises((AssertionError, NotImplementedError, ValueError)):
        loaded_values(with_format(dense_out, tmp_path / "out", top, own))

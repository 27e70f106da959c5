"""Checkpoints as people publish them: what each engine makes of them, and what `--fix` must leave alone."""

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.conversions import quantized, stored
from helpers.engine_cases import SPELLINGS
from helpers.field import BY_LAYER, by_layer, patterns
from helpers.grids import every, few
from helpers.rewriting import Tensors, rewritten

from g4convert.checkpoint.directory import Checkpoint
from g4convert.engines.verdicts import Loads
from g4convert.errors import GateError, UnsupportedError
from g4convert.forward.models import model_class, quiet_transformers
from g4convert.inspection import describe
from g4convert.inspection.engines import Asked, Checked, check
from g4convert.inspection.fix import fix
from g4convert.report import Severity


@pytest.fixture(scope="module")
def dense_out(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain W4A16 of the dense model."""
    out = tmp_path_factory.mktemp("field") / "out"
    quantized(dense, out, method="minmax")
    return out


def loads(found: Checked) -> Mapping[str, Loads]:
    return {one.engine: one.loads for one in found.verdicts}


def checked(directory: Path) -> Checked:
    return check(Asked(directory, tps=(1,)))


def codes(found: Checked) -> set[str]:
    return {one.code for one in found.report.of(Severity.FAIL)}


def section(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())["quantization_config"]
    return config


def modules(tensors: Tensors) -> list[str]:
    return [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]


def beside(part: str, tensor: torch.Tensor) -> Any:  # noqa: ANN401 -- a function of tensors
    """Adds a tensor to each packed module."""

    def change(tensors: Tensors) -> Tensors:
        return tensors | {f"{module}.{part}": tensor.clone() for module in modules(tensors)}

    return change


def loaded_values(directory: Path) -> Tensors:
    """Every tensor of the model that transformers loads, by name; nothing missing, nothing unexpected."""
    with quiet_transformers():
        kind = json.loads((directory / "config.json").read_text())["model_type"]
        model, report = model_class(kind).from_pretrained(directory, dtype=torch.bfloat16, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return dict(model.state_dict())


loaded_once = cache(loaded_values)


def assert_loads_as(directory: Path, good: Path) -> None:
    """Every value that transformers loads from a corrected checkpoint is that of a good one, which stays as it is."""
    found, expected = loaded_values(directory), loaded_once(good)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


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
    few(
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
    assert set(loads(checked(dynamic)).values()) == {Loads.YES}


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


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_three_bits_are_packed_right_but_have_no_kernel(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Recorded: transformers 5.22.2 loads them, vLLM 0.33 has only the optional Humming, SGLang takes 4 and 8."""
    quantized(request.getfixturevalue(family), tmp_path / "four", method="minmax")
    said = section(tmp_path / "four")
    said["config_groups"]["group_0"]["weights"]["num_bits"] = 3

    def change(tensors: Tensors) -> Tensors:
        words = {name: tensor for name, tensor in tensors.items() if name.endswith(".weight_packed")}
        return tensors | {name: one[:, : one.shape[1] * 3 // 4].clone() for name, one in words.items()}

    found = checked(rewritten(tmp_path / "four", tmp_path / "out", change, quantization_config=said))
    assert not codes(found) - {"engines.vllm", "engines.sglang", "engines.transformers"}
    assert (loads(found)["transformers"] is Loads.NO) is (family == "moe")  # it has no mapping for single experts
    assert loads(found)["vllm"] is loads(found)["sglang"] is Loads.NO
    reasons = [remark.line for one in found.verdicts if one.engine != "transformers" for remark in one.problems]
    assert any("no kernel for 3 bits" in line for line in reasons)


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
    with pytest.raises(UnsupportedError, match=said):
        checked(out)


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
    with pytest.raises(UnsupportedError, match=form):
        checked(out)


def test_quantized_activations_with_their_scales_are_not_judged(dense_out: Path, tmp_path: Path) -> None:
    said = section(dense_out)
    said["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "int", "dynamic": False}
    scales = beside("input_scale", torch.tensor(0.05))
    with pytest.raises(UnsupportedError, match="activations are quantized, too"):
        checked(rewritten(dense_out, tmp_path / "out", scales, quantization_config=said))


@pytest.mark.parametrize(
    "found",
    [
        "gone",
        ["FSDPGemma4ForConditionalGeneration"],
        ["Gemma4Model"],
        ["Gemma4ForCausalLM"],
        ["Gemma4UnifiedForConditionalGeneration"],
        [],
    ],
)
def test_vllm_chooses_by_the_class(found: object, dense_out: Path, tmp_path: Path) -> None:
    result = checked(rewritten(dense_out, tmp_path / "out", dict, architectures=found))
    assert loads(result)["vllm"] is Loads.NO
    assert loads(result)["transformers"] is not Loads.NO
    (remedy,) = {one.remedy for one in result.report.of(Severity.FAIL) if one.code == "static.class"}
    config = json.loads((tmp_path / "out/config.json").read_text())
    config |= json.loads(f"{{{remedy.split('`')[1]}}}")
    shutil.copytree(tmp_path / "out", tmp_path / "mended")
    (tmp_path / "mended/config.json").write_text(json.dumps(config))
    assert loads(checked(tmp_path / "mended"))["vllm"] is not Loads.NO


# several config groups


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
    few(
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


@pytest.mark.parametrize(
    ("groups", "loaded"),
    [
        ({"W4A16": ["Linear"]}, {"transformers"}),
        ({"w4a16": ["Linear"]}, {"transformers"}),
        ({"W8A16": ["Linear"]}, set()),
        ({"W4A16_ASYM": ["Linear"]}, set()),
    ],
)
def test_a_preset_by_its_name_is_read_by_transformers_alone(
    groups: dict[str, Any], loaded: set[str], dense_out: Path, tmp_path: Path
) -> None:
    """The others, vLLM 0.33 and SGLang 0.5.23, ask a group for its `targets`, and a list has none."""
    said = section(dense_out) | {"config_groups": groups}
    out = rewritten(dense_out, tmp_path / "out", dict, quantization_config=said)
    assert {engine for engine, one in loads(checked(out)).items() if one is not Loads.NO} == loaded
    if "ASYM" in "".join(groups):
        with pytest.raises(GateError, match="cannot confirm"):
            fix(out)
        return
    assert fix(out)
    assert set(loads(checked(out)).values()) == {Loads.YES}
    assert_loads_as(out, dense_out)


@pytest.mark.parametrize(("place", "loaded"), [("group_0", {"vllm", "sglang"}), ("weights", set())])
def test_keys_that_compressed_tensors_does_not_know(
    place: str, loaded: set[str], dense_out: Path, tmp_path: Path
) -> None:
    """All three read `weights` with its class, transformers alone the whole group."""
    said = section(dense_out)
    group = said["config_groups"]["group_0"]
    (group if place == "group_0" else group["weights"])["comment"] = "by hand"
    out = rewritten(dense_out, tmp_path / "out", dict, quantization_config=said)
    assert {engine for engine, one in loads(checked(out)).items() if one is not Loads.NO} == loaded
    assert fix(out)
    assert set(loads(checked(out)).values()) == {Loads.YES}


@pytest.mark.parametrize("observer", [3, ["mse"]])
def test_an_observer_is_a_name(observer: object, dense_out: Path, tmp_path: Path) -> None:
    said = broken(section(dense_out), observer=observer)
    out = rewritten(dense_out, tmp_path / "out", dict, quantization_config=said)
    assert set(loads(checked(out)).values()) == {Loads.NO}
    assert fix(out)
    assert_loads_as(out, dense_out)


# other names


@pytest.mark.parametrize(
    ("family", "names", "read"),
    few(
        [
            ("dense", "of vLLM", {"vllm"}),
            ("dense", "of the inner model", {"transformers", "sglang"}),
            ("dense", "doubled", {"transformers"}),
            ("dense", "nested", set()),
            ("dense", "of a text-only model", {"vllm"}),
            ("dense", "compiled", set()),
            ("dense", "of PEFT", set()),
            ("dense", "of FSDP", set()),
            ("dense", "of towers without a wrapper", {"sglang"}),
            ("dense", "of SGLang's towers", {"sglang"}),
            ("unified", "of unified modules", set()),
            ("unified", "of the inner model", {"transformers", "sglang"}),
            ("text", "of the inner model", {"transformers"}),
            ("text", "of a multimodal model", {"vllm", "sglang"}),
            ("text", "of vLLM", set()),
        ]
    ),
)
def test_each_engine_reads_other_names_than_the_others(
    family: str, names: str, read: set[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Names that transformers reads are loaded here; `make test-engines` asks the loaders of the others."""
    quantized(request.getfixturevalue(family), tmp_path / "good", method="minmax")
    write = SPELLINGS[names]
    out = rewritten(tmp_path / "good", tmp_path / "out", lambda t: {write(name): one for name, one in t.items()})
    found = checked(out)
    wanted = {engine for engine, one in loads(checked(tmp_path / "good")).items() if one is not Loads.NO}
    assert {engine for engine, one in loads(found).items() if one is not Loads.NO} == read & wanted
    assert bool(found.report.of(Severity.FAIL)) is not bool(read & wanted)
    if "transformers" in read:
        assert_loads_as(out, tmp_path / "good")
    else:
        with pytest.raises(AssertionError):
            loaded_values(out)


def test_a_head_of_another_name_is_read_by_transformers(text: Path, tmp_path: Path) -> None:
    quantized(text, tmp_path / "good", method="minmax")
    for name, read in (("model.lm_head.weight", {"transformers"}), ("language_model.lm_head.weight", set[str]())):
        out = rewritten(
            tmp_path / "good",
            tmp_path / name,
            lambda t, n=name: {n if one == "lm_head.weight" else one: w for one, w in t.items()},
        )
        assert {engine for engine, one in loads(checked(out)).items() if one is not Loads.NO} == read
        if read:
            assert_loads_as(out, tmp_path / "good")


def test_a_tied_head_of_another_name_stops_vllm(dense: Path, dense_out: Path, tmp_path: Path) -> None:
    for name, stops in (("model.lm_head.weight", True), ("language_model.lm_head.weight", False)):
        table = stored(dense)["model.language_model.embed_tokens.weight"]
        found = checked(rewritten(dense_out, tmp_path / name, lambda t, n=name, e=table: {**t, n: e.clone()}))
        assert (loads(found)["vllm"] is Loads.NO) is stops
        assert loads(found)["transformers"] is not Loads.NO
        assert loads(found)["sglang"] is not Loads.NO


def test_an_embedding_that_is_stored_as_its_head_is_tied_by_transformers(dense_out: Path, tmp_path: Path) -> None:
    """The others leave a tied head aside: vLLM 0.33 then stops, and SGLang serves what memory holds."""

    def change(tensors: Tensors) -> Tensors:
        return {"lm_head.weight" if n.endswith("embed_tokens.weight") else n: t for n, t in tensors.items()}

    out = rewritten(dense_out, tmp_path / "out", change)
    found = checked(out)
    assert loads(found) == {"transformers": Loads.YES, "vllm": Loads.NO, "sglang": Loads.NO}
    lines = [problem.line for one in found.verdicts if one.engine != "transformers" for problem in one.problems]
    assert lines
    assert all("stored as its tied head alone, which only transformers reads" in line for line in lines)
    assert_loads_as(out, dense_out)


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


# what only some engines read packed


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
    assert loads(found) == {"transformers": Loads.NO, "vllm": Loads.YES, "sglang": Loads.NO}
    said = section(tmp_path / "four")
    said["config_groups"]["group_0"]["weights"] |= {"group_size": 64, "strategy": "group"}
    wrong = checked(rewritten(tmp_path / "out", tmp_path / "wrong", dict, quantization_config=said))
    assert loads(wrong)["vllm"] is Loads.NO


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


# what `--fix` writes is loaded


def broken(said: dict[str, Any], **weights: object) -> dict[str, Any]:
    said["config_groups"]["group_0"]["weights"] |= weights
    return said


def grouped(said: dict[str, Any], **keys: object) -> dict[str, Any]:
    """The config groups with other keys, and without a format of their own."""
    return {
        name: {"targets": g["targets"], "weights": g["weights"]} | keys for name, g in said["config_groups"].items()
    }


def grouped_otherwise(said: dict[str, Any]) -> dict[str, Any]:
    """The first config group in 8 bits: of two groups with one target, engines take the last."""
    group = next(iter(said["config_groups"].values()))
    return group | {"weights": group["weights"] | {"num_bits": 8}}


DAMAGES: Mapping[str, Any] = {
    "another group size": lambda said: {"quantization_config": broken(said, group_size=64)},
    "another number of bits": lambda said: {"quantization_config": broken(said, num_bits=8)},
    "per row": lambda said: {"quantization_config": broken(said, strategy="channel", group_size=None)},
    "head not ignored": lambda said: {"quantization_config": said | {"ignore": ["re:.*_tower.*", "re:.*embed_.*"]}},
    "towers not ignored": lambda said: {"quantization_config": said | {"ignore": ["lm_head"]}},
    "towers ignored by the names of another release": lambda said: {
        "quantization_config": said | {"ignore": ["re:.*vision_tower.vision_model.*", "re:.*multi_modal.*", "lm_head"]}
    },
    "packed parts ignored": lambda said: {"quantization_config": said | {"ignore": [*said["ignore"], "re:.*mlp.*"]}},
    "a dead pattern": lambda said: {"quantization_config": said | {"ignore": [*said["ignore"], "re:.*mlp.("]}},
    "another name": lambda said: {"quantization_config": "gone", "compression_config": said},
    "nothing said": lambda _: {"quantization_config": "gone"},
    "no config group": lambda said: {"quantization_config": said | {"config_groups": {}}},
    "no target": lambda said: {"quantization_config": said | {"config_groups": grouped(said, targets=[])}},
    "one target in two groups": lambda said: {
        "quantization_config": said | {"config_groups": said["config_groups"] | {"other": grouped_otherwise(said)}}
    },
    "no format": lambda said: {"quantization_config": said | {"format": None, "config_groups": grouped(said)}},
    "format dense": lambda said: {"quantization_config": said | {"format": "dense", "config_groups": grouped(said)}},
    "another format": lambda said: {
        "quantization_config": said | {"format": "int-quantized", "config_groups": grouped(said)}
    },
    "status": lambda said: {"quantization_config": said | {"quantization_status": "frozen"}},
}


@pytest.mark.wide
@pytest.mark.parametrize("family", every(2, ["dense", "unified"]))
def test_what_fix_writes_loads_with_every_value(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    good = tmp_path / "good"
    quantized(request.getfixturevalue(family), good, method="minmax")
    for name, damage in DAMAGES.items():
        out = rewritten(good, tmp_path / name, dict, **damage(section(good)))
        assert codes(checked(out)), name
        assert any("--fix" in one.remedy for one in checked(out).report.findings), name
        assert fix(out) is not None
        assert set(loads(checked(out)).values()) == {Loads.YES}, name
        assert_loads_as(out, good)


@pytest.mark.parametrize("family", ["dense", "unified"])
def test_fix_is_offered_for_layers_named_one_by_one_and_works(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    good = by_layer(request.getfixturevalue(family), tmp_path / "good")
    out = rewritten(good, tmp_path / "out", dict, quantization_config=patterns(good, "the mlp"))
    assert any("--fix" in one.remedy for one in checked(out).report.of(Severity.FAIL))
    assert fix(out) is not None
    assert set(loads(checked(out)).values()) == {Loads.YES}
    assert_loads_as(out, good)


@pytest.mark.parametrize("named", BY_LAYER)
def test_fix_writes_what_quantize_would_for_experts_in_two_precisions(named: str, moe: Path, tmp_path: Path) -> None:
    """No release of transformers loads single experts: `make test-vllm` loads what is written here."""
    good = by_layer(moe, tmp_path / "good")
    out = rewritten(good, tmp_path / "out", dict, quantization_config=patterns(good, named))
    assert codes(checked(out)) >= {"static.ignore", "engines.vllm"}
    assert any("--fix" in one.remedy for one in checked(out).report.findings)
    tensors = stored(out)
    assert fix(out) is not None
    assert loads(checked(out))["vllm"] is Loads.YES
    assert section(out)["config_groups"] == section(good)["config_groups"]
    assert section(out)["ignore"] == section(good)["ignore"]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in stored(out).items())


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


def with_section(source: Path, out: Path, **keys: object) -> Path:
    return rewritten(source, out, dict, quantization_config=section(source) | keys)


def test_a_section_of_sparsity_stops_vllm_and_fix_drops_it(dense_out: Path, tmp_path: Path) -> None:
    sparsity = {"format": "dense", "sparsity_structure": "unstructured", "ignore": [], "targets": ["Linear"]}
    out = with_section(dense_out, tmp_path / "out", sparsity_config=sparsity)
    assert loads(checked(out)) == {"transformers": Loads.YES, "vllm": Loads.NO, "sglang": Loads.YES}
    assert fix(out)
    assert "sparsity_config" not in section(out)
    assert set(loads(checked(out)).values()) == {Loads.YES}
    assert_loads_as(out, dense_out)
    empty = with_section(dense_out, tmp_path / "empty", sparsity_config=sparsity | {"targets": []})
    assert set(loads(checked(empty)).values()) == {Loads.YES}


@pytest.mark.parametrize(
    ("location", "loaded"),
    [("input", {"vllm"}), ("q_attn", {"vllm"}), ("weight_input", {"transformers", "vllm", "sglang"})],
)
def test_vllm_alone_transforms_inputs(location: str, loaded: set[str], dense_out: Path, tmp_path: Path) -> None:
    use = {"targets": ["Linear"], "location": location, "inverse": False, "ignore": []}
    transforms = {"config_groups": {"u": {"type": "hadamard", "apply": [use]}}}
    out = with_section(dense_out, tmp_path / "out", transform_config=transforms)
    assert {engine for engine, one in loads(checked(out)).items() if one is Loads.YES} == loaded
    if len(loaded) == 1:
        with pytest.raises(GateError, match="not fixed"):
            fix(out)


def test_groups_of_a_tensor_are_no_groups_of_integers(dense_out: Path, tmp_path: Path) -> None:
    groups = {
        name: group | {"weights": group["weights"] | {"strategy": "tensor_group"}}
        for name, group in section(dense_out)["config_groups"].items()
    }
    out = with_section(dense_out, tmp_path / "out", config_groups=groups)
    assert set(loads(checked(out)).values()) == {Loads.NO}
    assert fix(out)
    assert set(loads(checked(out)).values()) == {Loads.YES}
    assert_loads_as(out, dense_out)


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
    "name", few([name for name, (*_, refusing) in FORMATS.items() if "transformers" not in refusing])
)
def test_transformers_infers_a_format_that_the_group_lacks(name: str, dense_out: Path, tmp_path: Path) -> None:
    top, own, _ = FORMATS[name]
    assert_loads_as(with_format(dense_out, tmp_path / "out", top, own), dense_out)


@pytest.mark.parametrize("name", [name for name, (*_, refusing) in FORMATS.items() if "transformers" in refusing])
def test_transformers_fails_where_it_is_said_to(name: str, dense_out: Path, tmp_path: Path) -> None:
    top, own, _ = FORMATS[name]
    with pytest.raises((AssertionError, NotImplementedError, ValueError)):
        loaded_values(with_format(dense_out, tmp_path / "out", top, own))

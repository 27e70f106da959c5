"""Packed checkpoints of every family load strictly and compute what compressed-tensors says they hold.

The checkpoints are packed here by a slow quantizer made of compressed-tensors' own functions, so that this
part can be trusted before, and apart from, the quantizer that it judges. Each control damages a good
checkpoint in a way that transformers alone accepts.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from conftest import Checkpoints
from helpers import reload
from helpers.dialect_sources import with_shared_kv
from helpers.grids import one_in, two_when_quick
from helpers.prompts import logits, prompts
from safetensors.torch import load_file, save_file

from g4convert.demo import Family
from g4convert.demo.comparison import compare
from g4convert.errors import GateError, UnsupportedError
from g4convert.forward.models import Model, model_class, quiet_transformers

DECODER_LINEAR = re.compile(
    r"^model\.(language_model\.)?layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|experts\.(\d+\.)?(gate|up|gate_up|down)_proj)(\.weight)?$"
)
IGNORE = [
    *("lm_head", "re:.*vision_tower.*", "re:.*audio_tower.*", "re:.*embed_vision.*", "re:.*embed_audio.*"),
    *("re:.*vision_embedder.*", r"re:.*\.router\.proj$", "re:.*per_layer_.*", "re:.*(pre|post)_projection$"),
    "re:.*masked_embedding.*",
]
Tensors = dict[str, torch.Tensor]


def pack(module: str, weight: torch.Tensor, args: QuantizationArgs) -> Tensors:
    """Quantize [n, k] with compressed-tensors; the scale is rounded to bf16, as it is stored, before use."""
    n, k = weight.shape
    groups = weight.float().reshape(n, -1, args.group_size or k)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scale = scale.to(torch.bfloat16)
    codes = quantize(weight.float(), scale.float(), zero, args, dtype=torch.int8)
    return {
        f"{module}.weight_packed": pack_to_int32(codes, args.num_bits),
        f"{module}.weight_scale": scale,
        f"{module}.weight_shape": torch.tensor([n, k]),
    }


def split(name: str, tensor: torch.Tensor) -> Tensors:
    """A Linear's module and weight; fused experts one by one."""
    if tensor.ndim == 2:
        return {name.removesuffix(".weight"): tensor}
    stem, _, kind = name.rpartition(".")
    parts = {"down_proj": ("down_proj",), "gate_up_proj": ("gate_proj", "up_proj")}[kind]
    return {
        f"{stem}.{number}.{part}": weight
        for number, expert in enumerate(tensor)
        for part, weight in zip(parts, expert.chunk(len(parts)), strict=True)
    }


def write_packed(source: Path, out: Path, *, bits: int = 4, group_size: int | None = 32) -> Path:
    """A packed copy of a tiny checkpoint, shard by shard."""
    grouping = {"strategy": "channel"} if group_size is None else {"strategy": "group", "group_size": group_size}
    args = QuantizationArgs(num_bits=bits, symmetric=True, **grouping)
    out.mkdir(parents=True)
    index = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors: Tensors = {}
        for name, tensor in load_file(path).items():
            if DECODER_LINEAR.match(name):
                for module, weight in split(name, tensor).items():
                    tensors |= pack(module, weight, args)
            else:
                tensors[name] = tensor
        save_file(tensors, out / path.name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, path.name)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": IGNORE,
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": args.model_dump(mode="json", exclude_none=True)}
        },
    }
    (out / "config.json").write_text(json.dumps(config))
    return out


def edit(directory: Path, name: str, change: Callable[[Tensors, str], None]) -> None:
    """Change the shard that holds the tensor whose name ends so."""
    index_path = directory / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    full = next(key for key in index["weight_map"] if key.endswith(name))
    path = directory / index["weight_map"][full]
    tensors = load_file(path)
    before = set(tensors)
    change(tensors, full)
    save_file(tensors, path, metadata={"format": "pt"})
    for gone in before - set(tensors):
        del index["weight_map"][gone]
    index["weight_map"] |= dict.fromkeys(set(tensors) - before, path.name)
    index_path.write_text(json.dumps(index))


@pytest.fixture(scope="session")
def packed_moe(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packed(moe, tmp_path_factory.mktemp("packed") / "moe")


@pytest.fixture(scope="session")
def dequantized_moe(moe: Path, packed_moe: Path) -> Model:
    return reload.dequantized(moe, packed_moe)


@pytest.fixture(scope="session")
def moe_logits(moe: Path, dequantized_moe: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the text prompt, of the original and of the packed checkpoint."""
    original = reload.reload(moe)
    text = prompts(original)[0]
    return logits(original, text), logits(dequantized_moe, text)


@pytest.mark.parametrize("family", one_in(3, list(Family)))
def test_packed_checkpoint_equals_dequantized_model(family: Family, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints(family)
    packed = write_packed(source, tmp_path / "packed")
    original, expected, found = (
        reload.reload(source),
        reload.dequantized(source, packed),
        reload.reload(packed),
    )
    kinds = []
    for prompt in prompts(original):
        wanted = logits(expected, prompt)
        same = compare(wanted, logits(found, prompt))
        assert same.relative < 1e-5, prompt.bucket
        assert same.top1_agreement == 1, prompt.bucket
        assert same.kl_mean < 1e-6, prompt.bucket
        assert compare(logits(original, prompt), wanted).relative > 0.02, prompt.bucket
        kinds.append(prompt.bucket)
    media = {"moe": ["image"], "dense": ["image"], "unified": ["image", "audio"], "e2b": ["image", "audio"]}
    assert kinds == (["draft", "state"] if "assistant" in family else ["text", *media.get(family, [])])


@pytest.mark.wide
@pytest.mark.parametrize(("bits", "group_size"), one_in(3, [(4, 64), (4, 128), (8, 32), (8, None), (4, None)]))
def test_other_schemes(bits: int, group_size: int | None, dense: Path, tmp_path: Path) -> None:
    packed = write_packed(dense, tmp_path / "packed", bits=bits, group_size=group_size)
    expected, found = reload.dequantized(dense, packed), reload.reload(packed)
    for prompt in prompts(expected):
        assert compare(logits(expected, prompt), logits(found, prompt)).relative < 1e-5


def test_bf16_models_agree_too(dense: Path, tmp_path: Path) -> None:
    packed = write_packed(dense, tmp_path / "packed")
    expected, found = reload.dequantized(dense, packed, "bfloat16"), reload.reload(packed, "bfloat16")
    for prompt in prompts(expected):
        assert torch.equal(logits(expected, prompt), logits(found, prompt)), prompt.bucket


@pytest.mark.wide
def test_packed_keys_of_shared_layers_have_no_place_and_do_no_harm(e2b: Path, tmp_path: Path) -> None:
    extended = with_shared_kv(e2b, tmp_path / "extended")
    packed = write_packed(extended, tmp_path / "packed")
    expected, found = reload.dequantized(extended, packed), reload.reload(packed)
    for prompt in prompts(expected):
        assert compare(logits(expected, prompt), logits(found, prompt)).relative < 1e-5


def test_text_only_output_of_a_composite_source(packed_moe: Path, dequantized_moe: Model, tmp_path: Path) -> None:
    out = tmp_path / "text-only"
    out.mkdir()
    tensors = {k: v for path in packed_moe.glob("*.safetensors") for k, v in load_file(path).items()}
    tensors = {k.replace("model.language_model.", "model."): v for k, v in tensors.items() if ".language_model." in k}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed_moe / "config.json").read_text())
    (out / "config.json").write_text(
        json.dumps({**config["text_config"], "quantization_config": config["quantization_config"]})
    )
    found = reload.reload(out)
    (text,) = prompts(found)
    assert compare(logits(dequantized_moe, text), logits(found, text)).relative < 1e-5


def test_stock_transformers_leaves_the_experts_random(packed_moe: Path) -> None:
    """Stock transformers loads this with a log line only; hence reload brings a mapping of its own, and checks."""
    with quiet_transformers():
        _, report = model_class("gemma4").from_pretrained(packed_moe, output_loading_info=True)
    assert len(report["missing_keys"]) == 3 * 2
    assert len(report["unexpected_keys"]) == 3 * 12 * 3 * 3


def test_without_the_mapping_reload_says_no(packed_moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "_per_expert_class", model_class)
    with pytest.raises(GateError, match="330 tensors do not fit") as raised:
        reload.reload(packed_moe)
    assert "missing: model.language_model.layers.0.experts.down_proj" in raised.value.offenders


def test_the_mapping_stays_out_of_other_models(moe: Path, packed_moe: Path, tmp_path: Path) -> None:
    reload.reload(packed_moe)
    with quiet_transformers():
        stock = model_class("gemma4").from_pretrained(moe)
        stock.save_pretrained(tmp_path)
    (saved,) = tmp_path.glob("*.safetensors")
    assert not any(".experts.0." in name for name in load_file(saved))


def drop(tensors: Tensors, name: str) -> None:
    del tensors[name]


def add(tensors: Tensors, name: str) -> None:
    tensors[f"{name}_copy"] = tensors[name].clone()


def shorten(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name][:-1].contiguous()


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    two_when_quick(
        [
            ("layers.1.mlp.up_proj.weight_scale", drop, "missing"),
            (
                "layers.1.experts.7.up_proj.weight_packed",
                drop,
                "missing: model.language_model.layers.1.experts.7.up_proj",
            ),
            ("layers.0.layer_scalar", drop, "missing"),
            ("vision_tower.std_bias", drop, "missing"),
            ("layers.2.self_attn.o_proj.weight_packed", add, "unexpected"),
            (
                "layers.2.self_attn.o_proj.weight_packed",
                shorten,
                "o_proj.weight_packed is [127, 32], the model's is [128, 32]",
            ),
            ("layers.0.router.proj.weight", shorten, "router.proj.weight is [11, 128], the model's is [12, 128]"),
        ]
    ),
)
def test_a_tensor_that_does_not_fit_is_named(
    name: str, change: Callable[[Tensors, str], None], problem: str, packed_moe: Path, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(packed_moe, tmp_path / "bad"))
    edit(bad, name, change)
    with pytest.raises(GateError) as raised:
        reload.reload(bad)
    assert problem in str(raised.value)


def test_a_router_missing_from_ignore_is_named(packed_moe: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(packed_moe, tmp_path / "bad"))
    config = json.loads((bad / "config.json").read_text())
    config["quantization_config"]["ignore"] = [entry for entry in IGNORE if "router" not in entry]
    (bad / "config.json").write_text(json.dumps(config))
    with pytest.raises(GateError, match=r"layers\.0\.router\.proj\.weight_packed"):
        reload.reload(bad)


def flip_sign(tensors: Tensors, name: str) -> None:
    tensors[name] = -tensors[name]


def swap_nibbles(tensors: Tensors, name: str) -> None:
    words = tensors[name]
    tensors[name] = ((words >> 4) & 0x0F0F0F0F) | ((words & 0x0F0F0F0F) << 4)


def roll_groups(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].roll(1, dims=1).contiguous()


def swap_gate_and_up(tensors: Tensors, name: str) -> None:
    for kind in ("weight_packed", "weight_scale"):
        gate, up = (name.replace("gate_proj.weight_packed", f"{part}_proj.{kind}") for part in ("gate", "up"))
        tensors[gate], tensors[up] = tensors[up], tensors[gate]


@pytest.mark.parametrize(
    ("name", "change"),
    two_when_quick(
        [
            ("layers.0.self_attn.q_proj.weight_packed", swap_nibbles),
            ("layers.2.mlp.down_proj.weight_scale", roll_groups),
            ("layers.1.experts.3.gate_proj.weight_packed", swap_gate_and_up),
            ("layers.0.layer_scalar", flip_sign),
        ]
    ),
)
def test_wrong_values_show_in_the_logits(
    name: str,
    change: Callable[[Tensors, str], None],
    packed_moe: Path,
    moe_logits: tuple[torch.Tensor, torch.Tensor],
    tmp_path: Path,
) -> None:
    bad = Path(shutil.copytree(packed_moe, tmp_path / "bad"))
    edit(bad, name, change)
    found = reload.reload(bad)
    assert compare(moe_logits[1], logits(found, prompts(found)[0])).relative > 1e-3


def test_wrong_towers_show_on_images_only(packed_moe: Path, dequantized_moe: Model, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(packed_moe, tmp_path / "bad"))
    edit(bad, "embed_vision.embedding_projection.weight", flip_sign)
    expected, found = dequantized_moe, reload.reload(bad)
    text, image = prompts(expected)
    assert compare(logits(expected, text), logits(found, text)).relative < 1e-5
    wanted, got = logits(expected, image), logits(found, image)
    assert compare(wanted, got).relative > 1e-2
    before = 20  # tokens of text ahead of the picture
    assert compare(wanted[:before], got[:before]).relative < 1e-5


def test_packed_tensors_without_a_place_are_named(moe: Path, packed_moe: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(packed_moe, tmp_path / "bad"))

    def rename(tensors: Tensors, name: str) -> None:
        for kind in ("packed", "scale", "shape"):
            old = name.replace("packed", kind)
            tensors[old.replace(".experts.3.", ".experts.12.")] = tensors.pop(old)

    edit(bad, "layers.1.experts.3.down_proj.weight_packed", rename)
    with pytest.raises(GateError) as raised:
        reload.dequantized(moe, bad)
    assert raised.value.offenders == ("model.language_model.layers.1.experts.12.down_proj [128, 192]",)


def test_compare_measures(moe_logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    original, quantized = moe_logits
    same = compare(original, original)
    assert (same.max_abs, same.kl_mean, same.top1_agreement) == (0, 0, 1)
    real = compare(original, quantized)
    assert 0 < real.max_abs < 10
    assert 0.001 < real.kl_mean < 2
    assert 0.2 < real.top1_agreement < 1
    shifted = compare(original, original + 1)  # softmax does not see a constant
    assert shifted.max_abs == pytest.approx(1)
    assert shifted.kl_mean == pytest.approx(0, abs=1e-6)


def test_compare_refuses_what_is_not_finite(moe_logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    broken = moe_logits[0].clone()
    broken[3, 5] = torch.nan
    with pytest.raises(GateError, match="found logits: 1 of"):
        compare(moe_logits[0], broken)


def test_other_model_types_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="gemma3"):
        model_class("gemma3")

"""Packed weights that stay packed: the same numbers as dense ones, from every form they are stored in."""

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from conftest import Checkpoints, Packed
from helpers import reload as second_opinion
from helpers.conversions import stored
from helpers.damage import PARTS, STATIC, Tensors, damaged, rewrite, unpack
from helpers.grids import one_in, two_when_quick
from helpers.other_bits import in_bits
from helpers.prompts import logits, prompts

from g4convert.demo import Family
from g4convert.demo.comparison import compare
from g4convert.errors import GateError
from g4convert.forward import experts, modules
from g4convert.forward.experts import IMPLEMENTATION
from g4convert.forward.load import DTypeName, load
from g4convert.forward.modules import PackedWeight, W4A16Linear, packed_linear

LAYER = "model.language_model.layers.0"


def codes_of(bits: int, *shape: int) -> torch.Tensor:
    half = 1 << (bits - 1)
    return torch.randint(-half, half, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("bits", "k"), [(4, 8), (4, 64), (4, 20), (8, 4), (8, 64), (8, 6), *product((2, 3, 5, 6, 7), (1, 32, 37, 64))]
)
def test_unpacking_is_the_inverse_of_compressed_tensors_packing(bits: int, k: int) -> None:
    codes = codes_of(bits, 5, k)
    assert torch.equal(modules.unpack(pack_to_int32(codes, bits), k, bits), codes)


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
@pytest.mark.parametrize("family", ["dense", "moe"])
def test_other_bits_run_as_compressed_tensors_unpacks_them(
    family: str, bits: int, checkpoints: Checkpoints, packed: Packed, tmp_path: Path
) -> None:
    out = in_bits(
        checkpoints(family),
        packed(family, num_bits=8, method="minmax"),
        tmp_path / "out",
        bits,
        symmetric=bits % 2 == 0,
    )
    one, other = load(out), load(out, packed=False)
    for name, part in one.named_modules():
        if isinstance(part, W4A16Linear):
            assert torch.equal(part.packed.dense(torch.float32), other.get_parameter(f"{name}.weight"))
    for prompt in prompts(one):
        assert compare(logits(other, prompt), logits(one, prompt)).relative < 1e-5, prompt.bucket


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_weight_is_that_of_compressed_tensors(bits: int, *, symmetric: bool, dtype: torch.dtype) -> None:
    n, k, groups = 24, 64, 4
    codes, zeros = codes_of(bits, n, k), codes_of(bits, n, groups)
    scale = torch.linspace(-1, 2, n * groups).view(n, groups).to(torch.bfloat16)
    words = None if symmetric else pack_to_int32(zeros, bits, packed_dim=0)
    weight = PackedWeight(pack_to_int32(codes, bits), scale, words, k, bits)
    args = QuantizationArgs(num_bits=bits, strategy="group", group_size=k // groups, symmetric=symmetric)
    expected = dequantize(codes, scale.to(dtype), None if symmetric else zeros, args=args)
    assert torch.equal(weight.dense(dtype), expected)
    assert torch.equal(weight.dense(dtype, 3, 17), expected[3:17])


def test_a_linear_multiplies_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = codes_of(4, 24, 64)
    weight = PackedWeight(pack_to_int32(codes, 4), torch.ones(24, 2), None, 64, 4)
    # whole numbers: their sums are exact, in whatever order a CPU's product adds them
    x, bias = (torch.randint(-9, 9, shape).float() for shape in ((2, 3, 64), (24,)))
    monkeypatch.setattr(modules, "_CHUNK", 5 * 64 * 4)
    expected = torch.nn.functional.linear(x, codes.float(), bias)
    assert torch.equal(packed_linear(x, weight, bias), expected)


@pytest.mark.parametrize("family", one_in(3, Family))
def test_the_packed_path_gives_the_logits_of_dense_weights(family: Family, packed: Packed) -> None:
    dense, words = load(packed(family), packed=False), load(packed(family))
    for prompt in prompts(dense):
        assert compare(logits(dense, prompt), logits(words, prompt)).relative < 1e-5, prompt.bucket


@pytest.mark.parametrize("dtype", one_in(4, ["float32", "bfloat16"]))
@pytest.mark.parametrize("family", one_in(3, Family))
def test_dense_weights_are_those_of_the_second_opinion(
    family: Family, dtype: DTypeName, packed: Packed, checkpoints: Checkpoints
) -> None:
    """The original model with compressed-tensors' weights in it; of experts, transformers rounds scale times code."""
    expected = second_opinion.dequantized(checkpoints(family), packed(family), dtype)
    found = load(packed(family), dtype=dtype, packed=False)
    exact = dtype == "bfloat16" or family is not Family.MOE
    for prompt in prompts(expected):
        one, other = logits(expected, prompt), logits(found, prompt)
        assert torch.equal(one, other) if exact else compare(one, other).relative < 2e-2, prompt.bucket


@pytest.mark.parametrize(
    ("family", "options"),
    one_in(
        3,
        [
            ("dense", {"group_size": 128}),
            ("moe", {"group_size": 64}),
            ("moe", {"num_bits": 8}),
            ("dense", {"group_size": "channel"}),
            ("moe", {"pack": ["mlp"]}),
            ("moe", {"pack": ["experts"]}),
            ("moe", {"layout": "text-only"}),
            ("e2b", {"pack": ["attention", "mlp", "ple_projection"], "kv_shared": "keep"}),
            ("e2b", {"pack": ["vision_tower"]}),
        ],
    ),
)
def test_other_recipes(family: str, options: dict[str, Any], packed: Packed) -> None:
    directory = packed(family, **options)
    dense, words = load(directory, packed=False), load(directory)
    assert any(isinstance(module, W4A16Linear) for module in words.modules()) or options == {"pack": ["experts"]}
    for prompt in prompts(dense):
        assert compare(logits(dense, prompt), logits(words, prompt)).relative < 1e-5, prompt.bucket


def test_weights_stay_packed(packed: Packed) -> None:
    model = load(packed("moe"), dtype="bfloat16")
    assert model.config.get_text_config()._experts_implementation == IMPLEMENTATION  # noqa: SLF001 -- what it set
    held = model.model.language_model.layers[0].experts
    assert not list(held.parameters())
    assert held.gate_up_packed.dtype is torch.int32
    assert held.gate_up_packed.shape == (12, 2 * 192, 128 // 8)
    assert held.down_scale.shape == (12, 128, 192 // 32)
    plain = {name for name, _ in model.named_parameters() if "experts" in name or ".mlp." in name or "_proj" in name}
    assert not {name for name in plain if "language_model.layers" in name and "router" not in name}


def test_a_kernel_takes_the_place_of_the_reference(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(packed("moe"))
    (prompt, *_) = prompts(model)
    expected = logits(model, prompt)
    calls = []

    def counted(kind: str, run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: object) -> torch.Tensor:
            calls.append(kind)
            return run(*args)

        return call

    monkeypatch.setitem(modules.LINEARS, "cpu", counted("linear", packed_linear))
    monkeypatch.setitem(experts.EXPERTS, "cpu", counted("experts", experts.by_expert))
    assert torch.equal(logits(model, prompt), expected)
    assert calls.count("experts") == 3
    assert calls.count("linear") == 20  # of 3 layers: q, k, o, gate, up, down, and v of the two sliding ones


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "shape", [(24, 96, 3), (1, 8, 1), (1000, 704, 22), (40, 704, 1), (8, 24, 4), (8, 20, 2), (8, 24, 8)]
)
def test_compiled_weights_are_the_same_bits(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, *, symmetric: bool, dtype: torch.dtype
) -> None:
    """The loop for the CPU and the form for any device: groups of words, of bytes, of neither; every row range."""
    n, k, groups = shape
    zeros = None if symmetric else pack_to_int32(codes_of(4, n, groups), 4, packed_dim=0)
    scale = torch.linspace(-1, 2, n * groups).view(n, groups).to(torch.bfloat16)
    weight = PackedWeight(pack_to_int32(codes_of(4, n, k), 4), scale, zeros, k, 4)
    ranges = [(0, None), (n // 2, n), (n - 1, n + 5)]
    found = [weight.dense(dtype, *rows) for rows in ranges]
    assert PackedWeight.is_compiled.fget(weight) is (k % 8 == 0 and k % (2 * groups) == 0)
    monkeypatch.setattr(modules, "_compiled", modules._products)  # noqa: SLF001 -- the form for any device
    for rows, one in zip(ranges, found, strict=True):
        assert torch.equal(weight.dense(dtype, *rows), one)
        assert not torch.equal(one, torch.zeros_like(one))


def fuse(held: Tensors) -> None:
    """Experts as some uploads have them: `experts.gate_up_proj_packed` [e, 2i, h/8] and so on."""
    for layer in range(3):
        stem = f"model.language_model.layers.{layer}.experts"
        for part, suffix in (("weight_packed", "packed"), ("weight_scale", "scale")):
            each = {
                kind: [held.pop(f"{stem}.{number}.{kind}_proj.{part}") for number in range(12)]
                for kind in ("gate", "up", "down")
            }
            both = [torch.cat(pair) for pair in zip(each["gate"], each["up"], strict=True)]
            held[f"{stem}.gate_up_proj_{suffix}"] = torch.stack(both)
            held[f"{stem}.down_proj_{suffix}"] = torch.stack(each["down"])
        for number in range(12):
            for kind in ("gate", "up", "down"):
                held.pop(f"{stem}.{number}.{kind}_proj.weight_shape")


@pytest.mark.parametrize("stays_packed", [True, False])
def test_experts_in_one_packed_tensor_load(packed: Packed, tmp_path: Path, *, stays_packed: bool) -> None:
    one_by_one = packed("moe")
    fused = Path(shutil.copytree(one_by_one, tmp_path / "fused"))
    rewrite(fused, fuse)
    expected, found = load(one_by_one, packed=stays_packed), load(fused, packed=stays_packed)
    for prompt in prompts(expected):
        assert torch.equal(logits(expected, prompt), logits(found, prompt))


def test_zero_points_are_taken_off(packed: Packed, tmp_path: Path) -> None:
    """An asymmetric checkpoint: every weight is moved by its zero point, in both forms alike."""
    asymmetric = Path(shutil.copytree(packed("moe"), tmp_path / "asymmetric"))

    def add_zero_points(held: Tensors) -> None:
        for name in [name for name in held if name.endswith("weight_scale")]:
            zeros = codes_of(4, *held[name].shape).clamp(-1, 1)
            held[name.replace("weight_scale", "weight_zero_point")] = pack_to_int32(zeros, 4, packed_dim=0)

    rewrite(asymmetric, add_zero_points)
    symmetric, dense, words = load(packed("moe")), load(asymmetric, packed=False), load(asymmetric)
    for prompt in prompts(dense):
        expected = logits(dense, prompt)
        assert compare(expected, logits(words, prompt)).relative < 1e-5
        assert compare(expected, logits(symmetric, prompt)).relative > 1e-2


FAULTS = {
    "lost expert scale": f"packed: {LAYER}.experts.7.down_proj: no weight_scale",
    "one expert lost": f"missing: {LAYER}.experts.5.up_proj.weight",
    "lost words": f"torn: {LAYER}.mlp.up_proj: no weight_packed",
    "wrong shape values": "weight_shape says [128, 192], the model's is [192, 128]",
    "transposed packing": f"packed: {LAYER}.mlp.up_proj",
    "scale of another layer": f"packed: {LAYER}.mlp.up_proj",
    "words in int64": f"{LAYER}.mlp.up_proj",
    "scale in integers": "weight_scale is I32, expected a float type",
    "one expert plain": "mixed: ",
    "v_proj on a k_eq_v layer": "unexpected: model.language_model.layers.2.self_attn.v_proj",
    "embedding packed": "embed_tokens",
    "layer_scalar dropped": f"missing: {LAYER}.layer_scalar",
}


FITS_WHEN_DENSE = ("embedding packed", False)
"""Dequantized it has a place in the model; that no engine takes it is the static level's."""


@pytest.mark.parametrize(
    ("fault", "stays_packed"), two_when_quick(sorted({*product(FAULTS, (True, False))} - {FITS_WHEN_DENSE}))
)
def test_what_does_not_fit_is_named(fault: str, packed: Packed, tmp_path: Path, *, stays_packed: bool) -> None:
    bad = damaged(packed("moe"), tmp_path / "bad", STATIC[fault])
    with pytest.raises(GateError) as raised:
        load(bad, packed=stays_packed)
    assert FAULTS[fault] in str(raised.value)


def test_a_packed_embedding_loads_when_dense(packed: Packed, tmp_path: Path) -> None:
    load(damaged(packed("moe"), tmp_path / "odd", STATIC["embedding packed"]), packed=False)


def test_a_weight_of_its_own_scheme_is_no_fault_and_an_expert_is(packed: Packed, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(packed("moe"), tmp_path / "mixed"))
    coarse = packed("moe", group_size=64)

    def take(module: str) -> Callable[[Tensors], object]:
        others = stored(coarse)
        return lambda held: held.update({f"{module}.{part}": others[f"{module}.{part}"] for part in PARTS})

    rewrite(mixed, take(f"{LAYER}.mlp.up_proj"))
    load(mixed)
    rewrite(mixed, take(f"{LAYER}.experts.3.up_proj"))
    with pytest.raises(GateError, match="experts of one layer are packed in different schemes"):
        load(mixed)


def test_a_plain_linear_among_packed_ones_loads(packed: Packed, tmp_path: Path) -> None:
    partly = Path(shutil.copytree(packed("dense"), tmp_path / "partly"))
    unpack(f"{LAYER}.mlp.gate_proj")(partly)
    expected, found = load(packed("dense"), dtype="bfloat16"), load(partly, dtype="bfloat16")
    assert type(found.model.language_model.layers[0].mlp.gate_proj) is torch.nn.Linear
    for prompt in prompts(expected):
        assert torch.equal(logits(expected, prompt), logits(found, prompt))

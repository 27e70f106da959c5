"""Every family through the whole pipeline: transformers loads the result and computes what it says it holds.

Oracles: the strict reload and the dequantized original (`helpers.reload`, which share no code with the
writer), the safetensors library, and compressed-tensors' own arithmetic. Conversions are made once in a session.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from conftest import Checkpoints
from helpers import golden
from helpers.conversions import quantized, same_bits, shards, stored
from helpers.dialect_sources import cases, with_shared_kv, write
from helpers.grids import covering, diagonal, one_in, two_when_quick
from helpers.prompts import logits, prompts
from helpers.reload import dequantized, reload
from safetensors.torch import load_file, save_file

from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.result import Summary
from g4convert.demo import Family
from g4convert.demo.comparison import compare
from g4convert.errors import InputError, UsageError
from g4convert.planning.recipe import DEFAULT
from g4convert.planning.recipe_files import load_shipped

RECIPES = sorted(name for name, recipe in load_shipped().items() if not recipe.is_calibrated and not recipe.bits)
"""Recipes of one packing; those of several are converted in `conversion/test_mixed.py`."""
DRAFTERS = {Family.ASSISTANT, Family.UNIFIED_ASSISTANT}
Made = tuple[Path, Summary]
Converted = Callable[..., Made]


def options_for(family: Family) -> dict[str, object]:
    """Return the options with which there is something to quantize."""
    return {"assistant": "pack"} if family in DRAFTERS else {}


def applies(family: Family, recipe: str) -> bool:
    """Return True if a shipped recipe is meant for a family; the others are refused, see below."""
    if recipe == "w4a16-experts-only":
        return family is Family.MOE
    if recipe == "w4a16-g128":
        return family is not Family.MOE
    return recipe != "text-only" or family not in DRAFTERS


APPLYING = [(family, recipe) for family in Family for recipe in RECIPES if applies(family, recipe)]
NOT_APPLYING = [(family, recipe) for family in Family for recipe in RECIPES if not applies(family, recipe)]


@pytest.fixture(scope="session")
def converted(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """Converts a fixture with a recipe and options, or finds the output made before."""
    root = tmp_path_factory.mktemp("converted")
    made: dict[str, Made] = {}

    def get(family: Family, recipe: str = "w4a16-g32", source: Path | None = None, **options: object) -> Made:
        directory = source or checkpoints(family)
        key = f"{family}-{recipe}-{directory.name}-{options}"
        if key not in made:
            output = root / str(len(made)) / "out"
            made[key] = output, quantized(directory, output, recipe, **{**options_for(family), **options})
        return made[key]

    return get


@cache
def source_logits(directory: Path) -> dict[str, torch.Tensor]:
    """Logits of an unquantized checkpoint for every prompt."""
    model = reload(directory)
    return {prompt.bucket: logits(model, prompt) for prompt in prompts(model)}


def check_logits(source: Path, output: Path) -> list[str]:
    """The output reloads strictly and computes as the source with dequantized weights; kinds of prompt tried."""
    found, expected = reload(output), dequantized(source, output)
    asked = prompts(found)
    for prompt in asked:
        difference = compare(logits(expected, prompt), logits(found, prompt))
        assert difference.relative <= 1e-5, prompt.bucket
        assert difference.top1_agreement == 1, prompt.bucket
    return [prompt.bucket for prompt in asked]


@pytest.mark.parametrize(("family", "recipe"), covering(APPLYING))
def test_every_recipe_on_every_family_loads_and_computes_the_same(
    family: Family, recipe: str, converted: Converted, checkpoints: Checkpoints
) -> None:
    output, summary = converted(family, recipe)
    kinds = check_logits(checkpoints(family), output)
    media = {Family.MOE: 1, Family.DENSE: 1, Family.UNIFIED: 2, Family.E2B: 2}
    assert len(kinds) == (2 if family in DRAFTERS else 1 + (0 if recipe == "text-only" else media.get(family, 0)))
    assert 0 < summary.total.relative_error < (1e-4 if recipe == "w8a16-g32" else 0.02)


@pytest.mark.parametrize(("family", "recipe"), NOT_APPLYING)
def test_what_a_recipe_is_not_meant_for_is_refused(
    family: Family, recipe: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(UsageError):
        quantized(checkpoints(family), tmp_path / "out", recipe, **options_for(family))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", one_in(3, Family))
def test_quantization_shows_in_the_logits(family: Family, converted: Converted, checkpoints: Checkpoints) -> None:
    """Without this, two equal but unquantized models would pass."""
    output, _ = converted(family)
    model = reload(output)
    for prompt in prompts(model):
        before = source_logits(checkpoints(family))[prompt.bucket]
        assert compare(before, logits(model, prompt)).relative > 0.01


@pytest.mark.parametrize(("family", "recipe"), covering(APPLYING))
def test_what_is_kept_is_bit_equal_and_nothing_is_lost(
    family: Family, recipe: str, converted: Converted, checkpoints: Checkpoints
) -> None:
    source, output = stored(checkpoints(family)), stored(converted(family, recipe)[0])
    if recipe == "text-only" and any(".language_model." in name for name in source):
        decoder = "model.language_model."
        source = {f"model.{n.removeprefix(decoder)}": t for n, t in source.items() if n.startswith(decoder)}
    packed = {name.removesuffix(".weight_packed") for name in output if name.endswith(".weight_packed")}
    kept = {name for name in output if name.rpartition(".")[0] not in packed}
    assert all(same_bits(output[name], source[name]) for name in kept)
    fused = {name for name in source if ".experts." in name} - kept
    assert {name.removesuffix(".weight") for name in source.keys() - kept - fused} | {
        module for module in packed if ".experts." in module
    } == packed
    assert sum(source[name].numel() for name in fused) == sum(
        int(output[f"{module}.weight_shape"].prod()) for module in packed if ".experts." in module
    )


def oracle(weight: torch.Tensor, args: QuantizationArgs) -> dict[str, torch.Tensor]:
    """A Linear [n, k] as compressed-tensors quantizes it in fp32, with the scale rounded to bf16 first."""
    groups = weight.float().reshape(weight.shape[0], -1, args.group_size or weight.shape[1])
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scale = scale.to(torch.bfloat16)
    codes = quantize(weight.float(), scale.float(), zero, args, dtype=torch.int8)
    return {
        "weight_packed": pack_to_int32(codes, args.num_bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }


def weight_of(source: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    """The source weight of a packed module; an expert's is a part of the fused tensor."""
    if f"{module}.weight" in source:
        return source[f"{module}.weight"]
    stem, number, projection = module.rsplit(".", 2)
    fused = source[f"{stem}.{'down_proj' if projection == 'down_proj' else 'gate_up_proj'}"][int(number)]
    return fused if projection == "down_proj" else fused.chunk(2)[projection == "up_proj"]


@pytest.mark.parametrize(("family", "num_bits"), one_in(5, product(Family, [4, 8])))
def test_minmax_is_compressed_tensors_bit_for_bit(
    family: Family, num_bits: int, converted: Converted, checkpoints: Checkpoints
) -> None:
    source = stored(checkpoints(family))
    output = stored(converted(family, method="minmax", num_bits=num_bits)[0])
    check_oracle(source, output, QuantizationArgs(num_bits=num_bits, strategy="group", group_size=32), step=3)


def check_oracle(
    source: dict[str, torch.Tensor], output: dict[str, torch.Tensor], args: QuantizationArgs, *, step: int = 1
) -> None:
    """Every `step`-th packed module against compressed-tensors."""
    modules = sorted(name.removesuffix(".weight_packed") for name in output if name.endswith(".weight_packed"))
    assert modules
    for module in modules[::step]:
        for kind, expected in oracle(weight_of(source, module), args).items():
            assert same_bits(output[f"{module}.{kind}"], expected), f"{module}.{kind}"


@pytest.mark.parametrize(("group_size", "num_bits"), diagonal([64, 128, "channel"], [4, 8]))
def test_other_group_sizes(
    group_size: int | str, num_bits: int, converted: Converted, checkpoints: Checkpoints
) -> None:
    channel = group_size == "channel"
    output, _ = converted(Family.DENSE, method="minmax", group_size=group_size, num_bits=num_bits)
    grouping = {"strategy": "channel"} if channel else {"strategy": "group", "group_size": group_size}
    args = QuantizationArgs(num_bits=num_bits, **grouping)
    check_oracle(stored(checkpoints("dense")), stored(output), args, step=4)
    check_logits(checkpoints("dense"), output)


@pytest.mark.wide
@pytest.mark.parametrize("dtype", one_in(2, ["float32", "float16"]))
@pytest.mark.parametrize("family", one_in(2, [Family.MOE, Family.E2B]))
def test_other_source_dtypes(family: Family, dtype: str, converted: Converted, checkpoints: Checkpoints) -> None:
    directory = checkpoints(family, dtype=dtype)
    output, _ = converted(family, source=directory, method="minmax")
    check_oracle(stored(directory), stored(output), QuantizationArgs(num_bits=4, strategy="group", group_size=32))
    check_logits(directory, converted(family, source=directory)[0])


@pytest.mark.parametrize(("dialect", "family"), one_in(5, cases()))
def test_a_dialect_gives_the_bytes_of_the_canonical_source(
    dialect: str, family: str, converted: Converted, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source = write(checkpoints(family), tmp_path / "source", dialect)
    quantized(source, tmp_path / "out", **options_for(Family(family)))
    assert shards(tmp_path / "out") == shards(converted(Family(family))[0])


@pytest.mark.parametrize("recipe", one_in(2, ["w4a16-mlp-only", "text-only"]))
def test_experts_one_by_one_give_the_same_bytes_under_other_recipes(
    recipe: str, converted: Converted, moe: Path, tmp_path: Path
) -> None:
    source = write(moe, tmp_path / "source", "per expert")
    quantized(source, tmp_path / "out", recipe, pack=["mlp"])
    assert shards(tmp_path / "out") == shards(converted(Family.MOE, recipe, pack=["mlp"])[0])
    check_logits(moe, tmp_path / "out")


def test_dead_keys_and_values_are_dropped(converted: Converted, e2b: Path, tmp_path: Path) -> None:
    source = with_shared_kv(e2b, tmp_path / "source")
    quantized(source, tmp_path / "out")
    assert shards(tmp_path / "out") == shards(converted(Family.E2B)[0])
    record = json.loads((tmp_path / "out" / "g4convert.json").read_text())
    assert {entry["name"].rsplit(".", 2)[1] for entry in record["dropped"]} == {"k_proj", "v_proj", "k_norm"}


@pytest.mark.wide
def test_dead_keys_and_values_kept_are_packed_like_the_queries(e2b: Path, tmp_path: Path) -> None:
    source = with_shared_kv(e2b, tmp_path / "source")
    quantized(source, tmp_path / "out", kv_shared="keep", method="minmax")
    output = stored(tmp_path / "out")
    dead = "model.language_model.layers.4.self_attn"
    assert {name.removeprefix(f"{dead}.") for name in output if name.startswith(dead)} >= {
        *("q_proj.weight_packed", "k_proj.weight_packed", "v_proj.weight_packed", "k_norm.weight"),
    }
    args = QuantizationArgs(num_bits=4, strategy="group", group_size=32)
    check_oracle(stored(source), output, args)
    check_logits(source, tmp_path / "out")


@pytest.mark.parametrize("family", one_in(2, [Family.MOE, Family.DENSE, Family.UNIFIED, Family.E2B]))
def test_text_only_computes_the_text_logits_of_the_whole_model(
    family: Family, converted: Converted, checkpoints: Checkpoints
) -> None:
    whole, part = dequantized(checkpoints(family), converted(family)[0]), reload(converted(family, "text-only")[0])
    assert type(part).__name__.endswith("Gemma4ForCausalLM")
    (text,) = prompts(part)
    assert compare(logits(whole, text), logits(part, text)).relative <= 1e-5
    config = json.loads((converted(family, "text-only")[0] / "config.json").read_text())
    assert config["architectures"] == [type(part).__name__.removeprefix("PerExpert")]


@pytest.mark.parametrize("family", one_in(2, [Family.MOE, Family.E2B, Family.UNIFIED, Family.TEXT]))
def test_a_qat_source_is_recognised_and_kept_exactly(
    family: Family, converted: Converted, checkpoints: Checkpoints
) -> None:
    directory = checkpoints(family, qat=True)
    output, summary = converted(family, source=directory)
    assert summary.choice.method.value == "lattice"
    assert "100.0% of groups" in summary.choice.why
    assert summary.total.stats.lattice_groups == summary.total.stats.groups == summary.total.stats.exact_groups
    assert "| 100.0% | 100.0% |" in (output / "README.md").read_text()
    before = dict(reload(directory, "bfloat16").named_parameters())
    after = dict(dequantized(directory, output, "bfloat16").named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("family", two_when_quick(Family))
def test_an_ordinary_source_is_searched(family: Family, converted: Converted) -> None:
    _, summary = converted(family)
    assert summary.choice.method.value == "mse"
    assert summary.total.stats.lattice_groups == 0
    assert summary.total.relative_error < converted(family, method="minmax")[1].total.relative_error


def plant(source: Path, directory: Path, name: str, change: Callable[[torch.Tensor], None]) -> Path:
    """A copy of a checkpoint in which one tensor is changed in place."""
    shutil.copytree(source, directory)
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            change(tensors[name])
            save_file(tensors, path, metadata={"format": "pt"})
    return directory


def on_a_grid(weight: torch.Tensor) -> None:
    """Round groups of 32 to codes from -8 to 7, in place."""
    groups = weight.view(-1, 32)
    step = (groups.abs().amax(1, keepdim=True) / 7).bfloat16()
    groups.copy_((groups / step).round().clamp(-8, 7) * step)


def test_tables_and_head_on_the_grid_of_their_training_keep_it(
    converted: Converted, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source = checkpoints(Family.E2B, qat=True)
    for name in ("embed_tokens", "embed_tokens_per_layer"):
        source = plant(source, tmp_path / name, f"model.language_model.{name}.weight", on_a_grid)
    bits = {"embedding": 4, "ple_embedding": 4, "lm_head": 4}
    _, summary = converted(Family.E2B, source=source, bits=bits)
    assert summary.choice.method.value == "lattice"
    assert summary.total.stats.lattice_groups == summary.total.stats.groups == summary.total.stats.exact_groups


FAULTS = [
    ("model.language_model.layers.1.mlp.gate_proj.weight", (130, 7), (190, 0), "layers.1.mlp.gate_proj.weight"),
    ("model.language_model.layers.2.experts.gate_up_proj", (3, 195, 9), (5, 0, 0), "layers.2.experts.3.up_proj.weight"),
    ("model.language_model.layers.0.self_attn.q_proj.weight", (0, 0), (127, 127), "layers.0.self_attn.q_proj.weight"),
]


@pytest.mark.parametrize("method", ["auto", "minmax"])
@pytest.mark.parametrize("value", one_in(3, [torch.nan, torch.inf, -torch.inf]))
@pytest.mark.parametrize(("tensor", "first", "later", "named"), FAULTS)
def test_a_weight_that_is_not_finite_is_named_with_its_first_index(  # noqa: PLR0913, PLR0917 - one case
    tensor: str,
    first: tuple[int, ...],
    later: tuple[int, ...],
    named: str,
    value: float,
    method: str,
    moe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("g4convert.planning.units._TILE_BYTES", 1)  # tiles of 64 rows

    def spoil(weight: torch.Tensor) -> None:
        weight[first], weight[later] = value, value

    source = plant(moe, tmp_path / "source", tensor, spoil)
    with pytest.raises(InputError) as caught:
        quantized(source, tmp_path / "out", method=method)
    row = first[-2] - (192 if ".up_proj" in named else 0)
    assert caught.value.message == f"model.language_model.{named}: [{row}, {first[-1]}] is NaN or infinite"
    assert caught.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_rows_of_zeros_constants_and_denormals_are_finite(moe: Path, tmp_path: Path) -> None:
    name = "model.language_model.layers.1.mlp.gate_proj.weight"

    def change(weight: torch.Tensor) -> None:
        weight[0] = 0
        weight[1] = 0.5
        weight[2] = 1e-40
        weight[3] = -3e38
        weight[4, :32] = 0

    source = plant(moe, tmp_path / "source", name, change)
    for method in ("minmax", "mse", "lattice"):
        quantized(source, tmp_path / method, method=method)
        output = stored(tmp_path / method)
        scale = output[name.replace("weight", "weight_scale")]
        assert bool(scale.isfinite().all())
        assert output[name.replace("weight", "weight_packed")][0].unique().tolist() == [0x88888888 - (1 << 32)]
    weights = dict(dequantized(source, tmp_path / "mse").named_parameters())
    before, after = stored(source)[name].float(), weights[name]
    assert bool(after.isfinite().all())
    assert torch.equal(after[0], before[0])
    assert torch.allclose(after[1], before[1], rtol=0.01)
    assert torch.allclose(after[3], before[3], rtol=0.07)  # its square is not a number of fp32: the scale of minmax


def with_head(source: Path, directory: Path, head: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A copy of a tied checkpoint that stores an output head as well."""
    shutil.copytree(source, directory)
    embedding = stored(source)["model.language_model.embed_tokens.weight"]
    save_file({"lm_head.weight": head(embedding)}, directory / "head.safetensors", metadata={"format": "pt"})
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "head.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


@pytest.mark.parametrize("head", [torch.clone, torch.Tensor.float])
def test_a_tied_head_that_is_a_copy_is_dropped(
    head: Callable[[torch.Tensor], torch.Tensor], converted: Converted, dense: Path, tmp_path: Path
) -> None:
    """As merges write it (mergekit issue 385), also where they count in fp32."""
    source = with_head(dense, tmp_path / "source", head)
    quantized(source, tmp_path / "out")
    assert shards(tmp_path / "out") == shards(converted(Family.DENSE)[0])
    assert "| 1 | the output head is tied to the embedding |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("head", [lambda e: -e, lambda e: e.float() * (1 + 2**-20), lambda e: e.half()])
def test_a_tied_head_that_is_none_is_refused(
    head: Callable[[torch.Tensor], torch.Tensor], dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g4convert.conversion.drops._BLOCK", 1000)
    source = with_head(dense, tmp_path / "source", head)
    with pytest.raises(InputError) as caught:
        quantized(source, tmp_path / "out")
    assert "lm_head.weight: differs from model.language_model.embed_tokens.weight" in str(caught.value)
    assert "tie_word_embeddings" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_last_byte_that_differs_is_seen(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4convert.conversion.drops._BLOCK", 1000)

    def last(embedding: torch.Tensor) -> torch.Tensor:
        other = embedding.clone()
        other[-1, -1] += 1
        return other

    with pytest.raises(InputError, match="certain value"):
        quantized(with_head(dense, tmp_path / "source", last), tmp_path / "out")


def test_a_norm_that_gemma4_has_not_must_be_ones(dense: Path, tmp_path: Path) -> None:
    source = write(dense, tmp_path / "source", "short embedders")
    broken = plant(source, tmp_path / "broken", "model.embed_vision.pre_proj_norm.weight", lambda w: w.mul_(1.5))
    with pytest.raises(InputError) as caught:
        quantized(broken, tmp_path / "out")
    assert "model.embed_vision.pre_proj_norm.weight: has values other than 1" in str(caught.value)


@pytest.mark.wide
@pytest.mark.parametrize("family", one_in(2, [Family.DENSE, Family.E2B]))
def test_a_packed_vision_tower_is_told_apart_from_the_decoder(
    family: Family, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    pack = ["mlp", "vision_tower"] if family is Family.E2B else ["vision_tower"]
    source = checkpoints(family)
    quantized(source, tmp_path / "out", pack=pack, group_size=16 if family is Family.DENSE else 32)
    modules = {name for name in stored(tmp_path / "out") if name.endswith(".weight_packed")}
    assert sum("vision_tower" in name for name in modules) == 2 * 7
    assert not any("self_attn" in name and "language_model" in name for name in modules)
    check_logits(source, tmp_path / "out")


def written_document(output: Path) -> dict[str, Any]:
    """Return what a conversion wrote: its config, its index, and its tensors by kind."""
    config = json.loads((output / "config.json").read_text())["quantization_config"]
    index = json.loads((output / "model.safetensors.index.json").read_text())
    tensors = Checkpoint.open(output).tensors
    assert index["weight_map"].keys() == tensors.keys()
    kinds = Counter(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in tensors)
    return {
        "quantization_config": config,
        "metadata": index["metadata"],
        "shards": sorted(set(index["weight_map"].values())),
        "tensors": dict(sorted(kinds.items())),
    }


@pytest.mark.golden
@pytest.mark.parametrize("family", two_when_quick(Family))
def test_golden_config_and_index(family: Family, converted: Converted) -> None:
    recipes = [recipe for one, recipe in APPLYING if one is family]
    written = {recipe: written_document(converted(family, recipe)[0]) for recipe in recipes}
    golden.check(f"output/{family}.txt", golden.with_changes(written.pop(DEFAULT), written) + "\n")

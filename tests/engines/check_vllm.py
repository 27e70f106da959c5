"""Level `engine` with a real vLLM on a CPU: what g4convert writes loads, completely, and gives the right numbers.

Not part of the ordinary run. The variable names an interpreter with vLLM's CPU build and torchvision; minutes:

    make test-vllm VLLM_PYTHON=PATH

vLLM's 4-bit kernels for CPUs take half precision only, and its 4-bit experts a CPU with AMX: in float32 the child
decodes what vLLM's loader has placed, in bfloat16 the Linears' own kernels run. Attention on CPUs is causal for
pictures, too. So the first is compared to 1e-4, the second to its noise floor, and pictures without their own mask.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers of the other tests

from conftest import Checkpoints
from helpers.conversions import quantized
from helpers.damage import damaged, lose
from helpers.field import BY_LAYER, by_layer, patterns
from helpers.rewriting import rewritten

from g4convert.api.fit import fit
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.demo.trained import trained
from g4convert.forward.load import load
from g4convert.gemma4 import Architecture
from g4convert.gemma4.family import Family
from g4convert.inspection.fix import fix
from g4convert.planning.recipe_files import load as recipe_of
from g4convert.planning.steps import make_plan
from g4convert.progress import Progress
from g4convert.report import LevelResult, Severity
from g4convert.verification.engine.level import check_engine, score_some_tokens
from g4convert.verification.engine.prompts import EngineRefusal
from g4convert.verification.engine.vllm import Vllm, vllm
from g4convert.verification.probes.suite import make_probes

Written = Callable[..., Path]
FAMILIES = ("text", "dense", "unified", "e2b", "moe", "trained moe")
BAD = {Severity.FAIL, Severity.INCONCLUSIVE}


@pytest.fixture(scope="module")
def written(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Conversions of a family, by recipe; `trained moe` is of the shipped model."""
    root = tmp_path_factory.mktemp("real")
    made: dict[str, Path] = {}

    def get(family: str, recipe: str = "w4a16-g32") -> Path:
        name = f"{family.replace(' ', '-')}-{recipe}"
        if name not in made:
            made[name] = root / name
            quantized(trained(Family.MOE) if family == "trained moe" else checkpoints(family), made[name], recipe)
        return made[name]

    return get


@contextmanager
def served(checkpoint: Path, dtype: str) -> Iterator[Vllm]:
    with vllm(checkpoint, python=Path(os.environ["VLLM_PYTHON"]), dtype=dtype, timeout=300) as engine:
        yield engine


def judged(checkpoint: Path, dtype: str) -> LevelResult:
    """A few probes of each kind."""
    model = load(checkpoint, packed=False)
    probes = [score_some_tokens(probe) for probe in make_probes(model, checkpoint, tokens=1)]
    with served(checkpoint, dtype) as engine:
        return check_engine(
            engine, model, probes, half=lambda: load(checkpoint, packed=False, dtype="bfloat16"), progress=Progress()
        )


def show(name: str, found: LevelResult) -> None:
    """The figures, with -s; what was found, if the engine did not start."""
    assert found.metrics, [one.line for one in found.findings]
    for bucket in found.metrics["engine"]["buckets"]:
        sys.stdout.write(
            f"{name} {bucket['name']}: {bucket['tokens']} tokens, largest {bucket['largest']:.2g}, "
            f"mean {bucket['mean']:.2g}, floor {bucket['floor_mean']:.2g}, top {bucket['top1_agreement']:.3f}\n"
        )


def agrees_to_1e_4(name: str, found: LevelResult) -> set[str]:
    """Assert that nothing is missing and nothing differs; the buckets that were compared."""
    show(name, found)
    assert not [one.line for one in found.findings if one.severity in BAD]
    loaded = [one.found for one in found.findings if one.code == "engine.load"]
    engine = found.metrics["engine"]
    assert loaded == [f"all {engine['parameters']} parameters are filled, and every tensor had its place"]
    assert all(one["largest"] < 1e-4 and one["top1_agreement"] > 0.99 for one in engine["buckets"])
    return {one["name"] for one in engine["buckets"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_agrees_to_1e_4(family: str, written: Written) -> None:
    buckets = agrees_to_1e_4(f"{family} float32", judged(written(family), "float32"))
    if family not in {"text", "trained moe"}:
        assert {"image", "video"} <= buckets
    if family in {"e2b", "unified"}:
        assert "audio" in buckets


@pytest.mark.parametrize("recipe", ["w4a16-g128", "w8a16-g32", "w4a16-mlp-only", "text-only"])
def test_other_recipes(recipe: str, written: Written) -> None:
    found = judged(written("dense", recipe), "float32")
    assert not [one.line for one in found.findings if one.severity in BAD]
    assert found.metrics["engine"]["buckets"][0]["largest"] < 1e-4


MIXED: dict[str, dict[str, object]] = {
    "e2b": {"bits": {"attention": 8, "embedding": 4, "ple_embedding": 8, "lm_head": 8}},
    "moe": {"bits": {"embedding": 8, "lm_head": 4}, "rules": [{"role": "experts", "layers": 1, "bits": 8}]},
    "dense": {
        "bits": {"lm_head": 8},
        "rules": [{"layers": "0-1", "bits": 8}, {"role": "lm_head", "group_size": "channel"}],
    },
    "text": {"bits": {"embedding": 4, "lm_head": 4}, "rules": [{"role": "mlp", "layers": 0, "bits": 16}]},
}


@pytest.mark.parametrize("family", MIXED)
def test_several_precisions_with_tables_and_heads(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    quantized(checkpoints(family), tmp_path / "out", **MIXED[family])
    agrees_to_1e_4(f"{family} mixed", judged(tmp_path / "out", "float32"))


@pytest.mark.parametrize("named", BY_LAYER)
def test_what_fix_writes_for_experts_in_two_precisions(named: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    good = by_layer(checkpoints("moe"), tmp_path / "good")
    out = rewritten(good, tmp_path / "out", dict, quantization_config=patterns(good, named))
    assert fix(out)
    agrees_to_1e_4(f"moe fixed, {named}", judged(out, "float32"))


FITTED: dict[str, dict[str, object]] = {
    "e2b": {"embedding": 4, "ple_embedding": 4, "lm_head": 8},
    "moe": {"embedding": 4, "lm_head": 8},
    "dense": {"embedding": 4, "lm_head": 8},
    "text": {"embedding": 4, "lm_head": 8},
}


@pytest.mark.parametrize("family", FITTED)
def test_what_a_fit_chooses_agrees_to_1e_4(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source, ids = checkpoints(family), tmp_path / "ids.safetensors"
    checkpoint = Checkpoint.open(source)
    vocabulary = Architecture.from_config(checkpoint.config).text.vocab_size
    Tokens(np.random.default_rng(0).integers(3, vocabulary, (4, 16), np.int32)).save(ids)
    options = {"calibration": ids, "rows": 2, "tokens": 16, "workers": 1, "engines": ["vllm"]}
    fit(source, tmp_path / "fit.yaml", target_bits=6.5, bits=FITTED[family], **options)  # type: ignore[arg-type]
    recipe = recipe_of(str(tmp_path / "fit.yaml")).recipe
    packings = {step.packing for step in make_plan(checkpoint, recipe).quantized}
    assert len(packings) > 2, "bits by part"
    quantized(source, tmp_path / "out", **recipe.model_dump(exclude={"description"}))
    agrees_to_1e_4(f"{family} fitted", judged(tmp_path / "out", "float32"))


WIDE = torch.cpu._is_avx512_supported()  # noqa: SLF001 -- as vLLM asks
"""True if the CPU has the instructions of the 4-bit kernels."""


@pytest.mark.skipif(not WIDE, reason="this CPU has no AVX-512")
@pytest.mark.parametrize("family", ["text", "dense", "unified", "e2b"])
def test_the_kernels_of_the_cpu_build_in_bfloat16(family: str, written: Written) -> None:
    found = judged(written(family), "bfloat16")
    assert not [one.line for one in found.findings if one.severity in BAD]
    show(f"{family} bfloat16", found)
    assert not found.metrics["engine"]["decodes"]


@pytest.mark.skipif(WIDE, reason="this CPU has AVX-512")
def test_kernels_need_avx512_in_bfloat16(written: Written) -> None:
    """A prompt that no kernel takes is the machine's, and keeps no other waiting."""
    found = judged(written("text"), "bfloat16")
    refused = [one for one in found.findings if one.code == "engine.probes"]
    assert len(refused) > 1
    assert {one.severity for one in refused} == {Severity.INCONCLUSIVE}
    assert not [one.line for one in found.findings if one.severity is Severity.FAIL]


@pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="this CPU has AMX")  # noqa: SLF001 -- as vLLM asks
def test_experts_need_amx_in_bfloat16(written: Written) -> None:
    """Words by which the level knows that it is the machine, not the checkpoint."""
    found = judged(written("moe"), "bfloat16")
    assert (found.findings[0].code, found.findings[0].severity) == ("engine.load", Severity.INCONCLUSIVE)


LAYER = "model.language_model.layers.0"


@pytest.mark.parametrize(
    ("family", "lost", "named", "share"),
    [
        (
            "dense",
            f"{LAYER}.mlp.up_proj.weight_scale",
            "language_model.model.layers.0.mlp.gate_up_proj.weight_scale",
            1 / 2,
        ),
        ("dense", f"{LAYER}.layer_scalar", "language_model.model.layers.0.layer_scalar", 1),
        ("moe", f"{LAYER}.experts.7.down_proj.weight_scale", "experts.routed_experts.w2_weight_scale", 1 / 12),
        ("e2b", "model.vision_tower.encoder.layers.1.mlp.up_proj.input_max", "vision_tower.encoder.layers.1", 1),
    ],
)
def test_what_is_lost_is_named(  # noqa: PLR0913, PLR0917 -- a row and its fixtures
    family: str, lost: str, named: str, share: float, written: Written, tmp_path: Path
) -> None:
    bad = damaged(written(family), tmp_path / "bad", lose(lost))
    with served(bad, "float32") as engine:
        (missing,) = engine.start(64, 4).unfilled
    assert named in missing.name
    assert missing.share == pytest.approx(share)


def test_a_tensor_without_a_place_is_refused(written: Written, tmp_path: Path) -> None:
    from helpers.damage import rewrite  # noqa: PLC0415 -- for this test

    def add(held: dict[str, torch.Tensor]) -> None:
        held[f"{LAYER}.mlp.other_proj.weight"] = torch.ones(8, 8)

    bad = damaged(written("dense"), tmp_path / "bad", lambda directory: rewrite(directory, add))
    with served(bad, "float32") as engine, pytest.raises(EngineRefusal, match="other_proj") as refused:
        engine.start(64, 4)
    assert refused.value.place == "load"

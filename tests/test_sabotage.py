"""Every accident that `verify` is for, planted in a good conversion: each fails and is named, the twin passes.

`DISK` are faults of what was written, of `damage.py`, and run the levels static and weights. `PATHS` are faults of
the path that runs, planted in the candidate of level logits, on a few probes of the kinds that show them. What a
check says in detail is tested beside it; here is one row for each accident, from one end to the other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Checkpoints
from conversions import quantized
from damage import STATIC, VALUES, damaged
from torch.nn import functional

from g4convert.demo.trained import trained
from g4convert.forward.candidate import Candidate, ModelCandidate
from g4convert.forward.load import load
from g4convert.forward.media import call
from g4convert.forward.models import Model
from g4convert.gemma4.family import Family
from g4convert.report import Finding, Report, Severity
from g4convert.request import Level, Request
from g4convert.verification import gates
from g4convert.verification.logits.judge import Judged, Models, check_logits
from g4convert.verification.probes.suite import Probe, make_probes
from g4convert.verification.run import verify

Pair = tuple[Path, Path]
Written = Callable[[str], Pair]
Fault = Callable[[Model], None]
FAMILY_OF = {"trained moe": Family.MOE}
LAYER = "model.language_model.layers.0"
FAMILIES = ("moe", "dense", "unified", "e2b", "text")

DISK = (
    ("nibble order", "moe", "weights.error", "model.language_model.layers.*.mlp.up_proj"),
    ("offset missing", "dense", "weights.error", "model.language_model.layers.*.mlp.up_proj"),
    ("gate and up swapped", "dense", "weights.error", f"{LAYER}.mlp.gate_proj"),
    ("expert gate and up swapped", "moe", "weights.error", f"{LAYER}.experts.4.gate_proj"),
    ("experts swapped", "moe", "weights.error", f"{LAYER}.experts.1.gate_proj"),
    ("scales shifted", "dense", "weights.error", f"{LAYER}.mlp.up_proj"),
    ("scales negated", "dense", "weights.error", f"{LAYER}.mlp.up_proj"),
    ("scale not finite", "dense", "weights.scales", f"{LAYER}.mlp.up_proj"),
    ("norm changed", "dense", "weights.kept", f"{LAYER}.input_layernorm.weight"),
    ("layer_scalar set to one", "dense", "weights.kept", f"{LAYER}.layer_scalar"),
    ("layer_scalar dropped", "dense", "static.tensors", f"{LAYER}.layer_scalar"),
    ("per_expert_scale dropped", "moe", "static.tensors", f"{LAYER}.router.per_expert_scale"),
    ("router packed", "moe", "static.kept", f"{LAYER}.router.proj"),
    ("patch_dense packed", "unified", "static.kept", "model.vision_embedder.patch_dense"),
    ("patch_dense without its prefix", "unified", "static.ignore", "model.vision_embedder.patch_dense"),
    ("tied head not ignored", "dense", "static.lm_head", "lm_head"),
    ("v_proj on a k_eq_v layer", "moe", "static.k_eq_v", "model.language_model.layers.2.self_attn.v_proj.weight"),
    ("lost expert scale", "moe", "static.scale", f"{LAYER}.experts.7.down_proj"),
    ("stale index", "dense", "static.index", f"{LAYER}.mlp.up_proj.weight_scale"),
    ("tokenizer changed", "dense", "static.side_files", "tokenizer.json"),
    ("config key dropped", "dense", "static.config", "text_config.final_logit_softcapping"),
    ("alias dropped", "unified", "static.config", "eoa_token_index"),
    ("transposed packing", "dense", "static.packed", f"{LAYER}.mlp.up_proj"),
    ("wrong group size", "text", "static.scheme", "config_groups.group_0"),
)


@pytest.fixture(scope="module")
def written(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Source and conversion of a family; `trained moe` is the shipped one. Made once."""
    root = tmp_path_factory.mktemp("sabotage")
    made: dict[str, Pair] = {}

    def get(family: str) -> Pair:
        if family not in made:
            source = trained(FAMILY_OF[family]) if family in FAMILY_OF else checkpoints(family)
            quantized(source, root / family)
            made[family] = source, root / family
        return made[family]

    return get


def failures(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """Subjects of what failed, by code."""
    found: dict[str, list[str]] = {}
    for one in findings:
        if one.severity is Severity.FAIL:
            found.setdefault(one.code, []).append(one.subject)
    return found


@pytest.mark.parametrize(("name", "family", "code", "subject"), DISK, ids=[row[0] for row in DISK])
def test_a_damaged_checkpoint_fails_and_the_damage_is_named(  # noqa: PLR0913, PLR0917 -- a row and its fixtures
    name: str, family: str, code: str, subject: str, written: Written, tmp_path: Path
) -> None:
    source, good = written(family)
    out = damaged(good, tmp_path / "out", (STATIC | VALUES)[name])
    found = verify(Request(out, source, Level.WEIGHTS))
    assert found.exit_code(strict=False) == 1
    named = failures(found.findings)
    assert any(subject in one for one in named.get(code, [])), named


@pytest.mark.parametrize("family", FAMILIES)
def test_its_twin_passes(family: str, written: Written) -> None:
    source, out = written(family)
    found = verify(Request(out, source, Level.WEIGHTS))
    assert found.verdict is Severity.PASS, [one.line for one in found.findings if one.severity is not Severity.PASS]
    assert found.levels == (Level.STATIC, Level.WEIGHTS)


def test_values_of_other_levels_are_not_reached_where_files_are_broken(written: Written, tmp_path: Path) -> None:
    source, good = written("dense")
    out = damaged(good, tmp_path / "out", STATIC["cut shard"])
    found = verify(Request(out, source, Level.LOGITS))
    assert found.exit_code(strict=False) == 1
    assert found.levels == (Level.STATIC,)
    stopped = [one.code for one in found.findings if one.severity is Severity.INCONCLUSIVE]
    assert stopped == ["weights.stopped", "logits.stopped"]


def test_what_the_strict_loader_refuses_is_not_run(written: Written, tmp_path: Path) -> None:
    source, good = written("dense")
    out = damaged(good, tmp_path / "out", STATIC["layer_scalar dropped"])
    found = verify(Request(out, source, Level.LOGITS))
    assert found.levels == (Level.STATIC, Level.WEIGHTS)
    assert any(f"{LAYER}.layer_scalar" in one for one in failures(found.findings)["logits.load"])
    assert "logits.stopped" in {one.code for one in found.findings}


# ---- the path that runs


def layers(model: Model) -> Sequence[Model]:
    return model.get_decoder().layers


def norm_after(model: Model, *, embedder: str) -> None:
    """RMSNorm of what the projection gives."""
    module = model.model.get_submodule(embedder)

    def forward(inputs_embeds: torch.Tensor) -> torch.Tensor:
        projected = module.embedding_projection(inputs_embeds.to(model.dtype))
        return functional.rms_norm(projected, projected.shape[-1:], eps=module.eps)

    module.forward = forward


def pack_patch_dense(model: Model) -> None:
    """Four bits where the checkpoint has the plain weight."""
    weight = model.model.embed_vision.patch_dense.weight
    step = weight.abs().amax(-1, keepdim=True) / 7
    weight.data.copy_((weight / step).round() * step)


def random_patch_dense(model: Model) -> None:
    """An engine that waits for packed words leaves the plain weight out."""
    weight = model.model.embed_vision.patch_dense.weight
    weight.data.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.std())


def wrong_bins(model: Model) -> None:
    """Bins as x + height * y in place of x + width * y: the same for squares."""
    pooler = model.model.vision_tower.pooler
    stock = pooler.forward

    def forward(*, pixel_position_ids: torch.Tensor, **rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        pooled: tuple[torch.Tensor, torch.Tensor] = stock(pixel_position_ids=pixel_position_ids.flip(-1), **rest)
        return pooled

    pooler.forward = forward


def padding_counted(model: Model) -> None:
    """Every bin is a soft token, also one of padding only: so many of the rest are lost at the end."""
    pooler = model.model.vision_tower.pooler
    stock = pooler.forward

    def forward(**arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        states, mask = stock(**arguments)
        shifted = torch.where(mask.all(-1, keepdim=True)[..., None], states, states.roll(1, 1))
        return shifted, mask

    pooler.forward = forward


def activation(model: Model, *, wrong: torch.nn.Module) -> None:
    for layer in layers(model):
        layer.experts.act_fn = wrong


def wrong_window(model: Model) -> None:
    model.config.get_text_config().sliding_window -= 1


def unknown_eoa(model: Model) -> None:
    """The end of a sound is no token of its own: padding stands there."""

    def before(_: Model, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> object:
        ids = kwargs["input_ids"]
        pad = model.config.get_text_config().pad_token_id
        return args, {**kwargs, "input_ids": ids.masked_fill(ids == model.config.eoa_token_index, pad)}

    model.register_forward_pre_hook(before, with_kwargs=True)


def one_position_axis(model: Model) -> None:
    model.model.embed_vision.pos_embedding.data[:, 1] = 0


def no_layer_scalar(model: Model) -> None:
    layers(model)[1].layer_scalar.fill_(1)


def no_expert_scale(model: Model) -> None:
    layers(model)[0].router.per_expert_scale.data.fill_(1)


def random_experts(model: Model) -> None:
    """A loader that ignores unknown names leaves experts as they were initialised."""
    generator = torch.Generator().manual_seed(0)
    for layer in layers(model):
        for words in (layer.experts.gate_up_packed, layer.experts.down_packed):
            words.copy_(torch.randint(-(2**31), 2**31 - 1, words.shape, generator=generator, dtype=torch.int64).int())


PATHS = (
    ("norm after (image)", "moe", partial(norm_after, embedder="embed_vision"), "image", "embedder", "embed_vision"),
    ("norm after (audio)", "e2b", partial(norm_after, embedder="embed_audio"), "audio", "embedder", "embed_audio"),
    ("packed patch_dense", "unified", pack_patch_dense, "image", "modules", "embed_vision.patch_dense"),
    ("lost patch_dense", "unified", random_patch_dense, "image", "modules", "embed_vision.patch_dense"),
    ("pooler: wrong bins", "dense", wrong_bins, "image", "pooler", "vision_tower.pooler"),
    ("pooler: padding", "dense", padding_counted, "image", "pooler", "vision_tower.pooler"),
    ("exact GELU", "moe", partial(activation, wrong=torch.nn.GELU()), "prose", "activation", "layers.0.experts"),
    ("SiLU", "moe", partial(activation, wrong=torch.nn.SiLU()), "prose", "activation", "layers.0.experts"),
    ("sliding window", "unified", wrong_window, "long", "inputs", "attention mask of sliding_attention"),
    ("eoa alias", "unified", unknown_eoa, "audio", "inputs", "embeddings"),
    ("position axis", "unified", one_position_axis, "image", "modules", "embed_vision"),
    ("layer_scalar", "moe", no_layer_scalar, "prose", "modules", "layers.1.layer_scalar"),
    ("per_expert_scale", "moe", no_expert_scale, "prose", "modules", "layers.0.router"),
    ("random experts", "trained moe", random_experts, "prose", "modules", "experts"),
)


@pytest.fixture(scope="module")
def judged(written: Written) -> Callable[..., Judged]:
    """Level logits of a family's conversion with a fault in the packed path."""
    right: dict[str, ModelCandidate] = {}
    probes: dict[tuple[str, str], Sequence[Probe]] = {}
    profiles = {"loss": gates.load("w4a16"), "parity": gates.load("parity")}

    def judge(family: str, kind: str, fault: Fault | None) -> Judged:
        source, out = written(family)
        if family not in right:
            right[family] = ModelCandidate(load(out, packed=False))
        if (family, kind) not in probes:
            found = make_probes(right[family].model, source, kinds=("prose", kind), tokens=1)
            probes[family, kind] = [one for one in found if one.bucket == kind or kind in {"prose", one.bucket}]
        candidate = ModelCandidate(load(out))
        with torch.no_grad():
            if fault is not None:
                fault(candidate.model)
        return check_logits(Models(None, right[family], candidate), probes[family, kind], **profiles)

    return judge


@pytest.mark.parametrize(("name", "family", "fault", "kind", "code", "subject"), PATHS, ids=[row[0] for row in PATHS])
def test_a_fault_of_the_path_fails_and_is_named(  # noqa: PLR0913, PLR0917 -- a row and its fixtures
    name: str, family: str, fault: Fault, kind: str, code: str, subject: str, judged: Callable[..., Judged]
) -> None:
    del name
    named = failures(judged(family, kind, fault).findings)
    assert any(subject in one for one in named.get(f"logits.{code}", [])), named


@pytest.mark.parametrize(
    ("family", "kind"), sorted({(row[1], row[3]) for row in PATHS}), ids=lambda word: str(word).replace(" ", "-")
)
def test_the_right_path_passes(family: str, kind: str, judged: Callable[..., Judged]) -> None:
    found = judged(family, kind, None).findings
    bad = {Severity.FAIL, Severity.INCONCLUSIVE, Severity.WARN}
    assert not [(one.code, one.line) for one in found if one.severity in bad]


def test_a_candidate_is_anything_that_runs(written: Written) -> None:
    """An engine takes the place of the packed path: here one with random experts, through the whole pipeline."""
    source, out = written("trained moe")

    def engine(directory: Path) -> Candidate:
        model = load(directory)
        random_experts(model)

        def run(*, use_cache: bool, **arguments: object) -> torch.Tensor:
            logits: torch.Tensor = call(model, arguments, use_cache=use_cache).logits
            return logits

        return ModelCandidate(run)

    found = verify(Request(out, source, Level.LOGITS, profile="parity"), candidate=engine)
    assert isinstance(found, Report)
    assert found.exit_code(strict=False) == 1
    assert "logits.parity.kl_mean" in failures(found.findings)

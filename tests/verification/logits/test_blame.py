"""Faults planted in a model, and the name that comes out; the undamaged twin has none."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from helpers.grids import one_in
from torch.nn import functional

from g4convert.forward.candidate import ModelCandidate
from g4convert.forward.load import load
from g4convert.forward.models import Model
from g4convert.forward.probe import Probe
from g4convert.verification.logits import inputs
from g4convert.verification.logits.blame import LIMITS, LOSS_LIMIT, Blame, Examination, blame, examine
from g4convert.verification.logits.parts import decoder_layers, label, roots
from g4convert.verification.logits.teacher import ModuleError, culprits
from g4convert.verification.probes.suite import make_probes

LIMIT = LIMITS["float32"]
Fault = Callable[[Model], None]


def probes_of(model: Model, directory: Path, kinds: Sequence[str]) -> list[Probe]:
    """One of each kind, but two pictures: wide ones show more."""
    found = {probe.bucket: probe for probe in make_probes(model, directory, kinds=kinds, tokens=1)}
    return list(found.values())


def find(directory: Path, fault: Fault, kinds: Sequence[str] = ("prose", "batch")) -> tuple[Examination, Blame]:
    reference, candidate = (ModelCandidate(load(directory)) for _ in range(2))
    probes = probes_of(reference.model, directory, kinds)
    with torch.no_grad():
        fault(candidate.model)
    examined = examine(reference, candidate, probes, limit=LIMIT)
    return examined, blame(reference, candidate, probes, examined, limit=LIMIT)


def layers(model: Model) -> Sequence[Model]:
    return model.get_decoder().layers


def swap_gate_and_up(model: Model) -> None:
    weight = layers(model)[1].experts.gate_up_proj
    weight[7] = weight[7].roll(weight.shape[1] // 2, 0)


def permute_experts(model: Model) -> None:
    weight = layers(model)[1].experts.down_proj
    weight.copy_(weight.roll(1, 0).clone())


def zero_layer_scalar(model: Model) -> None:
    layers(model)[1].layer_scalar.fill_(1)


def drop_per_expert_scale(model: Model) -> None:
    layers(model)[0].router.per_expert_scale.fill_(1)


def coarse_router(model: Model) -> None:
    weight = layers(model)[2].router.proj.weight
    weight.copy_((weight * 20).round() / 20)


def exact_gelu(model: Model) -> None:
    layers(model)[1].experts.act_fn = torch.nn.GELU()


def wrong_window(model: Model) -> None:
    model.config.get_text_config().sliding_window = 7


def shifted_scales(model: Model) -> None:
    weight = layers(model)[2].self_attn.q_proj.weight
    weight.mul_(torch.linspace(0.5, 1.5, weight.shape[1]))


def negative_head(model: Model) -> None:
    model.get_decoder().norm.weight.mul_(-1)


@pytest.mark.parametrize(
    ("fault", "name"),
    one_in(
        3,
        [
            (swap_gate_and_up, "layers.1.experts.7"),
            (permute_experts, "layers.1.experts"),
            (zero_layer_scalar, "layers.1.layer_scalar"),
            (drop_per_expert_scale, "layers.0.router.per_expert_scale"),
            (coarse_router, "layers.2.router.proj"),
            (exact_gelu, "layers.1.experts.act_fn"),
            (wrong_window, "inputs: attention mask of sliding_attention"),
            (shifted_scales, "layers.2.self_attn.q_proj"),
            (negative_head, "norm"),
        ],
    ),
)
def test_faults_of_a_text_model(fault: Fault, name: str, moe: Path) -> None:
    examined, found = find(moe, fault)
    assert found.rows[0].module == name
    assert found.rows[0].share > 0.98
    assert found.clear
    assert found.control == found.kl > 0
    assert len(found.rows) <= 2
    assert found.compared == len(examined.errors) > 60


def post_norm(model: Model) -> None:
    embedder = model.model.embed_vision
    embedder = getattr(embedder, "multimodal_embedder", embedder)

    def forward(inputs_embeds: torch.Tensor) -> torch.Tensor:
        projected = embedder.embedding_projection(inputs_embeds)
        return functional.rms_norm(projected, projected.shape[-1:], eps=embedder.eps)

    embedder.forward = forward


def wrong_bins(model: Model) -> None:
    """Height for width: the same for squares."""
    pooler = model.model.vision_tower.pooler
    stock = pooler.forward

    def forward(*, pixel_position_ids: torch.Tensor, **rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        states, mask = stock(pixel_position_ids=pixel_position_ids.flip(-1), **rest)
        return states, mask

    pooler.forward = forward


def drop_position_axis(model: Model) -> None:
    model.model.embed_vision.pos_embedding[:, 1] = 0


def quantize_patches(model: Model) -> None:
    weight = model.model.embed_vision.patch_dense.weight
    step = weight.abs().amax(-1, keepdim=True) / 7
    weight.copy_((weight / step).round() * step)


def silent_tower(model: Model) -> None:
    model.model.audio_tower.layers[1].feed_forward2.ffw_layer_1.linear.weight.mul_(0.9)


@pytest.mark.parametrize(
    ("family", "fault", "kind", "name"),
    one_in(
        3,
        [
            ("moe", post_norm, "image", "embed_vision"),
            ("unified", post_norm, "image", "embed_vision.multimodal_embedder"),
            ("dense", wrong_bins, "image", "vision_tower.pooler"),
            ("unified", drop_position_axis, "image", "embed_vision.pos_embedding"),
            ("unified", quantize_patches, "image", "embed_vision.patch_dense"),
            ("e2b", silent_tower, "audio", "audio_tower.layers.1.feed_forward2.ffw_layer_1.linear"),
        ],
    ),
)
def test_faults_of_towers_and_embedders(
    family: str, fault: Fault, kind: str, name: str, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(family)
    _, found = find(directory, fault, ("prose", kind))
    assert found.rows[0].module == name
    assert found.rows[0].share > 0.98
    assert found.clear
    examined, unseen = find(directory, fault, ("prose",))  # text does not see it
    assert unseen.kl == 0
    assert not culprits(examined.errors, LIMIT)


@pytest.mark.parametrize("family", one_in(5, ["moe", "dense", "unified", "e2b", "text", "assistant"]))
def test_a_twin_is_not_blamed(family: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue("checkpoints")(family)
    kinds = ("draft",) if family == "assistant" else ("prose", "batch", "image", "audio", "video")
    examined, found = find(directory, lambda _: None, kinds)
    assert not culprits(examined.errors, LIMIT)
    assert {error.sqnr for error in examined.errors} == {float("inf")}
    assert examined.differences == {}
    assert found.kl == found.control == 0
    assert not any(row.share for row in found.rows)
    assert not found.clear


def count_hooks(model: Model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())  # noqa: SLF001


def test_a_swap_leaves_no_trace(moe: Path) -> None:
    candidate = load(moe)
    before = {name: id(module) for name, module in candidate.named_modules()}
    hooks = count_hooks(candidate)
    reference = ModelCandidate(load(moe))
    with torch.no_grad():
        swap_gate_and_up(candidate)
    probes = probes_of(candidate, moe, ("prose",))
    examined = examine(reference, ModelCandidate(candidate), probes, limit=LIMIT)
    blame(reference, ModelCandidate(candidate), probes, examined, limit=LIMIT)
    assert {name: id(module) for name, module in candidate.named_modules()} == before
    assert count_hooks(candidate) == hooks


def test_two_faults_are_ranked(moe: Path) -> None:
    def both(model: Model) -> None:
        swap_gate_and_up(model)
        drop_per_expert_scale(model)

    _, found = find(moe, both)
    assert {row.module for row in found.rows} == {"layers.1.experts.7", "layers.0.router.per_expert_scale"}
    assert found.rows[0].share > found.rows[1].share > 0


def test_noise_everywhere_has_no_culprit_but_a_ranking(dense: Path) -> None:
    """Four bits cost a little everywhere: layers and the parts of the worst are swapped."""
    reference, candidate = (ModelCandidate(load(dense)) for _ in range(2))
    probes = probes_of(reference.model, dense, ("prose",))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in candidate.model.get_decoder().named_parameters():
            if "proj" in name:
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(0.07 * weight.std() * noise)
    examined = examine(reference, candidate, probes, limit=LOSS_LIMIT)
    found = blame(reference, candidate, probes, examined, limit=LOSS_LIMIT, swaps=4)
    assert not culprits(examined.errors, LOSS_LIMIT)
    assert found.kl == found.control > 0
    assert {f"layers.{number}" for number in range(4)} <= {row.module for row in found.rows}
    assert any(row.module.count(".") == 2 for row in found.rows)
    assert [row.share for row in found.rows] == sorted((row.share for row in found.rows), reverse=True)


def test_parts_of_a_streamed_layer_are_no_rows(text: Path) -> None:
    """They are swapped with all of it, so each would repeat the layer's row."""
    reference, candidate = (ModelCandidate(load(text, memory="stream")) for _ in range(2))
    probes = probes_of(reference.model, text, ("prose",))[:1]
    names = list(decoder_layers(candidate.model))[:2]
    errors = tuple(ModuleError(name + part, 20.0, 1.0) for name in names for part in ("", ".mlp", ".self_attn"))
    with torch.no_grad():
        candidate.model.get_decoder().norm.weight.mul_(-1)
    found = blame(reference, candidate, probes, Examination(errors, {}), limit=LOSS_LIMIT, swaps=2)
    assert {row.kind for row in found.rows} == {"layer"}


def test_nan_is_traced(moe: Path) -> None:
    def nan(model: Model) -> None:
        layers(model)[2].mlp.down_proj.weight[3, 3] = torch.nan

    examined, found = find(moe, nan, ("prose",))
    assert label(culprits(examined.errors, LIMIT)[0].name) == "layers.2.mlp.down_proj"
    assert found.kl == float("inf")
    assert (found.rows[0].module, found.rows[0].share) == ("layers.2.mlp.down_proj", 1)


@pytest.mark.wide
def test_streamed_models_are_compared_too(moe: Path) -> None:
    reference, candidate = (ModelCandidate(load(moe, memory="stream")) for _ in range(2))
    probes = probes_of(reference.model, moe, ("prose", "image"))
    with torch.no_grad():
        candidate.model.get_decoder().norm.weight.mul_(-1)
    examined = examine(reference, candidate, probes, limit=LIMIT)
    names = {label(error.name) for error in examined.errors}
    assert {"layers.1.experts", "layers.2.self_attn.q_proj", "vision_tower", "embed_vision", "lm_head"} <= names
    assert [label(error.name) for error in culprits(examined.errors, LIMIT)] == ["norm"]
    found = blame(reference, candidate, probes, examined, limit=LIMIT)
    assert (found.rows[0].module, found.clear) == ("norm", True)


@pytest.mark.full
def test_streamed_layers_are_swapped_whole(moe: Path) -> None:
    reference, candidate = (ModelCandidate(load(moe, memory="stream")) for _ in range(2))
    probes = probes_of(reference.model, moe, ("prose",))
    layers(candidate.model)[1].experts.act_fn = torch.nn.SiLU()
    examined = examine(reference, candidate, probes, limit=LIMIT)
    found = blame(reference, candidate, probes, examined, limit=LIMIT)
    assert found.rows[0].module == "layers.1.experts.act_fn"
    assert found.rows[0].note == "swapped with all of layers.1"
    assert found.clear


def test_roots_run_one_after_the_other(e2b: Path, text: Path) -> None:
    names = {label(name) for name in roots(load(e2b))}
    assert {"embed_tokens", "embed_tokens_per_layer", "layers.0", "norm", "lm_head", "embed_audio"} <= names
    assert {"vision_tower.patch_embedder", "vision_tower.encoder.layers.1", "audio_tower.layers.0"} <= names
    assert not any(name.endswith("language_model") for name in names)
    assert {"embed_tokens", "layers.3", "norm", "lm_head"} <= {label(name) for name in roots(load(text))}
    assert len(decoder_layers(load(text))) == 4


def test_inputs_of_layers(e2b: Path) -> None:
    reference, candidate = (ModelCandidate(load(e2b)) for _ in range(2))
    (probe,) = probes_of(reference.model, e2b, ("audio",))

    def record(model: ModelCandidate) -> inputs.Inputs:
        with inputs.recording_inputs(model.model) as found:
            model.run(probe)
        return found

    expected = record(reference)
    assert set(expected) == {
        "embeddings",
        *(
            f"{what} of {kind}_attention"
            for what in ("attention mask", "position embeddings")
            for kind in ("full", "sliding")
        ),
    }
    assert inputs.differences(expected, record(candidate), relative=1e-6) == {}
    with inputs.resting_layers(candidate.model):
        assert inputs.differences(expected, record(candidate), relative=0) == {}
    with torch.no_grad():
        candidate.model.model.embed_audio.embedding_projection.weight.mul_(1.1)
    (words,) = inputs.differences(expected, record(candidate), relative=1e-6).items()
    soft = (probe.arguments["mm_token_type_ids"] == 3).nonzero()[:, 1]
    assert words[0] == "embeddings"
    assert words[1].endswith(f"at {len(soft)} positions, the first {int(soft[0])}")
    right = reference.run(probe).logits
    assert not torch.equal(candidate.run(probe).logits, right)
    with inputs.forcing_input(candidate.model, expected, "embeddings"):
        assert torch.allclose(candidate.run(probe).logits, right, atol=1e-5)

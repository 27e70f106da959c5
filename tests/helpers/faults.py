"""Faults of the path that runs, planted in a model: known bugs of engines, re-created."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Checkpoints, Packed
from torch.nn import functional

from g4convert.demo.trained import trained
from g4convert.forward.models import Model
from g4convert.gemma4.family import Family
from g4convert.report import Finding, Severity
from helpers.conversions import quantized

Pair = tuple[Path, Path]


Written = Callable[[str], Pair]


Fault = Callable[[Model], None]


FAMILY_OF = {"trained moe": Family.MOE}


@pytest.fixture(scope="module")
def written(checkpoints: Checkpoints, packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Source and conversion of a family; `trained moe` is the shipped one. Made once."""
    root = tmp_path_factory.mktemp("sabotage")

    def get(family: str) -> Pair:
        if family not in FAMILY_OF:
            return checkpoints(family), packed(family)
        if not (root / family).exists():
            quantized(trained(FAMILY_OF[family]), root / family)
        return trained(FAMILY_OF[family]), root / family

    return get


def failures(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """Subjects of what failed, by code."""
    found: dict[str, list[str]] = {}
    for one in findings:
        if one.severity is Severity.FAIL:
            found.setdefault(one.code, []).append(one.subject)
    return found


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

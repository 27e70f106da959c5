"""Probes reach what they say they reach, count what they say they count, and are the same in every run."""

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from conftest import Checkpoints
from helpers.grids import one_in, two_when_quick
from helpers.probed import FAMILIES, MEDIA_KINDS, TEXT_KINDS, by_name, counted, models
from helpers.prompts import first_of_each
from helpers.reload import reload

from g4convert.demo.trained import trained
from g4convert.errors import UsageError
from g4convert.forward.conversations import frame_of
from g4convert.forward.load import load
from g4convert.forward.media import COLOURS, call, pictures
from g4convert.forward.models import Model
from g4convert.gemma4.family import Family
from g4convert.verification.probes.answers import answer_probes
from g4convert.verification.probes.suite import KINDS, digest, make_probes

if TYPE_CHECKING:
    from g4convert.forward.probe import Probe

__all__ = ["models"]  # a fixture


# Buckets that must see each damage. All others must not change by a bit.
PARTS = {
    ("moe", r"vision_tower.*input_proj"): {"image", "video"},
    ("moe", r"vision_tower\.std_bias"): {"image", "video"},
    ("dense", r"embed_vision\.embedding_projection"): {"image", "video"},
    ("unified", r"pos_embedding"): {"image", "video"},
    ("unified", r"patch_dense\.weight"): {"image", "video"},
    ("unified", r"embed_audio"): {"audio"},
    ("e2b", r"vision_tower.*input_max"): {"image", "video"},
    ("e2b", r"audio_tower.*output_proj"): {"audio"},
    ("e2b", r"embed_audio"): {"audio"},
    ("e2b", r"embed_tokens_per_layer"): TEXT_KINDS | MEDIA_KINDS,
    ("e2b", r"per_layer_projection\.weight"): TEXT_KINDS | MEDIA_KINDS,
    ("moe", r"layer_scalar"): TEXT_KINDS | {"image", "video"},
    ("text", r"lm_head"): TEXT_KINDS,
}


@pytest.fixture(scope="module")
def sound(models):  # noqa: ANN001, ANN202
    """Logits of the undamaged models that count, by family and probe."""
    return cache(lambda family, name: counted(models(family)[0], by_name(models(family)[1])[name]))


def tensors(model: Model, pattern: str) -> list[torch.Tensor]:
    found = [*model.named_parameters(), *model.named_buffers()]
    return [tensor for name, tensor in found if re.search(pattern, name)]


@pytest.mark.parametrize("family", two_when_quick(FAMILIES))
def test_a_family_gets_a_probe_for_each_way_in(family: str, models) -> None:  # noqa: ANN001
    _, probes = models(family)
    assert {probe.bucket for probe in probes} == FAMILIES[family] <= set(KINDS)
    assert len(by_name(probes)) == len(probes) >= 32
    for probe in probes:
        assert len(probe.targets) == len(probe.scored) == len(probe.sequences) == int(probe.response.sum()) > 0
        assert not probe.response[:, -1].any()
        assert probe.attended[probe.scored].all()
        ids = probe.arguments["input_ids"].flatten()
        assert torch.equal(ids[probe.scored + 1], probe.targets)


@pytest.mark.parametrize("family", two_when_quick(FAMILIES))
def test_probes_are_the_same_in_every_run_and_others_for_another_seed(family: str, models, checkpoints) -> None:  # noqa: ANN001
    model, probes = models(family)
    assert digest(make_probes(model.config, checkpoints(family))) == digest(probes)
    other = make_probes(model, checkpoints(family), seed=1)
    assert (digest(other) != digest(probes)) == bool(FAMILIES[family] & MEDIA_KINDS)


@pytest.mark.parametrize(("family", "pattern"), one_in(3, PARTS))
def test_damage_to_a_part_is_seen_by_its_probes_and_by_no_other(
    family: str,
    pattern: str,
    models,  # noqa: ANN001
    sound,  # noqa: ANN001
    request: pytest.FixtureRequest,
) -> None:
    """By the first of each kind, and in the full run by all."""
    model, probes = models(family)
    if not request.config.getoption("--full"):
        probes = tuple({probe.bucket: probe for probe in reversed(probes)}.values())
    before = {probe.name: sound(family, probe.name) for probe in probes}
    parts = tensors(model, pattern)
    kept = [part.clone() for part in parts]
    for part in parts:
        part.data.mul_(0.5)
    changed = {probe.name: not torch.equal(before[probe.name], counted(model, probe)) for probe in probes}
    for part, value in zip(parts, kept, strict=True):
        part.data.copy_(value)
    seeing = PARTS[family, pattern]
    assert parts
    assert changed == {probe.name: probe.bucket in seeing for probe in probes}


@pytest.mark.parametrize("family", ["moe", "unified", "e2b"])
def test_text_before_media_does_not_depend_on_them(family: str, models) -> None:  # noqa: ANN001
    model, probes = models(family)
    for name in {"image_square", "audio", "video"} & by_name(probes).keys():
        probe = by_name(probes)[name]
        first = int(probe.arguments["mm_token_type_ids"][0].nonzero()[0])
        arguments = dict(probe.arguments)
        key = next(key for key in ("pixel_values", "pixel_values_videos", "input_features") if key in arguments)
        arguments[key] = 1 - arguments[key]
        one, other = (call(model, each, use_cache=False).logits[0] for each in (probe.arguments, arguments))
        assert first > 5
        changed = (one - other).abs().max(dim=-1).values / one.abs().max()
        assert float(changed[:first].max()) < 1e-5  # not 0: grouped experts sum in another order
        assert float(changed[first:].max()) > 1e-2


def test_pictures_are_square_wide_tall_padded_and_several(models) -> None:  # noqa: ANN001
    model, probes = models("moe")
    pool = model.config.vision_config.pooling_kernel_size
    shapes = {}
    for name, probe in by_name(probes).items():
        if probe.bucket == "image":
            positions = probe.arguments["image_position_ids"]
            shapes[name] = [
                ((int(each[:, 0].max()) + 1) // pool, (int(each[:, 1].max()) + 1) // pool, bool((each < 0).any()))
                for each in positions
            ]
    assert shapes == {
        "image_square": [(3, 3, False)],
        "image_wide": [(4, 2, False)],
        "image_tall": [(2, 3, False)],
        "image_padded": [(3, 2, True)],
        "images": [(2, 2, False), (3, 1, True)],
    }


def test_pictures_show_the_colours_that_the_answer_names(models) -> None:  # noqa: ANN001
    model, _ = models("moe")
    media = pictures(model.config, [(3, 2), (2, 2)], torch.Generator().manual_seed(0), padding=1)
    pool = model.config.vision_config.pooling_kernel_size
    for number, words in enumerate(media.content):
        pixels, positions = media.arguments["pixel_values"][number], media.arguments["image_position_ids"][number]
        for y, row in enumerate(words.split(", ")):
            for x, word in enumerate(row.split()):
                cell = (positions.div(pool, rounding_mode="floor") == torch.tensor([x, y])).all(-1)
                mean = pixels[cell].reshape(-1, 3).mean(0)
                assert cell.sum() == pool**2
                assert float((mean - torch.tensor(COLOURS[word])).abs().max()) < 0.05
        assert (pixels[positions[:, 0] < 0] == 0).all()
    assert media.soft_tokens == (6, 4)


def test_padding_of_pictures_and_sounds_changes_nothing(models) -> None:  # noqa: ANN001
    model, probes = models("e2b")
    for name in ("image_padded", "audio_padded"):
        probe = by_name(probes)[name]
        arguments = dict(probe.arguments)
        if name == "image_padded":
            real = int((arguments["image_position_ids"][0, :, 0] >= 0).sum())
            sized = ("pixel_values", "image_position_ids")
        else:
            real = int(arguments["input_features_mask"].sum(1).max())
            sized = ("input_features", "input_features_mask")
        for key in sized:
            arguments[key] = arguments[key][:, :real]
        padded, bare = (call(model, each, use_cache=False).logits for each in (probe.arguments, arguments))
        assert float((padded - bare).abs().max() / bare.abs().max()) < 1e-5


@pytest.mark.wide
def test_every_expert_of_every_layer_is_hit_and_matters() -> None:
    model = reload(trained(Family.MOE))
    probes = make_probes(model, trained(Family.MOE))
    routers = [module for module in model.modules() if type(module).__name__ == "Gemma4TextRouter"]
    hits: list[Counter[int]] = [Counter() for _ in routers]
    seen: dict[tuple[int, int], Probe] = {}
    chosen: list[torch.Tensor] = []
    for router in routers:
        router.register_forward_hook(lambda _module, _inputs, output: chosen.append(output[2]))
    for probe in probes:
        chosen.clear()
        call(model, probe.arguments, use_cache=False)
        for layer, experts in enumerate(chosen):
            found = Counter(experts[probe.attended].flatten().tolist())
            hits[layer] += found
            seen |= {(layer, expert): probe for expert in found if (layer, expert) not in seen}
    experts = [module for module in model.modules() if type(module).__name__ == "Gemma4TextExperts"]
    for layer, found in enumerate(hits):
        assert len(found) == model.config.text_config.num_experts, (layer, found)
        rarest = min(found, key=found.__getitem__)
        probe = seen[layer, rarest]
        before = call(model, probe.arguments, use_cache=False).logits
        kept = experts[layer].down_proj.data[rarest].clone()
        experts[layer].down_proj.data[rarest] = 0
        assert not torch.equal(before, call(model, probe.arguments, use_cache=False).logits)
        experts[layer].down_proj.data[rarest] = kept


@pytest.mark.parametrize("family", ["moe", "unified", "text"])
def test_long_probes_need_the_full_layers_and_the_window(family: str, models) -> None:  # noqa: ANN001
    model, probes = models(family)
    config = model.config.get_text_config()
    for name in ("long_1", "long_2"):
        probe = by_name(probes)[name]
        note = len(frame_of(Path("nowhere"), model.config).encode("Note 1:"))  # a few ids: the note starts early
        asked = int(probe.scored[0]) + 1
        assert asked - note > config.sliding_window * 5 / 4
        before = counted(model, probe)
        windows = [(layer.self_attn, layer.self_attn.sliding_window) for layer in model.get_decoder().layers]
        original, config.sliding_window = config.sliding_window, 4 * probe.response.shape[1]
        for attention, window in windows:
            attention.sliding_window = None if window is None else config.sliding_window
        wide = counted(model, probe)
        config.sliding_window = original
        for attention, window in windows:
            attention.sliding_window = window
        assert not torch.equal(before, wide)
        full = tensors(model, rf"layers\.{config.layer_types.index('full_attention')}\.self_attn\.o_proj")
        kept = full[0].clone()
        full[0].data.zero_()
        assert not torch.equal(before, counted(model, probe))
        full[0].data.copy_(kept)


def test_a_draft_probe_for_assistants(checkpoints: Checkpoints) -> None:
    model = reload(checkpoints("assistant"))
    (probe,) = make_probes(model, checkpoints("assistant"))
    assert probe.bucket == "draft"
    logits = model(**probe.arguments).logits.flatten(0, 1)[probe.scored]
    assert len(logits) == len(probe.targets) == 8
    assert answer_probes(model, (probe,), max_new_tokens=4) == (probe,)


def test_kinds_and_tokens_choose(models, checkpoints: Checkpoints) -> None:  # noqa: ANN001
    model, probes = models("moe")
    directory = checkpoints("moe")
    some = make_probes(model, directory, kinds=("code", "image"))
    assert {probe.bucket for probe in some} == {"code", "image"}
    few = make_probes(model, directory, tokens=800)
    assert {probe.bucket for probe in few} == {probe.bucket for probe in probes}
    assert len(few) < len(probes) / 2
    with pytest.raises(UsageError, match="kind of probe colour: not one of"):
        make_probes(model, directory, kinds=("colour",))
    with pytest.raises(UsageError, match="a gemma4_text model takes none of image"):
        make_probes(models("text")[0], checkpoints("text"), kinds=("image",))


def test_without_a_tokenizer_ids_come_from_the_words(models, tmp_path: Path) -> None:  # noqa: ANN001
    model, _ = models("e2b")
    probes = make_probes(model, tmp_path)
    assert {probe.bucket for probe in probes} == FAMILIES["e2b"]
    assert digest(probes) == digest(make_probes(model, tmp_path))
    for probe in first_of_each(probes):
        assert counted(model, probe).isfinite().all()


def test_a_probe_may_be_thinned_and_begun(moe: Path) -> None:
    probe = next(one for one in make_probes(load(moe), moe, kinds=["prose"], tokens=1))
    few = probe.thinned(3)
    assert len(few.targets) == len(few.scored) == 3
    assert set(few.scored.tolist()) <= set(probe.scored.tolist())
    assert few.targets.tolist() == probe.arguments["input_ids"].roll(-1, dims=1).flatten()[few.scored].tolist()
    assert probe.thinned(10**6) is probe
    length = int(probe.scored[1]) + 1
    begun = probe.begun(length)
    assert begun.arguments["input_ids"].shape[1] == length
    assert begun.targets.tolist() == probe.targets[:2].tolist()
    assert probe.begun(1) is probe

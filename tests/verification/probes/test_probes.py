"""Probes reach what they say they reach, count what they say they count, and are the same in every run."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import Checkpoints
from helpers.grids import every, few
from helpers.prompts import first_of_each
from helpers.reload import reload
from transformers import AutoTokenizer

from g4convert.demo.trained import trained
from g4convert.errors import GateError, InputError, UsageError
from g4convert.forward.conversations import Conversation, frame_of, placeholders, read_prompts
from g4convert.forward.load import load
from g4convert.forward.media import COLOURS, call, pictures
from g4convert.forward.models import Model
from g4convert.forward.probe import Probe
from g4convert.gemma4.family import Family
from g4convert.verification.probes.answers import decode_equals_prefill, with_answers
from g4convert.verification.probes.suite import KINDS, bundled, digest, left_padded, make_probes

TEXT_KINDS = {"prose", "code", "tools", "non_latin", "long", "batch"}
MEDIA_KINDS = {"image", "audio", "video"}
FAMILIES = {
    "moe": TEXT_KINDS | {"image", "video"},
    "dense": TEXT_KINDS | {"image", "video"},
    "unified": TEXT_KINDS | MEDIA_KINDS,
    "e2b": TEXT_KINDS | MEDIA_KINDS,
    "text": TEXT_KINDS,
    "unified_text": TEXT_KINDS,
}
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
def models(checkpoints: Checkpoints):  # noqa: ANN201
    """Random models by family, in fp32, with their probes; a test that changes one must change it back."""
    made: dict[str, tuple[Model, tuple[Probe, ...]]] = {}

    def get(family: str) -> tuple[Model, tuple[Probe, ...]]:
        if family not in made:
            model = reload(checkpoints(family))
            made[family] = model, make_probes(model, checkpoints(family))
        return made[family]

    return get


@pytest.fixture(scope="module")
def sound(models):  # noqa: ANN001, ANN201
    """Logits of the undamaged models that count, by family and probe."""
    return cache(lambda family, name: counted(models(family)[0], by_name(models(family)[1])[name]))


def counted(model: Model, probe: Probe) -> torch.Tensor:
    """Logits of the positions that count, [n, vocabulary]."""
    return call(model, probe.arguments, use_cache=False).logits.flatten(0, 1)[probe.scored]


def by_name(probes: tuple[Probe, ...]) -> Mapping[str, Probe]:
    return {probe.name: probe for probe in probes}


def tensors(model: Model, pattern: str) -> list[torch.Tensor]:
    found = [*model.named_parameters(), *model.named_buffers()]
    return [tensor for name, tensor in found if re.search(pattern, name)]


@pytest.mark.parametrize("family", few(FAMILIES))
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


@pytest.mark.parametrize("family", few(FAMILIES))
def test_probes_are_the_same_in_every_run_and_others_for_another_seed(family: str, models, checkpoints) -> None:  # noqa: ANN001
    model, probes = models(family)
    assert digest(make_probes(model.config, checkpoints(family))) == digest(probes)
    other = make_probes(model, checkpoints(family), seed=1)
    assert (digest(other) != digest(probes)) == bool(FAMILIES[family] & MEDIA_KINDS)


@pytest.mark.parametrize(("family", "pattern"), every(3, PARTS))
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


@pytest.mark.parametrize("family", few(FAMILIES))
def test_left_padding_gives_the_logits_of_the_rows_alone(family: str, models) -> None:  # noqa: ANN001
    model, probes = models(family)
    names = by_name(probes)
    batch = counted(model, names["batch"])
    rows = [counted(model, names[name]) for name in ("harbour", "train", "greek_count")]
    assert names["batch"].sequences.unique().tolist() == [0, 1, 2]
    expected = torch.cat(rows)
    assert batch.shape == expected.shape
    assert float((batch - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("family", every(3, FAMILIES))
def test_decoding_with_a_cache_equals_one_prefill(family: str, models) -> None:  # noqa: ANN001
    model, probes = models(family)
    wanted = {"harbour", "long_1", "batch", "image_wide", "audio_padded", "video"}
    found = {probe.name: decode_equals_prefill(model, probe) for probe in probes if probe.name in wanted}
    assert max(found.values()) < 1e-5, found


def test_decoding_a_padded_batch_of_texts_begins_where_every_row_has(models) -> None:  # noqa: ANN001
    """Rows of a base model's batch count from their first token on, and shorter ones begin later."""
    model, probes = models("dense")
    batch = by_name(probes)["batch"]
    attended = batch.arguments["attention_mask"].bool()
    answers = attended & attended.roll(1, dims=1)
    answers[:, 0] = False
    texts = Probe.of("texts", "batch", batch.arguments, answers)
    assert not attended[:, 0].all()
    assert decode_equals_prefill(model, texts) < 1e-5


def test_decoding_sees_a_cache_that_forgets(models, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    model, probes = models("dense")
    from transformers.cache_utils import DynamicSlidingWindowLayer  # noqa: PLC0415

    update = DynamicSlidingWindowLayer.update

    def forgetful(self, keys, values, *rest, **more):  # noqa: ANN001, ANN002, ANN003, ANN202
        return update(self, 0.9 * keys, values, *rest, **more)

    before = decode_equals_prefill(model, by_name(probes)["long_1"])
    monkeypatch.setattr(DynamicSlidingWindowLayer, "update", forgetful)
    assert decode_equals_prefill(model, by_name(probes)["long_1"]) > 1000 * before


def test_a_draft_probe_for_assistants(checkpoints: Checkpoints) -> None:
    model = reload(checkpoints("assistant"))
    (probe,) = make_probes(model, checkpoints("assistant"))
    assert probe.bucket == "draft"
    logits = model(**probe.arguments).logits.flatten(0, 1)[probe.scored]
    assert len(logits) == len(probe.targets) == 8
    assert with_answers(model, (probe,), max_new_tokens=4) == (probe,)


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


@pytest.mark.wide
def test_answers_are_the_models_own(models) -> None:  # noqa: ANN001
    model, probes = models("unified")
    probes = first_of_each(probes)
    found = with_answers(model, probes, max_new_tokens=6)
    assert [probe.name for probe in found] == [probe.name for probe in probes]
    for given, probe in zip(probes, found, strict=True):
        assert 0 < len(probe.targets) <= 6 * len(probe.response)
        start = int(given.response[0].nonzero()[0]) + 1
        assert (
            given.arguments["input_ids"][0, :start].tolist() == probe.arguments["input_ids"][0, :start].tolist()
        ) or (given.bucket == "batch")
        own = counted(model, probe).topk(2)
        sure = own.values[:, 0] - own.values[:, 1] > 1e-3
        assert torch.equal(own.indices[sure, 0], probe.targets[sure])
    assert digest(found) == digest(with_answers(model, probes, max_new_tokens=6, batch_size=3))


def test_an_answer_ends_with_the_end_of_turn_and_rows_end_alone(models, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    model, probes = models("moe")
    probes = tuple(probe for probe in probes if probe.bucket in {"batch", "code"})
    probes = first_of_each(probes)
    long = with_answers(model, probes, max_new_tokens=12)
    ends = int(by_name(long)["batch"].targets[2])
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    for probe in with_answers(model, probes, max_new_tokens=12):
        for row in probe.sequences.unique():
            answer = probe.targets[probe.sequences == row].tolist()
            assert ends not in answer[:-1]
            assert len(answer) == 12 or answer[-1] == ends
    batch = by_name(with_answers(model, probes, max_new_tokens=12))["batch"]
    assert len(batch.targets) < 36


def test_an_answer_has_no_placeholder_of_media(models) -> None:  # noqa: ANN001
    model, probes = models("e2b")
    asked = [probe for probe in probes if probe.bucket in {"prose", "image"}][:4]
    barred = placeholders(model.config)
    assert len(barred) == 3

    def prefer_them(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor(barred), 1e6)

    handle = model.get_output_embeddings().register_forward_hook(prefer_them)
    try:
        found = with_answers(model, asked, max_new_tokens=3)
    finally:
        handle.remove()
    assert not any(torch.isin(probe.targets, torch.tensor(barred)).any() for probe in found)


def test_answers_of_a_broken_reference_are_refused(models) -> None:  # noqa: ANN001
    model, probes = models("dense")
    norm = model.get_decoder().norm.weight
    kept = norm.clone()
    norm.data.fill_(float("nan"))
    with pytest.raises(GateError, match="not finite, so it gives no answer"):
        with_answers(model, probes[:1], max_new_tokens=2)
    norm.data.copy_(kept)


def test_the_frame_is_the_checkpoints_chat_template(models, checkpoints: Checkpoints) -> None:  # noqa: ANN001
    _, probes = models("moe")
    tokenizer = AutoTokenizer.from_pretrained(checkpoints("moe"))
    ids = by_name(probes)["repeat"].arguments["input_ids"][0]
    assert tokenizer.decode(ids) == (
        "<bos><|turn>user\nRepeat: a small light at the end of a long road<turn|>\n"
        "<|turn>model\na small light at the end of a long road<turn|>"
    )
    assert tokenizer.decode(by_name(probes)["repeat"].targets) == "a small light at the end of a long road<turn|>"
    video = tokenizer.decode(by_name(probes)["video"].arguments["input_ids"][0])
    frame = "<|image>" + "<|video|>" * 6 + "<image|>"
    assert f"Here is a short video.00:00 {frame} 00:01 {frame}Which colours" in video


@pytest.fixture
def base(moe: Path, tmp_path: Path) -> Path:
    """A checkpoint without a chat template."""
    return shutil.copytree(moe, tmp_path / "base", ignore=shutil.ignore_patterns("chat_template.jinja"))


def test_a_base_model_reads_plain_text_and_all_of_it_counts(models, base: Path) -> None:  # noqa: ANN001
    probes = by_name(make_probes(models("moe")[0].config, base))
    tokenizer = AutoTokenizer.from_pretrained(base)
    probe = probes["repeat"]
    assert tokenizer.decode(probe.arguments["input_ids"][0]) == (
        "<bos>Repeat: a small light at the end of a long road\na small light at the end of a long road"
    )
    assert probe.response.tolist() == [[True] * (probe.response.shape[1] - 1) + [False]]
    assert with_answers(models("moe")[0], (probe,), max_new_tokens=2) == (probe,)


def test_without_a_tokenizer_ids_come_from_the_words(models, tmp_path: Path) -> None:  # noqa: ANN001
    model, _ = models("e2b")
    probes = make_probes(model, tmp_path)
    assert {probe.bucket for probe in probes} == FAMILIES["e2b"]
    assert digest(probes) == digest(make_probes(model, tmp_path))
    for probe in first_of_each(probes):
        assert counted(model, probe).isfinite().all()


def test_a_tokenizer_of_another_vocabulary_is_refused(models) -> None:  # noqa: ANN001
    with pytest.raises(InputError, match=r"tokenizer\.json has 1024 tokens, the model's vocabulary 512"):
        make_probes(models("moe")[0], trained(Family.MOE))


def test_a_chat_template_that_drops_images_is_refused(models, moe: Path, tmp_path: Path) -> None:  # noqa: ANN001
    directory = shutil.copytree(moe, tmp_path / "copy")
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").write_text(template.replace("'<|' + part['type'] + '|>'", "''"))
    with pytest.raises(InputError, match="makes 0 placeholders of 1 image parts"):
        make_probes(models("moe")[0], directory)


def test_the_bundled_conversations_are_plain_and_complete() -> None:
    found = bundled()
    assert {entry.bucket for entry in found} == {"prose", "code", "tools", "non_latin"}
    assert len({entry.name for entry in found}) == len(found) >= 32
    for entry in found:
        assert entry.answer
        assert [message["role"] for message in entry.messages] == ["user"]


def test_prompts_of_the_user(tmp_path: Path, models, checkpoints: Checkpoints) -> None:  # noqa: ANN001
    path = tmp_path / "mine.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}], "name": "hi"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = read_prompts(path, chat=True)
    assert found == (
        Conversation("mine:1", "prompts", ({"role": "user", "content": "Hello"},)),
        Conversation("hi", "prompts", ({"role": "user", "content": "Hello"},), "Hi"),
    )
    model = models("text")[0]
    probes = make_probes(model, checkpoints("text"), conversations=found)
    assert [len(probe.targets) for probe in probes] == [0, 3]
    assert all(len(probe.targets) for probe in with_answers(model, probes, max_new_tokens=4))


def test_plain_text_is_refused_for_an_instruction_tuned_model(tmp_path: Path) -> None:
    path = tmp_path / "wikitext.jsonl"
    path.write_text('{"prompt": "= Robert Boulter = is an English film"}\n')
    with pytest.raises(UsageError, match="never trained off its chat frame") as caught:
        read_prompts(path, chat=True)
    assert '{"messages"' in caught.value.hint
    (prompt,) = read_prompts(path, chat=False)
    assert prompt.raw
    path.write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n')
    with pytest.raises(UsageError, match="a base model"):
        read_prompts(path, chat=False)


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    user = '{"messages": [{"role": "user", "content": %s}]}'
    lines = ["[1]", "nonsense", '{"messages": []}', '{"text": "a"}', '{"prompt": "a", "messages": []}']
    lines += ['{"messages": [{"role": "user"}]}', '{"messages": [{"role": "boss", "content": "Hi"}]}']
    lines += [user % '[{"type": "image"}]', user.replace("user", "assistant") % '"Hi"', user % '"fine"']
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as caught:
        read_prompts(path, chat=True)
    assert [int(line.split(":")[0].removeprefix("line ")) for line in caught.value.offenders] == list(range(1, 10))
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no prompt"):
        read_prompts(path, chat=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "missing.jsonl", chat=True)


def test_left_padding_of_one_row_is_no_padding(models) -> None:  # noqa: ANN001
    model, _ = models("text")
    probe = left_padded("one", "batch", [([2, 40, 41], [42, 43])], model.config)
    assert probe.arguments["attention_mask"].tolist() == [[1] * 5]
    assert probe.arguments["position_ids"].tolist() == [[0, 1, 2, 3, 4]]
    assert probe.targets.tolist() == [42, 43]


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

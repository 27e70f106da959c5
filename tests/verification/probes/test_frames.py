"""Conversations of probes: the model's own answers, its chat frame, and prompts of the user."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Checkpoints
from helpers.grids import one_in, two_when_quick
from helpers.probed import FAMILIES, by_name, counted, models
from helpers.prompts import first_of_each
from transformers import AutoTokenizer

from g4convert.demo.trained import trained
from g4convert.errors import GateError, InputError, UsageError
from g4convert.forward.conversations import Conversation, placeholders, read_prompts
from g4convert.forward.probe import Probe
from g4convert.gemma4.family import Family
from g4convert.verification.probes.answers import answer_probes, decode_equals_prefill
from g4convert.verification.probes.suite import bundled, digest, make_probes, pad_left

__all__ = ["models"]  # a fixture


@pytest.mark.parametrize("family", two_when_quick(FAMILIES))
def test_left_padding_gives_the_logits_of_the_rows_alone(family: str, models) -> None:  # noqa: ANN001
    model, probes = models(family)
    names = by_name(probes)
    batch = counted(model, names["batch"])
    rows = [counted(model, names[name]) for name in ("harbour", "train", "greek_count")]
    assert names["batch"].sequences.unique().tolist() == [0, 1, 2]
    expected = torch.cat(rows)
    assert batch.shape == expected.shape
    assert float((batch - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("family", one_in(3, FAMILIES))
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


@pytest.mark.wide
def test_answers_are_the_models_own(models) -> None:  # noqa: ANN001
    model, probes = models("unified")
    probes = first_of_each(probes)
    found = answer_probes(model, probes, max_new_tokens=6)
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
    assert digest(found) == digest(answer_probes(model, probes, max_new_tokens=6, batch_size=3))


def test_an_answer_ends_with_the_end_of_turn_and_rows_end_alone(models, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    model, probes = models("moe")
    probes = tuple(probe for probe in probes if probe.bucket in {"batch", "code"})
    probes = first_of_each(probes)
    long = answer_probes(model, probes, max_new_tokens=12)
    ends = int(by_name(long)["batch"].targets[2])
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    for probe in answer_probes(model, probes, max_new_tokens=12):
        for row in probe.sequences.unique():
            answer = probe.targets[probe.sequences == row].tolist()
            assert ends not in answer[:-1]
            assert len(answer) == 12 or answer[-1] == ends
    batch = by_name(answer_probes(model, probes, max_new_tokens=12))["batch"]
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
        found = answer_probes(model, asked, max_new_tokens=3)
    finally:
        handle.remove()
    assert not any(torch.isin(probe.targets, torch.tensor(barred)).any() for probe in found)


def test_answers_of_a_broken_reference_are_refused(models) -> None:  # noqa: ANN001
    model, probes = models("dense")
    norm = model.get_decoder().norm.weight
    kept = norm.clone()
    norm.data.fill_(float("nan"))
    with pytest.raises(GateError, match="not finite, so it gives no answer"):
        answer_probes(model, probes[:1], max_new_tokens=2)
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
    assert answer_probes(models("moe")[0], (probe,), max_new_tokens=2) == (probe,)


def test_a_tokenizer_of_another_vocabulary_is_refused(models) -> None:  # noqa: ANN001
    with pytest.raises(InputError, match=r"tokenizer\.json has 1024 tokens, the model's vocabulary 512"):
        make_probes(models("moe")[0], trained(Family.MOE))


def test_a_chat_template_that_drops_images_is_refused(models, moe: Path, tmp_path: Path) -> None:  # noqa: ANN001
    directory = shutil.copytree(moe, tmp_path / "copy")
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").write_text(template.replace("'<|' + part['type'] + '|>'", "''"))
    with pytest.raises(InputError, match="0 times in a prompt with 1 image part"):
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
    assert all(len(probe.targets) for probe in answer_probes(model, probes, max_new_tokens=4))


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
    lines += ['{"messages": null}', '{"messages": "Hi"}', '{"messages": ["Hi"]}', '{"messages": {"role": "user"}}']
    lines += [user % '[{"type": "image"}]', user.replace("user", "assistant") % '"Hi"', user % '"fine"']
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as caught:
        read_prompts(path, chat=True)
    assert not any("NoneType" in line or "indices" in line for line in caught.value.offenders)
    assert [int(line.split(":")[0].removeprefix("line ")) for line in caught.value.offenders] == list(range(1, 14))
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no prompt"):
        read_prompts(path, chat=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "missing.jsonl", chat=True)


def test_left_padding_of_one_row_is_no_padding(models) -> None:  # noqa: ANN001
    model, _ = models("text")
    probe = pad_left("one", "batch", [([2, 40, 41], [42, 43])], model.config)
    assert probe.arguments["attention_mask"].tolist() == [[1] * 5]
    assert probe.arguments["position_ids"].tolist() == [[0, 1, 2, 3, 4]]
    assert probe.targets.tolist() == [42, 43]

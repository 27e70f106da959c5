"""Pictures that calibrate: what a model's Linears see of them, and which of them are refused."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from helpers.grids import two_when_quick
from helpers.hooked import hooked
from helpers.program import Program, g4convert
from helpers.runs import hashes
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import Gemma4ImageProcessorPil

from g4convert import quantize
from g4convert.api.bundled import count_bundled_tokens
from g4convert.api.calibrate import calibrate, make_bundled_ids
from g4convert.calibration.documents import KINDS, PICTURES, bundled_documents, hash_of_documents, read_documents
from g4convert.calibration.drawings import draw
from g4convert.calibration.record import record
from g4convert.calibration.rows import Shown, Written, pack
from g4convert.calibration.states import States
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.pictures import Patches, Pictures
from g4convert.conversion.statistics import source_of
from g4convert.errors import InputError, Interrupted, UsageError
from g4convert.fitting.inputs import choose_rows
from g4convert.forward.models import read_config
from g4convert.forward.patches import PictureCutter, as_floats, merged
from g4convert.progress import Progress
from g4convert.verification.probes.suite import bundled as probes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from conftest import Checkpoints

__all__ = ["g4convert"]  # a fixture

SEEING = ("e2b", "unified", "moe", "dense")
LENGTH = 160


def shown(source: Path, by_row: list[list[str]], length: int = LENGTH) -> Tokens:
    """Rows of random ids with bundled pictures among them."""
    config = read_config(source)
    cutter = PictureCutter.of(source, config)
    cut = [[cutter.cut(draw(name)) for name in names] for names in by_row]
    ids = np.random.default_rng(0).integers(5, 250, (len(by_row), length), dtype=np.int32)
    for row, several in zip(ids, cut, strict=True):
        at = 7
        for one in several:
            row[at] = config.boi_token_id
            row[at + 1 : at + 1 + one.soft_tokens] = config.image_token_id
            row[at + 1 + one.soft_tokens] = config.eoi_token_id
            at += one.soft_tokens + 4
    return Tokens(ids, pictures=Pictures.of(cut))


def arguments(source: Path, given: Tokens, s: int) -> Mapping[str, torch.Tensor]:
    """The forward's arguments of a row, in the form of a processor's output."""
    ids = torch.from_numpy(given.ids[s].astype(np.int64))[None]
    found = {"input_ids": ids}
    if s in given.pictured:
        assert given.pictures is not None
        several = [*given.pictures.of_row(s)]
        most = 10 + max(len(pixels) for pixels, _ in several)
        most += -most % 9
        pixels = np.zeros((len(several), most, several[0][0].shape[1]), np.float32)
        positions = np.full((len(several), most, 2), -1)
        for n, (one, places) in enumerate(several):
            pixels[n, : len(one)], positions[n, : len(one)] = as_floats(one), places
        found |= {
            "pixel_values": torch.from_numpy(pixels),
            "image_position_ids": torch.from_numpy(positions),
            "mm_token_type_ids": (ids == read_config(source).image_token_id).long(),
        }
    return found


@pytest.mark.parametrize("family", two_when_quick(SEEING))
def test_every_linear_is_given_what_transformers_gives_it_with_pictures(
    family: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source = checkpoints(family)
    given = shown(source, [["boat"], [], ["clock", "poster"], ["boat"]])
    found = record(source, given, tmp_path / "scratch", workers=2)
    expected = hooked(source, given, lambda s: arguments(source, given, s))
    assert {source_of(name) for name in expected} == {*found.inputs}
    for name, mean in expected.items():
        own, wanted = found.inputs[source_of(name)].mean_square, np.nan_to_num(mean)
        if ".experts." in name:
            own = own[int(name.split(".")[3])]
        assert np.allclose(own, wanted, rtol=2e-4, atol=1e-5 * wanted.max())


def test_a_sample_is_not_touched_by_the_pictures_of_its_neighbours(dense: Path, tmp_path: Path) -> None:
    both = shown(dense, [["boat"], ["clock"], []])
    one = record(dense, both.without({1}), tmp_path / "a")
    other = record(dense, both.without({0}), tmp_path / "b")
    whole = record(dense, both, tmp_path / "c")
    for name, inputs in whole.inputs.items():
        mean = (one.inputs[name].mean_square.astype(np.float64) + other.inputs[name].mean_square) / 2
        assert np.allclose(inputs.mean_square, mean, rtol=1e-4)


@pytest.mark.parametrize("family", SEEING)
def test_pictures_are_cut_as_the_models_processor_does(family: str, checkpoints: Checkpoints) -> None:
    source = checkpoints(family)
    cutter, processor = PictureCutter.of(source, read_config(source)), Gemma4ImageProcessorPil.from_pretrained(source)
    for name in ("boat", "receipt"):
        cut, made = cutter.cut(draw(name)), processor(draw(name), return_tensors="np")
        real = made["image_position_ids"][0][:, 0] >= 0
        pixels, places = made["pixel_values"][0][real], made["image_position_ids"][0][real]
        assert cut.soft_tokens == made["num_soft_tokens_per_image"][0]
        if family == "unified":
            assert len(cut.pixels) == cut.soft_tokens
            pixels, places = (one[0].numpy() for one in _merge(pixels, places, cut.soft_tokens))
        assert np.array_equal(as_floats(cut.pixels), pixels)
        assert np.array_equal(cut.positions, places)


def _merge(pixels: np.ndarray, places: np.ndarray, count: int) -> Any:  # noqa: ANN401 -- transformers'
    """Merge patches as the unified family's processor does, whose module asks for torchvision and needs none here."""
    fake = {name: ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")}
    fake["torchvision.transforms.v2"].functional = SimpleNamespace(InterpolationMode=None)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in fake.items():
            patch.setitem(sys.modules, name, module)
        merge = importlib.import_module("transformers.models.gemma4_unified.image_processing_gemma4_unified")
    return merge.patches_merge(torch.from_numpy(pixels)[None], torch.from_numpy(places)[None], count)


def test_merged_patches_are_larger_patches() -> None:
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    small = np.stack([picture[y : y + 1, x : x + 1].ravel() for y in range(4) for x in range(6)])
    places = np.array([(x, y) for y in range(4) for x in range(6)], np.int32)
    large, where = merged(small, places, 2)
    assert where.tolist() == [[x, y] for y in range(2) for x in range(3)]
    for one, (x, y) in zip(large, where, strict=True):
        assert np.array_equal(one.reshape(2, 2, 3), picture[2 * y : 2 * y + 2, 2 * x : 2 * x + 2])


def test_bundled_pictures_are_drawn_and_said_something_about() -> None:
    texts = bundled_documents(pictures=True)
    assert texts[: len(bundled_documents())] == bundled_documents()
    assert {one.kind for one in texts} == {*KINDS, PICTURES}
    assert hash_of_documents(texts) == hash_of_documents(bundled_documents(pictures=True))
    judging = {message["content"].strip() for one in probes() for message in one.messages}
    judging |= {one.answer.strip() for one in probes()}
    assert not judging & {part["text"].strip() for one in texts for part in one.parts if part["type"] == "text"}
    names = {picture.name for one in texts for picture in one.pictures}
    assert len(names) == 16
    for one in texts:
        assert bool(one.pictures) == (one.kind == PICTURES)
        assert sum(part["type"] == "image" for part in one.parts) == len(one.pictures)


def words(count: int, kind: str = "a", first: int = 10) -> Written:
    return Written(kind, tuple(range(first, first + count)))


def about(size: int, before: int, after: int) -> Written:
    """A text with a picture of so many ids, all 1."""
    ids = (*range(100, 100 + before), *[1] * size, *range(200, 200 + after))
    picture = Patches(np.zeros((size, 12), np.uint8), np.zeros((size, 2), np.int32), size)
    return Written("b", ids, shown=(Shown(before, before + size, picture),))


@pytest.mark.parametrize("pictures", [1, 5, 30])
@pytest.mark.parametrize("texts", [0, 3, 12])
def test_no_row_parts_a_picture(pictures: int, texts: int) -> None:
    given = [one for n in range(30) for one in ([about(6, 3, 5)] * (n < pictures) + [words(9)] * (n < texts))]
    packed = pack(given, 30, 20, [])
    if not packed.ids.size:
        assert 14 * pictures + 9 * texts < 60
        return
    assert packed.pictures is not None
    counts = np.bincount(packed.pictures.rows[:, 0], minlength=len(packed.ids))
    for row, count in zip(packed.ids, counts, strict=True):
        assert (row == 1).sum() == 6 * count
        runs = np.flatnonzero(np.diff(np.pad(row == 1, 1).astype(int)) == 1)
        ends = np.flatnonzero(np.diff(np.pad(row == 1, 1).astype(int)) == -1)
        assert ((ends - runs) % 6 == 0).all()
    assert len(packed.pictures) >= 0.6 * pictures


def test_texts_with_pictures_stand_together_in_few_rows() -> None:
    given = [one for _ in range(20) for one in (words(50), about(6, 3, 5), words(70))]
    packed = pack(given, 100, 100, [])
    assert packed.pictures is not None
    assert (len(packed.pictures), len(packed.ids)) == (20, 26)
    assert len(packed.pictures.in_rows) <= 4, "three are filled, and one judges"


def test_a_text_longer_than_a_row_is_cut_beside_its_picture() -> None:
    packed = pack([words(20), about(6, 17, 57), words(40)], 10, 20, [])
    assert packed.pictures is not None
    assert len(packed.pictures) == 1
    (row,) = packed.pictures.in_rows
    assert (packed.ids[row] == 1).sum() == 6


def saved(tmp_path: Path, parts: list[Any], name: str = "mine.jsonl", lines: int = 12) -> Path:
    """A file of the user's with one line about a picture among others."""
    talk = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A boat, I think."}]}
    plain = {"text": "A few more words about ships and weather, and what one sees of them. " * 5}
    (tmp_path / name).write_text("\n".join(map(json.dumps, [plain, talk, *[plain] * lines])))
    return tmp_path / name


@pytest.mark.parametrize("key", ["path", "image", "url"])
def test_pictures_of_the_users_lie_beside_the_file(key: str, e2b: Path, tmp_path: Path) -> None:
    (tmp_path / "art").mkdir()
    Image.fromarray(draw("boat")).save(tmp_path / "art" / "boat.png")
    data = saved(tmp_path, [{"type": "image", key: "art/boat.png"}, {"type": "text", "text": "What is it?"}])
    made = calibrate(e2b, tmp_path / "c.safetensors", data=data, length=128, answers=False, statistics=False)
    given = Tokens.load(tmp_path / "c.safetensors", 512, Checkpoint.open(e2b))
    assert given.pictures is not None
    assert (len(given.pictures), made.texts["pictures"], made.to_dict()["samples_with_pictures"]) == (1, 1, 1)
    config = read_config(e2b)
    cut = PictureCutter.of(e2b, config).cut(draw("boat"))
    assert np.array_equal(given.pictures.pixels, cut.pixels)
    (s,) = given.pictured
    places = np.flatnonzero(given.ids[s] == config.image_token_id)
    assert len(places) == cut.soft_tokens == places[-1] - places[0] + 1
    assert (given.ids[s][places[0] - 1], given.ids[s][places[-1] + 1]) == (config.boi_token_id, config.eoi_token_id)
    turned = tmp_path / "art" / "boat.png"
    Image.fromarray(draw("boat")[::-1]).save(turned)
    other = calibrate(e2b, tmp_path / "d.safetensors", data=data, length=128, answers=False, statistics=False)
    assert other.tokens.hash != made.tokens.hash, "other pixels, the same ids"
    assert np.array_equal(other.tokens.ids, made.tokens.ids)
    assert other.texts["data"] != made.texts["data"]


def test_files_of_pictures_may_stand_beside_the_messages(tmp_path: Path) -> None:
    for name in ("boat", "clock"):
        Image.fromarray(draw(name)).save(tmp_path / f"{name}.png")
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "image"}]
    line = {"messages": [{"role": "user", "content": parts}], "images": ["boat.png", {"path": "clock.png"}]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line))
    (found,) = read_documents(str(tmp_path / "mine.jsonl"))
    assert [one.name for one in found.pictures] == ["boat.png", "clock.png"]
    assert np.array_equal(found.pictures[1].load(), draw("clock"))
    for images, said in (
        (["boat.png"], "needs its file"),
        (["boat.png"] * 3, "3 of them, more than parts"),
        ("boat.png", "not a list"),
        (["boat.png", 4], "needs its file"),
    ):
        (tmp_path / "mine.jsonl").write_text(json.dumps(line | {"images": images}))
        with pytest.raises(InputError) as refused:
            read_documents(str(tmp_path / "mine.jsonl"))
        assert said in refused.value.offenders[0]


def test_pictures_that_do_not_load_are_refused_by_line(e2b: Path, tmp_path: Path, g4convert: Program) -> None:
    Image.fromarray(draw("boat")).save(tmp_path / "boat.png")
    whole = (tmp_path / "boat.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "words.png").write_text("no picture")
    (tmp_path / "turned.png").write_bytes(whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
    for part, said in (
        ({"path": "absent.png"}, "no such file"),
        ({"path": "cut.png"}, "cannot be read"),
        ({"path": "words.png"}, "cannot be read"),
        ({"path": "turned.png"}, "cannot be read"),
        ({"path": "."}, "no such file"),
        ({"url": "https://example.org/a.png"}, "pictures are not fetched"),
        ({"image": "data:image/png;base64,AAAA"}, "pictures are not fetched"),
        ({"path": 3}, "needs its file"),
        ({}, "needs its file"),
    ):
        data = saved(tmp_path, [{"type": "image", **part}, {"type": "text", "text": "What is it?"}])
        ran = g4convert("calibrate", e2b, "-o", tmp_path / "c.safetensors", "--data", data, "--length", 128)
        assert (ran.status, "line 2: " in ran.err, said in ran.err, "hint: " in ran.err) == (3, True, True, True), (
            ran.err
        )
    data = saved(tmp_path, [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "What is it?"}])
    with pytest.raises(InputError) as refused:
        read_documents(str(data))
    assert "type 'audio'" in refused.value.offenders[0]
    assert not [*tmp_path.glob("c.*")]


def test_a_model_without_pictures_refuses_them_and_one_with_says_what_is_missing(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    Image.fromarray(draw("boat")).save(tmp_path / "boat.png")
    data = saved(tmp_path, [{"type": "image", "path": "boat.png"}, {"type": "text", "text": "What is it?"}])
    bare = tmp_path / "bare"
    shutil.copytree(checkpoints("e2b"), bare)
    (bare / "processor_config.json").unlink()
    odd = tmp_path / "odd"
    shutil.copytree(checkpoints("e2b"), odd)
    processor = json.loads((odd / "processor_config.json").read_text())
    processor["image_processor"]["patch_size"] = 8
    (odd / "processor_config.json").write_text(json.dumps(processor))
    how: dict[str, Any] = {"length": 128, "answers": False, "statistics": False}
    for source, said in (
        (checkpoints("text"), "1 conversation with pictures, and the model takes no pictures"),
        (bare, "1 conversation with pictures, and the checkpoint has no processor_config.json"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            calibrate(source, tmp_path / "c.safetensors", data=data, **how)
        assert refused.value.offenders == ("line 2",)
    with pytest.raises(InputError, match="the image processor has patches of 8 pixels and pools 3, the model 4 and 3"):
        calibrate(odd, tmp_path / "c.safetensors", data=data, **how)
    with pytest.raises(
        InputError, match=r"line 2: picture boat\.png: \d+ soft tokens, and a row has room for 29"
    ) as long:
        calibrate(checkpoints("e2b"), tmp_path / "c.safetensors", data=data, **how | {"length": 32})
    assert "--length" in long.value.hint
    assert not [*tmp_path.glob("c.*")]
    for source, length, why in (
        (bare, 128, "none: the checkpoint has no processor_config.json"),
        (odd, 128, f"none: {odd}: the image processor has patches of 8 pixels and pools 3, the model 4 and 3"),
        (checkpoints("e2b"), 32, "none: a sample of 32 holds no picture of 70 soft tokens"),
    ):
        made = calibrate(source, tmp_path / f"{source.name}.safetensors", **how | {"length": length})
        assert made.texts["pictures"] == why
        assert PICTURES not in made.texts["kinds"]
    assert "pictures" not in calibrate(checkpoints("text"), tmp_path / "t.safetensors", **how).texts


def test_more_pictures_than_memory_should_hold_are_refused_with_numbers(
    e2b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(draw("boat")).save(tmp_path / "boat.png")
    data = saved(tmp_path, [{"type": "image", "path": "boat.png"}, {"type": "text", "text": "What is it?"}])
    data.write_text("\n".join([data.read_text()] * 8))
    monkeypatch.setattr("g4convert.calibration.sampling._MOST_PIXELS", 100_000)
    how: dict[str, Any] = {"data": data, "length": 128, "answers": False, "statistics": False}
    with pytest.raises(InputError, match=r"pictures of over 100\.\d+ kB, .* in \d+ samples") as refused:
        calibrate(e2b, tmp_path / "c.safetensors", **how)
    words = refused.value.hint.split()
    assert words[0] == "--samples"
    made = calibrate(e2b, tmp_path / "c.safetensors", **how, samples=int(words[1]))
    assert made.texts["pictures"] > 1


@pytest.mark.wide
def test_bundled_pictures_are_a_kind_of_text_beside_the_models_answers(
    e2b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(_: object, frame: Any, order: Any, **how: Any) -> list[Written]:  # noqa: ANN401 -- what is asked for
        assert not any(one.pictures for one in order)
        texts = [Written(one.kind, tuple(frame.encode(one.text)), whole=True) for one in order]
        return texts[: int(np.searchsorted(np.cumsum([len(one.ids) for one in texts]), how["enough"])) + 1]

    monkeypatch.setattr("g4convert.api.calibration_request.load", lambda *_, **__: None)
    monkeypatch.setattr("g4convert.api.calibration_request.answer_questions", answered)
    how: dict[str, Any] = {"samples": 96, "length": 160, "statistics": False}
    few = calibrate(e2b, tmp_path / "few.safetensors", answers=False, **how | {"samples": 8})
    assert few.texts["pictures"] == "none: other texts fill the samples"
    for samples, answers in ((96, False), (40, True)):
        made = calibrate(e2b, tmp_path / f"{samples}.safetensors", answers=answers, **how | {"samples": samples})
        assert 70 < made.texts["kinds"][PICTURES] < 0.25 * made.tokens.ids.size
        assert ("with pictures as they are" in made.texts["answers"]) is answers
        assert made.texts["pictures"] == len(made.tokens.pictures or ())
    assert make_bundled_ids(e2b).pictures is None, "its rows have 32 ids"
    config = json.loads((e2b / "config.json").read_text())
    config["text_config"]["sliding_window"] = 128
    wide = tmp_path / "wide"
    shutil.copytree(e2b, wide)
    (wide / "config.json").write_text(json.dumps(config))
    found = make_bundled_ids(wide)
    assert found.pictures is not None
    assert count_bundled_tokens(Checkpoint.open(wide)) == pytest.approx(found.ids.size, rel=0.25)


class Stopping(Progress):
    """Stops when two layers are done, as Ctrl-C does."""

    def __init__(self) -> None:
        self.done = 0

    def tick(self, count: int) -> None:
        """See `Progress`."""
        self.done += count
        if self.done == 2:
            raise KeyboardInterrupt


@pytest.mark.wide
def test_a_stopped_calibration_keeps_its_pictures(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(draw("boat")).save(tmp_path / "boat.png")
    data = saved(tmp_path, [{"type": "image", "path": "boat.png"}, {"type": "text", "text": "What is it?"}], lines=3)
    how: dict[str, Any] = {"data": data, "length": 128, "answers": False}
    calibrate(moe, tmp_path / "whole.safetensors", **how)
    with pytest.raises(Interrupted):
        calibrate(moe, tmp_path / "parts.safetensors", **how, progress=Stopping())
    monkeypatch.delattr(
        "g4convert.api.calibration_request.sample"
    )  # ids and pictures are there, and are not made again
    calibrate(moe, tmp_path / "parts.safetensors", **how)
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert CalibrationFile.load(tmp_path / "parts.safetensors").pictures is not None


def test_files_with_pictures_are_read_as_written_and_files_without_stay(e2b: Path, tmp_path: Path) -> None:
    given, path = shown(e2b, [["boat"], [], ["clock", "poster"]]), tmp_path / "c.safetensors"
    given.save(path)
    assert Tokens.load(path, 512, Checkpoint.open(e2b)).hash == given.hash
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert metadata["version"] == "2"
    arrays = load_file(path)
    flipped = arrays["pictures.pixels"].copy()
    flipped[3, 5] ^= 1
    for change, said in (
        ({"pictures.pixels": flipped}, "ids and pictures do not have the hash"),
        ({"pictures.pixels": flipped.astype(np.float32)}, "pictures of another form"),
        ({"pictures.rows": arrays["pictures.rows"][::-1].copy()}, "cannot be"),
        ({"pictures.positions": arrays["pictures.positions"] - 1}, "negative"),
    ):
        save_file(arrays | change, path, metadata=metadata)
        with pytest.raises(InputError, match=said):
            CalibrationFile.load(path)
    save_file({name: one for name, one in arrays.items() if name != "pictures.rows"}, path, metadata=metadata)
    with pytest.raises(InputError, match="without pixels, positions or rows"):
        CalibrationFile.load(path)
    Tokens(given.ids).save(path)
    with safe_open(path, "np") as file:
        assert file.metadata()["version"] == "1"


def test_pictures_that_do_not_fit_the_model_are_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    e2b, path = checkpoints("e2b"), tmp_path / "c.safetensors"
    given = shown(e2b, [["boat"], [], ["clock"]])
    given.ids[2, -1] = read_config(e2b).image_token_id
    given.save(path)
    with pytest.raises(InputError, match=r"row 2 has \d+ placeholders for pictures of \d+ soft tokens"):
        Tokens.load(path, 512, Checkpoint.open(e2b))
    with pytest.raises(InputError, match="pictures, and the model takes none"):
        Tokens.load(path, 512, Checkpoint.open(checkpoints("text")))
    with pytest.raises(InputError, match="patches of 48 values, the model's have 768"):
        Tokens.load(path, 512, Checkpoint.open(checkpoints("unified")))


@pytest.mark.wide
@pytest.mark.parametrize("family", ["unified", pytest.param("moe", marks=pytest.mark.full)])
def test_gptq_on_pictures_stopped_after_a_layer_ends_with_the_same_bytes(
    family: str, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, ids = checkpoints(family), tmp_path / "ids.safetensors"
    shown(source, [["boat"], [], ["clock"], []], 96).save(ids)
    how: dict[str, Any] = {"recipe": "w4a16-g32-gptq", "verify": None, "calibration": ids}
    used = quantize(source, tmp_path / "whole" / "out", workers=2, **how).summary.calibration or {}
    assert (used["pictures"], used["samples_with_pictures"]) == (2, 2)
    card = (tmp_path / "whole" / "out" / "README.md").read_text()
    assert "2 pictures in 2 of 4 samples." in card
    seal, layers = States.seal, list[int]()

    def once(states: States, layer: int) -> None:
        seal(states, layer)
        layers.append(layer)
        if len(layers) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(States, "seal", once)
    with pytest.raises(Interrupted):
        quantize(source, tmp_path / "parts" / "out", workers=1, **how)
    quantize(source, tmp_path / "parts" / "out", workers=1, **how)
    assert layers[:3] == [1, 2, 2], "one layer is repeated"
    assert hashes(tmp_path / "parts" / "out") == hashes(tmp_path / "whole" / "out")
    plain = replace(Tokens.load(ids, 512), pictures=None)
    plain.save(tmp_path / "plain.safetensors")
    quantize(source, tmp_path / "plain" / "out", workers=2, **how | {"calibration": tmp_path / "plain.safetensors"})
    assert hashes(tmp_path / "plain" / "out") != hashes(tmp_path / "whole" / "out"), "pixels show"


@pytest.mark.wide
def test_best_trains_on_samples_without_pictures(e2b: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.safetensors"
    shown(e2b, [["boat"], [], [], ["clock"]], 96).save(ids)
    how: dict[str, Any] = {"recipe": "w4a16-g32-best", "verify": None, "calibration": ids, "workers": 2}
    used = quantize(e2b, tmp_path / "out", **how).summary.calibration or {}
    assert used["samples_with_pictures"] == 2
    shown(e2b, [["boat"], [], ["clock"], ["poster"]], 96).save(ids)
    with pytest.raises(UsageError, match="trains on samples without pictures, and there are 1"):
        quantize(e2b, tmp_path / "other", **how)


def test_fit_runs_rows_without_pictures(e2b: Path, tmp_path: Path) -> None:
    chosen, others, _ = choose_rows(shown(e2b, [["boat"], [], [], [], ["clock"], []]), None, None, tmp_path)
    assert (chosen, others) == ([1, 2], [3, 5])
    judging = shown(e2b, [[], [], [], ["boat"]])
    assert judging.judges == judging.pictured
    chosen, others, _ = choose_rows(judging, None, None, tmp_path)
    assert (len(chosen), len(others)) == (1, 2)

"""`g4convert generate`: what a checkpoint says is what transformers lets it say, as it comes, and readable."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.conversions import quantized, stored
from helpers.damage import Tensors, rewrite
from helpers.elsewhere import elsewhere
from helpers.grids import one_in
from helpers.program import Program, g4convert

from g4convert.checkpoint.uses import open_for_generation
from g4convert.demo.trained import trained
from g4convert.errors import EnvironmentFault, GateError, InputError, UsageError
from g4convert.forward.decoding import draw, greedy
from g4convert.forward.generation import Speaker
from g4convert.forward.load import load
from g4convert.forward.models import quiet_transformers
from g4convert.forward.triton import tiles
from g4convert.forward.triton.candidates import CANDIDATES, candidates_for
from g4convert.forward.triton.packed import check_device
from g4convert.gemma4.family import Family
from g4convert.verification.probes.answers import answer_probes, questions
from g4convert.verification.probes.suite import make_probes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Checkpoints

__all__ = ["g4convert"]  # a fixture

CODE = "Write a Python function total that adds left and right."
CODE_ANSWER = "def total(left, right):\n    return left + right"
COUNT = "Count in Russian from 2 to 6."
COUNT_ANSWER = "два, три, четыре, пять, шесть"
DRAFTERS = [family for family in Family if "assistant" in family]
SPEAKERS = [family for family in Family if "assistant" not in family]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained MoE, quantized."""
    out = tmp_path_factory.mktemp("taught") / "moe-W4A16"
    quantized(trained(Family.MOE), out)
    return out


@pytest.mark.parametrize("family", one_in(3, SPEAKERS))
def test_tokens_are_those_of_transformers(family: Family, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Packed, through our loop; and dequantized, through `generate` of transformers, which makes all logits."""
    quantized(checkpoints(family), tmp_path / "out")
    ids = [2, *range(300, 330)]  # beyond the sliding window
    ours = list(greedy(load(tmp_path / "out"), ids, max_new_tokens=8))
    with quiet_transformers():
        theirs = load(tmp_path / "out", packed=False).generate(
            torch.tensor([ids]), max_new_tokens=8, do_sample=False, top_k=None, top_p=None
        )
    assert ours == theirs[0, len(ids) :].tolist()
    assert len(ours) == 8 or ours[-1] in (1, 6)


@pytest.mark.parametrize("memory", one_in(2, ["resident", "stream"]))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trained_model_answers(dtype: str, memory: str, taught: Path, g4convert: Program) -> None:
    ran = g4convert("generate", taught, "-p", CODE, "--dtype", dtype, "--memory", memory, "-q")
    assert (ran.status, ran.out, ran.err) == (0, f"{CODE_ANSWER}\n", "")


@pytest.mark.parametrize("family", ["moe", "e2b"])
def test_plain_checkpoints_answer_too(family: str, g4convert: Program) -> None:
    assert g4convert("generate", trained(Family(family)), "-p", CODE, "-q").out == f"{CODE_ANSWER}\n"


def test_several_prompts_and_what_is_said_of_them(taught: Path, g4convert: Program) -> None:
    ran = g4convert("generate", taught, "--prompt", COUNT, "-p", CODE, "--dtype", "float32")
    assert ran.out == f"{COUNT_ANSWER}\n\n{CODE_ANSWER}\n"
    loading, *told = ran.err.splitlines()
    assert loading == f"loading {taught}"
    assert (told[0], told[2]) == (f"> {COUNT}", f"> {CODE}")
    assert "tokens on cpu: the first after" in told[1]
    assert told[3].endswith("tokens/s")
    alone = g4convert("generate", taught, "-p", CODE, "--max-new-tokens", 2).err.splitlines()
    assert len(alone) == 2  # no next command: it may be verified already


def test_stdin_and_the_longest_answer(taught: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{CODE}\n"))
    ran = g4convert("generate", taught, "-p", "-", "--max-new-tokens", 3)
    assert ran.status == 0
    assert CODE_ANSWER.startswith(ran.out.rstrip("\n"))
    assert ran.err.splitlines()[1].startswith("3 tokens on cpu: ")
    assert ran.err.splitlines()[1].endswith("--max-new-tokens ended it")


class Endless(io.StringIO):
    """Standard input of `yes`."""

    def read(self, size: int | None = -1) -> str:
        """Return as much as was asked for."""
        assert size is not None
        assert 0 < size < 1 << 27, "read to an end that does not come"
        return "y\n" * (size // 2 + 1)


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"), "standard input is not UTF-8"),
        (io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8", "surrogateescape"), "standard input is not UTF-8"),
        (Endless(), "-p -: over 64 MiB, the most that is read"),
    ],
)
def test_a_stdin_that_is_no_text(
    stdin: io.TextIOBase, message: str, taught: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", stdin)
    ran = g4convert("generate", taught, "-p", "-")
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 2)
    assert message in ran.err


def test_what_is_quantized_is_what_is_stored(g4convert: Program, tmp_path: Path) -> None:
    """A config that another tool's section was left in makes no quantized checkpoint."""
    shutil.copytree(trained(Family.MOE), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    section = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": section}))
    ran = g4convert("generate", tmp_path / "model", "-p", CODE, "--max-new-tokens", 1)
    assert (ran.status, "g4convert plan" in ran.err) == (0, True)


def of_context(model: Path, context: int, tmp_path: Path) -> Path:
    """Copy a model and give it another context."""
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["max_position_embeddings"] = context
    path.write_text(json.dumps(config))
    return tmp_path / "model"


def test_a_prompt_beyond_the_context(taught: Path, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("generate", of_context(taught, 16, tmp_path), "-p", "one two three " * 5)
    assert (ran.status, ran.out) == (2, "\n")
    assert re.search(r"error: a prompt of \d+ tokens: the model's context has 16\nhint: shorten it\n", ran.err)


def test_an_answer_ends_with_the_context(taught: Path, g4convert: Program, tmp_path: Path) -> None:
    whole = json.loads(g4convert("generate", taught, "-p", CODE, "--json").out)["answers"][0]
    asked, said = whole["prompt_ids"], whole["token_ids"]
    ran = g4convert("generate", of_context(taught, len(asked) + 3, tmp_path), "-p", CODE)
    assert ran.status == 0
    assert re.search(r"^3 tokens on cpu: .*; the context ended it$", ran.err, re.MULTILINE)
    (cut,) = json.loads(g4convert("generate", tmp_path / "model", "-p", CODE, "--json").out)["answers"]
    assert (cut["token_ids"], cut["ended"]) == (said[:3], False)


def test_no_answer_goes_beyond_the_context(taught: Path) -> None:
    """Greedy answers for `verify`, in batches and to pictures, and drawn ones for `calibrate`."""
    model = load(taught)
    text, asked = model.config.get_text_config(), {"harbour": 3, "image_wide": 3, "batch": 19}
    probes = [one for one in make_probes(model, taught, tokens=1) if one.name in asked]
    for probe in probes:
        lengths = [len(row) for row in questions(probe)]
        assert lengths.count(max(lengths)) == 1
        text.max_position_embeddings = max(lengths) + 3
        (found,) = answer_probes(model, [probe], max_new_tokens=8)
        assert len(found.targets) == 3 + 8 * (len(lengths) - 1) == asked[probe.name]
    text.max_position_embeddings = 10
    rows = [[2, *range(40, 44)], [2, *range(40, 47)]]
    drawn = draw(model, rows, max_new_tokens=20, generator=torch.Generator().manual_seed(0))
    assert [*map(len, drawn)] == [5, 2]
    assert len([*greedy(model, rows[0], max_new_tokens=20)]) <= 5


@pytest.mark.wide
def test_json_has_all_that_was_measured(taught: Path, g4convert: Program) -> None:
    ran = g4convert("generate", taught, "-p", CODE, "-p", CODE, "--json", "--dtype", "float32")
    assert ran.err == ""
    found = json.loads(ran.out)
    how = {"schema_version": 1, "device": "cpu", "dtype": "float32", "memory": "resident"}
    assert found.items() >= how.items()
    assert found["load_seconds"] > 0
    assert found["peak_memory"] > 10**8
    code, again = found["answers"]
    assert (code["prompt"], code["text"], code["ended"]) == (CODE, CODE_ANSWER, True)
    assert again["text"] == CODE_ANSWER
    assert code["token_ids"][-1] == 6  # <turn|>, which is not in the text
    assert code["prompt_ids"][:2] == [2, 5]  # <bos><|turn>
    assert code["tokens_per_second"] > 0
    assert code["prefill_seconds"] > 0
    (cut,) = json.loads(g4convert("generate", taught, "-p", CODE, "--max-new-tokens", 1, "--json").out)["answers"]
    assert (len(cut["token_ids"]), cut["ended"], cut["tokens_per_second"]) == (1, False, None)


def test_text_comes_in_pieces_and_no_character_is_cut(taught: Path) -> None:
    """Cyrillic is spelled in bytes here: two tokens a character."""
    speaker = Speaker.load(open_for_generation(taught), dtype="float32")
    pieces: list[str] = []
    said = speaker.answer(COUNT, max_new_tokens=128, show=pieces.append)
    assert "".join(pieces) == said.text == COUNT_ANSWER
    assert 5 < len(pieces) < len(said.token_ids)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    cut = next(
        said
        for count in range(1, 6)
        if "\N{REPLACEMENT CHARACTER}" in (said := speaker.answer(COUNT, max_new_tokens=count)).text
    )
    assert not cut.ended  # the half character is not lost, it is shown at the end


def test_a_base_model_gets_the_prompt_as_it_is(taught: Path, tmp_path: Path) -> None:
    base = shutil.copytree(taught, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    chat, raw = Speaker.load(open_for_generation(taught)), Speaker.load(open_for_generation(base))
    first, *rest = raw.answer("In the beginning", max_new_tokens=1).prompt_ids
    assert first == 2
    assert raw.frame.tokenizer.decode(rest) == "In the beginning"
    assert len(chat.answer("In the beginning", max_new_tokens=1).prompt_ids) > len(rest) + 5


@pytest.mark.parametrize("family", DRAFTERS)
def test_drafters_are_refused_with_the_reason(family: Family, checkpoints: Checkpoints, g4convert: Program) -> None:
    ran = g4convert("generate", checkpoints(family), "-p", "Hello")
    assert (ran.status, ran.out) == (3, "")
    assert "a drafter" in ran.err
    assert "the model that it drafts for" in ran.err


def test_what_is_asked_wrongly(taught: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("sys.stdin", io.StringIO("  \n"))
    for words, status, message in (
        ((), 2, "no prompt"),
        (("-p", " "), 2, "an empty prompt"),
        (("-p", "-"), 2, "an empty prompt"),
        (("-p", "-", "-p", "-"), 2, "given twice"),
        (("-p", "x", "--max-new-tokens", 0), 2, "max-new-tokens"),
        (("-p", "x", "--dtype", "int4"), 2, "--dtype int4: not one of float32, bfloat16"),
        (("-p", "x", "--device", "tpu"), 2, "expected cpu, cuda or cuda:N"),
        (("-p", "x", "--device", "cuda:3"), 5, "--device cuda:3: 0 CUDA devices found"),
    ):
        ran = g4convert("generate", taught, *words)
        assert (ran.status, ran.out) == (status, ""), words
        assert message in ran.err
    assert "--device cpu" in ran.err


def test_what_cannot_be_tuned_is_refused_before_the_model_is_loaded(
    taught: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 26B takes a minute to load."""
    table, letter = tmp_path / "tiles.json", tmp_path / "letter.txt"
    letter.write_text("Dear Ada")

    def loads(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    def refused(*device: str, file: Path = table) -> tuple[int, str]:
        check_device.cache_clear()
        ran = g4convert("generate", taught, "-p", "x", "--autotune", file, *device)
        assert ran.out == ""
        return ran.status, ran.err

    def fails(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("g4convert.forward.generation.load", loads)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    for device, capability, status, message in (
        ((), (9, 0), 2, "on the CPU"),
        (("--device", "cpu"), (9, 0), 2, "on the CPU"),
        (("--device", "cuda:1"), (9, 0), 5, "1 CUDA devices found"),
        (("--device", "cuda"), (7, 5), 5, r"compute capability 7.5"),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert (found := refused(*device))[0] == status, found
        assert message in found[1]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    for file, message in (
        (tmp_path, "no file can be written there"),
        (tmp_path / "none" / "tiles.json", "no file can be written there"),
        (letter, "not a table of tiles"),
    ):
        assert (found := refused("--device", "cuda", file=file))[0] == 2, found
        assert message in found[1]
    with monkeypatch.context() as locked:
        locked.setattr("g4convert.whole_files.os.open", fails)
        status, told = refused("--device", "cuda")
        assert (status, "Permission denied" in told) == (5, True)
    with monkeypatch.context() as without:
        without.setattr("g4convert.forward.triton.packed.find_spec", lambda _: None)
        assert "Triton, which is not installed" in refused("--device", "cuda")[1]
    check_device.cache_clear()
    assert letter.read_text() == "Dear Ada"
    assert not table.exists()
    ran = g4convert("generate", taught, "-p", "x", "--autotune", table, "--device", "cuda")
    assert (ran.status, "AssertionError: loaded" in ran.err) == (70, True)


@pytest.mark.full
def test_a_gpu_is_tuned_and_says_the_same(
    taught: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is not there and its times are made up; see test_devices."""
    pytest.importorskip("triton")
    table = tmp_path / "tiles.json"
    monkeypatch.setenv(tiles.VARIABLE, "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("g4convert.forward.triton.autotune.LayerBench", MadeUp)
    monkeypatch.setattr("g4convert.progress._LINE_SECONDS", 0.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: None)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    with elsewhere(monkeypatch):
        check_device.cache_clear()
        few = ("generate", taught, "-p", CODE, "--max-new-tokens", 2)
        ran = g4convert(*few, "--device", "cuda:0", "--autotune", table)
        again = g4convert(*few, "--device", "cuda:0", "--autotune", table)
        said = json.loads(g4convert(*few, "--device", "cuda", "--json").out)
    check_device.cache_clear()
    assert (ran.status, ran.out) == (0, g4convert(*few).out)
    *progress, last, _ = ran.err.splitlines()
    assert last.startswith(f"{table}: tiles of ")
    assert any(re.search(r"gate_up \d+ x \d+, down .*: 1 of 1 variants compiled", line) for line in progress), ran.err
    assert re.search(r": [\d,]+ of [\d,]+ tiles(, .* left)?$", progress[-1]), ran.err
    assert again.err.splitlines()[1].startswith(f"{table}: tiles of "), "what the table has is not measured again"
    for shape, tile in tiles.load_table(table, 90).items():
        rivals = [one for one in candidates_for(shape, CANDIDATES) if one.block_m == tile.block_m]
        assert tile.block_k >= max(one.block_k for one in rivals)
    assert (said["device"], said["peak_memory"], said["answers"][0]["text"]) == ("cuda:0", 1, ran.out[:-1])


class MadeUp:
    """Stand-in for `LayerBench`: a longer step is faster."""

    def __init__(self, shapes: object, device: torch.device) -> None:
        assert shapes
        assert device.type == "cuda"

    def try_out(self, _: object) -> Iterator[str]:
        """Stand in for `Bench.try_out`."""
        yield "1 of 1 variants compiled"

    def seconds(self, _: tiles.Shape, tile: tiles.Tile, _repeats: int) -> float:
        """Stand in for `Bench.seconds`."""
        return 1 / tile.block_k


def test_the_device_of_verify_and_reference(taught: Path, tmp_path: Path, g4convert: Program) -> None:
    source = trained(Family.MOE)
    stored_reference = tmp_path / "ref.safetensors"
    verify = ("verify", taught, "--level", "logits", "--reference", source)
    for words in (verify, ("reference", source, "-o", stored_reference)):
        ran = g4convert(*words, "--device", "cuda:9")
        assert (ran.status, ran.out) == (5, "")
        assert "--device cpu" in ran.err
        assert "weights: every value" not in ran.err  # refused before any work
    assert not stored_reference.exists()
    ran = g4convert("verify", taught, "--reference", source, "--level", "weights", "--device", "cpu")
    assert (ran.status, "--device belongs to level logits" in ran.err) == (2, True)


def test_a_checkpoint_without_words_or_numbers(taught: Path, tmp_path: Path) -> None:
    mute = shutil.copytree(taught, tmp_path / "mute")
    (mute / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Speaker.load(open_for_generation(mute))
    broken = shutil.copytree(taught, tmp_path / "broken")

    def spoil(held: Tensors) -> None:
        held["model.language_model.norm.weight"] = torch.full_like(held["model.language_model.norm.weight"], torch.nan)

    rewrite(broken, spoil)
    with pytest.raises(GateError, match="not finite"):
        Speaker.load(open_for_generation(broken)).answer("Hello", max_new_tokens=3)
    assert not any(tensor.isnan().any() for tensor in stored(taught).values() if tensor.is_floating_point())
    lost = shutil.copytree(taught, tmp_path / "lost")
    rewrite(lost, lambda held: held.pop("model.language_model.norm.weight"))
    with pytest.raises(GateError, match="does not fit"):
        Speaker.load(open_for_generation(lost))
    with pytest.raises(UsageError, match="float16"):
        Speaker.load(open_for_generation(taught), dtype="float16")


def test_a_lack_of_memory_is_told(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Speaker.load(open_for_generation(taught))

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(speaker.model, "forward", fail)
    with pytest.raises(EnvironmentFault, match="out of memory"):
        speaker.answer("Hello", max_new_tokens=1)


def test_ctrl_c_ends_the_line_and_leaves_no_trace(
    taught: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Speaker.load(open_for_generation(taught)).frame.tokenizer.decode

    def stop(_: object, ids: list[int], **how: object) -> str:
        if len(ids) == 4:
            raise KeyboardInterrupt
        return str(decode(ids, **how))

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.decode", stop)
    ran = g4convert("generate", taught, "-p", CODE)
    assert ran.status == 75
    assert ran.out.endswith("\n")
    assert CODE_ANSWER.startswith(ran.out.rstrip("\n"))
    assert ran.err.splitlines()[1].startswith("error: stopped")
    assert "Traceback" not in ran.err


@pytest.mark.full
def test_a_pipe_gets_plain_text_as_it_comes(taught: Path) -> None:
    """The command has a process of its own, whose reader leaves after the first piece."""
    words = [sys.executable, "-m", "g4convert", "generate", str(taught), "-p", CODE, "-q"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(3) == b"def"
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 0

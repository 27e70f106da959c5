"""Configs and files beside the weights as people really have them, converted."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Checkpoints
from helpers.clean import CLASSES, assert_verified, same
from helpers.conversions import quantized, stored
from helpers.grids import two_when_quick
from helpers.rewriting import rewritten
from safetensors.torch import save_file
from transformers import AutoTokenizer

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import InputError
from g4convert.forward.load import load
from g4convert.inspection.engines import CheckRequest, check
from g4convert.planning.recipe_files import load as load_recipe
from g4convert.planning.steps import make_plan
from g4convert.report import Severity
from g4convert.request import Level, Request
from g4convert.verification.run import verify

# ---- files beside the weights


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", POINTER, "a Git LFS pointer, not the file"),
        ("tokenizer_config.json", "{bad", "not JSON"),
        ("processor_config.json", "[]", "not JSON"),
        ("generation_config.json", "", "empty"),
    ],
)
def test_files_that_no_engine_can_read_are_not_carried(
    name: str, text: str, said: str, dense: Path, tmp_path: Path
) -> None:
    source = rewritten(dense, tmp_path / "source", same)
    quantized(source, tmp_path / "clean")
    (source / name).write_text(text)
    with pytest.raises(InputError) as caught:
        quantized(source, tmp_path / "out")
    assert caught.value.message == f"{name}: {said}"
    assert f"--leave {name}" in caught.value.hint
    assert not (tmp_path / "out").exists()
    quantized(source, tmp_path / "out", leave=[name])
    assert not (tmp_path / "out" / name).exists()
    (tmp_path / "clean" / name).write_text(text)
    judged = check(CheckRequest(tmp_path / "clean", tps=(1,)))
    (found,) = (one for one in judged.report.findings if one.code == "static.side_files")
    assert (found.subject, found.found) == (name, said)
    serves = "yes" if name == "generation_config.json" else "no"  # transformers loads a model without its tokenizer
    loads = {one.engine: one.loads.value for one in judged.verdicts}
    assert loads == {"transformers": "yes", "vllm": serves, "sglang": serves}


def test_json_that_no_engine_reads_may_be_anything(dense: Path, tmp_path: Path) -> None:
    source = rewritten(dense, tmp_path / "source", same)
    (source / "results.json").write_text("{}\n{}\n")
    quantized(source, tmp_path / "out")
    assert (tmp_path / "out/results.json").read_text() == "{}\n{}\n"


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("tokenizer.json", ["no tokenizer.json: vLLM and SGLang do not start without it"]),
        ("processor_config.json", ["no processor_config.json: SGLang does not start without it"]),
        ("chat_template.jinja", ["no chat template: engines refuse requests to chat"]),
    ],
)
def test_files_that_engines_need_are_missed(gone: str, said: list[str], dense: Path, tmp_path: Path) -> None:
    source = rewritten(dense, tmp_path / "source", same)
    (source / gone).unlink()
    found = make_plan(Checkpoint.open(source), load_recipe().recipe).warnings
    assert [line[: len(start)] for line, start in zip(found, said, strict=True)] == said
    text = make_plan(Checkpoint.open(source), load_recipe(options={"layout": "text-only"}).recipe).warnings
    assert bool(text) == (gone != "processor_config.json")


def test_a_chat_template_may_be_in_the_config_of_the_tokenizer(dense: Path, tmp_path: Path) -> None:
    source = rewritten(dense, tmp_path / "source", same)
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    config = source / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    assert AutoTokenizer.from_pretrained(source).chat_template == template
    assert make_plan(Checkpoint.open(source), load_recipe().recipe).warnings == ()


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("tokenizer.json", "It has no tokenizer"),
        ("processor_config.json", "    vllm serve out --language-model-only\n"),
        ("chat_template.jinja", "    vllm serve out\n"),
    ],
)
def test_the_card_serves_what_can_be_served(gone: str, said: str, dense: Path, tmp_path: Path) -> None:
    source = rewritten(dense, tmp_path / "source", same)
    (source / gone).unlink()
    quantized(source, tmp_path / "out")
    assert said in (tmp_path / "out/README.md").read_text()
    assert not verify(Request(tmp_path / "out", source, Level.STATIC)).of(Severity.WARN)


# ---- config


@pytest.mark.parametrize("nested", [False, True])
def test_a_stale_section_is_replaced(nested: bool, moe: Path, tmp_path: Path) -> None:  # noqa: FBT001 -- a parameter
    section = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = json.loads((moe / "config.json").read_text())
    keys = {"text_config": config["text_config"] | {"quantization_config": section}} if nested else {}
    stale = rewritten(moe, tmp_path / "stale", same, **(keys or {"quantization_config": section}))
    quantized(stale, tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["quantization_config"]["quant_method"] == "compressed-tensors"
    assert "quantization_config" not in written["text_config"]
    assert_verified(tmp_path / "out", stale)
    model = load(stale)
    assert model.lm_head is not None


@pytest.mark.parametrize("family", two_when_quick(CLASSES))
@pytest.mark.parametrize("found", ["gone", ["FSDPGemma4ForConditionalGeneration"], ["Gemma4Model"]])
def test_the_class_of_the_model_type_is_written(
    family: str, found: object, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source = rewritten(checkpoints(family), tmp_path / "source", same, architectures=found)
    quantized(source, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [CLASSES[family]]
    report = verify(Request(tmp_path / "out", source, Level.STATIC))
    assert not report.of(Severity.FAIL)


def test_a_nested_key_does_not_untie_a_text_only_output(dense: Path, tmp_path: Path) -> None:
    config = json.loads((dense / "config.json").read_text())
    text = config["text_config"] | {"tie_word_embeddings": False}
    source = rewritten(dense, tmp_path / "source", same, text_config=text, tie_word_embeddings="gone")
    quantized(source, tmp_path / "out", layout="text-only")
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in stored(tmp_path / "out")
    load(tmp_path / "out")


# ---- an adapter beside


ADAPTERS = {
    "PEFT": ("adapter_model.safetensors", {"base_model_name_or_path": "org/base", "peft_type": "LORA", "r": 8}),
    "PEFT, pickled": ("adapter_model.bin", {"base_model_name_or_path": "org/base", "peft_type": "LORA", "r": 8}),
    "MLX": ("adapters.safetensors", {"model": "org/base", "fine_tune_type": "lora"}),
}


@pytest.mark.parametrize("tool", ADAPTERS)
def test_an_adapter_beside_stays_behind_and_is_said_not_to_be_applied(tool: str, dense: Path, tmp_path: Path) -> None:
    """With PEFT installed, transformers puts an adapter that lies beside a model into its packed Linears."""
    weights, config = ADAPTERS[tool]
    source = rewritten(dense, tmp_path / "source", same)
    (source / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(8, 8)}, source / weights)
    (warning,) = (one for one in make_plan(Checkpoint.open(source), load_recipe().recipe).warnings if "applied" in one)
    assert "if they are its base model's, merge it first" in warning
    quantized(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("adapter*"))
    assert_verified(tmp_path / "out", source)

"""Directories that hold no model yet, or two, or more than one: what each is, and the remedy followed."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

import pytest
import torch
from helpers.stored import Stored, write_checkpoint, zeros
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import InputError

A, B = zeros("BF16", 2, 3), zeros("F32", 2)


def refusal(directory: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        Checkpoint.open(directory)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def laid_out(directory: Path, files: Sequence[str]) -> Path:
    """A directory with a config and files of no content that matters."""
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"x")
    return directory


@pytest.mark.parametrize(
    ("files", "what", "tool"),
    [
        (("pytorch_model_fsdp_0/__0_0.distcp", "optimizer.bin", "scheduler.pt"), "FSDP", "accelerate merge-weights"),
        (("step-100/.metadata", "step-100/__0_0.distcp"), "torch.distributed.checkpoint", "dcp_to_torch"),
        (("__0_0.distcp", "rng_state_0.pth"), "torch.distributed.checkpoint", "dcp_to_torch"),
        (("model_world_size_8_rank_0.pt", "optim_world_size_8_rank_0.pt"), "verl", "verl.model_merger"),
        (("actor/model_world_size_8_rank_3.pt",), "verl", "verl.model_merger"),
        (("global_step5/mp_rank_00_model_states.pt", "latest"), "DeepSpeed", "zero_to_fp32.py"),
        (("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",), "DeepSpeed", "zero_to_fp32.py"),
        (("latest_checkpointed_iteration.txt", "iter_0000500/__0_0.distcp"), "Megatron", "program that trained it"),
    ],
)
def test_shards_of_training_are_recognised_with_their_tool(
    files: Sequence[str], what: str, tool: str, tmp_path: Path
) -> None:
    error = refusal(laid_out(tmp_path / "m", [*files, "trainer_state.json"]))
    assert what in error.message
    assert tool in error.hint


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("model.zip", "an archive"),
        ("gemma.tar.gz", "an archive"),
        ("model.safetensors.part1", "a weight file in parts"),
        ("model.safetensors.aa", "a weight file in parts"),
        ("MODEL.SAFETENSORS", "a file of another ending"),
        ("model.safetensor", "a file of another ending"),
        ("gemma4.nemo", "a NeMo archive"),
        ("manifest.ocdbt", "an Orbax checkpoint of JAX"),
        ("model.weights.h5", "weights of Keras"),
        ("flax_model.msgpack", "weights of Keras"),
        ("onnx/model.onnx_data", "an ONNX model"),
        ("openvino_model.xml", "an OpenVINO model"),
        ("gemma4.litertlm", "a LiteRT model"),
        ("gemma4-it.task", "a LiteRT model"),
        ("params_shard_0.bin", "an MLC model"),
        ("rank0.engine", "a TensorRT engine"),
        ("Gemma.mlpackage/Manifest.json", "a Core ML model"),
        ("vocabulary.json", "a CTranslate2 model"),
        ("model.pte", "a model of another program"),
    ],
)
def test_the_format_of_another_program_is_named(file: str, what: str, tmp_path: Path) -> None:
    error = refusal(laid_out(tmp_path / "dir", [file]))
    assert f": {what}" in error.message
    assert error.message.endswith(", expected safetensors")
    if "/" not in file and what != "a file of another ending":
        assert f": {what}" in refusal(tmp_path / "dir" / file).message  # the file itself, in place of its directory
    beside = laid_out(tmp_path / "beside", [file, "pytorch_model.bin"])
    assert "pickled weights only" in refusal(beside).message


def test_parts_are_joined_and_endings_renamed_as_the_hints_say(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "whole", {"model.safetensors": {"a": A, "b": B}}, index=False)
    whole = (tmp_path / "whole/model.safetensors").read_bytes()
    parts = laid_out(tmp_path / "parts", ["model.safetensors.part1", "model.safetensors.part2"])
    (parts / "model.safetensors.part1").write_bytes(whole[:50])
    (parts / "model.safetensors.part2").write_bytes(whole[50:])
    command = refusal(parts).hint.partition(": ")[2]
    assert command == "cat model.safetensors.* > model.safetensors"
    subprocess.run(command, shell=True, cwd=parts, check=True)  # noqa: S602 -- the command of the hint
    upper = laid_out(tmp_path / "upper", ["MODEL.SAFETENSORS"])
    (upper / "MODEL.SAFETENSORS").write_bytes(whole)
    assert "the ending is .safetensors" in refusal(upper).hint
    (upper / "MODEL.SAFETENSORS").rename(upper / "model.safetensors")
    assert [*Checkpoint.open(parts).tensors] == [*Checkpoint.open(upper).tensors] == ["a", "b"]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (("global_step5/mp_rank_00_model_states.pt",), "python {}/zero_to_fp32.py {} OUT"),
        (
            ("checkpoint-90/global_step9/a_optim_states.pt",),
            "python {}/checkpoint-90/zero_to_fp32.py {}/checkpoint-90 ",
        ),
        (
            ("iter_0000500/x.distcp", "iter_0001000/x.distcp", "iter_0000900/x.distcp"),
            "export {}/iter_0001000 in",
        ),
        (
            ("global_step_9/actor/model_world_size_2_rank_0.pt", "global_step_10/actor/model_world_size_2_rank_1.pt"),
            "--local_dir {}/global_step_10/actor ",
        ),
    ],
)
def test_the_last_of_several_is_gathered(files: Sequence[str], named: str, tmp_path: Path) -> None:
    directory = laid_out(tmp_path / "m", files)
    assert named.format(directory, directory) in refusal(directory).hint


def test_the_state_of_an_optimizer_is_no_weights(tmp_path: Path) -> None:
    error = refusal(laid_out(tmp_path / "m", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"]))
    assert "without the model's weights" in error.message
    assert len(error.offenders) == 4


def test_pickled_weights_beside_an_optimizer_are_named_alone(tmp_path: Path) -> None:
    assert "pickled weights" in refusal(laid_out(tmp_path / "m", ["pytorch_model.bin", "optimizer.pt"])).message


@pytest.mark.parametrize("has_config", [False, True])
@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_names_its_base(weights: str, has_config: bool, tmp_path: Path) -> None:  # noqa: FBT001 -- a parameter
    directory = laid_out(tmp_path / "m", [weights])
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 8}))
    if not has_config:
        (directory / "config.json").unlink()
    error = refusal(directory)
    assert "an adapter of org/base" in error.message
    assert "merge_and_unload" in error.hint


@pytest.mark.parametrize("base", ["mlx-community/x", "my models/x"])
def test_an_adapter_of_mlx_is_fused(base: str, tmp_path: Path) -> None:
    directory = laid_out(tmp_path / "an adapter", ["adapters.safetensors", "0000100_adapters.safetensors"])
    (directory / "adapter_config.json").write_text(json.dumps({"model": base, "fine_tune_type": "lora"}))
    error = refusal(directory)
    assert f"an adapter of {base}" in error.message
    program, *words = shlex.split(error.hint.split("`")[1])
    assert program == "mlx_lm.fuse"
    assert words == ["--model", base, "--adapter-path", str(directory), "--save-path", "OUT", "--dequantize"]
    assert "--layout text-only" in error.hint


@pytest.mark.parametrize("config", ["", "[]", '{"base_model_name_or_path": 7}'])
def test_a_strange_adapter_config_is_still_an_adapter(config: str, tmp_path: Path) -> None:
    directory = laid_out(tmp_path / "m", ["adapter_model.safetensors"])
    (directory / "adapter_config.json").write_text(config)
    assert "an adapter, not a model" in refusal(directory).message


def test_a_model_in_a_folder_is_pointed_at_and_opens(tmp_path: Path) -> None:
    directory = laid_out(tmp_path / "m", ["checkpoint-50/optimizer.pt", "trainer_state.json"])
    for step in (50, 500):
        write_checkpoint(directory / f"checkpoint-{step}", {"model.safetensors": {"a": A}}, index=False)
    error = refusal(directory)
    assert error.hint == f"pass {directory / 'checkpoint-500'}"
    assert Checkpoint.open(error.hint.removeprefix("pass ")).tensors.keys() == {"a"}


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (("moe", "moe-W4A16"), ("moe", "moe-W4A16")),
        (("checkpoint-20", "checkpoint-100", "checkpoint-3"), ("checkpoint-100",)),
        (("run-1", "run-2", "base"), ("base", "run-2")),
    ],
)
def test_each_model_in_a_folder_is_named(folders: Sequence[str], named: Sequence[str], tmp_path: Path) -> None:
    """No model is chosen silently; only of a training run's checkpoints, the last is meant."""
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        save_file({"a": torch.ones(1)}, tmp_path / folder / "model.safetensors")
    with pytest.raises(InputError) as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.hint == f"pass {' or '.join(str(tmp_path / one) for one in named)}"


def test_torch_shards_are_gathered_as_the_hint_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, single = tmp_path / "shards", tmp_path / "model.pt"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    with pytest.warns(UserWarning, match="save in a single process"):
        dcp.save(dict(tensors), checkpoint_id=shards)
    (shards / "config.json").write_text("{}")
    python, module, program, *words = refusal(shards).hint.split("`")[1].split()
    assert (python, module) == ("python", "-m")
    spec = find_spec(program)
    assert spec is not None
    monkeypatch.setattr(sys, "argv", [program, *words[:-1], str(single)])
    run_path(str(spec.origin), run_name="__main__")
    gathered = torch.load(single)
    save_file(gathered, shards / "model.safetensors")
    assert Checkpoint.open(shards).tensors.keys() == {"a", "b"}
    assert torch.equal(load_file(shards / "model.safetensors")["a"], tensors["a"])


# --- two copies --------------------------------------------------------------------------------------------

TWO = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"consolidated.safetensors": {"a": A, "b": B}}, "consolidated.safetensors"),
        (
            {f"pytorch-0000{n}-of-00003.safetensors": {name: A} for n, name in enumerate(("a", "b", "c"), 1)},
            "pytorch-*-of-00003.safetensors",
        ),
    ],
)
def test_two_copies_are_named_and_one_may_be_deleted(
    others: dict[str, dict[str, Stored]], named: str, tmp_path: Path
) -> None:
    shards = {TWO[0]: {"a": A}, TWO[1]: {"b": B}}
    directory = write_checkpoint(tmp_path / "m", {**shards, **others}, index=False)
    error = refusal(directory)
    assert "two copies of one model" in error.message
    assert named in error.message
    assert "model-*-of-00002.safetensors" in error.message
    assert not error.offenders
    for name in others:
        (directory / name).unlink()
    assert Checkpoint.open(directory).tensors.keys() == {"a", "b"}


def test_files_without_a_config_are_no_copies_to_delete(tmp_path: Path) -> None:
    """Such as calibration files, two of which have the same names."""
    directory = write_checkpoint(tmp_path / "m", {"x.calibration.safetensors": {"ids": A}, "y.safetensors": {"ids": A}})
    (directory / "config.json").unlink()
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)
    error = refusal(directory)
    assert (error.message, error.offenders) == (f"{directory}: no config.json", ())
    assert "delete" not in error.hint


def test_one_tensor_in_two_shards_is_no_copy(tmp_path: Path) -> None:
    shards = {TWO[0]: {"a": A, "c": B, "d": B}, TWO[1]: {"b": B, "a": A, "e": B}}
    assert "two copies" not in refusal(write_checkpoint(tmp_path / "m", shards, index=False)).message


# --- what lies beside a model ------------------------------------------------------------------------------


def test_what_training_leaves_stays_behind(tmp_path: Path) -> None:
    left = [
        "checkpoint-500/config.json",
        "checkpoint-500/global_step500/mp_rank_00_model_states.pt",
        "runs/Nov27/events.out.tfevents.1",
        "wandb/latest-run/logs.txt",
        "trainer_state.json",
        "all_results.json",
        "trainer_log.jsonl",
        "training_args.bin",
        "zero_to_fp32.py",
        "latest",
        "adapter_config.json",
        "adapter_model.safetensors",
        "Modelfile",
        "hf_quant_config.json",
        "quantize_config.json",
    ]
    kept = ["tokenizer.json", "chat_template.jinja", "docs/runs.md", "generation_config.json", "processor_config.json"]
    directory = write_checkpoint(tmp_path / "m", {"model.safetensors": {"a": A}}, index=False)
    for name in (*left, *kept):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("{}")
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.side_files == tuple(sorted(kept))
    assert checkpoint.stray_files == tuple(sorted(left))


@pytest.mark.parametrize("indexed", [False, True])
def test_shards_of_an_earlier_save_are_named_and_may_be_deleted(
    indexed: bool,  # noqa: FBT001 -- a parameter
    tmp_path: Path,
) -> None:
    """A save over another one leaves its shards (unsloth-zoo pull request 808)."""
    whole = {"model-00001-of-00002.safetensors": {"a": A}, "model-00002-of-00002.safetensors": {"b": B}}
    stale = {"model-00001-of-00004.safetensors": {"a": A}}
    out = write_checkpoint(tmp_path / "m", {**whole, **stale}, index=False)
    if indexed:
        places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        assert Checkpoint.open(out).stray_files == ("model-00001-of-00004.safetensors",)
        return
    error = refusal(out)
    assert "two sets of shards, model-*-of-00004.safetensors incomplete" in error.message
    assert error.hint.startswith("delete model-*-of-00004.safetensors")
    (out / "model-00001-of-00004.safetensors").unlink()
    assert {*Checkpoint.open(out).tensors} == {"a", "b"}


# --- an index that is of no use ----------------------------------------------------------------------------

WHOLE = {TWO[0]: {"a": A}, TWO[1]: {"b": B}}
PLACES = {"a": TWO[0], "b": TWO[1]}


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"metadata": {}, "weight_map": PLACES | {"c": TWO[0]}}, "does not hold it"),
        ({"metadata": {}, "weight_map": PLACES | {"a": TWO[1]}}, "does not hold it"),
        ({"metadata": {}, "weight_map": {"a": TWO[0], "c": TWO[1]}}, "faults"),
        ({"metadata": {}}, "no weight_map"),
        ({"weight_map": PLACES, "metadata": {"total_size": "20"}}, "expected a number"),
        ({"weight_map": PLACES | {"a": f"./{TWO[0]}"}}, "expected the name of a .safetensors file"),
        ([], "expected an object"),
        ({"weight_map": {"a": "model-00001-of-00009.safetensors"}}, "names 1 file, but none is here"),
    ],
)
def test_an_index_that_is_wrong_may_be_deleted(index: object, said: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "m", WHOLE, index=False)
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    error = refusal(directory)
    assert said in error.message
    assert "delet" in error.hint
    (directory / "model.safetensors.index.json").unlink()
    assert Checkpoint.open(directory).tensors.keys() == {"a", "b"}


def test_an_index_of_another_save_beside_one_file(tmp_path: Path) -> None:
    """Engines differ: vLLM 0.33 stops at files of the index that are missing, transformers reads model.safetensors."""
    directory = write_checkpoint(tmp_path / "m", {"model.safetensors": {"a": A, "b": B}}, index=False)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": PLACES}))
    error = refusal(directory)
    assert "names 2 files, but none is here, beside model.safetensors" in error.message
    assert error.hint.startswith("delete model.safetensors.index.json: ")
    (directory / "model.safetensors.index.json").unlink()
    assert Checkpoint.open(directory).tensors.keys() == {"a", "b"}


def test_an_adapter_beside_an_index_is_no_other_save(tmp_path: Path) -> None:
    directory = laid_out(tmp_path / "m", ["adapter_model.safetensors"])
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": PLACES}))
    assert "no such file" in "".join(refusal(directory).offenders)


# --- weights of other programs beside safetensors ----------------------------------------------------------


@pytest.mark.parametrize(
    "others",
    [
        ["model-Q4_K_M.gguf", "mmproj-BF16.gguf"],
        ["pytorch_model.bin"],
        ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"],
        ["original/consolidated.00.pth"],
        ["onnx/model.onnx", "onnx/model.onnx_data"],
    ],
)
def test_weights_of_other_programs_are_neither_read_nor_carried(others: Sequence[str], tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "m", WHOLE)
    for name in others:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(b"GGUF\3")
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.tensors.keys() == {"a", "b"}
    assert checkpoint.stray_files == tuple(sorted(others))
    assert not checkpoint.side_files

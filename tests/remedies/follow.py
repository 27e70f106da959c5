"""Follows what g4convert says of shards of training: the tools write them and gather them, and values are compared.

    make test-remedies

Two processes shard a model as DeepSpeed (ZeRO 2 and 3), verl, Accelerate and torch save it: DeepSpeed by its own
engine, the others by FSDP of torch, in the files that they make. Then the command of the hint is run as it stands
there, the rest of the hint is followed, and every tensor has to be the one that was sharded. Exit status 1 where a
remedy does not work.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForImageTextToText

from g4convert.checkpoint.directory import Checkpoint
from g4convert.demo import Family, make
from g4convert.errors import UnsupportedError

Tensors = dict[str, torch.Tensor]
DTYPE = torch.bfloat16
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


def main(tools: list[str]) -> bool:
    """Follow the remedies of some tools, or of all; True if they work."""
    with TemporaryDirectory(prefix="g4convert-remedies-") as place:
        source = make(Family.DENSE, Path(place, "source"))
        found = [told(tool, outcome(tool, source, Path(place, tool))) for tool in tools or WRITERS]
    return all(found)


def told(tool: str, how: str) -> bool:
    """Print an outcome; True if it is a good one."""
    sys.stdout.write(f"{tool}: {how}\n")
    sys.stdout.flush()
    return how.startswith("equal")


def outcome(tool: str, source: Path, place: Path) -> str:
    """Shard, be refused, follow, and compare.

    Args:
        tool: key of `WRITERS`.
        source: a checkpoint.
        place: a directory to make.
    """
    place.mkdir()
    shards, out = place / "shards", place / "OUT"
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__]
    ran([*ranks, tool, str(source), str(shards)], place)
    beside(source, shards)
    hint = refusal(shards)
    if hint.startswith("make a folder OUT"):
        out.mkdir()
    tool, *words = command(hint)
    ran([program(tool), *words], place)
    if "copy config.json" in hint:
        beside(source, out)
    if "save it with `save_pretrained`" in hint:
        AutoModelForImageTextToText.from_pretrained(out).save_pretrained(place / "saved")
        out = place / "saved"
    expected, found = tensors(source), tensors(out)
    if same(found.get(HEAD), expected[EMBEDDING]):  # Accelerate writes a tied head again, which a conversion drops
        del found[HEAD]
    Checkpoint.open(out)
    wrong = {name for name in expected.keys() | found.keys() if not same(expected.get(name), found.get(name))}
    return f"differs: {sorted(wrong)[:3]}" if wrong else f"equal, {len(found)} tensors, by `{' '.join(command(hint))}`"


def refusal(directory: Path) -> str:
    """Return the hint with which a directory is refused."""
    try:
        Checkpoint.open(directory)
    except UnsupportedError as error:
        return error.hint
    raise SystemExit(f"{directory} was opened, though it holds no model")


def program(name: str) -> str:
    """Return the path of a program that was installed beside this interpreter."""
    return str(Path(sys.executable).with_name(name))


def command(hint: str) -> list[str]:
    """The first command of a hint."""
    return shlex.split(hint.split("`")[1])


def ran(words: list[str], place: Path) -> None:
    """Run a command in a directory, and tell what it said if it fails."""
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def beside(source: Path, target: Path) -> None:
    """Copy the config and the tokenizer."""
    for path in source.iterdir():
        if path.suffix != ".safetensors" and "index" not in path.name:
            shutil.copy(path, target)


def tensors(directory: Path) -> Tensors:
    """Every tensor of a checkpoint."""
    return {name: one for path in directory.glob("*.safetensors") for name, one in load_file(path).items()}


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Return whether both are there, of one dtype, with equal values."""
    return one is not None and other is not None and one.dtype is other.dtype and torch.equal(one, other)


# --- what each rank does ------------------------------------------------------------------------------------


def zero(stage: int) -> Callable[[Any, Path], None]:
    """DeepSpeed's own engine, at a stage of ZeRO."""

    def write(model: Any, out: Path) -> None:  # noqa: ANN401 -- transformers has no types
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed  # noqa: PLC0415 -- looks for GPUs

        said = {
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0), config=said)
        engine.save_checkpoint(str(out))

    return write


def sharded(model: Any) -> dict[str, Any]:  # noqa: ANN401 -- transformers has no types
    """The state of a model that FSDP has sharded over the ranks."""
    fully_shard(model, mesh=init_device_mesh("cpu", (distributed.get_world_size(),), mesh_dim_names=("fsdp",)))
    state: dict[str, Any] = model.state_dict()
    return state


def verl(model: Any, out: Path) -> None:  # noqa: ANN401 -- the same
    """Files of verl's FSDPCheckpointManager."""
    world, rank = distributed.get_world_size(), distributed.get_rank()
    torch.save(sharded(model), out / f"model_world_size_{world}_rank_{rank}.pt")
    (out / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world}))
    if not rank:
        (out / "huggingface").mkdir()
        beside(Path(model.name_or_path), out / "huggingface")


def accelerate(model: Any, out: Path) -> None:  # noqa: ANN401 -- the same
    """Files of Accelerate's `save_state`."""
    checkpoint.save({"model": sharded(model)}, checkpoint_id=out / "pytorch_model_fsdp_0")


def dcp(model: Any, out: Path) -> None:  # noqa: ANN401 -- the same
    """Files of torch.distributed.checkpoint."""
    checkpoint.save(sharded(model), checkpoint_id=out)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "DeepSpeed ZeRO-2": zero(2),
    "DeepSpeed ZeRO-3": zero(3),
    "verl": verl,
    "Accelerate": accelerate,
    "torch": dcp,
}


def write(tool: str, source: Path, out: Path) -> None:
    """Write the shards of this rank."""
    out.mkdir(exist_ok=True)
    distributed.init_process_group("gloo")
    WRITERS[tool](AutoModelForImageTextToText.from_pretrained(source, dtype=DTYPE), out)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        write(sys.argv[1], *map(Path, sys.argv[2:]))
    else:
        sys.exit(not main(sys.argv[1:]))

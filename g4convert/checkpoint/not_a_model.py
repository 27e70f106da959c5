"""Diagnosis of a directory without weights to read: an adapter, or the shards of a training run.

    adapter_config.json, adapter_model.*       PEFT           merged into its base
    adapters.safetensors                       MLX            fused with its base
    pytorch_model_fsdp_0/*.distcp              Accelerate     merged
    *.distcp                                   torch DCP      gathered
    model_world_size_N_rank_K.pt               verl           merged
    global_step*/, *_optim_states.pt           DeepSpeed      consolidated
    iter_*/, latest_checkpointed_iteration     Megatron       exported by what trained it
    checkpoint-500/, a model in a folder       the folder to pass instead
    *.onnx, *.engine, *.litertlm ...           what another program runs: the checkpoint that it was made from
    *.zip, *.tar.gz, *.safetensors.part1       unpacked, joined, or given its right name

Every command that is named here is followed by `make test-remedies`: DeepSpeed 0.19, verl 0.9, Accelerate 1.15 and
torch gather the shards of two ranks to the same values, PEFT 0.21 and mlx-lm 0.32 merge an adapter into the sums. No
command is named for Megatron, which needs a GPU. mlx-lm leaves towers out, and merges into 4-bit weights in 4 bits
unless it is told to dequantize.

Recognised by file names; of the files only `adapter_config.json` is opened, for the name of the base model.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Final

from g4convert.checkpoint.leftovers import ADAPTER_CONFIG, is_adapter, is_training_state
from g4convert.errors import InputError, UnsupportedError

_SERIES: Final = re.compile(r"(.*)-\d{5}-of-(\d{5})\.safetensors")
_MAX_FILES: Final = 10_000  # names looked at; a directory with more is no checkpoint

_THEN: Final = ", then convert OUT"
_COPY: Final = "; copy config.json and the tokenizer to OUT and convert that"
_SAVE: Final = (
    "; copy config.json and the tokenizer to OUT, load the model, save it with `save_pretrained` and convert that"
)
_TOOLS: Final[Sequence[tuple[str, str, str]]] = (
    (
        r"global_step\d+/.*|.*(_optim_states|_model_states)\.pt",
        "DeepSpeed ZeRO shards",
        "`python {home}/zero_to_fp32.py {home} OUT` gathers them" + _SAVE,  # safetensors it refuses: heads are tied
    ),
    (
        r"(.*/)?model_world_size_\d+_rank_\d+\.pt",
        "verl FSDP shards",
        "`python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir OUT` gathers them" + _THEN,
    ),
    (
        r"iter_\d+/.*|latest_checkpointed_iteration\.txt",
        "a Megatron checkpoint",
        "export {folder} in Hugging Face's format with the program that trained it, and convert that",
    ),
    (
        r"pytorch_model_fsdp_\d+/.*\.distcp",
        "FSDP shards of Accelerate",
        "`accelerate merge-weights {folder} OUT` gathers them" + _COPY,
    ),
    (
        r"(.*/)?[^/]*\.distcp",
        "torch.distributed.checkpoint shards",
        "make a folder OUT; `python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} "
        "OUT/pytorch_model.bin` gathers them" + _SAVE,
    ),
)
"""File names by which a layout is recognised, its description, and the tool that gathers it."""

_ORIGIN: Final = "pass the safetensors checkpoint that it was made from"
_FORMATS: Final[Sequence[tuple[str, str, str]]] = (
    (r".*\.(zip|tar|tgz|t?gz|t?bz2|t?xz|t?zst|7z|rar)", "an archive", "unpack it, and pass the directory it holds"),
    (
        r".*\.safetensors[._-]?(part[._-]?)?(\d+|[a-z]{2})",
        "a weight file in parts",
        "join the parts in their order: cat model.safetensors.* > model.safetensors",
    ),
    (r"(?i:.*\.(safetensors?|st))", "a file of another ending", "rename it: the ending is .safetensors"),
    (r".*\.nemo", "a NeMo archive", "export it in Hugging Face's format with NeMo, and convert that"),
    (
        r"(.*/)?(manifest\.ocdbt|_CHECKPOINT_METADATA)|.*\.orbax-checkpoint.*",
        "an Orbax checkpoint of JAX",
        "export it in Hugging Face's format with the program that trained it, and convert that",
    ),
    (r".*\.(h5|keras|msgpack|pb|ot)", "weights of Keras, TensorFlow, Flax or Rust", _ORIGIN),
    (r"(.*/)?[^/]*\.(onnx|onnx_data|ort)", "an ONNX model", _ORIGIN),
    (r"(.*/)?openvino_[^/]*\.xml", "an OpenVINO model", _ORIGIN),
    (r".*\.(litertlm|tflite|task)", "a LiteRT model", _ORIGIN),
    (r"(.*/)?params_shard_\d+\.bin", "an MLC model", _ORIGIN),
    (r"(.*/)?[^/]*\.(engine|plan)", "a TensorRT engine", _ORIGIN),
    (r".*\.(mlpackage|mlmodelc?)(/.*)?", "a Core ML model", _ORIGIN),
    (r"(.*/)?(shared_)?vocabulary\.(json|txt)", "a CTranslate2 model", _ORIGIN),
    (r".*\.(pte|nexa|llamafile|npz)", "a model of another program", _ORIGIN),
)
"""File names by which the format of another program is recognised, its description, and the remedy."""


_BETTER: Final = r".*\.(gguf|pt|pth|ckpt|aria2|crdownload|download|incomplete|part)|pytorch_model.*\.bin"
"""Files that tell more about a directory than another format beside them."""


_MOST_NAMED: Final = 4  # folders in a hint


def diagnose_format(subject: Path, names: Iterable[str]) -> InputError | None:
    """Return an error that names the format of files that are no safetensors; None if it is unknown.

    Args:
        subject: the directory, or the file that was given in place of one.
        names: names of its files, or that of the file.
    """
    listed = sorted(names)
    for pattern, format_name, remedy in _FORMATS:
        if files := [name for name in listed if re.fullmatch(pattern, name)]:
            return UnsupportedError(f"{subject}: {format_name}, expected safetensors", offenders=files[:1], hint=remedy)
    return None


def diagnose_no_weights(directory: Path, files: Iterable[str]) -> InputError | None:
    """Return an error that diagnoses a directory without weights; None if its layout is unknown.

    Args:
        directory: the directory without weights.
        files: names of its folders, and of its files that are not readable weights.
    """
    top = sorted(files)
    if ADAPTER_CONFIG in top or any(map(is_adapter, top)):
        return _adapter_error(directory)
    below = _list_files(directory)
    for pattern, description, remedy in _TOOLS:
        matching = [name for name in below if re.fullmatch(pattern, name)]
        if matching:
            folder = directory / max((Path(name).parent for name in matching), key=_numbers)
            hint = remedy.format(home=quote(str(folder.parent)), folder=quote(str(folder)))
            return UnsupportedError(f"{directory}: {description}, not gathered into one model", hint=hint)
    inner = _model_folders(directory, below)
    read_first = any(re.fullmatch(_BETTER, name) for name in top)
    if not inner and not read_first and (error := diagnose_format(directory, below)):
        return error
    if inner:
        where = "a folder of it" if len(inner) == 1 else f"{len(inner)} folders of it"
        named = " or ".join(map(str, inner[:_MOST_NAMED]))
        return InputError(f"{directory}: no weights, they are in {where}", hint=f"pass {named}")
    if any(map(is_training_state, top)) and not any(name.endswith(".gguf") for name in top):
        states = [name for name in top if is_training_state(name)]
        pickles = [name for name in top if name.endswith((".bin", ".pt", ".pth", ".pkl")) and name not in states]
        if not pickles:
            return InputError(
                f"{directory}: the state of a training run without the model's weights",
                offenders=states,
                hint="pass the directory that the trainer saved the model to",
            )
    return None


def _adapter_error(directory: Path) -> InputError:
    """Return the error for an adapter without its base model; says how to merge the two."""
    base, mlx = _read_base(directory)
    of_base = f" of {base}" if base else ""
    name = base or "BASE"
    if mlx:
        words = f"--model {quote(name)} --adapter-path {quote(str(directory))} --save-path OUT --dequantize"
        remedy = f"`mlx_lm.fuse {words}` merges it, without towers; convert OUT with `--layout text-only`"
    else:
        merged = f"PeftModel.from_pretrained(model, {str(directory)!r}).merge_and_unload()"
        remedy = f"merge it: `{merged}` with the model of {name}, then `save_pretrained` and convert that"
    return UnsupportedError(f"{directory}: an adapter{of_base}, not a model", hint=remedy)


def _read_base(directory: Path) -> tuple[str, bool]:
    """Return the base model that an adapter names, and whether it is an MLX adapter."""
    mlx = any(directory.glob("*adapters.safetensors")) or any(directory.glob("*adapters.npz"))
    try:
        config = json.loads((directory / ADAPTER_CONFIG).read_bytes())
    except (OSError, ValueError):
        config = {}
    base = config.get("base_model_name_or_path") or config.get("model") if isinstance(config, Mapping) else None
    return (base if isinstance(base, str) and base.isprintable() else ""), mlx


def _list_files(directory: Path) -> list[str]:
    """Return the names of files up to two folders deep, sorted."""
    names: list[str] = []
    for pattern in ("*", "*/*", "*/*/*"):
        for path in directory.glob(pattern):
            if path.is_file():
                names.append(path.relative_to(directory).as_posix())
            if len(names) > _MAX_FILES:
                return sorted(names)
    return sorted(names)


def _model_folders(directory: Path, names: Sequence[str]) -> list[Path]:
    """Return the folders that hold models; of checkpoints whose names differ in their numbers alone, the last."""
    models = {Path(name).parent for name in names if "/" in name and name.endswith(".safetensors")}
    last: dict[str, Path] = {}
    for folder in sorted(models, key=_numbers):
        if (directory / folder / "config.json").is_file():
            last[re.sub(r"\d+", "", str(folder))] = directory / folder
    return sorted(last.values())


def _numbers(folder: Path) -> list[int]:
    """Return the numbers in a folder's path; the last checkpoint has the largest."""
    return [int(number) for number in re.findall(r"\d+", str(folder))]


def find_copies(directory: Path, files: Mapping[str, Iterable[str]]) -> InputError | None:
    """Return an error if weight files without an index hold two copies of one model; otherwise None."""
    series: dict[str, set[str]] = {}
    for file, names in files.items():
        match = _SERIES.fullmatch(file)
        series.setdefault(f"{match[1]}-*-of-{match[2]}.safetensors" if match else file, set()).update(names)
    pairs = [
        (one, other)
        for one, mine in series.items()
        for other, theirs in series.items()
        if one < other and 2 * len(mine & theirs) > min(len(mine), len(theirs))
    ]
    if not pairs:
        return None
    one, other = pairs[0]
    return InputError(f"{directory}: two copies of one model: {one} and {other}", hint=f"delete {one} or {other}")

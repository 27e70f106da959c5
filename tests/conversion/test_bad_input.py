"""Whatever is wrong with a source or a disk: one `error:` line, a hint, exit status 3, and nothing left behind.

Every case runs `g4convert quantize` on a tiny checkpoint that is damaged in one way.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Checkpoints
from helpers.program import Program, Ran, g4convert
from safetensors.torch import load_file, save_file

from g4convert.conversion import run as convert

__all__ = ["g4convert"]  # a fixture

INDEX = "model.safetensors.index.json"
Damage = Callable[[Path], object]


def check_refused(ran: Ran, expected: str, status: int = 3) -> None:
    """One error line that says so, a hint, nothing on stdout, no traceback; before it at most what is being done."""
    assert ran.status == status, ran.err
    assert ran.out == ""
    lines = ran.err.splitlines()
    if lines[0].startswith("quantizing "):
        del lines[0]
    assert lines[0].startswith("error: ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert sum(line.startswith("hint: ") for line in lines) == 1
    assert lines[-1].startswith("hint: ")
    assert all(line.startswith("  ") for line in lines[1:-1])
    assert "Traceback" not in ran.err
    assert re.search(expected, ran.err), ran.err


def first_shard(directory: Path) -> Path:
    return min(directory.glob("*.safetensors"))


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the header of a shard as it is not written by anyone."""
    header, data = header_of(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change what each shard holds, and the index with it."""
    weight_map = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, path.name)
    edit_json(directory / INDEX, lambda index: index.update(weight_map=weight_map))


def truncate(directory: Path) -> None:
    os.truncate(first_shard(directory), first_shard(directory).stat().st_size - 100)


def truncate_inside_header(directory: Path) -> None:
    os.truncate(first_shard(directory), 100)


def long_header(directory: Path) -> None:
    path = first_shard(directory)
    path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])


def overlap(directory: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        entries = [entry for name, entry in header.items() if "shape" in entry and "norm" in name]
        one, other = [entry for entry in entries if entry["shape"] == entries[0]["shape"]][:2]
        other["data_offsets"] = one["data_offsets"]

    with_header(first_shard(directory), change)


def beyond_the_end(directory: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        entry = next(entry for name, entry in header.items() if name != "__metadata__")
        entry["data_offsets"] = [offset + (1 << 40) for offset in entry["data_offsets"]]

    with_header(first_shard(directory), change)


def lost_shard(directory: Path) -> None:
    first_shard(directory).unlink()


def outside(target: str) -> Damage:
    def change(directory: Path) -> None:
        shutil.copy(first_shard(directory), directory.parent / "outside.safetensors")

        def move(index: dict[str, Any]) -> None:
            index["weight_map"] = {
                name: target.format(directory.parent) if file == first_shard(directory).name else file
                for name, file in index["weight_map"].items()
            }

        edit_json(directory / INDEX, move)

    return change


def in_two_shards(directory: Path) -> None:
    one, other = sorted(directory.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(one).items()))
    save_file(load_file(other) | {name: tensor}, other, metadata={"format": "pt"})


def not_in_the_index(directory: Path) -> None:
    edit_json(directory / INDEX, lambda index: index["weight_map"].popitem())


def config(**values: object) -> Damage:
    return lambda directory: edit_json(directory / "config.json", lambda content: content.update(values))


def text_config(**values: object) -> Damage:
    return lambda directory: edit_json(directory / "config.json", lambda c: c["text_config"].update(values))


def named(old: str, new: str) -> Damage:
    """Rename tensors by a regex."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[re.sub(old, new, name)] = tensors.pop(name)

    return lambda directory: edit_tensors(directory, change)


def without(pattern: str) -> Damage:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if re.search(pattern, name)]:
            del tensors[name]

    return lambda directory: edit_tensors(directory, change)


def cast(pattern: str, dtype: torch.dtype) -> Damage:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if re.search(pattern, name)]:
            tensors[name] = tensors[name].to(dtype)

    return lambda directory: edit_tensors(directory, change)


def only_files(**files: bytes) -> Damage:
    """No safetensors; config and these files."""

    def change(directory: Path) -> None:
        for path in directory.glob("*.safetensors*"):
            path.unlink()
        for name, content in files.items():
            (directory / name.replace("_dot_", ".")).write_bytes(content)

    return change


def empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


def adapter(directory: Path) -> None:
    """A checkpoint saved with a LoRA beside each query projection."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("q_proj.weight") and "language" in name]:
            stem = name.removesuffix(".weight")
            weight = tensors.pop(name)
            tensors[f"{stem}.base_layer.weight"] = weight
            tensors[f"{stem}.lora_A.default.weight"] = weight[:4].clone()
            tensors[f"{stem}.lora_B.default.weight"] = weight[:, :4].clone()

    edit_tensors(directory, change)


def pickle_shard(directory: Path) -> None:
    torch.save({"a": torch.ones(1)}, first_shard(directory))


def dangling(directory: Path) -> None:
    path = first_shard(directory)
    path.unlink()
    path.symlink_to(directory / "blob")


def spoil(directory: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith("layers.1.mlp.up_proj.weight"):
                tensor[100, 3] = torch.inf

    edit_tensors(directory, change)


CASES: dict[str, tuple[Damage, str]] = {
    "truncated shard": (truncate, r"model-00001-of-\d+\.safetensors: .*truncated: "),
    "shard cut in its header": (truncate_inside_header, "longer than the file"),
    "header longer than the file": (long_header, "header of 1099511627776 bytes is longer than the file"),
    "overlapping offsets": (overlap, "overlapping"),
    "offsets beyond the end": (beyond_the_end, r"truncated|belong to no tensor"),
    "index names a missing shard": (lost_shard, r"model-00001-of-\d+\.safetensors: no such file"),
    "index leaves the directory": (outside("../outside.safetensors"), "a path outside the directory"),
    "index has an absolute path": (outside("{}/outside.safetensors"), "a path outside the directory"),
    "tensor in two shards": (in_two_shards, "expected in one shard"),
    "tensor not in the index": (not_in_the_index, "but not in model.safetensors.index.json"),
    "index is not JSON": (lambda d: (d / INDEX).write_text("{"), "is not JSON"),
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json"),
    "config is not JSON": (lambda d: (d / "config.json").write_text("]"), "config.json is not JSON"),
    "wrong shape": (text_config(moe_intermediate_size=96), r"of the wrong shape.*expected \[12, 192, 128\]"),
    "fewer layers than stored": (
        text_config(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]),
        r"unknown: model\.language_model\.layers\.2\.",
    ),
    "more layers than stored": (
        text_config(num_hidden_layers=4, layer_types=["sliding_attention"] * 3 + ["full_attention"]),
        r"missing: model\.language_model\.layers\.3\.",
    ),
    "missing experts": (without(r"layers\.1\.experts\.down"), r"missing: model\.language_model\.layers\.1\.experts\."),
    "missing norm": (without(r"layers\.2\.input_layernorm"), r"missing: .*layers\.2\.input_layernorm\.weight"),
    "unknown name": (
        named(r"layers\.1\.mlp\.up_proj", "layers.1.mlp.upp_proj"),
        r"unknown: model\.language_model\.layers\.1\.mlp\.upp_proj\.weight; nearest: .*layers\.1\.mlp\.up_proj",
    ),
    "integers for weights": (cast(r"layers\.1\.input_layernorm", torch.int64), "of the wrong dtype"),
    "pickled weights": (only_files(pytorch_model_dot_bin=b"\x80\x02"), "pickled weights only"),
    "pickle named safetensors": (pickle_shard, "zip archive"),
    "GGUF": (only_files(model_dot_gguf=b"GGUF\3\0\0\0"), "GGUF weights only"),
    "GGUF named safetensors": (
        lambda d: first_shard(d).write_bytes(b"GGUF\3" + bytes(99)),
        "GGUF, expected safetensors",
    ),
    "Git LFS pointer": (
        lambda d: first_shard(d).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS pointer",
    ),
    "dangling link": (dangling, "a link to .*which does not exist"),
    "empty directory": (empty, "an empty directory"),
    "no weights": (only_files(), r"no \*\.safetensors file"),
    "already quantized, the names say": (
        named(r"(layers\.\d+\.mlp\.\w+_proj)\.weight$", r"\1.weight_packed"),
        "already quantized",
    ),
    "already quantized, the dtypes say": (cast(r"mlp\.up_proj", torch.float8_e4m3fn), "already quantized"),
    "LoRA that is not merged": (adapter, r"(?i)lora|adapter"),
    "DiffusionGemma": (config(model_type="diffusion_gemma"), "model_type 'diffusion_gemma'"),
    "EmbeddingGemma 2": (config(model_type="embedding_gemma2"), "model_type 'embedding_gemma2'"),
    "Gemma 3": (config(model_type="gemma3"), "model_type 'gemma3'"),
    "no model type": (lambda d: edit_json(d / "config.json", lambda c: c.pop("model_type")), "model_type: missing"),
    "infinite weight": (spoil, r"layers\.1\.mlp\.up_proj\.weight: \[100, 3\] is NaN or infinite"),
    "file with our journal's name": (lambda d: (d / "journal-1.jsonl").write_text(""), "journal-1.jsonl: a name"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_source_is_one_error_and_leaves_nothing(case: str, moe: Path, tmp_path: Path, g4convert: Program) -> None:
    damage, expected = CASES[case]
    source = tmp_path / "in" / "source"
    shutil.copytree(moe, source)
    damage(source)
    (tmp_path / "here").mkdir()
    check_refused(g4convert("quantize", source, "-o", tmp_path / "here" / "out"), expected)
    assert not list((tmp_path / "here").iterdir())


def test_a_gguf_file_and_a_name_that_is_none(tmp_path: Path, g4convert: Program) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    check_refused(g4convert("quantize", tmp_path / "model.gguf", "-o", tmp_path / "out"), "a GGUF file")
    check_refused(g4convert("quantize", tmp_path / "nowhere", "-o", tmp_path / "out"), "no such directory")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_all_that_is_wrong_with_a_source_is_in_one_error(moe: Path, tmp_path: Path, g4convert: Program) -> None:
    source = Path(shutil.copytree(moe, tmp_path / "source"))
    without(r"layers\.1\.(mlp\.gate_proj|self_attn\.q_norm)")(source)
    named(r"layers\.0\.layer_scalar", "layers.0.scalar")(source)
    ran = g4convert("quantize", source, "-o", tmp_path / "out")
    for part in (
        "missing: .*gate_proj",
        "missing: .*q_norm",
        "missing: .*layer_scalar",
        r"unknown: .*layers\.0\.scalar",
    ):
        check_refused(ran, part)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--group-size", "128"], r"group size 128 does not divide.*\n(.*\n)*.*experts.*192 inputs"),
        (["--method", "lattice", "--num-bits", "8"], "lattice finds 4-bit grids"),
        (["--pack", "vision_tower"], "80 inputs"),
        (["-r", "nothing"], "not one of the shipped recipes"),
        (["--group-size", "33"], "--group-size 33: expected a multiple of 8, such as 32, or channel"),
    ],
)
def test_a_recipe_that_does_not_fit_is_a_usage_error(
    options: list[str], expected: str, moe: Path, tmp_path: Path, g4convert: Program
) -> None:
    check_refused(g4convert("quantize", moe, "-o", tmp_path / "out", *options), expected, status=2)
    assert not list(tmp_path.iterdir())


@contextmanager
def mounted(directory: Path, *options: str) -> Iterator[Path]:
    """A file system of its own; skips where this user may not mount one."""
    directory.mkdir()
    done = subprocess.run(["mount", *options, str(directory)], check=False, capture_output=True)  # noqa: S607 - on PATH
    if done.returncode:
        pytest.skip("may not mount")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)  # noqa: S607 - as above


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("kilobytes", [4, 900])
def test_a_full_disk(kilobytes: int, moe: Path, tmp_path: Path, g4convert: Program) -> None:
    """Too small for the shards."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs") as disk:
        check_refused(g4convert("quantize", moe, "-o", disk / "out"), r"no room for [\d.]+ MB: No space left", 5)
        assert not list(disk.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_disk_with_room_for_the_weights_alone(moe: Path, tmp_path: Path, g4convert: Program) -> None:
    """The last file to be carried over finds the disk full: still before any work."""
    g4convert("quantize", moe, "-o", tmp_path / "out")
    weights = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={weights // 1024 + 8}k", "tmpfs") as disk:
        check_refused(g4convert("quantize", moe, "-o", disk / "out"), "No space left", 5)
        assert not list(disk.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_read_only_disk(moe: Path, tmp_path: Path, g4convert: Program) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro", "tmpfs") as disk:
        for out in (disk / "out", disk / "new" / "out"):
            check_refused(g4convert("quantize", moe, "-o", out), "cannot be made: Read-only file system", 5)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a directory")
def test_a_bind_mount_of_the_same_disk(moe: Path, tmp_path: Path, g4convert: Program) -> None:
    """No other device, so it was found by the rename alone, after all the work."""
    (tmp_path / "volume").mkdir()
    with mounted(tmp_path / "out", "--bind", str(tmp_path / "volume")) as out:
        check_refused(g4convert("quantize", moe, "-o", out), "out: is a mount point", 2)
    assert not list((tmp_path / "volume").iterdir())


def test_a_directory_that_may_not_be_written(
    moe: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    check_refused(g4convert("quantize", moe, "-o", tmp_path / "out"), "cannot be made: Permission denied", 5)


@pytest.mark.parametrize("family", ["moe", "text"])
def test_a_source_that_shrinks_while_it_is_read(
    family: str, checkpoints: Checkpoints, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(checkpoints(family), tmp_path / "source"))
    started = convert.run_units

    def shrinking(*arguments: Any) -> Any:  # noqa: ANN401 - passed on
        for path in source.glob("*.safetensors"):
            os.truncate(path, path.stat().st_size // 2)
        return started(*arguments)

    monkeypatch.setattr(convert, "run_units", shrinking)
    check_refused(g4convert("quantize", source, "-o", tmp_path / "out"), "was longer a moment ago")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_undamaged_source_passes(moe: Path, tmp_path: Path, g4convert: Program) -> None:
    """Without this, every case above could fail for a reason of its own."""
    assert g4convert("quantize", moe, "-o", tmp_path / "out", "-q").status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("below", ["", "out"])
def test_links_that_go_round_cannot_be_the_output(below: str, moe: Path, tmp_path: Path, g4convert: Program) -> None:
    (tmp_path / "loop").symlink_to("loop")
    ran = g4convert("quantize", moe, "-o", tmp_path / "loop" / below)
    check_refused(ran, "loop is not a directory" if below else "loop: is a file, expected a directory", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_the_current_directory_cannot_be_the_output(
    moe: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be replaced under the feet of whoever is in it."""
    (tmp_path / "gemma").mkdir()
    monkeypatch.chdir(tmp_path / "gemma")
    check_refused(g4convert("quantize", moe, "-o", "."), "cd .. and -o gemma", status=2)
    assert [path.name for path in tmp_path.rglob("*")] == ["gemma"]

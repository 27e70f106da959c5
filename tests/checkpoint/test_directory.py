"""The strict safetensors reader against the safetensors library, and every way to break a directory."""

import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.stored import CONFIG, Stored, encode, encode_raw, entries, write_checkpoint, write_index, zeros
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import FormatError, InputError, UnsupportedError
from g4convert.tensors import DType

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
A: Stored = ("BF16", (2, 3), bytes(range(12)))
B: Stored = ("F32", (2,), bytes(range(8)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two shards with an index: `a` and `b` in the first, `c` in the second."""
    return write_checkpoint(tmp_path / "model", {ONE: {"a": A, "b": B}, TWO: {"c": zeros("I64", 2)}})


def header(**changes: object) -> dict[str, object]:
    """The entry of `a` as header of a file with 12 data bytes, with some fields changed."""
    return {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12], **changes}}


def test_an_opened_checkpoint_has_config_files_and_the_place_of_every_tensor(model: Path) -> None:
    checkpoint = Checkpoint.open(model)
    assert checkpoint.config == CONFIG
    assert checkpoint.config_bytes == (model / "config.json").read_bytes()
    assert checkpoint.weight_files == (ONE, TWO)
    assert list(checkpoint.tensors) == ["a", "b", "c"]
    a = checkpoint.tensors["a"]
    assert (a.info.dtype, a.info.shape, a.file, a.name) == (DType.BF16, (2, 3), ONE, "a")
    assert (model / ONE).read_bytes()[a.begin : a.end] == A[2] == checkpoint.read("a")
    assert checkpoint.tensors["b"].begin == a.end


def test_open_accepts_text_and_a_trailing_slash(model: Path) -> None:
    assert Checkpoint.open(f"{model}/").weight_files == (ONE, TWO)


def test_without_index_model_safetensors_is_the_checkpoint(tmp_path: Path) -> None:
    shards = {"model.safetensors": {"a": A}, "adapter_model.safetensors": {"a": A}}
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "m", shards, index=False))
    assert checkpoint.weight_files == ("model.safetensors",)
    assert checkpoint.stray_files == ("adapter_model.safetensors",)


def test_without_index_all_shards_are_the_checkpoint(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "m", {TWO: {"b": B}, ONE: {"a": A}}, index=False)
    assert Checkpoint.open(directory).weight_files == (ONE, TWO)


def test_side_and_stray_files(model: Path) -> None:
    side = ["README.md", "sub/deep/vocab.txt", "tokenizer.json", "tokenizer.model"]
    stray = [
        "consolidated.safetensors",
        "original/x.pth",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ]
    skipped = [".gitattributes", ".git/config", ".cache/huggingface/x.metadata"]
    for name in side + stray + skipped:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
    checkpoint = Checkpoint.open(model)
    assert checkpoint.side_files == tuple(sorted(side))
    assert checkpoint.stray_files == tuple(sorted(stray))


def test_nothing_private_is_carried_and_what_is_left_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "home/.ssh").mkdir(parents=True)
    (tmp_path / "home/.ssh/id_rsa").write_text("secret")
    (model / ".env").write_text("TOKEN=secret")
    (model / "notes.txt").symlink_to(tmp_path / "home/.ssh/id_rsa")
    (model / "keys").symlink_to(tmp_path / "home/.ssh")
    (model / "vocab.txt").write_text("v")
    (model / "same.txt").symlink_to("vocab.txt")
    checkpoint = Checkpoint.open(model)
    assert checkpoint.side_files == ("same.txt", "vocab.txt")
    assert checkpoint.beside.left == (
        (".env", "hidden"),
        ("keys", "a link, a directory"),
        ("notes.txt", "a link out of the directory"),
    )


def test_side_directories_that_link_in_a_circle_end(model: Path) -> None:
    (model / "sub").mkdir()
    (model / "sub/x.txt").write_text("x")
    (model / "sub/up").symlink_to(model)
    assert Checkpoint.open(model).side_files == ("sub/x.txt",)


def test_a_cache_snapshot_of_links_opens(model: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    checkpoint = Checkpoint.open(snapshot)
    assert checkpoint.weight_files == (ONE, TWO)
    assert checkpoint.read("a") == A[2]


# --- bad input: one row for each way to fail -------------------------------------------------------------

Damage = Callable[[Path], object]


def shard(content: bytes) -> Damage:
    """Replaces the first shard."""
    return lambda model: (model / ONE).write_bytes(content)


def raw(head: object, data: bytes = b"", *, length: int | None = None) -> Damage:
    """Replaces the first shard by a file with any header."""
    return shard(encode_raw(head, data, length=length))


def index(weight_map: object, metadata: object = None) -> Damage:
    """Replaces the index."""
    return lambda model: write_index(model, weight_map, metadata)


def mapped(file: object) -> Damage:
    """Adds an entry `d` to the index."""
    return index({**MAP, "d": file})


def only(name: str, content: bytes = b"x") -> Damage:
    """Leaves nothing but config.json and one file."""

    def damage(model: Path) -> None:
        for file in (ONE, TWO, INDEX):
            (model / file).unlink()
        (model / name).write_bytes(content)

    return damage


def linked(name: str) -> Damage:
    """Puts a link to nothing in the place of a file."""

    def damage(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to("../../blobs/gone")

    return damage


def fifo(model: Path) -> None:
    (model / ONE).unlink()
    os.mkfifo(model / ONE)


def sparse(model: Path) -> None:
    with (model / ONE).open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_001))
        stream.truncate(200_000_000)


def empty(model: Path) -> None:
    for file in model.iterdir():
        file.unlink()


FILES = encode({"a": A, "b": B})
MAP = {"a": ONE, "b": ONE, "c": TWO}
DUPLICATE = b'{"a":{},"a":{}}'
OVERLAP = {
    "a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
    "b": {"dtype": "U8", "shape": [8], "data_offsets": [4, 12]},
}
HOLE = {
    "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
    "b": {"dtype": "U8", "shape": [4], "data_offsets": [8, 12]},
}

SABOTAGE: dict[str, tuple[Damage, type[InputError], list[str]]] = {
    "truncated data": (shard(FILES[:-3]), FormatError, [ONE, "truncated", "17", "20", "(1 tensor cut)"]),
    "truncated in the header": (shard(FILES[:40]), FormatError, [ONE, "longer than the file (40 bytes)"]),
    "empty shard": (shard(b""), FormatError, [ONE, "empty"]),
    "seven bytes": (shard(b"\0" * 7), FormatError, [ONE, "7 bytes"]),
    "header longer than file": (raw({}, length=2**63), FormatError, [ONE, "longer than the file"]),
    "header over the limit": (sparse, FormatError, [ONE, "100000001", "over the limit"]),
    "header not UTF-8": (raw(b'{"\xff": 1}'), FormatError, [ONE, "UTF-8", "byte 2"]),
    "header not JSON": (raw(b"{nothing}"), FormatError, [ONE, "not JSON"]),
    "header nested deep": (raw(b"[" * 100_000), FormatError, [ONE, "nested too deep"]),
    "header with a huge number": (raw(b"[" + b"9" * 5000 + b"]"), FormatError, [ONE, "not JSON"]),
    "header a list": (raw([]), FormatError, [ONE, "list", "object"]),
    "duplicate name": (raw(DUPLICATE), FormatError, [ONE, "twice", "a"]),
    "entry a number": (raw({"a": 1}), FormatError, [ONE, "a:", "int"]),
    "field missing": (raw({"a": {"dtype": "U8"}}), FormatError, ["no shape and no data_offsets"]),
    "metadata not text": (raw({"__metadata__": {"x": 1}}), FormatError, [ONE, "__metadata__"]),
    "name a lone surrogate": (raw(b'{"\\ud800": {}}'), FormatError, [ONE, "ud800"]),
    "unknown dtype": (raw(header(dtype="F4"), bytes(12)), FormatError, ["a:", '"F4"', "BF16"]),
    "dtype a list": (raw(header(dtype=["BF16"]), bytes(12)), FormatError, ["a:", "dtype"]),
    "negative size": (raw(header(shape=[-2, -3]), bytes(12)), FormatError, ["a:", "[-2, -3]"]),
    "size a bool": (raw(header(shape=[True, 6]), bytes(12)), FormatError, ["a:", "[true, 6]"]),
    "size a float": (raw(header(shape=[2.0, 3]), bytes(12)), FormatError, ["a:", "[2.0, 3]"]),
    "size over 64 bit": (raw(header(shape=[2**63]), bytes(12)), FormatError, ["a:", "shape"]),
    "bytes over 64 bit": (
        raw(header(shape=[2**62] * 400), bytes(12)), FormatError, ["a:", "more than 2**63"],
    ),
    "shape a number": (raw(header(shape=6), bytes(12)), FormatError, ["a:", "shape 6"]),
    "offsets negative": (raw(header(data_offsets=[-12, 0])), FormatError, ["a:", "[-12, 0]"]),
    "offsets three": (raw(header(data_offsets=[0, 6, 12])), FormatError, ["a:", "data_offsets"]),
    "offsets backwards": (raw(header(data_offsets=[12, 0])), FormatError, ["a:", "after its end 0"]),
    "offsets against shape": (
        raw(header(data_offsets=[0, 10]), bytes(10)), FormatError, ["a:", "takes 12", "span 10"],
    ),
    "overlap": (raw(OVERLAP, bytes(12)), FormatError, [ONE, "b: begins at 4", "overlapping a"]),
    "hole": (raw(HOLE, bytes(12)), FormatError, [ONE, "b: 4 bytes before it"]),
    "trailing bytes": (shard(FILES + b"xyz"), FormatError, [ONE, "3 bytes after the last tensor"]),
    "LFS pointer": (shard(b"version https://git-lfs.github.com/spec"), FormatError, [ONE, "git lfs pull"]),
    "shard is GGUF": (shard(b"GGUF\3\0\0\0" + bytes(50)), UnsupportedError, [ONE, "GGUF"]),
    "shard is a pickle": (shard(b"PK\3\4" + bytes(50)), UnsupportedError, [ONE, "zip"]),
    "shard missing": (lambda model: (model / TWO).unlink(), InputError, [TWO, "no such file"]),
    "shard a dangling link": (linked(TWO), InputError, [TWO, "blobs/gone"]),
    "shard a FIFO": (fifo, InputError, [ONE, "not a regular file"]),
    "index not JSON": (lambda model: (model / INDEX).write_text("{"), FormatError, [INDEX, "not JSON"]),
    "index a list": (lambda model: (model / INDEX).write_text("[]"), FormatError, [INDEX, "list"]),
    "index without map": (index(None), FormatError, [INDEX, "weight_map"]),
    "index with an empty map": (index({}), FormatError, [INDEX, "weight_map"]),
    "index with a number": (mapped(1), FormatError, [INDEX, "d:"]),
    "index total_size text": (index(MAP, {"total_size": "20"}), FormatError, [INDEX, "total_size", "'20'"]),
    "index to an absolute path": (mapped("/x.safetensors"), FormatError, ["/x.safetensors", "outside"]),
    "index to a parent": (mapped("../x.safetensors"), FormatError, ["../x.safetensors", "outside"]),
    "index through a parent": (mapped("y/../../x.safetensors"), FormatError, ["outside"]),
    "index to a Windows path": (mapped("..\\x.safetensors"), FormatError, ["outside"]),
    "index to an odd path": (mapped("./x.safetensors"), FormatError, ["./x.safetensors"]),
    "index with a zero byte": (mapped("\0.safetensors"), FormatError, ["x00.safetensors"]),
    "index to a pickle": (mapped("x.bin"), FormatError, ["x.bin", ".safetensors"]),
    "index names more": (mapped(TWO), InputError, ["d:", TWO, "does not hold it"]),
    "index names less": (index({"a": ONE, "c": TWO}), InputError, ["b:", ONE, "not in"]),
    "index names the other shard": (index({**MAP, "a": TWO}), InputError, ["a:", TWO, "does not hold it"]),
    "duplicate across shards": (shard(encode({"a": A, "b": B, "c": A})), InputError, ["c:", ONE, TWO]),
    "index and model.safetensors": (
        lambda model: (model / "model.safetensors").write_bytes(FILES), InputError, ["delete one"],
    ),
    "only pickles": (only("pytorch_model.bin"), UnsupportedError, ["pytorch_model.bin", "safetensors"]),
    "only .pth": (only("consolidated.00.pth"), UnsupportedError, ["consolidated.00.pth"]),
    "only GGUF": (only("model-Q4_0.gguf"), UnsupportedError, ["model-Q4_0.gguf", "GGUF"]),
    "no weights": (only("README.md"), InputError, ["safetensors"]),
    "no index and a shard missing": (only(TWO, encode({"c": A})), InputError, [ONE, "missing"]),
    "empty directory": (empty, InputError, ["empty directory"]),
    "config missing": (lambda model: (model / "config.json").unlink(), InputError, ["config.json"]),
    "config not JSON": (lambda model: (model / "config.json").write_text("x"), FormatError, ["config.json"]),
    "config a list": (lambda model: (model / "config.json").write_text("[]"), FormatError, ["list"]),
    "config a dangling link": (linked("config.json"), InputError, ["config.json", "blobs/gone"]),
    "side file with a line break": (
        lambda model: (model / "a\nb").write_text(""), InputError, [r"a\nb", "plain text"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", SABOTAGE)
def test_a_damaged_checkpoint_is_refused_and_not_touched(model: Path, damage: str) -> None:
    sabotage, kind, words = SABOTAGE[damage]
    sabotage(model)
    before = sorted(model.iterdir())
    with pytest.raises(InputError) as caught:
        Checkpoint.open(model)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert "\n" not in caught.value.message
    for word in words:
        assert word in str(caught.value)
    assert sorted(model.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("absent", InputError, "no such directory"),
        (f"model/{ONE}", InputError, "expected a checkpoint directory"),
        ("x.gguf", UnsupportedError, "GGUF"),
    ],
)
def test_what_is_no_directory_is_named_for_what_it_is(
    model: Path, name: str, kind: type[InputError], words: str
) -> None:
    (model.parent / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(kind, match=words) as caught:
        Checkpoint.open(model.parent / name)
    assert caught.value.hint
    assert name in caught.value.message


def test_the_directory_of_a_file_is_named_if_it_holds_a_checkpoint(model: Path) -> None:
    (model.parent / "mine.jsonl").write_text("{}")
    hints = {}
    for path in (model / ONE, model.parent / "mine.jsonl"):
        with pytest.raises(InputError) as caught:
            Checkpoint.open(path)
        hints[path.name] = caught.value.hint
    assert hints == {ONE: f"pass {model}", "mine.jsonl": "pass the directory that holds config.json"}


def test_a_file_that_may_not_be_read_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Path, flags: int) -> int:
        if Path(path).name == TWO:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=f"{TWO}: cannot be read: permission denied") as caught:
        Checkpoint.open(model)
    assert caught.value.hint


def test_all_offenders_at_once(model: Path) -> None:
    wrong = entries({"a": A, "b": B})
    wrong["a"]["dtype"], wrong["b"]["shape"] = "F4", [3]
    (model / ONE).write_bytes(encode_raw(wrong, bytes(20)))
    (model / TWO).unlink()
    (model / "config.json").unlink()
    with pytest.raises(InputError, match="4 faults") as caught:
        Checkpoint.open(model)
    assert len(caught.value.offenders) == 4
    for word in ("config.json", f"{ONE}: a:", f"{ONE}: b:", TWO):
        assert any(word in line for line in caught.value.offenders)


# --- properties ------------------------------------------------------------------------------------------

NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")


@st.composite
def stored_tensors(draw: st.DrawFn) -> dict[str, Stored]:
    tensors = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=6)):
        dtype = draw(st.sampled_from(list(DType)))
        kind, shape, data = zeros(dtype, *draw(st.lists(st.integers(0, 4), max_size=4)))
        tensors[name] = (kind, shape, draw(st.binary(min_size=len(data), max_size=len(data))))
    return tensors


def by_the_library(content: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    return {n: (t["dtype"], list(t["shape"]), bytes(t["data"])) for n, t in deserialize(content)}


def by_us(directory: Path, content: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    write_checkpoint(directory, {}, index=False)
    (directory / "model.safetensors").write_bytes(content)
    checkpoint = Checkpoint.open(directory)
    return {
        name: (stored.info.dtype.value, list(stored.info.shape), checkpoint.read(name))
        for name, stored in checkpoint.tensors.items()
    }


SHARED_DIRECTORY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@SHARED_DIRECTORY
@given(tensors=stored_tensors(), metadata=st.none() | st.dictionaries(st.text(), st.text(), max_size=2))
def test_reads_what_the_library_reads(
    tmp_path: Path, tensors: dict[str, Stored], metadata: dict[str, str] | None
) -> None:
    content = encode(tensors, metadata)
    assert by_us(tmp_path, content) == by_the_library(content)


@SHARED_DIRECTORY
@given(tensors=stored_tensors(), flips=st.lists(st.tuples(st.integers(0, 600), st.integers(1, 255)), min_size=1))
def test_damaged_headers_are_refused_or_read_as_the_library_does(
    tmp_path: Path, tensors: dict[str, Stored], flips: list[tuple[int, int]]
) -> None:
    content = bytearray(encode(tensors))
    for at, mask in flips:
        content[at % len(content)] ^= mask
    with suppress(InputError, SafetensorError):  # the library refuses more JSON, such as a number written `-0`
        assert by_us(tmp_path, bytes(content)) == by_the_library(bytes(content))


@SHARED_DIRECTORY
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_as_config_and_index(tmp_path: Path, content: bytes) -> None:
    for file in ("config.json", INDEX):
        directory = tmp_path / file.replace(".", "_")
        write_checkpoint(directory, {ONE: {"a": A}})
        (directory / file).write_bytes(content)
        with suppress(InputError):
            Checkpoint.open(directory)


# --- identity --------------------------------------------------------------------------------------------


def test_fingerprint_tells_every_change(model: Path) -> None:
    before = Checkpoint.open(model)
    assert json.loads(json.dumps(before.fingerprint())) == Checkpoint.open(model).fingerprint()
    os.utime(model / ONE, ns=(0, 0))
    touched = Checkpoint.open(model)
    assert touched.fingerprint() != before.fingerprint()
    assert touched.digest() == before.digest()
    (model / "config.json").write_text("{}")
    assert Checkpoint.open(model).digest() != touched.digest()


def test_digest_sees_a_renamed_tensor(model: Path) -> None:
    before = Checkpoint.open(model).digest()
    (model / ONE).write_bytes(encode({"a": A, "d": B}))
    write_index(model, {"a": ONE, "d": ONE, "c": TWO})
    assert Checkpoint.open(model).digest() != before


def test_read_notices_a_file_cut_after_opening(model: Path) -> None:
    checkpoint = Checkpoint.open(model)
    os.truncate(model / ONE, (model / ONE).stat().st_size - 1)
    with pytest.raises(FormatError, match=ONE):
        checkpoint.read("b")


@pytest.mark.wide
def test_opens_every_expert_of_a_quantized_26b(tmp_path: Path) -> None:
    parts = {
        "weight_packed": ("I32", [704, 352]),
        "weight_scale": ("BF16", [704, 88]),
        "weight_shape": ("I64", [2]),
    }
    table, end = {}, 0
    for layer in range(30):
        for expert in range(128):
            for module in ("gate_proj", "up_proj", "down_proj"):
                for part, (dtype, shape) in parts.items():
                    begin, end = end, end + int(DType(dtype).itemsize * shape[0] * (shape[1:] or [1])[0])
                    name = f"model.language_model.layers.{layer}.experts.{expert}.{module}.{part}"
                    table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    directory = write_checkpoint(tmp_path / "m", {}, index=False)
    raw = encode_raw(table)
    (directory / "model.safetensors").write_bytes(raw)
    os.truncate(directory / "model.safetensors", len(raw) + end)  # sparse: 4 GB that take no disk
    assert len(Checkpoint.open(directory).tensors) == 34_560

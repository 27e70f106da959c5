"""Hints of refusals, followed: a source is damaged, refused with a hint, mended as the hint says, and planned.

What needs the tools of a trainer is followed in `tests/remedies/`.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Checkpoints
from helpers.grids import two_when_quick
from helpers.program import Program, g4convert
from helpers.rewriting import Tensors, rewritten
from safetensors.torch import load_file, save_file

from g4convert.forward.models import model_class, quiet_transformers

__all__ = ["g4convert"]  # a fixture


FILE, CONFIG = "model.safetensors", "config.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@dataclass(frozen=True)
class Place:
    """A sound copy of a checkpoint in one file, and the damaged copy `bad`, which a follower may mend or replace."""

    sound: Path
    bad: Path

    def tensors(self, change: Callable[[Tensors], Tensors]) -> None:
        """Change the tensors of the damaged copy."""
        save_file(change(load_file(self.bad / FILE)), self.bad / FILE, metadata={"format": "pt"})

    def config(self, **keys: Any) -> None:  # noqa: ANN401 -- JSON
        """Change keys of the damaged copy's config; `gone` deletes one, and `text_config` is merged."""
        config = json.loads((self.bad / CONFIG).read_text())
        text = keys.pop("text_config", {})
        changed = config | keys | ({"text_config": config["text_config"] | text} if text else {})
        changed["text_config"] = {k: v for k, v in changed["text_config"].items() if v != "gone"}
        (self.bad / CONFIG).write_text(json.dumps({k: v for k, v in changed.items() if v != "gone"}))

    def restore(self, name: str = FILE) -> None:
        """Put the sound file in its place."""
        path = self.bad / name
        if path.is_symlink() or path.exists():
            path.unlink()
        shutil.copy(self.sound / name, path)

    def write(self, name: str, content: bytes) -> None:
        """Replace a file of the damaged copy."""
        (self.bad / name).write_bytes(content)

    def shard(self, change: Callable[[Tensors, Tensors], object] = lambda *_: None, *, indexed: bool = False) -> None:
        """Cut the one file of the damaged copy in two, and change the halves after an index was written."""
        tensors = sorted(load_file(self.bad / FILE).items())
        halves = dict(tensors[: len(tensors) // 2]), dict(tensors[len(tensors) // 2 :])
        if indexed:
            places = {tensor: name for name, half in zip(SHARDS, halves, strict=True) for tensor in half}
            index = {"metadata": {"total_size": 0}, "weight_map": places}
            (self.bad / f"{FILE}.index.json").write_text(json.dumps(index))
        change(*halves)
        (self.bad / FILE).unlink()
        for name, half in zip(SHARDS, halves, strict=True):
            save_file(half, self.bad / name, metadata={"format": "pt"})

    def saved_again(self) -> Path:
        """Load the damaged copy with transformers and save it."""
        out = self.bad.with_name("saved")
        with quiet_transformers():
            kind = json.loads((self.bad / CONFIG).read_text())["model_type"]
            model_class(kind).from_pretrained(self.bad, dtype=torch.bfloat16).save_pretrained(out)
        return out


Follow = Callable[[Place], Path | tuple[object, ...] | None]
"""Mends `bad`, or returns the directory to pass in its place, or the arguments of `plan`."""


@dataclass(frozen=True)
class Row:
    """A damage, words of the hint, and what follows the hint."""

    damage: Callable[[Place], object]
    hint: str
    follow: Follow
    family: str = "dense"


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: t for name, t in tensors.items() if not any(part in name for part in parts)}


def added(name: str, like: str, count: int = 1) -> Callable[[Tensors], Tensors]:
    """Adds tensors named by a pattern, each as large as the one it is like."""
    return lambda tensors: tensors | {name.format(n): torch.zeros_like(tensors[like.format(n)]) for n in range(count)}


def pickled(place: Place) -> None:
    torch.save(load_file(place.bad / FILE), place.bad / "pytorch_model.bin")
    (place.bad / FILE).unlink()


def keys_as_values(tensors: Tensors) -> Tensors:
    """A v_proj that is a copy of k_proj wherever there is none."""
    keys = [name for name in tensors if "language_model" in name and name.endswith("k_proj.weight")]
    values = {name.replace("k_proj", "v_proj"): tensors[name].clone() for name in keys}
    return {**values, **tensors}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}


def wrapped(tensors: Tensors) -> Tensors:
    return {f"policy.{name}": tensor for name, tensor in tensors.items()}


def to_sound(place: Place) -> Path:
    return place.sound


LAYER = "model.language_model.layers.{}."
ROWS: Mapping[str, Row] = {
    # where the directory is
    "a file": Row(lambda _: None, "pass ", lambda p: p.bad),
    "no directory": Row(
        lambda p: p.bad.rename(p.bad.with_name("other")),
        "pass a directory that exists",
        lambda p: p.bad.with_name("other"),
    ),
    "an empty directory": Row(
        lambda p: [path.unlink() for path in p.bad.iterdir()],
        "download the model into it first",
        lambda p: [p.restore(path.name) for path in p.sound.iterdir()] and None,
    ),
    "no weights": Row(lambda p: (p.bad / FILE).unlink(), "pass the directory that holds the weights", to_sound),
    "a download that goes on": Row(
        lambda p: p.write(f"{FILE}.aria2", b"\0\1"),
        "run the same download again, it goes on where it stopped",
        lambda p: (p.bad / f"{FILE}.aria2").unlink(),
    ),
    "a download that was stopped": Row(
        lambda p: (p.bad / FILE).rename(p.bad / f"{FILE}.incomplete"),
        "run the same download again, it goes on where it stopped",
        lambda p: (p.bad / f"{FILE}.incomplete").rename(p.bad / FILE) and None,
    ),
    "the state of a run": Row(
        lambda p: (p.bad / FILE).rename(p.bad / "optimizer.pt"),
        "pass the directory that the trainer saved the model to",
        to_sound,
    ),
    # files
    "no config": Row(
        lambda p: (p.bad / CONFIG).unlink(), "copy config.json from the model's repository", lambda p: p.restore(CONFIG)
    ),
    "a config that is no JSON": Row(
        lambda p: p.write(CONFIG, b"]"), "restore config.json from the model's repository", lambda p: p.restore(CONFIG)
    ),
    "a pipe": Row(
        lambda p: [(p.bad / FILE).unlink(), os.mkfifo(p.bad / FILE)],
        "put the file, or a link to it, in its place",
        Place.restore,
    ),
    "a link to nothing": Row(
        lambda p: [(p.bad / FILE).unlink(), (p.bad / FILE).symlink_to("blob")],
        "fetch the model again",
        Place.restore,
    ),
    "a damaged file": Row(lambda p: os.truncate(p.bad / FILE, 90), "download or save this file again", Place.restore),
    "an LFS pointer": Row(
        lambda p: p.write(FILE, b"version https://git-lfs.github.com/spec/v1\n"),
        "run `git lfs pull` there",
        Place.restore,
    ),
    "a GGUF file": Row(
        lambda p: p.write(FILE, b"GGUF\3" + bytes(99)), "pass the original safetensors checkpoint", to_sound
    ),
    "GGUF alone": Row(
        lambda p: (p.bad / FILE).rename(p.bad / "model.gguf"), "pass the original safetensors checkpoint", to_sound
    ),
    "pickled weights": Row(
        pickled, "load the model with transformers where you trust it and save it with", Place.saved_again
    ),
    "a missing shard": Row(
        lambda p: [p.shard(), (p.bad / SHARDS[1]).rename(p.bad / "elsewhere")],
        "download the model again, or save it again",
        lambda p: (p.bad / "elsewhere").rename(p.bad / SHARDS[1]) and None,
    ),
    "one tensor in two shards": Row(
        lambda p: p.shard(lambda one, two: two.update(dict([*one.items()][:1])), indexed=True),
        "save it again with `save_pretrained`",
        Place.saved_again,
    ),
    "an index of other shards": Row(
        lambda p: p.shard(lambda one, two: one.update([two.popitem()]), indexed=True),
        "delete model.safetensors.index.json: all their tensors are then read",
        lambda p: (p.bad / f"{FILE}.index.json").unlink(),
    ),
    "one file beside shards": Row(
        lambda p: [p.shard(indexed=True), p.restore()],
        "two checkpoints in one directory, and programs differ in which they read: delete one",
        lambda p: (p.bad / FILE).unlink(),
    ),
    "an index of another save": Row(
        lambda p: p.write(f"{FILE}.index.json", json.dumps({"weight_map": dict.fromkeys("ab", SHARDS[0])}).encode()),
        "delete model.safetensors.index.json: it belongs to another save",
        lambda p: (p.bad / f"{FILE}.index.json").unlink(),
    ),
    "a name that is no text": Row(
        lambda p: p.write("a\tb.txt", b""),
        "rename the file",
        lambda p: (p.bad / "a\tb.txt").rename(p.bad / "b.txt") and None,
    ),
    # keys of the config
    "a key that is wrong": Row(
        lambda p: p.config(text_config={"hidden_size": "128"}),
        "compare with the config.json of the model this checkpoint was made from",
        lambda p: p.restore(CONFIG),
    ),
    "rope_scaling": Row(
        lambda p: p.config(text_config={"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        "compare with the config.json of the model this checkpoint was made from",
        lambda p: p.config(text_config={"rope_scaling": "gone"}),
    ),
    "another model's type": Row(
        lambda p: p.config(model_type="gemma3"), "supported: gemma4, ", lambda p: p.restore(CONFIG)
    ),
    "a stale number of layers": Row(
        lambda p: p.config(text_config={"vocab_size": 600}),
        "set text_config.vocab_size to 512",
        lambda p: p.config(text_config={"vocab_size": 512}),
    ),
    "a head that is the embedding": Row(
        lambda p: p.config(tie_word_embeddings=False),
        "set tie_word_embeddings to true in config.json",
        lambda p: p.config(tie_word_embeddings=True),
    ),
    # tensors too many or too few
    "an unknown tensor": Row(
        lambda p: p.tensors(added("model.vision_tower.embeddings.position_ids", f"{LAYER}layer_scalar")),
        "the model is whole without them: delete them",
        lambda p: p.tensors(without("position_ids")),
    ),
    "a value head": Row(
        lambda p: p.tensors(added("v_head.summary.weight", f"{LAYER}layer_scalar")),
        "v_head is the value head of a trainer (TRL): delete its tensors",
        lambda p: p.tensors(without("v_head")),
    ),
    "values that are keys": Row(
        lambda p: p.tensors(keys_as_values),
        "delete it if it is a copy of k_proj",
        lambda p: p.tensors(
            lambda t: {
                n: w
                for n, w in t.items()
                if not n.endswith("v_proj.weight")
                or "language_model" not in n
                or not torch.equal(w, t[n.replace("v_proj", "k_proj")])
            }
        ),
    ),
    "scales of bitsandbytes": Row(
        lambda p: p.tensors(added(f"{LAYER}mlp.up_proj.SCB", f"{LAYER}layer_scalar")),
        "a merge or a quantizer left them: delete them",
        lambda p: p.tensors(without("SCB")),
    ),
    "a quantized source": Row(
        lambda p: p.tensors(renamed(f"{LAYER}mlp.up_proj.weight".format(0), f"{LAYER}mlp.up_proj.qweight".format(0))),
        "start from the bf16 checkpoint",
        to_sound,
    ),
    "lost buffers": Row(
        lambda p: p.tensors(without("layer_scalar")),
        "copy them from the model it was made of",
        lambda p: p.tensors(
            lambda t: t | {name: one for name, one in load_file(p.sound / FILE).items() if "layer_scalar" in name}
        ),
    ),
    "a wrapper": Row(
        lambda p: p.tensors(wrapped),
        "save the tensors without the `policy.`",
        lambda p: p.tensors(lambda t: {name.removeprefix("policy."): one for name, one in t.items()}),
    ),
    "two copies": Row(
        lambda p: save_file(load_file(p.bad / FILE), p.bad / "consolidated.safetensors") or p.shard(),
        "delete consolidated.safetensors or model-*-of-00002.safetensors",
        lambda p: (p.bad / "consolidated.safetensors").unlink(),
    ),
    "two copies in one file": Row(
        lambda p: p.tensors(
            lambda t: t | {n.replace("model.language_model", "language_model.model"): w.clone() for n, w in t.items()}
        ),
        "two copies of one model in one directory",
        lambda p: p.tensors(lambda t: {name: one for name, one in t.items() if name.startswith("model.")}),
    ),
    "no images": Row(
        lambda p: p.tensors(without("vision")),
        "the files have no vision weights",
        lambda p: p.config(vision_config=None),
        "e2b",
    ),
    "no images, the decoder alone": Row(
        lambda p: p.tensors(without("vision")),
        "--layout text-only converts the decoder alone",
        lambda p: (p.bad, "--layout", "text-only"),
        "e2b",
    ),
    "no sound": Row(
        lambda p: p.tensors(without("audio")),
        '`"audio_config": null` in config.json says so',
        lambda p: p.config(audio_config=None),
        "e2b",
    ),
    "sound that the config has not": Row(
        lambda p: p.config(audio_config=None),
        "config.json has no audio_config, but the files have its weights: put it back",
        lambda p: p.restore(CONFIG),
        "e2b",
    ),
    "a decoder alone": Row(
        lambda p: p.tensors(without("vision", "audio")),
        "--layout text-only converts them",
        lambda p: (p.bad, "--layout", "text-only"),
        "e2b",
    ),
    "a tensor that is lost": Row(
        lambda p: p.tensors(without("layers.1.mlp.up_proj")),
        "`g4convert inspect` lists what the directory holds beside what its config.json asks for",
        Place.restore,
    ),
}


@pytest.fixture
def place(checkpoints: Checkpoints, tmp_path: Path) -> Callable[[str], Place]:
    """Makes a sound copy and one to damage."""

    def make(family: str) -> Place:
        made = Place(rewritten(checkpoints(family), tmp_path / "sound", dict), tmp_path / "bad")
        shutil.copytree(made.sound, made.bad)
        return made

    return make


@pytest.mark.parametrize("name", two_when_quick(ROWS))
def test_the_hint_of_a_refused_source_works(name: str, place: Callable[[str], Place], g4convert: Program) -> None:
    row = ROWS[name]
    made = place(row.family)
    row.damage(made)
    refused = g4convert("plan", made.bad / FILE if name == "a file" else made.bad)
    assert refused.status == 3, refused.err
    assert refused.err.count("error: ") == refused.err.count("hint: ") == 1
    assert row.hint in refused.err.partition("hint: ")[2], refused.err
    after = row.follow(made)
    arguments = after if isinstance(after, tuple) else (after or made.bad,)
    ran = g4convert("plan", *arguments)
    assert ran.status == 0, ran.err


@pytest.mark.parametrize(("family", "nested"), [("dense", False), ("dense", True), ("unified", True)])
def test_a_head_of_its_own_is_told_so_and_written(
    family: str,
    nested: bool,  # noqa: FBT001 -- a parameter
    place: Callable[[str], Place],
    g4convert: Program,
) -> None:
    """Also where the key stands one level too deep."""
    made = place(family)
    if nested:
        made.config(tie_word_embeddings="gone", text_config={"tie_word_embeddings": False})
    embedding = "model.language_model.embed_tokens.weight"
    made.tensors(lambda t: t | {"lm_head.weight": t[embedding] + 1})
    out = made.bad.with_name("out")
    ran = g4convert("quantize", made.bad, "-o", out, "--verify", "none")
    assert ran.status == 3
    assert "set `tie_word_embeddings: false` at the top level of config.json" in ran.err
    assert not out.exists()
    made.config(tie_word_embeddings=False)
    assert g4convert("quantize", made.bad, "-o", out, "--verify", "none").status == 0
    (file,) = out.glob("*.safetensors")
    assert torch.equal(load_file(file)["lm_head.weight"], load_file(made.bad / FILE)["lm_head.weight"])


def test_inspect_lists_what_a_hint_says_it_does(place: Callable[[str], Place], g4convert: Program) -> None:
    made = place("dense")
    made.tensors(without("layers.1.mlp.up_proj"))
    assert "model.language_model.layers.1.mlp.up_proj.weight" in g4convert("inspect", made.bad, "-v").out


def test_experts_of_several_dtypes_are_packed_or_saved_in_one(
    place: Callable[[str], Place], g4convert: Program
) -> None:
    made = place("moe")
    down = "model.language_model.layers.1.experts.down_proj"
    made.tensors(lambda t: t | {f"{down}": t[down].float()})
    fused = g4convert("plan", made.bad, "--pack", "attention", "--pack", "mlp")
    made.tensors(
        lambda t: (
            {n: w for n, w in t.items() if n != down}
            | {
                f"{down.removesuffix('down_proj')}{e}.down_proj.weight": (w if e else w.bfloat16()).clone()
                for e, w in enumerate(t[down])
            }
        )
    )
    refused = g4convert("plan", made.bad, "--pack", "attention", "--pack", "mlp")
    assert (fused.status, refused.status) == (0, 3)
    assert "hint: pack the experts, or save the model again in one dtype" in refused.err
    assert g4convert("plan", made.bad).status == 0
    made.tensors(lambda t: {n: w.bfloat16() for n, w in t.items()})
    assert g4convert("plan", made.bad, "--pack", "attention", "--pack", "mlp").status == 0

"""Ways to damage a written checkpoint: each takes its directory and leaves one fault in it.

`STATIC` are faults that names, shapes, config or files show; `VALUES` are faults of packed numbers, which only
reading weights can show, each with the finding that names it. A damage is a function of the directory alone and fails
where it finds nothing to damage, so that a row of a table cannot pass without its fault. `rewrite` and `edit_config`
are there for further ones.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Path], None]

INDEX = "model.safetensors.index.json"
PARTS = ("weight_packed", "weight_scale", "weight_shape")


def damaged(checkpoint: Path, out: Path, damage: Damage) -> Path:
    """A damaged copy."""
    shutil.copytree(checkpoint, out)
    damage(out)
    return out


def rewrite(directory: Path, change: Callable[[Tensors], object]) -> None:
    """Change the tensors in place; new ones go into the last shard, the index follows."""
    index = json.loads((directory / INDEX).read_text())
    where: dict[str, str] = index["weight_map"]
    files = sorted(set(where.values()))
    tensors = {name: tensor for file in files for name, tensor in load_file(directory / file).items()}
    change(tensors)
    where = {name: where.get(name, files[-1]) for name in tensors}
    for file in files:
        shard = {name: tensor.contiguous() for name, tensor in tensors.items() if where[name] == file}
        save_file(shard, directory / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))


def edit_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json in place."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config, indent=2))


def tensors(change: Callable[[Tensors], object]) -> Damage:
    """A damage to the tensors."""
    return lambda directory: rewrite(directory, change)


def config(change: Callable[[dict[str, Any]], object]) -> Damage:
    """A damage to the config."""
    return lambda directory: edit_config(directory, change)


def quantization(change: Callable[[dict[str, Any]], object]) -> Damage:
    """A damage to the config's quantization section."""
    return config(lambda whole: change(whole["quantization_config"]))


def weights_scheme(**values: object) -> Damage:
    """Other values for the scheme of the one config group."""
    return quantization(lambda section: section["config_groups"]["group_0"]["weights"].update(values))


def ignoring(change: Callable[[list[str]], list[str]]) -> Damage:
    """Another ignore list."""
    return quantization(lambda section: section.update(ignore=change(section["ignore"])))


def without_entries(*parts: str) -> Damage:
    """Drop the ignore entries that have one of these parts in them."""

    def kept(ignore: list[str]) -> list[str]:
        left = [entry for entry in ignore if not any(part in entry for part in parts)]
        assert len(left) < len(ignore)
        return left

    return ignoring(kept)


def both(*damages: Damage) -> Damage:
    """Several damages, one after the other."""

    def all_of_them(directory: Path) -> None:
        for damage in damages:
            damage(directory)

    return all_of_them


def lose(*names: str) -> Damage:
    """Drop tensors."""
    return tensors(lambda held: [held.pop(name) for name in names])


def pack(module: str, group_size: int = 32) -> Damage:
    """Replace a plain weight by a packed one of the right shapes; the numbers are plain min-max codes."""

    def change(held: Tensors) -> None:
        weight = held.pop(f"{module}.weight").float()
        n, k = weight.shape
        groups = weight.reshape(n, k // group_size, group_size)
        scale = (groups.abs().amax(-1, keepdim=True) / 7).to(torch.bfloat16)
        codes = (groups / scale.float()).round().clamp(-8, 7).reshape(n, k).to(torch.int64) + 8
        held[f"{module}.weight_packed"] = words(codes)
        held[f"{module}.weight_scale"] = scale[..., 0]
        held[f"{module}.weight_shape"] = torch.tensor([n, k])

    return tensors(change)


def unpack(module: str) -> Damage:
    """Replace a packed weight by the plain one it stands for."""

    def change(held: Tensors) -> None:
        packed, scale, shape = (held.pop(f"{module}.{part}") for part in PARTS)
        n, k = shape.tolist()
        values = (nibbles(packed) - 8).reshape(n, scale.shape[1], -1) * scale.float()[..., None]
        held[f"{module}.weight"] = values.reshape(n, k).to(torch.bfloat16)

    return tensors(change)


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """int32 [n, k/8] -> the stored nibbles, int64 [n, k], 0 to 15."""
    shifts = torch.arange(0, 32, 4)
    return ((packed.to(torch.int64)[..., None] >> shifts) & 15).flatten(-2)


def words(stored: torch.Tensor) -> torch.Tensor:
    """Nibbles, int64 [n, k] -> int32 [n, k/8]."""
    held = (stored.reshape(stored.shape[0], -1, 8) << torch.arange(0, 32, 4)).sum(-1)
    return held.to(torch.int32)


def _edit(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return tensors(lambda held: held.update({name: change(held[name])}))


def _swap(held: Tensors, one: str, other: str) -> None:
    for part in PARTS:
        first, second = f"{one}.{part}", f"{other}.{part}"
        held[first], held[second] = held[second], held[first]


def _add_v_proj(held: Tensors) -> None:
    for part in PARTS:
        held[f"{MOE_FULL}.v_proj.{part}"] = held[f"{MOE_FULL}.k_proj.{part}"].clone()


def _fuse_experts(held: Tensors) -> None:
    """The experts' down projections of layer 0 in one packed tensor, as old uploads have them."""
    stem = f"{MOE}.experts"
    for part, suffix in (("weight_packed", "_packed"), ("weight_scale", "_scale")):
        held[f"{stem}.down_proj{suffix}"] = torch.stack([held.pop(f"{stem}.{e}.down_proj.{part}") for e in range(12)])
    for e in range(12):
        held.pop(f"{stem}.{e}.down_proj.weight_shape")


def _truncate(directory: Path) -> None:
    path = max(directory.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-2])


def _overlap(directory: Path) -> None:
    """Let one tensor of the first shard begin inside another."""
    path = min(directory.glob("*.safetensors"))
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    two = [entry for name, entry in header.items() if name.endswith("layernorm.weight")][:2]
    two[1]["data_offsets"] = two[0]["data_offsets"]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    path.write_bytes(raw[:8] + text + raw[8 + size :])


def _stale_index(directory: Path) -> None:
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"].pop(f"{DENSE}.mlp.up_proj.weight_scale")
    (directory / INDEX).write_text(json.dumps(index))


def _wrong_total(directory: Path) -> None:
    index = json.loads((directory / INDEX).read_text())
    index["metadata"]["total_size"] += 1
    (directory / INDEX).write_text(json.dumps(index))


def _change_byte(name: str) -> Damage:
    def change(directory: Path) -> None:
        path = directory / name
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)

    return change


def _full_layers(whole: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The entries of the full-attention layers, as transformers saves them."""
    text = whole["text_config"]
    kinds = enumerate(text["layer_types"])
    own = {"head_dim": text["global_head_dim"], "num_key_value_heads": text["num_global_key_value_heads"]}
    return {str(number): own for number, kind in kinds if kind == "full_attention"}


def _reformat(name: str) -> Damage:
    def change(directory: Path) -> None:
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_text())))

    return change


def _untie(whole: dict[str, Any]) -> None:
    for part in (whole, whole["text_config"]):
        part["tie_word_embeddings"] = False


def _head_of_the_embedding(held: Tensors) -> None:
    held["lm_head.weight"] = held["model.language_model.embed_tokens.weight"].clone()


def _in_group_order(held: Tensors) -> None:
    held[f"{LAYER}.mlp.up_proj.weight_g_idx"] = torch.arange(128, dtype=torch.int32) // 32


def _double(directory: Path) -> None:
    """A shard that the index does not name, of a name in the index."""
    name, extra = f"{LAYER}.layer_scalar", "extra.safetensors"
    index = json.loads((directory / INDEX).read_text())
    save_file({name: torch.ones(1)}, directory / extra, metadata={"format": "pt"})
    index["weight_map"][name] = extra
    (directory / INDEX).write_text(json.dumps(index))


def _put(name: str, value: object) -> Damage:
    return lambda directory: (directory / name).write_text(json.dumps(value)) and None


def _update(name: str, **values: object) -> Damage:
    return lambda directory: _put(name, {**json.loads((directory / name).read_text()), **values})(directory)


def _write(name: str) -> Damage:
    return lambda directory: (directory / name).write_text("{}") and None


EMBEDDING = "model.language_model.embed_tokens.weight"
LAYER = "model.language_model.layers.0"
MOE = DENSE = E2B = UNIFIED = LAYER
MOE_FULL = "model.language_model.layers.2.self_attn"
PATCH = "model.vision_embedder.patch_dense"

STATIC: Mapping[str, Damage] = {
    # tensors
    "layer_scalar dropped": lose(f"{LAYER}.layer_scalar"),
    "per_expert_scale dropped": lose(f"{MOE}.router.per_expert_scale"),
    "one expert lost": lose(*(f"{MOE}.experts.5.up_proj.{part}" for part in PARTS)),
    "clip limit dropped": lose("model.vision_tower.encoder.layers.1.mlp.up_proj.output_max"),
    "std_bias dropped": lose("model.vision_tower.std_bias"),
    "tensor too many": tensors(lambda held: held.update({f"{LAYER}.mlp.gate_proj.extra": torch.zeros(256)})),
    "plain beside packed": tensors(
        lambda held: held.update({f"{LAYER}.mlp.up_proj.weight": torch.zeros(256, 128, dtype=torch.bfloat16)})
    ),
    "name of another program": tensors(
        lambda held: held.update({"language_model.model.norm.weight": held.pop("model.language_model.norm.weight")})
    ),
    "v_proj on a k_eq_v layer": tensors(_add_v_proj),
    "half of shared keys and values": lose(*(f"model.language_model.layers.4.self_attn.v_proj.{p}" for p in PARTS)),
    "shared keys unlike their queries": unpack("model.language_model.layers.4.self_attn.k_proj"),
    # what must stay as it is
    "router packed": pack(f"{MOE}.router.proj"),
    "patch_dense packed": pack(PATCH),
    "embedding packed": pack("model.language_model.embed_tokens"),
    "tower packed": pack("model.vision_tower.patch_embedder.input_proj", 16),
    "embedding in fp32": _edit("model.language_model.embed_tokens.weight", lambda tensor: tensor.float()),
    "norm of another shape": _edit(f"{LAYER}.input_layernorm.weight", lambda tensor: tensor[:64]),
    # packed form
    "lost words": lose(f"{LAYER}.mlp.up_proj.weight_packed"),
    "lost scale": lose(f"{LAYER}.mlp.up_proj.weight_scale"),
    "lost expert scale": lose(f"{MOE}.experts.7.down_proj.weight_scale"),
    "lost shape": lose(f"{LAYER}.mlp.up_proj.weight_shape"),
    "wrong shape values": _edit(f"{LAYER}.mlp.up_proj.weight_shape", lambda tensor: tensor.flip(0)),
    "transposed packing": _edit(f"{LAYER}.mlp.up_proj.weight_packed", lambda tensor: tensor.T),
    "words in int64": _edit(f"{LAYER}.mlp.up_proj.weight_packed", lambda tensor: tensor.to(torch.int64)),
    "scale of another group size": _edit(f"{LAYER}.mlp.up_proj.weight_scale", lambda tensor: tensor[:, ::2]),
    "scale of another layer": _edit(f"{LAYER}.mlp.up_proj.weight_scale", lambda tensor: tensor[:100]),
    "scale in integers": _edit(f"{LAYER}.mlp.up_proj.weight_scale", lambda tensor: tensor.to(torch.int32)),
    "gate plain": unpack(f"{LAYER}.mlp.gate_proj"),
    "one expert plain": unpack(f"{MOE}.experts.3.up_proj"),
    "fused packed experts": tensors(_fuse_experts),
    # config
    "config key dropped": config(lambda whole: whole["text_config"].pop("final_logit_softcapping")),
    "config value changed": config(lambda whole: whole["text_config"].update(sliding_window=17)),
    "alias dropped": config(lambda whole: whole.pop("eoa_token_index")),
    "architecture changed": config(lambda whole: whole["text_config"].update(intermediate_size=512)),
    "model type changed": config(lambda whole: whole.update(model_type="gemma3")),
    "rotation factor added": config(
        lambda whole: whole["text_config"]["rope_parameters"]["full_attention"].update(factor=8.0)
    ),
    "attention made acausal": config(lambda whole: whole["text_config"].update(is_causal=False)),
    "softcap of attention added": config(lambda whole: whole["text_config"].update(attn_logit_softcapping=50.0)),
    "one layer of another window": config(
        lambda whole: whole["text_config"].update(per_layer_config={**_full_layers(whole), "0": {"sliding_window": 3}})
    ),
    "image token of another model": config(lambda whole: whole.update(image_token_id=whole["image_token_id"] - 1)),
    "video token of another model": config(lambda whole: whole.update(video_token_id=whole["image_token_id"] - 1)),
    "sound token of another model": config(lambda whole: whole.update(audio_token_id=whole["image_token_id"] - 1)),
    "pooling of another size": config(lambda whole: whole["vision_config"].update(pooling_kernel_size=2)),
    "padding token lost": config(lambda whole: whole["text_config"].update(pad_token_id=None)),
    "untied without a head": config(_untie),
    "packed head of a tied model": both(tensors(_head_of_the_embedding), pack("lm_head")),
    "inputs in FP8": quantization(
        lambda section: section["config_groups"]["group_0"].update(
            input_activations={"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token", "symmetric": True}
        )
    ),
    "order of columns that says nothing": tensors(_in_group_order),
    "another order of columns": tensors(
        lambda held: held.update({f"{LAYER}.mlp.up_proj.weight_g_idx": torch.arange(128, dtype=torch.int32) % 4})
    ),
    "tensor in two shards": _double,
    "no quantization_config": config(lambda whole: whole.pop("quantization_config")),
    "another quant_method": quantization(lambda section: section.update(quant_method="awq")),
    "wrong group size": weights_scheme(group_size=64),
    "wrong bits": weights_scheme(num_bits=8),
    "activation order": weights_scheme(actorder="group"),
    "declared asymmetric": weights_scheme(symmetric=False),
    # ignore and targets
    "tied head not ignored": without_entries("lm_head"),
    "router not ignored": without_entries("router"),
    "patch_dense without its prefix": both(
        without_entries("vision_embedder", "embed_vision", "embed_audio"),
        ignoring(lambda old: [*old, "vision_embedder.patch_dense", "re:.*embed_vision.*", "re:.*embed_audio.*"]),
        ignoring(lambda old: [entry for entry in old if entry != "re:.*embed_vision.*"]),
        ignoring(lambda old: [*old, "re:.*embedding_projection"]),
    ),
    "packed, but ignored": ignoring(lambda old: [*old, r"re:.*\.mlp\.down_proj"]),
    "anchored pattern": both(
        without_entries("vision_tower"), ignoring(lambda old: [*old, r"re:^model\.vision_tower.*"])
    ),
    "parent name": both(without_entries("vision_tower"), ignoring(lambda old: [*old, "model.vision_tower"])),
    "module names of transformers only": both(
        without_entries("vision_embedder", "embed_vision", "embed_audio"),
        ignoring(
            lambda old: [
                *old,
                "model.embed_vision.patch_dense",
                "model.embed_vision.multimodal_embedder.embedding_projection",
                "model.embed_audio.embedding_projection",
            ]
        ),
    ),
    "tower by the names of the files": both(
        without_entries("vision_tower"),
        ignoring(lambda old: [*old, *tower_names()]),
    ),
    "dead entry": ignoring(lambda old: [*old, "re:vision_embeder.*"]),
    "entry of another Gemma 4": ignoring(lambda old: [*old, "re:.*audio_tower.*"]),
    "broken pattern": ignoring(lambda old: [*old, "re:.*(tower"]),
    "target names nothing packed": quantization(
        lambda section: section["config_groups"]["group_0"].update(targets=[r"re:.*\.self_attn\..*"])
    ),
    # files
    "cut shard": _truncate,
    "overlapping tensors": _overlap,
    "stale index": _stale_index,
    "wrong total size": _wrong_total,
    "unfinished": _write("journal.jsonl"),
    "stray shard": _write("model-00009-of-00009.safetensors"),
    "tokenizer changed": _change_byte("tokenizer.json"),
    "tokenizer lost": lambda directory: (directory / "tokenizer.json").unlink(),
    "chat template changed": _change_byte("chat_template.jinja"),
    "generation config written anew": _reformat("generation_config.json"),
    "other special tokens": _put("special_tokens_map.json", {"eos_token": "<pad>", "bos_token": "<unk>"}),
    "temperature changed": _update("generation_config.json", temperature=0.1),
    "file too many": _write("notes.txt"),
}


def tower_names() -> list[str]:
    """The vision tower's Linears of the tiny fixtures, as files and transformers spell them."""
    attention = [f"self_attn.{part}_proj" for part in "qkvo"]
    parts = [*attention, *(f"mlp.{part}_proj" for part in ("gate", "up", "down"))]
    stem = "model.vision_tower"
    layers = [f"{stem}.encoder.layers.{n}.{part}.linear" for n in range(2) for part in parts]
    return [f"{stem}.patch_embedder.input_proj", *layers]


def _scaled(scale: torch.Tensor, factor: float) -> torch.Tensor:
    """Scales of which the one of a group in the middle is multiplied."""
    changed = scale.clone()
    changed[len(scale) // 2, 1] *= factor
    return changed


def reverse_nibbles(held: Tensors) -> None:
    """Every module packed high nibble first."""
    for name in [name for name in held if name.endswith("weight_packed")]:
        stored = nibbles(held[name])
        held[name] = words(stored.reshape(stored.shape[0], -1, 8).flip(-1).flatten(1))


def no_offset(held: Tensors) -> None:
    """Codes as two's complement nibbles, the offset of 8 forgotten, in every module."""
    for name in [name for name in held if name.endswith("weight_packed")]:
        held[name] = words((nibbles(held[name]) - 8) & 15)


def resize(factor: float) -> Damage:
    """Multiply all scales by a factor, as a writer with another end of the range does."""

    def change(held: Tensors) -> None:
        for name in [name for name in held if name.endswith("weight_scale")]:
            held[name] = (held[name].float() * factor).to(held[name].dtype)

    return tensors(change)


class Wrong(NamedTuple):
    """A damage of values, and the finding that names it.

    Args:
        damage: the damage.
        code: code of the finding.
        subject: part of its subject, or of its text where it stands for several weights.
        text: part of what it says it found: the cause, or what is counted.
        family: family of the checkpoint that the whole of `verify` is tried on; level `weights` is on `moe`.
    """

    damage: Damage
    code: str
    subject: str
    text: str
    family: str = "dense"


VALUES: Mapping[str, Wrong] = {
    "nibble order": Wrong(
        tensors(reverse_nibbles),
        "weights.error",
        "layers.*.self_attn.q_proj",
        "its nibbles lie high first in each word",
        "moe",
    ),
    "offset missing": Wrong(
        tensors(no_offset), "weights.error", "layers.*.self_attn.q_proj", "its codes lack the offset of 8"
    ),
    "gate and up swapped": Wrong(
        tensors(lambda held: _swap(held, f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj")),
        "weights.error",
        f"{LAYER}.mlp.gate_proj",
        f"it is the weight of {LAYER}.mlp.up_proj",
    ),
    "expert gate and up swapped": Wrong(
        tensors(lambda held: _swap(held, f"{MOE}.experts.4.gate_proj", f"{MOE}.experts.4.up_proj")),
        "weights.error",
        f"{MOE}.experts.4.gate_proj",
        f"it is the weight of {MOE}.experts.4.up_proj",
        "moe",
    ),
    "experts swapped": Wrong(
        tensors(
            lambda held: [
                _swap(held, f"{MOE}.experts.1.{p}_proj", f"{MOE}.experts.2.{p}_proj") for p in ("gate", "up", "down")
            ]
        ),
        "weights.error",
        f"{MOE}.experts.1.down_proj",
        f"it is the weight of {MOE}.experts.2.down_proj",
        "moe",
    ),
    "scales shifted": Wrong(
        _edit(f"{LAYER}.mlp.up_proj.weight_scale", lambda tensor: tensor.roll(1, -1)),
        "weights.error",
        f"{LAYER}.mlp.up_proj",
        "its scales are shifted by a group",
    ),
    "scales negated": Wrong(
        _edit(f"{LAYER}.mlp.up_proj.weight_scale", lambda tensor: -tensor),
        "weights.error",
        f"{LAYER}.mlp.up_proj",
        "its scales have the wrong sign",
    ),
    "scales of 7.5 for 7": Wrong(
        resize(14 / 15),
        "weights.size",
        "layers.*.self_attn.q_proj",
        "too small as a whole",
    ),
    "scales a twentieth too large": Wrong(
        resize(1.05),
        "weights.size",
        "layers.*.self_attn.q_proj",
        "too large as a whole",
    ),
    "scale of a group halved": Wrong(
        _edit(f"{LAYER}.mlp.up_proj.weight_scale", lambda tensor: _scaled(tensor, 0.5)),
        "weights.groups",
        f"{LAYER}.mlp.up_proj",
        "have a scale that is not that of their codes",
    ),
    "scale of a group half as large again": Wrong(
        _edit(f"{LAYER}.mlp.up_proj.weight_scale", lambda tensor: _scaled(tensor, 1.5)),
        "weights.groups",
        f"{LAYER}.mlp.up_proj",
        "have a scale that is not that of their codes",
    ),
    "scale not finite": Wrong(
        _edit(
            f"{LAYER}.mlp.up_proj.weight_scale",
            lambda tensor: tensor.index_fill(0, torch.tensor([3]), float("nan")),
        ),
        "weights.scales",
        f"{LAYER}.mlp.up_proj",
        "4 scales that are not finite",
    ),
    "all codes zero": Wrong(
        _edit(f"{LAYER}.mlp.up_proj.weight_packed", lambda tensor: torch.full_like(tensor, -2004318072)),
        "weights.constant",
        f"{LAYER}.mlp.up_proj",
        "every word is 0x88888888",
    ),
    "tied head of other rows": Wrong(
        tensors(lambda held: held.update({"lm_head.weight": held[EMBEDDING].roll(1, 0)})),
        "weights.tied_head",
        "lm_head.weight",
        "differs from model.language_model.embed_tokens.weight",
    ),
    "norm changed": Wrong(
        _edit(f"{LAYER}.input_layernorm.weight", lambda tensor: tensor * 1.0078125),
        "weights.kept",
        f"{LAYER}.input_layernorm.weight",
        "128 of 128 values differ",
    ),
    "layer_scalar set to one": Wrong(
        _edit(f"{LAYER}.layer_scalar", torch.ones_like),
        "weights.kept",
        f"{LAYER}.layer_scalar",
        "1 of 1 values differ",
    ),
}

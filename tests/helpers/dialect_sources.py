"""Rewrite a checkpoint into the dialects that sources come in, so that tests can convert it back.

Each dialect is a function from the tensors of one shard to the tensors of the rewritten shard. Values are
never changed, so what a dialect resolves to has the bytes of the checkpoint that it was made from.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

COMPOSITE = frozenset({"moe", "dense", "unified", "e2b"})
EVERY = COMPOSITE | {"text", "unified_text", "assistant", "unified_assistant"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """A way of naming tensors, and the families in which it differs from transformers' own."""

    description: str
    families: frozenset[str]
    rewrite: Callable[[Tensors], Tensors]


def write(source: Path, out: Path, dialect: str) -> Path:
    """Write `source` to the new directory `out` in a dialect; shards, index and side files as before."""
    out.mkdir(parents=True)
    index: dict[str, str] = {}
    total = 0
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            tensors = DIALECTS[dialect].rewrite(load_file(path))
            save_file(tensors, out / path.name, metadata={"format": "pt"})
            index |= dict.fromkeys(tensors, path.name)
            total += sum(tensor.nbytes for tensor in tensors.values())
        elif not path.name.endswith(".index.json"):
            shutil.copy2(path, out / path.name)
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (out / "model.safetensors.index.json").write_text(json.dumps(content, indent=2))
    return out


def cases() -> list[tuple[str, str]]:
    """Each (dialect, family) that makes a difference, for parametrize."""
    return [(name, family) for name, dialect in DIALECTS.items() for family in sorted(dialect.families)]


def _renamed(*rules: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    """Apply regex substitutions to every name, in order."""

    def rewrite(tensors: Tensors) -> Tensors:
        renamed = {}
        for name, tensor in tensors.items():
            new = name
            for pattern, replacement in rules:
                new = re.sub(pattern, replacement, new)
            renamed[new] = tensor
        return renamed

    return rewrite


def _per_expert(tensors: Tensors) -> Tensors:
    """Split fused experts [E, 2I, H] and [E, H, I] into `experts.E.{gate,up,down}_proj.weight`."""
    split = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            for number, expert in enumerate(tensor):
                gate, up = expert.chunk(2)
                split[f"{stem}.{number}.gate_proj.weight"] = gate.contiguous()
                split[f"{stem}.{number}.up_proj.weight"] = up.contiguous()
        elif kind == "down_proj":
            split |= {f"{stem}.{number}.down_proj.weight": expert.clone() for number, expert in enumerate(tensor)}
        else:
            split[name] = tensor
    return split


def _then(*steps: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
    def rewrite(tensors: Tensors) -> Tensors:
        for step in steps:
            tensors = step(tensors)
        return tensors

    return rewrite


def _short_embedders(tensors: Tensors) -> Tensors:
    """`embedding_projection` as `proj`, and the scaleless norm before it with the ones it multiplies by."""
    renamed = _renamed((r"\.embedding_projection\.weight$", ".proj.weight"))(tensors)
    for name, tensor in list(renamed.items()):
        if name.endswith(".proj.weight") and ".embed_" in name:
            norm = name.replace(".proj.weight", ".pre_proj_norm.weight")
            renamed[norm] = torch.ones(tensor.shape[1], dtype=tensor.dtype)
    return renamed


def _tied_head(tensors: Tensors) -> Tensors:
    """Add the copy of the embedding that a tied lm_head needs not."""
    found = next((tensor for name, tensor in tensors.items() if name.endswith(".embed_tokens.weight")), None)
    return tensors if found is None else tensors | {"lm_head.weight": found.clone()}


def _rotary_buffers(tensors: Tensors) -> Tensors:
    """Add the rotary tables that older savers kept, beside each layer's norm of queries."""
    tables = {
        name.replace("q_norm.weight", "rotary_emb.inv_freq"): torch.ones(tensor.shape[0] // 2)
        for name, tensor in tensors.items()
        if name.endswith(".self_attn.q_norm.weight") and "vision_tower" not in name
    }
    return tensors | tables


_MOE_SUBTREE = _renamed((r"\.experts\.", ".moe.experts."), (r"\.router\.per_expert_scale$", ".moe.per_expert_scale"))

DIALECTS: Mapping[str, Dialect] = {
    "language_model.model": Dialect(
        "text under `language_model.model.`, the rest without `model.`: vLLM's modules, older transformers",
        COMPOSITE,
        _renamed((r"^model\.language_model\.", "language_model.model."), (r"^model\.", "")),
    ),
    "model.language_model.model": Dialect(
        "text under `model.language_model.model.`: a causal LM nested in the composite model",
        COMPOSITE,
        _renamed((r"^model\.language_model\.", "model.language_model.model.")),
    ),
    "model.model": Dialect("one `model.` too many", EVERY, _renamed((r"^model\.", "model.model."))),
    "no model": Dialect("saved from the base model, without `model.`", EVERY, _renamed((r"^model\.", ""))),
    "_orig_mod": Dialect("saved from a compiled model", EVERY, _renamed((r"^", "_orig_mod."))),
    "_orig_mod inside": Dialect(
        "saved after each layer was compiled", EVERY, _renamed((r"(\.layers\.\d+\.)", r"\1_orig_mod."))
    ),
    "base_model.model": Dialect("merged LoRA", EVERY, _renamed((r"^", "base_model.model."))),
    "base_model.model._orig_mod": Dialect(
        "merged LoRA of a compiled model", EVERY, _renamed((r"^", "base_model.model._orig_mod."))
    ),
    "per expert": Dialect("experts as 2-D tensors of their own", frozenset({"moe"}), _per_expert),
    "moe.experts": Dialect(
        "fused experts under `.moe.`, as serving engines name the module", frozenset({"moe"}), _MOE_SUBTREE
    ),
    "moe.experts per expert": Dialect(
        "experts of their own under `.moe.`", frozenset({"moe"}), _then(_per_expert, _MOE_SUBTREE)
    ),
    "unified modules": Dialect(
        "the module names of unified models instead of those on disk",
        frozenset({"unified"}),
        _renamed(
            (
                r"\.embed_vision\.embedding_projection\.",
                ".embed_vision.multimodal_embedder.embedding_projection.",
            ),
            (r"\.vision_embedder\.", ".embed_vision."),
        ),
    ),
    "short embedders": Dialect("SGLang's `proj` and `pre_proj_norm`", COMPOSITE, _short_embedders),
    "tied head": Dialect("with a copy of the embedding as lm_head", EVERY - {"text"}, _tied_head),
    "rotary buffers": Dialect("with tables that are computed, not stored", EVERY, _rotary_buffers),
}


def mlx(tensors: Tensors) -> Tensors:
    """All tensors as MLX holds them: names, gate and up of the experts apart, convolutions with channels last.

    Values are moved, so this is no entry of the table.
    """
    found = {}
    for name, tensor in _renamed((r"^model\.language_model\.", "language_model.model."), (r"^model\.", ""))(
        tensors
    ).items():
        stem = name.rpartition(".")[0]
        if name.endswith(".experts.gate_up_proj"):
            gate, up = tensor.chunk(2, dim=1)
            found |= {f"{stem}.switch_glu.gate_proj.weight": gate, f"{stem}.switch_glu.up_proj.weight": up}
        elif name.endswith(".experts.down_proj"):
            found[f"{stem}.switch_glu.down_proj.weight"] = tensor
        elif "conv" in name and name.endswith(".weight") and tensor.ndim > 2:
            found[name] = tensor.movedim(1, -1)
        else:
            found[name] = tensor
    return found


def with_shared_kv(source: Path, out: Path) -> Path:
    """Write `source` with the dead k_proj, v_proj, k_norm of KV-shared layers, as the released E2B has them.

    Each gets a negated copy of the tensor of the last layer of its kind that has one, in the last shard.
    """
    shutil.copytree(source, out)
    config = json.loads((source / "config.json").read_text())["text_config"]
    index_path = out / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    kinds = config["layer_types"]
    first = len(kinds) - config["num_kv_shared_layers"]
    last_shard = max(index["weight_map"].values())
    added = {}
    for layer in range(first, len(kinds)):
        donor = max(number for number in range(first) if kinds[number] == kinds[layer])
        for part in ("k_proj", "v_proj", "k_norm"):
            name = f"model.language_model.layers.{donor}.self_attn.{part}.weight"
            tensor = load_file(out / index["weight_map"][name])[name]
            added[name.replace(f".{donor}.", f".{layer}.")] = -tensor
    save_file(load_file(out / last_shard) | added, out / last_shard, metadata={"format": "pt"})
    index["weight_map"] |= dict.fromkeys(added, last_shard)
    index["metadata"]["total_size"] += sum(tensor.nbytes for tensor in added.values())
    index_path.write_text(json.dumps(index, indent=2))
    return out

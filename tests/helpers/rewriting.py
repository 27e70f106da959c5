"""Copies of a checkpoint with other tensors and another config."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def rewritten(
    source: Path, out: Path, change: Callable[[Tensors], Tensors], *, metadata: str = "pt", **keys: object
) -> Path:
    """A copy in one file, with other tensors and other keys in its config."""
    out.mkdir(parents=True)
    tensors: Tensors = {}
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif not path.name.endswith(".index.json"):
            shutil.copy2(path, out / path.name)
    changed = {name: tensor.contiguous() for name, tensor in change(tensors).items()}
    save_file(changed, out / "model.safetensors", metadata={"format": metadata})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({k: v for k, v in (config | keys).items() if v != "gone"}))
    return out

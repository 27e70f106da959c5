"""Mean squares of Linears' inputs, by hooks on transformers' own forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from g4convert.forward.load import load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from g4convert.calibration.tokens import Tokens


def hooked(
    source: Path, given: Tokens, arguments: Callable[[int], Mapping[str, torch.Tensor]] | None = None
) -> dict[str, np.ndarray]:
    """E[x^2] of the decoder's Linears and experts in a forward of each row, float64; `arguments` gives those of one."""
    model = load(source)
    decoder, rows = model.get_decoder(), {}
    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.Linear) and "router" not in name:
            module.register_forward_pre_hook(lambda _, x, name=name: rows.setdefault(name, []).append(x[0].double()))
    for number, layer in enumerate(decoder.layers):
        if hasattr(layer, "experts"):
            keep = rows.setdefault(f"layers.{number}.experts", [])
            layer.experts.register_forward_pre_hook(lambda _, x, keep=keep: keep.append((x[0].double(), x[1])))
    with torch.no_grad():
        for s in sorted({*range(given.samples)} - given.judges):
            ids = torch.from_numpy(given.ids[s].astype(np.int64))[None]
            model(**({"input_ids": ids} if arguments is None else arguments(s)), use_cache=False)
    found: dict[str, np.ndarray] = {}
    for name, parts in rows.items():
        if not name.endswith(".experts"):
            found[name] = torch.cat([x.flatten(0, -2) for x in parts]).square().mean(0).numpy()
            continue
        x, index = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        experts = decoder.get_submodule(name)
        for e in range(experts.num_experts):
            mine = x[(index == e).any(1)]
            both = mine @ experts.gate_up_proj[e].double().T
            gate, up = both.chunk(2, -1)
            found[f"{name}.{e}.gate_proj"] = mine.square().mean(0).detach().numpy()
            found[f"{name}.{e}.down_proj"] = (experts.act_fn(gate) * up).square().mean(0).detach().numpy()
    return found

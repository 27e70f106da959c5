"""The rows of `quality.py`: methods, groups, what they are calibrated on, and peers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

__all__ = ["GROUPS", "Row", "rows"]

GROUPS = (32, 128)
_METHODS = ("minmax", "mse", "imatrix", "gptq", "best")
_CALIBRATED = ("imatrix", "gptq", "best")
_OBSERVERS = {"": "memoryless_minmax", "-imatrix": "imatrix_mse"}
_OTHERS = {
    "gptqmodel": ("gptqmodel", ()),
    "autoround-rtn": ("autoround", ("--steps", "0", "--batch", "8")),
    "autoround": ("autoround", ("--steps", "50", "--batch", "4")),
}
"""Rows of other tools: by name the tool, and what `quality_TOOL.py` is told besides."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way to quantize one model.

    Args:
        name: in results and on the command line.
        model: directory of the model: `model` or `moe`.
        method: of g4convert, or the peer's.
        group: weights that share a scale.
        tokens: the ids that calibrate, or nothing.
        peer: the other tool that does it; empty where g4convert or `rounding` does.
        arguments: given to the command, besides.
        rounding: does it in memory, where no command makes it any more.
    """

    name: str
    model: str
    method: str
    group: int
    tokens: str = ""
    peer: str = ""
    arguments: Sequence[str] = ()
    rounding: partial[torch.Tensor] | None = None


def rows() -> list[Row]:
    """All rows, those that say most first."""
    found: list[Row] = []
    for group in GROUPS:
        found += [_own("model", method, group) for method in _METHODS]
        found += [_peer(group, suffix) for suffix in _OBSERVERS]
        found += [_other(name, group) for name in _OTHERS if group == GROUPS[0]]
        found.append(_least_error(group))
    found += [_own("moe", method, GROUPS[0]) for method in _METHODS]
    found += [_own("model", "gptq", GROUPS[0], tokens) for tokens in ("own", "prose", "random")]
    return found


def _own(model: str, method: str, group: int, tokens: str = "mixed") -> Row:
    given = tokens if method in _CALIBRATED else ""
    suffix = f"-{tokens}" if tokens != "mixed" else ""
    prefix = "moe-" if model == "moe" else ""
    return Row(f"{prefix}{method}-g{group}{suffix}", model, method, group, given)


def _peer(group: int, suffix: str) -> Row:
    arguments = ("--group", str(group), "--observer", _OBSERVERS[suffix])
    return Row(f"llm-compressor{suffix}-g{group}", "model", "gptq", group, "mixed", peer="peer", arguments=arguments)


def _other(name: str, group: int) -> Row:
    tool, told = _OTHERS[name]
    arguments = ("--group", str(group), *told)
    return Row(f"{name}-g{group}", "model", "", group, "mixed", peer=tool, arguments=arguments)


def _least_error(group: int) -> Row:
    rounding = partial(_rounded, group=group, levels=torch.linspace(6.5, 10.5, 12).tolist())
    return Row(f"least-error-g{group}", "model", "least error", group, rounding=rounding)


def _rounded(weight: torch.Tensor, group: int, levels: Sequence[float]) -> torch.Tensor:
    """Round to the scale with the least squared error, either sign by the largest weight, as `mse` did in 0.1.0."""
    w = weight.reshape(-1, group)
    peak = w.gather(1, w.abs().argmax(1, keepdim=True))
    best, least = torch.zeros_like(w), torch.full_like(peak, torch.inf)
    for level in levels:
        codes = (w * (-level / peak)).round().clamp(-8, 7)
        scale = (w * codes).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True)
        scale = scale.bfloat16().float()
        now = (w / scale).round().clamp(-8, 7) * scale
        error = (now - w).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, now, best), torch.minimum(error, least)
    return best.view(weight.shape)

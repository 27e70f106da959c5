"""Words for metrics and comparisons that the terminal and the page share.

Tables list the metrics in the order of `METRICS`. `by_kind` puts headings on blamed modules.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

__all__ = ["COMPARED", "COSTLY", "DIFFERS", "LOWER_BOUND", "METRICS", "SWAPPED", "TITLES", "by_kind"]

METRICS: Final = {
    "kl_mean": "mean KL (nats)",
    "kl_median": "median KL",
    "kl_p99": "99 % KL",
    "kl_p999": "99.9 % KL",
    "kl_max": "largest KL",
    "top1_agreement": "same top token",
    "top1_confident": "same if confident",
    "rms_dp": "RMS Δp",
    "ppl_ratio": "perplexity ratio",
    "logit_cosine": "cosine of logits",
    "logit_max_diff": "largest logit difference",
    "sqnr_min": "lowest SQNR of a layer (dB)",
    "router_jaccard_min": "router overlap",
}
TITLES: Final = {"loss": "what quantization costs", "parity": "whether it runs as written"}
"""Title of each comparison."""
COMPARED: Final = {
    "loss": "the original against the dequantized weights",
    "parity": "the dequantized weights against the path that runs them packed",
}
"""The two sides of each comparison."""
DIFFERS: Final = {
    "loss": "the answers differ too much from the original's",
    "parity": "the packed path differs from the dequantized weights",
}
"""Meaning of metrics beyond their limits, by comparison."""
SWAPPED: Final = {"loss": "the original's", "parity": "the dequantized one"}
"""The module that takes the place of another while its share is measured, by comparison."""
LOWER_BOUND: Final = "KL is a lower bound: of the reference only the likeliest tokens are known"
COSTLY: Final = {
    "loss": "which modules cost most (no fault of the file)",
    "parity": "which modules run differently from what is written",
}
"""Title of each table of blame."""
_KINDS: Final = {"module": "", "role": "all layers", "layer": "single layers", "part": "in the costliest layer"}


def by_kind(blamed: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield blamed modules under a heading for each kind, as a layer's share of the KL holds those of its parts."""
    rows = [*blamed]
    for kind, heading in _KINDS.items():
        if alike := [row for row in rows if row.get("kind", "module") == kind]:
            yield heading, alike

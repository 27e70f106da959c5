"""Descriptions of metrics and comparisons that the terminal and the page share.

Tables list the metrics in the order of `METRICS`. `group_by_kind` puts headings on blamed modules.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

METRICS: Final = {
    "kl_mean": "mean KL (nats)",
    "kl_median": "median KL",
    "kl_p99": "99th percentile KL",
    "kl_p999": "99.9th percentile KL",
    "kl_max": "largest KL",
    "top1_agreement": "same top token",
    "top1_confident": "same top token where sure",
    "rms_dp": "RMS change, p(next token)",
    "ppl_ratio": "perplexity ratio",
    "logit_cosine": "cosine of logits",
    "logit_max_diff": "largest logit difference",
    "sqnr_min": "lowest SQNR of a layer (dB)",
    "router_jaccard_min": "router overlap",
}
LEGEND: Final = (
    "KL: divergence of the next token's probabilities from the original's, 0 if equal. Interval: by bootstrap over the "
    "prompts. Sure: where the original gives its top token at least 0.95. p(next token): probability of the token that "
    "does come next. Limits: one set for all recipes, 8 bits too (profile w4a16.yaml, which names its "
    "sources); --profile chooses others; a value between the two warns."
)
"""Meaning of the metrics' names."""
LEGEND_OF_EXPERTS: Final = (
    " Router overlap: of the experts that either model chooses for a token, the share that both choose, in the worst "
    "layer."
)
"""Meaning of a metric's name that models without experts lack."""
TITLES: Final = {
    "loss": "what quantization costs",
    "parity": "whether the packed weights compute the same as the dequantized ones",
}
"""Title of each comparison."""
COMPARED: Final = {
    "loss": "the original against the dequantized weights",
    "parity": "the dequantized weights in transformers against the packed weights in g4convert's own layers "
    "(vLLM and SGLang did not run; `--engine vllm` does)",
}
"""The two sides of each comparison."""
DIFFERS: Final = {
    "loss": "the answers differ too much from the original's",
    "parity": "the packed path differs from the dequantized weights",
}
"""Meaning of metrics beyond their limits, by comparison."""
UNTOLD: Final = {
    "loss": "whether the answers differ too much from the original's cannot be told",
    "parity": "whether the packed path differs from the dequantized weights cannot be told",
}
"""Meaning of metrics that are inconclusive, by comparison."""
EQUAL: Final = (
    "yes, to the last bit, in all {tokens:,} predictions, so the packing is right. They ran in g4convert's own layers; "
    "`verify --engine vllm` tries vLLM's"
)
"""Result of a comparison without any difference."""
ALIKE: Final = "yes, within all limits, with a mean KL of {kl_mean:.2g} over {tokens:,} predictions"
"""Result of a comparison with small differences."""
SWAPPED: Final = {"loss": "the original's weights", "parity": "the dequantized weights"}
"""The weights that a module gets while its share is measured, by comparison."""
LOWER_BOUND: Final = (
    "KL comes out about 3 % low, measured on one model in 4 bits, as the reference holds only the likeliest tokens; "
    "limits are the same"
)
"""Note on the KL to a stored reference."""
COSTLY: Final = {
    "loss": "which modules cost most",
    "parity": "which modules run differently from what is written",
}
"""Title of each table of blame."""
_KINDS: Final = {"module": "", "role": "all layers", "layer": "the costliest layers", "part": "in the costliest layer"}


def group_by_kind(blamed: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield blamed modules under a heading for each kind, as a layer's share of the KL holds those of its parts."""
    rows = [*blamed]
    for kind, heading in _KINDS.items():
        if alike := [row for row in rows if row.get("kind", "module") == kind]:
            yield heading, alike

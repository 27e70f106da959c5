"""Compares two sets of logits, in a few numbers for people.

Compare in float32, and a quantized model with its dequantized twin: bf16 rounding flips routers, and the cost of four
bits hides everything else.
"""

from dataclasses import dataclass

import torch

from g4convert.errors import GateError


@dataclass(frozen=True, slots=True)
class LogitsDifference:
    """Distance of one set of logits from another; `reference` is the largest |logit| of the first."""

    max_abs: float
    kl_mean: float
    top1_agreement: float
    reference: float

    @property
    def relative(self) -> float:
        """Largest difference, divided by the largest logit."""
        return self.max_abs / self.reference


def compare(expected: torch.Tensor, actual: torch.Tensor) -> LogitsDifference:
    """Compare logits of the same prompt, both float32 [tokens, vocabulary].

    Returns:
        The difference; `kl_mean` is KL(expected, actual) in nats, averaged over tokens.

    Raises:
        GateError: a logit is not finite: nothing could be concluded.
    """
    for name, values in (("expected", expected), ("found", actual)):
        if not bool(values.isfinite().all()):
            raise GateError(f"{name} logits: {int((~values.isfinite()).sum())} of {values.numel()} are not finite")
    log_p, log_q = expected.double().log_softmax(-1), actual.double().log_softmax(-1)
    return LogitsDifference(
        max_abs=float((expected - actual).abs().max()),
        kl_mean=max(0.0, float((log_p.exp() * (log_p - log_q)).sum(-1).mean())),
        top1_agreement=float((expected.argmax(-1) == actual.argmax(-1)).float().mean()),
        reference=float(expected.abs().max()),
    )

"""Compiled inner loops of the comparison of logits: reduce two rows over the vocabulary to a few float64 sums.

For rows a and b with maxima A and B, in one pass over both:

    sum e^(a - A)    sum e^(b - B)    sum e^(a - A) (a - b)         the KL and both log-sum-exps
    sum x x    sum y y    sum x y    max |x - y|                    of the logits x, y before the softcap

torch needs some twenty passes over memory for these; here a row stays in the cache, which takes 5 ns per logit of a
pair of rows instead of 100. Sums are float64 because scores are differences: the KL of a good parity is 1e-10. The
exponential is a polynomial of degree 13 on [-ln 2 / 2, ln 2 / 2], right but for the last bit or two, since calls of
the library's exponential would not be vectorized.
"""

from functools import partial
from typing import Final

import numpy as np

from g4convert.array_types import F32, F64
from g4convert.jit import jit

COLUMNS: Final = 9
"""Columns of `score_rows`: KL, the log-sum-exp of a and of b, argmax of a and of b, cosine, largest difference,
whether a and b are finite."""

_LOG2E: Final = 1.4426950408889634
_LN2_HIGH: Final = 6.93147180369123816490e-01
_LN2_LOW: Final = 1.90821492927058770002e-10
_LEAST: Final = np.float64(-700)
"""Least argument of `_exp`: e^-700 vanishes beside 1."""
_ZERO: Final = np.float64(0)


@jit
def _exp(x: np.float64) -> np.float64:
    """Return e^x for x in [-700, 0]."""
    n = np.floor(x * _LOG2E + 0.5)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    high = 1 / 40320 + r * (1 / 362880 + r * (1 / 3628800 + r * (1 / 39916800 + r * (1 / 479001600 + r / 6227020800))))
    low = 1 / 24 + r * (1 / 120 + r * (1 / 720 + r * (1 / 5040 + r * high)))
    p = 1.0 + r * (1.0 + r * (0.5 + r * (1 / 6 + r * low)))
    power: np.float64 = (np.int64((np.int64(n) + 1023) << 52)).view(np.float64)
    result: np.float64 = p * power
    return result


@jit
def _find_peak(row: F32) -> tuple[np.float64, int]:
    """Return the largest value and its first place; undefined for a row with a nan."""
    best, where = row[0], 0
    for i in range(row.size):
        if row[i] > best:
            best, where = row[i], i
    return np.float64(best), where


@partial(jit, reorder=True)
def _is_finite(row: F32) -> bool:
    zero = _ZERO
    for i in range(row.size):
        zero += np.float64(row[i]) * _ZERO
    return bool(zero == _ZERO)


@partial(jit, reorder=True)
def _sum_powers(a: F32, b: F32, high_a: np.float64, high_b: np.float64) -> tuple[np.float64, np.float64, np.float64]:
    sum_a, sum_b, drift = _ZERO, _ZERO, _ZERO
    for i in range(a.size):
        p, q = np.float64(a[i]), np.float64(b[i])
        e = _exp(max(p - high_a, _LEAST))
        sum_a += e
        sum_b += _exp(max(q - high_b, _LEAST))
        drift += e * (p - q)
    return sum_a, sum_b, drift


@partial(jit, reorder=True)
def _sum_products(x: F32, y: F32) -> tuple[np.float64, np.float64, np.float64]:
    xx, yy, xy = _ZERO, _ZERO, _ZERO
    for i in range(x.size):
        p, q = np.float64(x[i]), np.float64(y[i])
        xx += p * p
        yy += q * q
        xy += p * q
    return xx, yy, xy


@jit
def _largest_difference(x: F32, y: F32) -> np.float64:
    most = np.float64(0)
    for i in range(x.size):
        away = abs(np.float64(x[i]) - np.float64(y[i]))
        most = max(most, away)
    return most


@jit
def score_rows(a: F32, b: F32, x: F32, y: F32, out: F64) -> None:
    """Compare rows of logits.

    Args:
        a: the reference's logits after the softcap, float32 [r, V].
        b: the candidate's logits after the softcap.
        x: the reference's logits before the softcap.
        y: the candidate's logits before the softcap.
        out: float64 [r, COLUMNS], the output. For rows with a logit that is not finite, only the last two columns are
            set, and the log-sum-exp and argmax of a if a is finite.
    """
    for row in range(a.shape[0]):
        known, finite = _is_finite(a[row]), _is_finite(b[row])
        out[row, 7], out[row, 8] = known, finite
        high_a, best_a = _find_peak(a[row])
        high_b, best_b = _find_peak(b[row])
        if not (known and finite):
            if known:
                out[row, 1], out[row, 3] = high_a + np.log(_sum_powers(a[row], a[row], high_a, high_a)[0]), best_a
            continue
        sum_a, sum_b, drift = _sum_powers(a[row], b[row], high_a, high_b)
        log_a, log_b = high_a + np.log(sum_a), high_b + np.log(sum_b)
        xx, yy, xy = _sum_products(x[row], y[row])
        out[row, 0] = max(drift / sum_a - ((high_a - high_b) + (np.log(sum_a) - np.log(sum_b))), _ZERO)
        out[row, 1], out[row, 2], out[row, 3], out[row, 4] = log_a, log_b, best_a, best_b
        lengths = np.sqrt(xx) * np.sqrt(yy) if xx != yy else xx
        out[row, 5] = xy / lengths if lengths > _ZERO else np.float64(xx == yy)
        out[row, 6] = _largest_difference(x[row], y[row])


@jit
def log_sums(rows: F32, out: F64) -> None:
    """Fill `out` [r, 3] for rows [r, V]: log-sum-exp, place of the largest logit, and whether all are finite."""
    for row in range(rows.shape[0]):
        out[row, 2] = _is_finite(rows[row])
        if out[row, 2]:
            high, best = _find_peak(rows[row])
            total, _, _ = _sum_powers(rows[row], rows[row], high, high)
            out[row, 0], out[row, 1] = high + np.log(total), best

"""What a difference of accuracies is worth."""

from __future__ import annotations

import math


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided McNemar p-value for two networks on the same images.

    lost, gained: images that only the first, only the second gets right. Under the null each such image is a
    coin toss: p = min(1, 2·P[Bin(lost + gained, 1/2) ≤ min(lost, gained)]).

    >>> round(mcnemar(2, 10), 4)
    0.0386
    """
    total, fewer = lost + gained, min(lost, gained)
    tail = ways = 1  # ways: total choose k, each from the one before
    for k in range(fewer):
        ways = ways * (total - k) // (k + 1)
        tail += ways
    return float(min(1.0, 2 * tail / 2**total))


def at_least(k: int, n: int, p: float) -> float:
    """P[Bin(n, p) ≥ k], p in (0, 1].

    >>> round(at_least(9, 10, 0.5), 4)
    0.0107
    """
    if k <= 0 or p >= 1:
        return 1.0
    log = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k, n + 1)]
    terms = (math.exp(one + i * math.log(p) + (n - i) * math.log1p(-p)) for i, one in enumerate(log, k))
    return min(1.0, math.fsum(terms))

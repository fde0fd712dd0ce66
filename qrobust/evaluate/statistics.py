"""What a difference of accuracies is worth."""

from __future__ import annotations


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

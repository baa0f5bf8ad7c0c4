"""In which order channels can go so that what is left makes up for them: arithmetic on second moments."""

from __future__ import annotations

import numpy as np

RIDGE = 1e-4  # added to the covariance, relative to its mean diagonal


def eliminate(covariance: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Return what each of n channels costs when they go one by one, the cheapest first, float64 [n].

    `covariance` [n, n] is that of the channels, `gram` [n, n] the products of the weights that read them: the
    mean square of what they yield is ``trace(gram @ covariance)``. After each step the weights of those left
    are the best that make up for it. A channel costs what its step adds to the mean square error, and no less
    than those that went before it. Source: Hassibi and Stork, Optimal Brain Surgeon, 1992, a channel at a
    time.
    """
    size = len(covariance)
    ridge = RIDGE * np.trace(covariance) / size + 1e-30
    inverse, gram = np.linalg.inv(covariance + ridge * np.eye(size)), gram.astype(np.float64)
    found, order, worst = np.zeros(size), np.arange(size), 0.0
    for last in range(size - 1, -1, -1):  # what has gone lies behind last
        here = np.arange(last + 1)
        costs = gram[here, here] / inverse[here, here]
        one = int(costs.argmin())
        for array in (order, gram, gram.T, inverse, inverse.T):
            array[[one, last]] = array[[last, one]]
        found[order[last]] = worst = max(worst, float(costs[one]))
        left = slice(last)
        share = inverse[last, left] / inverse[last, last]  # of it in each that is left, with the sign turned
        half = share * (gram[last, last] / 2) - gram[last, left]
        gram[left, left] += np.outer(share, half) + np.outer(half, share)
        inverse[left, left] -= np.outer(share, inverse[last, left])
    return found

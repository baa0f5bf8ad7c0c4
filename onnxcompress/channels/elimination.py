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
    found, left, worst = np.zeros(size), np.ones(size, bool), 0.0
    for _ in range(size):
        costs = np.full(size, np.inf)
        costs[left] = np.diag(gram)[left] / np.diag(inverse)[left]
        one = int(costs.argmin())
        found[one] = worst = max(worst, float(costs[one]))
        left[one] = False
        share = inverse[one] / inverse[one, one]  # of one in each channel left, with the sign turned
        row = gram[one].copy()
        gram += row[one] * np.outer(share, share) - np.outer(row, share) - np.outer(share, row)
        inverse -= np.outer(share, inverse[one])
        inverse[one, one] = 1  # it has gone: whatever is not zero
    return found

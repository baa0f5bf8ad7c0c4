"""The data: 1,797 real 8x8 scans of handwritten digits, bundled with scikit-learn.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998; CC BY 4.0.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TEST_SIZE = 597
CALIBRATION_SIZE = 200


@dataclass(frozen=True)
class Digits:
    """Images [n, 1, 8, 8] float32 in 0..1 with their labels [n] int64."""

    image: np.ndarray
    labels: np.ndarray


def load() -> tuple[Digits, Digits]:
    """Return the training part (1,200 images) and the test part (597), stratified by digit."""
    digits = load_digits()
    image = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    train_image, test_image, train_labels, test_labels = train_test_split(
        image, labels, test_size=TEST_SIZE, stratify=labels, random_state=0
    )
    return Digits(train_image, train_labels), Digits(test_image, test_labels)

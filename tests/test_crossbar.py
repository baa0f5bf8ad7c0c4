import numpy as np
import pytest

from onnxcompress.crossbar import array_size, crossbars
from onnxcompress.errors import UsageError


def test_a_matrix_takes_cells_for_every_bit_and_whole_arrays() -> None:
    matrix = np.ones((130, 20), np.float32)  # 130 rows, 20 outputs of 16 bits in cells of 2: 160 columns
    assert crossbars([matrix], (128, 128), 16) == (4, 130, 160, 4, 130, 160)
    assert crossbars([matrix], (128, 128), 8) == (2, 130, 80, 2, 130, 80)


def test_rows_and_columns_of_zeros_can_be_saved() -> None:
    matrix = np.ones((130, 20), np.float32)
    matrix[:2] = 0
    matrix[:, 16:] = 0
    assert crossbars([matrix, matrix], (128, 128), 16) == (8, 260, 320, 2, 256, 256)


@pytest.mark.parametrize("text", ["128", "128x", "0x8", "axb", "128x128x2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="such as 128x128"):
        array_size(text)

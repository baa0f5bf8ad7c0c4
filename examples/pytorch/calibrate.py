"""Static int8 with calibration data from a PyTorch ``DataLoader``.

    python calibrate.py IN.onnx OUT.onnx images.npz

PyTorch is needed only to make a loader: `Images` takes anything that is gone through like one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from onnxcompress import Compressed, compress


@dataclass(frozen=True)
class Images:
    """The images of the first `count` batches of a `loader` of (images, labels), read anew for each pass.

    The loader should not shuffle: passes go through the data more than once and expect the same order.
    """

    loader: Iterable[tuple[Any, Any]]
    count: int

    def __iter__(self) -> Iterator[np.ndarray]:
        for images, _ in islice(self.loader, self.count):
            yield images.numpy()


def quantize(source: str, output: str, loader: Iterable[tuple[Any, Any]], batches: int = 16) -> Compressed:
    """Write the model `source` in int8 to `output`, the ranges of its activations found on `batches`."""
    return compress(source, "simplify,fuse,quant", data=Images(loader, batches), output=output)


def main() -> None:
    """Quantize with the arrays "image" and "labels" of an .npz file as a data set."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    source, output, file = sys.argv[1:]
    arrays = np.load(file)
    images, labels = (torch.from_numpy(arrays[name]) for name in ("image", "labels"))
    report = quantize(source, output, DataLoader(TensorDataset(images, labels), batch_size=16)).report
    print(f"{report.before.bytes:,} -> {report.after.bytes:,} bytes")


if __name__ == "__main__":
    main()

"""What each scheme of few bits costs in accuracy, and what it saves in bytes, without retraining.

    python benchmarks/schemes.py [--model MODEL CALIBRATION TEST ...] [--preprocess imagenet]

Each model is rewritten by each recipe of SCHEMES, between ``simplify`` and ``encode``, and run on the test
data. A table is printed: the size of the file as a share of the original's, and how many points of top-1
accuracy are lost; the head tells the accuracy before. Data are what ``--calib`` and ``--eval`` take; the test
data have labels. Without a model, three of testdata are taken. Recipes with passes that aren't there are left
out. ``--only WORD ...`` takes the schemes with one of these in their name. All runs in one thread.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxcompress import compress
from onnxcompress.data import Data, load_data
from onnxcompress.errors import UsageError
from onnxcompress.model import load
from onnxcompress.recipe import as_recipe
from onnxcompress.runtimes import OnnxRuntime

TESTDATA = Path(__file__).parent.parent / "testdata"
DEFAULT = [
    (
        str(TESTDATA / f"{name}_digits.onnx"),
        *(str(TESTDATA / f"digits_{part}.npz") for part in ("calib", "test")),
    )
    for name in ("lenet5", "residual", "depthwise")
]
SCHEMES = {
    "float32, encoded": "",
    "half precision": "cast",
    "int8 weights": "quant(activations=none)",
    "int8, static": "quant(activations=static, gate=off)",
    "fixed point 8 bits, activations 10": "quant-fixed(activation_bits=10)",
    "fixed point 8, 8": "quant-fixed",
    "fixed point 6, 8": "quant-fixed(bits=6)",
    "fixed point 4, 8": "quant-fixed(bits=4)",
    "fixed point 4, 8, errors made up for": "quant-fixed(bits=4, importance=inputs)",
    "fixed point 4, 4": "quant-fixed(bits=4, activation_bits=4)",
    "mixed: ends 8, others 4 bits; 8": "quant-fixed(bits=4, keep_ends=true),quant-fixed",
    "powers of two, 4 bits": "quant-log",
    "powers of two, 5 bits": "quant-log(bits=5)",
    "powers of sqrt2, 4 bits": "quant-log(base=sqrt2)",
    "powers of sqrt2, 5 bits": "quant-log(bits=5, base=sqrt2)",
    "powers of sqrt2, 5 bits, errors made up for": "quant-log(bits=5, base=sqrt2, importance=inputs)",
    "codebook 8 bits": "cluster(bits=8)",
    "codebook 6 bits": "cluster(bits=6)",
    "codebook 4 bits": "cluster(bits=4)",
    "ternary": "ternarise",
    "ternary, two scales": "ternarise(scales=two)",
    "ternary, two scales, errors made up for": "ternarise(scales=two, importance=inputs)",
    "binary": "binarise",
    "binary, errors made up for": "binarise(importance=inputs)",
    "binary, and binary activations": "binarise(activations=sign)",
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs=3, action="append", metavar=("MODEL", "CALIBRATION", "TEST"))
    parser.add_argument("--preprocess", help="how images become arrays")
    parser.add_argument("--only", nargs="+", default=[""], help="words in the names of schemes")
    given = parser.parse_args()
    subjects = [Subject(*paths, given.preprocess) for paths in given.model or DEFAULT]
    heads = [f"{each.name} ({each.accuracy:.1f} %)" for each in subjects]
    print("|", " | ".join(["scheme", "recipe", *heads]), "|")
    print("|---" * (2 + len(subjects)) + "|")
    for scheme, recipe in SCHEMES.items():
        if any(word in scheme for word in given.only) and known(recipe):
            cells = [each.tried(recipe) for each in subjects]
            print("|", " | ".join([scheme, f"`{recipe}`" if recipe else "", *cells]), "|", flush=True)


def known(recipe: str) -> bool:
    """Return whether there are the passes and options that `recipe` names."""
    try:
        return not recipe or bool(as_recipe(recipe))
    except UsageError:
        return False


class Subject:
    """A model, its data, and what it gets right."""

    def __init__(self, path: str, calibration: str, test: str, preprocess: str | None) -> None:
        model = load(path)
        self.name, self.path = Path(path).stem, path
        self.size = Path(path).stat().st_size
        self.calibration: Data = load_data(calibration, model, preprocess=preprocess)
        data = load_data(test, model, preprocess=preprocess)
        if data.labels is None:
            raise SystemExit(f"{test}: has no labels, expected an array or a labels.csv")
        self.labels: np.ndarray = data.labels
        self.feeds = list(data)
        self.accuracy = self._right(path)

    def tried(self, recipe: str) -> str:
        """Return the size after `recipe`, as a share, and the points that it costs."""
        passes = ",".join(["simplify", *([recipe] if recipe else []), "encode"])
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "small.onnx"))
            compress(
                self.path,
                passes,
                output=path,
                data=self.calibration,
                verify="off",
                threads=1,
                measure_latency=False,
            )
            lost = self.accuracy - self._right(path)
            return f"{100 * Path(path).stat().st_size / self.size:.1f} %, {lost:+.1f}"

    def _right(self, path: str) -> float:
        """Return how many test samples in 100 the model at `path` gets right."""
        runnable = OnnxRuntime(threads=1).prepare(Path(path))
        found: Sequence[np.ndarray] = [next(iter(runnable.run(feed).values())) for feed in self.feeds]
        classes = np.concatenate([each.reshape(len(each), -1).argmax(axis=1) for each in found])
        return 100 * float(np.mean(classes == self.labels[: len(classes)]))


if __name__ == "__main__":
    main()

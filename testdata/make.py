"""Remake the models and data files of this folder: ``python testdata/make.py [name ...]``."""

import argparse
from pathlib import Path

import digits
import numpy as np
import onnx
from export import accuracy, parameters
from models import (
    bottleneck_digits,
    branch_digits,
    depthwise_digits,
    factorised_digits,
    lenet5_digits,
    lenet300_digits,
    masked_digits,
    residual_digits,
    shufflenet_digits,
    transformer_digits,
)
from training import seed

HERE = Path(__file__).parent
MODELS = {
    "lenet300_digits": lenet300_digits.make,
    "lenet5_digits": lenet5_digits.make,
    "depthwise_digits": depthwise_digits.make,
    "residual_digits": residual_digits.make,
    "shufflenet_digits": shufflenet_digits.make,
    "bottleneck_digits": bottleneck_digits.make,
    "factorised_digits": factorised_digits.make,
    "masked_digits": masked_digits.make,
    "transformer_digits": transformer_digits.make,
    "branch_digits": branch_digits.make,
}


def main() -> None:
    """Write the data files, then train, export, check and measure each named model (default: all)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of {', '.join(MODELS)}")
    names = parser.parse_args().names or list(MODELS)
    if unknown := set(names) - set(MODELS):
        parser.error(f"unknown model {', '.join(sorted(unknown))}, expected one of {', '.join(MODELS)}")

    train, test = digits.load()
    np.savez_compressed(HERE / "digits_test.npz", image=test.image, labels=test.labels)
    np.savez_compressed(HERE / "digits_calib.npz", image=train.image[: digits.CALIBRATION_SIZE])

    for name in names:
        seed()
        model = MODELS[name](train)
        onnx.checker.check_model(model, full_check=True)
        path = HERE / f"{name}.onnx"
        onnx.save(model, path)
        scores = [f"{accuracy(path, test, batch):.2%}" for batch in (1, 64)]
        row = [
            f"`{name}`",
            f"{model.opset_import[0].version}",
            f"{parameters(model):,}",
            f"{path.stat().st_size:,}",
            " / ".join(dict.fromkeys(scores)),
        ]
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()

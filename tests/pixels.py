"""A model that takes small images, images for it, and all that a source of data gives."""

import numpy as np
import onnx_ir as ir


def model(inputs="float[batch, 1, 8, 8] image"):
    body = "y = Constant <value_float: float = 1.0> ()"
    return ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float y) {{ {body} }}'
    )


def images(count=5, seed=0):
    return np.random.default_rng(seed).random((count, 1, 8, 8), np.float32)


def joined(data, name="image"):
    return np.concatenate([feeds[name] for feeds in data])

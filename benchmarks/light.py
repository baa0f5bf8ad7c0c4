"""The nine light_* architectures that ship inside the onnx package, with seeded random weights.

``python benchmarks/light.py FOLDER [NAME ...] [--divide N]`` writes them. The package keeps their weights as
ConstantOfShape nodes to save space; here each becomes an initializer: He-normal for weights, values that keep
activations alive for normalisation. ``--divide`` makes narrow copies, every channel count a fraction of the
original. The models keep their opset (9) and their initializers listed as inputs, as old exporters wrote
them.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
from onnx import numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = sorted(path.stem.removeprefix("light_") for path in FOLDER.glob("light_*.onnx"))
CLASSES, KERNEL = 1000, 11  # sizes that aren't channel counts


def build(name: str, divide: int = 1, seed: int = 0) -> onnx.ModelProto:
    """Return the architecture `name` (one of NAMES) with weights drawn from `seed`, 1 / `divide` as wide."""
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    graph = model.graph
    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    readers = {value: (node, place) for node in graph.node for place, value in enumerate(node.input)}
    arrays = {
        value: array
        for value, array in stored.items()
        if value in readers and readers[value][0].op_type != "ConstantOfShape"
    }
    for value, array in arrays.items():
        node, _ = readers[value]
        if node.op_type == "Reshape":
            arrays[value] = np.array([_narrow(each, divide) for each in array], np.int64)
        else:
            arrays[value] = array[tuple(slice(_narrow(each, divide)) for each in array.shape)]
    draw = np.random.default_rng(seed)
    for node in [each for each in graph.node if each.op_type == "ConstantOfShape"]:
        shape = [_narrow(each, divide) for each in stored[node.input[0]].tolist()]
        arrays[node.output[0]] = _weight(tuple(shape), *readers[node.output[0]], draw)
        graph.node.remove(node)
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(array, value) for value, array in arrays.items())
    inputs = [each for each in graph.input if each.name not in stored]
    del graph.input[:]
    graph.input.extend(inputs)
    graph.input.extend(
        onnx.helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in graph.initializer
    )
    del graph.value_info[:]
    return model


def _narrow(size: int, divide: int) -> int:
    return size if size <= KERNEL or size == CLASSES else size // divide


def _weight(
    shape: tuple[int, ...], reader: onnx.NodeProto, place: int, draw: np.random.Generator
) -> np.ndarray:
    if len(shape) > 1:
        weight = draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif reader.op_type == "BatchNormalization":
        scale, bias = draw.uniform(0.5, 1.5, shape), draw.normal(0, 0.1, shape)
        mean, variance = draw.normal(0, 0.1, shape), draw.uniform(0.5, 1.5, shape)
        weight = (scale, bias, mean, variance)[place - 1]
    elif reader.op_type == "Unsqueeze":  # the scale of a Mul after a normalisation
        weight = draw.uniform(0.8, 1.2, shape)
    else:
        weight = draw.normal(0, 0.01, shape)
    return weight.astype(np.float32)


def raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return `model` in the operator set `opset`, its initializers no inputs any more."""
    stored = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = 8
    return onnx.version_converter.convert_version(model, opset)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], default=NAMES)
    parser.add_argument("--divide", type=int, default=1)
    parser.add_argument("--opset", type=int, help="raise them to this operator set")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for each in given.names or NAMES:
        made = build(each, given.divide)
        if given.opset:
            made = raised(made, given.opset)
        onnx.save(made, given.folder / f"{each}.onnx")
        print(given.folder / f"{each}.onnx")

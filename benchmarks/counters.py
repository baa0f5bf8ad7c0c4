"""Multiply-adds of the nine light architectures beside those that two other programs count.

    python -m venv counters && counters/bin/pip install onnx-tool qonnx
    python benchmarks/counters.py counters/bin/python

qonnx's inference_cost sums the multiply-adds of convolutions and products. onnx_tool counts much more besides
(activations, normalisation, pooling), so that only its rows of these are taken, and as it counts a bias as a
multiply-add for each output, that is taken off.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import light
import onnx

from onnxcompress.analysis import analyze
from onnxcompress.model import load

COUNT = """
import contextlib, io, json, sys
import onnx, onnx_tool
from qonnx.analysis.inference_cost import inference_cost
from qonnx.core.modelwrapper import ModelWrapper

model = onnx.load(sys.argv[1])
sizes = {}
for each in (*model.graph.value_info, *model.graph.output):
    sizes[each.name] = 1
    for dim in each.type.tensor_type.shape.dim:
        sizes[each.name] *= dim.dim_value
with contextlib.redirect_stdout(io.StringIO()):
    found = inference_cost(ModelWrapper(sys.argv[1]), discount_sparsity=False)["total_cost"]
    tool = onnx_tool.Model(sys.argv[1])
    tool.graph.shape_infer(None)
    tool.graph.profile()
rows = [each for each in model.graph.node if each.op_type in ("Conv", "Gemm", "MatMul")]
summed = sum(int(tool.graph.nodemap[each.name].macs[0]) for each in rows)
biases = sum(sizes[each.output[0]] for each in rows if len(each.input) > 2)
macs = sum(int(value) for key, value in found.items() if key.startswith("op_mac"))
print(json.dumps([macs, summed - biases]))
"""


def main(python: str) -> None:
    """Print a line for each architecture; exit with 1 where a count differs."""
    equal = True
    print("| architecture | analyze | qonnx | onnx_tool |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        for name in light.NAMES:
            model = onnx.shape_inference.infer_shapes(light.raised(light.build(name), 13))
            for number, node in enumerate(model.graph.node):
                node.name = f"node{number}"
            onnx.save(model, path)
            done = subprocess.run([python, "-c", COUNT, path], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            counts = [analyze(load(model)).total.macs, *json.loads(done.stdout.splitlines()[-1])]
            print(f"| {name} | {' | '.join(f'{each:,}' for each in counts)} |", flush=True)
            equal = equal and len(set(counts)) == 1
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main(sys.argv[1])

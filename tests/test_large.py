"""Models larger than one protobuf, or than memory: at sizes that tests can afford."""

import signal
import subprocess
import sys
from pathlib import Path

import decoder
import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import onnxruntime
import pytest
from make_large import model as large_model

from onnxcompress import pipeline
from onnxcompress.errors import CompressError
from onnxcompress.model import check, convert_up, load, save, to_proto, weight_bytes

MIB = 2**20


def chain(layers: int, width: int) -> onnx.ModelProto:
    """Return a chain of `layers` products with [width, width] float32 matrices."""
    nodes = [onnx.helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(layers)]
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal((width, width), np.float32) / width, f"w{i}")
        for i in range(layers)
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", width])
        for name in ("v0", f"v{layers}")
    ]
    graph = onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])


def run(path: Path, width: int) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"v0": np.ones((2, width), np.float32)})[0]


def test_chooses_external_data_when_one_file_would_be_too_large(tmp_path: Path) -> None:
    model = load(chain(4, 64))
    size = weight_bytes(model)
    save(model, tmp_path / "small.onnx", limit=size + 4000)
    save(model, tmp_path / "large.onnx", limit=size)
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "large.onnx", "large.onnx.data"}
    assert (tmp_path / "large.onnx").stat().st_size < 4000
    np.testing.assert_array_equal(run(tmp_path / "large.onnx", 64), run(tmp_path / "small.onnx", 64))


def test_refers_to_external_data_by_its_bare_name_at_aligned_places(tmp_path: Path) -> None:
    source = chain(3, 520)
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(300, np.int8), "few"))
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1030, np.int8), "some"))
    save(load(source), tmp_path / "out.onnx", external_data=True)
    stored = {
        each.name: each
        for each in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    }
    assert not stored.pop("few").external_data
    places = {
        name: {each.key: each.value for each in tensor.external_data} for name, tensor in stored.items()
    }
    assert {place["location"] for place in places.values()} == {"out.onnx.data"}
    assert all(int(place["offset"]) % 64 == 0 for place in places.values())
    assert all(int(places[name]["offset"]) % 4096 == 0 for name in ("w0", "w1", "w2"))


def test_models_of_the_benchmark_are_described_without_making_their_weights() -> None:
    model = large_model(3_000_000_000)
    assert 3.0e9 < weight_bytes(model) < 3.2e9
    assert max(each.const_value.nbytes for each in model.graph.initializers.values()) == 128 * MIB
    assert convert_up(model, 21)


def test_refuses_one_protobuf_of_more_than_two_gigabytes() -> None:
    with pytest.raises(CompressError, match="over 2 GB"):
        to_proto(large_model(3_000_000_000))


HALVE = """
import re, sys
from pathlib import Path
import numpy as np
from onnxcompress.model import lazy, load, save

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

peak = 0

def halved(weight):
    global peak
    result = weight / 2
    peak = max(peak, anonymous())
    return result

before = anonymous()
model = load(sys.argv[1])
for value in model.graph.initializers.values():
    value.const_value = lazy(value.const_value, halved)
save(model, sys.argv[2], external_data=sys.argv[3] == "True")
print(peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its memory")
@pytest.mark.parametrize("external", [False, True])
def test_reads_changes_and_writes_with_a_few_weights_in_memory(tmp_path: Path, external: bool) -> None:
    save(load(chain(16, 1024)), tmp_path / "in.onnx", external_data=external)
    arguments = [tmp_path / "in.onnx", tmp_path / "out.onnx", external]
    done = subprocess.run(
        [sys.executable, "-c", HALVE, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 3 * 4 * MIB + 8 * MIB  # of the weights, 4 MiB each, and what loading imports
    result = load(tmp_path / "out.onnx").graph.initializers["w7"].const_value.numpy()
    np.testing.assert_array_equal(
        result, onnx.numpy_helper.to_array(chain(16, 1024).graph.initializer[7]) / 2
    )


READ = """
import re, sys
from pathlib import Path
from onnxcompress import Context
from onnxcompress.model import load
from onnxcompress.registry import passes

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

model = load(sys.argv[1])
each = passes()[sys.argv[2]](**eval(sys.argv[3]))
before = resident()
each.call(model, Context())
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its memory")
@pytest.mark.parametrize(("name", "options"), [("cast", {}), ("quant-blocks", {"when": "always"})])
def test_what_passes_read_of_a_file_does_not_stay_in_memory(
    name: str, options: dict[str, str], tmp_path: Path
) -> None:
    save(load(chain(16, 1024)), tmp_path / "in.onnx", external_data=True)
    arguments = [tmp_path / "in.onnx", name, options]
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 24 * MIB  # of 64


@pytest.mark.parametrize(
    "recipe",
    [
        "quant-blocks(when=always,activations=float),encode",
        "quant-blocks(when=always,activations=float,contrib=false,symmetric=false)",
        "prune",
        "cast",
        "cluster",
    ],
)
def test_a_large_model_becomes_the_same_with_any_number_of_workers(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "LARGE", 1)  # so that weights stay in the file until they are written
    save(load(chain(6, 192)), tmp_path / "in.onnx", external_data=True)
    written = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        folder.mkdir()
        done = pipeline.compress(
            tmp_path / "in.onnx", recipe, output=folder / "out.onnx", verify="off", jobs=jobs
        )
        assert sum(record.changed for record in done.report.steps[0].records) == 6
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    assert len(written[0]) == 2


INTERRUPTED = """
import sys, time
from onnxcompress import blockwise, cli, pipeline

pipeline.LARGE = 1

def slow(layer, weight):
    print("computing", flush=True)
    time.sleep(0.2)
    return weight

blockwise.matrix = slow
cli.main(["compress", *sys.argv[1:]])
"""


def test_ctrl_c_while_workers_compute_leaves_nothing_and_says_so_in_one_line(tmp_path: Path) -> None:
    save(load(chain(16, 64)), tmp_path / "in.onnx", external_data=True)
    arguments = ["in.onnx", "out.onnx", "--passes", "quant-blocks(when=always,activations=float)"]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *arguments, "--verify", "off", "--jobs", "2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "computing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said.strip() == "onnxcompress: interrupted; nothing was written"
    assert process.returncode == 130
    assert {path.name for path in tmp_path.iterdir()} == {"in.onnx", "in.onnx.data"}


def test_the_language_model_of_the_benchmark_is_described_without_making_its_weights() -> None:
    model = decoder.model(32)
    assert 13.4e9 < weight_bytes(model) < 13.6e9
    check(model)


def test_the_check_of_the_benchmark_tells_a_weight_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("WIDTH", 64), ("HEADS", 4), ("INSIDE", 96), ("TOKENS", 50)):
        monkeypatch.setattr(decoder, name, size)
    monkeypatch.setattr(
        decoder,
        "SHAPES",
        {
            name: (96 if rows > 4096 else 64, 96 if columns > 4096 else 64)
            for name, (rows, columns) in decoder.SHAPES.items()
        },
    )
    save(decoder.model(2), tmp_path / "in.onnx", external_data=True)
    recipe = "quant-blocks(when=always,activations=float,min_size=0),encode"
    made = pipeline.compress(tmp_path / "in.onnx", recipe, output=tmp_path / "out.onnx", verify="end")
    assert made.report.comparison is not None
    assert made.report.comparison.cosine > 0.95
    assert "15 products in blocks; layer 1" in decoder.checked(tmp_path / "in.onnx", tmp_path / "out.onnx")
    broken = load(tmp_path / "out.onnx")
    node = next(node for node in broken.graph if node.op_type == "MatMulNBits")
    node.attributes["N"] = ir.AttrInt64("N", 32)
    save(broken, tmp_path / "broken.onnx")
    with pytest.raises(AssertionError):
        decoder.checked(tmp_path / "in.onnx", tmp_path / "broken.onnx")

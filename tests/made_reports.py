"""Reports to render: of a run for real, and ones made by hand with names that are out for trouble."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

from onnxcompress.analysis import Analysis, Memory
from onnxcompress.analysis.rows import Row as Node
from onnxcompress.base import Record, Width
from onnxcompress.details import Details, Noise, Values, Weight
from onnxcompress.energy import Energy, Spent
from onnxcompress.formats.unpack import Row
from onnxcompress.measure import Latency
from onnxcompress.pipeline import compress
from onnxcompress.report import Report, Size, Step
from onnxcompress.trials import Mixed, Sensitivity
from onnxcompress.trials import Row as Trial
from onnxcompress.verify import Comparison
from onnxcompress.zoo import Job, Outcome

TESTDATA = Path(__file__).parent.parent / "testdata"
HOSTILE = "</style></svg><script>alert(1)</script><img src=http://x.example/\"onerror=alert(1)>&'\x00\ud800"


@functools.cache
def real() -> Report:
    """Return the report of prune, quant and encode on a trained network."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return compress(
            TESTDATA / "lenet5_digits.onnx",
            "prune(sparsity=0.8),cluster(bits=4),encode",
            data=TESTDATA / "digits_calib.npz",
            evaluation=TESTDATA / "digits_test.npz",
            output=folder / "out.onnx",
            report_file=folder / "report.json",
            command="onnxcompress compress in.onnx out.onnx",
        ).report


def comparison(**changes: object) -> Comparison:
    values = {
        "samples": 4,
        "exact": False,
        "snr": 20.0,
        "cosine": 1.0,
        "largest_difference": 0.5,
        "worst_output": "y",
    }
    return Comparison(**{**values, **changes})  # type: ignore[arg-type]


def made(name: str = "layer", layers: int = 3, size: int = 500, ratio: float = 0.5) -> Report:
    """Return a report about layers, and with all else, called `name`."""
    names = [f"{name}{number}" for number in range(layers)]
    values = Values(1000, 10, -1.0, 0.05, [number % 7 for number in range(40)])
    changed = [Record(each, True, name, {"snr": 12.5}) for each in names]
    widths = [Width(32, 1.0, 1.0, 1.0), Width(17, 0.9, 0.8, 1.1), Width(16, ratio, 0.2, 0.7, True)]
    kept = [Record(each, False, f"too small {name}") for each in names]
    return Report(
        version="1",
        recipe=name,
        verify="each",
        source=name,
        before=Size(1000, 10, 10),
        after=Size(size, 10, 5),
        steps=[Step(name, "lossy", 0.5, [*changed, *kept], comparison(), {name: name}, size, widths)],
        notes=[name],
        comparison=comparison(random=True),
        evaluation=comparison(agreement=0.5, predictions=8, top1=(0.75, size / 1000)),
        latency=Latency(0.002, ratio, 0.4, 0.6, 30),
        output=name,
        target=name,
        decoded=1200,
        details=Details(
            [Row(each, "float", 100) for each in names],
            [Row(each, name, 50) for each in names],
            [Weight(each, values, values, 0.25) for each in names],
            [Noise(each, None if each == names[0] else 0.001, 0.01) for each in names],
            [Spent(name, layers, 6e6, 3e6, 1e6), Spent(name, 1, None, None, None)],
            [Spent(name, layers, 1e6, 1e6, 0.0)],
        ),
        mixed=Mixed(
            tuple(Trial(each, (), name, name, 100, comparison()) for each in names),
            dict.fromkeys(names[1:], name),
            layers,
            layers - 1,
        ),
    )


def alone(name: str = "layer", layers: int = 4) -> Sensitivity:
    """Return what layers called `name` lose by two schemes; the second leaves the first layer alone."""
    rows = []
    for number in range(layers):
        layer, found = f"{name}{number}", comparison(agreement=0.5, top1=(0.75, 0.5 + number / 1000))
        rows.append(Trial(layer, (), "prune", "pruned", 100, replace(found, snr=30.0 - number % 20)))
        rows.append(Trial(layer, (), name, name, -50, found if number else None))
    return Sensitivity("1", "hash", 1000, tuple(rows))


def outcomes(name: str = "net", jobs: int = 4) -> list[Outcome]:
    """Return how jobs ended whose model is called `name`: the last failed for `name`, the others are done."""
    found = []
    for number in range(jobs):
        job = Job(
            model="a.onnx", passes=f"prune(sparsity=0.{number % 9 + 1})", name=name, recipe=f"r{number}"
        )
        figures = {"bytes_before": 1000, "bytes_after": 100 + number, "random": 0, "snr": 20.0 + number % 7}
        figures |= {"top1_before": 0.9, "top1_after": 0.8 + number % 5 / 100, "latency_ratio": 0.5}
        found.append(Outcome(job=job, status="done", seconds=2.5, figures=figures, resumed=number == 1))
    found[-1] = replace(found[-1], status="failed", figures={}, message=name)
    return found


def analysis(name: str = "node", nodes: int = 3) -> Analysis:
    """Return an analysis of nodes, and of a model, called `name`; the last node isn't counted."""
    names = [f"{name}{number}" for number in range(nodes)]
    figures = {
        "parameters": 10,
        "macs": 2000,
        "effective_macs": 1000,
        "written": 500,
        "moved_bytes": 400,
        "bound": name,
    }
    energy = {"compute_energy": 3000.0, "sram_energy": 2000.0, "dram_energy": 1000.0}
    rows = [Node(each, name, roofline_seconds=1e-6, **figures, **energy) for each in names[:-1]]  # type: ignore[arg-type]
    live = [1000 * (number % 7) for number in range(nodes)]
    return Analysis(
        source=name,
        version="1",
        shapes={name: (1, 2)},
        target=name,
        machine=None,
        energy=Energy(),
        rows=[*rows, Node(names[-1], name, unknown=name)],
        total=Node("all", "", **figures, **energy),  # type: ignore[arg-type]
        memory=Memory(max(live), max(live), False, names, live[::-1], live),
        file_bytes=100,
        notes=[name],
    )

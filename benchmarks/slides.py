"""Tables of published slides recomputed from the architectures: counts, data reuse, and how they correlate.

    python benchmarks/slides.py

Sources: Jha et al., The Ramifications of Making Deep Neural Networks Compact, VLSI Design 2019 (parameters,
MACs, MACs for each activation, memory footprint, correlations); Zhang et al., ShuffleNet, CVPR 2018, table 1;
Howard et al., MobileNets, 2017, tables 1 and 2.

The slides count as Caffe has layers: the input is one, a batch normalisation is two (BatchNorm and Scale, in
the light models followed by a Mul and an Add that are one), Dropout is one, and running means and variances
are no parameters. `caffe_counts` makes that of our counts.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import light
import nets
import onnx

from onnxcompress.analysis import Analysis, analyze
from onnxcompress.analysis.tables import pearson
from onnxcompress.model import load


class Published(NamedTuple):
    """A line of the slides: millions of parameters and MACs, MACs for each activation, MB of footprint."""

    parameters: float
    macs: float
    reuse: float
    footprint: float


V5 = (2, 4, 14, 1)
SAME = ""
GRID = "224 x 224, first pooling padded by 1; 227 x 227, as published, has 4 M more in the first convolution"
V5_NOTE = "the paper's figure gives 2, 4, 14 and 1 modules, the slides have 2-3 % more parameters"
CAFFE = "pooling rounded up as Caffe does; as the ONNX file has it, "
MODELS: dict[str, tuple[Published, Callable[[], onnx.ModelProto], str]] = {
    "AlexNet": (Published(60.97, 723, 353, 1015), lambda: sized("bvlc_alexnet", 227), "227 x 227"),
    "SqueezeNet V1.0": (
        Published(1.25, 848, 69, 615),
        lambda: nets.squeezenet(224),
        "224 x 224, last convolution padded by 1; at 227 x 227 861 M",
    ),
    "SqueezeNet V1.1": (Published(1.24, 349, 48, 587), lambda: light.build("squeezenet"), SAME),
    "1.0-G-SqNxt-23": (Published(0.54, 221, 12, 1019), lambda: nets.squeezenext(group=2), GRID),
    "1.0-SqNxt-23": (Published(0.72, 273, 15, 885), nets.squeezenext, GRID),
    "1.0-SqNxt-23v5": (Published(0.93, 225, 16, 867), lambda: nets.squeezenext(1, V5, 5), V5_NOTE),
    "2.0-SqNxt-23": (Published(2.36, 726, 23, 995), lambda: nets.squeezenext(2), GRID),
    "2.0-SqNxt-23v5": (Published(3.22, 703, 29, 957), lambda: nets.squeezenext(2, V5, 5), V5_NOTE),
    "1.0 MobileNet-224": (Published(4.23, 574, 28, 733), nets.mobilenet, "the paper says 569 M"),
    "DenseNet-121": (
        Published(7.98, 3080, 44, 1405),
        lambda: rounded_up("densenet121", 1),
        CAFFE + "2834 M",
    ),
    "GoogLeNet": (Published(7.00, 1590, 158, 801), lambda: rounded_up("inception_v1", 0), CAFFE + "1432 M"),
    "InceptionV2": (
        Published(11.2, 2220, 122, 987),
        lambda: rounded_up("inception_v2", 1),
        CAFFE + "2019 M; the slides' padding isn't told",
    ),
}
SHUFFLENET = {1: 143, 2: 140, 3: 137, 4: 133, 8: 137}  # million MACs


def sized(name: str, side: int) -> onnx.ModelProto:
    """Return a light architecture for images of `side` pixels."""
    model = light.build(name)
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = side
    return model


def rounded_up(name: str, pad: int) -> onnx.ModelProto:
    """Return a light architecture whose pooling with stride 2 rounds sizes up, padded by `pad` if 3 x 3."""
    model = light.build(name)
    for node in model.graph.node:
        found = {each.name: each.ints for each in node.attribute if each.ints}
        if node.op_type not in ("AveragePool", "MaxPool"):
            continue
        if list(found["strides"]) == [2, 2]:
            before = pad if found["kernel_shape"][0] == 3 else 0
            found["pads"][:] = [before, before, before + 1, before + 1]
        elif found["kernel_shape"][0] == 7 and pad:  # over all of what are 8 x 8 now
            found["kernel_shape"][:] = [8, 8]
    return model


def caffe_counts(model: onnx.ModelProto, found: Analysis) -> tuple[float, float, float]:
    """Return parameters, MACs and activations as Caffe has layers."""
    norms = [row for row in found.rows if row.op == "BatchNormalization"]
    scaled = any(row.op == "Mul" for row in found.rows)
    written = (found.total.written or 0) + sum(map(math.prod, found.shapes.values()))
    again = [row for row in found.rows if row.op == "Add"] if scaled else norms
    written += (-1 if scaled else 1) * sum(row.written or 0 for row in again)
    drops = {node.input[0] for node in model.graph.node if node.op_type == "Dropout"}
    makers = {node.output[0]: node.name or node.output[0] for node in model.graph.node}
    sizes = {row.name: row.written or 0 for row in found.rows}
    written += sum(sizes[makers[value]] for value in drops)
    running = sum(row.parameters // (1 if scaled else 2) for row in norms)
    return found.total.parameters - running, found.total.macs or 0, written


def main() -> None:
    """Print the tables."""
    print("| model | parameters | slides | | MACs | slides | | MACs/act. | slides | | remark |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    counts, analyses = {}, {}
    for name, (said, build, remark) in MODELS.items():
        model = build()
        analyses[name] = analyze(load(model))
        p, m, a = counts[name] = caffe_counts(model, analyses[name])
        print(
            f"| {name} | {p / 1e6:.2f} M | {said.parameters} | {p / 1e6 / said.parameters - 1:+.1%} "
            f"| {m / 1e6:.0f} M | {said.macs} | {m / 1e6 / said.macs - 1:+.1%} "
            f"| {m / a:.1f} | {said.reuse} | {m / a / said.reuse - 1:+.1%} | {remark} |",
            flush=True,
        )
    correlations(counts, analyses)
    print("\n| ShuffleNet 1x | g = 1 | 2 | 3 | 4 | 8 |\n|---|---|---|---|---|---|")
    found = [(analyze(load(nets.shufflenet(g))).total.macs or 0) / 1e6 for g in SHUFFLENET]
    print("| MACs | " + " | ".join(f"{each:.0f} M" for each in found) + " |")
    print("| paper | " + " | ".join(f"{each} M" for each in SHUFFLENET.values()) + " |")
    mobilenet_table()


def correlations(counts: dict[str, tuple[float, float, float]], analyses: dict[str, Analysis]) -> None:
    """Print how figures go together, beside what the slides say."""
    said = [MODELS[name][0] for name in counts]
    parameters, macs, activations = zip(*counts.values(), strict=True)
    footprint = [each.footprint for each in said]
    both = [p + a for p, a in zip(parameters, activations, strict=True)]
    print("\n| correlation | here | slides |\n|---|---|---|")
    rows = [
        ("parameters, the slides' footprint", pearson(parameters, footprint), "0.24"),
        ("activations, the slides' footprint", pearson(activations, footprint), "0.75"),
        ("their sum, the slides' footprint", pearson(both, footprint), "0.82"),
    ]
    by_size = [f / (4e-6 * p) for f, p in zip(footprint, parameters, strict=True)]
    ratio = [a / p for a, p in zip(activations, parameters, strict=True)]
    rows.append(("footprint / size, activations / parameters", pearson(by_size, ratio), "0.96"))
    for batch in (1, 128):
        efficiency = [m / energy(each, batch) for m, each in zip(macs, analyses.values(), strict=True)]
        for what, parts, published in (
            ("parameter", parameters, "-0.18"),
            ("activation", activations, "0.88"),
        ):
            reuse = [m / part for m, part in zip(macs, parts, strict=True)]
            told = published if batch > 1 else ""
            rows.append((f"MACs/{what}, MACs/energy at batch {batch}", pearson(efficiency, reuse), told))
    for what, here, there in rows:
        print(f"| {what} | {here:+.2f} | {there} |")


def energy(found: Analysis, batch: int) -> float:
    """Return the picojoules of an image in a batch: weights are moved once, all comes from DRAM."""
    held = sum(row.weight_bytes for row in found.rows if row.moved_bytes)
    moved = (found.total.moved_bytes or 0) - held + held / batch
    on, off = found.energy.moving(1, 1)
    return (found.total.compute_energy or 0) + moved * (on + off)


def mobilenet_table() -> None:
    """Print the layers of MobileNet, and what share of MACs and parameters each kind has."""
    found = analyze(load(nets.mobilenet()))
    layers = [row for row in found.rows if row.op in ("Conv", "Gemm")]
    print("\n| MobileNet | MACs | parameters |\n|---|---|---|")
    kinds: dict[str, list[int]] = {}
    for number, row in enumerate(layers):
        kind = (
            "3x3"
            if number == 0
            else "FC"
            if row.op == "Gemm"
            else "1x1"
            if row.matrix == "gemm"
            else "3x3 dw"
        )
        print(f"| {number + 1} {kind} | {(row.macs or 0) / 1e6:.2f} M | {row.parameters:,} |")
        known = kinds.setdefault(kind, [0, 0])
        kinds[kind] = [known[0] + (row.macs or 0), known[1] + row.parameters]
    all_macs, weights = sum(row.macs or 0 for row in layers), sum(row.parameters for row in layers)
    published = {
        "1x1": "94.86 %, 74.59 %",
        "3x3 dw": "3.06 %, 1.06 %",
        "3x3": "1.19 % (sic), 0.02 %",
        "FC": "0.18 %, 24.33 %",
    }
    print("\n| kind | share of MACs | of parameters | paper |\n|---|---|---|---|")
    for kind, (macs, parameters) in kinds.items():
        print(f"| {kind} | {macs / all_macs:.2%} | {parameters / weights:.2%} | {published[kind]} |")


if __name__ == "__main__":
    main()

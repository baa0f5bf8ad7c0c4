"""If, Loop and Scan: the operators that run subgraphs. Source: the ONNX operator specification, opset 9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

Values = dict[ir.Value, Any]
Attributes = Mapping[str, ir.Attr]


class Body(Protocol):
    """A subgraph made ready to run."""

    @property
    def outputs(self) -> Sequence[ir.Value]:
        """The values it returns."""
        ...

    def run(self, values: Values, inputs: Sequence[Any] = ()) -> list[Any]:
        """Return the outputs; `values` are those of the outer graphs."""
        ...


def run_if(
    attributes: Attributes, bodies: Mapping[str, Body], inputs: Sequence[Any], values: Values
) -> list[Any]:
    """Return what the chosen branch returns."""
    return bodies["then_branch" if inputs[0].item() else "else_branch"].run(values)


def run_loop(
    attributes: Attributes, bodies: Mapping[str, Body], inputs: Sequence[Any], values: Values
) -> list[Any]:
    """Return the values carried from turn to turn, then the values of all turns, stacked."""
    body = bodies["body"]
    limit = None if inputs[0] is None else inputs[0].item()
    going = len(inputs) < 2 or inputs[1] is None or bool(inputs[1].item())
    carried = list(inputs[2:])
    turns: list[list[Any]] = []
    while going and (limit is None or len(turns) < limit):
        again, *results = body.run(values, [np.array(len(turns)), np.array(True), *carried])
        carried, going = results[: len(carried)], bool(again.item())
        turns.append(results[len(carried) :])
    scanned = body.outputs[1 + len(carried) :]
    return [*carried, *(_stacked([turn[i] for turn in turns], value) for i, value in enumerate(scanned))]


def run_scan(
    attributes: Attributes, bodies: Mapping[str, Body], inputs: Sequence[Any], values: Values
) -> list[Any]:
    """Return the states after the last turn, then the values of all turns, stacked."""
    body = bodies["body"]
    count = attributes["num_scan_inputs"].as_int()
    states, sequences = list(inputs[:-count]), inputs[-count:]
    scanned = body.outputs[len(states) :]

    def setting(name: str, length: int) -> Sequence[int]:
        return attributes[name].as_ints() if name in attributes else [0] * length

    axes, backward = setting("scan_input_axes", count), setting("scan_input_directions", count)
    rows = [np.moveaxis(each, axis, 0) for each, axis in zip(sequences, axes, strict=True)]
    rows = [np.flip(each, 0) if back else each for each, back in zip(rows, backward, strict=True)]
    turns = []
    for turn in range(len(rows[0])):
        results = body.run(values, [*states, *(each[turn] for each in rows)])
        states = results[: len(states)]
        turns.append(results[len(states) :])
    axes, backward = (
        setting("scan_output_axes", len(scanned)),
        setting("scan_output_directions", len(scanned)),
    )
    return [
        *states,
        *(
            _stacked([turn[i] for turn in (turns[::-1] if backward[i] else turns)], value, axes[i])
            for i, value in enumerate(scanned)
        ),
    ]


def _stacked(arrays: Sequence[np.ndarray], value: ir.Value, axis: int = 0) -> np.ndarray:
    """Return `arrays` stacked along a new `axis`; if there are none, an empty array typed like `value`."""
    if arrays:
        return np.stack(arrays, axis)
    dims = [dim if isinstance(dim, int) else 0 for dim in value.shape or ()]
    dims.insert(axis if axis >= 0 else len(dims) + 1 + axis, 0)
    return np.empty(dims, (value.dtype or ir.DataType.FLOAT).numpy())


CONTROL = {"If": run_if, "Loop": run_loop, "Scan": run_scan}

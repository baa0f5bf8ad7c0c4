"""Channels in another order: wherever labels go, constants follow; a few nodes permute what is left over.

The channels of a family get the order that serves the layers that are grouped, and stay where they were for
all others: every weight and constant that goes along is sliced anew, as for a removal, but nothing goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.find import Channels, walk
from onnxcompress.channels.labels import TangledError, matched
from onnxcompress.channels.removal import Removal, arranged
from onnxcompress.channels.repair import Aim
from onnxcompress.channels.surgery import Cuts, spellable
from onnxcompress.channels.units import Units
from onnxcompress.layers import Layer, constant

_MAKERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Grouping:
    """A convolution to be grouped: the group of each of its channels, int64 [inputs] and [outputs].

    `before` and `behind` are made by Identity nodes; there its channels may be permuted. Groups are blocks
    of what the convolution reads and makes, one after the other.
    """

    node: ir.Node
    before: ir.Value
    behind: ir.Value
    inputs: np.ndarray
    outputs: np.ndarray

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return int(self.inputs.max()) + 1

    def renumbered(self, numbers: np.ndarray) -> Grouping:
        """Return it with groups that have other `numbers` [groups]."""
        return replace(self, inputs=numbers[self.inputs], outputs=numbers[self.outputs])


@dataclass
class Reordered(Removal):
    """The flow of all labels of `old` in another order.

    `orders` gives the order of what begins at a node, int64 [its channels]. At a value of `parted` they are
    permuted so that groups, [channels before], lie one after the other; at one of `joined` so that the
    labels are these. `places` says, for both, which channel comes where.
    """

    orders: Mapping[ir.Node, np.ndarray] = field(kw_only=True)
    parted: Mapping[ir.Value, np.ndarray] = field(kw_only=True)
    joined: Mapping[ir.Value, np.ndarray] = field(kw_only=True)
    places: dict[ir.Value, np.ndarray] = field(default_factory=dict)

    def fresh(self, node: ir.Node, count: int) -> np.ndarray:
        """Return the labels that begin at `node`, in their order."""
        found = super().fresh(node, count)
        return found[self.orders[node]] if node in self.orders else found

    def put(self, value: ir.Value, labels: np.ndarray) -> None:
        """Say that `value` has `labels`, permuted where it is a place for it."""
        super().put(value, labels)
        now = self.arrays[value]
        if value in self.joined:
            self.places[value] = matched(self.joined[value], now.ravel())
        elif value in self.parted:
            came = matched(now.ravel(), self.old.labels(value).ravel())
            self.places[value] = _parting(self.parted[value][came])
        else:
            return
        self.arrays[value] = now.take(self.places[value], 1)


def _parting(group: np.ndarray) -> np.ndarray:
    """Return the order that puts channels of one `group` [channels] together: none where they are.

    Within a group they lie as in the blocks they come from, the first of each block before the second: where
    each block has as many of each group, one after the other, that is the shuffle of ShuffleNet.
    """
    if (np.diff(group) >= 0).all():
        return np.arange(len(group))
    size = len(group) // (int(group.max()) + 1)
    place = np.arange(len(group))
    return np.lexsort((place // size, place % size, group))


def reordered(
    channels: Channels, groupings: Sequence[Grouping], absorb: bool = True
) -> tuple[Reordered, Cuts, list[Grouping]]:
    """Return how the channels go for `groupings`, how to slice the constants, and the groupings renumbered.

    With `absorb` whole families get an order in which groups lie one after the other, so that nothing needs
    to be permuted there. A family whose order can't be followed everywhere keeps its own.
    """
    families = _Families(channels.units)
    while True:
        if absorb:
            families.settle(groupings)
        flow = Reordered(
            channels.flow.example,
            channels.flow.refusals,
            old=channels.flow,
            kept=np.ones(channels.flow.count, bool),
            orders=families.orders(groupings),
            parted={each.before: each.inputs for each in families.done or groupings},
            joined={each.behind: families.sorted(each.behind) for each in groupings},
        )
        try:
            cuts = arranged(flow, partial(walk, channels.model))
            spellable(channels.model, flow)
        except TangledError as error:
            families.give_up(error)
        else:
            return flow, cuts, families.done or list(groupings)


def aims(model: ir.Model, flow: Reordered, grouped: Collection[ir.Node]) -> list[Aim]:
    """Return the layers of the reordered `model` to repair: the `grouped` ones, and what comes after them."""
    found: list[Aim] = []
    for node in model.graph:
        linear = node.op_type in ("Conv", "Gemm", "MatMul") and node.domain in ("", "ai.onnx")
        if not linear or constant(node.inputs[1]) is None or not (found or node in grouped):
            continue
        layer = Layer(node, 1)
        if len(layer.weight.uses()) == 1:
            key = node, 1, (layer.channel_axes[-1],)
            moved = key in flow.rides
            order = matched(flow.rides[key].labels, flow.old.rides[key].labels) if moved else None
            found.append(Aim(layer, order))
    return found


class _Families:
    """The order of each family: that of the unit numbers, or one that `settle` found."""

    def __init__(self, units: Units) -> None:
        self.units = units
        self.rank = np.arange(units.count)  # of each unit in its family
        self.settled: dict[int, None] = {}
        self.done: list[Grouping] = []
        self._kept: set[int] = set()

    def settle(self, groupings: Sequence[Grouping]) -> None:
        """Let families lie as the first of `groupings` at them needs it, and renumber groups as they lie."""
        self.rank, self.settled, self.done = np.arange(self.units.count), {}, []
        for number, each in enumerate(groupings):
            made = each
            for value, group in ((each.before, each.inputs), (each.behind, each.outputs)):
                numbers = self._numbers(value, group)
                if numbers is not None:
                    made = each.renumbered(numbers)
                    break
            self._settle(made.before, made.inputs, ())
            self._settle(made.behind, made.outputs, groupings[number + 1 :])
            self.done.append(made)

    def orders(self, groupings: Sequence[Grouping]) -> dict[ir.Node, np.ndarray]:
        """Return the order of what begins at each node, where it isn't that of before."""
        flow, found = self.units.flow, {}
        outputs = {each.node: each.outputs for each in self.done or groupings}
        for source in flow.sources:
            units = self.units.of[source.start : source.stop]
            family = int(self.units.family[units[0]]) if len(units) else -1
            rank = self.rank[units] if family in self.settled else np.arange(len(units))
            group = outputs.get(source.node, np.zeros(len(units)))
            if source.node in outputs or family in self.settled:
                found[source.node] = np.lexsort((rank, group))
        return found

    def sorted(self, value: ir.Value) -> np.ndarray:
        """Return the labels of `value` in the order of their family."""
        labels = self.units.flow.labels(value).ravel()
        if self._family(value) not in self.settled:
            return labels
        return np.asarray(labels[np.argsort(self.rank[self.units.of[labels]])])

    def give_up(self, error: TangledError) -> None:
        """Let the families that meet at the node of `error` keep their order."""
        if not self.settled:
            raise error
        node, flow = error.node, self.units.flow
        values = [] if node is None else [v for v in (*node.inputs, *node.outputs) if v in flow.arrays]
        labels = [flow.arrays[value].ravel() for value in values]
        met = set(self.units.family[self.units.of[np.concatenate(labels)]].tolist()) if labels else set()
        self._kept |= met & set(self.settled) or set(self.settled)

    def _family(self, value: ir.Value) -> int | None:
        """Return the family of which `value` holds every unit once, if it may get another order."""
        units = self.units.of[self.units.flow.labels(value).ravel()]
        number = int(self.units.family[units[0]])
        if number < 0 or number in self._kept or len(np.unique(units)) < len(units):
            return None
        (family,) = [each for each in self.units.families if self.units.family[each.units[0]] == number]
        whole = len(units) == len(family.units) and (self.units.family[units] == number).all()
        plain = all(node.op_type in _MAKERS for node in family.layers)
        if not whole or not plain or self.units.frozen[family.units].any():
            return None
        return number if all(map(self._once, family.layers)) else None

    def _once(self, node: ir.Node) -> bool:
        """Return whether no two channels of `node` are of one unit."""
        sources = [each for each in self.units.flow.sources if each.node is node]
        return all(
            len(np.unique(self.units.of[each.start : each.stop])) == each.stop - each.start
            for each in sources
        )

    def _settle(self, value: ir.Value, group: np.ndarray, later: Iterable[Grouping]) -> None:
        """Give the family at `value` an order by `group`, if it has none yet.

        Within groups it serves the first of `later` that reads the family, if each has as many of each group.
        """
        family = self._family(value)
        if family is None or family in self.settled:
            return
        units = self.units.of[self.units.flow.labels(value).ravel()]
        second = np.zeros(self.units.count, np.int64)
        for each in later:
            if self._family(each.before) == family:
                second[self.units.of[self.units.flow.labels(each.before).ravel()]] = each.inputs
                crossed = np.unique(np.stack([group, second[units]]), axis=1, return_counts=True)[1]
                if len(crossed) < each.groups**2 or len(np.unique(crossed)) > 1:
                    second[:] = 0
                break
        order = np.lexsort((self.rank[units], second[units], group))
        self.rank[units[order]] = np.sort(self.rank[units])
        self.settled[family] = None

    def _numbers(self, value: ir.Value, group: np.ndarray) -> np.ndarray | None:
        """Return which block of the order at `value` holds each group; None where none does."""
        if self._family(value) not in self.settled:
            return None
        rank = self.rank[self.units.of[self.units.flow.labels(value).ravel()]]
        groups = int(group.max()) + 1
        block = np.argsort(np.argsort(rank)) * groups // len(rank)
        pairs = np.unique(np.stack([group, block]), axis=1)
        return np.asarray(pairs[1]) if pairs.shape[1] == groups else None

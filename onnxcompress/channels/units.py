"""Units, what lives or dies together, and the groups that must keep equally many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.balance import balancer
from onnxcompress.channels.flow import Flow
from onnxcompress.channels.labels import components
from onnxcompress.evaluate import label

_FILLERS = ("Pad", "Expand")  # what they add is as wide as what it meets


@dataclass(frozen=True)
class Family:
    """Units that span the same layers: `units` by number, and the layers whose output channels they are."""

    units: np.ndarray
    layers: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """The name of its first layer."""
        return self.layers[0].name or label(self.layers[0])


@dataclass(frozen=True)
class Part:
    """Units of a family that begin at the same layers, `sources` of the flow by number.

    A family has several where its layers differ in width, as before and behind a Pad of channels.
    """

    units: np.ndarray
    sources: frozenset[int]


class Units:
    """The units of a flow: `of` gives the unit of each label, `families` those that span the same layers."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        roots = flow.roots()
        _, self.of = np.unique(roots, return_inverse=True)
        self.count = int(self.of.max(initial=-1)) + 1
        self._reason = np.full(self.count, -1)
        for number, (labels, _) in reversed(list(enumerate(flow.frozen))):
            self._reason[self.of[labels]] = number
        self.frozen = self._reason >= 0

    def reason(self, unit: int) -> str | None:
        """Return why `unit` can't go, or None."""
        number = int(self._reason[unit])
        return None if number < 0 else self.flow.frozen[number][1]

    def freeze(self, units: np.ndarray, reason: str) -> None:
        """Say that `units` can't go for `reason`."""
        self.flow.frozen.append((np.zeros(0, np.int64), reason))
        self._reason[units[~self.frozen[units]]] = len(self.flow.frozen) - 1
        self.frozen[units] = True

    @cached_property
    def family(self) -> np.ndarray:
        """The family of each unit by number; -1 for what stands for no channel."""
        begun = np.full(self.flow.count, -1)
        for number, source in enumerate(self.flow.sources):
            begun[source.start : source.stop] = number
        labels = np.flatnonzero(begun >= 0)
        first = np.full(self.count, len(self.flow.sources))
        np.minimum.at(first, self.of[labels], begun[labels])
        roots = components(len(self.flow.sources), begun[labels], first[self.of[labels]])
        return np.where(first < len(roots), np.r_[roots, -1][first], -1)

    @cached_property
    def families(self) -> list[Family]:
        """The families, in the order of their first layers."""
        order = np.argsort(self.family, kind="stable")
        numbers, starts = np.unique(self.family[order], return_index=True)
        members = dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True))
        layers: dict[int, dict[ir.Node, None]] = {}
        for source in self.flow.sources:
            if source.stop > source.start:
                layers.setdefault(int(self.family[self.of[source.start]]), {})[source.node] = None
        return [Family(members[number], tuple(layers[number])) for number in sorted(layers)]

    @cached_property
    def parts(self) -> list[Part]:
        """The units of each family apart by the layers they begin at, those of most layers first."""
        entries = [
            np.stack([self.of[source.start : source.stop], np.full(source.stop - source.start, number)])
            for number, source in enumerate(self.flow.sources)
        ]
        if not entries:
            return []
        unit, source = np.unique(np.concatenate(entries, axis=1), axis=1)
        units, starts = np.unique(unit, return_index=True)
        fillers = {n for n, each in enumerate(self.flow.sources) if each.node.op_type in _FILLERS}
        members: dict[tuple[int, frozenset[int]], list[int]] = {}
        for each, sources in zip(units.tolist(), np.split(source, starts[1:]), strict=True):
            layers = frozenset(sources.tolist()) - fillers
            members.setdefault((int(self.family[each]), layers), []).append(each)
        order = sorted(members, key=lambda key: (key[0], -len(key[1])))
        return [Part(np.array(members[key]), key[1]) for key in order]

    @cached_property
    def width(self) -> np.ndarray:
        """How many channels of a layer that makes it a unit is, such as those of a head, int [units].

        The greatest common divisor where layers differ; 0 for what stands for no channel.
        """
        found = np.zeros(self.count, np.int64)
        for source in self.flow.sources:
            units, counts = np.unique(self.of[source.start : source.stop], return_counts=True)
            found[units] = np.gcd(found[units], counts)
        return found

    @cached_property
    def groups(self) -> list[list[np.ndarray]]:
        """What must stay equal: lists of blocks, each the units that have a channel in it (once for each)."""
        rows = []
        found: list[tuple[int, str, np.ndarray, np.ndarray]] = []
        for number, each in enumerate(self.flow.blocks):
            units = self.of[each.labels]
            if self.frozen[units].all() or (each.order == "rows" and self._whole(units, each.block)):
                continue
            found.append((number, each.order, units, each.block))
            if each.order == "rows":
                rows.append((number, units, each.block))
        equal = [_apart(units, block) for _, order, units, block in found if order != "parts"]
        for number, units, block in rows:
            for later, order, others, places in found:
                if later > number and order != "equal":
                    equal += _crossed(units, block, others, places)
        return [blocks for blocks in equal if len(blocks) > 1]

    @staticmethod
    def _whole(units: np.ndarray, block: np.ndarray) -> bool:
        """Return whether every block lies within one unit, so that it goes as a whole."""
        pairs = np.unique(np.stack([block, units]), axis=1)
        return bool(len(np.unique(pairs[0])) == pairs.shape[1])

    def choose(
        self,
        score: np.ndarray,
        share: np.ndarray,
        multiple: Callable[[int], int] = lambda channels: 1,
        allowed: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return which units stay, bool [units]: those with the highest `score` [units].

        `share` [units] of each family goes, the same for all units of a family, as far as they are `allowed`
        [units, bool] to and not frozen. Of so many channels as `multiple` is given, a multiple of what it
        returns stays where no groups must stay equal, and what is kept too many is taken from the layers
        after, so that together they lose the share. No layer loses all, nor does
        a part that a reader takes of several.
        """
        free = ~self.frozen if allowed is None else allowed & ~self.frozen
        score = np.where(free, score, np.inf)
        free[[units[np.argmax(score[units])] for units in self.taken]] = False
        score = np.where(free, score, np.inf)
        gone = np.zeros(self.count, bool)
        bound = np.zeros(self.count, bool)
        for cells, equations in self._systems():
            bound[np.concatenate(cells)] = True
            self._lessen(gone, cells, equations, score, share, free)
        owed, served = 0.0, set[int]()  # what layers kept too much, as a share; layers that keep something
        for part in self.parts:
            units, least = part.units, 0 if part.sources <= served else 1
            if not bound[units].any():
                total, most = len(units), int(free[units].sum())
                step, wanted = self._step(units, multiple), share[units[0]] * total
                passed_on = 1 < step <= total - least and wanted > 0
                wanted += owed * total if passed_on else 0
                wanted = min(wanted, most)
                stay = max(total - int(wanted + 1e-9), least)
                stay = min(total, -(-stay // step) * step)
                owed = min(max(wanted - (total - stay), 0), step) / total if passed_on else owed
                gone[units[np.argsort(score[units], kind="stable")[: total - stay]]] = True
            if not gone[units].all():
                served |= part.sources
        return ~gone

    def _step(self, units: np.ndarray, multiple: Callable[[int], int]) -> int:
        """Return a multiple of how many stays of `units` of the same layers."""
        width = int(np.gcd.reduce(self.width[units]))
        wanted = multiple(len(units) * width)
        return wanted // gcd(wanted, width)

    @cached_property
    def taken(self) -> list[np.ndarray]:
        """The units of each part that a reader, such as a Split, takes of a value: none may lose all."""
        return [
            self.of[each.labels[each.block == part]]
            for each in self.flow.blocks
            if each.order == "parts"
            for part in np.unique(each.block[each.block > 0])
        ]

    @cached_property
    def wholes(self) -> list[np.ndarray]:
        """The units of each layer, and of each part that a reader takes: what never loses all."""
        made = [
            self.of[each.start : each.stop] for each in self.flow.sources if each.node.op_type not in _FILLERS
        ]
        return [units for units in (*made, *self.taken) if len(units)]

    def _lessen(
        self,
        gone: np.ndarray,
        cells: list[np.ndarray],
        equations: np.ndarray,
        score: np.ndarray,
        share: np.ndarray,
        free: np.ndarray,
    ) -> None:
        """Mark in `gone` what goes of `cells`, units alike to all groups, so that the `equations` hold."""
        sizes = np.array([len(cell) for cell in cells])
        most = np.array([free[cell].sum() for cell in cells])
        most = np.minimum(most, np.where(sizes > 1, sizes - 1, sizes))
        wanted = np.minimum(sizes * np.array([share[cell[0]] for cell in cells]), most)
        balanced = balancer(equations, most)
        for part in (1.0, 0.9, 0.75, 0.5, 0.25):
            counts = balanced(part * wanted)
            if counts is not None and counts.any():
                for cell, count in zip(cells, counts, strict=True):
                    gone[cell[np.argsort(score[cell], kind="stable")[:count]]] = True
                return

    def _systems(self) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Yield cells, units alike to all groups, with the equations on how many of each go.

        Groups that share no units, directly or over others, make systems of their own.
        """
        if not self.groups:
            return
        entries = [
            np.stack([units, np.full(len(units), number), np.full(len(units), place)])
            for number, blocks in enumerate(self.groups)
            for place, units in enumerate(blocks)
        ]
        incidence, times = np.unique(np.concatenate(entries, axis=1), axis=1, return_counts=True)
        units, starts = np.unique(incidence[0], return_index=True)
        links = components(self.count + len(self.groups), incidence[0], self.count + incidence[1])
        system: dict[int, dict[tuple[object, ...], list[int]]] = {}
        for unit, rows in zip(
            units.tolist(), np.split(np.arange(incidence.shape[1]), starts[1:]), strict=True
        ):
            key = (
                int(self.family[unit]),
                bool(self.frozen[unit]),
                incidence[1:, rows].tobytes(),
                times[rows].tobytes(),
            )
            system.setdefault(int(links[unit]), {}).setdefault(key, []).append(unit)
        member = dict(zip(units.tolist(), np.split(np.arange(incidence.shape[1]), starts[1:]), strict=True))
        for cells in system.values():
            chosen = [np.array(cell) for cell in cells.values()]
            yield chosen, self._equations(chosen, member, incidence, times)

    def _equations(
        self,
        cells: Sequence[np.ndarray],
        member: Mapping[int, np.ndarray],
        incidence: np.ndarray,
        times: np.ndarray,
    ) -> np.ndarray:
        """Return the equations [m, cells]: what a block loses less what the first block loses."""
        sums: dict[int, dict[int, np.ndarray]] = {}
        for column, cell in enumerate(cells):
            for row in member[int(cell[0])]:
                _, number, place = incidence[:, row].tolist()
                line = sums.setdefault(number, {}).setdefault(place, np.zeros(len(cells), np.int64))
                line[column] += times[row]
        rows = [
            blocks.get(place, np.zeros(len(cells), np.int64)) - next(iter(blocks.values()))
            for number, blocks in sums.items()
            for place in range(len(self.groups[number]))
        ]
        return np.array(rows)


def _apart(units: np.ndarray, block: np.ndarray) -> list[np.ndarray]:
    """Return the units of each block."""
    order = np.argsort(block, kind="stable")
    _, starts = np.unique(block[order], return_index=True)
    return np.split(units[order], starts[1:])


def _crossed(
    units: np.ndarray, block: np.ndarray, others: np.ndarray, places: np.ndarray
) -> list[list[np.ndarray]]:
    """Return for each of `places` the units in it, apart by `block`; [] where they share no units."""
    shared = np.intersect1d(units, others)
    if not len(shared):
        return []
    row = dict(zip(units.tolist(), block.tolist(), strict=True))
    inside = np.isin(others, shared)
    kept, where = others[inside], places[inside]
    rows = np.array([row[unit] for unit in kept.tolist()])
    return [_apart(kept[where == place], rows[where == place]) for place in np.unique(where)]

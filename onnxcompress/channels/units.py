"""Units, what lives or dies together, and the groups that must keep equally many of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.balance import balancer
from onnxcompress.channels.flow import Flow
from onnxcompress.channels.labels import components
from onnxcompress.evaluate import label


@dataclass(frozen=True)
class Family:
    """Units that span the same layers: `units` by number, and the layers whose output channels they are."""

    units: np.ndarray
    layers: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """The name of its first layer."""
        return self.layers[0].name or label(self.layers[0])


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
        self, score: np.ndarray, share: np.ndarray, multiple: int = 1, allowed: np.ndarray | None = None
    ) -> np.ndarray:
        """Return which units stay, bool [units]: those with the highest `score` [units].

        `share` [units] of each family goes, the same for all units of a family, as far as they are `allowed`
        [units, bool] to and not frozen; what stays of one is a multiple of `multiple` where no groups must
        stay equal. None loses all.
        """
        free = ~self.frozen if allowed is None else allowed & ~self.frozen
        score = np.where(free, score, np.inf)
        gone = np.zeros(self.count, bool)
        bound = np.zeros(self.count, bool)
        for cells, equations in self._systems():
            bound[np.concatenate(cells)] = True
            self._lessen(gone, cells, equations, score, share, free)
        for family in self.families:
            if bound[family.units].any():
                continue
            total, most = len(family.units), int(free[family.units].sum())
            stay = total - min(int(share[family.units[0]] * total + 1e-9), most)
            stay = min(total, -(-max(stay, 1) // multiple) * multiple)
            order = np.argsort(score[family.units], kind="stable")
            gone[family.units[order[: total - stay]]] = True
        return ~gone

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

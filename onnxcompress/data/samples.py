"""Samples for a model, read in order and grouped into feeds.

A *sample* is one value for each input, without the batch axis; a *feed* is what one run of the model takes.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, repeat
from typing import Protocol, TypeVar

import numpy as np

from onnxcompress.data.arrays import Array
from onnxcompress.data.inputs import Feeds, Input, check_dtype, check_names, fits
from onnxcompress.errors import UsageError

LABELS = "labels"  # the array of this name holds the true classes, unless the model has such an input

_Item = TypeVar("_Item")


class Samples(Protocol):
    """Samples of one source, numbered from 0."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def labels(self) -> np.ndarray | None:
        """Their true classes [count, integers], None where these are not known."""

    @property
    def batch(self) -> int | None:
        """How many of them every feed must have, None where any number will do."""

    @property
    def stacked(self) -> frozenset[str]:
        """The inputs whose samples lack the batch axis; samples of others go into a feed as they are."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what of the source is not used."""

    def read(self, wanted: Sequence[int]) -> Iterator[Feeds]:
        """Yield the samples of the ascending numbers `wanted`."""


def grouped(samples: Samples, wanted: Sequence[int], size: int) -> Iterator[Feeds]:
    """Yield the samples `wanted` in feeds of `size` samples, the last one perhaps of fewer."""
    stream = samples.read(wanted)
    while group := list(islice(stream, size)):
        yield {
            name: np.stack([each[name] for each in group]) if name in samples.stacked else value
            for name, value in group[0].items()
        }


@dataclass(frozen=True)
class Table:
    """Samples in arrays: one array an input, one row a sample."""

    columns: Mapping[str, "Column"]
    count: int
    labels: np.ndarray | None
    batch: int | None
    notes: tuple[str, ...] = ()

    @property
    def stacked(self) -> frozenset[str]:
        """The inputs whose rows lack the batch axis."""
        return frozenset(name for name, column in self.columns.items() if column.stacked)

    @property
    def likeness(self) -> list[tuple[tuple[int, ...], object]]:
        """What samples of one feed must have in common: shapes, and values that stand for every sample."""
        return [
            (column.shape, column.array.whole().tolist() if column.count is None else None)
            for column in self.columns.values()
        ]

    def read(self, wanted: Sequence[int]) -> Iterator[Feeds]:
        """Yield the samples of the ascending numbers `wanted`."""
        rows = [chosen(column.rows(), wanted) for column in self.columns.values()]
        for row in zip(*rows, strict=True):
            yield dict(zip(self.columns, row, strict=True))


@dataclass(frozen=True)
class Column:
    """The samples of one input: `count` rows of `shape`, or one value for every sample where `count` is None.

    `batch` is how many of them a feed must have (None: any number), `stacked` whether they lack the batch
    axis, `whole` whether the array is a single sample.
    """

    array: Array
    shape: tuple[int, ...]
    count: int | None = None
    batch: int | None = None
    stacked: bool = False
    whole: bool = False

    def rows(self) -> Iterator[np.ndarray]:
        """Yield the samples [shape] in order."""
        if self.count is None:
            return repeat(self.array.whole().reshape(self.shape))
        return self.array.read(self.whole)


def make_table(source: str, arrays: Mapping[str, Array], inputs: Mapping[str, Input]) -> Table:
    """Return the samples that `arrays` hold for `inputs`, the array "labels" being their labels.

    With a single input, a single array may have any name. Arrays have their samples along the first axis,
    which is the batch axis of the input or comes before its axes; a single sample may lack it. A single
    number stands for every sample. UsageError, beginning with `source`, where an input has no array, an
    array does not fit, or the arrays hold different numbers of samples, or none.
    """
    labels = None if LABELS in inputs else arrays.get(LABELS)
    others = {name: array for name, array in arrays.items() if array is not labels}
    if len(inputs) == len(others) == 1:
        others = dict(zip(inputs, others.values(), strict=True))
    check_names(source, others, inputs)
    columns = {name: _column(source, each, others[name]) for name, each in inputs.items()}
    counts = {column.count: name for name, column in columns.items() if column.count is not None}
    if len(counts) > 1:
        said = " and ".join(f"{count} of {name}" for count, name in counts.items())
        raise UsageError(f"{source}: there are {said}, expected as many samples of each input")
    count = next(iter(counts), 1)
    if count == 0:
        raise UsageError(f"{source}: holds no samples")
    spare = ", ".join(sorted(others.keys() - inputs))
    notes = (f"{source}: not inputs of the model and not used: {spare}",) if spare else ()
    return Table(columns, count, _labels(source, labels, count), _batch(source, columns), notes)


def _column(source: str, wanted: Input, array: Array) -> Column:
    check_dtype(source, wanted, array.dtype)
    shape = array.shape
    dims = (None, *shape[1:]) if wanted.dims is None else wanted.dims
    if array.size == 1 and all(dim == 1 for dim in dims):
        return Column(array, (1,) * len(dims))
    if len(shape) == len(dims) and fits(dims[1:], shape[1:]):
        return Column(array, shape[1:], shape[0], _number(dims[0]), stacked=True)
    if len(shape) == len(dims) + 1 and fits(dims, shape[1:]):
        return Column(array, shape[1:], shape[0], 1)
    if len(shape) == len(dims) - 1 and fits(dims[1:], shape):
        return Column(array, shape, 1, _number(dims[0]), stacked=True, whole=True)
    raise UsageError(f"{source}: input {wanted.name} is {list(shape)}, expected {wanted.expected}")


def _number(dim: int | str | None) -> int | None:
    return dim if isinstance(dim, int) else None


def _batch(source: str, columns: Mapping[str, Column]) -> int | None:
    """Return how many samples every feed must have, None where any number will do."""
    if all(column.count is None for column in columns.values()):
        return 1
    sizes = {column.batch: name for name, column in columns.items() if column.batch is not None}
    if len(sizes) > 1:
        said = " and ".join(f"{size} of {name}" for size, name in sizes.items())
        raise UsageError(
            f"{source}: a feed takes {said}, expected arrays of shape [samples, *shape of the input]"
        )
    return next(iter(sizes), None)


def _labels(source: str, array: Array | None, count: int) -> np.ndarray | None:
    if array is None:
        return None
    if array.dtype.kind not in "iu" or array.size != count or len(array.shape) > 1:
        raise UsageError(
            f"{source}: labels are {array.dtype} {list(array.shape)}, expected {count} integers, one a sample"
        )
    return array.whole().reshape(count)


def chosen(items: Iterable[_Item], wanted: Sequence[int]) -> Iterator[_Item]:
    """Yield those of `items` whose places, from 0, are in `wanted`, which ascends; read no further."""
    stream, place = iter(items), 0
    for each in wanted:
        yield next(islice(stream, each - place, None))
        place = each + 1


@dataclass(frozen=True)
class Joined:
    """The samples of several tables, one table after the other."""

    tables: Sequence[Table]
    batch: int | None

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(table.count for table in self.tables)

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all samples, None where the tables have none."""
        labels = [table.labels for table in self.tables if table.labels is not None]
        return np.concatenate(labels) if labels else None

    @property
    def stacked(self) -> frozenset[str]:
        """The inputs whose rows lack the batch axis."""
        return self.tables[0].stacked

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out."""
        return tuple(note for table in self.tables for note in table.notes)

    def read(self, wanted: Sequence[int]) -> Iterator[Feeds]:
        """Yield the samples of the ascending numbers `wanted`."""
        ends = accumulate(table.count for table in self.tables)
        for table, end in zip(self.tables, ends, strict=True):
            start = end - table.count
            part = wanted[bisect_left(wanted, start) : bisect_left(wanted, end)]
            yield from table.read([each - start for each in part])


def join(source: str, tables: Sequence[Table]) -> Joined:
    """Return the samples of all `tables`; where these differ in shape, every feed takes one.

    UsageError, beginning with `source`, where only some tables have labels or a batch axis, or where samples
    of different shapes would have to share a feed.
    """
    first = tables[0]
    if any((table.labels is None) != (first.labels is None) for table in tables):
        raise UsageError(f"{source}: some files have labels and some have none, expected them in all or none")
    if any(table.stacked != first.stacked or table.batch != first.batch for table in tables):
        raise UsageError(
            f"{source}: arrays of different rank for the same input, expected the same in all files"
        )
    if all(table.likeness == first.likeness for table in tables):
        return Joined(tables, first.batch)
    if first.batch not in (None, 1):
        raise UsageError(f"{source}: samples differ in shape, expected {first.batch} alike for each feed")
    return Joined(tables, 1)

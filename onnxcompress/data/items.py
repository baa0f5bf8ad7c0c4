"""Feeds that a caller's Python objects give: loaders, lists, readers, generator functions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from onnxcompress.data.inputs import Feeds, Input, check_names
from onnxcompress.data.samples import LABELS
from onnxcompress.errors import UsageError, unknown

_EXPECTED = (
    "expected a list, a loader, a function that returns an iterator, or an object with get_next and rewind"
)


class Items:
    """The feeds that the items of `source` are, with labels where an item is a pair or holds ``labels``.

    `source` is gone through anew for each reading; with a pair ``(loader, transform)`` the items are what
    `transform` makes of the loader's. An item is a mapping from input name to array, an array where the
    model has one input, or a pair of such and its labels (integers). An array may lack a batch axis of 1.
    `count` is None where it isn't known before reading. UsageError where `source` can be read only once, or
    an item does not fit.
    """

    def __init__(self, source: object, inputs: Mapping[str, Input]) -> None:
        self._inputs = inputs
        self._known: list[np.ndarray] | None = None
        self._transform: Callable[[Any], Any] = _same
        if isinstance(source, tuple) and len(source) == 2 and callable(source[1]):
            source, self._transform = source
        self._opened = _opener(source)
        self.count = len(source) if hasattr(source, "__len__") else None
        first = next(self._pairs(), None)
        if first is None:
            raise UsageError("data: holds no feeds")
        self.labelled = first[1] is not None

    def read(self) -> Iterator[Feeds]:
        """Yield the feeds; UsageError where the labels are not those of an earlier reading."""
        for number, (feeds, labels) in enumerate(self._pairs()):
            if self._known is not None and not (
                number < len(self._known)
                and labels is not None
                and np.array_equal(self._known[number], labels)
            ):
                raise UsageError(
                    f"data: feed {number} has other labels than before, expected an order that stays"
                )
            yield feeds

    def read_labels(self) -> Iterator[np.ndarray]:
        """Yield the labels of each feed; the items are gone through once for them."""
        if self._known is None:
            known = [labels for _, labels in self._pairs()]
            self._known = [labels for labels in known if labels is not None]
            if len(known) != len(self._known):
                raise UsageError(
                    "data: some feeds have labels and some have none, expected them in all or none"
                )
        return iter(self._known)

    def _pairs(self) -> Iterator[tuple[Feeds, np.ndarray | None]]:
        for number, item in enumerate(self._opened()):
            yield _feed(f"data: feed {number}", self._transform(item), self._inputs)


def _same(item: object) -> object:
    return item


def _opener(source: Any) -> Callable[[], Iterable[Any]]:
    """Return what goes through the items of `source` from the start, each time it is called."""
    if hasattr(source, "get_next"):
        if not hasattr(source, "rewind"):
            raise UsageError("data: has get_next and no rewind, expected both: it is read more than once")
        return lambda: _rewound(source)
    if isinstance(source, Iterator):
        raise UsageError(f"data: {type(source).__name__} can be read only once, {_EXPECTED}")
    if isinstance(source, Iterable):
        return lambda: source
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return lambda: (source[place] for place in range(len(source)))
    if callable(source):
        return source  # type: ignore[no-any-return]
    raise UsageError(f"data: is {type(source).__name__}, {_EXPECTED}")


def _rewound(reader: Any) -> Iterator[Any]:
    """Yield the feeds of an object like onnxruntime's CalibrationDataReader that can be rewound."""
    reader.rewind()
    while (feeds := reader.get_next()) is not None:
        yield feeds


def _feed(where: str, item: Any, inputs: Mapping[str, Input]) -> tuple[Feeds, np.ndarray | None]:
    labels = None
    if isinstance(item, tuple | list) and len(item) == 2:
        item, labels = item
    if not isinstance(item, Mapping):
        if len(inputs) != 1:
            raise UsageError(
                f"{where} is {type(item).__name__}, expected arrays by name: {', '.join(inputs)}"
            )
        item = dict.fromkeys(inputs, item)
    given = dict(item)
    if LABELS not in inputs:
        labels = given.pop(LABELS, labels)
    check_names(where, given, inputs)
    for name in given:
        if name not in inputs:
            raise UsageError(f"{where}: {unknown('input', name, inputs)}")
    feeds = {name: each.fit(where, _batched(each, np.asarray(given[name]))) for name, each in inputs.items()}
    return feeds, None if labels is None else _labels(where, labels, feeds)


def _batched(wanted: Input, array: np.ndarray) -> np.ndarray:
    """Return `array` with a first axis of one where it lacks the input's."""
    if wanted.dims is not None and array.ndim == len(wanted.dims) - 1:
        return array[None]
    return array


def _labels(where: str, labels: Any, feeds: Feeds) -> np.ndarray:
    array = np.asarray(labels).reshape(-1)
    sizes = {each.shape[0] for each in feeds.values() if each.ndim} | {1}
    if array.dtype.kind not in "iu" or len(array) not in sizes:
        raise UsageError(
            f"{where}: labels are {array.dtype} {list(array.shape)}, expected an integer for each sample"
        )
    return array

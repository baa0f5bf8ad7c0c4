"""Calibration and evaluation data: feeds for a model, read anew each time they are gone through."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcompress.data.arrays import in_memory, open_npy, open_npz
from onnxcompress.data.images import Images, image_files, open_images
from onnxcompress.data.inputs import Feeds, Input, inputs_of
from onnxcompress.data.items import Items
from onnxcompress.data.samples import Samples, Table, grouped, join, make_table
from onnxcompress.data.tensors import TensorSets, find_sets
from onnxcompress.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Data:
    """Feeds for a model, read from their source anew at each iteration and never all in memory.

    `count` is how many there are, None where that is not known before they are read. `random` says that the
    values mean nothing. `notes` are sentences about what of the source is not used.
    """

    source: str
    read: Callable[[], Iterator[Feeds]]
    count: int | None
    read_labels: Callable[[], Iterator[np.ndarray]] | None = None
    random: bool = False
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Feeds]:
        return self.read()

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError(f"{self.source}: how many feeds there are is known after reading them")
        return self.count

    @cached_property
    def labels(self) -> np.ndarray | None:
        """The true classes of all samples, in the order of the feeds [samples, integers], or None."""
        return None if self.read_labels is None else np.concatenate(list(self.read_labels()))

    def take(self, count: int) -> "Data":
        """Return the first `count` feeds, or all where there are fewer."""
        labels = self.read_labels
        return replace(
            self,
            read=lambda: islice(self.read(), count),
            count=None if self.count is None else min(count, self.count),
            read_labels=None if labels is None else lambda: islice(labels(), count),
        )


def load_data(
    source: object,
    model: ir.Model,
    *,
    preprocess: str | None = None,
    shapes: Shapes | None = None,
    batch: int | None = None,
) -> Data:
    """Return `source` as feeds for `model`.

    `source` is a path, with a slice of its samples if only some are wanted (``images[::6]``;
    ``images[!::6]`` for all others): an ``.npz`` or ``.npy`` file, a folder of them, a folder of images,
    with `preprocess` saying how they become an input (:func:`onnxcompress.data.images.parse_preprocess`), or
    a folder of ``test_data_set_*``. In Python also arrays by input name, one array, any iterable of feeds
    that can be read more than once, ``(loader, transform)``, or an object with ``get_next()`` and
    ``rewind()`` (:class:`onnxcompress.data.items.Items`).

    A feed takes `batch` samples (default: one) where the model leaves their number open; what does not fill
    a feed of a fixed number is left out and noted. `shapes` fixes dims that the model leaves open. Raises
    UsageError where the source can't be read or does not fit the model's inputs; what is read later is
    checked when it is read.
    """
    if isinstance(source, Data):
        return source
    inputs = inputs_of(model, shapes or {})
    if not inputs:
        raise UsageError("data: the model has no inputs, expected no data")
    if isinstance(source, str | Path):
        path, part = split_slice(source) if isinstance(source, str) else (source, ALL)
        samples = open_path(path, inputs, preprocess)
        data = _from_samples(str(source), samples, inputs, batch, part)
        if preprocess is not None and not isinstance(samples, Images):
            data = replace(
                data, notes=(*data.notes, f"{source}: the preprocessing is for images and was not used")
            )
        return data
    if isinstance(source, Mapping) or hasattr(source, "__array__"):
        named = source if isinstance(source, Mapping) else {"array": source}
        arrays = {name: in_memory(f"data: {name}", np.asarray(each)) for name, each in named.items()}
        return _from_samples("data", make_table("data", arrays, inputs), inputs, batch, ALL)
    items = Items(source, inputs)
    return Data("data", items.read, items.count, items.read_labels if items.labelled else None)


def random_data(model: ir.Model, *, shapes: Shapes | None = None, seed: int = 0, count: int = 4) -> Data:
    """Return `count` feeds of random values, the same for the same `seed`.

    Floats are uniform in [0, 1), which no root or logarithm turns into NaN; ``uint8``, pixels as a rule,
    has all its values; other integers and booleans are 0 or 1, which are valid as indices, flags and
    lengths. Dims that the model leaves open are those of `shapes`, also where another input names the same
    dim, else 1. UsageError for inputs of other types or unknown rank.
    """
    inputs = inputs_of(model, shapes or {})
    sizes = _named_sizes(model, shapes or {})
    notes = []
    for each in inputs.values():
        if each.dims is None:
            raise UsageError(
                f"random data: the rank of input {each.name} is not known, expected its shape to be given"
            )
        if (
            each.dtype is not ir.DataType.BOOL
            and not each.dtype.is_integer()
            and not each.dtype.is_floating_point()
        ):
            kind = each.dtype.name.lower()
            raise UsageError(
                f"random data: input {each.name} is {kind}, expected numbers; give data for this model"
            )
        opened = [dim for dim in each.dims[1:] if not isinstance(dim, int) and dim not in sizes]
        if opened:
            notes.append(
                f"random data: input {each.name} is {each.expected}, dims that are not given are taken as 1"
            )

    def read() -> Iterator[Feeds]:
        for number in range(count):
            generator = np.random.default_rng([seed, number])
            yield {name: _random(generator, each, sizes) for name, each in inputs.items()}

    return Data("random", read, count, random=True, notes=tuple(notes))


def _named_sizes(model: ir.Model, shapes: Shapes) -> dict[str, int]:
    """Return the sizes that `shapes` gives to the dims that have a name."""
    return {
        dim: size
        for name, each in inputs_of(model, {}).items()
        for dim, size in zip(each.dims or (), shapes.get(name, ()), strict=False)
        if isinstance(dim, str)
    }


def _random(generator: np.random.Generator, wanted: Input, sizes: Mapping[str, int]) -> np.ndarray:
    """Return random values for the input `wanted`."""
    assert wanted.dims is not None
    shape = [dim if isinstance(dim, int) else sizes.get(dim or "", 1) for dim in wanted.dims]
    if wanted.dtype.is_floating_point():
        return generator.random(shape, np.float32).astype(wanted.dtype.numpy())
    top = 256 if wanted.dtype is ir.DataType.UINT8 else 2
    return generator.integers(0, top, shape).astype(wanted.dtype.numpy())


@dataclass(frozen=True)
class Part:
    """Which samples of a source are wanted: those of the slice, or all others."""

    start: int | None = None
    stop: int | None = None
    step: int | None = None
    others: bool = False

    def of(self, count: int) -> Sequence[int]:
        """Return the numbers of the wanted ones among `count` samples, ascending."""
        wanted = range(count)[self.start : self.stop : self.step]
        return sorted(set(range(count)).difference(wanted)) if self.others else wanted


ALL = Part()


def split_slice(text: str) -> tuple[Path, Part]:
    """Return the path in `text` and which of its samples are wanted, as in ``path[:100]`` and ``path[!::6]``.

    UsageError where the step is not at least 1.
    """
    match = re.fullmatch(r"(.+)\[(!?)(-?\d+)?:(-?\d+)?(?::(-?\d+)?)?\]", text)
    if match is None or Path(text).exists():
        return Path(text), ALL
    start, stop, step = (None if each is None else int(each) for each in match.group(3, 4, 5))
    if step is not None and step < 1:
        raise UsageError(f"{text}: the step is {step}, expected 1 or more")
    return Path(match[1]), Part(start, stop, step, others=bool(match[2]))


def open_path(path: Path, inputs: Mapping[str, Input], preprocess: str | None) -> Samples:
    """Return the samples in the file or folder `path`; UsageError where there are none."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder, expected calibration or evaluation data")
    path = path.absolute()  # so that "." has a name
    try:
        return _open_folder(path, inputs, preprocess) if path.is_dir() else _open_file(path, inputs)
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}") from error


def _open_file(path: Path, inputs: Mapping[str, Input]) -> Table:
    if path.suffix == ".npz":
        return make_table(path.name, open_npz(path), inputs)
    if path.suffix == ".npy":
        return make_table(path.name, {path.stem: open_npy(path)}, inputs)
    raise UsageError(f"{path.name}: is not known as data, expected .npz, .npy or a folder")


def _open_folder(path: Path, inputs: Mapping[str, Input], preprocess: str | None) -> Samples:
    if sets := find_sets(path):
        return TensorSets(sets, inputs)
    files = sorted(each for each in path.iterdir() if each.suffix in (".npz", ".npy"))
    if files and image_files(path):
        raise UsageError(f"{path.name}: holds arrays and images, expected a folder with only one of them")
    if files:
        return join(path.name, [_open_file(each, inputs) for each in files])
    return open_images(path, preprocess, inputs)


def _from_samples(
    source: str, samples: Samples, inputs: Mapping[str, Input], batch: int | None, part: Part
) -> Data:
    """Return the wanted `part` of `samples` in feeds; the first feed is read to see whether all is well."""
    wanted = part.of(samples.count)
    size = samples.batch or batch or 1
    spare = len(wanted) % size if samples.batch else 0
    if len(wanted) <= spare:
        raise UsageError(f"{source}: {len(wanted)} of {samples.count} samples, expected at least {size}")
    wanted = wanted[: len(wanted) - spare]
    left = (f"{source}: {spare} samples left out, every feed takes {size}",) if spare else ()
    labels = None if samples.labels is None else samples.labels[np.asarray(wanted)]

    def read() -> Iterator[Feeds]:
        for number, feeds in enumerate(grouped(samples, wanted, size)):
            where = f"{Path(source).name}: feed {number}"
            yield {name: each.fit(where, feeds[name]) for name, each in inputs.items()}

    def read_labels() -> Iterator[np.ndarray]:
        assert labels is not None
        return (labels[start : start + size] for start in range(0, len(labels), size))

    next(read())
    return Data(
        source,
        read,
        -(-len(wanted) // size),
        None if labels is None else read_labels,
        notes=samples.notes + left,
    )

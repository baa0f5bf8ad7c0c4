"""What a storage format is, and the expressions that weights are stored as.

A stored weight is a small expression: calls of functions of the domain `onnxcompress` on stored tensors. A
function has three faces, which are one class here: ``encode`` makes expressions for a weight, ``decode`` is
the function in numpy, and ``text`` its body in standard operators of ONNX, which any engine runs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import onnx.parser
import onnx_ir as ir

from onnxcompress.errors import CompressError
from onnxcompress.formats.elements import Elements, Tables

DOMAIN = "onnxcompress"
VERSION = 1  # of the domain; a change of any body is a new one
OLDEST = 13  # operator set that the bodies need
LARGEST = 2**31 - 1  # elements of an array: positions are int32
RATIO = 256  # elements of a sparse array for each listed one: no file makes its reader allocate more

Attribute = int | tuple[int, ...]
Attributes = Mapping[str, Attribute]


@dataclass(frozen=True, eq=False)
class Symbols:
    """A stream of numbers below 256 [count, uint8] whose storage is chosen later: as it is, packed, or coded.

    The function that reads it gets uint8 of any shape, perhaps followed by a few that mean nothing: it begins
    with the steps of `TAKE`.
    """

    values: np.ndarray
    known: np.ndarray | None = None  # how often each number occurs, from 0 on, where that is known

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each number occurs [256, int64]."""
        if self.known is None:
            even = self.values.size // 2 * 2
            pairs = np.bincount(self.values[:even].view(np.uint16), minlength=2**16).reshape(256, 256)
            both: np.ndarray = pairs.sum(0) + pairs.sum(1)
            return both + np.bincount(self.values[even:], minlength=256)
        return np.pad(self.known, (0, 256 - len(self.known)))

    @cached_property
    def size(self) -> int:
        """The largest number and 1."""
        return int(self.counts.nonzero()[0].max(initial=0)) + 1


@dataclass(frozen=True, eq=False)
class Call:
    """A call of the function of the format `name`; its inputs are arrays, symbols, and other calls."""

    name: str
    inputs: tuple[Expression, ...]
    attributes: Attributes = field(default_factory=dict)


Expression = np.ndarray | Symbols | Call

# Body text: `b` becomes the first elements of `x`, as many as the 1-D int64 tensor `n` says.
TAKE = """F = Constant <value_ints = [-1]> ()
  Z = Constant <value_ints = [0]> ()
  a = Reshape (x, F)
  b = Slice (a, Z, n)"""


class Weight:
    """An array to store, and what formats ask about it; elements are told apart by their bits.

    So -0.0 is not zero, and NaNs keep their payload.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.ascontiguousarray(array).reshape(array.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape

    @property
    def key(self) -> tuple[str, tuple[int, ...], bytes]:
        """What only equal arrays have in common."""
        return self.array.dtype.str, self.shape, hashlib.sha256(self.bits.data).digest()

    @cached_property
    def bits(self) -> np.ndarray:
        """The elements' bit patterns [size, unsigned integers]."""
        patterns: np.ndarray = self.array.reshape(-1).view(f"u{self.array.dtype.itemsize}")
        return patterns

    @cached_property
    def positions(self) -> np.ndarray:
        """Where the elements are that aren't zero [count, int64]."""
        return np.flatnonzero(self.bits)

    @property
    def scatters(self) -> bool:
        """Whether engines can spread one element of this type over an array: not so for bfloat16."""
        return self.array.dtype.kind in "fiu"

    @property
    def zeros(self) -> int:
        """How many elements are zero."""
        return self.bits.size - self.positions.size

    @cached_property
    def rest(self) -> np.ndarray:
        """The bit patterns of the elements that aren't zero [count]."""
        found: np.ndarray = self.bits[self.positions]
        return found

    @cached_property
    def codes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """The elements that aren't zero by codes: different patterns, code of each [uint8], count of each.

        Patterns are in falling order of how often they occur. None where there are more than 256.
        """
        known = np.unique(self.rest[:: max(1, self.rest.size // 8192)])
        while len(known) <= 256:
            if not self.rest.size:
                return known, np.zeros(0, np.uint8), np.zeros(0, np.int64)
            codes = lookup(known, self.rest)
            missed = known[codes] != self.rest
            if not missed.any():
                counts = np.bincount(codes, minlength=len(known))
                order = np.argsort(-counts, kind="stable")
                return known[order], inverse(order)[codes], counts[order]
            known = np.union1d(known, self.rest[missed][:65536])
        return None

    def table(self, patterns: np.ndarray) -> np.ndarray:
        """Return bit `patterns` as elements of this weight."""
        made: np.ndarray = patterns.view(self.array.dtype)
        return made


def lookup(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return for each of the `values` its place among the sorted `known`, or a wrong one [same size]."""
    return np.searchsorted(known[1:], values, side="right")


def inverse(order: np.ndarray) -> np.ndarray:
    """Return the inverse of a permutation of at most 256 [same size, uint8]."""
    places = np.empty(len(order), np.uint8)
    places[order] = np.arange(len(order), dtype=np.uint8)
    return places


class Format:
    """One function of the domain, and how weights are stored by it.

    A subclass gives `name`, `text`, ``memory``, and ``decode`` or, where its result can be told without
    making it, ``elements``. One that stores whole weights gives `word` and ``encode``, too; the others are
    parts of its expressions. The class docstring is the specification.
    """

    name: ClassVar[str]
    word: ClassVar[str] = ""  # what users call it, of formats for whole weights
    sparse: ClassVar[bool] = False  # whether it is for arrays that are mostly zero
    automatic: ClassVar[bool] = True  # whether it is tried without being asked for
    text: ClassVar[str]  # the function in ONNX's text form, for operator set 13 and newer
    uses: ClassVar[tuple[str, ...]] = ()  # texts of the functions that it calls

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield expressions for `weight` that are exact, if there are any."""
        return iter(())

    def decode(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> np.ndarray:
        """Return what the function makes of its inputs; CompressError where they make no sense.

        A format whose `elements` can't always tell has a decoder of its own here.
        """
        found = self.elements(inputs, attributes)
        if found is None:
            raise NotImplementedError
        return found.array()

    def elements(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Elements | None:
        """Return what the function makes of its inputs, not made yet; None where it can't be told so.

        CompressError where the inputs make no sense.
        """
        return None

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return the bytes of intermediate results that an engine makes."""
        raise NotImplementedError

    @cached_property
    def inputs(self) -> int:
        """How many inputs the function has."""
        return len(self.functions(OLDEST)[-1].inputs)

    def functions(self, opset: int) -> list[ir.Function]:
        """Return the function, and those that it calls, for a model of operator set `opset`."""
        return [function(text, opset) for text in (*self.uses, self.text)]


class Coded(Format):
    """A format whose first input has numbers of values, in tables that its other inputs tell.

    A subclass gives ``tables`` in the place of ``elements``. The array has the shape of its attribute
    `shape`, and the first input has as many numbers or more; or it has the shape of the first input.
    """

    def tables(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Tables:
        """Return the tables; the first of `inputs` are all numbers that occur, in any order and number.

        CompressError where the inputs make no sense.
        """
        raise NotImplementedError

    def shape(self, codes: tuple[int, ...], attributes: Attributes) -> tuple[int, ...]:
        """Return the shape of the array, of which the first input has the shape `codes`."""
        return dims(self.name, attributes) if "shape" in attributes else codes

    def elements(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Elements:
        """Return the numbers of all elements."""
        shape = self.shape(inputs[0].shape, attributes)
        codes = take(self.name, inputs[0], math.prod(shape))
        return Elements(shape, codes, tables=self.tables([codes, *inputs[1:]], attributes))


def function(text: str, opset: int) -> ir.Function:
    """Return the function of body `text` for operator set `opset`."""
    imports = f'"" : {opset}' + (f', "{DOMAIN}" : {VERSION}' if f"{DOMAIN}." in text else "")
    head = f'<domain: "{DOMAIN}", opset_import: [{imports}]>\n'
    return ir.serde.deserialize_function(onnx.parser.parse_function(head + text.strip()))


def take(what: str, symbols: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` of `symbols` [any shape, uint8], as the body text `TAKE` does."""
    flat = symbols.reshape(-1)
    if symbols.dtype != np.uint8 or not 0 <= count <= flat.size:
        raise CompressError(f"{what}: has {flat.size} codes of {symbols.dtype}, expected {count} of uint8")
    return flat[:count]


def dims(what: str, attributes: Attributes, name: str = "shape") -> tuple[int, ...]:
    """Return the attribute `name` as the dimensions of an array; CompressError where it can't be."""
    found = attributes.get(name, ())
    shape = found if isinstance(found, tuple) else (found,)
    if len(shape) > 64 or any(not 0 <= each <= LARGEST for each in shape) or math.prod(shape) > LARGEST:
        raise CompressError(f"{what}: has {name} {list(shape)[:8]}, expected that of an array")
    return shape


def number(what: str, attributes: Attributes, name: str, low: int, high: int) -> int:
    """Return the attribute `name`, a number from `low` to `high`; CompressError where it isn't."""
    found = attributes.get(name)
    if not isinstance(found, int) or not low <= found <= high:
        raise CompressError(f"{what}: has {name} {found!r}, expected {low} to {high}")
    return found


def bounded(what: str, size: int, listed: np.ndarray) -> int:
    """Return `size`, of a sparse array whose elements are `listed`; CompressError where it is too large."""
    if not holds(size, listed.size):
        most = min(RATIO * (64 + listed.size), LARGEST)
        raise CompressError(f"{what}: has {size} elements, expected at most {most}")
    return size


def holds(size: int, listed: int) -> bool:
    """Return whether a sparse array of which elements are `listed` may have `size` elements."""
    return 0 <= size <= min(RATIO * (64 + listed), LARGEST)


def attributes_of(node: ir.Node) -> Attributes:
    """Return the attributes of a call of a format; CompressError where they aren't numbers."""
    found = {}
    for name, attribute in node.attributes.items():
        if attribute.is_ref() or attribute.type not in (ir.AttributeType.INT, ir.AttributeType.INTS):
            raise CompressError(f"attribute {name} is no number, expected one or several")
        found[name] = (
            attribute.as_int() if attribute.type == ir.AttributeType.INT else tuple(attribute.as_ints())
        )
    return found

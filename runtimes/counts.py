"""What products with stored weights take."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Counts:
    """What products with stored weights take; those of several add up.

    An element of a weight is *applied* once for each output it contributes to: of a matrix product, the
    columns of the result that its row has, of a convolution, all places of all images, padding included.

    * `multiply_adds`: multiplications of an activation or a sum by a value or a magnitude, as they were done;
      what they yield is added without being counted once more.
    * `skipped`: how many more a dense engine does: one for each application of each element.
    * `adds`: additions and subtractions of activations, or of sums, that no multiplication goes before.
    * `look_ups`: values taken from a table by their number, once for all applications.
    * `shifts`: exponents changed, in place of multiplications; what they yield is added, which is counted.
    * `weight_bytes`, `index_bytes`: bytes of the file that tell the weight's values, and where they are, read
      once. A symbol that tells both counts as a value.
    * `activation_bytes`: bytes of the activations that elements were applied to, each time that one was.

    Biases, alpha, beta and C of Gemm are not counted.
    """

    multiply_adds: int = 0
    skipped: int = 0
    adds: int = 0
    look_ups: int = 0
    shifts: int = 0
    weight_bytes: int = 0
    index_bytes: int = 0
    activation_bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

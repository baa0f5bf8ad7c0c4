"""The built-in passes: one file, one class, one name each."""

from onnxcompress.passes.binarise import Binarise
from onnxcompress.passes.cast import Cast
from onnxcompress.passes.cluster import Cluster
from onnxcompress.passes.correct_bias import CorrectBias
from onnxcompress.passes.encode import Encode
from onnxcompress.passes.equalize import Equalize
from onnxcompress.passes.factorise import Factorise
from onnxcompress.passes.fuse import Fuse
from onnxcompress.passes.prune import Prune
from onnxcompress.passes.prune_channels import PruneChannels
from onnxcompress.passes.quant import Quant
from onnxcompress.passes.quant_blocks import QuantBlocks
from onnxcompress.passes.quant_fixed import QuantFixed
from onnxcompress.passes.quant_log import QuantLog
from onnxcompress.passes.remove_masked import RemoveMasked
from onnxcompress.passes.shrink_kernels import ShrinkKernels
from onnxcompress.passes.shuffle import Shuffle
from onnxcompress.passes.simplify import Simplify
from onnxcompress.passes.ternarise import Ternarise

BUILT_IN = (
    Simplify,
    Fuse,
    RemoveMasked,
    Equalize,
    Prune,
    PruneChannels,
    Factorise,
    ShrinkKernels,
    Shuffle,
    Cluster,
    Ternarise,
    Binarise,
    QuantLog,
    QuantFixed,
    Quant,
    QuantBlocks,
    CorrectBias,
    Cast,
    Encode,
)

__all__ = [
    "BUILT_IN",
    "Binarise",
    "Cast",
    "Cluster",
    "CorrectBias",
    "Encode",
    "Equalize",
    "Factorise",
    "Fuse",
    "Prune",
    "PruneChannels",
    "Quant",
    "QuantBlocks",
    "QuantFixed",
    "QuantLog",
    "RemoveMasked",
    "ShrinkKernels",
    "Shuffle",
    "Simplify",
    "Ternarise",
]

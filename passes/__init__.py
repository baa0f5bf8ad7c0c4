"""The built-in passes: one file, one class, one name each."""

from onnxcompress.passes.cluster import Cluster
from onnxcompress.passes.encode import Encode
from onnxcompress.passes.prune import Prune
from onnxcompress.passes.prune_channels import PruneChannels
from onnxcompress.passes.quant import Quant
from onnxcompress.passes.remove_masked import RemoveMasked
from onnxcompress.passes.simplify import Simplify

BUILT_IN = (Simplify, RemoveMasked, Prune, PruneChannels, Cluster, Quant, Encode)

__all__ = ["BUILT_IN", "Cluster", "Encode", "Prune", "PruneChannels", "Quant", "RemoveMasked", "Simplify"]

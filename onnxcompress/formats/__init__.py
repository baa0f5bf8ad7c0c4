"""Storage formats: each is encode, decode, and a function of standard ONNX operators that decodes as well."""

from onnxcompress.formats.affine import Affine
from onnxcompress.formats.base import DOMAIN, Call, Format, Symbols, Weight
from onnxcompress.formats.bitmask import Bitmask
from onnxcompress.formats.blockcsr import BlockCSR
from onnxcompress.formats.codebook import Codebook, Lookup
from onnxcompress.formats.codebooks import Codebooks
from onnxcompress.formats.coo import COO
from onnxcompress.formats.csr import CSR
from onnxcompress.formats.escape import Escape
from onnxcompress.formats.huffman import Huffman, Huffman32, Huffman128
from onnxcompress.formats.joint import Joint
from onnxcompress.formats.logscale import LogScale
from onnxcompress.formats.packing import Digits, Unpack
from onnxcompress.formats.relative import RelativeIndex, Scatter
from onnxcompress.formats.ternary import Binary, Ternary

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Codebook(),
        Codebooks(),
        Affine(),
        LogScale(),
        Lookup(),
        RelativeIndex(),
        Joint(),
        Bitmask(),
        Ternary(),
        Binary(),
        CSR(),
        BlockCSR(),
        COO(),
        Scatter(),
        Escape(),
        Unpack(),
        Digits(),
        Huffman(),
        Huffman32(),
        Huffman128(),
    )
}

ENCODERS: dict[str, Format] = {each.word: each for each in FORMATS.values() if each.word}

__all__ = ["DOMAIN", "ENCODERS", "FORMATS", "Call", "Format", "Symbols", "Weight"]

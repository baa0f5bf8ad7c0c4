"""Our passes as passes of onnx_ir."""

import onnx_ir as ir

from onnxcompress.base import Context, Pass


class Bound(ir.passes.InPlacePass):
    """A pass with its context, under the contract of ``onnx_ir.passes.InPlacePass``."""

    def __init__(self, pass_: Pass, context: Context) -> None:
        super().__init__()
        pass_.require(context)
        self.pass_ = pass_
        self.context = context

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass on `model` in place; whether it changed anything is read from its records."""
        result = self.pass_.call(model, self.context)
        return ir.passes.PassResult(result.model, result.modified)

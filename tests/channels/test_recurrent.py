"""Hidden units of recurrent layers, and the states that they start from."""

import masking
import models

from onnxcompress.base import Context
from onnxcompress.passes import PruneChannels


def test_one_constant_may_be_both_states() -> None:
    made = models.model(
        """net (float[4,2,5] x) => (float[1,2,3] y) <float[1,24,5] w = {}, float[1,24,6] r = {},
        float[1,2,6] h = {}, float[6,3] c = {}>
        { [l] q, s = LSTM<hidden_size=6>(x, w, r, , , h, h) [c] y = MatMul(s, c) }"""
    )
    result = PruneChannels().call(made, Context())
    assert result.records[0].numbers["outputs"] == 3
    assert masking.outputs(masking.to_proto(made), masking.feeds(made))[0].shape == (1, 2, 3)

"""Settings of all tests."""

import os

# One thread computes a product of matrices, where numpy has not been imported yet: as many workers as there
# are processors run tests already, and threads of OpenBLAS that wait for one another take most of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings

from onnxcompress.runtimes.onnxruntime import OnnxRuntime

# The same examples in every run: a failure is then a change's doing. No deadlines: machines are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def sleeping_threads() -> Iterator[None]:
    """Let idle threads of onnxruntime sleep: those that wait busily take the time of the tests beside."""
    options = OnnxRuntime._options

    def sleeping(self: OnnxRuntime) -> Any:
        return options(replace(self, spinning=False))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntime, "_options", sleeping)
        yield

"""The command line as tests run it, and the files they give it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTDATA = ROOT / "testdata"
LENET = TESTDATA / "lenet5_digits.onnx"
CALIB, TEST = TESTDATA / "digits_calib.npz", TESTDATA / "digits_test.npz"


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "onnxcompress", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        **options,  # type: ignore[call-overload]
    )


def in_process(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process, which saves its start."""
    from onnxcompress.cli import main

    with pytest.raises(SystemExit) as left:
        main([str(each) for each in arguments])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err

"""Every code block of the README runs, and generated pages are fresh."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md"]


def blocks(language: str) -> list[str]:
    return [
        block
        for page in PAGES
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    ]


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ onnxcompress ")]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "testdata").symlink_to(ROOT / "testdata")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_runs(command: str, elsewhere: Path) -> None:
    from onnxcompress.cli import main

    with pytest.raises(SystemExit) as left:
        main(shlex.split(command)[1:])
    assert not left.value.code


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_of_the_readme_runs(block: str, elsewhere: Path) -> None:
    (elsewhere / "block.py").write_text(block)
    runpy.run_path(str(elsewhere / "block.py"))


def test_there_are_blocks_to_run() -> None:
    assert commands()
    assert blocks("python")


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr

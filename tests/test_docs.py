"""Every code block of the README and of the pages for users runs, and generated pages are fresh."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("self-extraction", "schemes", "analysis", "zoo", "report")),
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ onnxcompress ")]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "testdata").symlink_to(ROOT / "testdata")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_one_after_the_other(page: Path, elsewhere: Path) -> None:
    from onnxcompress.cli import main

    assert commands(page)
    for block in blocks(page, "toml"):
        (elsewhere / f"{page.stem}.toml").write_text(block)
    for command in commands(page):
        with pytest.raises(SystemExit) as left:
            main(shlex.split(command)[1:])
        assert not left.value.code, command


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "python")])
def test_a_python_block_of_a_page_runs(block: str, elsewhere: Path) -> None:
    (elsewhere / "block.py").write_text(block)
    runpy.run_path(str(elsewhere / "block.py"))


def test_there_are_blocks_of_python_to_run() -> None:
    assert blocks(ROOT / "README.md", "python")


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr

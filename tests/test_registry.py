import subprocess
import sys
from pathlib import Path

import pytest

from onnxcompress.errors import UsageError
from onnxcompress.registry import find_pass, find_runtime, passes, runtimes

ROOT = Path(__file__).parent.parent


def test_each_pass_is_one_file_named_after_it() -> None:
    files = {path.stem for path in (ROOT / "passes").glob("*.py")} - {"__init__"}
    assert {name.replace("-", "_") for name in passes()} == files
    for name, each in passes().items():
        assert each.__module__ == f"onnxcompress.passes.{name.replace('-', '_')}"


def test_each_pass_has_a_test_file_of_its_own() -> None:
    for name in passes():
        assert (ROOT / "tests" / "passes" / f"test_{name.replace('-', '_')}.py").exists()


def test_every_pass_documents_itself_and_its_options() -> None:
    for each in passes().values():
        assert "Source: " in (each.__doc__ or "")
        assert all(option.help for option in each.options())


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(UsageError, match="simplfy: no such pass; did you mean simplify"):
        find_pass("simplfy")
    with pytest.raises(UsageError, match="onnxrt: no such runtime; did you mean onnxruntime"):
        find_runtime("onnxrt")
    assert find_runtime("interpreter") is runtimes()["interpreter"]


def test_a_plug_in_adds_a_pass_but_hides_no_built_in_one(tmp_path: Path) -> None:
    (tmp_path / "plug.py").write_text(
        "from dataclasses import dataclass\n"
        "from onnxcompress.base import Effect, Pass, Result\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Pass):\n"
        "    name = 'mine'\n"
        "    effect = Effect.EXACT\n"
        "    def call(self, model, context):\n"
        "        return Result(model)\n"
    )
    info = tmp_path / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[onnxcompress.passes]\nmine = plug:Mine\nprune = plug:Mine\nbroken = nowhere:Mine\n"
    )
    code = (
        "from onnxcompress.recipe import Recipe\n"
        "from onnxcompress.errors import UsageError\n"
        "print([type(each).__module__ for each in Recipe.parse('mine,prune').passes])\n"
        "try: Recipe.parse('broken')\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""},
    )
    assert done.stdout.splitlines() == [
        "['plug', 'onnxcompress.passes.prune']",
        "broken: the plug-in nowhere:Mine can't be imported: No module named 'nowhere'",
    ]

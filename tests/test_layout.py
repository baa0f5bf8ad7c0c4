"""Rules that a reader can't see broken: who imports whom, what an import costs, what is packaged."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RANKS = [
    ["errors"],
    ["base", "bound"],
    ["model", "evaluate", "dense", "windows", "data"],
    [
        *("layers", "edit", "quantize", "convolve", "cost", "linear", "fusion", "folding", "merging"),
        *("branches", "placement", "integer", "kmeans", "loss", "lowrank", "factors", "geometry", "chains"),
        *("grouping", "shuffling", "channels", "target", "panels", "blocks", "blockwise", "halves"),
        *("schemes", "compensation", "ends", "signs", "shielding", "spreading", "observing"),
        *("energy", "crossbar", "liveness", "expectation"),
    ],
    ["formats"],
    ["runtimes"],
    [
        "histogram",
        "calibrate",
        *("correction", "offsets"),
        "magnitudes",
        "moments",
        "measure",
        "parts",
        "choice",
        "fastest",
        "verify",
        "drop",
        "layerwise",
        "budget",
    ],
    ["qdq", "weighing", "static", "rounding", "fixedpoint", "gate"],
    ["passes"],
    [
        *("recipe", "registry", "typed", "trials", "details", "report", "runs", "page", "cure", "check"),
        *("steps", "mixing", "request", "pipeline", "analysis"),
    ],
    ["zoo"],
    ["cli"],
]
PACKAGES = {"passes": ROOT / "passes", "runtimes": ROOT / "runtimes"} | {
    name: ROOT / "onnxcompress" / name
    for name in ("analysis", "channels", "cli", "data", "formats", "model", "page", "zoo")
}


def sources() -> dict[Path, str]:
    """Every module of ours and the name it has in RANKS: its own, or that of the package it is in."""
    found = {
        path: path.stem for path in (ROOT / "onnxcompress").glob("*.py") if not path.stem.startswith("__")
    }
    for name, folder in PACKAGES.items():
        found |= dict.fromkeys(folder.rglob("*.py"), name)
    return found


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports when it runs, at its top or inside a function."""
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnxcompress"):
            parts = (node.module or "").split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {each.name.split(".")[1] for each in node.names if each.name.startswith("onnxcompress.")}
    return found


def test_a_file_imports_only_from_its_own_rank_or_a_lower_one() -> None:
    rank = {name: number for number, names in enumerate(RANKS) for name in names}
    wrong = []
    for path, name in sources().items():
        assert name in rank, f"{path.name} has no rank: add it to RANKS and to docs/design/0002-ranks.md"
        wrong += [
            f"{path.name} imports {other}" for other in imported(path) if rank.get(other, -1) > rank[name]
        ]
    assert not wrong


def test_no_pass_imports_a_pass() -> None:
    for path in (ROOT / "passes").glob("*.py"):
        if path.name != "__init__.py":
            assert "passes" not in imported(path), path.name


def test_every_folder_with_modules_is_packaged() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    tops = {"onnxcompress": ROOT / "onnxcompress"}
    tops |= {f"onnxcompress.{name}": ROOT / name for name in ("passes", "runtimes")}
    found = {
        ".".join([name, *folder.relative_to(top).parts])
        for name, top in tops.items()
        for folder in [top, *(each for each in top.rglob("*") if each.is_dir() and not each.is_symlink())]
        if list(folder.glob("*.py"))
    }
    assert set(project["packages"]) == found
    assert {name: ROOT / path for name, path in project["package-dir"].items()} == tops


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_package_pulls_in_nothing_heavy() -> None:
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxsim", "click", "rich", "torch", "PIL"}
    assert not loaded_after("import onnxcompress") & heavy


@pytest.mark.parametrize(
    "statement", ["from onnxcompress.passes import Prune", "import onnxcompress.cli, onnxcompress.pipeline"]
)
def test_engines_are_imported_only_when_they_run(statement: str) -> None:
    assert not loaded_after(statement) & {"onnxruntime", "onnxsim", "torch", "numba", "PIL", "jinja2"}

"""The same self-extracting file in many runtimes: are its outputs the dense file's, and what does it cost.

    python benchmarks/runtimes.py [MODEL ...] [--passes RECIPE] [--cache FOLDER] [--seconds 3]

Each model is compressed by the recipe, written with functions and in line (`--inline`), and unpacked again to
the dense file. Every runtime loads the dense and the encoded file in a process of its own, in one thread, and
runs both on the same random input, in turns. The table says how long each file takes to load (the engine
being warm), how far the outputs of the two are apart in that runtime, and the ratio of their latencies with
its 95 % interval.

Other versions of onnxruntime and OpenVINO are installed from PyPI, those for JavaScript from npm, into the
cache folder; what can't be had is listed with the reason.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve()
TESTDATA = HERE.parent.parent / "testdata"
MODELS = [TESTDATA / "lenet300_digits.onnx", TESTDATA / "branch_digits.onnx"]
RECIPE = "prune(sparsity=0.8),cluster(bits=4),encode"
LOADS = 3  # times that each file is loaded; the median is told
MOST = 300  # pairs of runs that are timed
PATIENCE = 900  # seconds that an installation or a runtime may take
NPM = ("onnxruntime-node", "onnxruntime-web")
FORMS = {"functions": "encoded.onnx", "in line": "inline.onnx"}


class Runtime(NamedTuple):
    """A row of the table: what runs (a key of ENGINES, or of NPM), which file, and what pip must install."""

    name: str
    form: str
    packages: tuple[str, ...] = ()


RUNTIMES = [
    Runtime("onnxruntime", "functions"),
    Runtime("onnxruntime", "in line"),
    Runtime("onnxruntime", "functions", ("onnxruntime==1.17.3", "numpy<2")),
    Runtime("onnxruntime", "in line", ("onnxruntime==1.15.1", "numpy<2")),
    Runtime("onnxruntime-node", "functions"),
    Runtime("onnxruntime-web", "functions"),
    Runtime("openvino", "in line", ("openvino",)),
    Runtime("onnx.reference", "functions"),
    Runtime("interpreter", "functions"),
]


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--passes", default=RECIPE, help=f"recipe that ends in encode; default: {RECIPE}")
    parser.add_argument("--cache", type=Path, help="folder to install runtimes into; default: a new one")
    parser.add_argument("--seconds", type=float, default=3, help="to measure each latency for")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or Path(temporary) / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(given.models or MODELS):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            print(f"\n{prepare(path, folder, given.passes)}\n", flush=True)
            print("| runtime | file | loads in (dense) | outputs | latency, encoded / dense |")
            print("|---|---|---|---|---|")
            for runtime in RUNTIMES:
                print(row(runtime, folder, cache.resolve(), given.seconds), flush=True)


def prepare(path: Path, folder: Path, recipe: str) -> str:
    """Write the files and the input for the model in `path`; return a line about them."""
    from onnxcompress import compress
    from onnxcompress.data import random_data
    from onnxcompress.model import load
    from onnxcompress.pipeline import unpack

    for form, name in FORMS.items():
        compress(path, recipe, output=folder / name, inline=form == "in line", measure_latency=False)
    unpack(folder / "encoded.onnx", folder / "dense.onnx")
    entries = []
    feeds = next(iter(random_data(load(path), shapes={}, seed=0)))
    for number, (name, array) in enumerate(feeds.items()):
        array.tofile(folder / f"{number}.bin")
        entries.append({"name": name, "type": str(array.dtype), "dims": array.shape, "file": f"{number}.bin"})
    (folder / "feeds.json").write_text(json.dumps(entries))
    sizes = [f"{(folder / name).stat().st_size:,}" for name in ("dense.onnx", *FORMS.values())]
    return "{}, {}: {} bytes, encoded {}, in line {}".format(path.name, recipe, *sizes)


def row(runtime: Runtime, folder: Path, cache: Path, seconds: float) -> str:
    """Return the row of the table for one runtime."""
    files = [folder / "dense.onnx", folder / FORMS[runtime.form], folder / "feeds.json", seconds]
    title = runtime.packages[0].replace("==", " ") if runtime.packages else runtime.name
    try:
        if runtime.name in NPM:
            command = [node(), HERE.with_suffix(".mjs"), runtime.name, node_modules(cache), *files]
        else:
            python = virtual_environment(cache, runtime.packages) if runtime.packages else sys.executable
            command = [python, HERE, "--work", runtime.name, *files]
        found = json.loads(output(command).splitlines()[-1])
    except Unavailable as reason:
        return f"| {title} | {runtime.form} | {reason} | | |"
    outputs = "the same bits" if found["identical"] else f"differ by {found['difference']:.2g}"
    dense, encoded = found["loads"]
    title = f"{runtime.name} {found['version']}"
    loads = f"{encoded:.3f} s ({dense:.3f} s)"
    return f"| {title} | {runtime.form} | {loads} | {outputs} | {ratio(found['pairs'])} |"


def ratio(pairs: list[tuple[float, float]]) -> str:
    """Return the median ratio of pairs of seconds, with its 95 % interval where there are enough."""
    from onnxcompress.measure import interval

    ratios = sorted(second / first for first, second in pairs)
    low, high = interval(len(ratios))
    median = ratios[len(ratios) // 2]
    return f"{median:.2f} ({ratios[low]:.2f} to {ratios[high]:.2f}, {len(ratios)} pairs)"


class Unavailable(Exception):
    """Why there are no figures for a runtime."""


def output(command: list[Any], folder: Path | None = None) -> str:
    """Return what `command` prints; Unavailable with its last line of error where it fails."""
    try:
        done = subprocess.run(
            list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"took more than {PATIENCE} s") from error
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        told = [line for line in said if "error" in line.lower()] or said or [str(done.returncode)]
        raise Unavailable(f"fails: {told[-1][:200]}".replace("|", "/"))
    return done.stdout


def virtual_environment(cache: Path, packages: tuple[str, ...]) -> Path:
    """Return the interpreter of an environment with `packages`, made where it isn't in the cache yet."""
    folder = cache / packages[0].replace("==", "-")
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (folder / "ready").exists():
        output([sys.executable, "-m", "venv", "--clear", folder])
        output([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
        (folder / "ready").touch()
    return python


def node() -> str:
    """Return the path of Node; Unavailable where there is none."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        raise Unavailable("Node and npm are not installed")
    return found


def node_modules(cache: Path) -> Path:
    """Return a folder with the packages of NPM, installed where they aren't yet.

    Their scripts, which download libraries for graphics cards, aren't run.
    """
    folder = cache / "node"
    if not (folder / "ready").exists():
        folder.mkdir(exist_ok=True)
        (folder / "package.json").write_text("{}")
        output([shutil.which("npm"), "install", "--ignore-scripts", "--no-audit", *NPM], folder)
        (folder / "ready").touch()
    return folder


Feeds = dict[str, Any]
Run = Callable[[Feeds], list[Any]]


def onnxruntime(version: list[str]) -> Callable[[str], Run]:
    """Open models in onnxruntime."""
    import onnxruntime

    version.append(onnxruntime.__version__)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3

    def opened(path: str) -> Run:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, feeds)

    return opened


def openvino(version: list[str]) -> Callable[[str], Run]:
    """Open models in OpenVINO, with float32 arithmetic as in the others."""
    import openvino

    version.append(openvino.__version__.split("-")[0])
    core = openvino.Core()

    def opened(path: str) -> Run:
        model = core.compile_model(
            path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        )
        return lambda feeds: [array.copy() for array in model(feeds).values()]

    return opened


def reference(version: list[str]) -> Callable[[str], Run]:
    """Open models in the reference implementation of ONNX."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    version.append(onnx.__version__)

    def opened(path: str) -> Run:
        evaluator = ReferenceEvaluator(path)
        return lambda feeds: evaluator.run(None, feeds)

    return opened


def interpreter(version: list[str]) -> Callable[[str], Run]:
    """Open models in this package's interpreter."""
    import onnxcompress
    from onnxcompress.runtimes.interpreter import Interpreter

    version.append(onnxcompress.__version__)

    def opened(path: str) -> Run:
        runnable = Interpreter.make().prepare(Path(path))
        return lambda feeds: list(runnable.run(feeds).values())

    return opened


ENGINES = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "onnx.reference": reference,
    "interpreter": interpreter,
}


def work(name: str, dense: str, encoded: str, feeds_file: str, seconds: str) -> None:
    """Print what runtime `name` makes of two files as JSON; needs numpy and that runtime alone."""
    import numpy as np

    version: list[str] = []
    opened = ENGINES[name](version)
    folder = Path(feeds_file).parent
    feeds = {
        entry["name"]: np.fromfile(folder / entry["file"], entry["type"]).reshape(entry["dims"])
        for entry in json.loads(Path(feeds_file).read_text())
    }
    opened(dense)  # the engine starts
    tries = [[timed(opened, path) for path in (dense, encoded)] for _ in range(LOADS)]
    loads = [sorted(seconds for _, seconds in each)[LOADS // 2] for each in zip(*tries, strict=True)]
    runs = [run for run, _ in tries[-1]]
    outputs = [list(map(np.asarray, run(feeds))) for run in runs]
    both = list(zip(*outputs, strict=True))
    result = {
        "version": version[0],
        "loads": loads,
        "difference": max(float(np.abs(a.astype(float) - b.astype(float)).max(initial=0)) for a, b in both),
        "identical": all(a.tobytes() == b.tobytes() for a, b in both),
        "pairs": list(pairs(runs, feeds, float(seconds))),
    }
    print(json.dumps(result))


def timed(opened: Callable[[str], Run], path: str) -> tuple[Run, float]:
    """Return the model in the file `path` and the seconds to load it."""
    began = time.perf_counter()
    return opened(path), time.perf_counter() - began


def pairs(runs: list[Run], feeds: Feeds, seconds: float) -> Iterator[tuple[float, float]]:
    """Yield the seconds of one run of each, again and again for `seconds`, 3 to MOST times."""
    end, count = time.perf_counter() + seconds, 0
    while count < 3 or (count < MOST and time.perf_counter() < end):
        spent = [0.0, 0.0]
        for index in (count % 2, 1 - count % 2):
            began = time.perf_counter()
            runs[index](feeds)
            spent[index] = time.perf_counter() - began
        yield spent[0], spent[1]
        count += 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
    else:
        main()

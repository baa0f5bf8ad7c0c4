from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import zoos
from onnx import numpy_helper
from rich.console import Console
from rich.text import Text

from onnxcompress.cli import main
from onnxcompress.errors import UsageError
from onnxcompress.zoo import Job, Outcome
from onnxcompress.zoo.jobs import known_options
from onnxcompress.zoo.manifest import OPTIONS, read_manifest
from onnxcompress.zoo.many import State
from onnxcompress.zoo.summary import comma_separated, markdown
from onnxcompress.zoo.watch import Lines, duration, watching

ROOT = Path(__file__).parent.parent.parent
GOOD = f"""
seed = 3
memory = 2
targets = ["cpu"]

[[model]]
path = "{zoos.SMALL}"

[[recipe]]
name = "int8"
passes = "simplify,quant"
"""

EVERYTHING = f"""
out = "results"
calibration = "{zoos.TESTDATA / "digits_calib.npz"}"
seed = 3
[[model]]
path = "*.onnx"
[[model]]
path = "{zoos.LENET}"
name = "net/lenet"
recipes = ["small"]
seed = 4
exclude = ["fc.*"]
shapes.image = [1, 1, 8, 8]
[[recipe]]
name = "int8"
passes = "quant"
targets = ["cpu", "avx2"]
[[recipe]]
name = "small"
preset = "small"
seconds = 60
memory = 1.5
seed = 5
"""


def read(folder: Path, text: str) -> list[Job]:
    (folder / "zoo.toml").write_text(text)
    return read_manifest(folder / "zoo.toml").jobs


def test_every_model_goes_through_every_recipe_for_every_target(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.onnx").write_bytes(b"")
    jobs = read(tmp_path, EVERYTHING)
    labels = [f"{name}/{recipe}" for name in "ab" for recipe in ("int8-cpu", "int8-avx2", "small")]
    assert [each.label for each in jobs] == [*labels, "net/lenet/small"]
    assert [each.options.get("target") for each in jobs[:3]] == ["cpu", "avx2", None]
    assert [each.options["seed"] for each in jobs[1:]] == [3, 5, 3, 3, 5, 4]
    assert jobs[0].options["data"] == str(zoos.TESTDATA / "digits_calib.npz")
    assert jobs[0].options["threads"] == 1
    last = jobs[-1]
    assert (last.seconds, last.memory) == (60, 1.5e9)
    assert last.options["exclude"] == ["fc.*"]
    assert last.options["shapes"] == {"image": [1, 1, 8, 8]}
    assert last.passes.endswith("encode(load_memory=3.0)")
    assert read_manifest(tmp_path / "zoo.toml").out == tmp_path / "results"


def test_a_folder_of_the_model_zoo_gives_names_and_data(tmp_path: Path) -> None:
    for name in ("vision/squeezenet1.1/model", "vision/pair/one", "vision/pair/two"):
        (tmp_path / "zoo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "zoo" / f"{name}.onnx").write_bytes(b"")
    samples = tmp_path / "zoo" / "vision" / "squeezenet1.1" / "test_data_set_0"
    samples.mkdir()
    tensor = numpy_helper.from_array(np.zeros(1, np.float32))
    onnx.save_tensor(tensor, samples / "input_0.pb")
    (tmp_path / "zoo" / "out" / "pair").mkdir(parents=True)
    (tmp_path / "zoo" / "out" / "pair" / "s.onnx").write_bytes(b"a result of an earlier run")
    text = '[[model]]\npath = "zoo"\n[[recipe]]\nname = "s"\npasses = "prune"\n'
    jobs = read(tmp_path, f'out = "zoo/out"\n{text}')
    names = ["vision/pair/one", "vision/pair/two", "vision/squeezenet1.1"]
    assert [each.name for each in jobs] == names
    assert [each.options.get("data") for each in jobs] == [None, None, str(samples.parent)]


def test_what_an_earlier_run_made_is_no_model_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("a", "mine/b"):
        (tmp_path / f"{name}.onnx").write_bytes(b"")
    text = '[[model]]\npath = "**/*.onnx"\n[[recipe]]\nname = "s"\npasses = "prune"\n'
    assert len(read(tmp_path, text)) == 2
    found = read_manifest(tmp_path / "zoo.toml", tmp_path / "mine")
    assert [each.name for each in found.jobs] == ["a"]
    assert found.out == tmp_path / "mine"


# What can be wrong in a manifest: the text it is made of GOOD by, and what is said.
MISTAKES: dict[str, tuple[str, str, str]] = {
    "no TOML": ("seed = 3", "seed = ", "zoo.toml: not TOML"),
    "unknown key": ("seed = 3", "sed = 3", "zoo.toml:2: sed: no such key; did you mean seed"),
    "unknown table": ("[[model]]", "[[modle]]", "modle: no such key; did you mean model"),
    "unknown key of a model": ("path =", "paths =", "zoo.toml:7: paths: no such key of [[model]]; did you"),
    "unknown key of a recipe": ("passes =", "pases =", "zoo.toml:11: pases: no such key of [[recipe]]; did"),
    "kind": ("seed = 3", "seed = 3.5", "zoo.toml:2: seed: is 3.5, expected a whole number"),
    "boolean as a number": ("memory = 2", "memory = true", "memory: is True, expected a number"),
    "negative": ("seed = 3", "seed = -3", "seed: is -3, expected 0 or more"),
    "no memory": ("memory = 2", "memory = 0", "zoo.toml:3: memory: is 0, expected more than 0"),
    "list": ('["cpu"]', '"cpu"', "targets: is 'cpu', expected a list"),
    "list of numbers": ('["cpu"]', "[1]", "targets: is [1], expected a list of texts"),
    "target": ('["cpu"]', '["cup"]', "zoo.toml:4: targets: cup: no such target; did you mean"),
    "pass": (
        "simplify,quant",
        "simplify,qant",
        "zoo.toml:11: passes: qant: no such pass; did you mean quant",
    ),
    "two ways": ('passes = "', 'preset = "fast"\npasses = "', "exactly one of passes, preset and file"),
    "no way": ('passes = "simplify,quant"', "", "zoo.toml:9: recipe: expected exactly one of passes"),
    "preset": (
        'passes = "simplify,quant"',
        'preset = "fas"',
        "preset: fas: no such preset; did you mean fast",
    ),
    "recipe file": ('passes = "simplify,quant"', 'file = "none.toml"', "zoo.toml:11: file: "),
    "no name": ('name = "int8"', "", "zoo.toml:9: name: is missing in a [[recipe]] table"),
    "name that leads out": ('name = "int8"', 'name = "../x"', "name: '../x' is no name for a file"),
    "no path": ("path =", "exclude = ['a']\n#", "zoo.toml:6: path: is missing in a [[model]] table"),
    "no models": ("lenet300_digits", "lenet3_digits", "zoo.toml:7: path: "),
    "no tables": ("[[model]]", "[model]", "zoo.toml: model: expected [[model]] tables"),
    "shapes": ("seed = 3", "shapes = { image = 3 }", "zoo.toml:2: shapes: is {'image': 3}, expected such as"),
    "data": ("seed = 3", 'calibration = "none.npz"', "zoo.toml:2: calibration: "),
    "metric": ("seed = 3", 'metric = "top2"', "zoo.toml:2: metric: top2: no such metric; did you mean top1"),
    "runtime": ("seed = 3", 'runtime = "onnxrt"', "did you mean onnxruntime"),
    "recipes": ("path =", 'recipes = ["int"]\npath =', "zoo.toml:7: recipes: int: no such recipe; did"),
    "name of many": (
        "lenet300_digits.onnx",
        'lenet*_digits.onnx"\nname = "x',
        "zoo.toml:8: name: is for one model",
    ),
    "same name twice": (
        "[[recipe]]",
        '[[recipe]]\nname = "int8"\npasses = "prune"\n[[recipe]]',
        "name: two recipes have it",
    ),
    "same model twice": (
        "[[model]]",
        f'[[model]]\npath = "{zoos.LENET}"\nname = "lenet300_digits"\n[[model]]',
        "zoo.toml: lenet300_digits/int8-cpu: is made of",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, changed, said = MISTAKES[mistake]
    assert given in GOOD
    (tmp_path / "zoo.toml").write_text(GOOD.replace(given, changed, 1))
    with pytest.raises(SystemExit) as left:
        main(["zoo", str(tmp_path / "zoo.toml"), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "out").exists()


def test_a_model_whose_name_is_none_for_a_folder_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a:b.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match=r"zoo.toml:7: path: a:b.onnx: name: 'a:b' is no name for a file"):
        read(tmp_path, GOOD.replace(str(zoos.SMALL), "*.onnx"))


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_manifest(tmp_path / "none.toml")
    (tmp_path / "zoo.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a text file"):
        read_manifest(tmp_path / "zoo.toml")


def test_the_reference_tells_of_every_key() -> None:
    page = (ROOT / "docs" / "zoo.md").read_text()
    for key, (_, argument) in OPTIONS.items():
        if not argument or argument in known_options():
            assert f"| `{key}` |" in page
    assert set(known_options()) <= {argument for _, argument in OPTIONS.values()} | {"target"}


SIZES = {"bytes_before": 2000, "bytes_after": 500}
OUTCOMES = [
    Outcome(
        job=Job(model="a.onnx", passes="prune"),
        status="done",
        seconds=2.34,
        figures={
            "bytes_before": 2000,
            "bytes_after": 500,
            "top1_before": 0.9,
            "top1_after": 0.8,
            "agreement": 0.95,
            "snr": 20.0,
            "random": 0,
            "latency_ratio": 0.7,
        },
    ),
    Outcome(job=Job(model="b.onnx", passes="prune"), status="time", seconds=5, message="took | long"),
    Outcome(job=Job(model="c.onnx", passes="prune"), status="done", figures=SIZES, resumed=True),
]


def test_the_summary_shows_figures_and_troubles() -> None:
    page, table = markdown(OUTCOMES), comma_separated(OUTCOMES).splitlines()
    assert "2 of 3 jobs done, 1 time." in page
    assert "| a | prune | done | 500 B | 0.250x | 90.00% -> 80.00% | 20.0 dB, 95.0% same prediction |" in page
    assert "| b | prune | time |  |  |  |  |  | 5.0 |" in page
    assert "* b/prune: took \\| long" in page
    header, first, second = (line.split(",") for line in table[:3])
    assert dict(zip(header, first, strict=True))["bytes_after"] == "500"
    assert dict(zip(header, second, strict=True)) | {"status": "time", "message": "took | long"} == dict(
        zip(header, second, strict=True)
    )
    assert len(table) == 4


def test_progress_is_shown_as_bars_on_a_terminal() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with watching(console) as look:
        look(State(3, [], {"a/prune": "prune (1 of 2)", "b/prune": "starts"}))
        look(State(3, OUTCOMES[:1], {"b/prune": "encode (2 of 2)"}, left=75.0))
        look(State(3, OUTCOMES, {}, left=0.0))
    said = Text.from_ansi(console.file.getvalue()).plain  # type: ignore[attr-defined]
    assert "[1/3] a/prune: done in 2.3 s, 500 B (0.250x)" in said
    assert "3 of 3, 0 s left" in said


def test_progress_is_a_line_for_each_event() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    lines(State(3, [], {"a/prune": "prune (1 of 2)"}))
    lines(State(3, [], {"a/prune": "prune (2 of 2)"}))
    lines(State(3, OUTCOMES[:1], {"b/prune": "starts"}, left=75.0))
    lines(State(3, OUTCOMES, {}, left=0.0))
    assert said == [
        "a/prune: prune (1 of 2)",
        "[1/3] a/prune: done in 2.3 s, 500 B (0.250x); 1 min 15 s left",
        "b/prune: starts",
        "[2/3] b/prune: time: took | long; 0 s left",
        "[3/3] c/prune: finished before, 500 B (0.250x)",
    ]
    assert [duration(each) for each in (59.4, 60, 3725)] == ["59 s", "1 min 0 s", "1 h 2 min"]


def test_a_manifest_sets_bounds_and_leaves_choices_to_them(tmp_path: Path) -> None:
    bounds = "max_drop = 1.5\nmax_size = 0.5\npasses"
    job = read(tmp_path, GOOD.replace("passes", bounds).replace("simplify,quant", "simplify,quant|cluster"))[
        0
    ]
    assert (job.options["max_drop"], job.options["max_size"]) == (1.5, 0.5)
    assert job.passes == "simplify,quant|cluster"
    named = Job(model=zoos.SMALL, passes="simplify,quant|cluster")
    assert named.recipe == "simplify+quant+cluster"

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import onnx
import pytest
import zoos
from onnx.external_data_helper import convert_model_to_external_data

import onnxcompress
from onnxcompress.errors import BoundError, CompressError, UsageError
from onnxcompress.zoo import Job, Outcome, compress_many
from onnxcompress.zoo.engines import local, open_engine
from onnxcompress.zoo.jobs import Keys, check_done
from onnxcompress.zoo.journal import opened
from onnxcompress.zoo.many import State
from onnxcompress.zoo.summary import write_summary


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(zoos.add_bad_passes(tmp_path)))


@pytest.mark.usefixtures("bad")
def test_a_job_that_crashes_hangs_or_grows_costs_itself_only(tmp_path: Path) -> None:
    jobs = [
        Job(model=zoos.SMALL, passes="prune"),
        Job(model=zoos.SMALL, passes="crash"),
        Job(model=zoos.SMALL, passes="bug"),
        Job(model=zoos.SMALL, passes="hog", memory=600e6),
        Job(model=zoos.SMALL, passes="sleep", seconds=0.5),
        Job(model=zoos.TRANSFORMER, passes="simplify", options={"rtol": 0.0, "atol": 0.0}),
    ]
    states: list[State] = []
    outcomes = compress_many(jobs, out=tmp_path / "out", watch=states.append)
    assert [each.job for each in outcomes] == jobs
    assert [each.status for each in outcomes] == ["done", "killed", "killed", "memory", "time", "bound"]
    said = [each.message for each in outcomes]
    assert said[1:5] == [
        "killed by SIGSEGV",
        "ended with 1: ValueError: three is two",
        "took more than 0.6 GB of memory",
        "took more than 0.5 s",
    ]
    assert said[5].startswith("simplify: outputs differ")
    assert zoos.made(tmp_path / "out").keys() == {"lenet300_digits/prune.onnx"}
    assert (
        outcomes[0].figures["bytes_after"] == (tmp_path / "out" / "lenet300_digits/prune.onnx").stat().st_size
    )
    assert states[-1].total == len(states[-1].outcomes) == len(jobs)
    assert any("lenet300_digits/sleep" in each.running for each in states)
    with pytest.raises(CompressError, match="of 6 jobs aren't done: lenet300_digits/crash: killed"):
        check_done(outcomes)


def test_any_executor_makes_the_same_files(tmp_path: Path) -> None:
    jobs = zoos.small_jobs(1)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert [each.status for each in compress_many(jobs, pool, out=tmp_path / "pool")] == ["done"]
    compress_many(jobs, local(1), out=tmp_path / "here")
    assert zoos.made(tmp_path / "pool") == zoos.made(tmp_path / "here")
    assert zoos.made(tmp_path / "here").keys() == {"lenet300_digits/r0.1.onnx"}
    report = json.loads((tmp_path / "here" / "lenet300_digits" / "r0.1.json").read_text())
    assert report["output"] == str(tmp_path / "here" / "lenet300_digits" / "r0.1.onnx")


def test_the_summary_leads_to_the_page_of_each_job_that_is_done(tmp_path: Path) -> None:
    jobs = [*zoos.small_jobs(1), Job(model=tmp_path / "none.onnx", passes="prune")]
    outcomes = compress_many(jobs, out=tmp_path)
    assert write_summary(outcomes, tmp_path) == []
    shown = tmp_path / "lenet300_digits" / "r0.1.html"
    assert 'href="lenet300_digits/r0.1.html"' in (tmp_path / "summary.html").read_text()
    text = shown.read_text()
    for part in ("Energy by kind of layer", "Bytes by tensor", f"{tmp_path}/lenet300_digits/r0.1.onnx"):
        assert part in text
    assert "This report has no" not in text
    assert not (tmp_path / "none").exists()
    made = shown.stat().st_mtime_ns
    write_summary(outcomes, tmp_path)
    assert shown.stat().st_mtime_ns == made
    os.utime(shown, (0, 0))  # as if its report were newer
    write_summary(outcomes, tmp_path)
    assert shown.stat().st_mtime_ns > made
    compress_many(jobs[:1], out=tmp_path)
    assert not shown.exists()  # it was that of another result


def test_without_jinja2_there_is_no_page_and_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_summary([], tmp_path)
    assert (tmp_path / "summary.html").exists()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    (note,) = write_summary([], tmp_path)
    assert note.startswith("no summary.html: html: jinja2 is not installed")
    assert {each.name for each in tmp_path.iterdir()} == {"summary.md", "summary.csv"}


def test_resuming_repeats_only_what_changed(tmp_path: Path) -> None:
    model, out = tmp_path / "model.onnx", tmp_path / "out"
    model.write_bytes(zoos.SMALL.read_bytes())
    first = Job(model=model, passes="prune", options={"external_data": True})
    second = Job(model=zoos.SMALL, passes="prune", options={"seed": 1})
    compress_many([first, second], out=out)
    before = zoos.stamps(out)
    again = compress_many([second, first], out=out, resume=True)
    assert [each.resumed for each in again] == [True, True]
    assert again[0].figures["bytes_after"] > 0
    assert zoos.stamps(out) == before

    (out / "model" / "prune.onnx.data").write_bytes(b"someone else's")
    again = compress_many([first, second], out=out, resume=True)
    assert [(each.status, each.resumed) for each in again] == [("done", False), ("done", True)]
    onnx.load(out / "model" / "prune.onnx")
    plain = replace(first, options={})
    assert not compress_many([plain], out=out, resume=True)[0].resumed
    assert not (out / "model" / "prune.onnx.data").exists()


def test_a_key_is_that_of_all_that_decides_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.npy").write_bytes(b"1")
    model = tmp_path / "model.onnx"
    loaded = onnx.load(zoos.SMALL)
    convert_model_to_external_data(loaded, location="weights", size_threshold=0)
    onnx.save(loaded, model)
    job = Job(model=model, passes="prune", options={"data": str(data)})
    others = [
        replace(job, passes="quant"),
        replace(job, options={"data": f"{data}[:1]"}),
        replace(job, options={"data": str(data), "seed": 1}),
        replace(job, name="other"),
    ]
    keys = [Keys()(each) for each in (job, *others)]
    assert Keys()(job) == keys[0]
    assert Keys()(replace(job, seconds=5.0)) == keys[0]
    (data / "a.npy").write_bytes(b"2")
    keys.append(Keys()(job))
    with (tmp_path / "weights").open("ab") as file:
        file.write(b"more")
    keys.append(Keys()(job))
    model.write_bytes(model.read_bytes() + b"\n")
    keys.append(Keys()(job))
    monkeypatch.setattr(onnxcompress, "__version__", "9")
    keys.append(Keys()(job))
    assert len(set(keys)) == len(keys)


def test_what_is_left_of_an_earlier_result_goes_when_a_job_fails(tmp_path: Path) -> None:
    job = Job(model=zoos.SMALL, passes="prune")
    target = tmp_path / "lenet300_digits" / "prune.onnx"
    target.parent.mkdir()
    target.write_bytes(b"old")
    wrong = replace(job, options={"metric": "top1"})
    assert [each.status for each in compress_many([wrong], out=tmp_path)] == ["failed"]
    assert not target.exists()


def test_two_processes_never_run_in_one_folder(tmp_path: Path) -> None:
    take = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)"
    with opened(tmp_path):
        pass
    command = [sys.executable, "-c", f"{take}; print(flush=True); input()", str(tmp_path / ".zoo" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match="another run is at work"):
            compress_many([], out=tmp_path)
        other.kill()
    assert compress_many([], out=tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "../up"}, "no name for a file"),
        ({"name": ".zoo"}, "no name for a file"),
        ({"recipe": "a/b"}, "no name for a file"),
        ({"options": {"evalution": "x"}}, "evalution: no such option; did you mean evaluation"),
        ({"options": {"data": [1]}}, "data is list, expected a path"),
        ({"seconds": 0}, "seconds is 0, expected more than 0"),
        ({"passes": "prun"}, "did you mean prune"),
    ],
)
def test_a_wrong_job_is_refused_when_it_is_made(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Job(**{"model": zoos.SMALL, "passes": "prune", **arguments})  # type: ignore[arg-type]


def test_jobs_that_would_write_one_file_are_refused(tmp_path: Path) -> None:
    job = Job(model=zoos.SMALL, passes="prune")
    with pytest.raises(UsageError, match="two recipes"):
        compress_many([job, replace(job, passes="quant")], out=tmp_path)
    with pytest.raises(UsageError, match="names of their own"):
        compress_many([job, replace(job, model=zoos.LENET)], out=tmp_path)
    with pytest.raises(UsageError, match="name of a summary"):
        compress_many([replace(job, name="summary.HTML")], out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_missed_bounds_have_an_error_of_their_own() -> None:
    job = Job(model=zoos.SMALL, passes="prune")
    check_done([Outcome(job=job, status="done")])
    with pytest.raises(BoundError, match="1 of 2 jobs"):
        check_done([Outcome(job=job, status="done"), Outcome(job=job, status="bound")])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("cloud",), "engine is 'cloud'"),
        (("local", None, "tcp://host:1"), "expected --engine dask"),
        (("dask",), "expected the address"),
        (("dask", 2, "tcp://host:1"), "jobs: is for the engine local"),
    ],
)
def test_arguments_of_the_other_engine_are_refused(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said), open_engine(*arguments):  # type: ignore[arg-type]
        pass


def test_dask_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(UsageError, match=r"dask: is not installed, expected pip install onnxcompress\[dask\]"),
        open_engine("dask", None, "tcp://host:1"),
    ):
        pass


def start(folder: Path, manifest: str) -> tuple[subprocess.Popen[str], Path]:
    """Start ``onnxcompress zoo`` on `manifest` in a process; return it and its folder of results."""
    (folder / "zoo.toml").write_text(manifest)
    path = os.pathsep.join([str(zoos.add_bad_passes(folder)), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxcompress", "zoo", "zoo.toml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, folder / "out"


def children(out: Path) -> list[Path]:
    """The processes that work in the folder `out`."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if str(each.readlink()).startswith(str(out / ".zoo")):
                found.append(each.parent)
        except OSError:
            continue
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; an error after a minute."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("not within a minute")


MANIFEST = f"""
[[model]]
path = "{zoos.SMALL}"
[[recipe]]
name = "first"
passes = "prune"
[[recipe]]
name = "last"
passes = "sleep"
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["interrupt", "kill"])
def test_the_end_of_a_run_ends_its_jobs_and_keeps_what_is_finished(tmp_path: Path, sent: int) -> None:
    process, out = start(tmp_path, MANIFEST)
    with process:
        until(lambda: bool(children(out)) and any(out.glob(".zoo/done/*")))
        kept = zoos.stamps(out)
        process.send_signal(sent)
        _, said = process.communicate(timeout=30)
    until(lambda: not children(out))
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert said.splitlines()[-1] == "onnxcompress: interrupted; --resume goes on with what isn't finished"
        assert "Traceback" not in said
        assert not list(out.glob(".zoo/runs/*"))
    assert kept.keys() == {"lenet300_digits/first.onnx"}
    job = Job(model=zoos.SMALL, passes="prune", recipe="first")
    assert compress_many([job], out=out, resume=True)[0].resumed
    assert zoos.stamps(out) == kept


def test_figures_that_are_not_finite_are_in_no_plot(tmp_path: Path) -> None:
    sizes = {"bytes_before": 4.0, "bytes_after": 1.0}
    outcomes = [
        Outcome(job=Job(model=f"{name}.onnx", passes="prune"), status="failed", figures={**sizes, "snr": snr})
        for name, snr in (("a", -math.inf), ("b", 20.0), ("c", 10.0))
    ]
    write_summary(outcomes, tmp_path)
    assert "nan" not in (tmp_path / "summary.html").read_text().lower()

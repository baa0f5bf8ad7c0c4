import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path

import pytest
import zoos

from onnxcompress.errors import UsageError
from onnxcompress.zoo import compress_many
from onnxcompress.zoo.engines import open_engine
from onnxcompress.zoo.many import State

ROOT = Path(__file__).parent.parent.parent
pytest.importorskip("distributed", reason="dask.distributed is not installed (the extra dask)")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and three workers, each a process; yield its address and the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    scheduler = ["scheduler", "--host", address, "--no-dashboard", "--no-jupyter"]
    worker = ["worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--death-timeout", "20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DASK_TEMPORARY_DIRECTORY": str(tmp_path / "spill")}
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "dask.log").open("wb"))
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *command], env=environment, stdout=log, stderr=log
                )
            )
            for command in (scheduler, worker, worker, worker)
        ]
        try:
            wait_for_port(port)
            yield address, processes
        finally:
            for each in processes:
                each.kill()


def test_a_cluster_makes_the_same_files_and_outlives_a_worker(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcompress.zoo.engines.PATIENCE", 5)
    address, (scheduler, *workers) = cluster
    jobs = zoos.small_jobs(3)
    out = tmp_path / "dask"

    def kill_one(state: State) -> None:
        if state.running and workers[0].poll() is None:
            workers[0].send_signal(signal.SIGKILL)

    with open_engine("dask", None, address) as executor:
        wait_for_workers(executor, 3)
        outcomes = compress_many(jobs, executor, out=out, watch=kill_one)
        assert [each.status for each in outcomes] == ["done"] * 3
        assert workers[0].wait(5) == -signal.SIGKILL
        kept = zoos.stamps(out)

        def kill_scheduler(state: State) -> None:
            if state.running:
                scheduler.send_signal(signal.SIGKILL)

        more = zoos.small_jobs(2, "prune(sparsity={}),quant")
        lost = compress_many(more, executor, out=tmp_path / "lost", watch=kill_scheduler)
        assert "lost" in {each.status for each in lost}
        assert lost[-1].message == "the executor has given it up"
    compress_many(jobs[:1], out=tmp_path / "here")
    found = zoos.made(out)
    assert zoos.made(tmp_path / "here").items() <= found.items()
    assert len(set(found.values())) == 3
    assert [each.resumed for each in compress_many(jobs, out=out, resume=True)] == [True] * 3
    assert zoos.stamps(out) == kept


def wait_for_port(port: int) -> None:
    """Wait until something listens there."""
    for _ in range(600):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("no scheduler after a minute")


def wait_for_workers(executor: Executor, count: int) -> None:
    """Wait until the cluster of `executor` has `count` workers."""
    client = executor._client  # type: ignore[attr-defined]
    client.wait_for_workers(count, timeout=60)


def test_a_scheduler_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcompress.zoo.engines.PATIENCE", 0.5)
    with (
        pytest.raises(UsageError, match=r"tcp://.*:9: no dask scheduler answers"),
        open_engine("dask", None, "tcp://127.0.0.1:9"),
    ):
        pass
    with pytest.raises(UsageError, match="no dask scheduler answers"), open_engine("dask", None, "what://x"):
        pass

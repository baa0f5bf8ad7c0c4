"""Where jobs run: on this machine, or on a cluster of dask.distributed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from onnxcompress.errors import UsageError
from onnxcompress.target import processors

ENGINES = ("local", "dask")
PATIENCE = 10  # seconds in which a scheduler must answer


@contextmanager
def open_engine(name: str, jobs: int | None = None, scheduler: str | None = None) -> Iterator[Executor]:
    """Yield the executor called `name`: "local", `jobs` at a time, or "dask", that of `scheduler`.

    UsageError where an argument is missing, is for the other engine, or where no scheduler answers.
    """
    if name not in ENGINES:
        raise UsageError(f"engine is {name!r}, expected one of {', '.join(ENGINES)}")
    if name == "local":
        if scheduler is not None:
            raise UsageError("scheduler: is for the engine dask, expected --engine dask")
        with local(jobs) as executor:
            yield executor
        return
    if scheduler is None:
        raise UsageError("dask: expected the address of a scheduler, such as tcp://host:8786")
    if jobs is not None:
        raise UsageError("jobs: is for the engine local; with dask, the threads of its workers count")
    with dask(scheduler) as executor:
        yield executor


def local(jobs: int | None = None) -> Executor:
    """Return an executor for `jobs` jobs at a time (None: one a processor), each in a process of its own.

    Its threads only watch over these processes.
    """
    return ThreadPoolExecutor(jobs or processors(), thread_name_prefix="onnxcompress")


@contextmanager
def dask(address: str) -> Iterator[Executor]:
    """Yield the executor of the dask scheduler at `address`; UsageError where it can't be reached.

    Its workers must have this version of onnxcompress and see the same files at the same paths.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("dask: is not installed, expected pip install onnxcompress[dask]") from error
    logging.getLogger("distributed.client").setLevel(
        logging.CRITICAL
    )  # a lost scheduler is told by the outcomes
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{address}: no dask scheduler answers: {reason}") from error
    try:
        yield client.get_executor()
    finally:
        client.close(timeout=PATIENCE)

"""Threads that decode blocks: NumPy and zstd let go of the interpreter while they work."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

_MOST_THREADS = 8  # more than memory can feed is of no use


def n_threads(threads: int | None) -> int:
    """How many threads to use: as many as asked for, or as there are processors, up to a number.

    Raises:
        ValueError: It is no number of at least 1.
    """
    if threads is None:
        try:
            n_processors = len(os.sched_getaffinity(0))
        except AttributeError:  # not on every system
            n_processors = os.cpu_count() or 1
        return min(n_processors, _MOST_THREADS)
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"threads is {threads!r}; None and whole numbers from 1 are allowed")
    return threads


class Workers:
    """Runs jobs, in any order, with at most two waiting for each thread; their errors come in the order of the jobs.

    As a context manager it ends when all are done; an error of an earlier job goes before one raised inside.

    Args:
        threads: With 1 a job is run where it is handed in.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: deque[Future[Any]] = deque()

    def run(self, job: Callable[..., Any], *args: Any, here: bool = False) -> None:
        """Run a job, now or soon.

        Args:
            here: Whether to run it in this thread.

        Raises:
            Exception: That of an earlier job, or where it runs in this thread of this one.
        """
        if here or self._threads == 1:
            job(*args)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "vqformat")
        self._jobs.append(self._pool.submit(job, *args))
        while len(self._jobs) > 2 * self._threads:
            self._jobs.popleft().result()

    def wait(self) -> None:
        """Wait until all jobs are done.

        Raises:
            Exception: That of the first job that failed.
        """
        while self._jobs:
            self._jobs.popleft().result()

    def close(self) -> None:
        """Forget the jobs that have not begun, and wait for the others."""
        self._jobs.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if err is None or isinstance(err, Exception):  # not where the user interrupts
                self.wait()
        finally:
            self.close()

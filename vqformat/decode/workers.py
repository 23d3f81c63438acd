"""Threads that decode blocks. NumPy and zstd release the interpreter lock while they work."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

_MOST_THREADS = 8  # more threads are limited by the memory bandwidth


def n_threads(threads: int | None) -> int:
    """The number of threads to use.

    Args:
        threads: The caller's choice; None for the number of processors, but at most 8.

    Raises:
        ValueError: It is not an integer of at least 1.
    """
    if threads is None:
        try:
            n_processors = len(os.sched_getaffinity(0))
        except AttributeError:  # not available on macOS and Windows
            n_processors = os.cpu_count() or 1
        return min(n_processors, _MOST_THREADS)
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"threads is {threads!r}; None and whole numbers from 1 are allowed")
    return threads


class Workers:
    """Runs jobs in threads, in any order. At most two jobs wait for each thread. Errors come in the order of the jobs.

    As a context manager it waits at the end for all jobs. An error of a job replaces one raised inside the context.

    Args:
        threads: Number of threads. With 1, ``run`` runs the job itself.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: deque[Future[Any]] = deque()

    def run(self, job: Callable[..., Any], *args: Any, here: bool = False) -> None:
        """Run a job now, or hand it to a thread.

        Args:
            here: Whether to run it in the calling thread.

        Raises:
            Exception: Of an earlier job; or of this one, if it runs in the calling thread.
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
            Exception: Of the first job that failed.
        """
        while self._jobs:
            self._jobs.popleft().result()

    def close(self) -> None:
        """Cancel the jobs that have not begun, and wait for the others."""
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
            if err is None or isinstance(err, Exception):  # no waiting after KeyboardInterrupt
                self.wait()
        finally:
            self.close()

"""Threads that decode blocks. NumPy and zstd release the interpreter lock while they work."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
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
    """Runs jobs in threads, in any order: the caller's is one of them. Errors come in the order of the jobs.

    As a context manager it waits at the end for all jobs. An error of a job replaces one raised inside the context.

    Args:
        threads: Number of threads. With 1, ``run`` runs the job itself.
    """

    def __init__(self, threads: int) -> None:
        self._n_others = threads - 1
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[tuple[Future[None], Callable[[], None]]] = deque()
        self._outcomes: deque[Future[None]] = deque()

    def run(self, job: Callable[..., None], *args: Any, here: bool = False) -> None:
        """Run a job now, or leave it to any thread. If two jobs wait for each other thread, one more is run now.

        Args:
            here: Whether to run it in the calling thread.

        Raises:
            Exception: Of an earlier job; or of this one, if it runs in the calling thread.
        """
        if here or not self._n_others:
            job(*args)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._n_others, "vqformat")
        outcome: Future[None] = Future()
        self._outcomes.append(outcome)
        self._waiting.append((outcome, partial(job, *args)))
        self._pool.submit(self._run_next)
        if len(self._waiting) > 2 * self._n_others:
            self._run_next()
        while self._outcomes and self._outcomes[0].done():
            self._outcomes.popleft().result()

    def _run_next(self) -> None:
        """Run the job that has waited longest, unless another thread has taken it."""
        try:
            outcome, job = self._waiting.popleft()
        except IndexError:
            return
        try:
            job()
        except Exception as err:
            outcome.set_exception(err)
        else:
            outcome.set_result(None)

    def wait(self) -> None:
        """Run the jobs that still wait, and wait until all are done.

        Raises:
            Exception: Of the first job that failed.
        """
        while self._waiting:
            self._run_next()
        while self._outcomes:
            self._outcomes.popleft().result()

    def close(self) -> None:
        """Drop the jobs that have not begun, and wait for the others."""
        self._waiting.clear()
        self._outcomes.clear()
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

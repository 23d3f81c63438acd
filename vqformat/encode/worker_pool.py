"""Workers that run tasks: new processes, or an executor that the caller gives."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from typing import Any, TypeVar

from ..errors import EncodeError
from .task import Task, run

_AHEAD = 2  # tasks for each worker that run or wait, so that none is idle
# Number of threads of the libraries that NumPy multiplies matrices with. They read it when NumPy is imported
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
                     "BLIS_NUM_THREADS")  # fmt: skip
_Item = TypeVar("_Item")


class WorkersLostError(EncodeError):
    """A worker process ended before its task was done."""


class WorkerPool:
    """Hands tasks to an executor. Few wait at the same time, so that memory is bounded.

    Args:
        n_workers: How many tasks the executor runs at the same time.
        folder: Folder in which workers may leave outcomes; None if they may be on other machines.
    """

    def __init__(self, executor: Executor, n_workers: int, folder: str | None) -> None:
        self._executor, self._n_ahead, self.folder = executor, _AHEAD * n_workers, folder

    def outcomes(
        self, items: Iterable[tuple[_Item, Task | str | None]], tell: Callable[[_Item], None]
    ) -> Generator[tuple[_Item, Any], None, None]:
        """What ``task.run`` returns, in the order of the tasks.

        Args:
            items: Tasks, and what each is for. One without a task comes back in its turn, with None; one with the name
                of an outcome, which is known already, with that name.
            tell: Called with what a task is for as soon as it is done, in any order.

        Raises:
            Exception: Of the first task in order that has failed.
        """
        queue: deque[tuple[_Item, Future[Any] | str | None]] = deque()
        running: dict[Future[Any], _Item] = {}
        n_waiting = 0
        source = iter(items)
        with self._stopped_at_exit(running):
            while True:
                while n_waiting < self._n_ahead:
                    found = next(source, None)
                    if found is None:
                        break
                    item, task = found
                    future = self._executor.submit(run, task) if isinstance(task, Task) else task
                    if isinstance(future, Future):
                        running[future] = item
                        n_waiting += 1
                    queue.append((item, future))
                if not queue:
                    return
                item, future = queue.popleft()
                if not isinstance(future, Future):
                    yield item, future
                    continue
                while future in running:
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        done_item = running.pop(done)
                        if done.exception() is None:
                            tell(done_item)
                n_waiting -= 1
                value = future.result()
                del future  # it holds the value
                yield item, value

    def run(self, task: Task) -> Any:
        """What ``task.run`` returns for one task."""
        with self._stopped_at_exit({}):
            return self._executor.submit(run, task).result()

    @contextlib.contextmanager
    def _stopped_at_exit(self, running: dict[Future[Any], Any]) -> Iterator[None]:
        """Context that cancels what is still running when it is left."""
        try:
            yield
        except BrokenExecutor as err:
            raise WorkersLostError("a worker process ended before its tensor was encoded; most likely the system"
                                   " stopped it for want of memory: fewer workers take less") from err  # fmt: skip
        finally:
            for future in running:
                future.cancel()


@contextlib.contextmanager
def opened_pool(
    n_workers: int, executor: Executor | None, temporary: str | None
) -> Iterator[WorkerPool | None]:
    """Context with workers; with None if this process does all work. New processes end with the context.

    Args:
        n_workers: See ``Options.workers``.
        executor: See ``Options.executor``.
        temporary: Folder of temporary files; None for the system's.
    """
    if executor is not None:
        if n_workers == 1:  # not said
            n_workers = getattr(executor, "_max_workers", None) or os.cpu_count() or 1
        yield WorkerPool(executor, n_workers, None)
    elif n_workers > 1:
        with (tempfile.TemporaryDirectory(prefix="vqm-", dir=temporary, ignore_cleanup_errors=True) as folder,
              _processes(n_workers) as pool):  # fmt: skip
            yield WorkerPool(pool, n_workers, folder)
    else:
        yield None


@contextlib.contextmanager
def _processes(n_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Context with new processes. They share the processors: each may use as many threads as it has processors."""
    before = set(multiprocessing.active_children())
    # A fork would copy locks that other threads hold
    pool = ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"), _begin)
    try:
        with _threads_each(max(1, (os.cpu_count() or 1) // n_workers)):
            for _ in range(n_workers):
                pool.submit(_nothing)  # a process is started for each task, while none is idle
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown()


@contextlib.contextmanager
def _threads_each(n_threads: int) -> Iterator[None]:
    """Context in which processes are started that use so many threads each."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(n_threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin() -> None:
    """Prepare a worker process. Ctrl-C reaches it, too, but its parent ends it; without its parent it ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _nothing() -> None:
    """The first task of a worker process."""


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)

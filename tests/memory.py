"""How much memory work takes: measured in a process of its own, under a hard limit. Linux only."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

MB = 1e6
IS_KNOWN = Path("/proc/self/status").exists()
# Once, for all processes; what is not installed is left out
_LOADED = ["hypothesis", "ml_dtypes", "numpy", "onnx", "pytest", "safetensors.torch", "torch", "vqformat.torch",
           "vqformat.converters.export.pytorch", "vqformat.converters.npz", "vqformat.converters.onnx",
           "vqformat.converters.pytorch", "vqformat.converters.safetensors"]  # fmt: skip


class Measured(NamedTuple):
    """What came of a piece of work.

    Attributes:
        peak_mb: The most anonymous memory, of private pages that no file backs, above what the process had before.
        result: What it returned.
    """

    peak_mb: float
    result: Any


def measure(work: Callable[..., Any], *args: Any, prepare: Callable[[], Any] | None = None,
            limit_mb: float | None = None) -> Measured:  # fmt: skip
    """Call a function in a new process.

    Args:
        work: Of a module that can be imported.
        prepare: Called before, such as to import: what it takes does not count.
        limit_mb: What the process may take more; beyond it the system gives no memory.

    Raises:
        RuntimeError: The function raised something; the message says what.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED)
    ours, theirs = context.Pipe()
    process = context.Process(target=_call, args=(theirs, work, args, prepare, limit_mb))
    process.start()
    theirs.close()
    try:
        start = most = ours.recv()
        while not ours.poll(0.001):  # sampled from here, for the process itself may be busy without a pause
            most = max(most, status_nbytes("RssAnon", process.pid, most))
        result, error, end = ours.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__}: the process died") from None
    finally:
        process.join()
        process.close()
        ours.close()
    if error is not None:
        raise RuntimeError(f"{work.__name__}: {error}")
    return Measured((max(most, end) - start) / MB, result)


def _call(
    pipe: Connection, work: Callable[..., Any], args: tuple[Any, ...], prepare: Callable[[], Any] | None,
    limit_mb: float | None,
) -> None:  # fmt: skip
    result, error = None, None
    try:
        if prepare is not None:
            prepare()
        if limit_mb is not None:
            import resource  # not on every system

            limit = status_nbytes("VmData") + int(limit_mb * MB)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        pipe.send(status_nbytes("RssAnon"))
        result = work(*args)
    except BaseException as err:
        error = f"{type(err).__name__}: {err}"
    pipe.send((result, error, status_nbytes("RssAnon")))


def status_nbytes(field: str, process: int | str | None = "self", missing: int = 0) -> int:
    """A figure of a process as the kernel tells it.

    Args:
        missing: What to say of a process that is no more.
    """
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    return missing

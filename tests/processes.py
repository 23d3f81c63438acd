"""Running a function in another process, which a fork or a spawn makes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

_GUARD_S = 300  # a process that takes longer hangs

needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")


def begin(method: str, function: Callable[..., Any], *args: Any) -> BaseProcess:
    """Call a function in another process. With ``"spawn"`` it and its arguments are pickled."""
    process: BaseProcess = multiprocessing.get_context(method).Process(  # type: ignore[attr-defined]
        target=function, args=args, daemon=True)
    process.start()
    return process


def end(*processes: BaseProcess) -> None:
    """Wait until processes have ended; fail if one has raised an exception, or hangs."""
    for process in processes:
        process.join(_GUARD_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            pytest.fail("the process hangs")
    assert [process.exitcode for process in processes] == [0] * len(processes)

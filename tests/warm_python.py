"""Runs Python programs as forks of one process that has imported what they need.

Each program would take seconds to import PyTorch. Where a system has no fork, each is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

HAS_FORK = hasattr(os, "fork")
VQM = "import sys; from vqformat.cli import main; sys.exit(main())"


class Done(NamedTuple):
    """What a program left behind."""

    returncode: int
    stdout: str
    stderr: str


class WarmPython:
    """A Python for programs of one folder.

    Args:
        modules: What is imported before; those that are not installed are left out.
    """

    def __init__(self, folder: Path, modules: Iterable[str]) -> None:
        self._folder = folder
        self._server: subprocess.Popen[str] | None = None
        if HAS_FORK:
            loaded = [name for name in modules if find_spec(name.partition(".")[0]) is not None]
            program = f"import sys; sys.path[:] = {sys.path!r}; import warm_python; warm_python.serve(sys.argv[1:])"
            self._server = subprocess.Popen([sys.executable, "-c", program, *loaded], cwd=folder, text=True,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()

    def run(self, code: str, arguments: Iterable[str] = (), *, may_warn: bool = False, is_alone: bool = False) -> Done:
        """Run a program. A warning is an error, except one of Keras about NumPy.

        Args:
            arguments: All of ``sys.argv``.
            is_alone: Whether it is to be a process of its own.
        """
        request = {"code": code, "arguments": list(arguments), "may_warn": may_warn}
        if is_alone or self._server is None:
            program = f"import sys; sys.path[:] = {sys.path!r}; import json, warm_python; " \
                      "warm_python.run(json.loads(sys.argv[1]))"  # fmt: skip
            done = subprocess.run([sys.executable, "-c", program, json.dumps(request)], cwd=self._folder, text=True,
                                  capture_output=True, check=False)  # fmt: skip
            return Done(done.returncode, done.stdout, done.stderr)
        assert self._server.stdin is not None and self._server.stdout is not None
        streams = [self._folder.with_name(f"{self._folder.name}.{name}") for name in ("out", "err")]
        self._server.stdin.write(json.dumps(request | {"streams": list(map(str, streams))}) + "\n")
        self._server.stdin.flush()
        return Done(int(self._server.stdout.readline()), *(stream.read_text("utf-8") for stream in streams))


def serve(modules: list[str]) -> None:
    """Import modules; then fork for each request on stdin, and answer with its exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if not process:
            _be_program(request)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def _be_program(request: dict[str, Any]) -> None:
    code = 1
    try:
        for number, stream in enumerate([os.devnull, *request["streams"]]):
            file = os.open(stream, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        run(request)
        code = 0
    except SystemExit as err:
        code = err.code if isinstance(err.code, int) else 0 if err.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(request: dict[str, Any]) -> None:
    """Run a program in this process."""
    sys.argv = request["arguments"]
    sys.path[0:0] = [""]
    if request["may_warn"]:
        warnings.simplefilter("ignore")
    else:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
    exec(compile(request["code"], "<program>", "exec"), {"__name__": "__main__"})

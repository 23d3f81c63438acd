"""Runs the process that reads HDF5 files as a fork of one that has imported all it needs. Linux only.

The converters start a Python for each HDF5 file. Most of its time goes to imports, and the tests open hundreds of
files. A server imports once and forks for each file; what the fork runs is the program that users run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

IS_POSSIBLE = sys.platform == "linux"
MESSAGE_NBYTES = 1 << 17


class Server:
    """Stands for the module ``subprocess`` in ``converters/hdf5.py``."""

    DEVNULL = PIPE = None

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        program = f"import sys; sys.path[:] = {sys.path!r}; import hdf5_server; hdf5_server.serve({theirs.fileno()})"
        self._process = subprocess.Popen([sys.executable, "-c", program], pass_fds=[theirs.fileno()])
        theirs.close()

    def close(self) -> None:
        self._socket.close()
        self._process.wait()

    def ask(self, message: Any, *files: int) -> int:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(message).encode()], files)
            return int(self._socket.recv(MESSAGE_NBYTES))

    def Popen(self, command: list[str], **_: Any) -> Fork:
        return Fork(self, command[3:])


class Fork:
    """Stands for ``subprocess.Popen``."""

    def __init__(self, server: Server, arguments: list[str]) -> None:
        self._server = server
        self._code: int | None = None
        ours, theirs = os.pipe()
        self.pid = server.ask(["-c", *arguments], theirs)
        os.close(theirs)
        self.stdout = open(ours, "rb")  # noqa: SIM115

    def kill(self) -> None:
        if self._code is None:  # the server has not waited for it, so no other process has its number
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self._code is None:
            self._code = self._server.ask(self.pid)
        return self._code


def serve(file: int) -> None:
    """Fork for each list of arguments, and wait for each process that is named, until the socket is closed."""
    from vqformat.converters.hdf5_walk import main

    with socket.socket(fileno=file) as connection:
        while True:
            data, files, _, _ = socket.recv_fds(connection, MESSAGE_NBYTES, 1)
            if not data:
                return
            message = json.loads(data)
            if isinstance(message, int):
                answer = os.waitstatus_to_exitcode(os.waitpid(message, 0)[1])
            elif not (answer := os.fork()):
                connection.close()
                _walk(main, message, files[0])
            else:
                os.close(files[0])
            connection.send(str(answer).encode())


def _walk(main: Any, arguments: list[str], out: int) -> None:
    """What ``_PROGRAM`` of ``converters/hdf5.py`` does, in a process that ends with it."""
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.argv = arguments
        main()
        sys.stdout.flush()
        code = 0
    finally:
        os._exit(code)

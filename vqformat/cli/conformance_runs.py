"""Runs of a decoder by ``vqm conformance``: the process, its memory, and whether its answer is right."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

from ..text import escape, shorten
from .conformance_cases import Case, integers
from .files import STDIO

Way = Literal["name", "pieces"]  # the name of a file as argument; its bytes on stdin, piece by piece

_MAX_OUTPUT = 1 << 26  # bytes of an answer that are read
_PER_PIECE_S = 0.05  # a decoder that does not read a piece in this time gets the next one all the same


@dataclass(frozen=True)
class Answer:
    """What a run gave. ``peak_nbytes`` is None where the platform does not tell it."""

    code: int
    output: bytes
    last_error_line: str
    peak_nbytes: int | None
    timed_out: bool


def command_for(decoder: str, file: str | None) -> list[str]:
    """The command: ``{}`` becomes the file, which comes last if there is no ``{}``."""
    words = shlex.split(decoder, posix=os.name == "posix")
    if "{}" in decoder:
        return [word.replace("{}", STDIO if file is None else file) for word in words]
    return words if file is None else [*words, file]


class Decoder:
    """A decoder that is run on fixtures, by several threads at the same time.

    Args:
        command: Its command.
        timeout_s: Seconds after which a run is ended.
        stdin_only: Whether it gets no argument.
    """

    def __init__(self, command: str, timeout_s: float, *, stdin_only: bool = False) -> None:
        self._command, self._timeout_s, self._stdin_only = command, timeout_s, stdin_only
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()  # that run now
        self._is_ended = False

    def run(self, case: Case, way: Way) -> Answer:
        """Run it on a fixture.

        Raises:
            OSError: The command does not exist, or ``end`` has been called.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            file = str(case.path.absolute()) if way == "name" else None if self._stdin_only else STDIO
            stdin = subprocess.DEVNULL if way == "name" else subprocess.PIPE
            overdue = threading.Event()
            with self._started(command_for(self._command, file), stdin=stdin, stdout=out, stderr=err) as process:

                def end() -> None:
                    overdue.set()
                    _kill(process)

                timer = threading.Timer(self._timeout_s, end)
                timer.start()
                try:
                    if process.stdin is not None:
                        _feed(process.stdin, case.path.read_bytes())
                    code, peak = _wait(process)
                finally:
                    timer.cancel()
            lines = _read(err).decode("utf-8", "replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            return Answer(code, _read(out), last, peak, overdue.is_set())

    def end(self) -> None:
        """End all runs, and begin none any more."""
        with self._lock:
            self._is_ended = True
            for process in self._processes:
                _kill(process)

    @contextlib.contextmanager
    def _started(self, command: list[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Context of a run, which is ended by an exception."""
        with self._lock:
            if self._is_ended:
                raise OSError("the runs were ended")
            process = subprocess.Popen(command, bufsize=0, start_new_session=True, **streams)
            self._processes.add(process)
        try:
            yield process
        except BaseException:
            _kill(process)
            process.wait()
            raise
        finally:
            with self._lock:
                self._processes.remove(process)


def problem_of(case: Case, answer: Answer) -> str | None:
    """What is wrong with an answer, as one line; None if it is right."""
    if answer.timed_out:
        return "it took too long and was ended"
    if answer.code not in (0, 1):
        how = f"signal {-answer.code}" if answer.code < 0 else f"exit status {answer.code}"
        return f"{how}: {shorten(escape(answer.last_error_line))}".rstrip(": ")
    found = _parse(answer.output)
    if not isinstance(found, dict):
        return f"exit status {answer.code}, and the output is no JSON object: {shorten(repr(answer.output[:80]))}"
    refused = found.get("error")
    if case.error is not None:
        if answer.code == 0 or refused is None:
            return f"it was read; it is to be refused as {case.error}"
        return None if refused == case.error else f"refused as {shorten(escape(str(refused)))}, not as {case.error}"
    if answer.code != 0 or refused is not None:
        message = f"{refused} {found.get('message', '')}".strip()
        return f"refused as {shorten(escape(message))}"
    return _difference(integers(found), integers(case.entry))


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """The first thing in which the description of a valid file is wrong."""
    for key in ("generator", "metadata", "layers"):  # a decoder need not have these
        if key in found and not _same(found[key], expected[key]):
            return f"{key} is wrong"
    tensors = found.get("tensors")
    if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
        return "tensors is not an array of objects"
    names = [tensor.get("name") for tensor in tensors]
    if names != [tensor["name"] for tensor in expected["tensors"]]:
        return f"the names of the tensors are wrong: {shorten(escape(str(names)))}"
    for tensor, right in zip(tensors, expected["tensors"], strict=True):
        for key in ("dtype", "shape", "sha256"):
            if not _same(tensor.get(key), right[key]):
                return f"tensor {shorten(escape(right['name']), 40)!r}: {key} is wrong"
        if "layer" in tensor and not _same(tensor["layer"], right["layer"]):
            return f"tensor {shorten(escape(right['name']), 40)!r}: layer is wrong"
    return None


def _same(a: Any, b: Any) -> bool:
    """Equality in which true is not 1 and 1.0 is not 1; the order of keys does not count."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _parse(output: bytes) -> Any:
    """The JSON of an answer. A word alone is the class of an error."""
    text = output.decode("utf-8", "replace").strip()
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"error": text} if text.isalpha() else None


def _feed(pipe: IO[bytes], data: bytes) -> None:
    """Write in pieces of 1 to 40 bytes, later of 1 KiB, each of which is read before the next one is written."""
    with contextlib.suppress(BrokenPipeError, OSError), pipe:  # a decoder may refuse a file before its end
        for piece in _pieces(data):
            pipe.write(piece)
            _wait_until_read(pipe)


def _pieces(data: bytes) -> Iterator[bytes]:
    at = n = 0
    while at < len(data):
        n = n % 40 + 1 if at < 2048 else 1024
        yield data[at : at + n]
        at += n


def _wait_until_read(pipe: IO[bytes]) -> None:
    """Wait until a pipe is empty, or nobody reads it any more."""
    if sys.platform == "win32":
        return
    import fcntl
    import select
    import termios

    poll = select.poll()
    poll.register(pipe, select.POLLERR)
    end = time.monotonic() + _PER_PIECE_S
    while time.monotonic() < end and not poll.poll(0):
        if not int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder):
            return
        time.sleep(0.0002)


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int | None]:
    """Exit code and peak memory. The peak is at least the memory of this process when it started the decoder."""
    if sys.platform == "win32":
        return process.wait(), None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the decoder and what it has started."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(_MAX_OUTPUT)

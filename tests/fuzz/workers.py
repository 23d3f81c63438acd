"""Decoders as processes that read many files, one after another, and what each file cost them."""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

MAX_TENSOR_NBYTES, MAX_TOTAL_NBYTES = 1 << 20, 1 << 22  # LIM-002: legal files may expand much, and take as long
CPU_S, PER_NBYTES = 2.0, 100_000  # CPU time that a file of so many bytes may take in one way of reading
MEMORY_NBYTES = (192 << 20) + 2 * MAX_TOTAL_NBYTES  # the bound of `vqm conformance`
HANG_S = 120
DATA_NBYTES = 4 << 30  # more than this the system does not give to a worker

Found = dict[str, Any]  # the fields of the manifest, or "error" and "clause"


class Absent(Exception):  # noqa: N818
    """A decoder cannot be run on this machine."""


@dataclass(frozen=True)
class Decoder:
    """How to start a decoder, and its ways of reading. ``sequential`` are those that test the digest (SPEC 15.1)."""

    command: Sequence[str]
    ways: tuple[str, ...]
    sequential: frozenset[str]
    is_timed: bool = True
    is_limited: bool = True  # address sanitizers reserve more than the limit
    environment: Mapping[str, str] | None = None


def decoders(folder: Path, *, sanitized: bool = False, in_turn: bool = False) -> dict[str, Decoder]:
    """The four decoders; those that cannot be run here are left out with a note.

    Args:
        folder: For what is compiled.
        in_turn: Whether a decoder that is not in C reads each file in one of its ways, in turn.
    """
    bounds = (str(MAX_TENSOR_NBYTES), str(MAX_TOTAL_NBYTES), *(["in-turn"] if in_turn else []))
    worker = str(HERE / "python_worker.py")
    found = {
        "reference": Decoder((sys.executable, worker, "reference", *bounds),
                             ("reference", "reference by index", "recovered"), frozenset({"reference"}),
                             environment={"OMP_NUM_THREADS": "1"}),
        "mini": Decoder((sys.executable, worker, "mini", *bounds), ("mini",), frozenset({"mini"}), is_timed=False),
    }  # fmt: skip
    try:
        program = compiled(folder / "c_worker", HERE / "c_worker.c", sanitized=sanitized)
        ways = ("c in pieces", "c", "c with least memory", "c by index", "c by rows")
        in_order = frozenset({"c in pieces", "c"})
        found["c"] = Decoder((str(program), bounds[0]), ways, in_order, is_limited=not sanitized)
    except Absent as err:
        print(f"without the decoder in C: {err}", file=sys.stderr)
    if (node := shutil.which("node")) is None:
        print("without the decoder in JavaScript: there is no node", file=sys.stderr)
    else:
        command = (node, "--max-old-space-size=512", str(HERE / "javascript_worker.mjs"), *bounds)
        ways, in_order = ("js", "js in pieces", "js by index"), frozenset({"js", "js in pieces"})
        found["javascript"] = Decoder(command, ways, in_order)
    return found


def compiled(
    target: Path, program: Path, *options: str, sanitized: bool = False, compiler: str | None = None
) -> Path:
    """A program around the decoder in C.

    Raises:
        Absent: There is no compiler, or no zstd to link with.
    """
    compiler = compiler or shutil.which("cc")
    if compiler is None:
        raise Absent("there is no C compiler (cc)")
    native = ROOT / "vqformat" / "native"
    flags = ["-std=gnu99", "-ffp-contract=off", "-O1" if sanitized else "-O2", *options]
    if sanitized:
        flags += ["-g", "-DVQM_TEST_ARENA", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    folders = [f"-I{native}", f"-I{ROOT / 'fixtures' / 'decoders' / 'c'}"]
    command = [compiler, *flags, *folders, str(native / "vqm.c"), str(program), "-lzstd", "-o", str(target)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise Absent(run.stderr.strip()[-500:])
    return target


class Worker:
    """A running decoder. It is started again after it has died."""

    def __init__(self, name: str, decoder: Decoder) -> None:
        self.name, self.decoder = name, decoder
        self.n_executions, self.cpu_s = 0, 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def _start(self) -> None:
        self.close()
        limit = DATA_NBYTES if self.decoder.is_limited else resource.RLIM_INFINITY
        self._process = subprocess.Popen(
            self.decoder.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **(self.decoder.environment or {})},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),  # noqa: PLW1509
        )  # fmt: skip
        os.set_blocking(self._process.stdout.fileno(), False)  # type: ignore[union-attr]
        os.set_blocking(self._process.stderr.fileno(), False)  # type: ignore[union-attr]

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
                assert stream is not None
                stream.close()
            self._process = None

    def decode(self, data: bytes) -> tuple[dict[str, Found], list[str]]:
        """What it found in each way, and what is wrong with that: crashes, too much time or memory."""
        found, faults = self._decode(data)
        if faults and all(fault.startswith("took") for fault in faults):
            found, faults = self._decode(data)  # what takes it once, such as a first compilation, is no fault
        return found, [f"{self.name} {fault}" for fault in faults]

    def _decode(self, data: bytes) -> tuple[dict[str, Found], list[str]]:
        assert self._process is not None
        pid, ways = self._process.pid, self.decoder.ways
        reset_peak(pid)
        cpu_before, memory_before = cpu_of(pid), memory_of(pid, "VmRSS")
        try:
            lines = self._exchange(len(data).to_bytes(4, "little") + data, len(ways))
        except EOFError as err:
            self._start()
            return {}, [f"died: {err}"]
        cpu_s, memory = cpu_of(pid) - cpu_before, memory_of(pid, "VmHWM") - memory_before
        self.cpu_s += cpu_s
        found = dict(zip(ways, map(json.loads, lines), strict=True))
        self.n_executions += sum(map(bool, found.values()))
        faults = [f"raises in {way}: {item['message']}" for way, item in found.items() if item.get("error") == "crash"]
        if self.decoder.is_timed and cpu_s > CPU_S * len(ways) * max(1, len(data) / PER_NBYTES):
            faults.append(f"took {cpu_s:.1f} s")
        if self.decoder.is_limited and memory > MEMORY_NBYTES:
            faults.append(f"took {memory >> 20} MiB")
        return found, faults

    def _exchange(self, request: bytes, n_lines: int) -> list[str]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        out, errors = b"", b""
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except BrokenPipeError:
            pass
        while out.count(b"\n") < n_lines:
            ready, _, _ = select.select([process.stdout, process.stderr], [], [], HANG_S)
            if not ready:
                process.kill()
                raise EOFError(f"killed after {HANG_S} s")
            part = process.stdout.read() if process.stdout in ready else None
            if process.stderr in ready:
                assert process.stderr is not None
                errors = (errors + (process.stderr.read() or b""))[-3000:]
            if part == b"":
                code = process.wait()
                end = signal.Signals(-code).name if code < 0 else f"exit status {code}"
                raise EOFError(f"{end}: {errors.decode('utf-8', 'replace')}")
            out += part or b""
        return out.decode().split("\n")[:n_lines]


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory_of(pid: int, field: str) -> int:
    with open(f"/proc/{pid}/status") as lines:
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field)), 0)


def cpu_of(pid: int) -> float:
    """Seconds of a process in all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

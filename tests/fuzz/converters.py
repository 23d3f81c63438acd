"""Feeds damaged checkpoints to the converters; a command of its own, not a test.

    python tests/converters.py [--seconds N] [--seed S] [--keep FOLDER] [--only PATTERN] [--spawn]

Small valid files of each format that can be written here are mutated, their bytes or their structure (members of zip
archives, opcodes of pickles, values of JSON), and converted in child processes; ``.vqm`` files get a mutated
``vqm.source`` and are extracted. A file may load or raise VqmError or ImportError. Any other exception, a crash, more
than 2 s of CPU time (10 s in all) or more than 1 GB is counted, and the file kept with ``--keep``. The exit status is 1
if there was one.

libhdf5 crashes and hangs in a process of its own, which is no fault: such files are refused, and counted as "child …".
That process is forked here, which takes less time than to start it; ``--spawn`` starts it as users do.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "converters"))  # for fuzz.checkpoints
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.checkpoint_containers import mutate_msgpack, mutate_safetensors, mutate_table
from fuzz.checkpoint_mutations import mutate
from fuzz.checkpoints import Files, small_files

SECONDS_PER_FILE = 10
CPU_S = 2.0  # of a file, none of which has 100 kB; more is waited for the process with libhdf5, and counted here too
MEMORY_NBYTES = 1 << 30
SILENCE_S = 2.0  # of the process with libhdf5

Outcome = tuple[str, str]  # kind and text: ("loads", ""), ("refused", …), ("EXCEPTION", …), ("CRASH", "SIGSEGV"), …
GOOD = ("loads", "refused", "unwritable")  # and "child …"

CONTAINERS = {".safetensors": mutate_safetensors, ".msgpack": mutate_msgpack, ".index": mutate_table}

# Format of a vqm.source -> what is extracted
SUFFIXES = {"keras": (".keras", ".weights.h5", ".h5"), "tree": (".h5", ".pt"), "legacy": (".h5",), "onnx": (".onnx",),
            "pytorch": (".pt", ".safetensors")}  # fmt: skip


def handle(path: Path) -> Outcome:
    """Convert a file, or extract a .vqm."""
    from vqformat.errors import VqmError

    try:
        if path.suffix == ".vqm":
            return extract_all(path)
        read(path)
    except (VqmError, ImportError) as err:
        return refused(str(err))
    except BaseException as err:
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(err.__traceback__)]
        text = re.sub(r"[0-9]+", "#", str(err))[:160]
        return "EXCEPTION", f"{type(err).__name__}: {text} in {' > '.join(frames[-5:])}"
    return "loads", ""


def refused(text: str) -> Outcome:
    crash = re.search(r"libhdf5 crashed on it, exit code (-?\d+)", text)
    if crash:
        code = int(crash[1])
        return f"child {signal.Signals(-code).name if code < 0 else f'exit {code}'}", text
    return ("child hangs" if "reading it took more than" in text else "refused"), text


def read(path: Path) -> None:
    """Load all tensors, then make a .vqm of them."""
    from vqformat.converters import convert, open_source

    include_optimizer = bool(zlib.crc32(path.read_bytes()) & 1)
    with open_source(path, include_optimizer=include_optimizer) as source:
        for tensor in source.tensors:
            array = tensor.load()
            assert array.shape == tensor.shape, f"shape {array.shape} instead of {tensor.shape}"
    convert(path, io.BytesIO(), lossless=True, include_optimizer=include_optimizer)


def extract_all(path: Path) -> Outcome:
    """To each format that fits: a file that is there, or VqmError and nothing."""
    from vqformat.converters import extract
    from vqformat.errors import VqmError

    before = set(os.listdir(path.parent))
    texts = []
    for suffix in SUFFIXES[path.stem]:
        out = path.with_name("out" + suffix)
        try:
            extract(path, out)
        except (VqmError, ImportError) as err:
            texts.append(str(err))
            assert not out.exists(), "a file in spite of an error"
        else:
            assert out.is_file(), "no file, no error"
            out.unlink()
        assert set(os.listdir(path.parent)) == before, "other files were left"
    return ("refused" if len(texts) == len(SUFFIXES[path.stem]) else "loads"), "; ".join(texts)


class Forked:
    """Stands for ``subprocess.Popen`` in ``converters/hdf5.py``: the same program in a fork of this process."""

    def __init__(self, command: list[str], **_: Any) -> None:
        ours, theirs = os.pipe()
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            try:
                signal.alarm(3 * SECONDS_PER_FILE)  # should the process that asked be killed
                os.dup2(theirs, 1)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.argv = command[2:7]
                from vqformat.converters.hdf5_walk import main as walk

                walk()
                sys.stdout.buffer.flush()
                os._exit(0)
            except BaseException:
                os._exit(1)
        os.close(theirs)
        self.stdout = open(ours, "rb")  # noqa: SIM115

    def kill(self) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self._code is None:
            _, status = os.waitpid(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
        return self._code


def child(pipe: Any, folder: str, is_spawned: bool) -> None:
    """Convert the files that come, one after the other; tell what became of each."""
    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, in C code too
    with contextlib.suppress(ImportError):
        from vqformat.converters import hdf5

        hdf5.SILENCE_S = SILENCE_S
        if not is_spawned:
            hdf5.subprocess = types.SimpleNamespace(Popen=Forked, DEVNULL=None, PIPE=None)  # type: ignore[assignment]
    while (files := pipe.recv()) is not None:
        for name, data in files.items():
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        reset_high_water()
        signal.alarm(SECONDS_PER_FILE)
        before = cpu_s()
        outcome = handle(Path(folder) / next(iter(files)))
        took = cpu_s() - before
        signal.alarm(0)
        if took > CPU_S and outcome[0] in GOOD:
            outcome = "SLOW", f"{took:.0f} s of CPU time"
        used = max(high_water(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
        is_large = used > MEMORY_NBYTES
        if is_large and outcome[0].startswith((*GOOD, "child")):
            outcome = "MEMORY", f"{used >> 26 << 6} MiB"
        empty(Path(folder))
        pipe.send(outcome)
        if is_large:
            os._exit(0)  # the figure of the children cannot be reset


def cpu_s() -> float:
    """CPU time of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def reset_high_water() -> None:
    if os.path.exists("/proc/self/clear_refs"):
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")


def high_water() -> int:
    """The most memory since it was reset, in bytes; where Linux does not tell, since the process began."""
    if not os.path.exists("/proc/self/status"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith("VmHWM"))


class Worker:
    """A child process that is started again when it dies."""

    def __init__(self, is_spawned: bool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz")
        self._is_spawned = is_spawned
        self.process: Any = None
        self.restart()

    def restart(self) -> None:
        self.stop()
        empty(Path(self._folder.name))
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(
            target=child, args=(theirs, self._folder.name, self._is_spawned)
        )
        self.process.start()
        theirs.close()

    def handle(self, files: Files) -> Outcome:
        """What becomes of it. What takes time once, such as an import, is no fault."""
        outcome = self._handle(files)
        return self._handle(files) if outcome[0] == "SLOW" else outcome

    def _handle(self, files: Files) -> Outcome:
        try:
            self.pipe.send(files)
            if not self.pipe.poll(SECONDS_PER_FILE + 5):
                self.process.kill()
                raise EOFError
            outcome: Outcome = tuple(self.pipe.recv())  # type: ignore[assignment]
            if outcome[0] == "MEMORY":
                self.restart()
            return outcome
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.restart()
            if code in (-signal.SIGALRM, -signal.SIGKILL):
                return "HANG", f"more than {SECONDS_PER_FILE} s"
            return "CRASH", signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, metavar="M")
    parser.add_argument("--count", type=int, metavar="N", help="stop after so many files")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the files that were not handled well")
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression for names of the files")
    parser.add_argument("--spawn", action="store_true", help="start libhdf5's process as users do")
    parser.add_argument("--again", type=Path, metavar="FILE", help="only this file; in a folder that --keep made")
    args = parser.parse_args()

    warnings.simplefilter("ignore")  # of torch.jit
    read_once()
    worker = Worker(args.spawn)
    if args.again:
        folder = args.again.parent
        others = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
                  if path.is_file() and path != args.again}  # fmt: skip
        print(*worker.handle({args.again.name: args.again.read_bytes(), **others}))
        worker.stop()
        return 0
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        bases = {name: files for name, files in small_files(Path(folder)).items() if re.search(args.only, name)}
    rng = np.random.default_rng(args.seed)
    for name, files in bases.items():
        kind, text = worker.handle(files)
        if kind != "loads":
            print(f"{name} does not load unchanged: {kind} {text}")
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    bad: collections.Counter[tuple[str, str, str]] = collections.Counter()
    names, others = list(bases), [data for files in bases.values() for data in files.values()]
    began = time.monotonic()
    for _ in range(10**9 if args.count is None else args.count):
        if args.count is None and time.monotonic() - began > 60 * args.minutes:
            break
        name = names[int(rng.integers(len(names)))]
        changed = mutate(bases[name], rng, others, CONTAINERS)
        kind, text = ("unwritable", "") if changed is None else worker.handle(changed)
        counts[name, kind] += 1
        if kind not in GOOD and not kind.startswith("child"):
            number = bad[kind, name, text] = bad[kind, name, text] + 1
            if args.keep and number <= 3 and changed is not None:
                label = re.sub(r"\W+", "_", text)[:100]
                place = args.keep / f"{kind}-{label}-{sum(bad.values())}-{name}"
                place.mkdir(parents=True, exist_ok=True)
                for file, data in changed.items():
                    (place / file).parent.mkdir(exist_ok=True)
                    (place / file).write_bytes(data)
    worker.stop()
    report(names, counts, bad)
    n = sum(counts.values())
    print(f"{n} files, {n / (time.monotonic() - began):.1f} a second, {sum(bad.values())} with findings")
    return 1 if bad else 0


def read_once() -> None:
    """Import what the children need before they are forked."""
    import vqformat.converters  # noqa: F401

    for module in ("keras", "hdf5_walk", "onnx", "npz", "safetensors", "pytorch", "torchscript", "gguf", "export.keras",
                   "export.hdf5", "export.onnx", "export.npz", "export.safetensors", "export.pytorch"):  # fmt: skip
        with contextlib.suppress(ImportError):
            __import__(f"vqformat.converters.{module}")


def report(names: list[str], counts: Any, bad: Any) -> None:
    kinds = [*GOOD, *sorted({kind for _, kind in counts} - set(GOOD))]
    print(f"{'':28}" + "".join(f"{kind:>15}" for kind in kinds))
    for name in [*names, "all"]:
        row = [sum(n for (file, k), n in counts.items() if k == kind and name in (file, "all")) for kind in kinds]
        print(f"{name:28}" + "".join(f"{n:15}" for n in row))
    by_text: collections.Counter[tuple[str, str]] = collections.Counter()
    for (kind, _, text), n in bad.items():
        by_text[kind, text] += n
    for (kind, text), n in by_text.most_common():
        print(f"{n:6} {kind} {text}")


if __name__ == "__main__":
    sys.exit(main())

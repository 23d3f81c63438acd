"""Feeds damaged checkpoints to the converters; a command of its own, not a test.

    python tests/fuzz_converters.py [--seconds N] [--seed S] [--keep FOLDER]

Small valid files of each format that can be written here are mutated and read to the end in child processes. A file may
load or raise VqmError or ImportError. Any other exception, a crash (libhdf5 is known to have them), more than 10 s or
more than 1 GB is counted, and the file kept with ``--keep``. The exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import collections
import io
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

SECONDS_PER_FILE = 10
MEMORY_NBYTES = 1 << 30

Outcome = tuple[str, str]  # kind and text: ("loads", ""), ("refused", …), ("EXCEPTION", …), ("CRASH", "SIGSEGV"), …


def small_files(folder: Path) -> dict[str, bytes]:
    """Valid files by name; formats whose package is absent are left out."""
    files: dict[str, bytes] = {}
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20, 30)).astype("<f4")

    stream = io.BytesIO()
    np.savez(stream, a=values, b=np.arange(9))
    files["a.npz"] = stream.getvalue()
    try:
        import hostile

        for case in hostile.CASES:
            if case.name in ("hard_link_twice-legacy", "weight_names_in_parts", "newest_structures", "weights_deflated",
                             "hard_link_twice-keras", "attribute_nan-tree", "type_bool-legacy"):  # fmt: skip
                path = folder / f"{case.name}{case.suffix}"
                case.write(path, True)
                files[path.name] = path.read_bytes()
        for name, options in {"contiguous.h5": {}, "gzip.h5": {"chunks": (7, 11), "compression": "gzip"},
                              "shuffle.h5": {"chunks": (7, 11), "compression": "gzip", "shuffle": True,
                                             "fletcher32": True}}.items():  # fmt: skip
            files[name] = _hdf5(values, **options)
    except ImportError as err:
        print(f"left out HDF5: {err}")
    try:
        from safetensors.numpy import save

        files["a.safetensors"] = save({"a": values, "b": np.arange(9)})
    except ImportError as err:
        print(f"left out safetensors: {err}")
    try:
        import torch

        state = {"a": torch.from_numpy(values), "b": torch.arange(9), "c": torch.ones(3, 4).t()}
        for name, is_zip in (("zip.pt", True), ("legacy.pt", False)):
            stream = io.BytesIO()
            torch.save(state, stream, _use_new_zipfile_serialization=is_zip)
            files[name] = stream.getvalue()
    except ImportError as err:
        print(f"left out PyTorch: {err}")
    files.update(_onnx(values))
    return files


def _hdf5(values: Any, **options: Any) -> bytes:
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset("dense/kernel", data=values, **options)
        file["dense/bias"] = np.arange(9)
        file.attrs["note"] = "a note"
        file["dense"].attrs["names"] = np.array(["kernel", "bias"], object)
    return stream.getvalue()


def _onnx(values: Any) -> dict[str, bytes]:
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as err:
        print(f"left out ONNX: {err}")
        return {}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 20])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 30])
    constant = helper.make_tensor("b", TensorProto.FLOAT, [30], np.arange(30.0))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "a"], ["z"]),
                               helper.make_node("Add", ["z", "b"], ["y"])], "g", [x], [y],
                              [numpy_helper.from_array(values, "a"), constant])  # fmt: skip
    return {"a.onnx": helper.make_model(graph).SerializeToString()}


WORDS = (b"\xff\xff\xff\xff", b"\xff" * 8, bytes(4), bytes(8), b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\x01\0\0\0",
         b"\0\0\0\0\1\0\0\0", b"\xff\xff", b"\0\x10")  # fmt: skip


def mutate(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """One to six changes, most of them where a file has its structure and not its values."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 7))):
        if not found:
            break
        match int(rng.integers(9)):
            case 0 | 1:  # a bit
                found[_place(found, rng)] ^= 1 << int(rng.integers(8))
            case 2:  # a byte
                found[_place(found, rng)] = int(rng.integers(256))
            case 3 | 4:  # a word
                at, word = _place(found, rng), WORDS[int(rng.integers(len(WORDS)))]
                found[at : at + len(word)] = word
            case 5:  # a range of noise or zeros
                at, count = _place(found, rng), int(rng.integers(1, 40))
                found[at : at + count] = bytes(count) if rng.integers(2) else rng.bytes(count)
            case 6:  # a small number, up or down
                at = _place(found, rng)
                found[at] = (found[at] + int(rng.integers(-3, 4))) % 256
            case 7:  # a part of the file elsewhere in it
                at, to, count = _place(found, rng), _place(found, rng), int(rng.choice([4, 8, 16, 40, 300]))
                found[to : to + count] = found[at : at + count]
            case _ if rng.integers(4) == 0:  # cut, or spliced with another file
                at = int(rng.integers(len(found)))
                other = others[int(rng.integers(len(others)))]
                found = found[:at] if rng.integers(2) else found[:at] + bytearray(other[at:])
            case _:  # taken out, or put in
                at, count = _place(found, rng), int(rng.integers(1, 17))
                found[at : at + count] = b"" if rng.integers(2) else rng.bytes(2 * count)
    return bytes(found)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """A place in the file: anywhere, at its ends, or beside a byte of a run of few values."""
    match int(rng.integers(3)):
        case 0:
            return int(rng.integers(len(data)))
        case 1:
            return int(min(len(data) - 1, rng.integers(400)))
        case _:
            return int(max(0, len(data) - 1 - rng.integers(1500)))


def read(path: Path) -> Outcome:
    """Open a file and load all its tensors."""
    from vqformat.converters import open_source
    from vqformat.errors import VqmError

    try:
        with open_source(path) as source:
            for tensor in source.tensors:
                array = tensor.load()
                assert array.shape == tensor.shape, f"shape {array.shape} instead of {tensor.shape}"
    except (VqmError, ImportError) as err:
        return "refused", str(err)
    except BaseException as err:
        frames = [f"{Path(frame.filename).name}:{frame.name}" for frame in traceback.extract_tb(err.__traceback__)]
        text = re.sub(r"[0-9]+", "#", str(err))[:160]
        return "EXCEPTION", f"{type(err).__name__}: {text} in {' > '.join(frames[-4:])}"
    return "loads", ""


def child(pipe: Any, folder: str) -> None:
    """Read the files that come, one after the other; tell what became of each."""
    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, in C code too
    while (job := pipe.recv()) is not None:
        name, data = job
        path = Path(folder) / name
        path.write_bytes(data)
        reset_high_water()
        signal.alarm(SECONDS_PER_FILE)
        outcome = read(path)
        signal.alarm(0)
        used = high_water()
        if used > MEMORY_NBYTES and outcome[0] in ("loads", "refused"):
            outcome = "MEMORY", f"{used >> 20} MiB"
        pipe.send(outcome)


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

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz")
        self.process: Any = None
        self.restart()

    def restart(self) -> None:
        self.stop()
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(
            target=child, args=(theirs, self._folder.name), daemon=True
        )
        self.process.start()
        theirs.close()

    def read(self, name: str, data: bytes) -> Outcome:
        try:
            self.pipe.send((name, data))
            if not self.pipe.poll(SECONDS_PER_FILE + 5):
                self.process.kill()
                raise EOFError
            return tuple(self.pipe.recv())  # type: ignore[return-value]
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
    parser.add_argument("--seconds", type=float, default=60, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the files that were not handled well")
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression for names of the files")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        files = {name: data for name, data in small_files(Path(folder)).items() if re.search(args.only, name)}
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    read_once()
    worker = Worker()
    for name, data in files.items():
        kind, text = worker.read(name, data)
        if kind != "loads":
            print(f"{name} does not load unchanged: {kind} {text}")
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    bad: collections.Counter[tuple[str, str, str]] = collections.Counter()
    names, others = list(files), list(files.values())
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        name = names[int(rng.integers(len(names)))]
        data = mutate(files[name], rng, others)
        kind, text = worker.read(name, data)
        counts[name, kind] += 1
        if kind not in ("loads", "refused"):
            number = bad[kind, name, text] = bad[kind, name, text] + 1
            if args.keep and number <= 5:
                label = re.sub(r"\W+", "_", text)[:60]
                (args.keep / f"{kind}-{label}-{sum(bad.values())}-{name}").write_bytes(data)
    worker.stop()
    report(names, counts, bad)
    return 1 if bad else 0


def read_once() -> None:
    """Import what the children need before they are forked."""
    import contextlib

    import vqformat.converters  # noqa: F401

    for module in ("keras", "onnx", "npz", "safetensors", "pytorch"):
        with contextlib.suppress(ImportError):
            __import__(f"vqformat.converters.{module}")


def report(names: list[str], counts: Any, bad: Any) -> None:
    kinds = ["loads", "refused", *sorted({kind for _, kind in counts} - {"loads", "refused"})]
    print(f"{'':28}" + "".join(f"{kind:>11}" for kind in kinds))
    for name in [*names, "all"]:
        row = [sum(n for (file, k), n in counts.items() if k == kind and name in (file, "all")) for kind in kinds]
        print(f"{name:28}" + "".join(f"{n:11}" for n in row))
    by_text: collections.Counter[tuple[str, str]] = collections.Counter()
    for (kind, _, text), n in bad.items():
        by_text[kind, text] += n
    for (kind, text), n in by_text.most_common():
        print(f"{n:6} {kind} {text}")


if __name__ == "__main__":
    sys.exit(main())

"""The worst files of a few sizes: how long they take, and how much memory, with and without the caller's bounds.

Each file is legal, so only a bound refuses it. For each size and each kind of abuse a file is built that has as much of
it as fits. It is read in a process of its own, as on a machine on which ``AVAILABLE`` bytes of memory are free: with
kernels, with NumPy alone, and with kernels and a bound of the caller. Memory is the most above what the imports took::

    python tests/benchmarks/bounds.py --seconds 10
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vqm_attacks
from memory import status_nbytes
from vqmbuilder import Entry, Section, layr, section
from vqmtensors import DTYPES, Layout, Tensor

SIZES = {"1 kB": 1000, "33 kB": 33_000, "100 kB": 100_000, "1 MB": 1_000_000}
AVAILABLE = 2_000_000_000  # bytes of memory that a load may fill by default
BOUND = 100_000_000  # that the caller sets


def one_code(n: int) -> bytes:
    """Blocks whose codes have 0 bits: 16 MB of zeros for each 8 bytes."""
    blocks = max(2, n)
    shape = (blocks, 1 << 22)
    record = ["w", DTYPES["f32"].id, list(shape), Layout(None, 1, 0, 1, 0).record(),
              [[1, 1, 1, [0, 11], 0, 0, 0, None, []]]]  # fmt: skip
    sections = (section(bytes(4)), *[section(b"")] * blocks)
    entry = Entry(b"w", DTYPES["f32"].id, shape)
    return vqm_attacks.compact(layr("", Tensor(record, sections, entry, "f32", shape, b"")))


def tables(n: int) -> bytes:
    """Resident codebooks of zeros: 131 kB for each 4 bytes, at most 16 of 268 MB."""
    nbytes = n << 17
    sizes = [vqm_attacks.LARGEST_NBYTES] * min(16, nbytes // vqm_attacks.LARGEST_NBYTES)
    if not sizes:
        sizes = [max(1, nbytes >> 12) << 12]
    stages: list[object] = [[1, 1024, size >> 12, [0, 11], 0, 0, 0, None, []] for size in sizes]
    codes = [section(bytes(2 if (size >> 12) > 256 else size > 4096)) for size in sizes]
    record = ["w", DTYPES["f32"].id, [1, 1024], [None, 1, 0, 0, 0], stages]
    parts: tuple[Section, ...] = (*map(vqm_attacks.zeros, sizes), *codes)
    return vqm_attacks.compact(layr("", Tensor(record, parts, Entry(b"w", 11, (1, 1024)), "f32", (1, 1024), b"")))


def zeros(n: int) -> bytes:
    """A raw tensor of zeros: 4 MB for each 128 bytes."""
    return vqm_attacks.large_tensor(max(2, n) << 22)


def tensors(n: int) -> bytes:
    """Tensors without elements, of 32 axes."""
    return vqm_attacks.many_tensors(max(1, n))


def aliases(n: int) -> bytes:
    """Layers of 100 tensors, and aliases of the first of each."""
    return vqm_attacks.far_aliases(max(1, n), 100, max(1, n))


def lanes(n: int) -> bytes:
    """Trellis sections of four codes each."""
    return vqm_attacks.many_lanes(max(2, n))


ATTACKS: dict[str, Callable[[int], bytes]] = {
    "codes of 0 bits": one_code, "tables of zeros": tables, "zeros": zeros, "empty tensors": tensors,
    "aliases": aliases, "trellis lanes": lanes, "sums": vqm_attacks.many_sums, "products": vqm_attacks.many_products,
    "steps": vqm_attacks.many_steps, "slots": vqm_attacks.many_slots, "orders": vqm_attacks.many_orders,
    "words": vqm_attacks.many_words, "large aliases": vqm_attacks.large_aliases,
}  # fmt: skip
MOST = {"empty tensors": 100_000}  # more are slow to build


def load(path: str, bound: int | None) -> None:
    import vqformat

    vqformat.load_file(path, max_total_bytes=bound)


def open_all(path: str, bound: int | None) -> None:
    import vqformat

    with vqformat.safe_open(path, max_total_bytes=bound) as f:
        for name in f:
            f[name]


def command(verb: str) -> Callable[[str, int | None], None]:
    def run(path: str, bound: int | None) -> None:
        from vqformat.cli import main

        arguments = [verb, path] if bound is None else [verb, path, "--max-memory", str(bound)]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if main(arguments):
                raise ValueError("refused")

    return run


# For each column of the table: its name, the backend, and the bound of the caller
COLUMNS = {"kernels": ("native", None), "NumPy alone": ("numpy", None), "bound of 100 MB": ("native", BOUND)}
READS = {"load": load, "safe_open": open_all, "vqm info": command("info"), "vqm verify": command("verify")}


@dataclass(frozen=True)
class Cost:
    seconds: float
    peak_mb: float
    attack: str


def fitting(attack: str, size: int) -> bytes:
    """The largest file of an abuse that has at most so many bytes."""
    build = ATTACKS[attack]
    few, many = 8, 64
    slope = max((len(build(many)) - len(build(few))) / (many - few), 0.01)
    n = min(int(few + (size - len(build(few))) / slope), MOST.get(attack, 1 << 30))
    data = build(max(1, n))
    while len(data) > size and n > 1:
        n = int(n * 0.95)
        data = build(n)
    return data


def measure_here(read: str, path: str, bound: int | None, seconds: float) -> None:
    """Read a file, and print seconds of the processor and bytes of memory."""
    from vqformat.format import limits

    limits.available_memory = lambda: AVAILABLE  # type: ignore[assignment]
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds + time.process_time()) + 1,) * 2)
    before = status_nbytes("VmHWM")  # not ru_maxrss, which has what the parent took
    print(before, flush=True)
    start = time.process_time()
    with contextlib.suppress(ValueError):  # refused
        READS[read](path, bound)
    print(time.process_time() - start, status_nbytes("VmHWM") - before)


def measure(attack: str, read: str, path: str, column: str, seconds: float) -> Cost:
    backend, bound = COLUMNS[column]
    program = [sys.executable, __file__, "--read", read, "--file", path, "--bound", str(bound or 0),
               "--seconds", str(seconds)]  # fmt: skip
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env={**os.environ, "VQFORMAT_BACKEND": backend},
                          ) as process:  # fmt: skip
        assert process.stdout is not None
        before, *found = process.stdout.read().split()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Cost(float("inf"), (usage.ru_maxrss * 1024 - int(before)) / 1e6, attack)
    return Cost(float(found[0]), int(found[1]) / 1e6, attack)


def worst(costs: list[Cost], seconds: float) -> str:
    slowest = max(costs, key=lambda cost: cost.seconds)
    largest = max(costs, key=lambda cost: cost.peak_mb)
    time_text = f"> {seconds:.0f} s" if slowest.seconds == float("inf") else f"{slowest.seconds:.1f} s"
    memory_text = f"{largest.peak_mb:.0f} MB ({largest.attack})" if largest.peak_mb >= 1 else "no more memory"
    return f"{time_text} ({slowest.attack}), {memory_text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of the processor, after which a read is stopped")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--reads", nargs="*", default=list(READS), choices=list(READS))
    parser.add_argument("--columns", nargs="*", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--read", choices=list(READS), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--bound", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        measure_here(args.read, args.file, args.bound or None, args.seconds)
        return
    print(f"| file | read | {' | '.join(args.columns)} |\n|{'---|' * (2 + len(args.columns))}")
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            files = {}
            for attack in args.attacks:
                path = Path(folder) / f"{attack}.vqm"
                path.write_bytes(fitting(attack, SIZES[size]))
                files[attack] = path
                print(f"{size} {attack}: {path.stat().st_size} bytes", file=sys.stderr)
            for read in args.reads:
                cells = []
                for column in args.columns:
                    costs = [measure(attack, read, str(path), column, args.seconds) for attack, path in files.items()]
                    for cost in costs:
                        print(f"{size} {read} {column}: {cost}", file=sys.stderr, flush=True)
                    cells.append(worst(costs, args.seconds))
                print(f"| {size} | {read} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Decoding and encoding of the preset ``small`` with each backend that this machine has, one thread, CPU time."""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import print_table, write_json

import vqformat
from vqformat import native

SHAPE = (1344, 2624)  # 3.5 M weights
BITS = (2, 4)
STEP = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each, of which the median counts")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    args = parser.parse_args()
    weights = (np.random.RandomState(0).standard_t(5, SHAPE) * 0.02).astype(np.float32)
    files = {bits: vqformat.save({"w": weights}, preset="small", bits=bits) for bits in BITS}
    few = weights[:, :1024]
    rows, results = [], {}
    expected: dict[Any, bytes] = {}
    for backend in native.available():
        native.use(backend)
        speeds: list[float] = []
        for bits, file in files.items():
            loaded, seconds = median(lambda file=file: vqformat.load_file(io.BytesIO(file), threads=1), args.rounds)
            check(expected, bits, loaded["w"].tobytes())
            speeds.append(weights.size / seconds / 1e6)
        saved, seconds = median(lambda: vqformat.save({"w": few}, preset="small", step=STEP), 3)
        check(expected, "saved", saved)
        speeds.append(few.size / seconds / 1e6)
        results[backend] = speeds
        rows.append((backend, *(f"{speed:.3g}" for speed in speeds)))
    print_table(("backend", *(f"decode {bits} bits" for bits in BITS), "encode"), rows)
    print("million weights a second; all backends gave the same bytes")
    write_json(args.json, results)


def median(work: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = work()
        times.append(time.process_time() - start)
    return result, statistics.median(times)


def check(expected: dict[Any, bytes], what: Any, found: bytes) -> None:
    if expected.setdefault(what, found) != found:
        raise SystemExit(f"{what}: other bytes with {native.backend()}")


if __name__ == "__main__":
    main()

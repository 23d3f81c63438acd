"""Lossless sizes of real checkpoints against ZipNN and plain zstd."""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import zstandard
from common import DATA, Memcpy, checkpoints, load_checkpoint, print_table, write_json

import vqformat

try:
    from zipnn import ZipNN
except ImportError:
    ZipNN = None
try:
    from safetensors.numpy import save as save_safetensors
except ImportError:
    save_safetensors = None

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of checkpoints; VQFORMAT_DATA sets its default")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these, such as lenet300 minilm")
    parser.add_argument("--no-19", action="store_true", help="leave out zstd level 19, which is slow")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    args = parser.parse_args()
    if ZipNN is None:
        print("zipnn is not installed: no comparison with it (pip install zipnn)")
    results = []
    for model, path in checkpoints(args.data).items():
        if args.models and model not in args.models:
            continue
        if path is None or not path.exists():
            print(f"{model}: not found, left out")
            continue
        tensors = load_checkpoint(path)
        for dtype in DTYPES:
            results.append({"model": model, "dtype": dtype, **compare(tensors, dtype, level_19=not args.no_19)})
    methods = [key for key in ("vqformat", "zipnn", "zipnn_file", "zstd_3", "zstd_19") if results and key in results[0]]
    print_table(
        ("model", "dtype", "bytes", *methods, "size / zipnn", "/ its file", "save MB/s", "load", "zipnn save"),
        [(r["model"], r["dtype"], r["raw"], *(f"{r['raw'] / r[m]:.4f}" for m in methods), relative(r, "zipnn"),
          relative(r, "zipnn_file"), f"{r['vqformat_save_mb_s']:.0f}", f"{r['vqformat_load_mb_s']:.0f}",
          f"{r['zipnn_save_mb_s']:.0f}" if "zipnn" in r else "-") for r in results],
    )  # fmt: skip
    print("sizes are the same in every run; speeds are of one run")
    print(Memcpy().noise())
    write_json(args.json, results)


def relative(result: dict[str, Any], other: str) -> str:
    return f"{result['vqformat'] / result[other]:.4f}" if other in result else "-"


def compare(tensors: dict[str, np.ndarray], dtype: str, *, level_19: bool) -> dict[str, float]:
    """Bytes that each makes of a model whose float32 tensors are given another dtype."""
    to = DTYPES[dtype]
    tensors = {name: array.astype(to) if array.dtype == np.float32 else array for name, array in tensors.items()}
    floats = b"".join(array.tobytes() for array in tensors.values() if array.dtype == to)
    others = sum(array.nbytes for array in tensors.values() if array.dtype != to)  # counted uncompressed
    n = len(floats) + others
    file, elapsed = timed(lambda: vqformat.save(tensors, lossless=True))
    loaded, load_elapsed = timed(lambda: vqformat.load_file(io.BytesIO(file)))
    for name, array in tensors.items():
        if array.tobytes() != loaded[name].tobytes():
            raise SystemExit(f"tensor {name!r} was changed")
    sizes: dict[str, float] = {"raw": n, "vqformat": len(file), "vqformat_save_mb_s": n / elapsed / 1e6,
                               "vqformat_load_mb_s": n / load_elapsed / 1e6}  # fmt: skip
    if ZipNN is not None:
        stored, elapsed = timed(lambda: ZipNN(bytearray_dtype=dtype).compress(bytearray(floats)))
        if bytes(ZipNN(bytearray_dtype=dtype).decompress(stored)) != floats:
            raise SystemExit("ZipNN did not give back what it was given")
        sizes |= {"zipnn": len(stored) + others, "zipnn_save_mb_s": n / elapsed / 1e6}
        if save_safetensors is not None:  # what one would keep: names and shapes too, as our file has
            file = bytearray(save_safetensors(tensors))
            sizes["zipnn_file"] = len(ZipNN(bytearray_dtype=dtype).compress(file))
    for level in (3, 19) if level_19 else (3,):
        sizes[f"zstd_{level}"] = len(zstandard.ZstdCompressor(level=level).compress(floats)) + others
    return sizes


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()

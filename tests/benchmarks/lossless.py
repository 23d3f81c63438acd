"""Lossless sizes of real checkpoints and of dequantized weights against ZipNN, z4ai, OpenZL and plain zstd."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import zstandard
from common import DATA, Memcpy, checkpoints, load_checkpoint, print_table, write_json
from quantized import Quantized, quantized

import vqformat

try:
    from zipnn import ZipNN
except ImportError:
    ZipNN = None
try:
    import z4ai
except ImportError:
    z4ai = None
try:
    import openzl.ext as openzl
except ImportError:
    openzl = None
try:
    from safetensors.numpy import save as save_safetensors
except ImportError:
    save_safetensors = None

Result = dict[str, Any]
Codec = Callable[[bytes], Any]
METHODS = ("ideal", "vqformat", "vqformat_small", "zipnn", "zipnn_file", "z4ai", "openzl", "zstd_3", "zstd_19")
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


SHAPE = (4096, 2048)  # of the quantized tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of checkpoints; VQFORMAT_DATA sets its default")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these, such as lenet300 minilm")
    parser.add_argument("--no-models", action="store_true", help="quantized tensors only")
    parser.add_argument("--no-quantized", action="store_true", help="models only")
    parser.add_argument("--no-19", action="store_true", help="leave out zstd level 19, which is slow")
    parser.add_argument("--thorough", action="store_true", help="preset small too, which is slow")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    args = parser.parse_args()
    for package, module in {"zipnn": ZipNN, "z4ai": z4ai, "openzl": openzl}.items():
        if module is None:
            print(f"{package} is not installed: no comparison with it (pip install {package})")
    vqformat.load(vqformat.save({"w": np.zeros((64, 64), np.float32)}, lossless=True))  # imports are not to be timed
    results = [] if args.no_models else list(of_models(args))
    quantized_results = [] if args.no_quantized else [of_quantized(tensor) for tensor in quantized(SHAPE)]
    if results:
        totals(results)
        show("model, dtype", results)
    if quantized_results:
        show("4096 x 2048 weights", quantized_results)
    print("MB/s are of CPU time, one thread, and of one run; sizes are the same in every run")
    print(Memcpy().noise())
    write_json(args.json, results + quantized_results)


def of_models(args: argparse.Namespace) -> Iterator[Result]:
    for model, path in checkpoints(args.data).items():
        if args.models and model not in args.models:
            continue
        if path is None or not path.exists():
            print(f"{model}: not found, left out")
            continue
        tensors = load_checkpoint(path)
        for dtype, to in DTYPES.items():
            cast = {name: array.astype(to) if array.dtype == np.float32 else array for name, array in tensors.items()}
            yield {"what": f"{model}, {dtype}", "dtype": dtype,
                   **compare(cast, to, level_19=not args.no_19, thorough=args.thorough)}  # fmt: skip


def of_quantized(tensor: Quantized) -> Result:
    return {"what": tensor.kind, "ideal": tensor.ideal_nbytes,
            **compare({"w": tensor.values}, tensor.values.dtype, level_19=False)}  # fmt: skip


def totals(results: list[Result]) -> None:
    """One line for each dtype: the bytes of all models."""
    for dtype in DTYPES:
        chosen = [result for result in results if result["dtype"] == dtype]
        names = [name for name in METHODS if all(name in result for result in chosen)]
        print(f"all in {dtype}:", ", ".join(f"{name} {sum(r[name] for r in chosen):,}" for name in ("raw", *names)))


def show(title: str, results: list[Result]) -> None:
    """Ratios, and speeds of saving."""
    names = [name for name in METHODS if any(name in result for result in results)]
    speeds = [f"{name}_mb_s" for name in names if any(f"{name}_mb_s" in result for result in results)]
    rows = [(r["what"], r["raw"], *(ratio(r, name) for name in names),
             *(f"{r[name]:.0f}" if name in r else "-" for name in ("load_mb_s", *speeds)))
            for r in results]  # fmt: skip
    print_table((title, "bytes", *names, "load MB/s", *(f"{name.removesuffix('_mb_s')} MB/s" for name in speeds)), rows)


def ratio(result: Result, name: str) -> str:
    return f"{result['raw'] / result[name]:.4f}" if name in result else "-"


def compare(
    tensors: dict[str, np.ndarray], dtype: np.dtype[Any], *, level_19: bool, thorough: bool = False
) -> dict[str, float]:
    """Bytes that each makes of a model; others get its tensors of this dtype, end to end."""
    floats = b"".join(array.tobytes() for array in tensors.values() if array.dtype == dtype)
    others = sum(array.nbytes for array in tensors.values() if array.dtype != dtype)  # counted uncompressed
    n = len(floats) + others
    file, elapsed = timed(lambda: vqformat.save(tensors, lossless=True))
    loaded, load_elapsed = timed(lambda: vqformat.load(file, threads=1))
    for name, array in tensors.items():
        if array.tobytes() != loaded[name].tobytes():
            raise SystemExit(f"tensor {name!r} was changed")
    sizes: dict[str, float] = {"raw": n, "vqformat": len(file), "vqformat_mb_s": n / elapsed / 1e6,
                               "load_mb_s": n / load_elapsed / 1e6}  # fmt: skip
    if thorough:
        sizes["vqformat_small"] = len(vqformat.save(tensors, lossless=True, preset="small"))
    for name, (compress, decompress) in peers(dtype).items():
        stored, elapsed = timed(partial(compress, floats))
        if bytes(decompress(stored)) != floats:
            raise SystemExit(f"{name} did not give back what it was given")
        sizes |= {name: len(stored) + others, f"{name}_mb_s": n / elapsed / 1e6}
    if ZipNN is not None and save_safetensors is not None and dtype.name in DTYPES:
        file = bytearray(save_safetensors(tensors))  # what one would keep: names and shapes too, as our file has
        sizes["zipnn_file"] = len(ZipNN(bytearray_dtype=dtype.name).compress(file))
    for level in (3, 19) if level_19 else (3,):
        sizes[f"zstd_{level}"] = len(zstandard.ZstdCompressor(level=level).compress(floats)) + others
    return sizes


def peers(dtype: np.dtype[Any]) -> dict[str, tuple[Codec, Codec]]:
    """What others compress and decompress a dtype with."""
    found: dict[str, tuple[Codec, Codec]] = {}
    short = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype.name)
    if ZipNN is not None and dtype.name in DTYPES:
        found["zipnn"] = (lambda data: ZipNN(bytearray_dtype=dtype.name, threads=1).compress(bytearray(data)),
                          lambda data: ZipNN(bytearray_dtype=dtype.name, threads=1).decompress(data))  # fmt: skip
    if z4ai is not None:
        found["z4ai"] = lambda data: z4ai.compress(data, dtype=short, threads=1), z4ai.decompress
    if openzl is not None and short is not None:
        found["openzl"] = partial(openzl_compress, short=short), openzl_decompress
    return found


def openzl_compress(data: bytes, *, short: str) -> bytes:
    """Exponents by themselves, and what is left by bytes."""
    compressor = openzl.Compressor()
    width, node = {"fp32": (4, openzl.nodes.Float32Deconstruct), "bf16": (2, openzl.nodes.BFloat16Deconstruct),
                   "fp16": (2, openzl.nodes.Float16Deconstruct)}[short]  # fmt: skip
    rest = openzl.graphs.Compress()(compressor)
    if width == 4:
        rest = openzl.nodes.TransposeSplit()(compressor, rest)
    compressor.select_starting_graph(node()(compressor, rest, openzl.graphs.Compress()(compressor)))
    context = openzl.CCtx()
    context.set_parameter(openzl.CParam.FormatVersion, openzl.MAX_FORMAT_VERSION)
    context.ref_compressor(compressor)
    return context.compress([openzl.Input(openzl.Type.Numeric, np.frombuffer(data, f"<u{width}"))])


def openzl_decompress(data: bytes) -> bytes:
    return np.asarray(openzl.DCtx().decompress(data)[0].content.as_nparray()).tobytes()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its CPU time in seconds."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


if __name__ == "__main__":
    main()

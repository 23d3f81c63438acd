"""Speed of decoding against memcpy, and of encoding against faiss."""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Memcpy, median, print_table, seconds, sqnr, time_together, write_json

import vqformat
from vqformat.encode.methods.assemble import QuantizedStage, assemble
from vqformat.encode.methods.quantize import quantize
from vqformat.encode.recipe import parse_method
from vqformat.format.chunkwriter import ChunkWriter
from vqformat.format.layout import Layout, make_view
from vqformat.format.stages import CodebookStage, TableSource

SIDE = 4000  # of the decoded matrix: 64 MB of float32
FIXED = {2: 2.0, 4: 1.0, 16: 0.4, 256: 0.03}  # entries -> grid step, in deviations; packed, not compressed
CODED = {3: 1.5, 5: 1.0, 15: 0.5, 31: 0.25, 127: 0.06}  # the same, compressed
ENTRIES, DIM = 256, 4  # of the comparison with faiss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="runs of which the median is taken (%(default)s)")
    parser.add_argument("--weights", type=int, default=1 << 22, help="weights that are encoded (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    parser.add_argument("--only", choices=("decode", "encode", "faiss"), help="one of the three tables")
    args = parser.parse_args()
    memcpy = Memcpy()
    result: dict[str, Any] = {}
    if args.only in (None, "decode"):
        result["decode"] = decoding(memcpy, args.repeats)
    if args.only in (None, "encode"):
        result["encode"] = encoding(args.weights, max(3, args.repeats // 2))
    if args.only in (None, "faiss"):
        result["faiss"] = against_faiss(args.weights // 4)
    print(memcpy.noise())
    write_json(args.json, result)


def decoding(memcpy: Memcpy, repeats: int) -> list[dict[str, Any]]:
    """GB/s of float32 that come out of load_file and of safe_open, and what share of memcpy that is."""
    weights = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    cases = [(entries, step, False) for entries, step in FIXED.items()]
    cases += [(entries, step, True) for entries, step in CODED.items()]
    results = []
    copies = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "grid.vqm")
        for entries, step, is_coded in cases:
            planes = write_grid(path, weights, entries, step, compress=is_coded)
            with vqformat.safe_open(path) as file:
                works: dict[str, Callable[[], Any]] = {
                    "memcpy": memcpy,
                    "copy": weights.copy,
                    "load_file": lambda: vqformat.load_file(path),
                    "safe_open": lambda file=file: file["w"],
                }
                times = time_together(works, repeats)
            speed = {name: weights.nbytes / median(elapsed) / 1e9 for name, elapsed in times.items()}
            copies.append(speed.pop("copy"))
            bits = 8 * path.stat().st_size / weights.size
            results.append({"entries": entries, "is_coded": is_coded, "planes": planes, "bits": bits, **speed})
    print("decoding, GB/s of float32 out")
    print_table(
        ("codes", "bits/weight", "memcpy", "load_file", "ratio", "safe_open", "ratio"),
        [(f"{r['entries']} entries, {'zstd' if r['is_coded'] else 'fixed width'}", f"{r['bits']:.2f}",
          f"{r['memcpy']:.2f}", f"{r['load_file']:.2f}", f"{r['load_file'] / r['memcpy']:.2f}", f"{r['safe_open']:.2f}",
          f"{r['safe_open'] / r['memcpy']:.2f}") for r in results],
    )  # fmt: skip
    print(f"a copy into new memory, which decoding needs too: {median(copies):.2f} GB/s")
    return results


def write_grid(path: Path, weights: np.ndarray, entries: int, step: float, *, compress: bool) -> list[list[int]]:
    """A file of one tensor on a grid of just so many points; returns the packing of its codes."""
    codes = np.clip(np.rint(weights / step) + entries // 2, 0, entries - 1).astype(np.uint8)
    points = ((np.arange(entries) - entries // 2) * step).astype("<f4")
    stage = QuantizedStage(CodebookStage(1, entries, TableSource("f32")), [points.tobytes()], codes)
    tensor = assemble("w", "f32", weights.shape, Layout(n_row_axes=1), [stage], compress=compress)
    with ChunkWriter(path) as writer:
        writer.add_layer("", [tensor])
    packed = tensor.record.stages[0]
    assert isinstance(packed, CodebookStage)
    return [list(plane) for plane in packed.planes]


def encoding(n_weights: int, repeats: int) -> list[dict[str, Any]]:
    """Millions of weights a second through ``save_file``, file and report included."""
    side = int(n_weights**0.5) // 4 * 4
    weights = {"w": np.random.default_rng(0).standard_normal((side, side), np.float32)}
    works: dict[str, Callable[[], Any]] = {}
    reports = {}

    def work(recipe: str | None) -> None:
        reports[recipe] = vqformat.save_file(weights, io.BytesIO(), recipe=recipe)

    for recipe in (None, "kmeans:entries=16", f"vq:dim={DIM},entries={ENTRIES}", f"pq:dim={DIM},entries={ENTRIES}"):
        works[recipe or "default (uniform)"] = lambda recipe=recipe: work(recipe)
    times = time_together(works, repeats)
    results = [{"method": name, "weights_per_s": side * side / median(elapsed), "sqnr_db": report.tensors[0].sqnr_db,
                "bits": 8 * report.file_nbytes / (side * side)}
               for (name, elapsed), report in zip(times.items(), reports.values(), strict=True)]  # fmt: skip
    print(f"\nencoding {side} x {side} Gaussian weights")
    print_table(
        ("method", "M weights/s", "bits/weight", "SQNR dB"),
        [(r["method"], f"{r['weights_per_s'] / 1e6:.2f}", f"{r['bits']:.2f}", f"{r['sqnr_db']:.2f}") for r in results],
    )
    return results


def against_faiss(n_weights: int) -> list[dict[str, Any]]:
    """Time that we need and that faiss needs for the same distortion on the same vectors.

    The distortion is the worse of what both reach in 25 iterations; each then takes as few as it needs for that.
    """
    try:
        import faiss
    except ImportError:
        print("\nfaiss is not installed: no comparison with it (pip install faiss-cpu)")
        return []
    columns = 256
    matrix = np.random.default_rng(0).standard_normal((n_weights // columns, columns), np.float32)
    view = make_view(matrix.shape, False, Layout(n_row_axes=1))
    results = []
    for name, search in (("vq", faiss_vq), ("pq", faiss_pq)):

        def ours(iterations: int, name: str = name) -> np.ndarray:
            method = parse_method(f"{name}:dim={DIM},entries={ENTRIES},iterations={iterations}")
            return sum(stage.values(view) for stage in quantize(matrix, view, method, seed=0))

        def theirs(iterations: int, search: Callable[..., np.ndarray] = search) -> np.ndarray:
            return search(faiss, matrix, iterations)

        target = min(sqnr(matrix, ours(25)), sqnr(matrix, theirs(25))) - 0.005
        row: dict[str, Any] = {"method": name, "target_db": target}
        for who, work in (("ours", ours), ("faiss", theirs)):
            row[who] = cheapest(work, matrix, target)
        results.append(row)
    print(f"\ndim {DIM}, {ENTRIES} entries, {matrix.shape[0]} x {columns} weights: training, assignment, decoding")
    print_table(
        ("method", "SQNR dB", "ours: iterations", "s", "faiss: iterations", "s", "faiss / ours"),
        [(r["method"], f"{r['target_db']:.2f}", r["ours"]["iterations"], f"{r['ours']['seconds']:.2f}",
          r["faiss"]["iterations"], f"{r['faiss']['seconds']:.2f}",
          f"{r['faiss']['seconds'] / r['ours']['seconds']:.2f}") for r in results],
    )  # fmt: skip
    return results


def cheapest(work: Callable[[int], np.ndarray], matrix: np.ndarray, target: float) -> dict[str, Any]:
    """The fewest iterations, at most 25, that reach an SQNR, and the median time of three such runs."""
    ladder = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20)
    iterations = next((n for n in ladder if sqnr(matrix, work(n)) >= target), 25)
    return {"iterations": iterations, "seconds": median([seconds(lambda: work(iterations)) for _ in range(3)])}


def faiss_vq(faiss: Any, matrix: np.ndarray, iterations: int) -> np.ndarray:
    """One codebook for all vectors, trained on the 256 an entry that faiss takes of itself."""
    vectors = matrix.reshape(-1, DIM)
    trained = faiss.Kmeans(DIM, ENTRIES, niter=iterations, seed=1)
    trained.train(vectors)
    _, codes = trained.index.search(vectors, 1)
    return trained.centroids[codes[:, 0]].reshape(matrix.shape)


def faiss_pq(faiss: Any, matrix: np.ndarray, iterations: int) -> np.ndarray:
    """A codebook for each segment of columns."""
    quantizer = faiss.ProductQuantizer(matrix.shape[1], matrix.shape[1] // DIM, 8)
    quantizer.cp.niter = iterations
    quantizer.cp.min_points_per_centroid = 1  # or it warns, once for every segment
    quantizer.train(matrix)
    return quantizer.decode(quantizer.compute_codes(matrix))


if __name__ == "__main__":
    main()

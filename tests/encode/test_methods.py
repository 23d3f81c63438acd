"""Every method of the encoder, from a matrix to stages to decoded values."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import matrices

from vqformat.decode import tables
from vqformat.decode.tensor import TensorDecoder
from vqformat.encode.methods import quantize
from vqformat.encode.methods.assemble import QuantizedStage, assemble
from vqformat.encode.recipe import parse_method
from vqformat.errors import EncodeError
from vqformat.format.layout import Layout, View, make_view
from vqformat.format.records import BookRecord
from vqformat.format.stages import CodebookStage, LowRankStage, SharedSource, TableSource
from vqformat.read.shared_tables import Shared

ROWS = Layout(n_row_axes=1)

METHODS = [
    "binary", "binary:scale=column", "binary:scale=tensor", "binary:scale=none",
    "kmeans", "kmeans:entries=1", "kmeans:entries=300", "kmeans:rows=7", "kmeans:scale=row", "kmeans:scale=column",
    "pq", "pq:dim=1,entries=4", "pq:dim=3,entries=8", "pq:dim=2,segments=3,rows=5,entries=4", "pq:scale=row,entries=4",
    "vq:entries=16", "vq:dim=7,entries=5", "vq:scale=row,entries=8", "vq:dim=3,rows=4,entries=4",
    "rq:entries=8,stages=3", "rq:shared=0,entries=8", "rq:dim=0,entries=4",
    "svd:rank=1", "svd:bits=6,factor_bits=12", "svd:rank=2,factor_bits=2",
    "svd:rank=2+pq:entries=8", "binary+kmeans", "svd:rank=1+uniform:bits=3", "kmeans:entries=2+rq:entries=4",
]  # fmt: skip


def code(matrix: np.ndarray, text: str, *, seed: int = 0) -> tuple[list[QuantizedStage], View]:
    view = make_view(matrix.shape, False, ROWS)
    return quantize.quantize(matrix, view, parse_method(text), seed=seed), view


def added_up(stages: list[QuantizedStage], view: View) -> np.ndarray:
    total = stages[0].values(view)
    for stage in stages[1:]:
        total = total + stage.values(view)
    return total


def decoded(matrix: np.ndarray, text: str) -> np.ndarray:
    return added_up(*code(matrix, text))


def read_back(
    matrix: np.ndarray, stages: list[QuantizedStage], books: dict[int, np.ndarray] | None = None
) -> np.ndarray:
    """What the decoder makes of the assembled tensor."""
    encoded = assemble("w", "f32", matrix.shape, ROWS, stages, compress=False)
    sections = [bytes(section.stored) for section in encoded.sections]
    n_resident = encoded.record.n_resident()
    books_of_file = [tables.Book(values) for values in (books or {}).values()]
    shared = Shared([BookRecord(1, 1, 1, "f32") for _ in books_of_file], [], books_of_file)
    decoder = TensorDecoder(encoded.record, sections[:n_resident], shared)
    out = np.empty(matrix.shape, np.float32)
    n_payload = encoded.record.n_payload()
    for i in range(decoder.view.n_blocks):
        start = n_resident + i * n_payload
        decoder.decode_blocks([decoder.view.block(i)], [sections[start : start + n_payload]], out)
    return out


def sqnr_db(original: np.ndarray, result: np.ndarray) -> float:
    return float(10 * np.log10(np.square(original, dtype=np.float64).sum()
                               / np.square(original.astype(np.float64) - result).sum()))  # fmt: skip


def normal(n_rows: int, n_columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_rows, n_columns)).astype(np.float32)


# All methods


@pytest.mark.parametrize("text", METHODS)
@examples(12)
@given(matrix=matrices())
def test_a_decoder_gets_what_the_encoder_counted_on(text: str, matrix: np.ndarray) -> None:
    stages, view = code(matrix, text)

    result = read_back(matrix, stages)  # tests tables, codes and VAL-002 too

    assert np.array_equal(result, added_up(stages, view))
    assert np.isfinite(result).all()


@pytest.mark.parametrize("text", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3), (31, 17)])
@pytest.mark.parametrize("value", [0.0, 0.75, -3e-3, 1e-42])
def test_constant_matrices(text: str, shape: tuple[int, int], value: float) -> None:
    matrix = np.full(shape, value, np.float32)

    stages, _ = code(matrix, text)
    result = read_back(matrix, stages)

    if text.startswith(("kmeans", "pq", "vq", "rq")) and "scale" not in text:
        assert np.array_equal(result, matrix)
    elif text != "binary:scale=none" and value != 1e-42:
        assert np.allclose(result, matrix, rtol=0.02 if "factor_bits=2" not in text else 0.5)


@pytest.mark.parametrize("text", METHODS)
def test_the_same_seed_gives_the_same_stages(text: str) -> None:
    matrix = normal(40, 30)

    first, _ = code(matrix, text, seed=3)
    second, _ = code(matrix.copy(), text, seed=3)

    for a, b in zip(first, second, strict=True):
        assert a.stage == b.stage
        assert a.resident == b.resident
        assert np.array_equal(a.codes, b.codes)


@pytest.mark.parametrize("text", METHODS)
@examples(10)
@given(
    matrix=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(-(2.0**124), 2.0**124, width=32),
    )
)
def test_any_finite_matrix_is_coded_or_refused(text: str, matrix: np.ndarray) -> None:
    try:
        stages, _ = code(matrix, text)
    except EncodeError:
        assert np.abs(matrix).max() > 2.0**100  # sums of stages, products with scales
        return

    assert np.isfinite(read_back(matrix, stages)).all()


def test_values_beyond_the_dtype_are_refused() -> None:
    matrix = np.full((4, 4), 60_000, np.float32)
    matrix[0] = -60_000
    view = make_view(matrix.shape, False, ROWS)

    quantize.quantize(matrix, view, parse_method("kmeans"), dtype="f16")
    with pytest.raises(EncodeError, match="beyond dtype f16"):
        quantize.quantize(matrix, view, parse_method("kmeans:entries=1+kmeans"), dtype="f16")


def test_blocks_of_a_large_matrix() -> None:
    matrix = normal(600, 700)

    for text in ("pq:dim=7,entries=4", "kmeans:scale=column,rows=100", "svd:rank=3"):
        stages, view = code(matrix, text)
        assert np.array_equal(read_back(matrix, stages), added_up(stages, view))


# Binarization


def test_binarization_is_the_sign_times_the_mean_magnitude() -> None:
    matrix = np.array([[1, -3, 0], [-0.5, -0.5, 0.5]], np.float32)

    assert decoded(matrix, "binary:scale=none").tolist() == [[1, -1, 1], [-1, -1, 1]]
    assert decoded(matrix, "binary:scale=tensor")[0].tolist() == [0.91650390625, -0.91650390625, 0.91650390625]
    assert decoded(matrix, "binary")[1].tolist() == [-0.5, -0.5, 0.5]
    assert decoded(matrix, "binary:scale=column")[:, 1].tolist() == [-1.75, -1.75]


def test_binarization_of_normal_weights() -> None:
    matrix = normal(300, 784)

    assert sqnr_db(matrix, decoded(matrix, "binary")) == pytest.approx(4.4, abs=0.1)  # π / (π − 2)


# Codebooks


def test_scalar_k_means_has_one_codebook() -> None:
    matrix = normal(100, 200)

    (stage,), view = code(matrix, "kmeans:entries=16")

    assert isinstance(stage.stage, CodebookStage)
    assert (stage.stage.dim, stage.stage.entries, stage.stage.book_grid(view)) == (1, 16, (1, 1))
    assert sqnr_db(matrix, stage.values(view)) > 20.1


def test_product_quantization_has_a_codebook_for_each_segment() -> None:
    matrix = normal(100, 22)

    (stage,), view = code(matrix, "pq:dim=4,entries=8")

    assert isinstance(stage.stage, CodebookStage)
    assert stage.stage.book_grid(view) == (1, 6)
    assert stage.codes.shape == (100, 6)


def test_product_quantization_fits_each_segment() -> None:
    """Segments with values of their own: a shared codebook cannot have them all."""
    matrix = np.repeat(np.arange(10, dtype=np.float32), 4)[None] + np.eye(40, dtype=np.float32) * 0.5

    assert np.array_equal(decoded(matrix, "pq:dim=4,entries=5"), matrix)
    assert sqnr_db(matrix, decoded(matrix, "vq:dim=4,entries=5")) < 30


def test_more_entries_than_rows_are_exact() -> None:
    matrix = normal(10, 24)

    (stage,), view = code(matrix, "pq:dim=4,entries=256")

    assert stage.stage.entries == 10  # type: ignore[union-attr]
    assert np.array_equal(stage.values(view), matrix)


def test_the_padding_of_the_last_subvector_costs_nothing() -> None:
    """Only columns that exist count, in training and in the choice of codes."""
    whole = normal(2000, 8)
    matrix = np.concatenate((whole, whole[:, :1]), axis=1)

    (stage,), view = code(matrix, "vq:dim=4,entries=64")
    (alone,), alone_view = code(whole, "vq:dim=4,entries=64")

    assert np.array_equal(stage.codes[:, :2], alone.codes)
    assert sqnr_db(matrix[:, 8:], stage.values(view)[:, 8:]) > sqnr_db(whole, alone.values(alone_view))


def test_row_scales_serve_rows_of_unlike_size() -> None:
    matrix = normal(64, 256) * np.logspace(-3, 0, 64, dtype=np.float32)[:, None]

    plain, scaled = decoded(matrix, "kmeans"), decoded(matrix, "kmeans:scale=row")

    assert sqnr_db(matrix[:32], plain[:32]) < 10
    assert sqnr_db(matrix[:32], scaled[:32]) > 19


def test_each_stage_codes_the_residual() -> None:
    matrix = normal(200, 64)

    quality = [sqnr_db(matrix, decoded(matrix, f"rq:dim=4,entries=64,stages={n}")) for n in (1, 2, 3)]

    assert quality[1] > quality[0] + 5
    assert quality[2] > quality[1] + 5


def test_residual_quantization_of_whole_rows() -> None:
    stages, _ = code(normal(50, 20), "rq:dim=0,entries=8,stages=4")

    assert [(q.stage.dim, q.stage.entries) for q in stages] == [(20, 8)] * 4  # type: ignore[union-attr]


def test_subvectors_and_tables_have_limits() -> None:
    with pytest.raises(EncodeError, match="limit of 4096"):
        code(np.zeros((1, 5000), np.float32), "rq:dim=0")
    with pytest.raises(EncodeError, match="codebooks of 65536 entries"):
        code(np.broadcast_to(np.float32(1), (70_000, 2000)), "pq:dim=1,entries=65536")


def test_tables_are_narrow_where_that_costs_less_than_it_saves() -> None:
    def dtype(text: str, matrix: np.ndarray) -> str:
        (stage,), _ = code(matrix, text)
        assert isinstance(stage.stage, CodebookStage) and isinstance(stage.stage.source, TableSource)
        return stage.stage.source.dtype

    assert dtype("pq:dim=4,entries=64", normal(300, 100)) == "f16"
    assert dtype("kmeans:entries=16", normal(300, 100)) == "f16"
    assert dtype("kmeans:entries=16", normal(300, 100) * np.float32(1e-12)) == "bf16"  # f16 would make it 0
    assert dtype("kmeans:entries=16", np.full((3, 3), 0.1, np.float32)) == "f32"  # exact, and stays so


# Low rank


def test_a_low_rank_matrix_is_found() -> None:
    matrix = normal(60, 4) @ normal(4, 90, seed=1)

    (stage,), view = code(matrix, "svd:rank=4,factor_bits=16")

    assert isinstance(stage.stage, LowRankStage)
    assert (stage.stage.rank, stage.stage.entries_u) == (4, 65535)
    assert sqnr_db(matrix, stage.values(view)) > 75


def test_eight_bits_a_factor_are_near_the_best_of_the_rank() -> None:
    matrix = (normal(80, 80) * np.arange(1, 81, dtype=np.float32) ** -1.0) @ normal(80, 120, seed=1)
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    best = sqnr_db(matrix, (left[:, :10] * values[:10]) @ right[:10])

    assert sqnr_db(matrix, decoded(matrix, "svd:rank=10")) > best - 0.1


def test_large_matrices_are_decomposed_by_subspace_iteration() -> None:
    matrix = normal(900, 5) @ normal(5, 850, seed=1) + 0.01 * normal(900, 850, seed=2)
    best = sqnr_db(matrix, matrix + 0.01 * normal(900, 850, seed=3))

    assert sqnr_db(matrix, decoded(matrix, "svd:rank=5,factor_bits=12")) > best - 0.1


def test_the_rank_follows_from_bits() -> None:
    (stage,), _ = code(normal(100, 300), "svd:bits=1,factor_bits=8")

    assert stage.stage.rank == 9  # type: ignore[union-attr]  # 1 · 100 · 300 / (8 · 400) = 9.4


def test_a_codebook_takes_what_low_rank_leaves() -> None:
    matrix = normal(100, 3) @ normal(3, 80, seed=1) + 0.1 * normal(100, 80, seed=2)

    stages, view = code(matrix, "svd:rank=3+kmeans:entries=16")

    assert [type(q.stage) for q in stages] == [LowRankStage, CodebookStage]
    assert sqnr_db(matrix, added_up(stages, view)) > sqnr_db(matrix, stages[0].values(view)) + 19


# Shared codebooks


@pytest.mark.parametrize(
    "text",
    [
        "vq:dim=4,entries=32,share=a",
        "kmeans:share=a",
        "vq:dim=3,scale=row,entries=16,share=a",
        "kmeans:share=a,scale=column",
        "vq:share=a,entries=8+kmeans:entries=4",
    ],
)
def test_layers_share_a_codebook(text: str) -> None:
    method = parse_method(text)
    layers = [normal(50, 30), normal(20, 7, seed=1), normal(4, 2, seed=2), normal(1, 1)]
    book = quantize.train_shared(layers, method)

    assert quantize.shared_name(method) == "a"
    assert book.values.size == prod((book.record.dim, book.record.entries, book.record.groups))
    stored = tables.encode(book.values, book.record.dtype)
    assert np.array_equal(tables.decode(stored, book.record.dtype, "codebook"), book.values)
    for layer in layers:
        view = make_view(layer.shape, False, ROWS)
        stages = quantize.quantize_with_book(layer, view, method, book, 0)
        assert isinstance(stages[0].stage, CodebookStage) and stages[0].stage.source == SharedSource(0)
        assert np.array_equal(read_back(layer, stages, {0: book.values}), added_up(stages, view))


def test_a_shared_codebook_serves_as_well_as_one_of_its_own() -> None:
    layers = [normal(100, 100), normal(100, 100, seed=1)]
    method = parse_method("kmeans:entries=16,share=a")
    book = quantize.train_shared(layers, method)

    for layer in layers:
        view = make_view(layer.shape, False, ROWS)
        (stage,) = quantize.quantize_with_book(layer, view, method, book, 0)
        assert sqnr_db(layer, stage.values(view)) > 20.0


# Uniform grids


@pytest.mark.parametrize("bits", [1.0, 2.0, 4.0, 8.0, 12.0])
def test_steps_for_bits_give_that_entropy(bits: float) -> None:
    matrix = normal(500, 500)
    step = quantize.uniform_step(parse_method(f"uniform:bits={bits}"), 1.0, 0.0)
    grid = np.copysign(np.floor(np.abs(matrix) / step + 0.38), matrix).astype(np.int64)

    shares = np.bincount((grid - grid.min()).reshape(-1)) / grid.size
    shares = shares[shares > 0]

    assert -(shares * np.log2(shares)).sum() == pytest.approx(bits, abs=0.05)


def test_the_step_is_the_methods_or_the_encoders() -> None:
    assert quantize.uniform_step(parse_method("uniform:step=0.25"), 1.0, 0.5) == 0.25
    assert quantize.uniform_step(parse_method("uniform"), 1.0, 0.5) == 0.5

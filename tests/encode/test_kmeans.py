"""k-means of scalars and vectors."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vqformat.encode.methods.kmeans import kmeans, kmeans_batch
from vqformat.encode.methods.kmeans_1d import kmeans_1d, nearest_1d
from vqformat.encode.methods.nearest import nearest
from vqformat.encode.methods.sampling import sample_indices, uniforms

floats = st.floats(-(2.0**100), 2.0**100, width=32)


def sqnr_db(original: np.ndarray, decoded: np.ndarray) -> float:
    return float(10 * np.log10(np.square(original, dtype=np.float64).sum()
                               / np.square(original.astype(np.float64) - decoded).sum()))  # fmt: skip


def squared_errors(vectors: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Of every vector to every entry, in float64: (n, entries)."""
    return np.square(vectors[:, None].astype(np.float64) - book[None]).sum(axis=2)


# Scalars


@pytest.mark.parametrize(("entries", "best"), [(2, 4.40), (4, 9.30), (16, 20.22), (64, 31.89)])
def test_normal_scalars_reach_the_lloyd_max_quantizer(entries: int, best: float) -> None:
    values = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32)

    levels = kmeans_1d(values, entries)
    codes = nearest_1d(values, levels)

    assert sqnr_db(values, levels[codes]) == pytest.approx(best, abs=0.05)  # Max 1960, table I


def test_few_distinct_scalars_are_exact() -> None:
    values = np.array([3, -1, 3, 0, -1, 2.5], np.float32)

    levels = kmeans_1d(values, 16)

    assert levels.tolist() == [-1, 0, 2.5, 3]
    assert nearest_1d(values, levels).tolist() == [3, 0, 3, 1, 0, 2]


@example(np.array([-1.5845634e29, 2.0**44, 0, 1], np.float32), 3)  # sums in which the small values drown
@given(hnp.arrays(np.float32, st.integers(1, 60), elements=floats), st.integers(1, 20))
def test_scalars_get_the_nearest_of_ascending_levels(values: np.ndarray, entries: int) -> None:
    levels = kmeans_1d(values, entries).astype(np.float32)
    codes = nearest_1d(values, levels)

    assert 1 <= levels.size <= entries
    assert (np.diff(levels) >= 0).all()
    assert values.min() <= levels[0] and levels[-1] <= values.max()
    errors = np.abs(values[:, None].astype(np.float64) - levels)
    slack = 1e-6 * np.abs(levels).max()  # bounds are rounded to float32
    assert (errors[np.arange(values.size), codes] <= errors.min(axis=1) + slack).all()


def test_neighbouring_floats_are_exact() -> None:
    for values in ([0, 1e-45], [-1e-45, 0], [1, np.nextafter(np.float32(1), np.float32(2))], [-1, -0.99999994]):
        array = np.array(values, np.float32)
        levels = kmeans_1d(array, 2)
        assert levels[nearest_1d(array, levels)].tolist() == array.tolist()


def test_many_scalars_get_the_same_codes_as_few() -> None:
    """More than 2^18 values are looked up by the upper bits of their patterns."""
    rng = np.random.default_rng(1)
    values = (rng.standard_normal(300_000) * np.exp(rng.standard_normal(300_000) * 5)).astype(np.float32)
    values[:6] = [0, -0.0, np.finfo(np.float32).max, -np.finfo(np.float32).max, 1e-45, -1e-45]
    levels = np.sort(rng.standard_normal(300)).astype(np.float32)
    levels = np.concatenate((levels, -levels))  # a bound at 0
    levels.sort()

    codes = nearest_1d(values, levels)

    parts = [nearest_1d(part, levels) for part in np.array_split(values, 10)]
    assert np.array_equal(codes, np.concatenate(parts))


def test_weights_draw_levels() -> None:
    values = np.linspace(0, 1, 1000, dtype=np.float32)

    levels = kmeans_1d(values, 4, weights=(values > 0.75) + 1e-9)

    assert (levels > 0.7).sum() >= 3


# Vectors


def test_normal_vectors_reach_the_known_distortion() -> None:
    vectors = np.random.default_rng(0).standard_normal((40_000, 4)).astype(np.float32)

    book, codes = kmeans(vectors, 256)

    assert sqnr_db(vectors, book[codes]) > 10.2  # faiss.Kmeans with 25 rounds: 10.27; on an endless sample 10.18


@examples(60)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(2, 5)), elements=floats),
    st.integers(1, 50),
)
def test_vectors_get_the_nearest_entry(vectors: np.ndarray, entries: int) -> None:
    book, codes = kmeans(vectors, entries)

    assert book.shape[0] <= entries
    assert np.isfinite(book).all()
    errors = squared_errors(vectors, book)
    slack = 1e-6 * float(np.square(np.abs(vectors).max() or 1, dtype=np.float64))
    assert (errors[np.arange(len(vectors)), codes] <= errors.min(axis=1) + slack).all()


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(2, 4)), elements=floats))
def test_as_many_entries_as_vectors_are_exact(vectors: np.ndarray) -> None:
    book, codes = kmeans(vectors, 30)

    assert np.array_equal(book[codes], vectors)
    assert len(book) == len(np.unique(vectors + np.float32(0), axis=0))


def test_few_distinct_among_many_vectors_are_exact() -> None:
    distinct = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    vectors = distinct[np.random.default_rng(1).integers(0, 7, 100_000)]

    book, codes = kmeans(vectors, 8)

    assert book.shape == (7, 3)
    assert np.array_equal(book[codes], vectors)


def test_entries_do_not_stay_empty() -> None:
    """Most vectors are alike, so that a start finds them again and again."""
    vectors = np.zeros((5000, 2), np.float32)
    vectors[:300] = np.random.default_rng(0).standard_normal((300, 2)) * 100

    _, codes = kmeans(vectors, 64)

    assert (np.bincount(codes, minlength=64) > 0).sum() >= 62


def test_problems_of_a_batch_are_independent() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3, 500, 2)).astype(np.float32)
    vectors[1] *= 1e-20
    vectors[2, :, 1] = 0

    clusters = kmeans_batch(vectors, 32)

    for own, book, codes in zip(vectors, clusters.books, clusters.codes, strict=True):
        assert sqnr_db(own, book[codes]) > 12.5


def test_weighted_vectors_are_represented_better() -> None:
    vectors = np.random.default_rng(0).standard_normal((4000, 2)).astype(np.float32)
    heavy = vectors[:, 0] > 1
    plain_book, plain = kmeans(vectors, 32)

    book, codes = kmeans(vectors, 32, weights=np.where(heavy, 100.0, 1.0))

    assert sqnr_db(vectors[heavy], book[codes][heavy]) > sqnr_db(vectors[heavy], plain_book[plain][heavy]) + 3


def test_more_vectors_than_the_sample() -> None:
    vectors = np.random.default_rng(0).standard_normal((150_000, 2)).astype(np.float32)

    book, codes = kmeans(vectors, 16)

    assert sqnr_db(vectors, book[codes]) == pytest.approx(9.69, abs=0.1)
    best = nearest(vectors, book)
    assert sqnr_db(vectors, book[best]) == pytest.approx(sqnr_db(vectors, book[codes]), abs=1e-3)


@pytest.mark.parametrize("iterations", [0, 1])
def test_few_rounds_are_allowed(iterations: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)

    book, codes = kmeans(vectors, 16, iterations=iterations)

    assert book.shape == (16, 3) and codes.max() < 16


def test_extreme_magnitudes() -> None:
    vectors = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    plain_book, plain = kmeans(vectors, 16)

    for scale in (np.float32(2.0**100), np.float32(2.0**-120)):
        book, codes = kmeans(vectors * scale, 16)
        assert sqnr_db(vectors, book[codes] / scale) > sqnr_db(vectors, plain_book[plain]) - 0.5


def test_progress_is_told() -> None:
    rounds: list[tuple[int, int]] = []

    kmeans(np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32), 16,
           progress=lambda done, most: rounds.append((done, most)))  # fmt: skip

    assert rounds[0] == (1, 25)


# Randomness


def test_random_numbers_are_those_of_every_numpy() -> None:
    assert uniforms(0, 2).tolist() == [0.6369616873214543, 0.2697867137638703]


def test_samples_are_ascending_and_spread() -> None:
    indices = sample_indices(1000, 10, 0)

    assert (indices // 100).tolist() == list(range(10))
    assert sample_indices(5, 10, 0).tolist() == [0, 1, 2, 3, 4]


_FINGERPRINT = """
import zlib, numpy as np
from vqformat.encode.methods.kmeans import kmeans
vectors = np.random.default_rng(3).standard_normal((70_000, 6)).astype(np.float32)
book, codes = kmeans(vectors, 300, seed=5)
print(zlib.crc32(book.tobytes()), zlib.crc32(codes.tobytes()))
"""


def test_the_result_does_not_depend_on_threads() -> None:
    def fingerprint(threads: int) -> str:
        names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, str(threads)) | {"PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, "-c", _FINGERPRINT], env=environment, check=True, capture_output=True,
                              text=True).stdout  # fmt: skip

    assert fingerprint(1) == fingerprint(3)

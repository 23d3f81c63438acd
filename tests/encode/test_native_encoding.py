"""Kernels of the encoder against their twins in NumPy: the same results, with every instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import vqformat
from vqformat import EncodeError, native
from vqformat.encode import sums
from vqformat.encode.calibration import TensorStatistics
from vqformat.encode.methods import layout
from vqformat.encode.methods.nearest import Grid, best_entries, nearest
from vqformat.encode.small import coded_tensor, entropy_coding, error_feedback, viterbi
from vqformat.encode.small import trellis as small_trellis
from vqformat.encode.small.coded_tensor import CodedTensor
from vqformat.encode.small.coder import Coder
from vqformat.encode.small.contexts import Contexts
from vqformat.format.layout import Layout
from vqformat.format.stages import Trellis

KERNELS = [name for name in native.available() if name != "numpy"]
pytestmark = pytest.mark.skipif(not KERNELS, reason="the kernels were not built: there was no compiler")
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 90))


@pytest.fixture(autouse=True)
def same_backend_afterwards() -> Iterator[None]:
    before = native.backend()
    yield
    native.use(before)


def check_all_agree(work: Callable[[], Any]) -> Any:
    """The result of ``work``, which all backends give."""
    native.use("numpy")
    expected = work()
    for backend in KERNELS:
        native.use(backend)
        found = work()
        for one, other in zip(as_tuple(found), as_tuple(expected), strict=True):
            is_float = isinstance(one, np.ndarray) and one.dtype.kind == "f"
            assert np.array_equal(one, other, equal_nan=is_float), backend
            assert not isinstance(one, np.ndarray) or one.dtype == other.dtype, backend
    return expected


def as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def values(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers with heavy tails; some lie half way between points of a grid, some are 0."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = draw(st.sampled_from([0.1, 1.0, 7.0, 400.0])) * random.standard_t(3, shape)
    if draw(st.booleans()):
        found = np.rint(found * 2) / 2
    return np.where(random.random(shape) < draw(st.sampled_from([0.0, 0.5])), 0, found).astype(np.float32)


@st.composite
def contexts(draw: st.DrawFn, shape: tuple[int, int]) -> Contexts:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = draw(st.integers(0, 5))
    rows, columns = (random.integers(0, most + 1, n).astype(np.uint8) if draw(st.booleans()) else None for n in shape)
    return Contexts(draw(st.integers(-4, 6)), rows, columns)


@st.composite
def searches(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of ``viterbi.quantize_tiles``."""
    shape = draw(SHAPES)
    found = draw(contexts(shape))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    points = values(draw, shape)
    path = viterbi.TRELLISES[draw(st.sampled_from(sorted(viterbi.TRELLISES)))]
    tile = draw(st.integers(1, shape[0] + 1)), draw(st.integers(1, shape[1] + 1))
    reach = draw(st.sampled_from([2, 3, 40, int(np.abs(points).max() / 2) + 3]))
    costs = small_trellis.expected_rates(found, reach) * draw(st.sampled_from([0.0, 0.15, 1.3]))
    weights = None
    if draw(st.booleans()):
        weights = random.random(draw(st.sampled_from([shape, (shape[0], 1)]))).astype(np.float32)
    n_tiles = -(-shape[0] // tile[0]) * -(-shape[1] // tile[1])
    start = random.integers(0, path.n_states, n_tiles).astype(np.uint8) if draw(st.booleans()) else None
    return {"points": points, "tile": tile, "contexts": found.at(slice(None), slice(None)),
            "rates": viterbi.Rates(costs.astype(np.float32), reach), "trellis": path, "weights": weights,
            "start": start}  # fmt: skip


@given(st.data())
def test_passes_over_arrays_are_the_same(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    found = values(data.draw, shape)
    indices, books = np.rint(found / 2).astype(np.int16), (found > 0).astype(np.uint8)
    check_all_agree(lambda: coded_tensor._errors_of_points(found, indices, books, 2, np.float32(0.3)))
    of_contexts = data.draw(contexts(shape)).at(slice(None), slice(None)) + np.zeros(shape, np.uint8)
    reach = int(np.abs(indices).max())
    check_all_agree(lambda: small_trellis._counts(of_contexts, books, indices.astype(np.int32), 11, reach))
    found[0, 0] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 1e30]))
    check_all_agree(lambda: np.array(layout.largest_magnitude(found)))


@given(searches())
def test_searches_find_the_same_paths(arguments: dict[str, Any]) -> None:
    """Points may lie beyond the range of indices, and costs may be equal."""
    check_all_agree(lambda: viterbi.quantize_tiles(**arguments))


@pytest.mark.parametrize("trellis", [viterbi.TRELLISES[256], Trellis(0o401, 0o2), Trellis(0o777, 0o376)])
def test_a_few_long_sequences_find_the_same_paths(trellis: Trellis) -> None:
    random = np.random.default_rng(3)
    points = np.rint(random.standard_t(3, (3, 1001)) * 8).astype(np.float32) / 4
    found = Contexts(0, np.array([0, 1, 0], np.uint8), random.integers(0, 3, 1001).astype(np.uint8))
    rates = viterbi.Rates(np.rint(small_trellis.expected_rates(found, 20)).astype(np.float32) / 4, 20)
    start = np.array([0, 255, 77], np.uint8)
    contexts = found.at(slice(None), slice(None))
    check_all_agree(lambda: viterbi.quantize_tiles(points, (1, 1000), contexts, rates, trellis,
                                                   start=np.repeat(start, 2)))  # fmt: skip


def test_a_search_with_other_polynomials_is_left_to_numpy() -> None:
    points = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    rates = viterbi.Rates(np.zeros((1, 2, 11), np.float32), 5)
    path = Trellis(0o13, 0o14)  # both polynomials have the highest bit
    check_all_agree(lambda: viterbi.quantize(points, None, rates, path))


@st.composite
def coded_tensors(draw: st.DrawFn) -> CodedTensor:
    """A tensor with any codes, contexts, tile and blocks."""
    shape = draw(SHAPES)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = np.clip(np.rint(values(draw, shape)), -3000, 3000).astype(np.int16)
    path = draw(st.sampled_from([None, viterbi.TRELLISES[8]]))
    books = random.integers(0, 1 if path is None else 2, shape).astype(np.uint8)
    block_rows = draw(st.sampled_from([0, *range(1, shape[0])]))
    block_columns = draw(st.sampled_from([0, *range(1, shape[1])])) if block_rows else 0
    tile = draw(st.integers(1, block_rows or shape[0])), draw(st.integers(1, block_columns or shape[1]))
    layout = Layout(n_row_axes=1, block_rows=block_rows, block_columns=block_columns)
    return CodedTensor("a", "f32", shape, layout, tile, path, draw(contexts(shape)), indices, books, 0.5)


@given(coded_tensors())
def test_codes_give_the_same_tables_and_payloads(tensor: CodedTensor) -> None:
    def encode() -> tuple[Any, ...]:
        pool = entropy_coding.Pool.of([tensor])
        sections = pool.encode(tensor, 0).sections
        return (pool.tables.frequencies(), tensor.counts(pool.zero, pool.record.entries),
                *(section.stored for section in sections))  # fmt: skip

    check_all_agree(encode)


@given(st.data())
def test_sums_are_the_same(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(1, 1), (3, 1), (1, 17), (16, 16), (33, 50), (300, 700)]))
    matrix = values(data.draw, shape)
    check_all_agree(lambda: (sums.total(matrix), sums.energy(matrix)))


@given(st.data())
def test_how_values_are_parted_does_not_change_their_energy(data: st.DataObject) -> None:
    matrix = values(data.draw, (300, 700))
    parts = np.split(matrix.reshape(-1), sorted(data.draw(st.lists(st.integers(0, matrix.size), max_size=4))))
    energy = sums.Energy()
    for part in parts:
        energy.add(part)
    assert energy.total() == sums.energy(matrix)


@given(searches(), st.booleans())
def test_sums_of_errors_are_kept_small_in_the_same_way(arguments: dict[str, Any], has_shares: bool) -> None:
    points, tile, path = arguments["points"], arguments["tile"], arguments["trellis"]
    n_rows, n_columns = points.shape
    grid = small_trellis.Grid((min(tile[0], n_rows), min(tile[1], n_columns)), 0, path)
    shares = np.array([1, 0.5, -2], np.float32) if has_shares else None
    flat = Contexts(0, None, None)
    rates = viterbi.Rates(arguments["rates"].costs[:1], arguments["rates"].reach)
    check_all_agree(lambda: Coder(points, flat, grid, rates, arguments["weights"]).quantize_keeping_sums(shares))


@given(st.data())
def test_nearest_entries_are_the_same(data: st.DataObject) -> None:
    """Vectors and entries are few different ones, so that scores are often equal."""
    dim, n, entries = data.draw(st.integers(1, 18)), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 40))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    vectors, books = random.integers(-2, 3, (2, n, dim)), random.integers(-2, 3, (2, entries, dim))
    grid = Grid.of(np.full(2, 2.0), dim, data.draw(st.sampled_from([np.float32, np.float64])))
    left, right = grid.vectors(vectors.astype(np.float32)), grid.entries(books.astype(np.float64))
    check_all_agree(lambda: best_entries(left, right))


@given(st.data())
def test_nearest_entries_that_rounded_scores_do_not_tell_are_the_same(data: st.DataObject) -> None:
    """Vectors lie between two entries, nearly: those are told by scores that are exact."""
    dim, n, entries = data.draw(st.integers(1, 18)), data.draw(st.integers(1, 300)), data.draw(st.integers(1, 40))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    book = random.standard_normal((entries, dim)).astype(np.float32)
    first, second = random.integers(0, entries, (2, n))
    nearly = 1 + 2.0 ** random.integers(-26, 0, (n, 1)) * random.standard_normal((n, dim))
    vectors = ((book[first] + book[second]) / 2 * nearly).astype(np.float32)
    vectors[: data.draw(st.integers(0, 2))] *= np.float32(data.draw(st.sampled_from([1e-30, 0, 100, 1e20])))
    scale = np.float32(data.draw(st.sampled_from([1e-20, 0.02, 1, 3e5])))
    check_all_agree(lambda: nearest(vectors * scale, book * scale))


@given(st.data())
@examples(6)
def test_files_have_the_same_bytes(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(40, 90), (200, 130), (17, 1), (1, 300), (24, 6, 3, 3), (70, 2, 5), (33, 257)]))
    weights = values(data.draw, shape)
    options = data.draw(st.sampled_from([{"step": 0.3}, {"step": 1.5}, {"step": 0.02}, {"bits": 2}, {"sqnr": 15}]))

    def save() -> bytes | str:
        try:
            return vqformat.save({"w": weights}, preset="small", **options)
        except EncodeError as err:  # the file cannot be so small
            return str(err)

    check_all_agree(save)


@pytest.mark.parametrize("recipe", ["vq:dim=4,entries=32", "pq:dim=3,entries=16,segments=2", "rq:stages=2,entries=16"])
def test_codebooks_have_the_same_bytes(recipe: str) -> None:
    weights = np.random.default_rng(1).standard_normal((90, 48)).astype(np.float32)
    check_all_agree(lambda: vqformat.save({"w": weights}, recipe=recipe))


def test_feedback_gives_the_same_codes() -> None:
    """It goes from row to row, with a state of the trellis for each tile."""
    random = np.random.default_rng(2)
    points = (2 * random.standard_normal((70, 96))).astype(np.float32)
    inputs = random.standard_normal((500, 70)) @ random.standard_normal((70, 70))
    moments = (inputs.T @ inputs / 500).astype(np.float32)
    for n_groups in (1, 3):
        statistics = TensorStatistics(moments=((moments,),) * n_groups, n_observed=500)
        factors = error_feedback.Factors.of(statistics, 96)
        assert factors is not None
        grid = small_trellis.Grid((20, 30), 0, viterbi.TRELLISES[8])
        flat = Contexts(0, None, None)
        rates = viterbi.Rates((small_trellis.expected_rates(flat, 40) * 0.15).astype(np.float32), 40)
        check_all_agree(lambda factors=factors, grid=grid, flat=flat, rates=rates:
                        error_feedback.quantize(points, flat, grid, rates, factors))  # fmt: skip

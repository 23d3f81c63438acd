"""The trellis stage: what the encoder writes is what the decoder reads, and is as good as it should be."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from coding import written
from examples import examples, some_of
from hypothesis import given
from hypothesis import strategies as st

import vqformat
from vqformat.decode import batch, rans
from vqformat.encode.small import contexts, entropy_coding, error_weights, small, tiles, trellis, viterbi
from vqformat.encode.small.coder import Coder
from vqformat.encode.small.decorrelate import FINER
from vqformat.encode.small.entropy_coding import Pool
from vqformat.format.chunkwriter import ChunkWriter
from vqformat.format.limits import MAX_STEPS_PER_SEQUENCE
from vqformat.format.records import FreqRecord


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Entropy coding


@given(st.data())
def test_any_codes_come_back_from_their_payloads(data: st.DataObject) -> None:
    entries = data.draw(st.integers(1, 9))
    shape = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = random.integers(0, entries, shape)
    counts = np.bincount(codes.reshape(-1), minlength=entries).astype(float)
    record = FreqRecord(data.draw(st.integers(4, 14)), entries, 1)
    tables = rans.Tables(entropy_coding._weights(counts[None]).tobytes(), record)

    frequencies = tables.frequencies()
    frequency, start = frequencies[0][codes], rans.starts(frequencies)[0][codes]
    payload, = rans.encode(frequency, start, record.precision, [shape[1]])

    slots = rans.Slots(tables, 0, 1, 1, None)
    decoder = rans.Decoder(slots, [payload], [shape[1]])
    found = np.empty(shape, slots.symbols.dtype)
    cut = data.draw(st.integers(0, shape[0]))
    decoder.run(None, found[:cut])
    decoder.run(None, found[cut:])
    decoder.finish()
    assert np.array_equal(found, codes)


def test_payloads_take_hardly_more_than_the_entropy_of_their_codes() -> None:
    codes = np.random.default_rng(0).choice(4, (2000, 64), p=[0.7, 0.2, 0.07, 0.03])
    counts = np.bincount(codes.reshape(-1)).astype(float)
    tables = rans.Tables(entropy_coding._weights(counts[None]).tobytes(), FreqRecord(12, 4, 1))

    frequencies = tables.frequencies()
    payload, = rans.encode(frequencies[0][codes], rans.starts(frequencies)[0][codes], 12, [64])

    entropy = -(counts * np.log2(counts / counts.sum())).sum() / 8
    assert entropy < len(payload) < 1.002 * entropy + 4 * 64


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=3, max_size=3).filter(any), min_size=1, max_size=4))
def test_tables_keep_the_proportions_of_counts(counts: list[list[int]]) -> None:
    weights = entropy_coding._weights(np.array(counts, np.float64))
    found = rans.Tables(weights.tobytes(), FreqRecord(14, 3, len(counts))).frequencies()

    assert (found.sum(axis=1) == 1 << 14).all()
    for row, frequencies in zip(counts, found, strict=True):
        assert [n > 0 for n in row] == (frequencies > 0).tolist()
        expected = np.array(row) / sum(row) * (1 << 14)
        assert (np.abs(frequencies - expected) <= 0.04 * expected + 4).all()


def test_contexts_that_no_element_has_get_a_table_too() -> None:
    counts = np.array([[0, 0], [3, 1], [0, 0], [0, 5], [0, 0]], np.float64)

    found = rans.Tables(entropy_coding._weights(counts).tobytes(), FreqRecord(2, 2, 5)).frequencies()

    assert found.tolist() == [[3, 1], [3, 1], [3, 1], [0, 4], [0, 4]]


# The search


def least_cost(points: np.ndarray, rates: viterbi.Rates, path: viterbi.Trellis) -> float:
    """The cost of the best codes of one sequence, all of them tried."""
    best = {0: 0.0}
    for x in points:
        following: dict[int, float] = {}
        for state, cost in best.items():
            q = state & 1
            for k in range(-rates.reach, rates.reach + 1):
                total = cost + float((x - (2 * k + q)) ** 2 + rates.costs[0, q, k + rates.reach])
                target = path.next_state(state, k & 1)
                following[target] = min(total, following.get(target, np.inf))
        best = following
    return min(best.values())


@given(st.integers(0, 999), st.sampled_from([4, 8, 16]), st.floats(0.0, 0.4))
@examples(30)
def test_the_search_finds_the_least_cost(seed: int, n_states: int, price: float) -> None:
    points = normal(7, 3, seed=seed) * 2
    reach = int(np.abs(points).max() / 2) + 3
    bits = np.broadcast_to(np.abs(np.arange(-reach, reach + 1)) * 1.5 + 1, (1, 2, 2 * reach + 1))
    rates = viterbi.Rates((bits * price).astype(np.float32), reach)
    path = viterbi.TRELLISES[n_states]

    indices, books, end = viterbi.quantize(points, None, rates, path)

    for i in range(3):
        state, cost = 0, 0.0
        for x, k, q in zip(points[:, i], indices[:, i], books[:, i], strict=True):
            assert q == state & 1
            cost += float((x - (2 * k + q)) ** 2 + rates.costs[0, q, k + reach])
            state = path.next_state(state, int(k) & 1)
        assert state == end[i]
        # Of each subset the search looks at two points: enough, unless a bit costs absurdly much
        assert cost <= least_cost(points[:, i], rates, path) * 1.02 + 1e-4


def test_values_beyond_reach_get_the_furthest_points_and_stay_on_the_trellis() -> None:
    rates = viterbi.Rates(np.zeros((1, 2, 9), np.float32), 4)
    path = viterbi.TRELLISES[8]

    indices, books, _ = viterbi.quantize(np.full((40, 2), 1000, np.float32), None, rates, path)

    assert indices.max() <= 4 and (2 * indices + books).min() >= 2
    state = 0
    for k, q in zip(indices[:, 0], books[:, 0], strict=True):
        assert q == state & 1
        state = path.next_state(state, int(k) & 1)


@pytest.mark.parametrize(("step", "gap_db"), [(0.35, 0.6), (0.7, 0.6), (1.3, 0.65)])
def test_normal_weights_come_near_the_bound_of_shannon(step: float, gap_db: float) -> None:
    weights = normal(512, 1024)

    settings = small.Settings(least_noise=True)
    quantized = small.quantize("w", "f32", weights.shape, weights, step / FINER, settings=settings)
    data = written(quantized.coded)

    error = vqformat.load(data)["w"] - weights
    rate = 8 * len(data) / weights.size
    sqnr = 10 * np.log10(np.square(weights).sum() / np.square(error).sum())
    assert 6.0206 * rate - sqnr < gap_db


@pytest.mark.parametrize("sqnr", some_of([1.5, 3.0], [3.0]))
def test_at_low_rates_a_dearer_bit_makes_squared_errors_smaller(monkeypatch: pytest.MonkeyPatch, sqnr: float) -> None:
    weights = np.random.default_rng(0).laplace(size=(512, 512)).astype(np.float32)

    def nbytes() -> float:
        report = vqformat.save_file({"w": weights}, io.BytesIO(), preset="small", sqnr=sqnr)
        return report.file_nbytes - (report.sqnr_db - sqnr) / 6.02 * weights.size / 8

    ours = nbytes()
    monkeypatch.setattr(small, "_LOW_RATE", 0.0)

    assert ours < 0.98 * nbytes()


# Tiles


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 8))
def test_tiles_are_few_enough_and_not_too_long(n_rows: int, n_columns: int, bits: float) -> None:
    height, width = tiles.choose_tile(n_rows, n_columns, bits)

    assert 1 <= height <= n_rows and 1 <= width <= n_columns
    assert height * width <= max(1, 64 * -(-n_rows // height) * -(-n_columns // width))


@given(st.integers(1, 300), st.integers(1, 5000), st.floats(0.01, 12), st.none() | st.integers(1, 48))
@examples(300)
def test_whole_tiles_are_enough_for_their_length(n_rows: int, n_columns: int, bits: float, wanted: int | None) -> None:
    columns = None if wanted is None else tiles.band_width(n_columns, wanted)

    height, width = tiles.choose_tile(n_rows, n_columns, bits, columns, in_whole=True)

    assert 1 <= height <= n_rows and 1 <= width <= n_columns
    assert height * width <= MAX_STEPS_PER_SEQUENCE * (n_rows // height) * (n_columns // width)


@given(st.integers(1, 5000), st.integers(1, 100))
def test_bands_are_about_as_wide_as_wanted(n_columns: int, wanted: int) -> None:
    width = tiles.band_width(n_columns, wanted)
    assert min(n_columns, 2 * wanted // 3) <= width <= min(n_columns, 3 * wanted / 2 + 1)


@given(st.integers(1, 23), st.integers(1, 17), st.integers(0, 9), st.integers(1, 6), st.integers(1, 6))
def test_groups_of_tiles_have_every_element_once(
    n_rows: int, n_columns: int, bands: int, height: int, width: int
) -> None:
    matrix = np.arange(n_rows * n_columns).reshape(n_rows, n_columns)
    found = np.full_like(matrix, -1)

    for group in tiles.groups(matrix.shape, bands * height, (height, width)):
        steps = group.take(matrix)
        assert steps.shape[0] <= height * width
        group.put(found, steps)

    assert np.array_equal(found, matrix)


# Contexts


def test_scales_of_rows_and_columns_are_found() -> None:
    rows, columns = np.exp2(np.arange(64) % 4), np.exp2(np.arange(256) % 3)
    points = normal(64, 256) * (rows[:, None] * columns).astype(np.float32)

    found = contexts.find_contexts(points)

    assert found.rows is not None and found.columns is not None
    assert np.corrcoef(found.rows, np.arange(64) % 4)[0, 1] > 0.99
    assert np.corrcoef(found.columns, np.arange(256) % 3)[0, 1] > 0.99
    exponents = found.exponent + found.at(slice(None), slice(None)).astype(int)
    assert np.abs(exponents / contexts.PER_OCTAVE - 2 * np.log2(rows[:, None] * columns)).max() <= 1


def test_classes_are_fine_where_that_pays() -> None:
    scales = np.exp2(np.random.default_rng(1).uniform(-2, 2, 256)).astype(np.float32)

    long, short = (contexts.find_contexts(normal(256, n) * scales[:, None]).rows for n in (2000, 16))

    assert long is not None and short is not None
    assert np.abs(np.diff(np.unique(long))).min() == 1
    assert np.abs(np.diff(np.unique(short))).min() == contexts.PER_OCTAVE


def test_no_classes_where_all_scales_are_alike() -> None:
    assert contexts.find_contexts(normal(300, 300)).n_contexts == 1


@pytest.mark.parametrize("exponent", [-30, 0, 30])
def test_contexts_of_extreme_or_dead_rows(exponent: int) -> None:
    points = normal(64, 300) * np.float32(2.0**exponent)
    points[5:40] = 0

    found = contexts.find_contexts(points)

    assert found.exponent >= contexts.PER_OCTAVE * contexts.LOWEST and found.n_contexts <= 65


# Whole tensors


@given(st.data())
@examples(40)
def test_what_is_read_is_what_was_coded(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.integers(1, 13)) for _ in range(rank))
    scale = data.draw(st.sampled_from([1e-20, 1, 1e9]))
    values = normal(*shape, seed=data.draw(st.integers(0, 99))) * np.float32(scale)
    step = float(np.abs(values).max()) * data.draw(st.sampled_from([0.01, 0.2, 1.5]))
    axis = data.draw(st.integers(-1, rank - 1))
    least_noise = data.draw(st.booleans())

    settings = small.Settings(output_axis=axis, least_noise=least_noise)
    quantized = small.quantize("w", "f32", shape, values, step, settings=settings)

    pool = Pool.of([quantized.coded])
    loaded = vqformat.load(written(quantized.coded))["w"]
    matrix = loaded.transpose(quantized.coded.layout.axes or range(rank)).reshape(quantized.coded.indices.shape)
    assert matrix.tobytes() == pool.decoded(quantized.coded).tobytes()
    assert loaded.shape == shape


def test_blocks_groups_and_slices_agree() -> None:
    weights = normal(2000, 700)
    quantized = small.quantize("embedding", "f32", weights.shape, weights, 0.8, settings=small.Settings(is_table=True))
    data = written(quantized.coded)
    layout = quantized.coded.layout
    assert layout.block_rows and layout.axes is None  # a table of rows

    loaded = vqformat.load(data)["embedding"]

    assert loaded.tobytes() == Pool.of([quantized.coded]).decoded(quantized.coded).tobytes()
    with vqformat.safe_open(io.BytesIO(data)) as file:
        rows = file.get_slice("embedding")[layout.block_rows - 2 : layout.block_rows + 3]
        assert np.array_equal(rows, loaded[layout.block_rows - 2 : layout.block_rows + 3])
        assert np.array_equal(file["embedding"], loaded)


def test_a_row_longer_than_a_block_is_cut_into_ranges() -> None:
    weights = normal(1_300_000)

    quantized = small.quantize("w", "f32", weights.shape, weights, 2.0)

    assert quantized.coded.layout.block_columns % quantized.coded.tile[1] == 0
    loaded = vqformat.load(written(quantized.coded))["w"]
    assert loaded.tobytes() == Pool.of([quantized.coded]).decoded(quantized.coded).tobytes()


def test_tensors_that_share_tables_differ_in_scale() -> None:
    tensors = [small.quantize(name, "f32", (64, 96), normal(64, 96, seed=i) * np.float32(4.0**i), 1.0).coded
               for i, name in enumerate("abc")]  # fmt: skip

    loaded = vqformat.load(written(*tensors))

    pool = Pool.of(tensors)
    for tensor in tensors:
        matrix = loaded[tensor.name].T if tensor.layout.axes else loaded[tensor.name]
        assert matrix.tobytes() == pool.decoded(tensor).tobytes()


def test_no_entry_is_beyond_the_dtype_that_only_other_tensors_use() -> None:
    large = (np.clip(normal(100, 100), -2, 2) * np.float32(10_000)).astype(np.float16)
    largest = (np.clip(normal(100, 100), -3, 3) * np.float32(65504 / 3)).astype(np.float16)
    peaked = normal(100, 100).astype(np.float16)
    peaked[0, 0] = 60  # as many deviations: its tables have many entries
    net = {"large": large, "largest": largest, "peaked": peaked}
    file = io.BytesIO()
    vqformat.save_file(net, file, preset="small")

    loaded = vqformat.load(file.getvalue())

    for name, weights in net.items():
        noise, signal = (np.square(a.astype(np.float64)).sum() for a in (loaded[name] - weights.astype(float), weights))
        assert noise < 0.1 * signal


def test_sums_of_errors_are_kept_small() -> None:
    weights = normal(64, 400)
    kept = small.quantize("w", "f32", weights.shape, weights, 2.0).coded
    free = Coder(*_arguments(weights)).quantize()

    sums_kept = (Pool.of([kept]).decoded(kept) - weights.T).sum(axis=0)
    sums_free = (2 * free[0] + free[1] - weights.T).sum(axis=0)
    assert np.square(sums_kept).mean() < 0.2 * np.square(sums_free).mean()


def _arguments(weights: np.ndarray) -> tuple[np.ndarray, contexts.Contexts, trellis.Grid, viterbi.Rates]:
    points = np.ascontiguousarray(weights.T)
    found = contexts.find_contexts(points)
    grid = trellis.Grid((8, 64), 0, viterbi.TRELLISES[8])
    return points, found, grid, trellis.find_rates(points, found, grid, 0.15)


# Tensors decoded side by side


def _net(n_tensors: int = 12) -> dict[str, np.ndarray]:
    shapes = [(40 + 7 * i, 30 + 11 * (i % 5)) for i in range(n_tensors)]
    return {f"layer{i}.weight": normal(*shape, seed=i) * 2.0**i for i, shape in enumerate(shapes)}


@pytest.mark.parametrize("bits", some_of([1.2, 2, 9], [2]))
def test_tensors_read_together_are_those_read_one_by_one(bits: float, monkeypatch: pytest.MonkeyPatch) -> None:
    data = vqformat.save(_net(), preset="small", bits=bits)

    found = vqformat.load(data)
    with vqformat.safe_open(io.BytesIO(data)) as file:
        for name in file:
            assert np.array_equal(found[name], file.get_tensor(name))
    for most_nbytes in (0, 1 << 22, 1 << 23):  # none waits, some do, in several groups
        monkeypatch.setattr("vqformat.decode.batch._MOST_NBYTES", most_nbytes)
        again = vqformat.load(data)
        assert all(np.array_equal(again[name], array) for name, array in found.items())


def test_a_fault_among_tensors_read_together_names_its_tensor() -> None:
    net = _net(6)
    one_by_one = [small.quantize(name, "f32", w.shape, w, float(w.std())).coded for name, w in net.items()]
    pool = Pool.of(one_by_one)
    stream = io.BytesIO()
    with ChunkWriter(stream) as writer:
        number = writer.add_freq(pool.record, pool.section)
        encoded = [pool.encode(tensor, number) for tensor in one_by_one]
        payload = encoded[3].sections[-1]
        encoded[3].sections[-1] = replace(payload, stored=payload.stored[:-2])
        writer.add_layer("", encoded)

    with pytest.raises(vqformat.FormatError, match=r"tensor 'layer3\.weight', stage 0: .*end before") as caught:
        vqformat.load(stream.getvalue())
    assert caught.value.clause == "ANS-002"


@pytest.mark.usefixtures("numpy_backend")
def test_what_waits_is_bounded_over_all_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse, fine = _net(6), {f"fine{i}.weight": normal(30, 20, seed=i) for i in range(30)}
    data = [vqformat.save(coarse, preset="small", bits=1.5), vqformat.save(fine, preset="small", bits=8)]
    waiting_jobs, held_nbytes = [], []
    add = batch.Batch.add

    def noted(self: batch.Batch, *args: Any) -> bool:
        waits = add(self, *args)
        jobs = [job for group in self._groups.values() for job in group]
        waiting_jobs.append(len(jobs))
        held_nbytes.append(sum(job.bands.decoder.slots.nbytes + sum(len(p[0]) for p in job.payloads) for job in jobs))
        return waits

    monkeypatch.setattr(batch.Batch, "add", noted)
    monkeypatch.setattr(batch, "_MOST_NBYTES", 1 << 23)
    assert all(vqformat.load(each) for each in data)
    assert 3 <= max(waiting_jobs) < len(_net(6)) + 30
    assert max(held_nbytes) <= 1 << 23


def test_at_low_rates_large_weights_count_more() -> None:
    points = normal(100, 100)

    low, middle = (error_weights.weights_of(points, error_weights.power_at(bits)) for bits in (0.5, 2.0))

    assert not error_weights.power_at(3.0)
    order = np.argsort(np.abs(points), axis=None)
    for weights in (low, middle):
        assert (np.diff(weights.reshape(-1)[order]) >= 0).all()
        assert np.square(points).mean() == pytest.approx((weights * np.square(points)).mean(), rel=1e-3)
    assert np.ptp(low) > np.ptp(middle)


@pytest.mark.parametrize(("options", "sqnr"), [({"step": 1e-7}, 75), ({"sqnr": 75}, 75), ({"sqnr": 55}, 55)], ids=str)
def test_the_finest_grids_fit_the_largest_tables(options: dict[str, float], sqnr: float) -> None:
    weights = normal(200, 200)
    file = io.BytesIO()
    vqformat.save_file({"w": weights}, file, preset="small", **options)

    loaded = vqformat.load(file.getvalue())["w"]

    assert np.square(loaded - weights).mean() < 10 ** (-0.1 * sqnr + 0.01) * np.square(weights).mean()


def test_no_mean_is_beyond_the_dtype_that_no_weight_has() -> None:
    weights = (np.clip(normal(85, 18), -2, 2) * np.float32(30_000)).astype(np.float16)

    settings = small.Settings(least_noise=True)
    coded = small.quantize("w", "f16", weights.shape, weights.astype(np.float32), 50_000, settings=settings).coded

    loaded = vqformat.load(written(coded))["w"]
    assert np.square(loaded.astype(float) - weights).mean() < np.square(weights.astype(float)).mean()

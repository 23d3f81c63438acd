"""Principal components: found where a matrix has some, left alone where it has none, and decoded bit by bit."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from itertools import product
from typing import Any

import minidecoder
import ml_dtypes
import numpy as np
import pytest
from arrays import weights
from coding import decoded, method, quantized, saved, written
from examples import examples, some_of
from hypothesis import given
from hypothesis import strategies as st

import vqformat
from vqformat.decode import batch
from vqformat.encode.calibration import TensorStatistics
from vqformat.encode.methods.layout import reals
from vqformat.encode.small import (
    decorrelate,
    error_weights,
    principal_components,
    small,
    table_rows,
    tiles,
)
from vqformat.encode.small.coded_tensor import CodedTensor
from vqformat.encode.small.contexts import find_contexts
from vqformat.encode.small.error_feedback import Factors
from vqformat.format.dtypes import of_array
from vqformat.format.limits import MAX_STAGES

Matrix = np.ndarray[Any, Any]


def with_components(n_rows: int, n_columns: int, rank: int, *, share: float = 0.5, seed: int = 0) -> Matrix:
    """Noise and components, which have so much of the energy."""
    left, right = weights(n_rows, rank, seed=seed + 1), weights(rank, n_columns, seed=seed + 2)
    noise = weights(n_rows, n_columns, seed=seed) * np.float32((1 - share) ** 0.5)
    return noise + left @ right * np.float32((share / rank) ** 0.5)


@pytest.mark.parametrize(("shape", "goal"), some_of(
    product([(2000, 128), (128, 2000), (500, 400)], [{"sqnr": 5.0}, {"sqnr": 15.0}]), [((500, 400), {"sqnr": 15.0})]
), ids=str)  # fmt: skip
def test_a_matrix_with_components_takes_fewer_bytes(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], goal: dict[str, float]
) -> None:
    matrix = with_components(*shape, 4)
    monkeypatch.setattr(decorrelate, "find_group", lambda matrix, step: 0)  # which would see the same
    data = saved(matrix, **goal)

    monkeypatch.setattr(principal_components, "find_stages", lambda matrix, slope: [])
    without = saved(matrix, **goal)

    assert "low-rank" in method(data) and "low-rank" not in method(without)
    # Half of the energy is worth half a bit a weight; the factors take some of it
    assert len(data) < len(without) - 0.25 * matrix.size / 8


NOISE: dict[str, Callable[[], Matrix]] = {
    "noise": lambda: weights(600, 300),
    "tall noise": lambda: weights(4000, 64),
    "rows of many scales": lambda: weights(300, 300) * np.exp(weights(300, 1, seed=1)),
    "a component too short to pay": lambda: with_components(300, 300, 1, share=0.005),
}


@pytest.mark.parametrize("name", some_of(NOISE, ["a component too short to pay"]))
def test_noise_has_no_components(name: str) -> None:
    assert "low-rank" not in method(saved(NOISE[name](), bits=2))


@given(st.data())
@examples(40)
def test_what_is_read_is_what_was_coded(data: st.DataObject) -> None:
    shape = data.draw(st.integers(16, 90)), data.draw(st.integers(16, 90))
    matrix = with_components(*shape, data.draw(st.integers(1, 5)), share=data.draw(st.sampled_from([0.3, 0.9, 1.0])),
                             seed=data.draw(st.integers(0, 99)))  # fmt: skip
    matrix *= np.float32(data.draw(st.sampled_from([1e-30, 1, 1e30])))
    step = float(np.abs(matrix).max()) * data.draw(st.sampled_from([1e-4, 0.1, 2.0]))
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):  # many blocks
            patch.setattr(small, "BLOCK_ELEMENTS", 512)
            patch.setattr(small, "_MOST_BLOCK_ELEMENTS", 768)
        settings = small.Settings(output_axis=data.draw(st.integers(0, 1)), least_noise=data.draw(st.booleans()),
                                  is_table=data.draw(st.booleans()))  # fmt: skip
        found = small.quantize("w", "f32", shape, matrix, step, settings=settings)

    loaded = vqformat.load(written(found.coded))["w"]

    assert loaded.tobytes() == decoded(found.coded).tobytes()
    if found.coded.values is None:  # no table that is rounded
        noise = np.square(loaded.astype(np.float64) - matrix).sum()
        assert found.noise == pytest.approx(noise, rel=1e-3, abs=1e-9 * found.energy)


@pytest.mark.parametrize("matrix", [
    np.outer(np.arange(100), np.ones(80)).astype(np.float32),
    np.ones((64, 64), np.float32),
    np.zeros((64, 64), np.float32),
    np.repeat(weights(20, 200), 20, axis=0),
    np.eye(64, dtype=np.float32),
    np.where(np.arange(90)[:, None] == 7, np.float32(1e6), with_components(90, 90, 2)),
], ids=["rank 1", "constant", "zero", "rank 20", "identity", "one huge row"])  # fmt: skip
@pytest.mark.parametrize("ratio", [4, 25])
def test_matrices_of_no_noise(matrix: Matrix, ratio: float) -> None:
    loaded = vqformat.load(saved(matrix, ratio=ratio))["w"]

    assert np.square(loaded - matrix).sum() <= (1e-6 if ratio == 4 else 1) * np.square(matrix).sum()


def test_components_of_very_different_lengths_fit_the_limit_of_stages() -> None:
    stages = principal_components._groups(1.71 ** -np.arange(40.0))

    assert len(stages) == MAX_STAGES - 1 and stages[-1][1] == 40


def test_components_that_some_rows_only_have_are_seen() -> None:
    """Whether they pay is found on a sample of rows, which is not to keep step with the taps of a convolution."""
    matrix = weights(4608, 512)
    matrix[1::9] = with_components(512, 512, 4, share=0.95)
    matrix[2::9] = with_components(512, 512, 4, share=0.95)

    assert quantized(matrix, is_table=True).base


@pytest.mark.parametrize(("dtype", "largest"), [(np.float16, 60_000), (np.float16, 6000), (np.float32, 3e38)])
def test_values_near_the_largest_of_a_dtype(dtype: type, largest: float) -> None:
    """No sum of stages may be beyond it, whatever the codes (VAL-002)."""
    matrix = with_components(400, 300, 3, share=0.9)
    matrix = (matrix * np.float32(largest / np.abs(matrix).max())).astype(dtype)

    loaded = vqformat.load(saved(matrix, sqnr=20.0))["w"]

    noise, signal = (float(np.square(a.astype(np.float64)).sum()) for a in (loaded.astype(np.float64) - matrix, matrix))
    assert noise < 0.0101 * signal


def test_parts_of_a_table_are_those_of_the_whole() -> None:
    matrix = with_components(5000, 300, 6)
    coded = quantized(matrix, is_table=True)
    assert coded.base and coded.layout.block_rows and not coded.layout.axes
    data = written(coded)

    loaded = vqformat.load(data)["w"]
    streamed = {name: array for layer in vqformat.stream(io.BytesIO(data)) for name, array in layer.items()}

    assert loaded.tobytes() == decoded(coded).tobytes() == streamed["w"].tobytes()
    with vqformat.safe_open(io.BytesIO(data)) as file:
        for rows in (slice(0, 1), slice(870, 880), slice(4990, 5000)):
            assert np.array_equal(file.get_slice("w")[rows], loaded[rows])


@pytest.mark.parametrize(("dtype", "is_looked_up"), some_of(
    product(["float16", "bfloat16", "float32", "float64", "complex64"], [True, False]),
    [("float16", True), ("bfloat16", False), ("float32", False), ("float64", True), ("complex64", True)]
))  # fmt: skip
def test_a_second_decoder_finds_the_same_in_every_dtype(dtype: str, is_looked_up: bool) -> None:
    """Two stages of components, since they are of two lengths; rows of a table with scales of their own."""
    matrix = with_components(300, 64, 1, share=0.9) + with_components(300, 64, 2, share=0.95, seed=5) * np.float32(0.4)
    array = (matrix * (1 + 1j) if dtype == "complex64" else matrix).astype(ml_dtypes.bfloat16 if dtype == "bfloat16"
                                                                            else dtype)  # fmt: skip
    values = reals(array)
    scales = table_rows.row_scales(np.arange(300)) if is_looked_up else None
    settings = small.Settings(row_scales=scales)
    coded = small.quantize("w", of_array(array, "w").name, array.shape, values, 0.1, settings=settings).coded
    assert len(coded.base) > 1 and (coded.row_scales is not None) == is_looked_up
    data = written(coded)

    loaded = vqformat.load(data)["w"]

    assert loaded.dtype == array.dtype
    assert minidecoder.decode(io.BytesIO(data)).tensors["w"][2] == loaded.tobytes()
    assert np.square(np.abs(loaded.astype(complex) - array)).mean() < 0.02 * np.square(np.abs(matrix)).mean()


@pytest.mark.parametrize("n_groups", [1, 2])
def test_feedback_makes_up_for_errors_in_what_components_leave(n_groups: int) -> None:
    matrix = with_components(128, 96, 3, share=0.7)  # (outputs, inputs)
    x = weights(500, 8, seed=7) @ weights(8, 96, seed=8) + weights(500, 96, seed=9) * np.float32(0.1)
    factors = Factors.of(TensorStatistics(1.0, ((x.T @ x / 500,),) * n_groups, 500), 128)
    coded, free = quantized(matrix, 0.8, factors=factors), quantized(matrix, 0.8)
    assert coded.base and free.base

    def output_error(of: CodedTensor) -> float:
        return float(np.square(x @ (vqformat.load(written(of))["w"] - matrix).T).mean())

    assert vqformat.load(written(coded))["w"].tobytes() == decoded(coded).tobytes()
    assert output_error(coded) < 0.5 * output_error(free)


def test_the_gain_is_measured_at_any_rate() -> None:
    matrix, noise = with_components(300, 300, 8, share=0.9), weights(300, 300) * np.float32(0.1**0.5)
    for step in (0.3, 1e-2, 1e-4):
        whole, left = matrix / np.float32(step), noise / np.float32(step)

        gain = find_contexts(whole).entropy(whole, 1) - find_contexts(left).entropy(left, 1)

        assert gain == pytest.approx(0.5 * np.log2(10), abs=0.25)


def test_an_error_counts_by_its_weight_and_by_what_is_left_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, seen = with_components(200, 100, 2, share=0.8), []
    monkeypatch.setattr(small, "ErrorWeights", lambda *args: seen.append(args[:2]))
    coded = quantized(matrix, 2.0, is_table=True)
    whole, left = (points[:] for points in seen[0])
    np.testing.assert_allclose(whole * np.float32(coded.step), matrix, rtol=1e-5)
    np.testing.assert_allclose((whole - left) * np.float32(coded.step),
                               coded.with_base(np.zeros_like(matrix)), atol=1e-4)  # fmt: skip
    monkeypatch.undo()
    whole, left = np.array([[1, 4, 1, 4]], np.float32), np.array([[1, 1, 4, 4]], np.float32)

    found = error_weights.ErrorWeights(whole, left, 0.5).of_rows(slice(0, 1), left)

    assert found / found[0, 0] == pytest.approx(np.array([[1, 2**0.5, 2**0.5, 2]]))


@pytest.mark.parametrize("shape", [(40, 200_000), (200_000, 40)])
def test_components_are_found_in_little_memory(shape: tuple[int, int]) -> None:
    matrix = weights(*shape)
    tracemalloc.start()

    principal_components.find_stages(matrix, 0.8)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * matrix.nbytes


def test_small_tensors_with_components_are_decoded_together(
    monkeypatch: pytest.MonkeyPatch, use_numpy: Callable[[], Any]
) -> None:
    net = {f"layer{i}.weight": with_components(100, 120, 2, share=0.9, seed=i) for i in range(12)}
    file = io.BytesIO()
    vqformat.save_file(net, file, preset="small", step=0.5)
    use_numpy()
    together: list[int] = []
    decode_together = batch.decode_together
    monkeypatch.setattr(batch, "decode_together",
                        lambda jobs: together.append(len(jobs)) or decode_together(jobs))  # fmt: skip

    loaded = vqformat.load(file.getvalue())

    assert together == [len(net)]
    with vqformat.safe_open(io.BytesIO(file.getvalue())) as one_by_one:
        assert all(loaded[name].tobytes() == one_by_one[name].tobytes() for name in net)


def test_matrices_whose_rows_are_cut_have_no_low_rank_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Low-rank stages have whole rows only (LOW-002)."""
    matrix = with_components(20, 3000, 1, share=0.9)
    assert quantized(matrix, is_table=True).base
    monkeypatch.setattr(tiles, "MAX_BLOCK_ELEMENTS", 8000)
    monkeypatch.setattr(small, "BLOCK_ELEMENTS", 2000)

    coded = quantized(matrix, is_table=True)

    assert coded.layout.block_columns and not coded.base
    assert vqformat.load(written(coded))["w"].tobytes() == decoded(coded).tobytes()

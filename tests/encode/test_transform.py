"""Transforms of kernels: taken where taps go together, left out where they do not, and decoded bit by bit."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from math import prod
from pathlib import Path

import minidecoder
import ml_dtypes
import numpy as np
import pytest
from arrays import weights
from coding import Array, decoded, method, quantized, saved, written
from examples import examples, some_of
from hypothesis import given
from hypothesis import strategies as st

import vqformat
from vqformat.decode import batch
from vqformat.encode.small import small
from vqformat.encode.small.transform import find_kernel, find_transform
from vqformat.format.limits import MAX_TRANSFORM


def kernels(*shape: int, correlation: float = 0.8, seed: int = 0) -> Array:
    """Channels first; along each axis of taps neighbours go together so much."""
    found = weights(*shape, seed=seed)
    for axis in range(2, len(shape)):
        apart = np.abs(np.subtract.outer(np.arange(shape[axis]), np.arange(shape[axis])))
        found = np.moveaxis(np.moveaxis(found, axis, -1) @ np.linalg.cholesky(correlation**apart).T, -1, axis)
    return np.ascontiguousarray(found, np.float32)


SHAPES = [(64, 48, 3, 3), (40, 30, 24), (40, 40, 2, 3, 4), (9000, 1, 5, 5)]


@pytest.mark.parametrize(("shape", "goal"), some_of(
    product(SHAPES, [{"sqnr": 6.0}, {"sqnr": 20.0}]), [*product(SHAPES[:3], [{"sqnr": 20.0}])]
), ids=str)  # fmt: skip
def test_kernels_whose_taps_go_together_take_fewer_bytes(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], goal: dict[str, float]
) -> None:
    kernel = kernels(*shape, correlation=0.9)
    data = saved(kernel, **goal)

    monkeypatch.setattr(small, "find_kernel", lambda shape, output_axis: None)
    without = saved(kernel, **goal)

    assert f"transform {prod(shape[2:])}" in method(data) and "transform" not in method(without)
    assert len(data) < 0.95 * len(without)


OTHERS: dict[str, Callable[[], Array]] = {
    "noise": lambda: weights(64, 48, 3, 3),
    "no taps": lambda: weights(300, 200),
    "too many taps": lambda: kernels(200, 30, MAX_TRANSFORM + 1),
    "too few kernels": lambda: kernels(14, 14, 3, 3, correlation=0.5),
    "zeros": lambda: np.zeros((64, 48, 3, 3), np.float32),
}


@pytest.mark.parametrize(("name", "options"), some_of(
    product(OTHERS, [{"sqnr": 10.0}, {"bits": 2}]), [(name, {"bits": 2}) for name in OTHERS if name != "too many taps"]
), ids=str)  # fmt: skip
def test_where_nothing_is_gained_there_is_no_transform(name: str, options: dict[str, float]) -> None:
    assert "transform" not in method(saved(OTHERS[name](), **options))


def test_taps_are_found_whether_channels_are_first_or_last() -> None:
    first = kernels(64, 48, 3, 5)
    last = np.ascontiguousarray(first.transpose(2, 3, 1, 0))

    ours, theirs = quantized(first), quantized(last, output_axis=-1)

    assert ours.transform is not None and theirs.transform is not None
    assert decoded(ours).tobytes() == np.ascontiguousarray(decoded(theirs).transpose(3, 2, 0, 1)).tobytes()


@given(st.data())
@examples(40)
def test_what_is_read_is_what_was_coded(data: st.DataObject) -> None:
    taps = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    shape = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)), *taps
    array = kernels(*shape, correlation=data.draw(st.sampled_from([0.7, 0.95])), seed=data.draw(st.integers(0, 99)))
    array *= np.float32(data.draw(st.sampled_from([1e-30, 1, 1e30])))
    output_axis = data.draw(st.sampled_from([0, -1]))
    if output_axis:
        array = np.ascontiguousarray(np.moveaxis(array, (0, 1), (-1, -2)))
    step = float(np.abs(array).max()) * data.draw(st.sampled_from([1e-4, 0.1, 2.0]))
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):  # many blocks
            patch.setattr(small, "BLOCK_ELEMENTS", 512)
            patch.setattr(small, "_MOST_BLOCK_ELEMENTS", 768)
        settings = small.Settings(output_axis=output_axis, least_noise=data.draw(st.booleans()))
        found = small.quantize("w", "f32", array.shape, array, step, settings=settings)

    loaded = vqformat.load(written(found.coded))["w"]

    assert loaded.tobytes() == decoded(found.coded).tobytes()
    if found.coded.values is None:  # no table that is rounded
        noise = np.square(loaded.astype(np.float64) - array).sum()
        assert found.noise == pytest.approx(noise, rel=1e-3, abs=1e-9 * found.energy)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_second_decoder_finds_the_same_in_every_dtype(dtype: str) -> None:
    array = (kernels(64, 48, 3, 3) / 10).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    coded = quantized(array, 0.03)
    assert coded.transform is not None
    data = written(coded)

    loaded = vqformat.load(data)["w"]

    assert loaded.dtype == array.dtype
    assert minidecoder.decode(io.BytesIO(data)).tensors["w"][2] == loaded.tobytes()
    assert np.square(loaded.astype(float) - array).mean() < 0.02 * np.square(array.astype(float)).mean()


@pytest.mark.parametrize("largest", [60_000, 6000, 60])
def test_values_near_the_largest_of_float16(largest: float) -> None:
    """Nothing may be beyond it that the tables of all tensors allow (VAL-002)."""
    wide, peaked = kernels(64, 48, 3, 3), kernels(64, 48, 3, 3)
    peaked[0, 0] = 60
    net = {"wide": (wide * np.float32(largest / np.abs(wide).max())).astype(np.float16), "peaked": peaked}
    file = io.BytesIO()
    vqformat.save_file(net, file, preset="small", bits=4)

    loaded = vqformat.load(file.getvalue())

    for name, array in net.items():
        error = loaded[name].astype(np.float64) - array
        assert np.square(error).mean() < 0.05 * np.square(array.astype(np.float64)).mean()


@pytest.mark.parametrize("is_fine", [False, True])
def test_coefficients_that_are_larger_than_their_weights_fit_the_tables(is_fine: bool) -> None:
    """One of a constant kernel of 121 taps is 11 times as large; tables have 2**14 entries at most (FRQ-001)."""
    array = kernels(64, 48, 11, 11, correlation=0.95)
    array[3, 5] = 5
    coded = quantized(array, 6e-4 if is_fine else 2e-2)
    assert (coded.transform is None) == is_fine

    loaded = vqformat.load(written(coded))["w"]

    assert np.square(loaded - array).mean() < coded.step**2


def test_complex_kernels_have_no_transform() -> None:
    array = (kernels(32, 24, 3, 3) * (1 + 1j)).astype(np.complex64)

    loaded = vqformat.load(saved(array, bits=6))["w"]

    assert np.square(np.abs(loaded - array)).mean() < 0.2


def test_an_input_is_no_tap_whichever_axis_is_taken_for_outputs() -> None:
    """A filter of one output, channels last: its longest axis takes the place of the outputs."""
    assert quantized(kernels(129, 3, 8, 1), output_axis=-1).transform is None
    assert find_kernel((3, 3, 200, 1), -1) is None


def test_groups_that_are_larger_than_a_block_are_left_alone() -> None:
    assert find_kernel((100_000, 1, 5, 5), 0) is not None
    assert find_kernel((200_000, 1, 5, 5), 0) is None


def test_blocks_have_whole_groups_and_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for n_elements in (2000, 5000, 20_000):
        monkeypatch.setattr(small, "BLOCK_ELEMENTS", n_elements)
        monkeypatch.setattr(small, "_MOST_BLOCK_ELEMENTS", n_elements)
        coded = quantized(kernels(48, 80, 5, 5))
        assert coded.transform is not None and coded.layout.block_rows and coded.layout.block_rows % 25 == 0
        data = written(coded)

        loaded = vqformat.load(data)["w"]
        streamed = {name: array for layer in vqformat.stream(io.BytesIO(data)) for name, array in layer.items()}

        assert loaded.tobytes() == decoded(coded).tobytes() == streamed["w"].tobytes()
        with vqformat.safe_open(io.BytesIO(data)) as file:
            assert np.array_equal(file.get_slice("w")[3:5, 7:30, 1], loaded[3:5, 7:30, 1])


def test_errors_of_an_output_add_up_to_little() -> None:
    array = kernels(64, 200, 3, 3)
    coded = quantized(array, 0.8)
    assert coded.transform is not None

    errors = (vqformat.load(written(coded))["w"] - array).reshape(64, -1)

    assert np.square(errors.sum(axis=1)).mean() < 0.1 * np.square(errors).sum(axis=1).mean()


def test_errors_are_small_where_inputs_are_alike() -> None:
    """At the same squared error: smooth inputs see less of it the higher their correlation was thought to be."""
    array = kernels(64, 200, 3, 3, correlation=0.5)
    kernel = find_kernel(array.shape, 0)
    assert kernel is not None
    rows = np.ascontiguousarray(array.transpose(1, 2, 3, 0).reshape(-1, 64))
    noise = weights(*rows.shape, seed=1)
    seen = []
    for correlation in (0.0, 0.3, 0.6):
        transform = find_transform(rows, kernel.taps, correlation)
        assert transform is not None
        np.testing.assert_allclose(transform.backward(transform.forward(rows)), rows, atol=1e-4)
        error = transform.backward(noise)
        assert np.square(error).mean() == pytest.approx(1, abs=0.03)
        seen.append(float(np.square(error.reshape(200, 9, 64).sum(axis=1)).mean()))
    assert seen[0] > 1.2 * seen[1] > 1.4 * seen[2]


@pytest.mark.usefixtures("numpy_backend")
def test_small_kernels_are_decoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    net = {f"layer{i}.weight": kernels(32, 24, 3, 3, seed=i) for i in range(12)}
    file = io.BytesIO()
    vqformat.save_file(net, file, preset="small", step=0.5)
    together: list[int] = []
    decode_together = batch.decode_together
    monkeypatch.setattr(batch, "decode_together",
                        lambda jobs: together.append(len(jobs)) or decode_together(jobs))  # fmt: skip

    loaded = vqformat.load(file.getvalue())

    assert sum(together) == len(net) and len(together) < len(net) / 2
    with vqformat.safe_open(io.BytesIO(file.getvalue())) as one_by_one:
        assert all("transform" in one_by_one.info(name).method for name in net)
        assert all(loaded[name].tobytes() == one_by_one[name].tobytes() for name in net)


_FINGERPRINT = """
import sys
import zlib
from test_transform import kernels, saved
print(zlib.crc32(saved(kernels(300, 100, 3, 3), **{sys.argv[1]: float(sys.argv[2])})))
"""


@pytest.mark.parametrize(("option", "value"), some_of(
    [("step", 0.5), ("step", 2.0), ("bits", 1.0), ("bits", 3.0)], [("step", 0.5)]
))  # fmt: skip
def test_bytes_do_not_depend_on_threads(option: str, value: float) -> None:
    def fingerprint(threads: int) -> str:
        names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
        room = Path(__file__).parent
        path = os.pathsep.join(map(str, (room, room.parent, room.parent.parent)))
        environment = os.environ | dict.fromkeys(names, str(threads)) | {"PYTHONPATH": path}
        return subprocess.run([sys.executable, "-c", _FINGERPRINT, option, str(value)], env=environment,
                              check=True, capture_output=True, text=True).stdout  # fmt: skip

    assert fingerprint(1) == fingerprint(3)

"""Lossless coding: grids that weights were dequantized from are found, and every bit is kept."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from examples import examples, some_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from layered_models import Recorder

import vqformat
from vqformat import native
from vqformat.decode import raw
from vqformat.encode.methods import dequantized, huffman
from vqformat.format.dtypes import of_array

Array = npt.NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
N_ROWS, N_COLUMNS = 128, 384
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)  # fmt: skip


def weights(seed: int = 0) -> npt.NDArray[np.float32]:
    return (0.02 * np.random.default_rng(seed).standard_normal((N_ROWS, N_COLUMNS))).astype(np.float32)


def entropy_nbytes(codes: Array) -> float:
    """Bytes that an ideal coder takes for the codes, each for itself."""
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(shares * np.log2(shares)).sum() * codes.size / 8)


def as_groups(matrix: Array, rows: int, columns: int) -> Array:
    """Groups of rows × columns on the axes 1 and 3."""
    return matrix.reshape(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)


def integers(peak: int) -> Callable[[Array], Array]:
    return lambda ratios: np.rint(ratios * peak).astype(np.float32) + np.float32(0)


def floats8(dtype: Any) -> Callable[[Array], Array]:
    largest = float(ml_dtypes.finfo(dtype).max)
    return lambda ratios: (ratios * largest).astype(dtype).astype(np.float32) + np.float32(0)


def nf4(ratios: Array) -> Array:
    return NF4[np.searchsorted((NF4[1:] + NF4[:-1]) / 2, ratios)]


UNITS: dict[str, Callable[[Array], Array]] = {
    "int8": integers(127), "int4": integers(7),
    "ternary": lambda ratios: np.sign(np.rint(2.5 * ratios)) + np.float32(0),
    "binary": lambda ratios: np.where(ratios < 0, -1, 1).astype(np.float32), "nf4": nf4,
    "e4m3": floats8(ml_dtypes.float8_e4m3fn), "e5m2": floats8(ml_dtypes.float8_e5m2),
}  # fmt: skip
GROUPS = {"tensor": (N_ROWS, N_COLUMNS), "row": (1, N_COLUMNS), "column": (N_ROWS, 1), "128 of a row": (1, 128),
          "64 of a row": (1, 64), "32 of a row": (1, 32), "64 of a column": (64, 1)}  # fmt: skip


def dequantized_weights(kind: str, groups: str, dtype: Any, scale_dtype: Any) -> tuple[Array, float]:
    """Weights, and the bytes of their codes and scales."""
    grouped = as_groups(weights(), *GROUPS[groups])
    peaks = np.abs(grouped).max(axis=(1, 3), keepdims=True)
    units = UNITS[kind](grouped / peaks)
    largest = np.abs(units).max(axis=(1, 3), keepdims=True)
    scales = (peaks / largest).astype(scale_dtype).astype(np.float32)
    values = (scales * units).astype(dtype).reshape(N_ROWS, N_COLUMNS)
    return values, entropy_nbytes(units) + scales.size * np.dtype(scale_dtype).itemsize


def saved(array: Array) -> bytes:
    """The file; every bit of the tensor comes back."""
    file = vqformat.save({"w": array}, lossless=True)
    loaded = vqformat.load(file)["w"]
    assert loaded.dtype == array.dtype and loaded.shape == array.shape
    assert loaded.tobytes() == array.tobytes()
    return file


def method(array: Array) -> str:
    return vqformat.save_file({"w": array}, io.BytesIO(), lossless=True).tensors[0].method


def allowed(nbytes: float) -> float:
    """5 % more than the entropy, and for the rest of the file 300 bytes, for a table as many as it may have."""
    return 1.05 * nbytes + 300 + 512


@pytest.mark.parametrize(("kind", "groups"), some_of(product(UNITS, GROUPS), [
    (kind, groups) for kind, groups in product(UNITS, GROUPS) if kind in ("int4", "e4m3") or groups == "64 of a row"
]))  # fmt: skip
def test_what_was_dequantized_takes_what_its_codes_and_scales_take(kind: str, groups: str) -> None:
    values, nbytes = dequantized_weights(kind, groups, np.float32, np.float32)
    assert len(saved(values)) <= allowed(nbytes)


@pytest.mark.parametrize("dtypes", [("<f4", "<f2"), ("<f2", "<f2"), ("<f2", "<f4"), (BFLOAT16, BFLOAT16),
                                    (BFLOAT16, "<f4")], ids=str)  # fmt: skip
@pytest.mark.parametrize(("kind", "groups"), some_of(
    product(["int8", "int4", "nf4", "e4m3"], ["row", "64 of a row"]),
    [("int8", "row"), ("int4", "64 of a row"), ("nf4", "row"), ("e4m3", "64 of a row")],
))  # fmt: skip
def test_products_that_were_rounded_are_found_too(kind: str, groups: str, dtypes: tuple[Any, Any]) -> None:
    values, nbytes = dequantized_weights(kind, groups, *dtypes)
    assert len(saved(values)) <= allowed(nbytes)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", BFLOAT16], ids=str)
def test_asymmetric_grids_are_found(dtype: Any) -> None:
    """As of GPTQ and AWQ: (q - zero) · scale in groups of 128."""
    groups = weights().reshape(-1, 128)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    scales = ((high - low) / 15).astype(np.float16).astype(np.float32)
    zeros = np.rint(-low / scales)
    codes = np.clip(np.rint(groups / scales) + zeros, 0, 15) - zeros
    values = (codes * scales).astype(dtype).reshape(N_ROWS, N_COLUMNS)
    assert len(saved(values)) <= allowed(entropy_nbytes(codes) + 2 * scales.size)


def test_scales_of_squares_are_found() -> None:
    grouped = as_groups(np.concatenate([weights(i) for i in range(3)]), 128, 128)
    scales = np.abs(grouped).max(axis=(1, 3), keepdims=True) / np.float32(448)
    units = (grouped / scales).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) + np.float32(0)
    values = (units * scales).astype(BFLOAT16).reshape(-1, N_COLUMNS)
    assert len(saved(values)) <= allowed(entropy_nbytes(units) + 4 * scales.size)


def test_scales_of_the_output_channels_of_a_kernel_are_found() -> None:
    kernel = weights().reshape(64, 32, 6, 4)
    for axes in ((0, 1, 2, 3), (2, 3, 1, 0)):  # as PyTorch and Keras have it
        scales = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True) / np.float32(127)
        codes = np.rint(kernel / scales) + np.float32(0)
        values = np.ascontiguousarray((codes * scales).transpose(axes))
        assert len(saved(values)) <= allowed(entropy_nbytes(codes) + 4 * scales.size)


def test_groups_that_go_over_the_ends_of_rows_are_found() -> None:
    flat = weights().reshape(-1)[: 120 * 400]
    groups = flat.reshape(-1, 64)
    scales = np.abs(groups).max(axis=1, keepdims=True)
    points = nf4(groups / scales)
    assert len(saved((points * scales).reshape(120, 400))) <= allowed(entropy_nbytes(points) + 4 * scales.size)


def test_the_sign_of_zero_is_a_code() -> None:
    """Rounded as in training for quantization: -0.3 becomes -0."""
    scales = np.abs(weights()).max(axis=1, keepdims=True) / np.float32(7)
    codes = np.rint(weights() / scales)
    is_signed = np.signbit(codes) & (codes == 0)
    assert is_signed.any()
    nbytes = entropy_nbytes(np.where(is_signed, np.float32(0.5), codes)) + 4 * scales.size
    assert len(saved(codes * scales)) <= allowed(nbytes)


def test_float64_that_holds_such_float32_is_on_the_grid_too() -> None:
    values, nbytes = dequantized_weights("int8", "row", np.float32, np.float32)
    assert len(saved(values.astype(np.float64))) <= allowed(nbytes)


def test_rows_of_zeros_and_short_last_groups_do_no_harm() -> None:
    values, _ = dequantized_weights("int8", "64 of a row", np.float32, np.float32)
    values[::3] = 0
    assert "scaled" in method(values) and "scaled" in method(values[:, :-7].copy())
    saved(values)
    saved(values[:, :-7].copy())


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-140, 2.0**-130])
def test_scales_that_are_subnormal_come_back(scale: float) -> None:
    codes = np.rint(weights() * 1000)
    saved(codes * np.float32(scale))


@pytest.mark.parametrize("outlier", [np.nan, np.inf, -np.inf, 0.123456789, 1e-40, 3e38])
def test_one_value_off_the_grid_leaves_the_tensor_as_bytes(outlier: float) -> None:
    values, _ = dequantized_weights("int8", "row", np.float32, np.float32)
    values[5, 7] = outlier
    saved(values)
    assert method(values).startswith("raw")


def test_few_values_become_a_table() -> None:
    values = np.random.default_rng(0).choice(np.array([0.1, 0.3, np.pi, -7e-5], np.float32), (64, 96))
    assert method(values) == "codebook 4"
    assert len(saved(values)) < 64 * 96 / 4 + 350


def test_a_constant_takes_no_bytes_but_its_table() -> None:
    assert len(saved(np.full((512, 512), -0.0, np.float32))) < 350


@given(st.data())
@examples(25)
def test_any_products_of_integers_and_scales_come_back(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.dtype("<f4"), np.dtype("<f2"), BFLOAT16, np.dtype("<f8")]))
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=40))
    peak = data.draw(st.sampled_from([1, 7, 127, 255]))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    codes = random.integers(-peak, peak + 1, shape).astype(np.float32)
    codes[random.random(shape) < 0.1] = -0.0
    spread = data.draw(st.sampled_from([0, 1, 30]))
    scales = np.exp(spread * random.standard_normal((shape[0], *[1] * (len(shape) - 1))))
    with np.errstate(all="ignore"):
        saved((codes * scales.astype(np.float32)).astype(dtype))


@pytest.mark.parametrize("dtype", ["<f4", "<f2", BFLOAT16, "<f8"], ids=str)
@pytest.mark.parametrize("shape", [(N_ROWS, N_COLUMNS), (64, 64, 3, 3), (40_000,), (3_000, 17)])
def test_no_grid_is_looked_for_in_ordinary_weights(
    shape: tuple[int, ...], dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("an ordinary tensor was looked at closely")

    monkeypatch.setattr(dequantized, "_few_values", fail)
    monkeypatch.setattr(dequantized, "_on_grid", fail)
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32).astype(dtype)
    array.reshape(-1)[::3] = 0  # pruned
    saved(array)


@pytest.mark.parametrize("kind", ["int8", "uint8", "e4m3", "e5m2"])
def test_numbers_of_8_bits_take_what_their_entropy_says(kind: str) -> None:
    ratios = weights() / np.abs(weights()).max()
    numbers = {"int8": np.rint(127 * ratios).astype(np.int8), "uint8": np.rint(127 * ratios + 128).astype(np.uint8),
               "e4m3": (448 * ratios).astype(ml_dtypes.float8_e4m3fn),
               "e5m2": ratios.astype(ml_dtypes.float8_e5m2)}[kind]  # fmt: skip
    assert of_array(numbers, "w").bits == 8
    assert len(saved(numbers)) <= 1.05 * entropy_nbytes(numbers.view(np.uint8)) + 300


def test_preset_small_searches_more() -> None:
    rows = np.repeat(np.random.default_rng(0).standard_normal((64, 2048)).astype(np.float32), 4, axis=0)
    rows[::5] = np.random.default_rng(1).standard_normal((52, 2048))
    thorough = vqformat.save({"w": rows}, lossless=True, preset="small")
    assert np.array_equal(vqformat.load(thorough)["w"], rows)
    assert len(thorough) <= len(saved(rows))


LENGTHS = (1, 63, 64, 65, 1000, (1 << 17) - 1, 1 << 17, (1 << 17) + 1, (1 << 18) + 70)


def huffman_frame(symbols: Array) -> bytes:
    """The same from each backend, and zstd reads it."""
    frames = set()
    before = native.backend()
    for backend in native.available():
        native.use(backend)
        frames.add(huffman.frame(symbols.astype(np.uint8).tobytes()))
    native.use(before)
    (frame,) = frames
    assert frame is not None
    assert zstandard.ZstdDecompressor().decompress(frame) == symbols.astype(np.uint8).tobytes()
    return frame


@pytest.mark.parametrize("n", LENGTHS)
def test_frames_of_one_bit_are_zstd(n: int) -> None:
    assert len(huffman_frame(np.random.default_rng(n).integers(0, 2, n))) <= n / 8 + 80


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("p", [0.02, 0.4, 0.9])
def test_frames_of_huffman_codes_are_zstd(n: int, p: float) -> None:
    """Their codes have 1 to 11 bits: at 0.9 the rarest would have more."""
    symbols = np.minimum(np.random.default_rng(n).geometric(p, n), 128)
    n_blocks = -(-n // (1 << 17))
    assert len(huffman_frame(symbols)) <= min(1.1 * entropy_nbytes(symbols) + n / 9 * (p == 0.9), n) + 90 * n_blocks


def test_frames_of_runs_and_of_noise_are_zstd() -> None:
    runs = np.repeat([7, 9], 1 << 17)
    assert len(huffman_frame(runs)) == 9 + 2 * 4
    noise = np.random.default_rng(0).integers(0, 128, 200)
    assert len(huffman_frame(noise)) == 9 + 3 + 200


@given(hnp.arrays(np.uint8, st.integers(64, 400), elements=st.integers(0, 128)))
def test_any_bytes_up_to_128_make_a_frame(symbols: Array) -> None:
    huffman_frame(symbols)


def test_a_frame_of_huffman_codes_needs_small_bytes() -> None:
    assert huffman.frame(bytes([1, 2, 129])) is None


@pytest.mark.parametrize("n", [2, 3, 5, 31, 129])
def test_code_lengths_are_those_of_a_complete_code_of_at_most_11_bits(n: int) -> None:
    counts = np.zeros(256, np.uint32)
    counts[:n] = np.minimum(2.0 ** np.arange(n), 1e6)  # the worst case for Huffman codes
    lengths = huffman.code_lengths(counts)
    assert lengths[n:].max(initial=0) == 0 and lengths[:n].min() >= 1 and lengths.max() <= 11
    assert sum(2.0 ** -lengths[:n].astype(float)) == 1


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8"])
@pytest.mark.parametrize("split", [1, 2])
def test_kernels_split_words_as_numpy_does(dtype: str, split: int) -> None:
    words = np.random.default_rng(1).integers(0, 256, 9001 * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    found = []
    before = native.backend()
    for backend in native.available():
        native.use(backend)
        found.append(raw.encode(words, of_array(words, "w"), split))
    native.use(before)
    assert all(planes_of == found[0] for planes_of in found)


@pytest.mark.parametrize("dtype", ["<f2", BFLOAT16], ids=str)
def test_float32_that_holds_shorter_floats_takes_a_bit_for_the_sign(dtype: Any) -> None:
    """Signs fill a plane of their own then, whose bytes are 0 and 1."""
    array = weights().astype(dtype)
    assert len(saved(array.astype(np.float32))) <= 1.02 * len(saved(array)) + 300


def pruned(share: float, dtype: Any = np.float32, *, signed: bool = False) -> Array:
    """Weights of which a share is zero, at random places; signed where they were multiplied by a mask."""
    mask = np.random.default_rng(5).random((N_ROWS, N_COLUMNS)) >= share
    values = weights() * mask
    return (values if signed else values + np.float32(0)).astype(dtype)


def stored_apart(array: Array) -> float:
    """Bytes of what is not zero, stored by itself, and of a bit for each element that says whether it is zero."""
    is_zero = array == 0
    sign_nbytes = is_zero.sum() / 8 if np.signbit(array[is_zero]).any() else 0
    share = is_zero.mean()
    mark_bits = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    return len(vqformat.save({"w": array[~is_zero]}, lossless=True)) + mark_bits * array.size / 8 + sign_nbytes


@pytest.mark.parametrize("signed", [False, True], ids=["", "signed"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["<f4", "<f2", BFLOAT16, "<f8"], ids=str)
def test_zeros_take_what_their_places_take(dtype: Any, share: float, signed: bool) -> None:
    array = pruned(share, dtype, signed=signed)
    assert len(saved(array)) <= 1.02 * stored_apart(array) + 200


@pytest.mark.parametrize("dtype", ["<i4", "<u2", "<c8"], ids=str)
def test_zeros_of_other_dtypes_are_stored_apart(dtype: str) -> None:
    noise = np.random.default_rng(6).integers(0, 256, (N_ROWS * N_COLUMNS, 8), np.uint8).view(dtype)[:, 0]
    array = np.where(pruned(0.5).reshape(-1) == 0, np.zeros((), dtype), noise)
    assert len(saved(array)) <= 0.6 * array.nbytes
    assert method(array).endswith("without zeros")


def test_a_part_of_a_tensor_with_zeros_is_read_by_its_blocks() -> None:
    """Blocks without zeros, with nothing else, and with both; the last one is shorter."""
    array = np.concatenate([weights(i) for i in range(15)])
    array[: array.shape[0] // 3] *= np.random.default_rng(8).random((array.shape[0] // 3, N_COLUMNS)) < 0.2
    array[-200:] = 0
    with vqformat.safe_open(io.BytesIO(saved(array))) as file:
        assert "without zeros" in file.info("w").method
        for index in (slice(0, 3), slice(600, 900), slice(-201, None), (slice(None, None, 97), 5)):
            assert file.get_slice("w")[index].tobytes() == array[index].tobytes()
    with vqformat.stream(io.BytesIO(saved(array))) as layers:
        assert next(iter(layers))["w"].tobytes() == array.tobytes()
    vqformat.verify(io.BytesIO(saved(array)))


@given(hnp.arrays(np.uint32, st.integers(1, 300), elements=st.sampled_from([0, 1 << 31, 1, 0x3F800000, 0xFFC00001])))
@examples(30)
def test_words_are_kept_to_the_bit_beside_zeros(words: Array) -> None:
    saved(words.view(np.float32))


def test_only_a_file_with_zeros_stored_apart_is_of_version_1_2(tmp_path: Any) -> None:
    for array, minor in ((weights(), 0), (pruned(0.5), 2)):
        vqformat.save_file({"w": array}, tmp_path / "w.vqm", lossless=True)
        file = (tmp_path / "w.vqm").read_bytes()
        assert file == vqformat.save({"w": array}, lossless=True)
        assert file[10:12] == bytes([minor, 0])
        vqformat.verify(tmp_path / "w.vqm")


def test_a_pipe_gets_the_version_that_was_known_at_its_beginning() -> None:
    pipe = Recorder()
    vqformat.save_file({"w": pruned(0.5)}, pipe, lossless=True)
    assert pipe.data[10:12] == b"\0\0"
    vqformat.verify(io.BytesIO(pipe.data))
    assert vqformat.load(pipe.data)["w"].tobytes() == pruned(0.5).tobytes()


def test_lossy_presets_store_no_zeros_apart() -> None:
    """Readers of version 1.1 read them."""
    tensors = {"w": pruned(0.5), "bias": np.zeros(300, np.float32), "ids": np.zeros(900, np.int64)}
    for preset in ("default", "small", "fast"):
        assert vqformat.save(tensors, preset=preset)[10:12] == b"\1\0"

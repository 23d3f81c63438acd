"""save_file, load_file, save, load, safe_open: what goes in comes out."""

from __future__ import annotations

import inspect
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import arrays, metadata_values, models

import vqformat
from vqformat import EncodeError, TensorNotFoundError, safe_open
from vqformat.encode.options import FileOptions, SaveOptions
from vqformat.format.dtypes import DTYPES, DType
from vqformat.numpy import LoadOptions


def bits_of(array: np.ndarray[Any, Any]) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def weights(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(models())
@examples(60)
def test_lossless_keeps_names_order_dtypes_shapes_and_every_bit(model: dict[str, np.ndarray[Any, Any]]) -> None:
    loaded = vqformat.load(vqformat.save(model, lossless=True))

    assert list(loaded) == list(model)
    for name, array in model.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert bits_of(loaded[name]) == bits_of(array)


@given(models())
@examples(40)
def test_every_model_can_be_saved_without_options(model: dict[str, np.ndarray[Any, Any]]) -> None:
    loaded = vqformat.load(vqformat.save(model))

    assert [(n, a.dtype, a.shape) for n, a in loaded.items()] == [(n, a.dtype, a.shape) for n, a in model.items()]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_each_dtype_of_the_spec_survives(dtype: DType) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype.numpy)

    loaded = vqformat.load(vqformat.save({"x": array}, lossless=True))["x"]

    assert loaded.dtype == array.dtype
    assert bits_of(loaded) == bits_of(array)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda w: w.T, id="transposed"),
        pytest.param(lambda w: w[::2, ::-3], id="strided"),
        pytest.param(np.asfortranarray, id="fortran"),
        pytest.param(lambda w: w.astype(">f4"), id="big-endian"),
        pytest.param(lambda w: np.broadcast_to(w[:1], (4, *w.shape[1:])), id="broadcast"),
        pytest.param(lambda w: w[3, 4], id="scalar"),
        pytest.param(lambda w: w[:0], id="empty"),
        pytest.param(lambda w: w.byteswap().view(">f4"), id="swapped-bytes"),
    ],
)
def test_arrays_of_any_memory_layout_come_out_right(make: Any) -> None:
    array = make(weights(40, 30))

    loaded = vqformat.load(vqformat.save({"x": array}, lossless=True))["x"]

    assert np.array_equal(loaded, array)
    assert loaded.dtype == np.float32


def test_input_order_is_kept_when_layers_interleave() -> None:
    model = {name: weights(2) for name in ("b.x", "a.x", "b.y", "top", "a.y")}

    assert list(vqformat.load(vqformat.save(model))) == list(model)


def test_the_same_array_under_two_names_is_stored_once_and_loaded_as_one_object() -> None:
    w = weights(100, 100)

    data = vqformat.save({"encoder.w": w, "decoder.w": w}, lossless=True)
    loaded = vqformat.load(data)

    assert len(data) < 1.2 * w.nbytes
    assert loaded["encoder.w"] is loaded["decoder.w"]


# WRI-002
def test_overlapping_views_are_not_taken_for_one_tensor() -> None:
    w = weights(10, 10)

    loaded = vqformat.load(vqformat.save({"all": w, "part": w[1:], "turned": w.T}, lossless=True))

    assert np.array_equal(loaded["part"], w[1:])
    assert np.array_equal(loaded["turned"], w.T)


# WRI-001
def test_output_is_the_same_bytes_each_time() -> None:
    model = {"fc.weight": weights(300, 200), "fc.bias": weights(300)}

    assert vqformat.save(model, {"b": 1, "a": 2}) == vqformat.save(model, {"a": 2, "b": 1})


@given(st.dictionaries(st.text(max_size=10), metadata_values(), max_size=5))
def test_metadata_comes_back(metadata: dict[str, Any]) -> None:
    with safe_open(io.BytesIO(vqformat.save({}, metadata))) as f:
        assert f.metadata() == metadata


@pytest.mark.parametrize("metadata", [{"a": 1.5}, {1: "a"}, {"a": object()}, {"a": 1 << 64}, {"a": "\ud800"}])
def test_metadata_that_cannot_be_written_is_refused(metadata: dict[Any, Any]) -> None:
    with pytest.raises(EncodeError):
        vqformat.save({}, metadata)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"": np.zeros(2)}, "name"),
        ({"a\0b": np.zeros(2)}, "name"),
        ({"x" * 1025: np.zeros(2)}, "1025"),
        ({"x": np.zeros(2, "datetime64[s]")}, "datetime64"),
        ({"x": np.array(["a"])}, "x"),
        ({"x": [1, 2]}, "list"),
        ({3: np.zeros(2)}, "int"),
    ],
)
def test_tensors_that_cannot_be_written_are_refused_by_name(tensors: Any, words: str) -> None:
    with pytest.raises(EncodeError, match=words):
        vqformat.save(tensors)


def test_saving_replaces_a_file_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "model.vqm"
    vqformat.save_file({"x": weights(3)}, path)
    before = path.read_bytes()

    with pytest.raises(EncodeError):
        vqformat.save_file({"x": weights(3), "y": np.array(["no"])}, path)
    with pytest.raises(FileExistsError):
        vqformat.save_file({"x": weights(4)}, path, overwrite=False)

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(name: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vqformat.save_file({"x": weights(3)}, tmp_path / "model.vqm", progress=fail)

    assert list(tmp_path.iterdir()) == []


@given(arrays(), st.data())
@examples(150)
def test_a_slice_of_the_file_is_the_slice_of_the_tensor(array: np.ndarray[Any, Any], data: st.DataObject) -> None:
    with safe_open(io.BytesIO(vqformat.save({"x": array}, lossless=True))) as f:
        index: list[Any] = []
        for size in array.shape[: data.draw(st.integers(0, array.ndim))]:
            slices = st.slices(size)
            index.append(data.draw(slices | st.integers(-size, size - 1) if size else slices))
        expected = array[tuple(index)]
        found = f.get_slice("x")[tuple(index)]

    assert found.shape == expected.shape
    assert bits_of(found) == bits_of(expected)


def test_slices_of_a_tensor_of_many_blocks_decode_only_what_they_need() -> None:
    w = weights(3000, 700)
    with safe_open(io.BytesIO(vqformat.save({"w": w}))) as f:
        whole = f["w"]
        for index in (slice(5, 9), slice(2990, None), 1234, slice(0, 3000, 700), (slice(3, 400), slice(5, 6))):
            assert np.array_equal(f.get_slice("w")[index], whole[index])
        with pytest.raises(IndexError):
            f.get_slice("w")[3000]


def test_safe_open_is_a_mapping_with_the_verbs_of_safetensors() -> None:
    model = {"fc.weight": weights(30, 20), "fc.bias": weights(30), "tied": np.arange(3)}
    with safe_open(io.BytesIO(vqformat.save(model, {"who": "me"}, lossless=True)), framework="np") as f:
        assert list(f) == list(f.keys()) == list(model)
        assert len(f) == 3
        assert "fc.bias" in f and "nope" not in f
        assert np.array_equal(f.get_tensor("fc.weight"), model["fc.weight"])
        assert f.get_slice("tied").get_shape() == [3]
        assert f.get_slice("fc.bias").get_dtype() == "F32"
        info = f.info("fc.weight")
        assert (info.dtype, info.shape, info.layer) == ("f32", (30, 20), "")  # of small layers what they have in common
        with pytest.raises(TensorNotFoundError, match=r"fc\.weight"):
            f["fc.weigth"]


def test_safe_open_and_load_file_agree(tmp_path: Path) -> None:
    w = weights(64, 48, 3, 3)
    path = tmp_path / "m.vqm"
    vqformat.save_file({"conv.weight": w, "conv.bias": weights(64), "alias": w}, path)

    loaded = vqformat.load_file(path)
    with safe_open(path) as f:
        for name in f:
            assert np.array_equal(f[name], loaded[name])


def test_a_stream_that_cannot_seek_can_be_loaded() -> None:
    class Pipe(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self._data = io.BytesIO(data)

        def readable(self) -> bool:
            return True

        def read(self, n: int = -1) -> bytes:
            return self._data.read(min(n, 7))

    w = weights(50, 50)
    data = vqformat.save({"w": w}, lossless=True)

    assert np.array_equal(vqformat.load_file(Pipe(data))["w"], w)  # type: ignore[arg-type]


def test_a_callers_bounds_are_kept() -> None:
    data = vqformat.save({"w": np.zeros((100, 100), np.float32)})

    with pytest.raises(vqformat.LimitError, match="max_tensor_bytes"):
        vqformat.load(data, max_tensor_bytes=39_999)
    with pytest.raises(vqformat.LimitError, match="max_total_bytes"):
        vqformat.load(data, max_total_bytes=39_999)
    assert vqformat.load(data, max_tensor_bytes=40_000, max_total_bytes=40_000)["w"].shape == (100, 100)


def test_verify_gives_the_digest_and_finds_a_change_that_no_crc_covers_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.vqm"
    vqformat.save_file({"w": weights(20, 20)}, path)

    assert len(bytes.fromhex(vqformat.verify(path))) == 32


@pytest.mark.parametrize("missing", ["nowhere.vqm", "."])
def test_paths_that_cannot_be_read_stay_os_errors(missing: str, tmp_path: Path) -> None:
    for read in (vqformat.load_file, vqformat.safe_open, vqformat.verify):
        with pytest.raises(OSError):
            read(tmp_path / missing)  # type: ignore[operator]


def test_lossy_is_close_and_says_how_close() -> None:
    w = weights(200, 100)
    stream = io.BytesIO()
    report = vqformat.save_file({"w": w}, stream, bits=4)
    loaded = vqformat.load(stream.getvalue())["w"]

    sqnr = 10 * math.log10(float(np.sum(w**2) / np.sum((w - loaded) ** 2)))
    assert report.tensors[0].sqnr_db == pytest.approx(sqnr, abs=0.01)
    assert sqnr > 20


def test_a_device_or_pipe_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    import os
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    vqformat.save_file({"x": weights(3)}, pipe)
    reader.join(10)

    assert pipe.is_fifo()
    assert list(vqformat.load(got[0])) == ["x"]


def test_a_layer_of_nameless_beginning_is_not_the_whole_model() -> None:
    data = vqformat.save({f"w{i}": weights(2) for i in range(600)})

    with safe_open(io.BytesIO(data)) as f:
        assert [f[f"w{i}"].size for i in (0, 300, 599)] == [2, 2, 2]
        assert len(f._reader.index.chunks_of(b"LAYR")) == 3


def test_typed_keywords_are_those_that_functions_take() -> None:
    def keywords(function: Any) -> set[str]:
        return {name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}

    assert set(FileOptions.__annotations__) == keywords(vqformat.save_file) == keywords(vqformat.writer)
    assert set(SaveOptions.__annotations__) == keywords(vqformat.save_file) - {"overwrite", "max_shard_size"}
    assert set(LoadOptions.__annotations__) == keywords(vqformat.load_file)

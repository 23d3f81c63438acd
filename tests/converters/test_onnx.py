"""ONNX models to .vqm and back: models that the onnx package wrote, and models to refuse."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import vqformat
from vqformat import ConversionError, VqmError
from vqformat.converters import convert, extract, open_source

onnx = pytest.importorskip("onnx", reason="not installed: pip install 'vqformat[onnx]'")
reference = pytest.importorskip("onnx.reference", reason="onnx without its reference evaluator")
pytest.importorskip("vqformat.converters.onnx")  # now, since the tests measure memory
h, nh, T = onnx.helper, onnx.numpy_helper, onnx.TensorProto

OUTSIDE = T.EXTERNAL
RNG = np.random.default_rng(7)
W = RNG.standard_normal((64, 48)).astype(np.float32)
B = RNG.standard_normal(48).astype(np.float32)


def model_of(initializers: list[Any], nodes: list[Any] | None = None, **more: Any) -> Any:
    """A model with these initializers, of which its graph makes no use."""
    x = h.make_tensor_value_info("x", T.FLOAT, ["n", 64])
    y = h.make_tensor_value_info("y", T.FLOAT, ["n", "m"])
    graph = h.make_graph(nodes or [h.make_node("Identity", ["x"], ["y"])], "g", [x], [y], initializers, **more)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)


def dense() -> Any:
    """x @ w + b."""
    nodes = [h.make_node("MatMul", ["x", "w"], ["xw"]), h.make_node("Add", ["xw", "b"], ["y"])]
    return model_of([nh.from_array(W, "w"), nh.from_array(B, "b")], nodes)


def save(path: Path, model: Any) -> Path:
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def there_and_back(folder: Path, model: Any, **options: Any) -> tuple[Any, list[str]]:
    """The model out of a .vqm, and what was noted on the way in."""
    report = convert(save(folder / "a.onnx", model), folder / "a.vqm", overwrite=True, **options)
    extract(folder / "a.vqm", folder / "b.onnx", overwrite=True)
    return onnx.load(folder / "b.onnx"), report.notes


def arrays_of(path: Path) -> dict[str, Any]:
    with open_source(path) as source:
        return {tensor.name: tensor.load() for tensor in source.tensors}


def run(model: Any) -> Any:
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    return reference.ReferenceEvaluator(model).run(None, {"x": x})[0]


class TestRoundTrip:
    def test_lossless_gives_the_same_file(self, tmp_path: Path) -> None:
        found, notes = there_and_back(tmp_path, dense(), lossless=True)

        assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
        onnx.checker.check_model(found, full_check=True)
        assert notes == []
        assert run(found).tobytes() == run(dense()).tobytes()

    def test_default_computes_nearly_the_same(self, tmp_path: Path) -> None:
        found, _ = there_and_back(tmp_path, dense())

        onnx.checker.check_model(found, full_check=True)
        expected = run(dense())
        assert 0 < np.abs(run(found) - expected).max() < 0.2 * np.abs(expected).max()
        assert (tmp_path / "a.vqm").stat().st_size < (tmp_path / "a.onnx").stat().st_size / 2

    def test_names_order_and_origin(self, tmp_path: Path) -> None:
        convert(save(tmp_path / "a.onnx", dense()), tmp_path / "a.vqm")

        with vqformat.safe_open(tmp_path / "a.vqm") as file:
            origin = file.metadata()["vqm.source"]
            assert list(file) == ["w", "b"]
        assert sorted(origin) == ["format", "graph"] and origin["format"] == "onnx"
        kept = onnx.ModelProto.FromString(origin["graph"])
        assert [(each.name, list(each.dims), each.raw_data) for each in kept.graph.initializer] == \
            [("w", [64, 48], b""), ("b", [48], b"")]  # fmt: skip

    def test_few_floats_are_kept_exactly(self, tmp_path: Path) -> None:
        """Resize rounds sizes by its scales."""
        scales = np.array([1, 1, 4 / 3, np.pi], np.float32)

        found, _ = there_and_back(tmp_path, model_of([nh.from_array(scales, "scales")]))

        assert nh.to_array(found.graph.initializer[0]).tobytes() == scales.tobytes()

    @pytest.mark.parametrize(("node", "options", "axis"), [
        ("MatMul", {}, 1), ("Gemm", {}, 1), ("Gemm", {"transB": 1}, 0), ("Add", {}, 0),
    ])  # fmt: skip
    def test_the_axis_of_outputs_is_that_of_the_graph(
        self, tmp_path: Path, node: str, options: dict[str, int], axis: int
    ) -> None:
        model = model_of([nh.from_array(W, "w")], [h.make_node(node, ["x", "w"], ["y"], **options)])

        with open_source(save(tmp_path / "a.onnx", model)) as source:
            assert [tensor.output_axis for tensor in source.tensors] == [axis]

    @pytest.mark.parametrize("node", ["LSTM", "GRU", "RNN"])
    def test_recurrent_weights_are_told_by_their_node_whatever_their_names(self, tmp_path: Path, node: str) -> None:
        weights = {"a": np.ones((1, 32, 8), "f4"), "b": np.ones((1, 32, 8), "f4"), "c": np.ones((8, 8), "f4")}
        nodes = [h.make_node(node, ["x", "a", "b"], ["y"], hidden_size=8), h.make_node("MatMul", ["z", "c"], ["w"])]
        model = model_of([nh.from_array(array, name) for name, array in weights.items()], nodes)

        with open_source(save(tmp_path / "a.onnx", model)) as source:
            assert [tensor.in_sequence for tensor in source.tensors] == [True, True, False]

    def test_weights_of_inner_graphs_are_taken(self, tmp_path: Path) -> None:
        out = h.make_tensor_value_info("out", T.FLOAT, None)
        branches = [h.make_graph([h.make_node("Identity", ["w"], ["out"])], "g", [], [out],
                                 [nh.from_array(W + k, "w")]) for k in (1, 2)]  # fmt: skip
        node = h.make_node("If", ["w"], ["y"], then_branch=branches[0], else_branch=branches[1])
        model = model_of([nh.from_array(W, "w")], [node])

        there_and_back(tmp_path, model, lossless=True)

        assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
        found = arrays_of(tmp_path / "a.vqm")
        assert list(found) == ["w", "w#2", "w#3"]  # attributes are sorted by name: else_branch, then_branch
        assert (found["w"] == W).all() and (found["w#2"] == W + 2).all() and (found["w#3"] == W + 1).all()

    def test_large_constants_are_taken_and_small_ones_counted(self, tmp_path: Path) -> None:
        nodes = [h.make_node("Constant", [], ["w"], value=nh.from_array(W)),
                 h.make_node("Constant", [], ["k"], value=nh.from_array(np.array([3.5], np.float32))),
                 h.make_node("Mul", ["w", "k"], ["y"])]  # fmt: skip

        found, notes = there_and_back(tmp_path, model_of([], nodes), lossless=True)

        assert list(arrays_of(tmp_path / "a.vqm")) == ["w"]
        assert notes == ["1 constant stays (10 bytes) in nodes of the graph, not compressed"]
        assert found.SerializeToString() == model_of([], nodes).SerializeToString()

    def test_a_model_without_tensors(self, tmp_path: Path) -> None:
        found, _ = there_and_back(tmp_path, model_of([]))

        assert found == model_of([])

    def test_what_a_vqm_cannot_hold_stays_in_the_graph(self, tmp_path: Path) -> None:
        sparse = h.make_sparse_tensor(nh.from_array(np.float32([1, 2]), "s"), nh.from_array(np.array([0, 5])), [9])
        text = h.make_tensor("text", T.STRING, [2], [b"a", b"b"])
        crumbs = h.make_tensor("crumbs", T.INT2, [3], [1, 0, -1])
        model = model_of([nh.from_array(W, "w"), text, crumbs], sparse_initializer=[sparse])

        found, notes = there_and_back(tmp_path, model, lossless=True)

        assert list(arrays_of(tmp_path / "a.vqm")) == ["w"]
        assert found.SerializeToString() == model.SerializeToString()
        assert len(notes) == 1 and notes[0].startswith("3 initializers stay (")
        assert notes[0].endswith("in the graph, not compressed: dtype int2, dtype string, sparse")


def every_dtype() -> dict[int, Any]:
    """Of each ONNX dtype, five elements: an odd number for those of 4 bits."""
    reals = [0.5, -1.5, 0, 6, 1]
    arrays = {T.INT4: np.array([-8, 7, -1, 0, 3], ml_dtypes.int4), T.UINT4: np.array([15, 0, 8, 7, 1], ml_dtypes.uint4),
              T.BOOL: np.array([True, False, True, True, False]), T.COMPLEX64: np.array([1 + 2j, -3j, 0, 5, 1], "c8"),
              T.COMPLEX128: np.array([1 + 2j, -3j, 0, 5, 1], "c16")}  # fmt: skip
    for kind in (T.FLOAT, T.DOUBLE, T.FLOAT16, T.BFLOAT16, T.FLOAT8E4M3FN, T.FLOAT8E4M3FNUZ, T.FLOAT8E5M2,
                 T.FLOAT8E5M2FNUZ, T.FLOAT4E2M1):  # fmt: skip
        arrays[kind] = np.array(reals).astype(h.tensor_dtype_to_np_dtype(kind))
    arrays[T.FLOAT8E8M0] = np.array([0, 127, 128, 254, 255], np.uint8).view(ml_dtypes.float8_e8m0fnu)
    for kind in (T.INT8, T.INT16, T.INT32, T.INT64, T.UINT8, T.UINT16, T.UINT32, T.UINT64):
        limits = np.iinfo(h.tensor_dtype_to_np_dtype(kind))
        arrays[kind] = np.array([limits.min, limits.max, 0, 1, 100], limits.dtype)
    return arrays


def typed(kind: int, array: Any) -> Any:
    """The tensor with its values in the field of its dtype instead of raw_data."""
    tensor = T(name="t", data_type=kind, dims=array.shape)
    if array.dtype.kind == "c":
        array = array.view(array.real.dtype)
    field = h.tensor_dtype_to_field(kind)
    if kind in (T.INT4, T.UINT4, T.FLOAT4E2M1):
        array = np.frombuffer(nh.from_array(array).raw_data, np.uint8)
    elif field == "int32_data" and array.dtype.kind not in "iub":
        array = array.view(f"u{array.dtype.itemsize}")
    getattr(tensor, field).extend((array * 1).tolist() if kind == T.BOOL else array.tolist())
    return tensor


class TestDtypes:
    @pytest.mark.parametrize("kind", every_dtype())
    @pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
    def test_every_dtype_survives(self, tmp_path: Path, kind: int, is_raw: bool) -> None:
        array = every_dtype()[kind]
        tensor = nh.from_array(array, "t") if is_raw else typed(kind, array)
        assert nh.to_array(tensor).tobytes() == array.tobytes()  # the test's own tensor is right

        found, _ = there_and_back(tmp_path, model_of([tensor]), lossless=True)

        here = arrays_of(tmp_path / "a.onnx")["t"]
        assert here.dtype == array.dtype and nh.from_array(here).raw_data == nh.from_array(array).raw_data
        assert nh.to_array(found.graph.initializer[0]).tobytes() == array.tobytes()
        onnx.checker.check_model(found)

    def test_payloads_of_nan_are_kept(self, tmp_path: Path) -> None:
        bits = struct.pack("<3I", 0x7F800001, 0xFFC12345, 0x3F800000)  # the first is signalling
        tensor = T.FromString(T(name="t", data_type=T.FLOAT, dims=[3]).SerializeToString() + b"\x22\x0c" + bits)
        assert len(tensor.float_data) == 3

        found, _ = there_and_back(tmp_path, model_of([tensor]), lossless=True)

        assert found.graph.initializer[0].raw_data == bits

    def test_unused_bits_are_ignored(self, tmp_path: Path) -> None:
        tensor = T(name="t", data_type=T.UINT4, dims=[3], raw_data=b"\x21\xf3")

        assert arrays_of(save(tmp_path / "a.onnx", model_of([tensor])))["t"].astype(int).tolist() == [1, 2, 3]

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5)])
    def test_scalars_and_empty_tensors(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        model = model_of([nh.from_array(np.ones(shape, np.float32), "t")])

        found, _ = there_and_back(tmp_path, model)

        assert found.SerializeToString() == model.SerializeToString()


def outside(**entries: str) -> Any:
    """A float32 initializer of 12 bytes whose data lies in another file."""
    tensor = T(name="t", data_type=T.FLOAT, dims=[3], data_location=OUTSIDE)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


class TestExternalData:
    def lay(self, folder: Path) -> Path:
        """A model folder with a file of data, beside a file that is nobody's business."""
        (folder / "secret").write_bytes(np.float32([6, 6, 6]).tobytes())
        (folder / "m").mkdir()
        (folder / "m" / "data").write_bytes(bytes(8) + np.float32([1, 2, 3]).tobytes())
        return folder / "m" / "a.onnx"

    @pytest.mark.parametrize("length", [{}, {"length": "12"}], ids=["without length", "with"])
    def test_a_file_beside_the_model_is_read(self, tmp_path: Path, length: dict[str, str]) -> None:
        path = save(self.lay(tmp_path), model_of([outside(location="data", offset="8", **length)]))

        report = convert(path, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.onnx")

        assert report.source_file_nbytes == 0 and report.grown == []  # the model is in two files
        found = onnx.load(tmp_path / "b.onnx")  # data inside
        assert nh.to_array(found.graph.initializer[0]).tolist() == [1, 2, 3]
        onnx.checker.check_model(found)

    def test_a_folder_of_links_is_read(self, tmp_path: Path) -> None:
        """As caches of downloads are: both files are links to one other folder."""
        path = save(self.lay(tmp_path), model_of([outside(location="data", offset="8")]))
        (tmp_path / "snapshot").mkdir()
        for name in ("a.onnx", "data"):
            (tmp_path / "snapshot" / name).symlink_to(path.parent / name)

        assert arrays_of(tmp_path / "snapshot" / "a.onnx")["t"].tolist() == [1, 2, 3]

    @pytest.mark.parametrize("location", ["./data", "sub/data", "./sub//data", "in/data", "data.1.2"])
    def test_a_file_below_the_model_is_read(self, tmp_path: Path, location: str) -> None:
        path = self.lay(tmp_path)
        (path.parent / "sub").mkdir()
        (path.parent / "in").symlink_to("sub")
        for name in ("sub/data", "data.1.2"):
            (path.parent / name).write_bytes((path.parent / "data").read_bytes())

        arrays = arrays_of(save(path, model_of([outside(location=location, offset="8")])))

        assert arrays["t"].tolist() == [1, 2, 3]

    def test_data_in_a_download_cache_is_read(self, tmp_path: Path) -> None:
        """There the snapshot of a large file is a link, and that of a small one may be a file."""
        path = self.lay(tmp_path)
        (tmp_path / "c" / "blobs").mkdir(parents=True)
        (tmp_path / "c" / "snapshots" / "rev" / "onnx").mkdir(parents=True)
        (path.parent / "data").rename(tmp_path / "c" / "blobs" / "0123")
        folder = tmp_path / "c" / "snapshots" / "rev" / "onnx"
        (folder / "data").symlink_to("../../../blobs/0123")

        arrays = arrays_of(save(folder / "a.onnx", model_of([outside(location="data", offset="8")])))

        assert arrays["t"].tolist() == [1, 2, 3]

    @pytest.mark.parametrize("entries", [
        {"location": "../secret"}, {"location": "..\\secret"}, {"location": "..", "offset": "0"}, {"location": "."}, {},
        {"location": "link"}, {"location": "up/secret"}, {"location": "sub/../../secret"}, {"location": "C:data"},
        {"location": "sub"}, {"location": "data/x"}, {"location": "pipe"}, {"location": "loop"}, {"location": "sub/"},
        {"location": "device", "length": "12"}, {"location": "d" * 300}, {"location": "da\0ta"},
        {"location": "absent"}, {"location": "data", "offset": "9"}, {"location": "data", "offset": "-8"},
        {"location": "data", "offset": "8 "}, {"location": "data", "offset": "9" * 19},
        {"location": "data", "offset": "9" * 5000}, {"location": "data", "offset": "٨"},
        {"location": "data", "offset": "8", "length": "11"}, {"location": "data", "length": "20"},
    ], ids=repr)  # fmt: skip
    def test_other_places_are_refused(self, tmp_path: Path, entries: dict[str, str]) -> None:
        path = self.lay(tmp_path)
        (path.parent / "link").symlink_to(tmp_path / "secret")
        (path.parent / "up").symlink_to(tmp_path)
        (path.parent / "loop").symlink_to(path.parent / "loop")
        (path.parent / "device").symlink_to("/dev/zero")
        (path.parent / "sub").mkdir()
        os.mkfifo(path.parent / "pipe")
        save(path, model_of([outside(**entries)]))

        with pytest.raises(ConversionError, match="'t'"):
            open_source(path)

    def test_absolute_paths_are_refused(self, tmp_path: Path) -> None:
        path = self.lay(tmp_path)
        save(path, model_of([outside(location=str(path.parent / "data"), offset="8")]))

        with pytest.raises(ConversionError, match="a plain file name is allowed"):
            open_source(path)

    def test_places_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        path = self.lay(tmp_path)
        data = model_of([outside(location="data", offset="8")]).SerializeToString()
        save(path, data.replace(b"\x04data", b"\x04\xff/.."))

        with pytest.raises(ConversionError):
            open_source(path)

    def test_what_stays_outside_is_said(self, tmp_path: Path) -> None:
        tensor = outside(location="data")
        tensor.data_type = T.INT2
        path = save(self.lay(tmp_path), model_of([tensor]))

        with open_source(path) as source:
            assert source.notes[1] == "1 of them keep their data in 'data', which the graph still needs beside it"

    def test_what_stays_in_the_graph_takes_its_data_along(self, tmp_path: Path) -> None:
        crumbs = outside(location="data", offset="8", length="1")
        crumbs.data_type = T.INT2
        indices = T(name="i", data_type=T.INT64, dims=[1], data_location=OUTSIDE)
        for key, value in (("location", "data"), ("offset", "0"), ("length", "8")):
            indices.external_data.add(key=key, value=value)
        sparse = h.make_sparse_tensor(nh.from_array(np.float32([5]), "s"), nh.from_array(np.array([0])), [4])
        sparse.indices.CopyFrom(indices)
        path = save(self.lay(tmp_path), model_of([crumbs], sparse_initializer=[sparse]))

        report = convert(path, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.onnx")

        graph = onnx.load(tmp_path / "b.onnx", load_external_data=False).graph
        assert graph.initializer[0].raw_data == b"\0" and graph.initializer[0].data_location == T.DEFAULT
        assert graph.sparse_initializer[0].indices.raw_data == bytes(8)
        assert len(report.notes) == 1 + len(report.grown)


def w_of(**fields: Any) -> Any:
    return model_of([T(**{"name": "w", "data_type": T.FLOAT, "dims": [2], **fields})])


class TestRefusals:
    """Each is harmless but for one thing."""

    def test_the_sibling_of_all_is_read(self, tmp_path: Path) -> None:
        for fields in ({"raw_data": bytes(8)}, {"float_data": [0, 0]}, {"dims": [1 << 40, 0]}):
            assert "w" in arrays_of(save(tmp_path / "a.onnx", w_of(**fields)))

    @pytest.mark.parametrize("fields", [
        {}, {"raw_data": bytes(7)}, {"raw_data": bytes(9)}, {"raw_data": bytes(8), "float_data": [0, 0]},
        {"float_data": [0]}, {"float_data": [0] * 3}, {"int32_data": [0, 0]}, {"double_data": [0, 0]},
        {"dims": [-2], "raw_data": bytes(8)}, {"dims": [-1, -2], "raw_data": bytes(8)},
        {"dims": [1 << 62, 0]}, {"dims": [1 << 40]}, {"dims": [1 << 40], "raw_data": bytes(8)},
        {"dims": [1 << 62, 1 << 62]}, {"dims": [1 << 32, 1 << 32]}, {"dims": [(1 << 62) + 1, 4], "raw_data": bytes(16)},
        {"segment": T.Segment(begin=0, end=2), "raw_data": bytes(8)},
        {"data_type": T.COMPLEX64, "float_data": [0, 0]}, {"data_type": T.INT4, "int32_data": [0, 0]},
        {"data_type": T.FLOAT16, "float_data": [0, 0]},
    ], ids=str)  # fmt: skip
    def test_data_that_does_not_fit(self, tmp_path: Path, fields: dict[str, Any]) -> None:
        path = save(tmp_path / "a.onnx", w_of(**fields))

        tracemalloc.start()
        with pytest.raises(VqmError, match="'w'"):
            open_source(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 1 << 20

    @pytest.mark.parametrize("data", [b"\x08", b"hello", b"\x08\x0a\x12\x03abc", b"\x3a\xff\xff\xff\xff\x07", b"\x00"],
                             ids=repr)  # fmt: skip
    def test_what_is_no_model(self, tmp_path: Path, data: bytes) -> None:
        with pytest.raises(ConversionError, match="is no ONNX model, or"):
            open_source(save(tmp_path / "a.onnx", data))

    def test_a_model_cut_short_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match="cut short"):
            open_source(save(tmp_path / "a.onnx", dense().SerializeToString()[:-100]))

    def test_more_than_protobuf_can_hold(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.onnx", dense())
        with path.open("r+b") as stream:
            stream.truncate(1 << 31)  # sparse

        with pytest.raises(ConversionError, match="more than the 2 GiB"):
            open_source(path)

    def test_graphs_nested_without_end(self, tmp_path: Path) -> None:
        """Protobuf's own bound holds."""
        data = b""
        for tag in (b"\x0a", b"\x2a", b"\x32") * 300:  # node, attribute, graph
            size = len(data)
            digits = b""
            while size >= 128:
                digits, size = digits + bytes([size & 127 | 128]), size >> 7
            data = tag + digits + bytes([size]) + data

        with pytest.raises(ConversionError, match="no ONNX model, or damaged"):
            open_source(save(tmp_path / "a.onnx", b"\x08\x0a\x3a\x00" + b"\x3a\xff\x7f" + data))

    def test_a_name_that_is_no_text_stays_in_the_graph(self, tmp_path: Path) -> None:
        data = dense().SerializeToString().replace(b"\x42\x01b", b"\x42\x01\xff")

        convert(save(tmp_path / "a.onnx", data), tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.onnx")

        assert list(arrays_of(tmp_path / "a.vqm")) == ["w"] and (tmp_path / "b.onnx").read_bytes() == data

    def test_an_endless_list_of_axes_takes_no_time(self, tmp_path: Path) -> None:
        huge = T(data_type=T.FLOAT, dims=[1 << 62] * 200_000)

        model = model_of([], [h.make_node("Constant", [], ["y"], value=huge)])

        assert arrays_of(save(tmp_path / "a.onnx", model)) == {}


class TestWriting:
    def vqm(self, path: Path, origin: Any, **arrays: Any) -> Path:
        vqformat.save_file(arrays or {"w": W, "b": B}, path, metadata={"vqm.source": origin}, lossless=True)
        return path

    def stripped(self) -> bytes:
        model = dense()
        for each in model.graph.initializer:
            each.ClearField("raw_data")
        return bytes(model.SerializeToString())

    def test_the_sibling_of_all_is_written(self, tmp_path: Path) -> None:
        source = self.vqm(tmp_path / "a.vqm", {"format": "onnx", "graph": self.stripped()})

        assert extract(source, tmp_path / "a.onnx") == []
        assert onnx.load(tmp_path / "a.onnx") == dense()

    @pytest.mark.parametrize(("origin", "complaint"), [
        ({"format": "npz"}, "came from 'npz', not ONNX"), ({}, "not ONNX"), ("onnx", "not ONNX"),
        ({"format": ["onnx"]}, "not ONNX"), ({"format": "onnx"}, "has no graph"),
        ({"format": "onnx", "graph": "text"}, "has no graph"), ({"format": "onnx", "graph": b""}, "no ONNX model"),
        ({"format": "onnx", "graph": b"\xff" * 50}, "no ONNX model"),
    ], ids=str)  # fmt: skip
    def test_a_vqm_without_a_good_graph(self, tmp_path: Path, origin: Any, complaint: str) -> None:
        with pytest.raises(ConversionError, match=complaint):
            extract(self.vqm(tmp_path / "a.vqm", origin), tmp_path / "a.onnx")
        assert not (tmp_path / "a.onnx").exists()

    @pytest.mark.parametrize(("arrays", "complaint"), [
        ({"w": W}, "'b' is missing"), ({"w": W.T, "b": B}, "'w' has"), ({"w": W.astype("f8"), "b": B}, "'w' has"),
        ({"w": W, "b": B, "c": B}, "'c' is no initializer"),
    ], ids=["missing", "shape", "dtype", "more"])  # fmt: skip
    def test_tensors_that_the_graph_does_not_have(self, tmp_path: Path, arrays: Any, complaint: str) -> None:
        source = self.vqm(tmp_path / "a.vqm", {"format": "onnx", "graph": self.stripped()}, **arrays)

        with pytest.raises(ConversionError, match=complaint):
            extract(source, tmp_path / "a.onnx")

    def test_all_tensors_are_needed(self, tmp_path: Path) -> None:
        convert(save(tmp_path / "a.onnx", dense()), tmp_path / "a.vqm")

        with pytest.raises(ConversionError, match="an ONNX model needs all of its initializers"):
            extract(tmp_path / "a.vqm", tmp_path / "b.onnx", names=["w"])

    def test_data_in_the_graph_of_a_vqm_is_replaced(self, tmp_path: Path) -> None:
        """And never read from where it points to."""
        model = dense()
        model.graph.initializer[0].ClearField("raw_data")
        model.graph.initializer[0].data_location = OUTSIDE
        model.graph.initializer[0].external_data.add(key="location", value="/etc/hostname")
        source = self.vqm(tmp_path / "a.vqm", {"format": "onnx", "graph": model.SerializeToString()})

        extract(source, tmp_path / "a.onnx")

        assert onnx.load(tmp_path / "a.onnx", load_external_data=False) == dense()

    def test_a_graph_too_large_is_left_out(self, tmp_path: Path) -> None:
        model = dense()
        model.doc_string = "x" * (15 << 20)

        report = convert(save(tmp_path / "a.onnx", model), tmp_path / "a.vqm")

        assert "cannot be extracted to .onnx" in report.notes[0]
        with pytest.raises(ConversionError, match="too large; extract to"):
            extract(tmp_path / "a.vqm", tmp_path / "b.onnx")
        extract(tmp_path / "a.vqm", tmp_path / "b.npz")

    def test_a_model_above_2_gb_is_refused_before_it_is_decoded(self, tmp_path: Path) -> None:
        from vqformat.converters.export.onnx import write_onnx
        from vqformat.converters.source import Source
        from vqformat.encode.source import SourceTensor

        def never() -> Any:
            raise AssertionError

        graph = model_of([T(name="w", data_type=T.FLOAT, dims=[1 << 29])]).SerializeToString()
        source = Source("vqm", [SourceTensor("w", "f32", (1 << 29,), never)], origin={"format": "onnx", "graph": graph})

        with pytest.raises(ConversionError, match=r"at most 2,147,483,647 are possible; extract to \.safetensors"):
            write_onnx(io.BytesIO(), source.tensors, source, [])


def large() -> Any:
    """A model that is large for TestLargeModels: three initializers of 12 KiB, and a constant of as many."""
    nodes = [h.make_node("Constant", [], ["c"], value=nh.from_array(W * 5)),
             h.make_node("MatMul", ["x", "w0"], ["xw"]), h.make_node("Add", ["xw", "b"], ["y"])]  # fmt: skip
    four = nh.from_array(np.arange(2999).astype(ml_dtypes.int4), "four")
    return model_of([*(nh.from_array(W + i, f"w{i}") for i in range(3)), nh.from_array(B, "b"), four], nodes)


class TestLargeModels:
    """Models above the limit of protobuf, which is lowered here."""

    @pytest.fixture(autouse=True)
    def limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from vqformat.converters.export import onnx as export

        monkeypatch.setattr(export, "MAX_NBYTES", 24_000)

    def vqm(self, folder: Path, model: Any | None = None) -> Path:
        convert(save(folder / "a.onnx", model or large()), folder / "a.vqm", lossless=True)
        return folder / "a.vqm"

    def test_values_go_to_a_file_beside_the_model(self, tmp_path: Path) -> None:
        notes = extract(self.vqm(tmp_path), tmp_path / "b.onnx")

        assert notes == ["an ONNX model of more than 2 GiB keeps values in a second file: 'b.onnx.data' belongs beside"
                         " it"]  # fmt: skip
        assert (tmp_path / "b.onnx").stat().st_size < 24_000 < (tmp_path / "b.onnx.data").stat().st_size
        found = onnx.load(tmp_path / "b.onnx")
        for each in found.graph.initializer:  # onnx leaves a mark of where the values were
            each.ClearField("data_location")
        assert found == large()
        onnx.checker.check_model(tmp_path / "b.onnx", full_check=True)
        assert run(found).tobytes() == run(large()).tobytes()

    def test_small_tensors_and_constants_stay_inside(self, tmp_path: Path) -> None:
        extract(self.vqm(tmp_path), tmp_path / "b.onnx")

        graph = onnx.load(tmp_path / "b.onnx", load_external_data=False).graph
        places = {each.name: {entry.key: entry.value for entry in each.external_data} for each in graph.initializer}
        assert places == {
            "w0": {"location": "b.onnx.data", "offset": "0", "length": "12288"},
            "w1": {"location": "b.onnx.data", "offset": "12288", "length": "12288"},
            "w2": {"location": "b.onnx.data", "offset": "24576", "length": "12288"},
            "b": {}, "four": {"location": "b.onnx.data", "offset": "36864", "length": "1500"},
        }  # fmt: skip
        assert len(graph.node[0].attribute[0].t.raw_data) == 12288

    def test_constants_go_outside_if_nothing_else_helps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from vqformat.converters.export import onnx as export

        monkeypatch.setattr(export, "MAX_NBYTES", 9_000)

        extract(self.vqm(tmp_path), tmp_path / "b.onnx")

        assert nh.to_array(onnx.load(tmp_path / "b.onnx").graph.node[0].attribute[0].t).tobytes() == (W * 5).tobytes()

    def test_the_way_back_is_the_same_file(self, tmp_path: Path) -> None:
        first = self.vqm(tmp_path)
        extract(first, tmp_path / "b.onnx")

        convert(tmp_path / "b.onnx", tmp_path / "b.vqm", lossless=True)

        assert (tmp_path / "b.vqm").read_bytes() == first.read_bytes()

    def test_one_tensor_at_a_time_is_in_memory(self, tmp_path: Path) -> None:
        model = model_of([nh.from_array(np.full((1 << 20), i, np.float32), f"w{i}") for i in range(8)])
        source = self.vqm(tmp_path, model)

        tracemalloc.start()
        extract(source, tmp_path / "b.onnx")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 16 << 20
        assert (tmp_path / "b.onnx.data").stat().st_size == 32 << 20

    @pytest.mark.parametrize("existing", ["b.onnx", "b.onnx.data"])
    def test_neither_file_is_replaced_without_leave(self, tmp_path: Path, existing: str) -> None:
        source = self.vqm(tmp_path)
        (tmp_path / existing).write_bytes(b"mine")
        before = sorted(os.listdir(tmp_path))

        with pytest.raises(FileExistsError, match=f"{existing}' exists"):
            extract(source, tmp_path / "b.onnx")

        assert sorted(os.listdir(tmp_path)) == before and (tmp_path / existing).read_bytes() == b"mine"
        extract(source, tmp_path / "b.onnx", overwrite=True)
        assert len(onnx.load(tmp_path / "b.onnx").graph.initializer) == 5

    @pytest.mark.parametrize("n_before", [0, 1])
    def test_nothing_is_left_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_before: int) -> None:
        source = self.vqm(tmp_path)
        before = sorted(os.listdir(tmp_path))
        calls: list[Any] = []

        def failing(give_name: Any) -> Any:
            def fail(old: Any, new: Any, **options: Any) -> None:
                calls.append(new)
                if len(calls) > n_before:
                    raise OSError(5, "Input/output error", str(old))
                give_name(old, new, **options)

            return fail

        monkeypatch.setattr(os, "replace", failing(os.replace))
        monkeypatch.setattr(os, "link", failing(os.link))
        with pytest.raises(OSError, match=r"error: '.*/b\.onnx(\.data)?'"):
            extract(source, tmp_path / "b.onnx")

        assert sorted(os.listdir(tmp_path)) == before

    def test_a_file_that_the_graph_needs_is_not_replaced(self, tmp_path: Path) -> None:
        crumbs = T(name="crumbs", data_type=T.INT2, dims=[4], data_location=OUTSIDE)
        crumbs.external_data.add(key="location", value="b.onnx.data")
        model = large()
        model.graph.initializer.append(crumbs)
        source = self.vqm(tmp_path, model)

        with pytest.raises(ConversionError, match="give another name"):
            extract(source, tmp_path / "b.onnx")
        assert extract(source, tmp_path / "c.onnx")[1] == "the graph needs 'b.onnx.data' of its source beside it"

    def test_a_pipe_has_nothing_beside_it(self, tmp_path: Path) -> None:
        source = self.vqm(tmp_path)
        (tmp_path / "b.onnx").symlink_to("/dev/null")

        with pytest.raises(ConversionError, match="are possible; extract to"):
            extract(source, tmp_path / "b.onnx", overwrite=True)

    @pytest.mark.parametrize("name", ["a\\b.onnx", "a:b.onnx"])
    def test_a_name_that_no_model_can_have(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ConversionError, match="choose another name"):
            extract(self.vqm(tmp_path), tmp_path / name)

    def test_too_many_small_tensors_are_refused(self, tmp_path: Path) -> None:
        model = model_of([nh.from_array(np.ones(100, np.float32), f"w{i}") for i in range(100)])

        with pytest.raises(ConversionError, match="at most 24,000 are possible"):
            extract(self.vqm(tmp_path, model), tmp_path / "b.onnx")


def seeds() -> list[bytes]:
    small = [nh.from_array(W[:3, :4], "w"), typed(T.FLOAT16, every_dtype()[T.FLOAT16]), outside(location="data")]
    constant = h.make_node("Constant", [], ["c"], value=nh.from_array(np.arange(20)))
    inner = h.make_graph([constant], "i", [], [h.make_tensor_value_info("c", T.INT64, None)], [small[0]])
    branch = h.make_node("If", ["w"], ["y"], then_branch=inner, else_branch=inner)
    return [model_of(small[:2], [branch]).SerializeToString(), model_of(small).SerializeToString()]


def mutations(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Files cut short, with bytes changed, put in or taken out."""
    def change(data: bytes, steps: list[tuple[int, int, bytes]]) -> bytes:  # fmt: skip
        for kind, at, new in steps:
            at %= max(len(data), 1)
            data = (data[:at], data[:at] + new + data[at + len(new) :], data[:at] + new + data[at:],
                    data[:at] + data[at + len(new) :])[kind]  # fmt: skip
        return data

    step = st.tuples(st.sampled_from([0, 1, 1, 1, 2, 3]), st.integers(0, 1 << 12),
                     st.binary(min_size=1, max_size=4) | st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f"]))  # fmt: skip
    return st.builds(change, st.sampled_from(seeds), st.lists(step, max_size=4))


def converts_or_is_refused(path: Path) -> None:
    """Nothing but VqmError comes out; memory stays small."""
    tracemalloc.start()
    try:
        convert(path, io.BytesIO(), lossless=True)
    except VqmError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 32 << 20


class TestDamage:
    @examples(300, may_share_fixtures=True)
    @given(mutations(seeds()))
    def test_any_change_converts_or_is_refused(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "data").write_bytes(bytes(12))

        converts_or_is_refused(save(tmp_path / "a.onnx", b"\x08\x0a" + data[2:]))  # other starts: other formats

    @examples(200, may_share_fixtures=True)
    @given(mutations(seeds()))
    def test_any_graph_in_a_vqm_is_written_or_refused(self, tmp_path: Path, graph: bytes) -> None:
        metadata = {"vqm.source": {"format": "onnx", "graph": graph}}
        vqformat.save_file({"w": W[:3, :4]}, tmp_path / "a.vqm", metadata=metadata, overwrite=True)

        with suppress(VqmError):
            extract(tmp_path / "a.vqm", tmp_path / "b.onnx", overwrite=True)

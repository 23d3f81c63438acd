"""ONNX models to .vqm and back: models that the onnx package wrote, and models to refuse."""

from __future__ import annotations

import io
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from onnx_files import (
    OUTSIDE,
    B,
    T,
    W,
    arrays_of,
    dense,
    every_dtype,
    h,
    model_of,
    nh,
    outside,
    run,
    save,
    there_and_back,
    typed,
    w_of,
)

import vqformat
from vqformat import ConversionError, VqmError
from vqformat.converters import convert, extract, open_source

onnx = pytest.importorskip("onnx", reason="not installed: pip install 'vqformat[onnx]'")


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

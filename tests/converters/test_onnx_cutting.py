"""Large initializers of ONNX models are cut out of the bytes that are parsed, and loaded from the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("onnx")

import onnx
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from vqformat.converters import convert, extract
from vqformat.converters.onnx import open_onnx
from vqformat.converters.onnx_cutting import Place, read_model
from vqformat.errors import ConversionError

LARGE: npt.NDArray[np.float32] = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)
SMALL = np.arange(20, dtype=np.float32)


def model(*initializers: TensorProto) -> ModelProto:
    return ModelProto(ir_version=8, graph=GraphProto(name="g", initializer=initializers))


def save(path: Path, data: ModelProto | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return path


def test_only_large_values_are_cut_out(tmp_path: Path) -> None:
    whole = model(numpy_helper.from_array(SMALL, "a"), numpy_helper.from_array(LARGE, "b"))
    path = save(tmp_path / "m.onnx", whole)

    data, places = read_model(path)

    assert places == {1: Place(path.read_bytes().index(LARGE.tobytes()), LARGE.nbytes)}
    whole.graph.initializer[1].ClearField("raw_data")
    assert ModelProto.FromString(data) == whole


def test_they_are_loaded_from_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", model(numpy_helper.from_array(SMALL, "a"), numpy_helper.from_array(LARGE, "b")))

    convert(path, tmp_path / "m.vqm", lossless=True)
    extract(tmp_path / "m.vqm", tmp_path / "again.onnx")

    assert onnx.load(tmp_path / "again.onnx") == onnx.load(path)


def test_a_tensor_that_stays_in_the_graph_keeps_its_values(tmp_path: Path) -> None:
    left = TensorProto(name="w", data_type=99, dims=[1 << 17], raw_data=bytes(range(256)) * 512)
    source = open_onnx(save(tmp_path / "m.onnx", model(left)))

    assert not source.tensors
    assert ModelProto.FromString(source.origin["graph"]).graph.initializer[0] == left


def test_of_values_that_are_there_twice_the_last_ones_count(tmp_path: Path) -> None:
    first, last = (numpy_helper.from_array(values, "w") for values in (LARGE, LARGE + 1))
    twice = first.SerializeToString() + last.SerializeToString()[len(fields_before_values(last)) :]
    graph = b"\x2a" + varint(len(twice)) + twice
    path = save(tmp_path / "m.onnx", b"\x08\x08\x3a" + varint(len(graph)) + graph)

    _, places = read_model(path)

    assert not places
    (tensor,) = open_onnx(path).tensors
    assert np.array_equal(tensor.load(), LARGE + 1)


def fields_before_values(tensor: TensorProto) -> bytes:
    """The fields of a tensor before its values."""
    return tensor.SerializeToString().partition(b"\x4a" + varint(len(tensor.raw_data)))[0]


def varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def test_two_graphs_are_joined(tmp_path: Path) -> None:
    one, two = model(numpy_helper.from_array(LARGE, "a")), model(numpy_helper.from_array(LARGE + 1, "b"))
    path = save(tmp_path / "m.onnx", one.SerializeToString() + two.SerializeToString())

    assert [tensor.name for tensor in open_onnx(path).tensors] == ["a", "b"]


def test_values_of_another_size_are_an_error(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(LARGE, "w")
    tensor.dims[0] += 1

    with pytest.raises(ConversionError, match=r"needs 240800 bytes, but 240000 are there"):
        open_onnx(save(tmp_path / "m.onnx", model(tensor)))


def test_values_in_two_fields_are_an_error(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(LARGE, "w")
    tensor.float_data.append(1)

    with pytest.raises(ConversionError, match="twice"):
        open_onnx(save(tmp_path / "m.onnx", model(tensor)))


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", model(numpy_helper.from_array(LARGE, "w")))
    (tensor,) = open_onnx(path).tensors
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(ConversionError, match="became shorter"):
        tensor.load()

"""TensorFlow Lite models to .vqm, from FlatBuffers that a small writer of this module makes."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import vqformat
from vqformat import ConversionError, VqmError
from vqformat.converters import convert, extract, open_source

FLOAT32, FLOAT16, INT32, UINT8, STRING, BOOL, INT8, INT4 = 0, 1, 2, 3, 5, 6, 9, 17


class N(NamedTuple):
    """A number in a table."""

    layout: str
    value: int


def emit(data: bytearray, value: Any) -> int:
    """Append a table (a dict of its fields), a vector or a string after all that refers to it; returns where it is."""
    data += bytes(-len(data) % 16)
    if isinstance(value, dict):
        n_fields = max(value, default=-1) + 1
        data += bytes(-(4 + 2 * n_fields) % 8)
        vtable = len(data)
        data += struct.pack("<HH", 4 + 2 * n_fields, 8 + 8 * n_fields) + bytes(2 * n_fields)
        data += bytes(-len(data) % 8)
        start = len(data)
        data += struct.pack("<i", start - vtable) + bytes(8 * n_fields + 4)
        for i, field in value.items():
            at = start + 8 + 8 * i
            struct.pack_into("<H", data, vtable + 4 + 2 * i, at - start)
            if isinstance(field, N):
                struct.pack_into(field.layout, data, at, field.value)
            else:
                struct.pack_into("<I", data, at, emit(data, field) - at)
        return start
    if isinstance(value, list):
        start = len(data)
        data += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for i, item in enumerate(value):
            at = start + 4 + 4 * i
            struct.pack_into("<I", data, at, emit(data, item) - at)
        return start
    raw = value.encode() if isinstance(value, str) else value.tobytes()
    data += bytes(12)  # so that elements of 8 bytes are aligned
    start = len(data)
    data += struct.pack("<I", len(raw) if isinstance(value, str) else len(value)) + raw + b"\0" * isinstance(value, str)
    return start


def tensor(name: str = "w", kind: int = FLOAT32, shape: Any = (2, 3), buffer: int = 1, **more: Any) -> dict[int, Any]:
    fields: dict[int, Any] = {0: np.array(shape, "<i4"), 1: N("<b", kind), 2: N("<I", buffer), 3: name}
    if "quantization" in more:
        scale, zero, axis = more["quantization"]
        fields[4] = {2: np.array(scale, "<f4"), 3: np.array(zero, "<i8"), 6: N("<i", axis)}
    if "sparsity" in more:
        fields[6] = more["sparsity"]
    return fields


def model(tensors: list[dict[int, Any]], buffers: list[bytes], *, description: str = "made here") -> bytes:
    """A model of one subgraph; buffer 0 is empty, as converters leave it."""
    data = bytearray(b"\0\0\0\0TFL3")
    contents: list[dict[int, Any]] = [{}, *({0: np.frombuffer(content, np.uint8)} for content in buffers)]
    root = emit(data, {0: N("<I", 3), 2: [{0: tensors}], 3: description, 4: contents})
    struct.pack_into("<I", data, 0, root)
    return bytes(data)


def write(path: Path, tensors: list[dict[int, Any]], buffers: list[bytes]) -> Path:
    path.write_bytes(model(tensors, buffers))
    return path


def arrays_of(path: Path) -> dict[str, Any]:
    with open_source(path) as source:
        return {item.name: item.load() for item in source.tensors}


F6 = np.array([[1, 2, 3], [4, 5, 6]], "<f4").tobytes()


class TestReading:
    def test_constants_and_activations(self, tmp_path: Path) -> None:
        tensors = [tensor("input", buffer=0), tensor("w"), tensor("axes", INT32, (2,), 2), tensor("out", buffer=3),
                   tensor("half", FLOAT16, (), 4), tensor("flags", BOOL, (3,), 5)]  # fmt: skip
        buffers = [F6, struct.pack("<ii", 0, -1), b"", np.float16(0.5).tobytes(), b"\0\1\2"]
        path = write(tmp_path / "a", tensors, buffers)

        report = convert(path, tmp_path / "a.vqm", lossless=True)
        found = vqformat.load_file(tmp_path / "a.vqm")

        assert {name: array.tolist() for name, array in found.items()} == {
            "w": [[1, 2, 3], [4, 5, 6]], "axes": [0, -1], "half": 0.5, "flags": [False, True, True]}  # fmt: skip
        assert found["half"].dtype == np.float16
        assert report.notes == ["left out the operators of the model: its constant tensors alone are kept"]
        with vqformat.safe_open(tmp_path / "a.vqm") as file:
            assert file.metadata()["description"] == "made here"

    def test_one_scale_for_a_tensor(self, tmp_path: Path) -> None:
        data = np.array([-128, 0, 127], "i1").tobytes()
        path = write(tmp_path / "a", [tensor("w", INT8, (3,), quantization=([0.5], [-1], 0))], [data])

        found = arrays_of(path)

        assert {name: (array.dtype.name, array.tolist()) for name, array in found.items()} == {
            "w": ("int8", [-128, 0, 127]), "w.scale": ("float32", [0.5]), "w.zero_point": ("int64", [-1])}  # fmt: skip

    def test_a_scale_for_each_channel(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a", [tensor("w", UINT8, (2, 3), quantization=([1, 2, 4], [7, 8, 9], 1))], [bytes(6)])

        with open_source(path) as source:
            assert {item.name: (item.load().tolist(), item.is_exact) for item in source.tensors[1:]} == {
                "w.scale": ([1, 2, 4], True), "w.zero_point": ([7, 8, 9], True),
                "w.quantized_dimension": (1, True)}  # fmt: skip

    def test_four_bits(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a", [tensor("w", INT4, (3,))], [b"\xf1\x08"])

        found = arrays_of(path)["w"]

        assert found.dtype.name == "int4" and found.astype("i1").tolist() == [1, -1, -8]

    def test_shared_buffers_and_names_in_use(self, tmp_path: Path) -> None:
        tensors = [tensor("w"), tensor("w"), tensor("flat", shape=(6,)), tensor("")]
        with open_source(write(tmp_path / "a", tensors, [F6])) as source:
            assert [(item.name, item.alias_of) for item in source.tensors] == [
                ("w", None), ("w#2", "w"), ("flat", None), ("tensor", "w")]  # fmt: skip

    def test_a_name_that_is_too_long_is_its_last_part(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a", [tensor("x" * 2000 + ";conv/kernel")], [F6])

        assert list(arrays_of(path)) == ["conv/kernel"]

    def test_data_behind_the_flatbuffer(self, tmp_path: Path) -> None:
        data = bytearray(b"\0\0\0\0TFL3")
        root = emit(data, {2: [{0: [tensor()]}], 4: [{}, {1: N("<Q", 1 << 12), 2: N("<Q", 24)}]})
        struct.pack_into("<I", data, 0, root)
        (tmp_path / "a").write_bytes(bytes(data).ljust(1 << 12, b"\0") + F6)

        assert arrays_of(tmp_path / "a")["w"].tolist() == [[1, 2, 3], [4, 5, 6]]

    @pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
    def test_extraction(self, tmp_path: Path, suffix: str) -> None:
        if suffix == ".safetensors":
            pytest.importorskip("safetensors")
        path = write(tmp_path / "a", [tensor("w", INT8, (2, 3), quantization=([0.5], [0], 0))], [b"\1\2\3\4\5\6"])
        convert(path, tmp_path / "a.vqm")

        extract(tmp_path / "a.vqm", tmp_path / f"b{suffix}")

        found = arrays_of(tmp_path / f"b{suffix}")
        assert found["w"].dtype == np.int8 and found["w"].tolist() == [[1, 2, 3], [4, 5, 6]]
        assert found["w.scale"].tolist() == [0.5]


def rows_of(order: Any, blocks: Any, dimensions: list[dict[int, Any]]) -> dict[int, Any]:
    return {0: np.array(order, "<i4"), 1: np.array(blocks, "<i4"), 2: dimensions}


def dense(size: int) -> dict[int, Any]:
    return {0: N("<b", 0), 1: N("<i", size)}


def csr(segments: Any, indices: Any, kind: int = 1) -> dict[int, Any]:
    code = {1: "<i4", 2: "<u2", 3: "u1"}[kind]
    return {0: N("<b", 1), 2: N("<B", kind), 3: {0: np.array(segments, code)}, 4: N("<B", kind),
            5: {0: np.array(indices, code)}}  # fmt: skip


class TestSparse:
    @pytest.mark.parametrize("kind", [1, 2, 3])
    def test_rows(self, tmp_path: Path, kind: int) -> None:
        sparsity = rows_of([0, 1], [], [dense(2), csr([0, 1, 3], [2, 0, 1], kind)])
        path = write(tmp_path / "a", [tensor(sparsity=sparsity)], [np.array([7, 8, 9], "<f4").tobytes()])

        assert arrays_of(path)["w"].tolist() == [[0, 0, 7], [8, 9, 0]]

    def test_columns(self, tmp_path: Path) -> None:
        sparsity = rows_of([1, 0], [], [dense(3), csr([0, 1, 1, 2], [1, 0])])
        path = write(tmp_path / "a", [tensor(sparsity=sparsity)], [np.array([7, 8], "<f4").tobytes()])

        assert arrays_of(path)["w"].tolist() == [[0, 0, 8], [7, 0, 0]]

    def test_blocks(self, tmp_path: Path) -> None:
        sparsity = rows_of([0, 1, 2, 3], [0, 1], [dense(1), csr([0, 1], [1]), dense(2), dense(2)])
        values = np.arange(1, 5, dtype="<f4").tobytes()
        path = write(tmp_path / "a", [tensor(shape=(2, 4), sparsity=sparsity)], [values])

        assert arrays_of(path)["w"].tolist() == [[0, 0, 1, 2], [0, 0, 3, 4]]

    @pytest.mark.parametrize(("sparsity", "complaint"), [
        (rows_of([0, 0], [], [dense(2), csr([0, 1, 3], [2, 0, 1])]), "order"),
        (rows_of([0], [], [dense(2)]), "2 and 0 of blocks were expected"),
        (rows_of([0, 1], [], [dense(3), csr([0, 1, 3], [2, 0, 1])]), "size 3 instead of 2"),
        (rows_of([0, 1], [], [dense(2), csr([0, 1, 3], [3, 0, 1])]), "outside a dimension"),
        (rows_of([0, 1], [], [dense(2), csr([0, 1, 3], [-1, 0, 1])]), "outside a dimension"),
        (rows_of([0, 1], [], [dense(2), csr([0, 4, 3], [2, 0, 1])]), "segments"),
        (rows_of([0, 1], [], [dense(2), csr([0, 3], [2, 0, 1])]), "segments"),
        (rows_of([0, 1], [], [dense(2), csr([0, 1, 2], [2, 0])]), "3 values for 2 places"),
        (rows_of([0, 1, 2], [5], [dense(2), dense(3), dense(1)]), "blocks along"),
        (rows_of([0, 1, 2], [1], [dense(2), dense(3), dense(2)]), "do not fit"),
        (rows_of([0, 1], [], [dense(2), {0: N("<b", 1)}]), "indices of type 0"),
    ], ids=str)  # fmt: skip
    def test_damage_is_named(self, tmp_path: Path, sparsity: Any, complaint: str) -> None:
        path = write(tmp_path / "a", [tensor(sparsity=sparsity)], [np.array([7, 8, 9], "<f4").tobytes()])

        with pytest.raises(ConversionError, match=complaint):
            arrays_of(path)

    def test_a_huge_tensor_of_few_values(self, tmp_path: Path) -> None:
        sparsity = rows_of([0, 1], [], [dense(1 << 20), csr([0, 1], [2])])
        path = write(tmp_path / "a", [tensor(shape=(1 << 20, 1 << 20), sparsity=sparsity)], [bytes(4)])

        with pytest.raises(ConversionError, match="of which 4 are stored"):
            open_source(path)


REFUSED: list[tuple[dict[int, Any], str]] = [
    (tensor(shape=(7,)), "28 bytes, but 24"), (tensor(shape=(-2, -3)), "shape"), (tensor(shape=[1] * 40), "shape"),
    (tensor(shape=(1 << 30, 1 << 30)), "must be below"), (tensor(buffer=9), "buffer 9 of 2"),
    (tensor(kind=99), "type 99"), (tensor(kind=-1), "type -1"), (tensor(kind=STRING), "no constant tensors"),
    (tensor("a\0b"), "U\\+0000"), (tensor(quantization=([1, 2, 3], [0], 2)), "along axis 2"),
    (tensor(quantization=([1, 2], [0, 0], 1)), "2 scales along axis 1"),
    (tensor(quantization=([1, 2, 3], [0, 0], 1)), "3 scales and 2 zero points"),
    (tensor(quantization=([1], [], 0)), "1 scales and 0 zero points"), (tensor(buffer=0), "no constant tensors"),
]  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize(("broken", "complaint"), REFUSED, ids=lambda value: str(value)[:70])
    def test_damage_is_named(self, tmp_path: Path, broken: dict[int, Any], complaint: str) -> None:
        path = write(tmp_path / "a", [broken], [F6])

        tracemalloc.start()
        with pytest.raises(ConversionError, match=complaint) as caught:
            arrays_of(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 1 << 20 and "TensorFlow Lite" in str(caught.value)

    def test_few_bytes_do_not_stand_for_many(self, tmp_path: Path) -> None:
        shapes = [(1, *(2 if i >> bit & 1 else 1 for bit in range(7)), 1 << 20 >> i.bit_count()) for i in range(128)]
        path = write(tmp_path / "a", [tensor(str(i), UINT8, shape) for i, shape in enumerate(shapes)], [bytes(1 << 20)])

        with pytest.raises(ConversionError, match="share their bytes"):
            open_source(path)

    def test_each_truncation_is_refused(self, tmp_path: Path) -> None:
        data = model([tensor("w", INT8, (6,), quantization=([0.5], [0], 0))], [bytes(range(1, 7))])

        for n in range(8, len(data) - 12, 3):
            (tmp_path / "a").write_bytes(data[:n])
            with pytest.raises(ConversionError):
                arrays_of(tmp_path / "a")

    @examples(150, may_share_fixtures=True)
    @given(st.lists(st.tuples(st.integers(8, 1000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
    def test_any_change_converts_or_is_refused(self, tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
        sparsity = rows_of([0, 1], [], [dense(2), csr([0, 1, 3], [2, 0, 1])])
        data = bytearray(model([tensor("w", INT8, (6,), quantization=([0.5], [0], 0)), tensor("s", buffer=2,
                         sparsity=sparsity)], [bytes(range(1, 7)), F6[:12]]))  # fmt: skip
        for at, new in changes:
            at %= len(data) - len(new) - 8
            data[8 + at : 8 + at + len(new)] = new
        (tmp_path / "a").write_bytes(data)

        with contextlib.suppress(VqmError):
            arrays_of(tmp_path / "a")

"""Flax's MessagePack files to .vqm, as flax.serialization writes them, and refusals."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import vqformat
from vqformat import ConversionError, VqmError
from vqformat.converters import convert, extract, open_source


def packed(value: Any) -> bytes:
    data: bytes = msgpack.packb(value, use_bin_type=True)
    return data


def array(values: Any, dtype: Any = "<f4", *, kind: int = 1, **changes: Any) -> Any:
    """An array as ``flax.serialization`` packs it: shape, dtype and data, in which anything can be wrong."""
    data = np.asarray(values, dtype)
    parts = {"shape": list(data.shape), "dtype": data.dtype.name, "data": data.tobytes(), **changes}
    return msgpack.ExtType(kind, packed(list(parts.values())))


def write(path: Path, value: Any) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else packed(value))
    return path


def arrays_of(path: Path, **options: Any) -> dict[str, Any]:
    with open_source(path, **options) as source:
        return {tensor.name: tensor.load() for tensor in source.tensors}


class TestReading:
    def test_parameters(self, tmp_path: Path) -> None:
        tree = {"dense": {"kernel": array([[1, 2], [3, 4]]), "bias": array([0.5, -1], ml_dtypes.bfloat16)},
                "scale": array(3, "<i4", kind=3), "flags": array([True, False], "?"),
                "none": array(np.ones((0, 2)))}  # fmt: skip

        convert(write(tmp_path / "flax_model.msgpack", tree), tmp_path / "a.vqm", lossless=True)
        found = vqformat.load_file(tmp_path / "a.vqm")

        assert list(found) == ["dense.kernel", "dense.bias", "scale", "flags", "none"]
        assert found["dense.kernel"].tolist() == [[1, 2], [3, 4]] and found["scale"] == 3
        assert found["dense.bias"].dtype == ml_dtypes.bfloat16 and found["flags"].tolist() == [True, False]

    def test_a_train_state(self, tmp_path: Path) -> None:
        state = {"0": {"mu": {"w": array([2])}, "count": array(3)}}
        tree = {"step": 7, "params": {"w": array([1])}, "opt_state": state,
                "name": "run", "rate": 0.5, "z": msgpack.ExtType(2, packed([1.0, 2.0])), "vqm.source": "x"}  # fmt: skip
        path = write(tmp_path / "a", tree)

        with open_source(path) as source:
            assert [tensor.name for tensor in source.tensors] == ["params.w"]
            assert source.metadata == {"step": 7, "name": "run"}
            assert source.notes[:2] == ["left out 2 values that are no arrays, no whole numbers and no short text",
                                        "left out the state of training (2 tensors); --include-optimizer keeps it"
                                        ]  # fmt: skip
        with open_source(path, include_optimizer=True) as source:
            assert [(tensor.name, tensor.is_exact) for tensor in source.tensors] == [
                ("params.w", False), ("opt_state.0.mu.w", True), ("opt_state.0.count", True)]  # fmt: skip

    def test_an_array_in_chunks(self, tmp_path: Path) -> None:
        chunks = {"0": array([1, 2, 3]), "1": array([4])}
        tree = {"w": {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 2}, "chunks": chunks}}

        assert arrays_of(write(tmp_path / "a", tree))["w"].tolist() == [[1, 2], [3, 4]]

    @pytest.mark.parametrize("part", ["", "flax_model.msgpack.index.json"])
    def test_shards(self, tmp_path: Path, part: str) -> None:
        write(tmp_path / "flax_model-00001-of-00002.msgpack", {"a": {"w": array([1])}, "more": array([3])})
        write(tmp_path / "flax_model-00002-of-00002.msgpack", {"a": {"b": array([2])}})
        places = {"a/b": "flax_model-00002-of-00002.msgpack", "a/w": "flax_model-00001-of-00002.msgpack"}
        (tmp_path / "flax_model.msgpack.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

        with open_source(tmp_path / part) as source:
            assert [(tensor.name, tensor.load().tolist()) for tensor in source.tensors] == [("a.w", [1]), ("a.b", [2])]
            assert source.notes == ["left out 'more' of 'flax_model-00001-of-00002.msgpack': the index does not place"
                                    " it there"]  # fmt: skip

    @pytest.mark.parametrize("n", [1, 15, 16, 70_000])
    def test_lengths_of_all_sizes(self, tmp_path: Path, n: int) -> None:
        tree = {**{str(i): {"w": array([i])} for i in range(min(n, 20))}, "k" * min(n, 900): array(np.arange(n))}

        found = arrays_of(write(tmp_path / "a", tree))

        assert len(found) == 1 + min(n, 20) and found["k" * min(n, 900)].tolist() == list(range(n))

    @pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
    def test_extraction(self, tmp_path: Path, suffix: str) -> None:
        if suffix == ".safetensors":
            pytest.importorskip("safetensors")
        convert(write(tmp_path / "a", {"params": {"w": array([1.5])}}), tmp_path / "a.vqm", lossless=True)

        extract(tmp_path / "a.vqm", tmp_path / f"b{suffix}")

        assert arrays_of(tmp_path / f"b{suffix}")["params.w"].tolist() == [1.5]


def chunked(**changes: Any) -> dict[str, Any]:
    chunks = {"0": array([1]), "1": array([2])}
    return {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": chunks, **changes}


REFUSED: list[tuple[Any, str]] = [
    ({"w": array([1, 2], shape=[3])}, "needs 12 bytes, but 8"), ({"w": array([1], shape=[-1])}, "shape"),
    ({"w": array([1], shape=[True])}, "shape"), ({"w": array([1], shape=3)}, "shape"),
    ({"w": array([1], shape=[1 << 40, 1 << 40])}, "needs"), ({"w": array([1], shape=[1] * 40)}, "shape"),
    ({"w": array([1], dtype="object")}, "dtype object"), ({"w": array([1], dtype=[])}, "dtype"),
    ({"w": array([1], data="text")}, "no list of shape, dtype and data"), ({"w": array([1], more=1)}, "no list of"),
    ({"w": array([1], kind=9)}, "extension of type 9"), ({"w": 1}, "no arrays"),
    ({"w": {"": array([1])}, "w.": array([2])}, "the name 'w.'"),
    ({"w": {"a\0": array([1])}}, "U\\+0000"), ({"w": {"k" * 2000: array([1])}}, "at most 1024"),
    ({"a": {"b": array([1])}, "a.b": array([1])}, "two arrays would have the name 'a.b'"),
    ({"opt_state": {"w": array([1])}}, "state of training"), ({"w": chunked(shape={"0": 3})}, "needs 12 bytes"),
    ({"w": chunked(shape={"1": 2})}, "a gap"), ({"w": chunked(chunks={})}, "no chunks"),
    ({"w": chunked(chunks={"0": array([1]), "1": 3})}, "chunks of an array"), ({"w": chunked(shape=[2])}, "no shape"),
    ({"w": chunked(chunks={"0": array([1]), "1": array([1], "<i4")})}, "of several dtypes"),
    ({"w": msgpack.ExtType(1, packed([[1], ["float32"], bytes(4)]))}, "has dtype"),
    ({"w": msgpack.ExtType(3, packed([[], {}, bytes(4)]))}, "has dtype"),
    (packed({"w": array([1])}) + b"\0", "1 bytes follow"), (b"\x82\xa1w\x01\xa1w\x01", "there twice"),
    (b"\x81\xa1w\xc1", "begins no value"), (b"\x81\xa1w" + b"\x91" * 100 + b"\0", "nested deeper"),
    (b"\x81\xa1w\xdd\xff\xff\xff\xff", "4294967295 items"), (b"\x81\xa1w\xdf\x7f\xff\xff\xff", "2147483647 items"),
    (b"\x81\xa1w\xc9\xff\xff\xff\xff\x01", "4294967295 items"), (b"\x81\xa1w\xdb\xff\xff\xff\xff", "4294967295 items"),
    (b"\x81\xa1w\xdb" + struct.pack(">I", 1 << 21) + bytes(1 << 21), "at most 1048576"),
    (b"\x82\xa1w\x01\x90\x01", "neither text nor a number"),
    (b"\x81\xa1w", "cut short"), (b"\x81\xa1w\xa1\xff", "utf-8"),
]  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize(("value", "complaint"), REFUSED, ids=lambda value: str(value)[:60])
    def test_damage_is_named(self, tmp_path: Path, value: Any, complaint: str) -> None:
        path = write(tmp_path / "a", value)

        tracemalloc.start()
        with pytest.raises(ConversionError, match=complaint) as caught:
            arrays_of(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 1 << 20 and len(str(caught.value)) < 900

    def test_each_truncation_is_refused(self, tmp_path: Path) -> None:
        data = packed({"a": {"w": array([[1, 2]])}, "b": chunked(), "c": "text"})

        for n in range(2, len(data)):
            with pytest.raises(ConversionError):
                arrays_of(write(tmp_path / "a", data[:n]))

    def test_data_that_become_shorter(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a", {"w": array([1, 2])})

        with open_source(path) as source:
            path.write_bytes(path.read_bytes()[:-1])
            with pytest.raises(ConversionError, match="became shorter"):
                source.tensors[0].load()

    @examples(150, may_share_fixtures=True)
    @given(st.lists(st.tuples(st.integers(0, 1000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
    def test_any_change_converts_or_is_refused(self, tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
        data = bytearray(packed({"a": {"w": array([[1, 2]])}, "b": chunked(), "c": "text", "n": [1, -5, None, 2.5]}))
        for at, new in changes:
            at = 3 + at % (len(data) - len(new) - 3)
            data[at : at + len(new)] = new

        with contextlib.suppress(VqmError):
            arrays_of(write(tmp_path / "a", bytes(data)))

"""TensorFlow checkpoints and SavedModels to .vqm, from files that a small writer of this module makes."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import vqformat
from vqformat import ConversionError
from vqformat.converters import convert, crc32c, extract, open_source, sstable
from vqformat.converters.tensorflow import part_key

FLOAT, INT32, STRING, INT64, BFLOAT16 = 1, 3, 7, 9, 14
SIZES = {FLOAT: "<f4", INT32: "<i4", INT64: "<i8", BFLOAT16: "<u2"}


def crc(data: bytes) -> int:
    """CRC-32C bit by bit, then as LevelDB masks it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def block(entries: Iterable[tuple[bytes, bytes]], *, restart: int = 3) -> bytes:
    """A block of a table: keys as what they share with the one before, and the rest."""
    data, last, restarts = b"", b"", []
    for i, (key, value) in enumerate(entries):
        shared = 0
        while i % restart and last[shared : shared + 1] == key[shared : shared + 1] != b"":
            shared += 1
        restarts += [] if i % restart else [len(data)]
        data += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return data + b"".join(struct.pack("<I", at) for at in [*restarts, len(restarts)])


def table(entries: dict[bytes, bytes], *, n_blocks: int = 2, snappy: Any = None) -> bytes:
    """A table; ``snappy`` compresses blocks of data."""
    items = sorted(entries.items())
    data, index = b"", []
    step = -(-len(items) // n_blocks) or 1
    for start in range(0, len(items), step):
        content = block(items[start : start + step])
        content = content + b"\0" if snappy is None else snappy(content) + b"\1"
        index.append((items[min(start + step, len(items)) - 1][0], varint(len(data)) + varint(len(content) - 1)))
        data += content + struct.pack("<I", crc(content))
    handles = []
    for content in (block([]), block(index, restart=1)):
        handles.append(varint(len(data)) + varint(len(content)))
        data += content + b"\0" + struct.pack("<I", crc(content + b"\0"))
    return data + b"".join(handles).ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def entry(dtype: int, shape: tuple[int, ...], data: bytes, *, offset: int = 0, shard: int = 0, size: int | None = None,
          check: int | None = None, slices: Iterable[bytes] = ()) -> bytes:  # fmt: skip
    dims = b"".join(message(2, number(1, n)) for n in shape)
    checked = struct.pack("<I", crc(data) if check is None else check)
    return (number(1, dtype) + message(2, dims) + number(3, shard) + number(4, offset)
            + number(5, len(data) if size is None else size) + b"\x35" + checked
            + b"".join(message(7, part) for part in slices))  # fmt: skip


HEADER = number(1, 1) + message(3, number(1, 1))
Variables = dict[str, Any]


def write(prefix: Path, variables: Variables, *, n_shards: int = 1, **options: Any) -> Path:
    """A checkpoint of float32, int64 and text; keys as they are given. Returns the index."""
    entries = {b"": number(1, n_shards) + message(3, number(1, 1))}
    shards = [b""] * n_shards
    for i, (name, value) in enumerate(variables.items()):
        shard = i % n_shards
        if isinstance(value, bytes):
            dtype, shape, data = STRING, (), value
        else:
            array = np.asarray(value)
            dtype = next(key for key, code in SIZES.items() if np.dtype(code) == array.dtype)
            shape, data = array.shape, array.tobytes()
        entries[name.encode()] = entry(dtype, shape, data, offset=len(shards[shard]), shard=shard)
        shards[shard] += data
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(shards):
        prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{n_shards:05d}").write_bytes(data)
    index = prefix.with_name(prefix.name + ".index")
    index.write_bytes(table(entries, **options))
    return index


def arrays_of(path: Path, **options: Any) -> dict[str, Any]:
    with open_source(path, **options) as source:
        return {tensor.name: tensor.load() for tensor in source.tensors}


def f4(*values: float) -> Any:
    return np.array(values, "<f4")


VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
SLOT = "/.OPTIMIZER_SLOT/optimizer/m"
TF2: Variables = {
    "_CHECKPOINTABLE_OBJECT_GRAPH": b"\x0a\x00", "layer-1/kernel" + VALUE: f4(1, 2, 3, 4).reshape(2, 2),
    "layer-1/kernel" + SLOT + VALUE: f4(5, 6, 7, 8).reshape(2, 2), "layer-1/bias" + VALUE: f4(9, 10),
    "layer-1/table" + VALUE: b"words", "save_counter" + VALUE: np.array(3, "<i8"),
    "optimizer/iter" + VALUE: np.array(4, "<i8"), "keras_api/metrics/0/total" + VALUE: f4(1),
}  # fmt: skip
TF1: Variables = {
    "dense/kernel": f4(1, 2), "dense/kernel/Adam": f4(3, 4), "dense/kernel/Adam_1": f4(5, 6),
    "train/step_1/dense/kernel/RMSProp": f4(0, 0), "dense/kernel/ExponentialMovingAverage": f4(7, 8),
    "dense/Momentum": f4(9), "beta1_power": np.array(0.5, "<f4"), "global_step": np.array(7, "<i8"),
}  # fmt: skip


class TestReading:
    def test_objects_of_tensorflow_2(self, tmp_path: Path) -> None:
        index = write(tmp_path / "model", TF2)

        report = convert(index, tmp_path / "a.vqm", lossless=True)
        found = vqformat.load_file(tmp_path / "a.vqm")

        assert {name: array.tolist() for name, array in found.items()} == {
            "layer-1/bias": [9, 10], "layer-1/kernel": [[1, 2], [3, 4]]}  # fmt: skip
        assert report.notes == ["left out 'layer-1/table': text", "left out the state of training (4 tensors);"
                                " --include-optimizer keeps it"]  # fmt: skip

    def test_the_state_of_training_is_kept_exactly_on_request(self, tmp_path: Path) -> None:
        with open_source(write(tmp_path / "model", TF2), include_optimizer=True) as source:
            assert {tensor.name for tensor in source.tensors if tensor.is_exact} == {
                "layer-1/kernel/.OPTIMIZER_SLOT/optimizer/m", "save_counter", "optimizer/iter",
                "keras_api/metrics/0/total"}  # fmt: skip

    def test_names_of_tensorflow_1(self, tmp_path: Path) -> None:
        found = arrays_of(write(tmp_path / "model.ckpt-7", TF1))

        assert {name: array.tolist() for name, array in found.items()} == {
            "dense/Momentum": [9], "dense/kernel": [1, 2], "dense/kernel/ExponentialMovingAverage": [7, 8]}  # fmt: skip

    @pytest.mark.parametrize("part", ["model.ckpt-7", "model.ckpt-7.index", "model.ckpt-7.data-00000-of-00001",
                                      "model.ckpt-7.meta", ""])  # fmt: skip
    def test_any_file_of_a_checkpoint_stands_for_it(self, tmp_path: Path, part: str) -> None:
        write(tmp_path / "model.ckpt-7", {"w": f4(1)})
        (tmp_path / "model.ckpt-7.meta").write_bytes(b"\x0a\x00")

        assert list(arrays_of(tmp_path / part)) == ["w"]

    def test_the_latest_of_several(self, tmp_path: Path) -> None:
        for step in (5, 10):
            write(tmp_path / f"model-{step}", {"w": f4(step)})
        with pytest.raises(ConversionError, match="several TensorFlow checkpoints, 'model-10"):
            open_source(tmp_path)
        (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/old/place/model-10"\n'
                                             'all_model_checkpoint_paths: "model-5"\n')  # fmt: skip

        assert arrays_of(tmp_path)["w"].tolist() == [10]

    @pytest.mark.parametrize("part", ["", "saved_model.pb"])
    def test_a_saved_model(self, tmp_path: Path, part: str) -> None:
        write(tmp_path / "saved" / "variables" / "variables", TF2)
        (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")

        with open_source(tmp_path / "saved" / part) as source:
            assert source.format == "savedmodel"
            assert [tensor.name for tensor in source.tensors] == ["layer-1/bias", "layer-1/kernel"]
            assert source.notes[0] == "left out the graph of the SavedModel: its variables alone are kept"

    def test_several_files_of_data(self, tmp_path: Path) -> None:
        index = write(tmp_path / "a", {"a": f4(1), "b": f4(2), "c": f4(3)}, n_shards=2)

        assert [array.tolist() for array in arrays_of(index).values()] == [[1], [2], [3]]

    def test_a_variable_in_parts(self, tmp_path: Path) -> None:
        whole = np.arange(12, dtype="<f4").reshape(4, 3)
        first, second = whole[:1].tobytes(), whole[1:].tobytes()
        slices = [message(1, number(1, at) + number(2, size)) + message(1, b"") for at, size in ((0, 1), (1, 3))]
        # As EncodeTensorNameSlice writes them: 0; "w", an end; two axes; start and length, whole axes 0 and -1
        keys = [b"\0w\0\1\1\2\x80\x81\x80\x7f", b"\0w\0\1\1\2\x81\x83\x80\x7f"]
        entries = {b"": HEADER, b"w": entry(FLOAT, (4, 3), b"", slices=slices),
                   keys[0]: entry(FLOAT, (1, 3), first), keys[1]: entry(FLOAT, (3, 3), second, offset=12)}  # fmt: skip
        (tmp_path / "a.index").write_bytes(table(entries))
        (tmp_path / "a.data-00000-of-00001").write_bytes(first + second)

        assert (arrays_of(tmp_path / "a.index")["w"] == whole).all()

    @pytest.mark.parametrize(("number", "coded"), [
        (0, "80"), (63, "bf"), (64, "c040"), (-1, "7f"), (-64, "40"), (-65, "3fbf"), (8191, "dfff"), (8192, "e02000"),
        (1 << 20, "f0100000"), (1 << 62, "ffc0" + "4" + "0" * 15),
    ])  # fmt: skip
    def test_numbers_in_keys_of_parts(self, number: int, coded: str) -> None:
        assert part_key(b"w", (number,), (0,)).hex() == "00" + b"w".hex() + "0001" + "0101" + coded + "80"

    def test_bfloat16(self, tmp_path: Path) -> None:
        data = np.array([1.5, -2], ml_dtypes.bfloat16).tobytes()
        (tmp_path / "a.index").write_bytes(table({b"": HEADER, b"w": entry(BFLOAT16, (2,), data)}))
        (tmp_path / "a.data-00000-of-00001").write_bytes(data)

        assert arrays_of(tmp_path / "a.index")["w"].astype("f4").tolist() == [1.5, -2]

    @pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
    def test_extraction(self, tmp_path: Path, suffix: str) -> None:
        if suffix == ".safetensors":
            pytest.importorskip("safetensors")
        convert(write(tmp_path / "model", TF2), tmp_path / "a.vqm", lossless=True)

        extract(tmp_path / "a.vqm", tmp_path / f"b{suffix}")

        assert arrays_of(tmp_path / f"b{suffix}")["layer-1/kernel"].tolist() == [[1, 2], [3, 4]]


class TestParts:
    def test_the_check_value_of_the_crc(self) -> None:
        assert crc32c.crc32c(b"123456789") == 0xE3069283

    @pytest.mark.parametrize("n", [0, 1, 4095, 4096, 5121, 7 * 1024, 8 * 1024 + 3])
    def test_many_rows_are_joined(self, n: int) -> None:
        data = np.random.default_rng(n).bytes(n)

        assert crc32c.mask(crc32c.crc32c(data)) == crc(data)

    def test_snappy(self) -> None:
        # 3 bytes as they are, 6 from 3 before, 4 from 6 before, 4 from 1 before: copies may overlap what they write
        data = b"\x11\x08abc\x09\x03\x0e\x06\x00\x0f\x01\x00\x00\x00"

        assert sstable.unsnap(data) == b"abcabcabcabcaaaaa"

    @pytest.mark.parametrize("data", [
        b"", b"\x04\x0cabc", b"\x03\x0cabcd", b"\x03\x08ab", b"\x05\x08abc\x09\x04", b"\x05\x08abc\x09\x00",
        b"\x02\x08abc", b"\xff\xff\xff\xff\x0f\x00a", b"\x05\x08abc\x0a", b"\x04\xfc\xff\xff\xff\xffabcd",
    ])  # fmt: skip
    def test_damaged_snappy(self, data: bytes) -> None:
        with pytest.raises(ValueError, match=r"compressed block|cut short"):
            sstable.unsnap(data)

    def test_a_compressed_table(self, tmp_path: Path) -> None:
        def literals(data: bytes) -> bytes:
            return varint(len(data)) + b"".join(bytes([0, byte]) for byte in data)

        assert list(arrays_of(write(tmp_path / "a", TF1, snappy=literals))) == [
            "dense/Momentum", "dense/kernel", "dense/kernel/ExponentialMovingAverage"]  # fmt: skip


GOOD = f4(1, 2).tobytes()
W: dict[str, Any] = {"dtype": FLOAT, "shape": (2,), "data": GOOD}
REFUSED: list[tuple[dict[bytes, bytes], str]] = [
    ({b"w": entry(**{**W, "shape": (3,)})}, "needs 12 bytes"), ({b"w": entry(**W, offset=1)}, "cut short"),
    ({b"w": entry(**W, offset=-8)}, "cut short"), ({b"w": entry(**W, offset=(1 << 63) - 1)}, "cut short"),
    ({b"w": entry(**{**W, "shape": (1 << 60,)}, size=1 << 62)}, "must be below"),
    ({b"w": entry(**{**W, "shape": (1 << 50,)}, size=1 << 52)}, "cut short"),
    ({b"w": entry(**{**W, "shape": (-2,)})}, "shape"), ({b"w": entry(**W, shard=1)}, "file 1 of 1"),
    ({b"w": entry(**{**W, "dtype": 20})}, "dtype 20"), ({b"w": entry(**{**W, "shape": (1,) * 40})}, "shape"),
    ({b"w": entry(**W, check=1)}, "CRC-32C"), ({b"w": b"\x08"}, "cut short"), ({b"w": b"\x12\xff\x01"}, "bytes, and"),
    ({b"w": b"\x0b"}, "wire type 3"), ({b"w": b"\xff" * 11}, "longer than 64 bits"),
    ({b"w": b"\x12\x02\x10\x01"}, "should be a message"),
    ({b"\xff": entry(**W)}, "utf-8|UTF-8"), ({b"": HEADER + number(2, 1)}, "big-endian"),
    ({b"": b""}, "0 files of data"), ({b"": number(1, 1 << 40)}, "files of data"),
    ({b"": number(1, 2)}, "is not there"),
    ({b"w": entry(**W, slices=[message(1, number(1, 0) + number(2, 1))])}, "leave a gap"),
    ({b"w": entry(**W, slices=[message(1, b"")])}, "is missing"), ({b"w": entry(**W, slices=[b""])}, "0 axes"),
    ({b"w": entry(**W, slices=[message(1, number(1, 1) + number(2, 1 << 62))])}, "outside the shape"),
    ({b"w" * 20_000: entry(**W)}, "the limit"), ({b"w" * 2000: entry(**W)}, "at most 1024"),
]  # fmt: skip


class TestRefusals:
    def test_the_sibling_of_all_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.index").write_bytes(table({b"": HEADER, b"w": entry(**W)}))
        (tmp_path / "a.data-00000-of-00001").write_bytes(GOOD)

        assert arrays_of(tmp_path / "a")["w"].tolist() == [1, 2]

    @pytest.mark.parametrize(("entries", "complaint"), REFUSED, ids=lambda value: str(value)[:60])
    def test_damage_is_named(self, tmp_path: Path, entries: dict[bytes, bytes], complaint: str) -> None:
        (tmp_path / "a.index").write_bytes(table({b"": HEADER, b"w": entry(**W), **entries}))
        (tmp_path / "a.data-00000-of-00001").write_bytes(GOOD)

        tracemalloc.start()
        with pytest.raises(ConversionError, match=complaint) as caught:
            arrays_of(tmp_path / "a.index")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 2 << 20
        assert len(str(caught.value)) < 900 and ("TensorFlow" in str(caught.value) or "a.data" in str(caught.value))

    def test_each_truncation_and_each_flipped_byte_is_refused(self, tmp_path: Path) -> None:
        whole = table({b"": HEADER, b"w": entry(**W)}, n_blocks=1)
        (tmp_path / "a.data-00000-of-00001").write_bytes(GOOD)

        changed = [whole[:n] for n in range(0, len(whole), 5)]
        changed += [whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :] for i in range(len(whole))]
        for data in changed:
            (tmp_path / "a.index").write_bytes(data)
            with contextlib.suppress(ConversionError):
                assert arrays_of(tmp_path / "a.index")["w"].tolist() == [1, 2]  # padding, or the place of no metadata

    def test_keys_out_of_order(self, tmp_path: Path) -> None:
        content = block([(b"", HEADER), (b"w", entry(**W)), (b"v", entry(**W))])
        index = block([(b"w", varint(0) + varint(len(content)))], restart=1)
        data = b"".join(part + b"\0" + struct.pack("<I", crc(part + b"\0")) for part in (content, index))
        handles = varint(0) + varint(0) + varint(len(content) + 5) + varint(len(index))
        (tmp_path / "a.index").write_bytes(data + handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db"))

        with pytest.raises(ConversionError, match="out of order"):
            open_source(tmp_path / "a.index")

    def test_data_without_an_index(self, tmp_path: Path) -> None:
        write(tmp_path / "a", TF1).unlink()

        with pytest.raises(ConversionError, match=r"TensorFlow checkpoint, whose 'a\.index' is not beside it"):
            open_source(tmp_path / "a.data-00000-of-00001")

    def test_a_saved_model_without_variables(self, tmp_path: Path) -> None:
        (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")

        with pytest.raises(ConversionError, match=r"SavedModel without variables/variables\.index"):
            open_source(tmp_path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name")
    @pytest.mark.parametrize("name", ["a.index", "a.data-00000-of-00001"])
    @pytest.mark.parametrize("kind", ["pipe", "endless"])
    def test_files_that_never_end(self, tmp_path: Path, name: str, kind: str) -> None:
        write(tmp_path / "a", TF1)
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name) if kind == "pipe" else (tmp_path / name).symlink_to("/dev/zero")

        with pytest.raises(ConversionError):
            arrays_of(tmp_path / "a.index")

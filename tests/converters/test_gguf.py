"""GGUF files to .vqm: files that the gguf package wrote, and files to refuse."""

from __future__ import annotations

import io
import tracemalloc
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
from vqformat.converters import convert, open_source

gguf = pytest.importorskip("gguf", reason="not installed: pip install 'vqformat[gguf]'")
pytest.importorskip("vqformat.converters.gguf")  # now, since the tests measure memory

from gguf_files import Kind, text, u32, u64, write  # noqa: E402

RNG = np.random.default_rng(7)
W = RNG.standard_normal((6, 512)).astype(np.float32)
DEQUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0",
               "MXFP4", "NVFP4", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL",
               "IQ4_XS")  # fmt: skip


def arrays_of(path: Path) -> dict[str, Any]:
    with open_source(path) as source:
        return {tensor.name: tensor.load() for tensor in source.tensors}


class TestReading:
    def test_plain_tensors_are_kept_bit_for_bit(self, tmp_path: Path) -> None:
        tensors = {kind: (100 * W[:3, :5]).astype(kind) for kind in ("f4", "f2", "f8", "i1", "i2", "i4", "i8")}
        tensors["f4"][0, :3] = np.array([0x7F800001, 0xFFC12345, 0x80000000], "<u4").view("<f4")
        brain = W[:2, :3].astype(ml_dtypes.bfloat16)
        path = write(tmp_path / "a.gguf", {**tensors, "bf": brain.view(np.uint8)}, bf=Kind.BF16)

        report = convert(path, tmp_path / "a.vqm", lossless=True)

        found = vqformat.load_file(tmp_path / "a.vqm")
        assert list(found) == [*tensors, "bf"]
        for name, array in {**tensors, "bf": brain}.items():
            assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes()
            assert found[name].shape == array.shape
        assert report.notes == report.grown

    @pytest.mark.parametrize("name", DEQUANTIZED)
    def test_quantized_tensors_become_what_they_stand_for(self, tmp_path: Path, name: str) -> None:
        kind = Kind[name]
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        data = RNG.integers(0, 256, (6, 512 // block * nbytes), dtype=np.uint8)  # any bytes are some values
        path = write(tmp_path / "a.gguf", {"w": data, "b": W[0]}, w=kind)

        with open_source(path) as source:
            array = source.tensors[0].load()
            assert source.tensors[0].shape == (6, 512) and source.tensors[0].dtype == "f32"
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(gguf.GGUFReader(path).tensors[0].data, kind)
        assert array.tobytes() == expected.tobytes()

    def test_metadata_that_a_vqm_shows(self, tmp_path: Path) -> None:
        given = {"general.name": "näme", "n": -5, "is": True, "rate": 0.5, "tokens": ["a", "b"], "ids": [1, 2],
                 "vqm.source": "x", "split.count": 3}  # fmt: skip
        path = write(tmp_path / "a.gguf", {"w": W}, given)

        report = convert(path, tmp_path / "a.vqm")

        with vqformat.safe_open(tmp_path / "a.vqm") as file:
            shown = file.metadata()
        origin = shown.pop("vqm.source")
        assert shown == {"general.architecture": "llama", "general.name": "näme", "n": -5, "is": True,
                         "split.count": 3}  # fmt: skip
        assert origin["format"] == "gguf" and path.read_bytes().startswith(origin["header"])
        assert len(report.notes) == 1 + len(report.grown) and "one of 3 files" in report.notes[0]

    def test_another_alignment(self, tmp_path: Path) -> None:
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
        writer.add_custom_alignment(256)
        for name in ("a", "b"):
            writer.add_tensor(name, W[0, :3])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

        found = arrays_of(tmp_path / "a.gguf")

        assert (found["a"] == W[0, :3]).all() and (found["b"] == W[0, :3]).all()


def file_of(*, values: list[bytes] | None = None, n_values: int | None = None, n_tensors: int | None = None,
            name: bytes | None = None, dims: tuple[int, ...] = (4, 2), kind: int = 0, offset: int = 0, version: int = 3,
            n_axes: int | None = None, data: bytes = bytes(32), copies: int = 1) -> bytes:  # fmt: skip
    """A file of one tensor, float32 of shape (2, 4), in which anything can be wrong."""
    values = values or []
    tensor = (name or text("w")) + u32(len(dims) if n_axes is None else n_axes) + b"".join(map(u64, dims))
    tensor += u32(kind) + u64(offset)
    head = b"GGUF" + u32(version) + u64(copies if n_tensors is None else n_tensors)
    head += u64(len(values) if n_values is None else n_values) + b"".join(values) + tensor * copies
    return head + bytes(-len(head) % 32) + data


def nested(depth: int) -> bytes:
    """Arrays in arrays: type, count of one, and so on."""
    return text("k") + u32(9) + (u32(9) + u64(1)) * depth + u32(0) + u64(1) + b"\0"


class TestRefusals:
    """Each is harmless but for one thing."""

    @pytest.mark.parametrize("options", [
        {}, {"version": 2}, {"values": [text("k") + u32(8) + text("v")]}, {"values": [nested(15)]},
        {"dims": (), "data": bytes(4)}, {"dims": (0, 1 << 40)}, {"offset": 32, "data": bytes(64)},
        {"values": [text("k") + u32(8) + text(b"\xff")]}, {"values": [text(b"\xff") + u32(7) + b"\1"]},
    ], ids=str)  # fmt: skip
    def test_the_siblings_of_all_are_read(self, tmp_path: Path, options: dict[str, Any]) -> None:
        (tmp_path / "a.gguf").write_bytes(file_of(**options))

        assert list(arrays_of(tmp_path / "a.gguf")) == ["w"]

    @pytest.mark.parametrize(("options", "complaint"), [
        ({"version": 1}, "version 1"), ({"version": 4}, "version 4"), ({"version": 3 << 24}, "big-endian"),
        ({"n_values": 1 << 63}, "9223372036854775808 values"), ({"n_values": 1}, "cut short"),
        ({"n_tensors": (1 << 64) - 1}, "18446744073709551615 tensors"),
        ({"n_tensors": 2}, "overlap"), ({"name": text("")}, "is empty"),
        ({"values": [nested(100)]}, "nested too deep"), ({"values": [nested(16)]}, "nested too deep"),
        ({"values": [text("k") + u32(8) + u64(1 << 62)]}, "needs 4611686018427387904 bytes"),
        ({"values": [text("k") + u32(9) + u32(8) + u64(1 << 61)]}, "array of 2305843009213693952 values"),
        ({"values": [text("k") + u32(9) + u32(12) + u64(1 << 63)]}, "needs 73786976294838206464 bytes"),
        ({"values": [text("k") + u32(13) + u64(0)]}, "type 13"), ({"values": [u64(1 << 62)]}, "cut short"),
        ({"values": [2 * nested(0)], "n_values": 2}, "twice"),
        ({"values": [text("general.alignment") + u32(4) + u32(24)]}, "no power of two"),
        ({"values": [text("general.alignment") + u32(4) + u32(0)]}, "no power of two"),
        ({"values": [text("general.alignment") + u32(8) + text("32")]}, "no power of two"),
        ({"values": [text("general.alignment") + u32(4) + u32(1 << 31)]}, "no power of two"),
        ({"values": [text("general.alignment") + u32(7) + b"\1"]}, "no power of two"),
        ({"values": [text("k") + u32(9) + u32(8) + u64(2) + text("a") + u64(1 << 40)]}, "array of 2 strings"),
        ({"name": text(b"\xff")}, "no UTF-8"), ({"name": u64(1 << 62)}, "cut short"), ({"copies": 2}, "there twice"),
        ({"n_axes": 9}, "9 axes"), ({"n_axes": (1 << 32) - 1}, "4294967295 axes"),
        ({"dims": (1 << 63, 2)}, "it must be below"), ({"dims": (1 << 32, 1 << 32)}, "it must be below"),
        ({"dims": (1 << 62, 0)}, "it must be below"),
        ({"dims": (1 << 40,)}, "beyond the end"), ({"dims": (3, 3)}, "beyond the end"),
        ({"kind": 4}, "type 4"), ({"kind": 9}, "no multiple of 32"), ({"kind": 1 << 31}, "type 2147483648"),
        ({"kind": 2}, "no multiple of 32"), ({"kind": 2, "dims": ()}, "no multiple of 32"),
        ({"offset": 4, "dims": (1,)}, "not aligned"), ({"offset": 32}, "beyond the end"),
        ({"offset": (1 << 64) - 32}, "beyond the end"), ({"data": bytes(31)}, "beyond the end"),
    ], ids=lambda value: str(value)[:60])  # fmt: skip
    def test_damage_is_named(self, tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
        (tmp_path / "a.gguf").write_bytes(file_of(**options))

        tracemalloc.start()
        with pytest.raises(VqmError, match=complaint):
            open_source(tmp_path / "a.gguf")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 1 << 20

    def test_many_tensors_in_the_same_bytes(self, tmp_path: Path) -> None:
        infos = [text(f"t{i}") + u32(1) + u64(1 << 16) + u32(0) + u64(32 * i) for i in range(300)]
        head = b"GGUF" + u32(3) + u64(300) + u64(0) + b"".join(infos)
        (tmp_path / "a.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes((4 << 16) + 32 * 300))

        with pytest.raises(ConversionError, match=r"tensor 't1' lies at 32, and tensor 't0' up to 262144"):
            open_source(tmp_path / "a.gguf")

    def test_each_truncation_is_refused(self, tmp_path: Path) -> None:
        data = write(tmp_path / "a.gguf", {"w": W[:1, :8]}, {"general.name": "x", "tokens": ["a", "b"]}).read_bytes()
        arrays_of(tmp_path / "a.gguf")

        for n in range(4, len(data)):
            (tmp_path / "b.gguf").write_bytes(data[:n])
            with pytest.raises(ConversionError):
                open_source(tmp_path / "b.gguf")

    def test_a_file_that_becomes_shorter(self, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(file_of())

        with open_source(tmp_path / "a.gguf") as source:
            (tmp_path / "a.gguf").write_bytes(file_of()[:-1])
            with pytest.raises(ConversionError, match="became shorter"):
                source.tensors[0].load()


def seed() -> bytes:
    quantized = text("q") + u32(1) + u64(64) + u32(8) + u64(32)
    head = b"GGUF" + u32(3) + u64(2) + u64(4) + text("general.alignment") + u32(4) + u32(32)
    head += text("name") + u32(8) + text("x") + text("l") + u32(9) + u32(8) + u64(2) + text("a") + text("b") + nested(2)
    head += text("w") + u32(2) + u64(4) + u64(2) + u32(0) + u64(0) + quantized
    return head + bytes(-len(head) % 32) + bytes(32) + bytes(range(68))


def mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """Files cut short, and with bytes replaced, put in or taken out."""

    def change(steps: list[tuple[str, int, bytes]]) -> bytes:
        changed = data
        for kind, at, new in steps:
            at %= len(changed) or 1
            rest = {"cut": b"", "replace": new + changed[at + len(new) :], "insert": new + changed[at:],
                    "remove": changed[at + len(new) :]}[kind]  # fmt: skip
            changed = changed[:at] + rest
        return changed

    kinds = st.sampled_from(["replace", "replace", "replace", "insert", "remove", "cut"])
    bytes_ = st.binary(min_size=1, max_size=4) | st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f" + bytes(7)])
    return st.lists(st.tuples(kinds, st.integers(0, len(data)), bytes_), max_size=4).map(change)


class TestDamage:
    def test_the_seed_is_whole(self, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(seed())

        assert [array.shape for array in arrays_of(tmp_path / "a.gguf").values()] == [(2, 4), (64,)]

    @examples(300, may_share_fixtures=True)
    @given(mutations(seed()[4:]))
    def test_any_change_converts_or_is_refused(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "a.gguf").write_bytes(b"GGUF" + data)
        tracemalloc.start()
        try:
            convert(tmp_path / "a.gguf", io.BytesIO(), lossless=True)
        except VqmError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 32 << 20

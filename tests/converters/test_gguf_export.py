"""GGUF files from a .vqm: byte for byte the one that it came from, or one with the same metadata."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import vqformat
from vqformat import ConversionError, VqmError
from vqformat.converters import convert, extract

gguf = pytest.importorskip("gguf", reason="not installed: pip install 'vqformat[gguf]'")

from gguf_files import Kind, blocks_of, text, u32, u64, write  # noqa: E402

W = np.random.default_rng(5).standard_normal((4, 256)).astype(np.float32)
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}


def scalars(kind: int) -> st.SearchStrategy[bytes]:
    """Values of a type of metadata: any bits, and strings that need not be UTF-8."""
    if kind == 8:
        return (st.text(max_size=9).map(str.encode) | st.binary(max_size=9)).map(text)
    if kind == 7:
        return st.sampled_from([b"\0", b"\1"])
    size = struct.calcsize(NUMBERS[kind])
    return st.binary(min_size=size, max_size=size)


KINDS = st.sampled_from([*NUMBERS, 7, 8])


@st.composite
def arrays(draw: st.DrawFn, depth: int = 3) -> bytes:
    """Type, count and values of an array, perhaps one of arrays."""
    if depth and draw(st.booleans()):
        items = draw(st.lists(arrays(depth - 1), max_size=3))
        return u32(9) + u64(len(items)) + b"".join(items)
    kind = draw(KINDS)
    items = draw(st.lists(scalars(kind), max_size=4))
    return u32(kind) + u64(len(items)) + b"".join(items)


VALUES = arrays().map(lambda data: u32(9) + data) | KINDS.flatmap(
    lambda kind: scalars(kind).map(lambda data: u32(kind) + data)
)
KEYS = (st.text(min_size=1, max_size=12).map(str.encode) | st.binary(min_size=1, max_size=4)).filter(
    lambda key: key != b"general.alignment"
)
TYPES = ("F32", "F16", "BF16", "I8", "I32", "F64", "Q4_0", "Q4_1", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "MXFP4", "TQ1_0")


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A whole file: any metadata, types and alignment, data in any order, bytes between them that need not be zero."""
    alignment = draw(st.sampled_from([1, 8, 32, 64]))
    values = [text(key) + value for key, value in draw(st.dictionaries(KEYS, VALUES, max_size=6)).items()]
    if alignment != 32 or draw(st.booleans()):
        values.insert(draw(st.integers(0, len(values))), text("general.alignment") + u32(4) + u32(alignment))
    kinds = draw(st.lists(st.sampled_from(TYPES), max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    data, spans = b"", {}
    for i in draw(st.permutations(range(len(kinds)))):
        block, nbytes = gguf.GGML_QUANT_SIZES[Kind[kinds[i]]]
        shape = (block * draw(st.integers(1, 3)), draw(st.integers(0, 3)))
        size = shape[0] * shape[1] // block * nbytes
        data += bytes(-len(data) % alignment)
        if draw(st.integers(0, 3)) == 0:
            data += rng.integers(0, 256, alignment, dtype=np.uint8).tobytes()
        spans[i] = shape, len(data)
        data += rng.integers(0, 120, size, dtype=np.uint8).tobytes()  # no scale is infinite
    infos = [text(f"t.{i}é") + u32(2) + u64(spans[i][0][0]) + u64(spans[i][0][1]) + u32(Kind[kind]) + u64(spans[i][1])
             for i, kind in enumerate(kinds)]  # fmt: skip
    head = b"GGUF" + u32(draw(st.sampled_from([2, 3]))) + u64(len(kinds)) + u64(len(values))
    head += b"".join(values) + b"".join(infos)
    head += draw(st.sampled_from([b"\0", b"\0", b"\x5a"])) * (-len(head) % alignment)
    return head + data + draw(st.sampled_from([b"", bytes(-len(data) % alignment), bytes(100), b"end"]))


class TestByteForByte:
    @examples(40, may_share_fixtures=True)
    @given(files())
    def test_any_file_comes_back(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "a.gguf").write_bytes(data)
        convert(tmp_path / "a.gguf", tmp_path / "a.vqm", lossless=True, overwrite=True)

        notes = extract(tmp_path / "a.vqm", tmp_path / "b.gguf", overwrite=True)

        assert (tmp_path / "b.gguf").read_bytes() == data and notes == []

    def test_a_vocabulary_beyond_what_metadata_holds(self, tmp_path: Path) -> None:
        tokens = [f"token {i} of a large vocabulary" for i in range(300_000)]
        path = write(tmp_path / "a.gguf", {"w": W, "gguf.header": W[0]}, {"tokenizer.ggml.tokens": tokens, "n": 5})

        report = convert(path, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.gguf")

        assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()
        assert len(report.notes) == 1 and "'gguf.header_'" in report.notes[0]

    def test_plain_tensors_that_were_coded_with_loss(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.gguf", {"w": W, "h": W.astype(np.float16)}, {"general.file_type": 1})
        convert(path, tmp_path / "a.vqm", bits=4)

        assert extract(tmp_path / "a.vqm", tmp_path / "b.gguf") == []

        back = gguf.GGUFReader(tmp_path / "b.gguf")
        assert [tensor.tensor_type.name for tensor in back.tensors] == ["F32", "F16"]
        assert (tmp_path / "b.gguf").stat().st_size == path.stat().st_size

    def test_many_bytes_that_belong_to_no_tensor(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.gguf", {"w": W})
        with path.open("ab") as stream:
            stream.write(b"x" * (17 << 20))

        report = convert(path, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.gguf")

        assert "17,825,810 bytes that belong to no tensor" in report.notes[0]  # 18 of them pad the header
        assert (gguf.GGUFReader(tmp_path / "b.gguf").tensors[0].data == W).all()


class TestChanged:
    def lossy(self, tmp_path: Path, **options: Any) -> tuple[Path, list[str]]:
        metadata = {"general.file_type": 2, "tokenizer.ggml.tokens": ["a", "b"], "llama.rope.freq_base": 1.5}
        path = write(tmp_path / "a.gguf", {"w": blocks_of("Q4_0", 64, 256), "n": W[0], "k": blocks_of("Q6_K", 64, 256)},
                     metadata, w=Kind["Q4_0"], k=Kind["Q6_K"])  # fmt: skip
        convert(path, tmp_path / "a.vqm", **options)
        return tmp_path / "b.gguf", extract(tmp_path / "a.vqm", tmp_path / "b.gguf")

    def test_values_in_place_of_blocks(self, tmp_path: Path) -> None:
        path, notes = self.lossy(tmp_path, bits=3)

        back = gguf.GGUFReader(path)
        found = vqformat.load_file(tmp_path / "a.vqm")
        assert [(t.name, t.tensor_type.name) for t in back.tensors] == [("w", "F32"), ("n", "F32"), ("k", "F32")]
        assert all((tensor.data == found[tensor.name]).all() for tensor in back.tensors)
        assert back.get_field("general.file_type").contents() == 0
        assert back.get_field("tokenizer.ggml.tokens").contents() == ["a", "b"]
        assert back.get_field("llama.rope.freq_base").contents() == 1.5
        assert len(notes) == 1 and "2 tensors that were Q4_0, Q6_K are F32 now" in notes[0]

    def test_blocks_stay_where_only_others_were_coded(self, tmp_path: Path) -> None:
        path, notes = self.lossy(tmp_path, recipe={"w": "uniform:bits=3"})

        back = gguf.GGUFReader(path)
        assert [t.tensor_type.name for t in back.tensors] == ["F32", "F32", "Q6_K"]
        assert (back.tensors[2].data == blocks_of("Q6_K", 64, 256)).all()
        assert "1 tensors that were Q4_0" in notes[0]

    def test_some_tensors(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.gguf", {"w": blocks_of("Q4_0", 4, 256), "n": W}, w=Kind["Q4_0"])
        convert(path, tmp_path / "a.vqm")

        notes = extract(tmp_path / "a.vqm", tmp_path / "b.gguf", names=["w"])

        back = gguf.GGUFReader(tmp_path / "b.gguf")
        assert [tensor.name for tensor in back.tensors] == ["w"]
        assert (back.tensors[0].data == blocks_of("Q4_0", 4, 256)).all()
        assert "1 tensors of the model are left out" in notes[0]

    def test_metadata_that_was_added(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.gguf", {"w": W})
        convert(path, tmp_path / "a.vqm", metadata={"more": "text"}, lossless=True)

        notes = extract(tmp_path / "a.vqm", tmp_path / "b.gguf")

        assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()
        assert len(notes) == 1 and "left out 'more'" in notes[0]


class TestRefusals:
    def test_another_source(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", w=W)
        convert(tmp_path / "a.npz", tmp_path / "a.vqm")

        with pytest.raises(ConversionError, match="came from 'npz', not GGUF"):
            extract(tmp_path / "a.vqm", tmp_path / "b.gguf")

    @pytest.mark.parametrize(("change", "complaint"), [
        ({"header": None}, "no header"), ({"header": b"GGUF"}, "cut short"), ({"header": "w"}, "no header"),
        ({"header": b"GGUF" + u32(3) + u64(0) + u64(0)}, "is no tensor of the GGUF file"),
        ({"gaps": [[0, b"xy"]]}, "damaged"), ({"more": b"x"}, "ends after"),
        ({"shape": (5, 256)}, r"has shape \(4, 256\)"), ({"dtype": "u1"}, "dtype u8, which GGUF cannot hold"),
    ], ids=str)  # fmt: skip
    def test_a_vqm_that_contradicts_itself(self, tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
        path = write(tmp_path / "a.gguf", {"w": np.zeros(change.pop("shape", W.shape), np.float32)})
        convert(path, tmp_path / "a.vqm", lossless=True)
        with vqformat.safe_open(tmp_path / "a.vqm") as file:
            origin = file.metadata()["vqm.source"]
        origin["header"] += change.pop("more", b"")
        origin |= change
        tensors = {"w": W.astype(change.pop("dtype", "f4"))}
        vqformat.save_file(tensors, tmp_path / "b.vqm", {"vqm.source": origin}, lossless=True)

        with pytest.raises(ConversionError, match=complaint):
            extract(tmp_path / "b.vqm", tmp_path / "b.gguf")

        assert not (tmp_path / "b.gguf").exists()

    @pytest.mark.parametrize("change", [
        {}, {"nbytes": -1}, {"nbytes": 1 << 60}, {"nbytes": None}, {"gaps": 5}, {"gaps": [[1]]},
        {"gaps": [[1 << 40, b"xy"]]}, {"nbytes": 1 << 40, "gaps": [[(1 << 40) - 2, b"xy"]]}, {"ggml_types": 5},
        {"ggml_types": [5, ["w", "Q4_0", [-256]], ["w", "Q9", [4, 256]], ["w", "F32", [4, 256]], ["w", "Q4_K", []]]},
        {"ggml_types": [["w", "Q4_0", [4, 256]]]},
    ], ids=str)  # fmt: skip
    def test_fields_that_say_nothing_are_passed_over(self, tmp_path: Path, change: dict[str, Any]) -> None:
        path = write(tmp_path / "a.gguf", {"w": W})
        convert(path, tmp_path / "a.vqm", lossless=True)
        with vqformat.safe_open(tmp_path / "a.vqm") as file:
            origin = file.metadata()["vqm.source"] | change
        vqformat.save_file({"w": W}, tmp_path / "b.vqm", {"vqm.source": origin}, lossless=True)

        extract(tmp_path / "b.vqm", tmp_path / "b.gguf")

        assert (gguf.GGUFReader(tmp_path / "b.gguf").tensors[0].data == W).all()

    def test_another_codebook(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.gguf", {"w": blocks_of("MXFP4", 4, 256)}, w=Kind["MXFP4"])
        out = io.BytesIO()
        convert(path, out, lossless=True)
        with vqformat.safe_open(io.BytesIO(out.getvalue())) as file:
            metadata = file.metadata()
        metadata["vqm.source"]["ggml_types"][0][1] = "IQ4_NL"  # the same shape of blocks, but not the same stage
        vqformat.save_file(vqformat.load_file(io.BytesIO(out.getvalue())), tmp_path / "b.vqm", metadata, lossless=True)

        extract(tmp_path / "b.vqm", tmp_path / "b.gguf")

        assert gguf.GGUFReader(tmp_path / "b.gguf").tensors[0].tensor_type.name == "F32"

    @examples(40, may_share_fixtures=True)
    @given(st.data())
    def test_any_change_of_the_header_extracts_or_is_refused(self, tmp_path: Path, data: st.DataObject) -> None:
        path = write(tmp_path / "a.gguf", {"w": W, "v": W[0]}, {"l": ["a", "b"], "general.file_type": 2})
        convert(path, tmp_path / "a.vqm", lossless=True, overwrite=True)
        with vqformat.safe_open(tmp_path / "a.vqm") as file:
            origin = file.metadata()["vqm.source"]
        header = bytearray(origin["header"])
        at = data.draw(st.integers(0, len(header) - 1))
        new = data.draw(st.binary(min_size=1, max_size=4) | st.just(b"\xff" * 8))
        header[at : at + len(new)] = new
        origin["header"] = bytes(header)
        vqformat.save_file({"w": W, "v": W[0]}, tmp_path / "b.vqm", {"vqm.source": origin}, lossless=True)

        try:
            extract(tmp_path / "b.vqm", tmp_path / "b.gguf", overwrite=True)
        except VqmError:
            return
        assert (tmp_path / "b.gguf").stat().st_size < 1 << 16

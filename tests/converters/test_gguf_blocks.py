"""Quantized GGUF tensors in a .vqm: the values to the bit, the blocks to the byte, never more than in the source."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqformat
from vqformat.converters import convert, extract, open_source
from vqformat.converters.source import growth_notes
from vqformat.encode.report import Report

gguf = pytest.importorskip("gguf", reason="not installed: pip install 'vqformat[gguf]'")

from gguf_files import Kind, blocks_of, write  # noqa: E402

from vqformat.converters.gguf_blocks import encode_blocks  # noqa: E402
from vqformat.converters.gguf_forms import FORMS  # noqa: E402

RNG = np.random.default_rng(3)
AS_VALUES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0")
AS_BLOCKS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M",
             "IQ4_XS")  # fmt: skip


def bits(array: np.ndarray) -> Any:
    """Values with the sign of zero; NaN is not equal to itself."""
    return np.ascontiguousarray(array).view(np.uint32).tolist()


def dequantized(data: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.dequantize(data, Kind[kind]))


def round_trip(path: Path) -> Path:
    """The file extracted from what the file at the path was converted to without loss."""
    convert(path, path.with_suffix(".vqm"), lossless=True, overwrite=True)
    extract(path.with_suffix(".vqm"), path.with_name("back.gguf"), overwrite=True)
    return path.with_name("back.gguf")


class TestValues:
    @pytest.mark.parametrize("kind", AS_VALUES)
    @pytest.mark.parametrize("shape", [(6, 512), (256,), (2, 3, 256), (1, 768)], ids=str)
    def test_stages_give_the_values_of_gguf(self, tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
        data = blocks_of(kind, int(np.prod(shape[:-1])), shape[-1])
        data = data.reshape(*shape[:-1], -1)
        path = write(tmp_path / "a.gguf", {"w": data}, w=Kind[kind])

        report = convert(path, tmp_path / "a.vqm", lossless=True)

        found = vqformat.load_file(tmp_path / "a.vqm")["w"]
        assert found.dtype == np.float32 and found.shape == shape
        assert bits(found) == bits(dequantized(data, kind).reshape(shape))
        assert report.tensors[0].method.startswith(f"{kind} as ") and report.tensors[0].sqnr_db == float("inf")
        assert round_trip(path).read_bytes() == path.read_bytes()

    @pytest.mark.parametrize("kind", AS_VALUES)
    def test_random_codes_and_scales_of_either_sign(self, tmp_path: Path, kind: str) -> None:
        form = FORMS[kind]
        scales, codes = form.split(RNG.integers(0, 256, (96, form.nbytes), dtype=np.uint8))
        if form.scale_dtype == "f16" and kind != "NVFP4":
            scales = [RNG.standard_normal(s.shape).astype("<f2").view("<u2") for s in scales]
            scales[0][:4] = [[0], [0x8000], [1], [0x7BFF]]  # 0, -0, the smallest number, the largest
        elif kind == "MXFP4":
            scales = [np.minimum(scales[0], 0x7A80)]  # larger ones leave the range of float32
        data = form.join((scales, codes)).reshape(6, -1)
        path = write(tmp_path / "a.gguf", {"w": data}, w=Kind[kind])

        convert(path, tmp_path / "a.vqm", lossless=True)

        found = vqformat.load_file(tmp_path / "a.vqm")["w"]
        assert found.dtype == np.float32
        assert bits(found) == bits(dequantized(data, kind))
        assert round_trip(path).read_bytes() == path.read_bytes()

    def test_all_scales_of_mxfp4(self) -> None:
        data = RNG.integers(0, 256, (252, 17), dtype=np.uint8)
        data[:, 0] = np.arange(252)

        encoded = encode_blocks("w", "MXFP4", (252, 32), data)

        assert encoded.record.dtype == "f32"

    @pytest.mark.parametrize(("kind", "at", "value"), [
        ("Q4_0", 0, 0x7C00), ("Q4_0", 0, 0x7E01), ("Q8_0", 0, 0xFC00), ("Q4_1", 2, 0x7C00), ("Q5_1", 2, 0xFFFF),
        ("IQ4_NL", 0, 0x7C01), ("TQ2_0", 64, 0x7C00), ("MXFP4", 0, 0xFFFE),
    ])  # fmt: skip
    def test_a_scale_that_no_stage_can_have(self, tmp_path: Path, kind: str, at: int, value: int) -> None:
        data = blocks_of(kind, 4, 512)
        data.reshape(-1, FORMS[kind].nbytes)[5, at : at + 2] = [value & 255, value >> 8]
        path = write(tmp_path / "a.gguf", {"w": data}, w=Kind[kind])

        report = convert(path, tmp_path / "a.vqm", lossless=True)

        assert vqformat.load_file(tmp_path / "a.vqm")["w"].dtype == np.uint8
        assert any("as u8 tensors of their blocks" in note for note in report.notes)
        assert round_trip(path).read_bytes() == path.read_bytes()

    @pytest.mark.parametrize(("kind", "at", "byte"), [("TQ1_0", 3, 1), ("NVFP4", 1, 0x7F), ("NVFP4", 2, 0x85)])
    def test_bytes_that_mean_the_same_as_others(self, tmp_path: Path, kind: str, at: int, byte: int) -> None:
        data = blocks_of(kind, 4, 512)
        data.reshape(-1, FORMS[kind].nbytes)[2, at] = byte
        path = write(tmp_path / "a.gguf", {"w": data}, w=Kind[kind])

        assert round_trip(path).read_bytes() == path.read_bytes()
        assert vqformat.load_file(tmp_path / "a.vqm")["w"].dtype == np.uint8


class TestBlocks:
    @pytest.mark.parametrize("kind", AS_BLOCKS)
    def test_blocks_by_their_bytes(self, tmp_path: Path, kind: str) -> None:
        block, nbytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
        data = RNG.integers(0, 256, (6, 512 // block * nbytes), dtype=np.uint8)
        path = write(tmp_path / "a.gguf", {"w": data}, w=Kind[kind])

        report = convert(path, tmp_path / "a.vqm", lossless=True)

        with vqformat.safe_open(tmp_path / "a.vqm") as file:
            assert (file["w"] == data.reshape(-1, nbytes).T).all()
            assert file.metadata()["vqm.source"]["ggml_types"] == [["w", kind, [6, 512]]]
        assert report.source_nbytes == data.size
        assert round_trip(path).read_bytes() == path.read_bytes()

    @pytest.mark.parametrize("kind", ["Q4_K", "Q4_0"])
    def test_another_format_gets_the_values(self, tmp_path: Path, kind: str) -> None:
        data = blocks_of(kind, 6, 512)
        convert(write(tmp_path / "a.gguf", {"w": data}, w=Kind[kind]), tmp_path / "a.vqm")

        extract(tmp_path / "a.vqm", tmp_path / "a.npz")

        assert bits(np.load(tmp_path / "a.npz")["w"]) == bits(dequantized(data, kind))

    def test_a_type_of_which_gguf_knows_the_size_only(self, tmp_path: Path) -> None:
        data = RNG.integers(0, 256, (4, 80), dtype=np.uint8)
        path = write(tmp_path / "a.gguf", {"w": data, "b": np.ones(4, np.float32)}, w=Kind["Q8_1"])

        assert round_trip(path).read_bytes() == path.read_bytes()
        convert(path, tmp_path / "b.vqm", preset="fast")
        assert (vqformat.load_file(tmp_path / "b.vqm")["w"] == data.reshape(-1, 40).T).all()

    def test_a_tensor_without_elements(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.gguf", {"w": np.zeros((0, 144), np.uint8), "v": np.zeros((0, 18), np.uint8)},
                     w=Kind["Q4_K"], v=Kind["Q4_0"])  # fmt: skip

        assert round_trip(path).read_bytes() == path.read_bytes()
        assert vqformat.load_file(tmp_path / "a.vqm")["w"].shape == (0, 256)


class TestSizes:
    @pytest.mark.parametrize("kind", AS_VALUES + AS_BLOCKS)
    @pytest.mark.parametrize("options", [{"lossless": True}, {}], ids=["lossless", "default"])
    def test_no_file_grows(self, tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
        data = blocks_of(kind, 512, 1024)
        path = write(tmp_path / "a.gguf", {"w": data}, w=Kind[kind])

        report = convert(path, tmp_path / "a.vqm", **options)

        # Those that gguf cannot make are random: nothing of them gets smaller, and the file has tables of its own
        assert report.file_nbytes <= path.stat().st_size + (640 if kind in AS_BLOCKS else 0)
        assert report.source_nbytes == data.size
        assert bool(report.grown) == (report.file_nbytes > path.stat().st_size)

    def test_a_stage_takes_little_more_than_the_entropy(self, tmp_path: Path) -> None:
        data = blocks_of("Q4_0", 512, 1024)
        (scales,), codes = FORMS["Q4_0"].split(data.reshape(-1, 18))
        shares = np.bincount(codes.reshape(-1)) / codes.size
        entropy = -float((shares * np.log2(shares)).sum()) * codes.size / 8

        report = convert(write(tmp_path / "a.gguf", {"w": data}, w=Kind["Q4_0"]), tmp_path / "a.vqm", lossless=True)

        assert report.tensors[0].stored_nbytes < 1.01 * entropy + scales.size * 2

    @pytest.mark.parametrize(("nbytes", "notes"), [
        (5000, []), (5001, ["the .vqm is larger than the source file: 5,001 bytes, not 5,000"]),
    ])  # fmt: skip
    def test_a_file_that_grows_is_named(self, nbytes: int, notes: list[str]) -> None:
        report = Report(source_nbytes=4000, file_nbytes=nbytes, source_file_nbytes=5000)

        assert growth_notes(report, "gguf") == notes


class TestAnew:
    @pytest.mark.parametrize("options", [
        {"ratio": 1.5}, {"bits": 3}, {"preset": "small"}, {"preset": "fast"}, {"recipe": {"w": "uniform:bits=3"}},
        {"recipe": "uniform:bits=3"},
    ], ids=str)  # fmt: skip
    @pytest.mark.parametrize("kind", ["Q4_0", "Q6_K"])
    def test_what_is_asked_for_is_done_on_the_values(self, tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
        data = blocks_of(kind, 64, 512)
        path = write(tmp_path / "a.gguf", {"w": data}, w=Kind[kind])

        report = convert(path, tmp_path / "a.vqm", **options)

        found = vqformat.load_file(tmp_path / "a.vqm")["w"]
        values = dequantized(data, kind)
        assert found.dtype == np.float32 and found.shape == (64, 512)
        assert 0 < np.abs(found - values).max() < np.abs(values).max()
        assert any(f"1 tensor ({kind}) came quantized, and are coded anew" in note for note in report.notes)
        assert report.source_nbytes == data.size

    def test_a_method_for_one_tensor_leaves_the_others(self, tmp_path: Path) -> None:
        data = blocks_of("Q4_0", 64, 512)
        path = write(tmp_path / "a.gguf", {"v": data, "w": data}, v=Kind["Q4_0"], w=Kind["Q4_0"])

        convert(path, tmp_path / "a.vqm", recipe={"v": "uniform:bits=2"})

        found = vqformat.load_file(tmp_path / "a.vqm")
        assert bits(found["w"]) == bits(dequantized(data, "Q4_0")) != bits(found["v"])

    @pytest.mark.parametrize("kind", ["Q4_0", "Q6_K"])
    def test_a_vqm_of_blocks_is_like_the_file(self, tmp_path: Path, kind: str) -> None:
        data = blocks_of(kind, 64, 512)
        path = write(tmp_path / "a.gguf", {"w": data}, w=Kind[kind])
        convert(path, tmp_path / "a.vqm")

        convert(tmp_path / "a.vqm", tmp_path / "same.vqm", lossless=True)
        convert(tmp_path / "a.vqm", tmp_path / "b.vqm", ratio=2)
        extract(tmp_path / "same.vqm", tmp_path / "b.gguf")

        assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()
        assert vqformat.load_file(tmp_path / "b.vqm")["w"].dtype == np.float32
        assert (tmp_path / "b.vqm").stat().st_size <= data.size / 2

    def test_a_ratio_is_that_to_the_source(self, tmp_path: Path) -> None:
        data = blocks_of("Q8_0", 256, 512)
        path = write(tmp_path / "a.gguf", {"w": data}, w=Kind["Q8_0"])

        report = convert(path, tmp_path / "a.vqm", ratio=2)

        assert report.file_nbytes <= data.size / 2 < 1.03 * report.file_nbytes
        assert report.ratio == pytest.approx(2, rel=0.03)

    def test_open_source_gives_values(self, tmp_path: Path) -> None:
        data = blocks_of("Q6_K", 4, 512)
        path = write(tmp_path / "a.gguf", {"w": data}, w=Kind["Q6_K"])

        with open_source(path) as source:
            (tensor,) = source.tensors
            assert (tensor.dtype, tensor.shape, tensor.source_nbytes) == ("f32", (4, 512), data.size)
            assert bits(tensor.load()) == bits(dequantized(data, "Q6_K"))


def test_without_the_package_blocks_are_read_as_they_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = blocks_of("Q6_K", 4, 512)
    convert(write(tmp_path / "a.gguf", {"w": data}, w=Kind["Q6_K"]), tmp_path / "a.vqm")
    monkeypatch.setitem(sys.modules, "vqformat.converters.gguf_stored", None)

    with open_source(tmp_path / "a.vqm") as source:
        assert (source.tensors[0].load() == data.reshape(-1, 210).T).all()
        assert len(source.notes) == 1 and "read as they are stored" in source.notes[0]

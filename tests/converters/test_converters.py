"""Checkpoints of other formats to .vqm and back: files that their own libraries wrote, and files to refuse."""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoints import (
    arrays_of,
    bits_equal,
    every_kind,
    save_torch,
    torch_equal,
    write_legacy,
    write_npy,
    write_npz,
    write_safetensors,
    write_zip,
)
from conftest import forget

import vqformat
from vqformat.converters import convert, extract, open_source
from vqformat.errors import ConversionError, TensorNotFoundError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")
st = pytest.importorskip("safetensors.torch", reason="not installed: pip install 'vqformat[safetensors]'")


def torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("ts/data.pkl", "ts/constants.pkl", "ts/code/__torch__.py"):
            archive.writestr(name, b"")


def truncated(writer: Any, keep: float) -> Any:
    def write(path: Path) -> None:
        writer(path)
        data = path.read_bytes()
        path.write_bytes(data[: max(1, int(len(data) * keep))])

    return write


NO_CHECKPOINTS = {
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "text": (lambda p: p.write_text("weights: 1\n"), "text file"),
    "utf-8 text": (lambda p: p.write_text("é" * 300), "text file"),
    "json": (lambda p: p.write_text('{"a": 1}'), "weight_map"),
    "html": (lambda p: p.write_text("<!DOCTYPE html>"), "web page"),
    "lfs pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "folder": (lambda p: p.mkdir(), "folder"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x")), "decompress it first"),
    "hdf5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5"),
    "gguf": (lambda p: p.write_bytes(b"GGUF" + bytes(99)), "GGUF"),
    "bytes": (lambda p: p.write_bytes(bytes(range(200, 256))), "begin with c8 c9"),
    "zeros": (lambda p: p.write_bytes(bytes(1000)), "begin with 00 00"),
    "other zip": (lambda p: zipfile.ZipFile(p, "w").close(), "without members"),
    "torchscript": (torchscript, "TorchScript archive that cannot be read: its pickle is damaged at its first byte"),
    "no tensors": (lambda p: torch.save({"epoch": 3}, p), "without tensors"),
    "no arrays": (lambda p: np.savez(p.open("wb"), a=np.array(["x"])), "without numeric arrays"),
    "bf16 in npz": (lambda p: np.savez(p.open("wb"), a=np.ones(3, ml_dtypes.bfloat16)), "bytes without a meaning"),
    "complex32": (lambda p: torch.save({"w": torch.empty(2, dtype=torch.complex32)}, p), "complex32"),
    "zip 3/4": (truncated(write_zip, 0.75), "damaged or cut short"),
    "zip 99 %": (truncated(write_zip, 0.99), "damaged or cut short"),
    "legacy 0.3 %": (truncated(write_legacy, 0.003), "cut short"),
    "legacy 3 %": (truncated(write_legacy, 0.03), "damaged or cut short"),
    "legacy 3/4": (truncated(write_legacy, 0.75), "damaged or cut short"),
    "safetensors 1 %": (truncated(write_safetensors, 0.01), "damaged or cut short"),
    "safetensors 3/4": (truncated(write_safetensors, 0.75), "damaged or cut short"),
    "npz 3/4": (truncated(write_npz, 0.75), "damaged or cut short"),
    "npy 1/2 %": (truncated(write_npy, 0.005), "damaged"),
    "npy 3/4": (truncated(write_npy, 0.75), "needs 8000 bytes"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:ComplexHalf.*:UserWarning")
@pytest.mark.parametrize(("make", "message"), NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused_in_one_clear_error(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "x.pt")

    with pytest.raises(ConversionError, match=message) as caught:
        convert(tmp_path / "x.pt", tmp_path / "a.vqm")

    assert "x.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.vqm")) and not list(tmp_path.glob(".*"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [write_zip, write_legacy, write_safetensors, write_npz, write_npy])
def test_a_mutated_checkpoint_loads_or_raises_an_error_of_ours(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    rng = np.random.default_rng(0)
    # Most of the structure is in the first and last bytes
    places = [*rng.integers(0, 400, 100), *rng.integers(len(data) - 400, len(data), 60)]
    for place in places:
        mutated = bytearray(data)
        mutated[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(mutated)
        try:
            arrays_of(tmp_path / "a")
        except vqformat.VqmError as err:
            assert isinstance(err, ConversionError)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "x.pt")


def test_a_damaged_vqm_keeps_its_own_error(tmp_path: Path) -> None:
    vqformat.save_file({"w": np.ones(100, np.float32)}, tmp_path / "a.vqm")
    (tmp_path / "b.vqm").write_bytes((tmp_path / "a.vqm").read_bytes()[:-40])

    with pytest.raises(vqformat.TruncatedError):
        open_source(tmp_path / "b.vqm")


class TestSafetensors:
    def test_every_dtype_survives_to_vqm_and_back(self, tmp_path: Path) -> None:
        state = {name: t.resolve_conj().contiguous().clone() for name, t in every_kind().items() if name != "c128"}
        state["f4"] = torch.tensor([[0x21, 0xF5]], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        st.save_file(state, tmp_path / "a.safetensors", metadata={"format": "pt", "license": "mit"})

        convert(tmp_path / "a.safetensors", tmp_path / "a.vqm", lossless=True)
        notes = extract(tmp_path / "a.vqm", tmp_path / "b.safetensors")

        from safetensors import safe_open

        with safe_open(tmp_path / "b.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt", "license": "mit"}
            assert sorted(file.keys()) == sorted(state)
            for name, tensor in state.items():
                found = file.get_tensor(name)
                assert torch_equal(found, tensor)
        assert notes == []

    def test_shards_are_read_by_their_index(self, tmp_path: Path) -> None:
        st.save_file({"b": torch.ones(2), "a": torch.zeros(3)}, tmp_path / "m-00001-of-00002.safetensors")
        st.save_file({"c": torch.ones(4), "a": torch.ones(3)}, tmp_path / "m-00002-of-00002.safetensors")
        places = {"a": "m-00001-of-00002.safetensors", "b": "m-00001-of-00002.safetensors",
                  "c": "m-00002-of-00002.safetensors"}  # fmt: skip
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": places}, indent=2))

        for path in (tmp_path, index):
            with open_source(path) as source:
                found = {tensor.name: tensor.load().tolist() for tensor in source.tensors}
                note = "left out 'a' of 'm-00002-of-00002.safetensors': the index does not place it there"
                assert source.notes == [note]
            assert found == {"a": [0.0] * 3, "b": [1.0] * 2, "c": [1.0] * 4}

        (tmp_path / "m-00002-of-00002.safetensors").unlink()
        with pytest.raises(ConversionError, match=r"not beside it: 'm-00002-of-00002\.safetensors'"):
            open_source(index)

    def test_an_index_that_promises_too_much_is_refused(self, tmp_path: Path) -> None:
        st.save_file({"b": torch.ones(2)}, tmp_path / "m.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"z": "m.safetensors"}}))

        with pytest.raises(ConversionError, match="'z'"):
            open_source(tmp_path)

    def test_a_folder_with_one_file_is_that_file(self, tmp_path: Path) -> None:
        st.save_file({"b": torch.ones(2)}, tmp_path / "model.safetensors")
        assert list(arrays_of(tmp_path)) == ["b"]

        st.save_file({"b": torch.ones(2)}, tmp_path / "other.safetensors")
        with pytest.raises(ConversionError, match=r"folder of 'model\.safetensors', 'other\.safetensors'"):
            open_source(tmp_path)

    def test_tied_tensors_become_copies_and_a_note(self, tmp_path: Path) -> None:
        w = torch.arange(6.0)
        save_torch(tmp_path / "a.pt", {"a": w, "b": w})
        convert(tmp_path / "a.pt", tmp_path / "a.vqm", lossless=True)

        notes = extract(tmp_path / "a.vqm", tmp_path / "b.safetensors")

        found = st.load_file(tmp_path / "b.safetensors")
        assert torch_equal(found["a"], w) and torch_equal(found["b"], w)
        assert notes == ["'b' is tied to 'a'; safetensors cannot tell: stored as a copy"]

    def test_what_transformers_needs_is_there_for_pytorch_models(self, tmp_path: Path) -> None:
        save_torch(tmp_path / "a.pt", {"a": torch.ones(3)})
        convert(tmp_path / "a.pt", tmp_path / "a.vqm", metadata={"steps": 3, "author": "me"})

        notes = extract(tmp_path / "a.vqm", tmp_path / "b.safetensors")

        from safetensors import safe_open

        with safe_open(tmp_path / "b.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt", "author": "me"}
        assert notes == ["safetensors metadata holds strings only: left out 'steps'"]

    def test_the_same_file_gives_the_same_bytes(self, tmp_path: Path) -> None:
        metadata = {str(i): "x" for i in range(20)}
        vqformat.save_file({"w": np.ones(100, np.float32)}, tmp_path / "a.vqm", metadata)

        files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "a.npz", tmp_path / "b.npz"]
        for file in files:
            extract(tmp_path / "a.vqm", file)

        assert files[0].read_bytes() == files[1].read_bytes()
        assert files[2].read_bytes() == files[3].read_bytes()

    def test_128_bit_complex_cannot_be_written(self, tmp_path: Path) -> None:
        vqformat.save_file({"w": np.ones(3, np.complex128)}, tmp_path / "a.vqm")

        with pytest.raises(ConversionError, match=r"'w' has dtype c128.*\.npz"):
            extract(tmp_path / "a.vqm", tmp_path / "b.safetensors")

        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.vqm"]

    def test_bools_other_than_0_and_1_are_true(self, tmp_path: Path) -> None:
        st.save_file({"w": torch.tensor([True, False, True])}, tmp_path / "a.safetensors")
        data = (tmp_path / "a.safetensors").read_bytes()
        (tmp_path / "a.safetensors").write_bytes(data[:-1] + b"\x07")

        convert(tmp_path / "a.safetensors", tmp_path / "a.vqm")

        assert vqformat.load_file(tmp_path / "a.vqm")["w"].tolist() == [True, False, True]


class TestNumpy:
    def test_every_dtype_survives_to_vqm_and_back(self, tmp_path: Path) -> None:
        arrays = {
            "conv/kernel": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "big": np.arange(4, dtype=">f4"),
            "c": np.array([1 + 2j]),
            "0d": np.array(3, np.int16),
            "empty": np.zeros((0, 3), np.float16),
            "bool": np.array([True, False]),
            "strided": np.arange(20.0).reshape(4, 5)[::2, ::-1],
        }
        np.savez_compressed(tmp_path / "a.npz", **arrays)

        convert(tmp_path / "a.npz", tmp_path / "a.vqm", lossless=True)
        notes = extract(tmp_path / "a.vqm", tmp_path / "b.npz")

        with np.load(tmp_path / "b.npz", allow_pickle=False) as found:
            assert found.files == list(arrays)
            for name, array in arrays.items():
                assert bits_equal(found[name], array.astype(array.dtype.newbyteorder("<")))
        assert notes == []

    def test_dtypes_that_numpy_lacks_are_widened_without_loss(self, tmp_path: Path) -> None:
        arrays = {
            "bf16": np.array([1.5, -3e38], ml_dtypes.bfloat16),
            "f8": np.array([448, 0.0625], ml_dtypes.float8_e4m3fn),
            "e8m0": np.array([2.0**-127, 2.0**127], ml_dtypes.float8_e8m0fnu),
            "f4": np.array([6, -0.5, 1], ml_dtypes.float4_e2m1fn),
            "i4": np.array([-8, 7], ml_dtypes.int4),
        }
        vqformat.save_file(arrays, tmp_path / "a.vqm", lossless=True)

        notes = extract(tmp_path / "a.vqm", tmp_path / "b.npz")

        with np.load(tmp_path / "b.npz", allow_pickle=False) as found:
            kinds = {name: found[name].dtype.name for name in found.files}
            assert kinds == {"bf16": "float32", "f8": "float32", "e8m0": "float32", "f4": "float32", "i4": "int8"}
            assert found["bf16"].tolist() == [1.5, float(arrays["bf16"][1])]
            assert found["e8m0"].tolist() == [2.0**-127, 2.0**127]
            assert found["i4"].tolist() == [-8, 7]
        assert len(notes) == 5 and notes[0] == ("'bf16' has dtype bf16, which NumPy does not have: stored as float32,"
                                                " same values")  # fmt: skip

    def test_a_single_array_has_the_name_of_its_file(self, tmp_path: Path) -> None:
        np.save(tmp_path / "embedding.npy", np.arange(6).reshape(2, 3))

        convert(tmp_path / "embedding.npy", tmp_path / "a.vqm")

        assert vqformat.load_file(tmp_path / "a.vqm")["embedding"].tolist() == [[0, 1, 2], [3, 4, 5]]

    def test_a_flipped_bit_is_found(self, tmp_path: Path) -> None:
        write_npz(tmp_path / "a.npz")
        data = bytearray((tmp_path / "a.npz").read_bytes())
        data[2000] ^= 1
        (tmp_path / "a.npz").write_bytes(data)

        with pytest.raises(ConversionError, match="CRC"):
            convert(tmp_path / "a.npz", tmp_path / "a.vqm")

        assert not (tmp_path / "a.vqm").exists()


class TestVqm:
    def test_a_vqm_is_coded_again_with_its_metadata_and_ties(self, tmp_path: Path) -> None:
        w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        save_torch(tmp_path / "a.pt", {"state_dict": {"a": w, "b": w}})
        convert(tmp_path / "a.pt", tmp_path / "a.vqm", lossless=True, metadata={"k": [1, "x"]})

        convert(tmp_path / "a.vqm", tmp_path / "b.vqm", bits=4)

        with vqformat.safe_open(tmp_path / "b.vqm") as file:
            assert file.metadata() == {"k": [1, "x"], "vqm.source": {"format": "pytorch", "nesting": ["state_dict"]}}
            assert file.info("b").alias_of == "a"
        assert (tmp_path / "b.vqm").stat().st_size < (tmp_path / "a.vqm").stat().st_size / 2

    def test_a_source_is_never_replaced(self, tmp_path: Path) -> None:
        vqformat.save_file({"w": np.arange(5)}, tmp_path / "a.vqm")

        with pytest.raises(ConversionError, match=r"a\.vqm' is the source itself"):
            convert(tmp_path / "a.vqm", tmp_path / "a.vqm", overwrite=True)

        assert vqformat.load_file(tmp_path / "a.vqm")["w"].tolist() == [0, 1, 2, 3, 4]


class TestExtract:
    @pytest.fixture
    def vqm(self, tmp_path: Path) -> Path:
        w = torch.arange(6.0)
        save_torch(tmp_path / "a.pt", {"fc1.weight": w, "fc2.weight": torch.ones(2), "tied": w, "tied2": w})
        convert(tmp_path / "a.pt", tmp_path / "a.vqm", lossless=True)
        (tmp_path / "a.pt").unlink()
        return tmp_path / "a.vqm"

    @pytest.mark.parametrize(("names", "expected"), [
        (["fc1.weight"], ["fc1.weight"]),
        (["fc*"], ["fc1.weight", "fc2.weight"]),
        (["tied*"], ["tied", "tied2"]),
        (["tied", "fc2.weight"], ["fc2.weight", "tied"]),
    ])  # fmt: skip
    def test_some_tensors_by_name_or_pattern(self, vqm: Path, names: list[str], expected: list[str]) -> None:
        extract(vqm, vqm.with_suffix(".pt"), names=names)

        found = torch.load(vqm.with_suffix(".pt"), weights_only=True)
        assert list(found) == expected
        if "tied2" in found:
            assert found["tied"].tolist() == [0, 1, 2, 3, 4, 5]
            assert found["tied"].data_ptr() == found["tied2"].data_ptr()

    def test_an_unknown_name_is_refused_with_near_matches(self, vqm: Path) -> None:
        with pytest.raises(TensorNotFoundError, match=r"fc1\.weight"):
            extract(vqm, vqm.with_suffix(".pt"), names=["fc1.wieght"])

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
    def test_existing_files_are_kept_unless_asked(self, vqm: Path, suffix: str) -> None:
        target = vqm.with_suffix(suffix)
        target.write_text("mine")

        with pytest.raises(FileExistsError):
            extract(vqm, target)
        assert target.read_text() == "mine"

        extract(vqm, target, overwrite=True)
        assert arrays_of(target)["fc2.weight"].tolist() == [1, 1]
        assert sorted(file.name for file in vqm.parent.iterdir()) == sorted([vqm.name, target.name])

    def test_an_unknown_ending_is_refused(self, vqm: Path) -> None:
        with pytest.raises(ConversionError, match=r"\.pt, .*\.safetensors, \.npz"):
            extract(vqm, vqm.with_suffix(".tflite"))

    def test_a_checkpoint_is_extracted_to_another_format(self, tmp_path: Path) -> None:
        save_torch(tmp_path / "a.pt", {"net": {"w": torch.ones(3, dtype=torch.bfloat16)}, "epoch": 3,
                                       "o": {"state": {0: {"exp_avg": torch.ones(2)}}}})  # fmt: skip

        notes = extract(tmp_path / "a.pt", tmp_path / "b.safetensors")
        extract(tmp_path / "a.pt", tmp_path / "b.pt")

        assert st.load_file(tmp_path / "b.safetensors")["w"].tolist() == [1, 1, 1]
        assert any("left out 'o'" in note for note in notes)
        assert list(torch.load(tmp_path / "b.pt", weights_only=True)) == ["net", "epoch"]
        with pytest.raises(ConversionError, match="source itself"):
            extract(tmp_path / "a.pt", tmp_path / "a.pt", overwrite=True)


def test_convert_keeps_an_existing_file_unless_asked(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz")
    (tmp_path / "a.vqm").write_text("mine")

    with pytest.raises(FileExistsError):
        convert(tmp_path / "a.npz", tmp_path / "a.vqm")
    assert (tmp_path / "a.vqm").read_text() == "mine"

    convert(tmp_path / "a.npz", tmp_path / "a.vqm", overwrite=True)
    assert vqformat.load_file(tmp_path / "a.vqm")["w"].tolist() == [1.0] * 1000


@pytest.mark.parametrize(("write", "package", "hint"), [
    (write_safetensors, "safetensors", "pip install safetensors$"),
])  # fmt: skip
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, package: str,
                                    hint: str) -> None:  # fmt: skip
    write(tmp_path / "a")
    forget(monkeypatch, "vqformat.converters.pytorch", "vqformat.converters.safetensors", "vqformat.torch")
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ImportError, match=hint):
        open_source(tmp_path / "a")


def test_reading_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(tmp_path / "a.npz")
    st.save_file({"w": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    write_zip(tmp_path / "zip.pt")
    write_legacy(tmp_path / "legacy.pt")
    forget(monkeypatch, *(name for name in sys.modules if name.startswith("vqformat.converters.")))
    monkeypatch.setitem(sys.modules, "torch", None)

    for name in ("a.npz", "a.safetensors", "zip.pt", "legacy.pt"):
        convert(tmp_path / name, tmp_path / "a.vqm", overwrite=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.npz", overwrite=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.safetensors", overwrite=True)
    with pytest.raises(ImportError, match=r"pip install torch$"):
        extract(tmp_path / "a.vqm", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


def test_a_damaged_meta_chunk_is_found_though_the_index_has_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "m.vqm"
    vqformat.save_file({"w": np.zeros(3, np.float32)}, path, {"k": "v"})
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)

    with pytest.raises(vqformat.VqmError):
        open_source(path)

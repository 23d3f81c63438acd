"""Full disks: the error names the file that was asked for, and nothing is left behind."""

from __future__ import annotations

import errno
import io
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_disk import full_disk

import vqformat
from vqformat.cli import main
from vqformat.converters import convert, extract

RNG = np.random.default_rng(4)
LARGEST_NBYTES = 300_000


def arrays(n: int) -> dict[str, Any]:
    return {f"w{i}": RNG.standard_normal((n, n)).astype(np.float32) for i in range(2)}


def source_of(folder: Path, suffix: str) -> Path:
    """A .vqm from which a file of this suffix, too large for the disk, can be written."""
    path = folder / "a.vqm"
    if suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays(300).items()]
        graph = onnx.helper.make_graph([], "g", [], [], tensors)
        (folder / "a.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
        convert(folder / "a.onnx", path)
        return path
    if suffix in (".keras", ".weights.h5"):
        h5py = pytest.importorskip("h5py")
        with h5py.File(folder / "model.weights.h5", "w") as file:
            for number, array in enumerate(arrays(300).values()):
                file[f"layers/dense/vars/{number}"] = array
        with zipfile.ZipFile(folder / "a.keras", "w") as archive:
            archive.writestr("config.json", "{}")
            archive.write(folder / "model.weights.h5", "model.weights.h5")
        convert(folder / "a.keras", path)
        return path
    vqformat.save_file(arrays(300), path)
    return path


SUFFIXES = {".safetensors": "safetensors", ".npz": "numpy", ".h5": "h5py", ".pt": "torch", ".onnx": "onnx",
            ".keras": "h5py", ".weights.h5": "h5py"}  # fmt: skip


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_extract_names_the_file_that_was_asked_for(tmp_path: Path, suffix: str, capsys: Any) -> None:
    pytest.importorskip(SUFFIXES[suffix])
    source, target = source_of(tmp_path, suffix), tmp_path / f"b{suffix}"
    before = sorted(os.listdir(tmp_path))

    with full_disk(LARGEST_NBYTES):
        code = main(["extract", str(source), "-o", str(target)])

    assert (code, capsys.readouterr().err) == (1, f"vqm: error: {str(target)!r}: file too large\n")
    assert sorted(os.listdir(tmp_path)) == before
    assert main(["extract", str(source), "-o", str(target), "-q"]) == 0


def test_the_second_file_of_an_onnx_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path, ".onnx")
    from vqformat.converters.export import onnx as export

    monkeypatch.setattr(export, "MAX_NBYTES", 20_000)
    before = sorted(os.listdir(tmp_path))

    with full_disk(LARGEST_NBYTES), pytest.raises(OSError, match=r"File too large: '.*/b\.onnx\.data'"):
        extract(source, tmp_path / "b.onnx")

    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("options", [["--lossless"], ["--bits", "8"], ["--ratio", "3"]], ids=" ".join)
def test_convert_names_the_file_that_was_asked_for(tmp_path: Path, options: list[str], capsys: Any) -> None:
    """With a ratio, the file that fails first is a temporary one beside it."""
    np.savez(tmp_path / "a.npz", **arrays(1024))

    with full_disk(LARGEST_NBYTES):
        code = main(["convert", str(tmp_path / "a.npz"), "-o", str(tmp_path / "a.vqm"), *options])

    assert code == 1
    assert capsys.readouterr().err == f"vqm: error: {str(tmp_path / 'a.vqm')!r}: file too large\n"
    assert os.listdir(tmp_path) == ["a.npz"]


def test_the_folder_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", **arrays(1024))
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))

    with full_disk(LARGEST_NBYTES), pytest.raises(OSError, match="set TMPDIR to another folder") as caught:
        convert(tmp_path / "a.npz", io.BytesIO(), ratio=3.0)

    assert caught.value.filename == str(tmp_path / "t") and caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path / "t") == []

"""How HDF5 files are read: the process that walks them, chunks, attributes that are rare, names of quantized layers."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqformat.converters import convert, extract, open_source

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'vqformat[keras]'")


def arrays_of(path: Path) -> dict[str, Any]:
    with open_source(path) as source:
        return {tensor.name: tensor.load() for tensor in source.tensors}


def libhdf5() -> Any:
    """The library that h5py has loaded; it has no call of its own for an option of chunks."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    found = [line.split()[-1] for line in lines if "libhdf5" in line and "_hl" not in line]
    if not found:
        pytest.skip("libhdf5 is not found in this process")
    library = ctypes.CDLL(found[0])
    library.H5Pset_chunk_opts.argtypes = [ctypes.c_int64, ctypes.c_uint]
    return library


@pytest.mark.parametrize("is_deflated", [False, True], ids=["shuffle", "shuffle-gzip"])
def test_chunks_at_the_edge_may_be_left_unfiltered(tmp_path: Path, is_deflated: bool) -> None:
    values = np.random.default_rng(0).standard_normal((37, 53)).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((8, 16))
        plan.set_shuffle()
        if is_deflated:
            plan.set_deflate(4)
        assert libhdf5().H5Pset_chunk_opts(plan.id, 2) >= 0
        space = h5py.h5s.create_simple(values.shape)
        h5py.Dataset(h5py.h5d.create(file.id, b"w", h5py.h5t.IEEE_F32LE, space, plan))[...] = values

    assert np.array_equal(arrays_of(tmp_path / "a.h5")["w"], values)


def test_a_broken_h5py_is_not_taken_for_a_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = np.ones(3)
    (tmp_path / "h5py").mkdir()
    (tmp_path / "h5py" / "__init__.py").write_text("raise ImportError('no libhdf5')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    with pytest.raises(ImportError, match="h5py cannot be used"):
        arrays_of(tmp_path / "a.h5")


def test_what_a_process_prints_at_its_start_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = np.ones(3)
    (tmp_path / "sitecustomize.py").write_text("print('hello')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    assert arrays_of(tmp_path / "a.h5")["w"].tolist() == [1, 1, 1]


def test_every_optimizer_of_a_model_is_its_state(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for place in ("optimizer", "generator_optimizer"):
            file[f"{place}/vars/0"] = np.float32(0.001)
            file[place]["vars"].attrs["name"] = "adam"
        file["layers/dense/vars/0"] = np.ones((3, 2), "f4")

    assert list(arrays_of(tmp_path / "a.weights.h5")) == ["dense/kernel"]
    with open_source(tmp_path / "a.weights.h5", include_optimizer=True) as source:
        assert {tensor.name: tensor.is_exact for tensor in source.tensors} == {
            "generator_optimizer/0": True, "dense/kernel": False, "optimizer/0": True}  # fmt: skip


def test_the_scale_of_a_quantized_layer_is_no_bias(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones((3, 2), "i1")
        file["layers/dense/vars/1"] = np.ones(2, "f4")

    assert list(arrays_of(tmp_path / "a.weights.h5")) == ["dense/0", "dense/1"]


def test_large_and_oddly_named_attributes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file["w"] = np.ones(3)
        file.attrs["vocabulary"] = np.arange(30_000, dtype="f4")
        h5py.h5a.create(file.id, b"\xff\xfe", h5py.h5t.IEEE_F32LE, h5py.h5s.create(h5py.h5s.SCALAR))

    report = convert(tmp_path / "a.h5", tmp_path / "a.vqm", lossless=True)
    extract(tmp_path / "a.vqm", tmp_path / "b.h5")

    assert any("not UTF-8" in note for note in report.notes)
    with h5py.File(tmp_path / "b.h5") as file:
        assert np.array_equal(file.attrs["vocabulary"], np.arange(30_000))

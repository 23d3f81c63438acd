"""Equal tensors of a checkpoint: stored once in a .vqm, and tensors of their own in what is extracted from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import weights

import vqformat
from vqformat.contents import content_digest
from vqformat.converters import convert, extract, open_source

W = weights(256, 128)


def write_safetensors(path: Path, tensors: dict[str, Any]) -> None:
    pytest.importorskip("safetensors.numpy").save_file(tensors, path)


def write_torch(path: Path, tensors: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, path)


def write_npz(path: Path, tensors: dict[str, Any]) -> None:
    np.savez(path, **tensors)


def write_hdf5(path: Path, tensors: dict[str, Any]) -> None:
    with pytest.importorskip("h5py").File(path, "w") as file:
        for name, array in tensors.items():
            file[name] = array


def write_onnx(path: Path, tensors: dict[str, Any]) -> None:
    files = pytest.importorskip("onnx_files")
    files.save(path, files.model_of([files.nh.from_array(array, name) for name, array in tensors.items()]))


def write_gguf(path: Path, tensors: dict[str, Any]) -> None:
    pytest.importorskip("gguf_files").write(path, tensors)


FORMATS = {".safetensors": write_safetensors, ".pt": write_torch, ".npz": write_npz, ".h5": write_hdf5,
           ".onnx": write_onnx, ".gguf": write_gguf}  # fmt: skip


@pytest.mark.usefixtures("forked_libhdf5")
@pytest.mark.parametrize("suffix", FORMATS)
def test_they_are_stored_once_and_come_back_as_two(tmp_path: Path, suffix: str) -> None:
    write: Callable[[Path, dict[str, Any]], None] = FORMATS[suffix]
    source, back = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write(source, {"embed": W, "head": W.copy()})
    write(tmp_path / f"one{suffix}", {"embed": W})

    convert(source, tmp_path / "a.vqm", lossless=True)
    convert(tmp_path / f"one{suffix}", tmp_path / "one.vqm", lossless=True)
    extract(tmp_path / "a.vqm", back)

    assert (tmp_path / "a.vqm").stat().st_size < (tmp_path / "one.vqm").stat().st_size + 1000
    with vqformat.safe_open(tmp_path / "a.vqm") as file:
        assert [info.copy_of for info in map(file.info, file)].count(None) == 1
    with open_source(back) as opened:
        assert [tensor.alias_of for tensor in opened.tensors] == [None, None]
        assert all(np.array_equal(tensor.load(), W) for tensor in opened.tensors)
    assert back.stat().st_size > 0.95 * source.stat().st_size
    assert content_digest(source) == content_digest(tmp_path / "a.vqm") == content_digest(back)


def test_tied_and_equal_tensors_of_pytorch_stay_what_they_are(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    w = torch.from_numpy(W)
    average = w.clone()
    torch.save({"embed": w, "head": w, "ema.embed": average, "ema.head": average}, tmp_path / "a.pt")

    convert(tmp_path / "a.pt", tmp_path / "a.vqm")
    convert(tmp_path / "a.vqm", tmp_path / "b.vqm", preset="fast")
    extract(tmp_path / "b.vqm", tmp_path / "b.pt")

    state = torch.load(tmp_path / "b.pt")
    storage = {name: tensor.untyped_storage().data_ptr() for name, tensor in state.items()}
    assert storage["embed"] == storage["head"] != storage["ema.embed"] == storage["ema.head"]
    state["embed"].zero_()
    assert state["ema.embed"].any()
    assert (tmp_path / "b.vqm").stat().st_size < 1.1 * W.nbytes / 4


def test_a_copy_is_coded_by_its_own_method_if_it_gets_one(tmp_path: Path) -> None:
    vqformat.save_file({"a": W, "b": W.copy()}, tmp_path / "a.vqm", lossless=True)

    convert(tmp_path / "a.vqm", tmp_path / "b.vqm", recipe={"b": "pq:dim=2,entries=16", "*": "lossless"})

    with vqformat.safe_open(tmp_path / "b.vqm") as file:
        assert file.info("b").copy_of is None
        assert np.array_equal(file["a"], W) and not np.array_equal(file["b"], W)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_quantized_tensors_of_gguf_keep_their_blocks(tmp_path: Path, kind: str) -> None:
    files = pytest.importorskip("gguf_files")
    blocks = files.blocks_of(kind, 64, 512)
    types = dict.fromkeys(("a", "b"), files.Kind[kind])
    files.write(tmp_path / "a.gguf", {"a": blocks, "b": blocks.copy()}, **types)

    report = convert(tmp_path / "a.gguf", tmp_path / "a.vqm")
    extract(tmp_path / "a.vqm", tmp_path / "b.gguf")

    assert report.tensors[1].method == "copy of a"
    assert not any("are coded anew" in note for note in report.notes)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_the_loaded_model_has_parameters_of_its_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from vqformat.torch import load_file, load_model, save_model

    def model() -> Any:
        return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))

    one = model()
    one[1].load_state_dict(one[0].state_dict())
    save_model(one, tmp_path / "a.vqm", lossless=True)
    with torch.device("meta"):
        two = model()

    load_model(two, tmp_path / "a.vqm")
    tensors = load_file(tmp_path / "a.vqm")

    with torch.no_grad():
        two[0].weight.zero_()
    tensors["0.weight"].zero_()
    assert torch.equal(two[1].weight, one[1].weight) and torch.equal(tensors["1.weight"], one[1].weight)
    with vqformat.safe_open(tmp_path / "a.vqm") as file:
        assert file.info("1.weight").copy_of == "0.weight"

"""Distributed checkpoints of PyTorch to .vqm: what torch.distributed.checkpoint wrote, sharded ones, and refusals."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import pytest

torch = pytest.importorskip("torch", reason="not installed: pip install 'vqformat[torch]'")
dcp = pytest.importorskip("torch.distributed.checkpoint", reason="this PyTorch has none")

from torch.distributed.checkpoint.filesystem import _StorageInfo  # noqa: E402
from torch.distributed.checkpoint.metadata import (  # noqa: E402
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import vqformat  # noqa: E402
from vqformat import ConversionError  # noqa: E402
from vqformat.converters import convert, extract, open_source  # noqa: E402


def save(state: dict[str, Any], folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single process suffices
        dcp.save(state, checkpoint_id=folder)
    return folder


def arrays_of(path: Path, **options: Any) -> dict[str, Any]:
    with open_source(path, **options) as source:
        return {tensor.name: tensor.load() for tensor in source.tensors}


def saved(tensor: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(tensor, stream)
    return stream.getvalue()


WHOLE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
Boxes = list[tuple[tuple[int, ...], tuple[int, ...]]]
HALVES: Boxes = [((0, 0), (2, 6)), ((2, 0), (2, 6))]


def sharded(folder: Path, boxes: Boxes = HALVES, *, size: tuple[int, ...] = (4, 6), dtype: Any = torch.float32,
            chunks: dict[int, bytes] | None = None, place: dict[str, Any] | None = None, lost: int | None = None,
            name: Any = "w", root: Any = None) -> Path:  # fmt: skip
    """A checkpoint of one tensor in chunks, each in a file of its own, in which anything can be wrong."""
    folder.mkdir(exist_ok=True)
    storage = {}
    for i, (at, sizes) in enumerate(boxes):
        region = tuple(slice(start, start + n) for start, n in zip(at, sizes, strict=True))
        data = (chunks or {}).get(i, saved(WHOLE[region].clone()))
        (folder / f"__{i}_0.distcp").write_bytes(b"\0" * 7 + data)
        info = {"relative_path": f"__{i}_0.distcp", "offset": 7, "length": len(data), **(place or {})}
        if i != lost:
            storage[MetadataIndex("w", at)] = _StorageInfo(**info)
    parts = [ChunkStorageMetadata(torch.Size(at), torch.Size(sizes)) for at, sizes in boxes]
    entry = TensorStorageMetadata(TensorProperties(dtype), torch.Size(size), parts)
    metadata = Metadata({name: entry, "epoch": BytesStorageMetadata()}, {name: (name,), "epoch": ("epoch",)}, storage)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata if root is None else root))
    return folder


class TestReading:
    def test_a_training_state(self, tmp_path: Path) -> None:
        weight = torch.tensor([[1.5, -2.0], [0.0, 3.0]])
        state = {"model": {"fc.weight": weight, "fc.bias": torch.tensor([1.0], dtype=torch.bfloat16)},
                 "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "epoch": 3}  # fmt: skip
        folder = save(state, tmp_path / "checkpoint")

        report = convert(folder, tmp_path / "a.vqm", lossless=True)
        found = vqformat.load_file(tmp_path / "a.vqm")

        assert list(found) == ["model.fc.weight", "model.fc.bias"]
        assert found["model.fc.weight"].tolist() == [[1.5, -2.0], [0.0, 3.0]]
        assert found["model.fc.bias"].dtype == ml_dtypes.bfloat16
        assert report.notes == ["left out the state of training (1 tensors); --include-optimizer keeps it",
                                "left out 1 values that are no tensors ('epoch')"]  # fmt: skip

    def test_the_state_of_training_is_kept_exactly_on_request(self, tmp_path: Path) -> None:
        folder = save({"w": torch.ones(2), "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, tmp_path / "checkpoint")

        with open_source(folder, include_optimizer=True) as source:
            assert {tensor.name: tensor.is_exact for tensor in source.tensors} == {
                "w": False, "optimizer.state.0.m": True}  # fmt: skip

    @pytest.mark.parametrize("part", ["", ".metadata", "__0_0.distcp"])
    def test_any_part_of_the_folder_stands_for_it(self, tmp_path: Path, part: str) -> None:
        folder = save({"w": torch.arange(3.0)}, tmp_path / "checkpoint")

        assert arrays_of(folder / part)["w"].tolist() == [0.0, 1.0, 2.0]

    @pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "bfloat16", "float8_e4m3fn", "uint16",
                                       "complex64"])  # fmt: skip
    def test_dtypes(self, tmp_path: Path, dtype: str) -> None:
        folder = save({"w": torch.tensor([0.0, 1.0, 1.0]).to(getattr(torch, dtype))}, tmp_path / "checkpoint")

        array = arrays_of(folder)["w"]

        assert array.dtype.name == dtype and array.astype("f4" if dtype != "complex64" else "c8").tolist() == [0, 1, 1]

    @pytest.mark.parametrize("boxes", [
        [((0, 0), (4, 6))], HALVES, [((2, 0), (2, 6)), ((0, 0), (2, 6))], [((0, 0), (4, 5)), ((0, 5), (4, 1))],
        [((0, 0), (2, 3)), ((0, 3), (2, 3)), ((2, 0), (2, 4)), ((2, 4), (2, 2))],
        [((0, 0), (4, 6)), ((4, 0), (0, 6))],
    ], ids=str)  # fmt: skip
    def test_chunks_are_put_together(self, tmp_path: Path, boxes: Boxes) -> None:
        array = arrays_of(sharded(tmp_path / "a", boxes))["w"]

        assert array.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17],
                                  [18, 19, 20, 21, 22, 23]]  # fmt: skip

    def test_networks_with_names_like_those_of_training(self, tmp_path: Path) -> None:
        names = ["amplitude", "scaler_net", "optimizer", "rngnet", "optimal_head"]
        folder = save({name: {"w": torch.ones(2)} for name in names}, tmp_path / "checkpoint")

        with open_source(folder) as source:
            assert sorted(tensor.name for tensor in source.tensors) == sorted(f"{name}.w" for name in names)

    def test_an_optimizer_inside_a_state_of_an_application(self, tmp_path: Path) -> None:
        state = {"model": {"w": torch.ones(2)}, "optim": {"state": {"w": {"exp_avg": torch.ones(2)}}}}

        with open_source(save({"app": state}, tmp_path / "checkpoint")) as source:
            assert [tensor.name for tensor in source.tensors] == ["app.model.w"]

    @pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
    def test_extraction(self, tmp_path: Path, suffix: str) -> None:
        if suffix == ".safetensors":
            pytest.importorskip("safetensors")
        convert(sharded(tmp_path / "a"), tmp_path / "a.vqm", lossless=True)

        extract(tmp_path / "a.vqm", tmp_path / f"b{suffix}")

        assert (arrays_of(tmp_path / f"b{suffix}")["w"] == WHOLE.numpy()).all()


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"boxes": HALVES[:1]}, "overlap, or leave a gap"), ({"boxes": [*HALVES, HALVES[0]]}, "overlap, or leave a gap"),
    ({"boxes": [HALVES[0], ((1, 0), (2, 6))]}, "overlap, or leave a gap"),
    ({"boxes": [HALVES[0], ((3, 0), (2, 6))]}, "lies outside the shape"), ({"boxes": []}, "leave a gap"),
    ({"boxes": [((0,), (4,))]}, "other axes"), ({"lost": 1}, "is in no file"),
    ({"size": (4, -6)}, "no list of sizes"), ({"size": (1 << 40, 1 << 40)}, "must be below"),
    ({"dtype": "float32"}, "dtype 'a str', which a .vqm"), ({"place": {"offset": 1 << 40}}, "cut short"),
    ({"place": {"offset": -1}}, "no list of sizes"), ({"place": {"length": 1 << 62}}, "cut short"),
    ({"place": {"length": 10}}, "needs 48 bytes and has 10"),
    ({"place": {"relative_path": "../a"}}, "a plain file name"),
    ({"place": {"relative_path": "other"}}, "is not there"), ({"place": {"relative_path": ".."}}, "a plain file name"),
    ({"place": {"relative_path": "__0_0.distcp"}}, "shares them with another"),
    ({"place": {"transform_descriptors": ["stream.zstd/1"]}}, "stream.zstd/1"),
    ({"chunks": {0: bytes(400)}}, "no zip archive"), ({"chunks": {0: saved(torch.ones(3, 6))}}, "was announced"),
    ({"chunks": {0: saved(torch.ones(2, 6).double())}}, "was announced"),
    ({"chunks": {0: saved([1] * 99)}}, "it is no tensor"),
    ({"chunks": {0: saved(WHOLE[:2]).replace(b"\0\0\x80?", b"\0\0\x80@")}}, "damaged"),
    ({"name": "a\0b"}, "U\\+0000"), ({"name": 7}, "not a string"), ({"root": {"a": 1}}, "no table of tensors"),
    ({"root": _Runs()}, "mkdir, which can run code"), ({"root": [_Runs()]}, "mkdir, which can run code"),
]  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize(("options", "complaint"), REFUSED,
                             ids=[f"{i}-{text}" for i, (_, text) in enumerate(REFUSED)])  # fmt: skip
    def test_damage_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any],
                             complaint: str) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        folder = sharded(tmp_path / "a", **options)

        tracemalloc.start()
        with pytest.raises(ConversionError, match=complaint):
            arrays_of(folder / ".metadata")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 8 << 20
        assert not (tmp_path / "ran").exists()

    def test_a_pickle_that_is_cut_short(self, tmp_path: Path) -> None:
        data = (sharded(tmp_path / "a") / ".metadata").read_bytes()

        for n in range(0, len(data), 37):
            (tmp_path / "a" / ".metadata").write_bytes(data[:n])
            with pytest.raises(ConversionError):
                open_source(tmp_path / "a")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name")
    @pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
    @pytest.mark.parametrize("kind", ["pipe", "endless"])
    def test_files_that_never_end(self, tmp_path: Path, name: str, kind: str) -> None:
        path = sharded(tmp_path / "a") / name
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")

        with pytest.raises(ConversionError):
            arrays_of(tmp_path / "a")

    def test_a_part_without_the_metadata(self, tmp_path: Path) -> None:
        (sharded(tmp_path / "a") / ".metadata").unlink()

        with pytest.raises(ConversionError, match=r"distributed checkpoint, whose \.metadata is not beside it"):
            open_source(tmp_path / "a" / "__0_0.distcp")

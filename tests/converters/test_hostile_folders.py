"""Model folders and files that attack whoever opens them: pipes, devices, links, sizes, names and headers."""

from __future__ import annotations

import faulthandler
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqformat
from vqformat.cli import main
from vqformat.converters import convert, extract, open_source
from vqformat.converters.detect import MAX_JSON_NBYTES
from vqformat.errors import ConversionError

IN_FOLDER = ["model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
             "model.weights.json", "model.weights.h5"]  # fmt: skip


@pytest.fixture(autouse=True)
def ends_a_hang() -> Iterator[None]:
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def safetensors(path: Path) -> Path:
    package = pytest.importorskip("safetensors.numpy")
    path.parent.mkdir(parents=True, exist_ok=True)
    package.save_file({"w": np.arange(3, dtype=np.float32)}, path)
    return path


def index(folder: Path, place: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": place}}))
    return path


def arrays_of(path: Path) -> dict[str, Any]:
    with open_source(path) as source:
        return {tensor.name: tensor.load().tolist() for tensor in source.tensors}


class TestRegularFiles:
    @pytest.mark.parametrize("name", IN_FOLDER)
    @pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
    def test_only_they_are_opened_in_a_folder(self, tmp_path: Path, name: str, kind: str) -> None:
        match kind:
            case "device":
                (tmp_path / name).symlink_to("/dev/zero")
            case "pipe":
                os.mkfifo(tmp_path / name)
            case "folder":
                (tmp_path / name).mkdir()

        with pytest.raises(ConversionError, match=f"{name}' is a {kind}, and a regular file is needed"):
            open_source(tmp_path)

    def test_a_pipe_is_told_the_way_in(self, tmp_path: Path, capsys: Any) -> None:
        os.mkfifo(tmp_path / "a.vqm")
        for arguments in (["convert", "-o", str(tmp_path / "b.vqm")], ["info"], ["extract", "-o", "b.npz"]):
            assert main([*arguments, str(tmp_path / "a.vqm")]) == 1
            assert "is a pipe, and a regular file is needed; send it to stdin, and give '-'" in capsys.readouterr().err

    def test_a_link_to_itself_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.npz").symlink_to("a.npz")

        with pytest.raises(ConversionError, match="a symbolic link that leads to itself"):
            open_source(tmp_path / "a.npz")

    def test_the_weights_of_an_unpacked_keras_model(self, tmp_path: Path) -> None:
        pytest.importorskip("h5py")
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.weights.h5").symlink_to("/dev/zero")

        with pytest.raises(ConversionError, match=r"model\.weights\.h5' is a device"):
            open_source(tmp_path)

    def test_an_index_is_not_read_beyond_its_limit(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors.index.json"
        path.write_text("{")
        os.truncate(path, MAX_JSON_NBYTES + 1)

        for place in (path, tmp_path):
            with pytest.raises(ConversionError, match=r"has 100,000,001 bytes, and at most 100,000,000 are read"):
                open_source(place)


class TestShards:
    @pytest.mark.parametrize("place", ["x.safetensors", "./x.safetensors", "a/x.safetensors", "./a//x.safetensors"])
    def test_they_may_lie_in_folders_below(self, tmp_path: Path, place: str) -> None:
        safetensors(tmp_path / place)

        assert arrays_of(index(tmp_path, place)) == {"w": [0, 1, 2]}

    def test_two_spellings_are_one_shard(self, tmp_path: Path) -> None:
        package = pytest.importorskip("safetensors.numpy")
        package.save_file({"a": np.ones(1), "b": np.ones(2)}, tmp_path / "x.safetensors")
        places = {"a": "x.safetensors", "b": "./x.safetensors"}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

        with open_source(tmp_path) as source:
            assert [tensor.name for tensor in source.tensors] == ["a", "b"] and source.notes == []

    @pytest.mark.parametrize("place", ["up/x.safetensors", "link.safetensors", "sub/link.safetensors"])
    def test_links_out_of_the_folder_are_refused(self, tmp_path: Path, place: str) -> None:
        safetensors(tmp_path / "x.safetensors")
        path = index(tmp_path / "m", place)
        (path.parent / "sub").mkdir()
        (path.parent / "up").symlink_to(tmp_path)
        for link in ("link.safetensors", "sub/link.safetensors"):
            (path.parent / link).symlink_to(tmp_path / "x.safetensors")

        with pytest.raises(ConversionError, match="a link that leads out of the folder"):
            open_source(path)

    @pytest.mark.parametrize("target", ["/dev/zero", "x.safetensors", "..", "nowhere"])
    def test_links_to_no_file_are_refused(self, tmp_path: Path, target: str) -> None:
        path = index(tmp_path / "m", "x.safetensors")
        (path.parent / "x.safetensors").symlink_to(target)

        with pytest.raises(ConversionError, match=r"x\.safetensors'"):
            open_source(path)

    @pytest.mark.parametrize("is_index_linked", [True, False])
    def test_a_download_cache_is_read(self, tmp_path: Path, is_index_linked: bool) -> None:
        blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0f3d"
        safetensors(blobs / "8a1b")
        path = index(snapshot, "x.safetensors")
        (snapshot / "x.safetensors").symlink_to("../../blobs/8a1b")
        if is_index_linked:
            path.rename(blobs / "77aa")
            path.symlink_to("../../blobs/77aa")

        assert arrays_of(snapshot) == {"w": [0, 1, 2]}

    def test_a_single_linked_file_is_read_wherever_it_lies(self, tmp_path: Path) -> None:
        target = safetensors(tmp_path / "elsewhere" / "x")
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "model.safetensors").symlink_to(target)

        assert arrays_of(tmp_path / "m") == {"w": [0, 1, 2]}


def test_a_file_that_becomes_shorter_is_refused(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "x.safetensors")
    with open_source(path) as source:
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(ConversionError, match="became shorter while it was read"):
            source.tensors[0].load()


def npy(header: str, data: bytes = bytes(4)) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def fields(shape: str, descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


class TestArrayHeaders:
    @pytest.mark.parametrize("as_archive", [False, True], ids=["npy", "npz"])
    @pytest.mark.parametrize(("data", "complaint"), [
        (npy(fields("(True,)")), r"shape \(True,\)"), (npy(fields("(-1,)")), r"shape \(-1,\)"),
        (npy(fields("(-1, -1)")), r"shape \(-1, -1\)"), (npy(fields("(" + "-" * 8000 + "1,)")), "header cannot be"),
        (npy("(" * 9000), "header cannot be read"), (npy(fields("(1" + "+1" * 3000 + ",)")), "header cannot be read"),
        (npy(fields("(" + "9" * 5000 + ",)")), "header cannot be read"), (npy(fields("(1.0,)")), "header cannot be"),
        (npy(fields("(0, 99999999999999999999)")), "must be below"), (npy(fields("(1 << 60,)")), "header cannot be"),
        (npy(fields("(1,)", "'|O'"), b"cos\nsystem\n."), "pickled"), (npy(fields("(2,)")), "needs 8 bytes, but 4 are"),
        (npy("{" + " " * 20_000), "a header of 20001 bytes; at most 10000"), (npy("{}")[:9], "header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "a header of 4294967295 bytes"), (b"\x93NUMPY\x07\x00", "version"),
    ], ids=range(16))  # fmt: skip
    def test_strange_ones_are_refused(self, tmp_path: Path, data: bytes, complaint: str, as_archive: bool) -> None:
        path = tmp_path / "a.npy"
        path.write_bytes(data)
        if as_archive:
            path = tmp_path / "a.npz"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.npy", data)

        with pytest.raises(ConversionError, match=complaint) as caught:
            open_source(path)

        assert len(str(caught.value)) < 600 and "'a'" in str(caught.value)

    def test_the_siblings_of_all_are_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.npy").write_bytes(npy(fields("(1,)")))
        assert arrays_of(tmp_path / "a.npy") == {"a": [0]}

        (tmp_path / "b.npy").write_bytes(npy(fields("(2, 3)", order="True"), np.arange(6, dtype="<f4").tobytes()))
        assert arrays_of(tmp_path / "b.npy") == {"b": [[0, 2, 4], [1, 3, 5]]}


NAMES_OUT = ["../w", "a/../../w", "/w", "\\w", "..\\w", "C:/w", "c:\\w"]
NAMES_INSIDE = ["a/w", "w:0", "a..b", "..w", "./w", "a//w", "C:w"]


class TestNamesInArchives:
    @pytest.mark.parametrize("name", NAMES_OUT)
    def test_names_that_lead_out_are_not_read(self, tmp_path: Path, name: str) -> None:
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr(f"{name}.npy", npy(fields("(1,)")))

        with pytest.raises(ConversionError, match="has a name that leads out of the archive"):
            open_source(tmp_path / "a.npz")

    @pytest.mark.parametrize("name", NAMES_OUT)
    def test_nor_are_they_written(self, tmp_path: Path, name: str) -> None:
        vqformat.save_file({name: np.ones(3, np.float32)}, tmp_path / "a.vqm")

        with pytest.raises(ConversionError, match=r"would write outside its folder; extract to \.safetensors"):
            extract(tmp_path / "a.vqm", tmp_path / "b.npz")
        assert not (tmp_path / "b.npz").exists()

    @pytest.mark.parametrize("name", NAMES_INSIDE)
    def test_other_names_go_both_ways(self, tmp_path: Path, name: str) -> None:
        np.savez(tmp_path / "a.npz", **{name: np.ones(3, np.float32)})

        convert(tmp_path / "a.npz", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.npz")

        assert list(np.load(tmp_path / "b.npz")) == [name]

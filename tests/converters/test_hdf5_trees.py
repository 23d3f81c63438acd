"""Plain HDF5 trees: every dtype, attribute and link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from hdf5_trees import arrays_of, assert_same, tree_at

import vqformat
from vqformat.converters import convert, extract, open_source
from vqformat.errors import ConversionError

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'vqformat[keras]'")

pytestmark = pytest.mark.usefixtures("forked_libhdf5")


class TestPlainTree:
    def test_every_dtype_and_form(self, tmp_path: Path) -> None:
        arrays = {
            **{f"dtypes/{kind}": np.arange(5).astype(kind) - np.ones((), kind)
               for kind in ("<f2", "<f4", "<f8", "<i1", "<i2", "<i4", "<i8", "<c8", "<c16")},
            **{f"dtypes/{kind}": np.arange(5).astype(kind) for kind in ("<u1", "<u2", "<u4", "<u8")},
            "dtypes/big f8": np.array([1e300, -0.0, np.nan], ">f8"), "dtypes/big i4": np.array([[-5]], ">i4"),
            "dtypes/bool": np.array([True, False]), "forms/scalar": np.float32(2.5), "forms/empty": np.zeros((0, 4)),
            "forms/deflated": np.arange(5000, dtype="f4").reshape(50, 100), "ünï/ c.d/e": np.ones(3),
        }  # fmt: skip
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for path, array in arrays.items():
                more = {"chunks": (7, 13), "compression": "gzip", "shuffle": True} if "deflated" in path else {}
                file.create_dataset(path, data=array, **more)
            file.create_group("nothing/in/here")
            file.attrs["title"] = "a title"
            file["forms/scalar"].attrs["unit"] = np.array([1, 2], "<i2")

        found = arrays_of(tmp_path / "a.h5")
        convert(tmp_path / "a.h5", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")

        assert_same(found, arrays, is_ordered=False)
        assert_same(vqformat.load_file(tmp_path / "a.vqm"), arrays, is_ordered=False)
        assert tree_at(tmp_path / "b.h5") == tree_at(tmp_path / "a.h5")

    def test_attributes_of_every_type_come_back(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["group/w"] = np.ones(2)
            for owner in (file, file["group"], file["group/w"]):
                owner.attrs["text"] = "ünï"
                owner.attrs["texts"] = ["ü", "", "b"]
                owner.attrs["bytes"] = "bytes are taken for ASCII, ünï or not".encode()
                owner.attrs["no UTF-8"] = b"caf\xe9"
                owner.attrs["fixed"] = np.array([b"a\0b", b"a\0\0", b"\xff"], "S3")
                owner.attrs["none"] = []
                owner.attrs["no texts"] = np.array([], dtype=h5py.string_dtype())
                owner.attrs["bool"] = np.array([True, False])
                owner.attrs["half"] = np.float16(1.5)
                owner.attrs["matrix/ü"] = np.arange(6, dtype="<u2").reshape(1, 2, 3)
        convert(tmp_path / "a.h5", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")

        assert tree_at(tmp_path / "b.h5") == tree_at(tmp_path / "a.h5")

    def test_attributes_that_say_nothing_are_no_damage(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["w"] = np.ones(2)
            for k, kind in enumerate(("<f4", "S10", h5py.string_dtype())):
                file.attrs[f"null{k}"] = h5py.Empty(kind)
            file.attrs["reference"] = file["w"].ref
            file.attrs["record"] = np.zeros(2, [("a", "<f4"), ("b", "<i4")])

        with open_source(tmp_path / "a.h5") as source:
            assert [tensor.name for tensor in source.tensors] == ["w"]
            assert sum("reference" in note or "record" in note for note in source.notes) == 2

    def test_hard_links_are_aliases(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["a/w"] = np.arange(100.0)
            file["b"] = file["a/w"]
        convert(tmp_path / "a.h5", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.h5")

        with vqformat.safe_open(tmp_path / "a.vqm") as vqm:
            assert {name: vqm.info(name).alias_of for name in vqm} == {"a/w": None, "b": "a/w"}
        with h5py.File(tmp_path / "b.h5") as file:
            assert file["b"] == file["a/w"]

    def test_strings_are_left_out_and_said(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["w"] = np.ones(3)
            file["text"] = ["a", "b"]

        with open_source(tmp_path / "a.h5") as source:
            assert [tensor.name for tensor in source.tensors] == ["w"]
            assert any("text" in note for note in source.notes)

    @pytest.mark.parametrize("link", [h5py.SoftLink("/w"), h5py.ExternalLink("other.h5", "/w")], ids=["soft", "file"])
    def test_links_are_refused(self, tmp_path: Path, link: Any) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["w"] = np.ones(3)
            file["linked"] = link

        with pytest.raises(ConversionError, match="linked"):
            open_source(tmp_path / "a.h5")

    def test_a_file_without_numbers_is_refused(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_group("empty")

        with pytest.raises(ConversionError, match=r"a\.h5"):
            open_source(tmp_path / "a.h5")


def test_the_fixture_gives_the_tree_that_the_spec_says(tmp_path: Path) -> None:
    extract(FIXTURES / "valid" / "source-keras.vqm", tmp_path / "a.weights.h5")

    with h5py.File(tmp_path / "a.weights.h5") as file:
        assert file["layers/dense/vars/0"][:].tolist() == [[0, 1], [2, 3], [4, 5]]
        assert file["layers/dense/vars/1"][:].tolist() == [0.5, -2]
        assert file["layers/dense/vars"].attrs["name"] == "hid"
        assert list(file["layers/flatten/vars"]) == []

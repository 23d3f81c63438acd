"""ONNX models with data in other files, and those above 2 GiB, which need them."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx_files import (
    OUTSIDE,
    B,
    T,
    W,
    arrays_of,
    h,
    model_of,
    nh,
    outside,
    run,
    save,
)

from vqformat import ConversionError
from vqformat.converters import convert, extract, open_source

onnx = pytest.importorskip("onnx", reason="not installed: pip install 'vqformat[onnx]'")


class TestExternalData:
    def lay(self, folder: Path) -> Path:
        """A model folder with a file of data, beside a file that is nobody's business."""
        (folder / "secret").write_bytes(np.float32([6, 6, 6]).tobytes())
        (folder / "m").mkdir()
        (folder / "m" / "data").write_bytes(bytes(8) + np.float32([1, 2, 3]).tobytes())
        return folder / "m" / "a.onnx"

    @pytest.mark.parametrize("length", [{}, {"length": "12"}], ids=["without length", "with"])
    def test_a_file_beside_the_model_is_read(self, tmp_path: Path, length: dict[str, str]) -> None:
        path = save(self.lay(tmp_path), model_of([outside(location="data", offset="8", **length)]))

        report = convert(path, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.onnx")

        assert report.source_file_nbytes == 0 and report.grown == []  # the model is in two files
        found = onnx.load(tmp_path / "b.onnx")  # data inside
        assert nh.to_array(found.graph.initializer[0]).tolist() == [1, 2, 3]
        onnx.checker.check_model(found)

    def test_a_folder_of_links_is_read(self, tmp_path: Path) -> None:
        """As caches of downloads are: both files are links to one other folder."""
        path = save(self.lay(tmp_path), model_of([outside(location="data", offset="8")]))
        (tmp_path / "snapshot").mkdir()
        for name in ("a.onnx", "data"):
            (tmp_path / "snapshot" / name).symlink_to(path.parent / name)

        assert arrays_of(tmp_path / "snapshot" / "a.onnx")["t"].tolist() == [1, 2, 3]

    @pytest.mark.parametrize("location", ["./data", "sub/data", "./sub//data", "in/data", "data.1.2"])
    def test_a_file_below_the_model_is_read(self, tmp_path: Path, location: str) -> None:
        path = self.lay(tmp_path)
        (path.parent / "sub").mkdir()
        (path.parent / "in").symlink_to("sub")
        for name in ("sub/data", "data.1.2"):
            (path.parent / name).write_bytes((path.parent / "data").read_bytes())

        arrays = arrays_of(save(path, model_of([outside(location=location, offset="8")])))

        assert arrays["t"].tolist() == [1, 2, 3]

    def test_data_in_a_download_cache_is_read(self, tmp_path: Path) -> None:
        """There the snapshot of a large file is a link, and that of a small one may be a file."""
        path = self.lay(tmp_path)
        (tmp_path / "c" / "blobs").mkdir(parents=True)
        (tmp_path / "c" / "snapshots" / "rev" / "onnx").mkdir(parents=True)
        (path.parent / "data").rename(tmp_path / "c" / "blobs" / "0123")
        folder = tmp_path / "c" / "snapshots" / "rev" / "onnx"
        (folder / "data").symlink_to("../../../blobs/0123")

        arrays = arrays_of(save(folder / "a.onnx", model_of([outside(location="data", offset="8")])))

        assert arrays["t"].tolist() == [1, 2, 3]

    @pytest.mark.parametrize("entries", [
        {"location": "../secret"}, {"location": "..\\secret"}, {"location": "..", "offset": "0"}, {"location": "."}, {},
        {"location": "link"}, {"location": "up/secret"}, {"location": "sub/../../secret"}, {"location": "C:data"},
        {"location": "sub"}, {"location": "data/x"}, {"location": "pipe"}, {"location": "loop"}, {"location": "sub/"},
        {"location": "device", "length": "12"}, {"location": "d" * 300}, {"location": "da\0ta"},
        {"location": "absent"}, {"location": "data", "offset": "9"}, {"location": "data", "offset": "-8"},
        {"location": "data", "offset": "8 "}, {"location": "data", "offset": "9" * 19},
        {"location": "data", "offset": "9" * 5000}, {"location": "data", "offset": "٨"},
        {"location": "data", "offset": "8", "length": "11"}, {"location": "data", "length": "20"},
    ], ids=repr)  # fmt: skip
    def test_other_places_are_refused(self, tmp_path: Path, entries: dict[str, str]) -> None:
        path = self.lay(tmp_path)
        (path.parent / "link").symlink_to(tmp_path / "secret")
        (path.parent / "up").symlink_to(tmp_path)
        (path.parent / "loop").symlink_to(path.parent / "loop")
        (path.parent / "device").symlink_to("/dev/zero")
        (path.parent / "sub").mkdir()
        os.mkfifo(path.parent / "pipe")
        save(path, model_of([outside(**entries)]))

        with pytest.raises(ConversionError, match="'t'"):
            open_source(path)

    def test_absolute_paths_are_refused(self, tmp_path: Path) -> None:
        path = self.lay(tmp_path)
        save(path, model_of([outside(location=str(path.parent / "data"), offset="8")]))

        with pytest.raises(ConversionError, match="a plain file name is allowed"):
            open_source(path)

    def test_places_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        path = self.lay(tmp_path)
        data = model_of([outside(location="data", offset="8")]).SerializeToString()
        save(path, data.replace(b"\x04data", b"\x04\xff/.."))

        with pytest.raises(ConversionError):
            open_source(path)

    def test_what_stays_outside_is_said(self, tmp_path: Path) -> None:
        tensor = outside(location="data")
        tensor.data_type = T.INT2
        path = save(self.lay(tmp_path), model_of([tensor]))

        with open_source(path) as source:
            assert source.notes[1] == "1 of them keep their data in 'data', which the graph still needs beside it"

    def test_what_stays_in_the_graph_takes_its_data_along(self, tmp_path: Path) -> None:
        crumbs = outside(location="data", offset="8", length="1")
        crumbs.data_type = T.INT2
        indices = T(name="i", data_type=T.INT64, dims=[1], data_location=OUTSIDE)
        for key, value in (("location", "data"), ("offset", "0"), ("length", "8")):
            indices.external_data.add(key=key, value=value)
        sparse = h.make_sparse_tensor(nh.from_array(np.float32([5]), "s"), nh.from_array(np.array([0])), [4])
        sparse.indices.CopyFrom(indices)
        path = save(self.lay(tmp_path), model_of([crumbs], sparse_initializer=[sparse]))

        report = convert(path, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.onnx")

        graph = onnx.load(tmp_path / "b.onnx", load_external_data=False).graph
        assert graph.initializer[0].raw_data == b"\0" and graph.initializer[0].data_location == T.DEFAULT
        assert graph.sparse_initializer[0].indices.raw_data == bytes(8)
        assert len(report.notes) == 1 + len(report.grown)


def large() -> Any:
    """A model that is large for TestLargeModels: three initializers of 12 KiB, and a constant of as many."""
    nodes = [h.make_node("Constant", [], ["c"], value=nh.from_array(W * 5)),
             h.make_node("MatMul", ["x", "w0"], ["xw"]), h.make_node("Add", ["xw", "b"], ["y"])]  # fmt: skip
    four = nh.from_array(np.arange(2999).astype(ml_dtypes.int4), "four")
    return model_of([*(nh.from_array(W + i, f"w{i}") for i in range(3)), nh.from_array(B, "b"), four], nodes)


class TestLargeModels:
    """Models above the limit of protobuf, which is lowered here."""

    @pytest.fixture(autouse=True)
    def limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from vqformat.converters.export import onnx as export

        monkeypatch.setattr(export, "MAX_NBYTES", 24_000)

    def vqm(self, folder: Path, model: Any | None = None) -> Path:
        convert(save(folder / "a.onnx", model or large()), folder / "a.vqm", lossless=True)
        return folder / "a.vqm"

    def test_values_go_to_a_file_beside_the_model(self, tmp_path: Path) -> None:
        notes = extract(self.vqm(tmp_path), tmp_path / "b.onnx")

        assert notes == ["an ONNX model of more than 2 GiB keeps values in a second file: 'b.onnx.data' belongs beside"
                         " it"]  # fmt: skip
        assert (tmp_path / "b.onnx").stat().st_size < 24_000 < (tmp_path / "b.onnx.data").stat().st_size
        found = onnx.load(tmp_path / "b.onnx")
        for each in found.graph.initializer:  # onnx leaves a mark of where the values were
            each.ClearField("data_location")
        assert found == large()
        onnx.checker.check_model(tmp_path / "b.onnx", full_check=True)
        assert run(found).tobytes() == run(large()).tobytes()

    def test_small_tensors_and_constants_stay_inside(self, tmp_path: Path) -> None:
        extract(self.vqm(tmp_path), tmp_path / "b.onnx")

        graph = onnx.load(tmp_path / "b.onnx", load_external_data=False).graph
        places = {each.name: {entry.key: entry.value for entry in each.external_data} for each in graph.initializer}
        assert places == {
            "w0": {"location": "b.onnx.data", "offset": "0", "length": "12288"},
            "w1": {"location": "b.onnx.data", "offset": "12288", "length": "12288"},
            "w2": {"location": "b.onnx.data", "offset": "24576", "length": "12288"},
            "b": {}, "four": {"location": "b.onnx.data", "offset": "36864", "length": "1500"},
        }  # fmt: skip
        assert len(graph.node[0].attribute[0].t.raw_data) == 12288

    def test_constants_go_outside_if_nothing_else_helps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from vqformat.converters.export import onnx as export

        monkeypatch.setattr(export, "MAX_NBYTES", 9_000)

        extract(self.vqm(tmp_path), tmp_path / "b.onnx")

        assert nh.to_array(onnx.load(tmp_path / "b.onnx").graph.node[0].attribute[0].t).tobytes() == (W * 5).tobytes()

    def test_the_way_back_is_the_same_file(self, tmp_path: Path) -> None:
        first = self.vqm(tmp_path)
        extract(first, tmp_path / "b.onnx")

        convert(tmp_path / "b.onnx", tmp_path / "b.vqm", lossless=True)

        assert (tmp_path / "b.vqm").read_bytes() == first.read_bytes()

    def test_one_tensor_at_a_time_is_in_memory(self, tmp_path: Path) -> None:
        model = model_of([nh.from_array(np.full((1 << 20), i, np.float32), f"w{i}") for i in range(8)])
        source = self.vqm(tmp_path, model)

        tracemalloc.start()
        extract(source, tmp_path / "b.onnx")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 16 << 20
        assert (tmp_path / "b.onnx.data").stat().st_size == 32 << 20

    @pytest.mark.parametrize("existing", ["b.onnx", "b.onnx.data"])
    def test_neither_file_is_replaced_without_leave(self, tmp_path: Path, existing: str) -> None:
        source = self.vqm(tmp_path)
        (tmp_path / existing).write_bytes(b"mine")
        before = sorted(os.listdir(tmp_path))

        with pytest.raises(FileExistsError, match=f"{existing}' exists"):
            extract(source, tmp_path / "b.onnx")

        assert sorted(os.listdir(tmp_path)) == before and (tmp_path / existing).read_bytes() == b"mine"
        extract(source, tmp_path / "b.onnx", overwrite=True)
        assert len(onnx.load(tmp_path / "b.onnx").graph.initializer) == 5

    @pytest.mark.parametrize("n_before", [0, 1])
    def test_nothing_is_left_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_before: int) -> None:
        source = self.vqm(tmp_path)
        before = sorted(os.listdir(tmp_path))
        calls: list[Any] = []

        def failing(give_name: Any) -> Any:
            def fail(old: Any, new: Any, **options: Any) -> None:
                calls.append(new)
                if len(calls) > n_before:
                    raise OSError(5, "Input/output error", str(old))
                give_name(old, new, **options)

            return fail

        monkeypatch.setattr(os, "replace", failing(os.replace))
        monkeypatch.setattr(os, "link", failing(os.link))
        with pytest.raises(OSError, match=r"error: '.*/b\.onnx(\.data)?'"):
            extract(source, tmp_path / "b.onnx")

        assert sorted(os.listdir(tmp_path)) == before

    def test_a_file_that_the_graph_needs_is_not_replaced(self, tmp_path: Path) -> None:
        crumbs = T(name="crumbs", data_type=T.INT2, dims=[4], data_location=OUTSIDE)
        crumbs.external_data.add(key="location", value="b.onnx.data")
        model = large()
        model.graph.initializer.append(crumbs)
        source = self.vqm(tmp_path, model)

        with pytest.raises(ConversionError, match="give another name"):
            extract(source, tmp_path / "b.onnx")
        assert extract(source, tmp_path / "c.onnx")[1] == "the graph needs 'b.onnx.data' of its source beside it"

    def test_a_pipe_has_nothing_beside_it(self, tmp_path: Path) -> None:
        source = self.vqm(tmp_path)
        (tmp_path / "b.onnx").symlink_to("/dev/null")

        with pytest.raises(ConversionError, match="are possible; extract to"):
            extract(source, tmp_path / "b.onnx", overwrite=True)

    @pytest.mark.parametrize("name", ["a\\b.onnx", "a:b.onnx"])
    def test_a_name_that_no_model_can_have(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ConversionError, match="choose another name"):
            extract(self.vqm(tmp_path), tmp_path / name)

    def test_too_many_small_tensors_are_refused(self, tmp_path: Path) -> None:
        model = model_of([nh.from_array(np.ones(100, np.float32), f"w{i}") for i in range(100)])

        with pytest.raises(ConversionError, match="at most 24,000 are possible"):
            extract(self.vqm(tmp_path, model), tmp_path / "b.onnx")

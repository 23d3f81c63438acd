"""Files of statistics."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import names

import vqformat
from vqformat.encode.calibration import Calibration, TensorStatistics
from vqformat.errors import EncodeError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")


def blocks(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)


@st.composite
def all_statistics(draw: st.DrawFn) -> TensorStatistics:
    groups = draw(st.none() | st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=12))
    moments = None if groups is None else tuple(tuple(blocks(n, i) for i, n in enumerate(group)) for group in groups)
    counts = draw(st.none() | st.lists(st.integers(0, 1 << 60), max_size=5))
    return TensorStatistics(
        draw(st.floats(0, 1e30)), moments, draw(st.integers(0, 1 << 60)),
        None if counts is None else np.array(counts, np.int64),
    )  # fmt: skip


def plain(found: TensorStatistics) -> tuple[Any, ...]:
    """The same, to be compared."""
    moments = None if found.moments is None else [[block.tolist() for block in group] for group in found.moments]
    return found.importance, moments, found.n_observed, None if found.row_counts is None else found.row_counts.tolist()


class TestFiles:
    @given(st.dictionaries(names(), all_statistics(), max_size=12))
    @examples(25)
    def test_statistics_come_back(self, tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any]) -> None:
        path = tmp_path_factory.mktemp("calibration") / "a.calibration"  # no suffix is added

        Calibration(tensors, ["inputs"], "logits").save(path)
        found = Calibration.load(path)

        assert list(found.tensors) == list(tensors) and found.inputs == [] and found.loss == "logits"
        assert [plain(value) for value in found.tensors.values()] == [plain(value) for value in tensors.values()]

    @given(st.data())
    @examples(150)
    def test_a_damaged_file_is_refused_or_read_as_it_was(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "damaged.npz"
        counts = np.arange(4)
        tensors = {"a": TensorStatistics(1.5, ((blocks(3, 0),),), 4), "b": TensorStatistics(0.5, row_counts=counts)}
        Calibration(tensors).save(path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.sampled_from([None, len(content) // 2, 0]))])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy has some for odd files
            try:
                found = Calibration.load(path).tensors
            except EncodeError:
                return

        values = {name: plain(value) for name, value in tensors.items()}
        assert {name: plain(value) for name, value in found.items()}.items() <= values.items()

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        def arrays(path: Path, **found: Any) -> None:
            with open(path, "wb") as stream:
                np.savez(stream, **found)

        fine = {"format": np.array(1), "0/name": np.array("w"), "0/importance": np.array(1.0)}
        fine["0/n_observed"] = np.array(1)
        path = tmp_path / "other"
        for content in (b"", b"text", b"PK\3\4", vqformat.save({"w": np.ones(3, np.float32)})):
            path.write_bytes(content)
            with pytest.raises(EncodeError, match="other' is no saved calibration"):
                Calibration.load(path)
        with open(path, "wb") as stream:
            np.save(stream, np.ones(3))
        with pytest.raises(EncodeError, match="no saved calibration"):
            Calibration.load(path)
        for change in ({"0/name": None}, {"0/importance": np.array("x")}, {"0/moments/x": np.ones((2, 2))}):
            arrays(path, **{key: value for key, value in {**fine, **change}.items() if value is not None})
            with pytest.raises(EncodeError, match="no saved calibration"):
                Calibration.load(path)
        arrays(path, **{**fine, "format": np.array(2)})
        with pytest.raises(EncodeError, match="another version of this package"):
            Calibration.load(path)
        arrays(path, **fine)
        found = Calibration.load(path)
        assert found.tensors.keys() == {"w"} and found.loss == "values"
        assert (found.tensors["w"].importance, found.tensors["w"].n_observed) == (1.0, 1)

    def test_no_pickle_is_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        objects = np.empty(1, object)
        objects[0] = Tripwire(tmp_path / "harm")
        contents = io.BytesIO()
        np.savez(contents, format=np.array(1), **{"0/name": objects, "0/importance": objects})
        for content in (contents.getvalue(), pickle.dumps(objects[0])):
            path.write_bytes(content)
            with pytest.raises(EncodeError, match="no saved calibration"):
                Calibration.load(path)
        assert not (tmp_path / "harm").exists()

    def test_a_file_is_replaced_only_if_that_is_allowed(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        Calibration({}).save(path, overwrite=False)
        with pytest.raises(FileExistsError):
            Calibration({"w": TensorStatistics(1.0)}).save(path, overwrite=False)
        assert Calibration.load(path).tensors == {}
        Calibration({"w": TensorStatistics(1.0)}).save(path)
        assert list(Calibration.load(path).tensors) == ["w"]

    def test_a_missing_file_stays_one(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Calibration.load(tmp_path / "a.npz")


class Tripwire:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)

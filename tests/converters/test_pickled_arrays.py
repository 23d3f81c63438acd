"""Arrays in pickles that torch.save did not write: of model zoos, of numpy.save with objects. Nothing in them runs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqformat.converters import convert, extract, open_source
from vqformat.errors import ConversionError

MODEL: dict[str, Any] = {"conv": {"weights": np.ones((3, 4), np.float32), "biases": np.zeros(4)}, "ids": [np.arange(3)],
                         "epoch": 3}  # fmt: skip
NAMES = ["conv.weights", "conv.biases", "ids.0"]


def load(path: Path) -> dict[str, np.ndarray]:
    with open_source(path) as source:
        return {tensor.name: tensor.load() for tensor in source.tensors}


def is_same(found: dict[str, np.ndarray], expected: list[Any]) -> bool:
    arrays = list(found.values())
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(arrays, expected, strict=True))


EXPECTED = [MODEL["conv"]["weights"], MODEL["conv"]["biases"], MODEL["ids"][0]]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_arrays(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(MODEL, protocol))

    found = load(tmp_path / "a.pkl")

    assert list(found) == NAMES and is_same(found, EXPECTED)


def test_a_dict_of_arrays_by_numpy_save(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", MODEL, allow_pickle=True)

    found = load(tmp_path / "a.npy")

    assert list(found) == NAMES and is_same(found, EXPECTED)


def test_a_list_of_arrays_by_numpy_save(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([np.ones((2, 3)), np.zeros(4)], object), allow_pickle=True)

    assert {name: array.shape for name, array in load(tmp_path / "a.npy").items()} == {"0": (2, 3), "1": (4,)}


def test_an_archive_with_a_dict_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(2), model=MODEL, labels=np.array(["cat", None]))

    with open_source(tmp_path / "a.npz") as source:
        found = {tensor.name: tensor.load() for tensor in source.tensors}

        assert list(found) == ["w", *(f"model.{name}" for name in NAMES)] and is_same(found, [np.ones(2), *EXPECTED])
        assert source.left_out == ["left out 'labels': pickled Python objects, which are never loaded"]


def test_the_structure_comes_back_as_a_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="not installed: pip install 'vqformat[torch]'")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(MODEL))

    convert(tmp_path / "a.pkl", tmp_path / "a.vqm", lossless=True)
    extract(tmp_path / "a.vqm", tmp_path / "a.pt")

    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(found) == ["conv", "ids", "epoch"] and list(found["conv"]) == list(MODEL["conv"])
    assert found["epoch"] == 3 and found["ids"][0].tolist() == [0, 1, 2]


def test_records_become_a_tensor_for_each_field(tmp_path: Path) -> None:
    records = np.zeros(3, [("x", "<f4"), ("box", "<i2", (2,)), ("label", "U4")])
    records["x"], records["box"] = [1, 2, 3], [[1, 2], [3, 4], [5, 6]]
    np.savez(tmp_path / "a.npz", w=np.ones(2), r=records)
    np.save(tmp_path / "r.npy", records)

    with open_source(tmp_path / "a.npz") as source:
        assert source.left_out == []
        assert [tensor.name for tensor in source.tensors] == ["w", "r.x", "r.box"]
        assert [(tensor.dtype, tensor.shape) for tensor in source.tensors[1:]] == [("f32", (3,)), ("i16", (3, 2))]
    for found in (load(tmp_path / "a.npz"), load(tmp_path / "r.npy")):
        assert found["r.x"].tolist() == [1, 2, 3] and found["r.box"].tolist() == [[1, 2], [3, 4], [5, 6]]


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["a.pkl", "a.npy", "a.npz"])
def test_calls_are_not_made(tmp_path: Path, name: str) -> None:
    model: Any = {"w": np.ones(3), "x": Attack(tmp_path / "ran")}
    if name == "a.pkl":
        (tmp_path / name).write_bytes(pickle.dumps(model))
    else:
        (np.save if name == "a.npy" else np.savez)(tmp_path / name, model, allow_pickle=True)

    assert [array.tolist() for array in load(tmp_path / name).values()] == [[1, 1, 1]]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("content", "why"), [
    (pickle.dumps({"w": np.ones(9)})[:-20], "damaged"), (pickle.dumps({"w": np.ones(9)}) + b"x", "more follows"),
    (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "os.system"), (pickle.dumps({"a": 1}), "no arrays"),
])  # fmt: skip
def test_what_has_no_arrays_is_refused_with_the_reason(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.pkl").write_bytes(content)

    with pytest.raises(ConversionError, match=why):
        open_source(tmp_path / "a.pkl")

"""What is in HDF5 files, and how what comes back from a conversion is compared with it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqformat.converters import open_source

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'vqformat[keras]'")

WEIGHTS = "model.weights.h5"


def tree_of(file: Any) -> dict[str, Any]:
    """All that an HDF5 file says: of each object its kind, values and attributes with their types."""
    found: dict[str, Any] = {}

    def attributes(owner: Any) -> dict[str, Any]:
        result = {}
        for name in owner.attrs:
            attribute = h5py.h5a.open(owner.id, name.encode())
            kind = attribute.get_type()
            text = (kind.is_variable_str(), kind.get_cset()) if isinstance(kind, h5py.h5t.TypeStringID) else None
            value = owner.attrs[name]
            listed = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
            result[name] = (text, str(attribute.dtype), attribute.shape, listed)
        return result

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            # byte order is not a value
            found[path] = (item.dtype.newbyteorder("<").str, item.shape,
                           item[()].astype(item.dtype.newbyteorder("<")).tobytes(), attributes(item))  # fmt: skip
        else:
            found[path] = ("group", attributes(item))

    found[""] = attributes(file)
    file.visititems(visit)
    return found


def tree_at(path: Path, member: str = "") -> dict[str, Any]:
    if member:
        with zipfile.ZipFile(path) as archive:
            source: Any = io.BytesIO(archive.read(member))
    else:
        source = path
    with h5py.File(source, "r") as file:
        return tree_of(file)


def tree_of_model(path: Path) -> dict[str, Any]:
    return tree_at(path, WEIGHTS if path.suffix == ".keras" else "")


def without(tree: dict[str, Any], group: str) -> dict[str, Any]:
    return {path: what for path, what in tree.items() if path != group and not path.startswith(group + "/")}


def arrays_of(path: Path, **options: Any) -> dict[str, Any]:
    with open_source(path, **options) as source:
        return {tensor.name: np.array(tensor.load()) for tensor in source.tensors}


def same_bits(found: Any, expected: Any) -> bool:
    found, expected = (array.astype(array.dtype.newbyteorder("<")) for array in map(np.asarray, (found, expected)))
    return bool(found.dtype == expected.dtype and found.shape == expected.shape
                and found.tobytes() == expected.tobytes())  # fmt: skip


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, is_ordered: bool = True) -> None:
    if is_ordered:
        assert list(found) == list(expected)
    else:
        assert sorted(found) == sorted(expected)
    assert [name for name in expected if not same_bits(found[name], expected[name])] == []


def error_of(found: Any, expected: Any) -> float:
    """Relative error, Frobenius norm."""
    found, expected = (np.asarray(array, np.float64) for array in (found, expected))
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-9))

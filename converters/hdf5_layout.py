"""The structure of an HDF5 file in ``vqm.source``, from which it can be written again (SPEC section 18)."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from vqformat.errors import ConversionError

MAX_LEVELS = 100  # of nested groups
MAX_PATH_NBYTES = 4096
MAX_GROUPS = 1 << 18
MAX_OWNER_ATTRIBUTES = 1 << 12  # of one object; HDF5 needs quadratic time for them

ATTRIBUTE_TYPE = re.compile(r"[<|][biuf][1248]|\|S[1-9]\d{0,7}")  # names of NumPy dtypes, little-endian
UTF8, ASCII = "utf-8", "ascii"  # types of attributes that are strings

# Type, shape and data of an attribute. The type is the name of a NumPy dtype, and the data are bytes; or the type is
# UTF8 or ASCII, and the data are a list of strings
Attribute = tuple[str, list[int], Any]


@dataclass
class TreeLayout:
    """All of an HDF5 file except the values of its datasets.

    Attributes:
        datasets: Path of each dataset -> name of its tensor.
        groups: Paths of the empty groups.
        attributes: Attributes by the path of their owner and their name.
    """

    datasets: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    attributes: dict[tuple[str, str], Attribute] = field(default_factory=dict)

    def without(self, prefix: str) -> TreeLayout:
        """The layout without a group and everything in it."""

        def is_kept(path: str) -> bool:
            return path != prefix and not path.startswith(prefix + "/")

        return TreeLayout({path: name for path, name in self.datasets.items() if is_kept(path)},
                      [path for path in self.groups if is_kept(path)],
                      {key: value for key, value in self.attributes.items() if is_kept(key[0])})  # fmt: skip

    def to_metadata(self) -> dict[str, Any]:
        """The layout as fields of ``vqm.source``."""
        return {"datasets": [[path, name] for path, name in self.datasets.items()], "groups": self.groups,
                "attributes": [[*key, *value] for key, value in self.attributes.items()]}  # fmt: skip

    @classmethod
    def from_metadata(cls, origin: dict[str, Any]) -> TreeLayout:
        """The inverse of ``to_metadata``.

        Args:
            origin: ``vqm.source``, which may come from an untrusted file.

        Raises:
            ConversionError: It is malformed.
        """
        datasets, groups, attributes = (origin.get(key) for key in ("datasets", "groups", "attributes"))
        if not (_is_table(datasets, (str, str)) and _is_table(attributes, (str, str, str, list, object))
                and isinstance(groups, list) and all(isinstance(path, str) for path in groups)):  # fmt: skip
            raise ConversionError("the file says that it came from HDF5, but its vqm.source does not say how; extract"
                                  " to .safetensors, .npz or .pt")  # fmt: skip
        assert isinstance(datasets, list) and isinstance(attributes, list)
        _check_paths({path for path, _ in datasets}, {*groups, *(path for path, *_ in attributes)} - {""})
        counts = Counter(path for path, *_ in attributes)
        if counts and max(counts.values()) > MAX_OWNER_ATTRIBUTES:
            raise ConversionError(f"vqm.source: {max(counts.values())} attributes of one object; at most"
                                  f" {MAX_OWNER_ATTRIBUTES} are written")  # fmt: skip
        layout = cls({path: name for path, name in datasets}, groups)
        for path, name, *value in attributes:
            _attribute_array(path, name, *value)
            layout.attributes[path, name] = (value[0], value[1], value[2])
        return layout

    def attribute_arrays(self) -> dict[tuple[str, str], tuple[str, npt.NDArray[Any]]]:
        """Type and value of each attribute, for h5py."""
        return {key: (value[0], _attribute_array(*key, *value)) for key, value in self.attributes.items()}


def check_path(path: str) -> None:
    """Raise ConversionError unless an HDF5 object may have this path."""
    parts = path.split("/") if len(path) <= MAX_PATH_NBYTES else []
    if "\0" in path or not 0 < len(parts) <= MAX_LEVELS or any(part in ("", ".", "..") for part in parts):
        raise ConversionError(f"{path[:100]!r} cannot be the path of an HDF5 object; extract to .safetensors or .npz")


def _check_paths(datasets: set[str], others: set[str]) -> None:
    """Raise ConversionError unless all paths can be in one file: a dataset must not be a group, too."""
    groups: set[str] = set()
    for path in datasets | others:
        check_path(path)
        while (path := path.rpartition("/")[0]) and path not in groups:
            groups.add(path)
    groups |= others - datasets
    if len(groups) > MAX_GROUPS:
        raise ConversionError(f"vqm.source: {len(groups)} HDF5 groups; at most {MAX_GROUPS} are written")
    both = groups & datasets
    if both:
        raise ConversionError(f"vqm.source: {min(both)!r} is a dataset and has members, which HDF5 cannot have")


def _attribute_array(path: str, name: str, kind: Any, shape: Any, data: Any) -> npt.NDArray[Any]:
    """The value of an attribute. Its size is checked before memory is allocated."""
    try:
        sizes = [int(size) for size in shape]
        if not name or "\0" in name or len(sizes) > 32 or any(size < 0 for size in sizes):
            raise ValueError(f"shape {shape[:33]}")
        if kind in (UTF8, ASCII):
            if prod(sizes) != len(data) or not all(map(_is_text, data)):
                raise ValueError(f"{len(data)} strings")
            array = np.empty(len(data), object)
            array[:] = [text.encode() if isinstance(text, str) else text for text in data]
            return array.reshape(sizes)
        if not ATTRIBUTE_TYPE.fullmatch(kind):
            raise ValueError(f"type {kind[:40]!r}")
        dtype = np.dtype(kind)
        if len(data) != prod(sizes) * dtype.itemsize:
            raise ValueError(f"{kind} of {len(data)} bytes")
        return np.frombuffer(bytes(data), dtype).reshape(sizes)
    except (TypeError, ValueError, IndexError) as err:
        raise ConversionError(f"vqm.source: {name[:100]!r} of {path[:100]!r} is no attribute ({err})") from err


def _is_text(value: Any) -> bool:
    return (isinstance(value, str) and "\0" not in value) or (isinstance(value, bytes) and 0 not in value)


def _is_table(rows: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == len(kinds) and all(map(isinstance, row, kinds)) for row in rows
    )

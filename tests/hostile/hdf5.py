"""Faults in an HDF5 file, each of them in the three layouts that Keras and others write."""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from .cases import CASES, GOOD, REFUSED, SECRET, VICTIM, Case, Patch, secret_folder
from .keras_zip import write_archive


@dataclass(frozen=True)
class Place:
    """Where an HDF5 file gets its fault."""

    group: h5py.Group
    name: str
    folder: Path

    def put(self, **options: Any) -> h5py.Dataset:
        """What the sibling has: a dataset of VICTIM."""
        return self.group.create_dataset(self.name, data=VICTIM, **options)

    def create(self, properties: h5p.PropDCID, shape: tuple[int, ...], dtype: Any = "<f4",
               maximum: tuple[int, ...] | None = None) -> h5d.DatasetID:  # fmt: skip
        """A dataset by the low-level API, nothing written."""
        space = h5s.create_simple(shape, maximum)
        return h5d.create(self.group.id, self.name.encode(), h5t.py_create(np.dtype(dtype)), space, properties)

    def secret(self) -> str:
        """The path of an HDF5 file with SECRET in it."""
        path = secret_folder(self.folder) / "secret.h5"
        with h5py.File(path, "w") as file:
            file["w"] = SECRET
            file["group/w"] = SECRET
        return str(path)


def chunked(sizes: tuple[int, ...], n_gzip: int = 1) -> h5p.PropDCID:
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk(sizes)
    for _ in range(n_gzip):
        properties.set_deflate(9)
    return properties


@functools.cache
def zeros_deflated(nbytes: int, times: int = 1) -> bytes:
    """Zeros as a zlib stream, of a zlib stream, …"""
    writer = zlib.compressobj(9, strategy=zlib.Z_RLE)  # the same bytes in less than half the time
    data = writer.compress(bytes(nbytes)) + writer.flush()
    for _ in range(times - 1):
        data = zlib.compress(data, 9)
    return data


Fault = Callable[[Place, bool], "Patch | None"]


def patched(stream: io.BytesIO, patch: Patch | None) -> bytes:
    """The bytes of a file, changed where HDF5's own calls cannot change them."""
    return stream.getvalue() if patch is None else patch(stream.getvalue())


def write_tree(fault: Fault, path: Path, is_hostile: bool) -> None:
    """A plain HDF5 file: ``dense/kernel`` and ``dense/bias``."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["dense/kernel"] = GOOD
        patch = fault(Place(file["dense"], "bias", path.parent), is_hostile)
    path.write_bytes(patched(stream, patch))


def write_legacy(fault: Fault, path: Path, is_hostile: bool) -> None:
    """The weights of Keras 2: ``layer_names`` at the root, ``weight_names`` at each layer."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        legacy_root(file)
        file["dense/dense/kernel:0"] = GOOD
        file["dense"].attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
        patch = fault(Place(file["dense/dense"], "bias:0", path.parent), is_hostile)
    path.write_bytes(patched(stream, patch))


def write_keras(fault: Fault, path: Path, is_hostile: bool) -> None:
    """A ``.keras`` archive of Keras 3, whose ``model.weights.h5`` has the fault."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["layers/dense/vars/0"] = GOOD
        patch = fault(Place(file["layers/dense/vars"], "1", path.parent), is_hostile)
    write_archive(path, {"model.weights.h5": patched(stream, patch)})


LAYOUTS = {"tree": (write_tree, ".h5"), "legacy": (write_legacy, ".h5"), "keras": (write_keras, ".keras")}
EVERYWHERE = tuple(LAYOUTS)


def legacy_root(file: h5py.File, layers: list[bytes] | None = None) -> None:
    file.attrs["layer_names"] = layers if layers is not None else [b"dense"]
    file.attrs["backend"] = "tensorflow"
    file.attrs["keras_version"] = "2.15.0"


def add(name: str, abuse: str, fault: Fault, *, text: str, outcome: str = REFUSED,
        layouts: tuple[str, ...] = EVERYWHERE, hangs: bool = False) -> None:  # fmt: skip
    """Register a fault in each of the layouts."""
    for layout in layouts:
        write, suffix = LAYOUTS[layout]
        CASES.append(Case(f"{name}-{layout}", suffix, functools.partial(write, fault), outcome, text, abuse,
                          hangs=hangs))  # fmt: skip


def hdf5(text: str = "", outcome: str = REFUSED, layouts: tuple[str, ...] = EVERYWHERE) -> Callable[[Fault], Fault]:
    """Register a function as a fault by its name, its docstring says what it abuses."""

    def register(fault: Fault) -> Fault:
        add(fault.__name__, str(fault.__doc__), fault, text=text, outcome=outcome, layouts=layouts)
        return fault

    return register

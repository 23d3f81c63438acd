"""Writing tensors to an HDF5 file: with the tree of the source file, or with one made from their names."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError, missing_package

from ..hdf5_layout import ASCII, UTF8, Attribute, TreeLayout, check_path
from ..source import Source
from .npz import numpy_dtype

try:
    import h5py
except ImportError as err:
    raise missing_package("Keras and HDF5 files need", "h5py", err) from err

_LARGE_ATTRIBUTE_NBYTES = 64_000
FROM_HDF5 = ("keras", "keras-weights", "keras-legacy", "hdf5")


def write_hdf5(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
    """Write an HDF5 file.

    If the source was a Keras or HDF5 file, its tree is restored. Otherwise each tensor becomes a dataset, with groups
    for the parts of its name between slashes. If tensors were selected, groups and their attributes are not restored.
    bfloat16 is stored as in Keras: as raw bytes, with an attribute ``dtype``.

    Raises:
        ConversionError: A name cannot be a path, or the metadata of the file is malformed.
    """
    kind = source.origin.get("format")
    if kind not in FROM_HDF5 or "datasets" not in source.origin:
        layout = TreeLayout({tensor.name: tensor.name for tensor in tensors})
        said: Attribute = UTF8, [], ["bfloat16"]
        layout.attributes = {(tensor.name, "dtype"): said for tensor in tensors if tensor.dtype == "bf16"}
        write_tree(stream, tensors, layout, notes)
        return
    layout = TreeLayout.from_metadata(source.origin)
    names = {tensor.name for tensor in tensors}
    if not names.issuperset(layout.datasets.values()):
        datasets = {path: name for path, name in layout.datasets.items() if name in names}
        attributes = {key: value for key, value in layout.attributes.items() if key[0] in datasets}
        layout = TreeLayout(datasets, [], attributes)
        notes.append("a selection: the source's groups and their attributes were left out")
    elif kind in ("keras", "keras-weights"):
        notes.append("Keras loads this file under a name that ends in .weights.h5")
    write_tree(stream, tensors, layout, notes)


def write_tree(stream: BinaryIO, tensors: list[SourceTensor], layout: TreeLayout, notes: list[str]) -> None:
    """Write the datasets, groups and attributes of a layout, with one tensor in memory at a time.

    Tensors that the layout does not have become datasets by their names.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    placed = set(layout.datasets.values())
    places = [*layout.datasets.items(), *((name, name) for name in by_name if name not in placed)]
    attributes = layout.attribute_arrays()
    written: dict[str, str] = {}  # name of a tensor that is not an alias -> path of its dataset
    # The oldest HDF5 format stores attributes in a header of at most 64 KiB
    is_large = any(value.nbytes >= _LARGE_ATTRIBUTE_NBYTES for _, value in attributes.values())
    with h5py.File(stream, "w", libver="v108" if is_large else None) as file:
        for path, name in places:
            check_path(path)
            tensor = by_name[name]
            first = written.setdefault(tensor.alias_of or name, path)
            try:
                if first != path:
                    file[path] = file[first]
                    continue
                file.create_dataset(path, data=_storable(tensor, notes))
            except (ValueError, RuntimeError, TypeError, OSError) as err:
                if getattr(err, "errno", None):
                    raise  # an error of the disk
                raise ConversionError(f"tensor {name!r} cannot be the dataset {path!r}: another name is in the"
                                      f" way ({err}); extract to .safetensors or .npz") from err  # fmt: skip
        for path in layout.groups:
            _owner(file, path)
        for (path, name), (kind, value) in attributes.items():
            _write_attribute(_owner(file, path), name, kind, value)


def _owner(file: Any, path: str) -> Any:
    """The object at a path: the root, an existing dataset, or a group, which is created if needed."""
    try:
        return file[path or "/"] if not path or path in file else file.require_group(path)
    except (ValueError, RuntimeError, TypeError, KeyError) as err:
        raise ConversionError(f"{path!r} cannot be an HDF5 group ({err})") from err


def _write_attribute(owner: Any, name: str, kind: str, value: Any) -> None:
    try:
        if kind in (UTF8, ASCII):
            owner.attrs.create(name, value if value.shape else value[()], dtype=h5py.string_dtype(kind))
        else:
            owner.attrs.create(name, value)
    except (ValueError, RuntimeError, TypeError, OSError) as err:
        raise ConversionError(f"attribute {name!r} of {owner.name!r} cannot be written ({err})") from err


def _storable(tensor: SourceTensor, notes: list[str]) -> npt.NDArray[Any]:
    """The array of a tensor in a dtype that HDF5 has; others are converted to a wider one with the same values."""
    array = np.asarray(tensor.load())
    if tensor.dtype == "bf16":
        return array  # h5py writes raw elements of 2 bytes
    wide = numpy_dtype(tensor.dtype)
    if array.dtype == wide:
        return array
    notes.append(f"{tensor.name!r} has dtype {tensor.dtype}, which HDF5 does not have: stored as {wide}, same values")
    return array.astype(wide)

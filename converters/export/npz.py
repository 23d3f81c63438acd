"""Writing tensors to a NumPy archive."""

from __future__ import annotations

import zipfile
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError
from vqformat.format.dtypes import BY_NAME

from ..source import Source
from ..zip_archive import leads_out


def write_npz(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
    """Write an archive as ``numpy.savez`` does, with a fixed date.

    Dtypes that NumPy lacks are converted to wider ones with the same values.

    Raises:
        ConversionError: A name has a character U+0000, or would lead out of the folder where the archive is unpacked.
    """
    with zipfile.ZipFile(stream, "w") as archive:
        for tensor in tensors:
            if "\0" in tensor.name:
                raise ConversionError(f"tensor {tensor.name!r}: a NumPy archive cannot hold a name with U+0000")
            if leads_out(tensor.name + ".npy"):
                raise ConversionError(f"tensor {tensor.name!r}: unpacking a NumPy archive with this name would write"
                                      " outside its folder; extract to .safetensors or .pt")  # fmt: skip
            array = tensor.load()
            wide = numpy_dtype(tensor.dtype)
            if array.dtype != wide:
                array = array.astype(wide)
                notes.append(f"{tensor.name!r} has dtype {tensor.dtype}, which NumPy does not have: stored as {wide},"
                             " same values")  # fmt: skip
            with archive.open(zipfile.ZipInfo(tensor.name + ".npy"), "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)
            if tensor.alias_of is not None:
                notes.append(f"{tensor.name!r} is tied to {tensor.alias_of!r}; NumPy cannot tell: stored as a copy")
    if source.metadata:
        notes.append("a NumPy archive has no metadata: left out")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype that holds all values of a dtype: 8 bits for 4-bit integers, float32 for floats of ml_dtypes."""
    info = BY_NAME[name]
    if name in ("u4", "i4"):
        return np.dtype(info.numpy_name.replace("4", "8"))
    return info.numpy if hasattr(np, info.numpy_name) else np.dtype("<f4")

"""Writing Keras 3 files, ``.weights.h5`` and ``.keras``, from tensors and the structure that the source file had."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO, cast

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError

from ..hdf5_layout import TreeLayout
from ..keras import CONFIG, WEIGHTS
from ..source import Source
from ..zip_archive import is_unsafe
from .hdf5 import write_tree


def write_weights(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
    """Write a ``.weights.h5`` for ``model.load_weights``.

    Raises:
        ConversionError: The source was not a Keras 3 file, or not all of its tensors are selected.
    """
    layout = _layout(tensors, source, ".weights.h5", ("keras", "keras-weights"))
    write_tree(stream, tensors, layout, notes)


def write_keras(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
    """Write a ``.keras`` archive for ``keras.saving.load_model``. Its other members are those of the source.

    Raises:
        ConversionError: The source was not a ``.keras``, or not all of its tensors are selected.
    """
    layout = _layout(tensors, source, ".keras", ("keras",))
    members = source.origin.get("members")
    if not isinstance(members, dict) or CONFIG not in members:
        raise ConversionError(f"a .keras needs the {CONFIG} of its source, which was left out; extract to .weights.h5")
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in sorted(members.items()):
            if is_unsafe(name) or name.endswith("/") or name == WEIGHTS or not isinstance(data, bytes):
                raise ConversionError(f"vqm.source has a member {name[:100]!r}, which no .keras can have")
            archive.writestr(zipfile.ZipInfo(name), data)
        # A temporary file, because HDF5 is not written front to back as a member of an archive must be
        with tempfile.TemporaryFile(dir=Path(stream.name).parent) as weights:
            write_tree(cast(BinaryIO, weights), tensors, layout, notes)
            weights.seek(0)
            with archive.open(zipfile.ZipInfo(WEIGHTS), "w", force_zip64=True) as member:
                shutil.copyfileobj(weights, member, 1 << 20)


def _layout(tensors: list[SourceTensor], source: Source, suffix: str, kinds: tuple[str, ...]) -> TreeLayout:
    kind = source.origin.get("format")
    if kind not in kinds:
        came = f"came from {kind}" if isinstance(kind, str) else "does not say where it came from"
        works = ".h5" if kind in ("keras-legacy", "hdf5") else ".safetensors, .pt, .npz or .h5"
        works = ".weights.h5" if kind == "keras-weights" else works
        raise ConversionError(f"the file {came}, so no {suffix} can be made that Keras would load; extract to {works}")
    if "datasets" not in source.origin:
        raise ConversionError(f"the layout of the source was left out, so no {suffix} can be made; extract to .h5")
    layout = TreeLayout.from_metadata(source.origin)
    lost = sorted(set(layout.datasets.values()) - {tensor.name for tensor in tensors})
    if lost:
        raise ConversionError(f"a {suffix} needs all tensors of its model, and {lost[0]!r} is not among those selected;"
                              " extract to .h5 or .safetensors")  # fmt: skip
    return layout

"""Reading Keras and HDF5 files: archives, weights, legacy files, plain trees. Configurations are not interpreted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vqformat.encode.source import SourceTensor, check_name
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.metadata import pack

from .detect import hdf5_offset, read_json
from .file_region import Region
from .hdf5 import Tree, read_tree
from .hdf5_layout import TreeLayout
from .keras_names import is_state, names_in_keras3, names_in_legacy
from .model_folder import read_file
from .source import Source
from .zip_archive import Archive

WEIGHTS = "model.weights.h5"  # member of an archive
CONFIG = "config.json"
MAX_ORIGIN_NBYTES = 15 << 20  # of the 16 MiB that the metadata of a .vqm may have


def open_keras(path: Path, *, include_optimizer: bool = False) -> Source:
    """Open a ``.keras`` archive, or a folder with the same files.

    The other members (``config.json``, ``metadata.json``, assets) are stored as bytes and are not interpreted.

    Raises:
        ConversionError: It is damaged or hostile, or has no HDF5 weights.
    """
    if path.is_dir():
        region = Region.of_file(path / WEIGHTS)
        members = dict(_files_below(path))
    else:
        with Archive(path) as archive:
            names = archive.names()
            if WEIGHTS not in names:
                raise ConversionError(f"{str(path)!r} is a Keras model without {WEIGHTS}, only {', '.join(names[:6])};"
                                      " load it in Keras and save it with model.save('….keras')")  # fmt: skip
            others = [name for name in names if name != WEIGHTS]
            is_too_large = sum(map(archive.nbytes, others)) > MAX_ORIGIN_NBYTES
            members = {} if is_too_large else {name: archive.read(name) for name in others}
            region = archive.region(WEIGHTS)
    tree = read_tree(region)
    named = names_in_keras3(tree, region.label)
    source = _source("keras", region.label, tree, named, include_optimizer=include_optimizer, members=members)
    if not members:
        source.origin.pop("members", None)
        source.notes.append(f"left out all members but {WEIGHTS}: they have more than {MAX_ORIGIN_NBYTES} bytes;"
                            " no .keras can be written back")  # fmt: skip
    return source


def _files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of an unpacked archive, without the weights. Links are not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            file = Path(place) / name
            member = file.relative_to(folder).as_posix()
            if member == WEIGHTS or file.is_symlink() or not file.is_file():
                continue
            if member in (CONFIG, "metadata.json") or member.startswith("assets/"):
                total += file.stat().st_size
                if total > MAX_ORIGIN_NBYTES:
                    raise ConversionError(f"{str(folder)!r} has more than {MAX_ORIGIN_NBYTES} bytes beside its weights;"
                                          f" give {WEIGHTS} in it")  # fmt: skip
                yield member, read_file(file, MAX_ORIGIN_NBYTES)


def open_hdf5(path: Path, *, include_optimizer: bool = False) -> Source:
    """Open an HDF5 file: Keras 3 weights, a legacy Keras file (whole model or weights), or any tree of datasets.

    Raises:
        ConversionError: It is damaged or hostile, or has no datasets of numbers.
    """
    region = Region.of_file(path, hdf5_offset(path) or 0)
    tree = read_tree(region)
    for root in ("model_weights", ""):
        if tree.names(root, "layer_names") is not None:
            names = names_in_legacy(tree, root, region.label)
            return _source("keras-legacy", region.label, tree, names, include_optimizer=include_optimizer)
    if any(path.rpartition("/")[0].rpartition("/")[2] == "vars" for path in tree.datasets):
        names = names_in_keras3(tree, region.label)
        return _source("keras-weights", region.label, tree, names, include_optimizer=include_optimizer)
    if not tree.datasets:
        left_out = f" ({'; '.join(tree.notes[:4])})" if tree.notes else ""
        raise ConversionError(f"{region.label} is an HDF5 file without datasets of numbers{left_out}; save a model's"
                              " weights")  # fmt: skip
    names = {path: path for path in tree.datasets}
    return _source("hdf5", region.label, tree, names, include_optimizer=include_optimizer)


def open_shards(index: Path, *, include_optimizer: bool = False) -> Source:
    """Open sharded Keras 3 weights by their index, a ``.weights.json``. They are extracted as one ``.weights.h5``.

    Raises:
        ConversionError: A shard is missing, damaged or hostile.
    """
    from .sharding import present_shards, shard_name

    places = read_json(index)["weight_map"].values()
    shards = {shard_name(index, shard) for place in places for shard in (place if isinstance(place, list) else [place])}
    whole = Tree()
    for shard in present_shards(index, shards):
        region = Region.of_file(index.parent / shard)
        tree = read_tree(region)
        again = sorted(whole.datasets.keys() & tree.datasets.keys())
        if again:
            raise ConversionError(f"{region.label}: {again[0]!r} is in another shard too")
        whole.datasets.update(tree.datasets)
        whole.attributes.update(tree.attributes)
        whole.notes += tree.notes
        whole.groups += [group for group in tree.groups if group not in whole.groups]
    names = names_in_keras3(whole, f"{str(index)!r}")
    return _source("keras-weights", f"{str(index)!r}", whole, names, include_optimizer=include_optimizer)


def _source(kind: str, label: str, tree: Tree, names: dict[str, str], *, include_optimizer: bool,
            **more: Any) -> Source:  # fmt: skip
    """Make a source from a tree.

    Args:
        kind: The format, for ``vqm.source``.
        label: The file in error texts.
        names: Path -> name of each dataset, in the order of the tensors.
        more: Further fields of ``vqm.source``.
    """
    notes = list(tree.notes)
    layout = TreeLayout(names, tree.groups, tree.attributes)
    state = {path for path in names if kind != "hdf5" and is_state(path)}
    left_out: list[str] = []
    if not include_optimizer:
        for group, count in Counter(path.split("/", 1)[0] for path in state).items():
            layout = layout.without(group)
            left_out.append(f"left out {group!r}, the optimizer's state ({count} tensors); --include-optimizer keeps"
                            " it")  # fmt: skip
    notes.extend(left_out)
    tensors = []
    unsaid = []
    first: dict[str, str] = {}  # first path of a dataset -> name of its first tensor
    for path, name in layout.datasets.items():
        dataset = tree.datasets[path]
        try:
            check_name(name)
        except EncodeError as err:
            raise ConversionError(f"{label}: {err}") from err
        if dataset.dtype is None and kind == "hdf5":
            raise ConversionError(f"{label}: {path!r} has elements of 2 bytes without a meaning; store it as float32,"
                                  " or give it the attribute dtype='bfloat16'")  # fmt: skip
        if dataset.dtype is None:
            unsaid.append(name)
        target = first.setdefault(dataset.first, name)
        tensors.append(SourceTensor(name, dataset.dtype or "bf16", dataset.shape, dataset.load,
                                    None if target == name else target, is_exact=path in state,
                                    output_axis=-1))  # fmt: skip
    if unsaid:
        notes.append(f"taken as bfloat16: {len(unsaid)} tensors of raw elements of 2 bytes, as Keras writes bfloat16"
                     f" ({unsaid[0]!r}, …)")  # fmt: skip
    origin = {"format": kind, **layout.to_metadata(), **more}
    try:
        if len(pack(origin)) > MAX_ORIGIN_NBYTES:
            raise EncodeError(f"it has more than {MAX_ORIGIN_NBYTES} bytes")
    except EncodeError as err:
        notes.append(f"left out the layout of the file, {err}: no {kind} file can be written back")
        origin = {"format": kind}
    return Source(kind, tensors, {}, notes, origin, left_out=left_out)

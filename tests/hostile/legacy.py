"""The attributes by which Keras 2 finds its weights, and what else stands in its files."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .cases import CASES, EITHER, GOOD, HARMLESS, MIB, OTHER, REFUSED, SECRET, VICTIM, Case, Patch, secret_folder, whole
from .code import code_config
from .hdf5 import legacy_root, patched
from .heap import repeat_heap_object


def legacy(path: Path, weights: Any = (b"dense/kernel:0", b"dense/bias:0"), layers: Any = (b"dense",),
           edit: Callable[[h5py.File], Patch | None] | None = None) -> None:  # fmt: skip
    """A file of Keras 2 with these attributes; None leaves one out."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        legacy_root(file)
        file["dense/dense/kernel:0"] = GOOD
        file["dense/dense/bias:0"] = VICTIM
        del file.attrs["layer_names"]
        if layers is not None:
            file.attrs["layer_names"] = layers if isinstance(layers, np.ndarray) else list(layers)
        if weights is not None:
            file["dense"].attrs["weight_names"] = weights if isinstance(weights, np.ndarray) else list(weights)
        patch = edit(file) if edit is not None else None
    path.write_bytes(patched(stream, patch))


# Label: the name of the second weight, or all of weight_names; what becomes of the file; what it abuses
WEIGHT_NAMES: dict[str, tuple[Any, str, str]] = {
    "missing": (b"dense/gamma:0", REFUSED, "A weight that is not in the file."),
    "upwards": (b"../../x", REFUSED, "A path out of the layer, and out of the file."),
    "upwards_to_what_exists": (b"../secret", REFUSED, "A path out of the layer, to another dataset."),
    "absolute": (b"/secret", REFUSED, "A path from the root."),
    "absolute_to_itself": (b"/dense/dense/bias:0", EITHER, "A path from the root to where the weight is."),
    "a_group": (b"dense/group", REFUSED, "A group in place of a dataset."),
    "the_layer": (b".", REFUSED, "The layer itself in place of a dataset."),
    "dot": (b"dense/./bias:0", EITHER, "A second path to a weight."),
    "two_slashes": (b"dense//bias:0", EITHER, "A second path to a weight."),
    "twice": (b"dense/kernel:0", REFUSED, "The same weight two times."),
    "nothing": (b"", REFUSED, "An empty name."),
    "latin_1": (b"caf\xe9", REFUSED, "Bytes that are no UTF-8."),
    "numbers": (np.arange(3), EITHER, "Numbers in place of names."),
    "a_number": (np.array(3.0), EITHER, "A single number in place of names."),
    "table": (np.array([[b"dense/kernel:0"], [b"dense/bias:0"]]), EITHER, "A table of names in place of a list."),
}


def write_weight_names(hostile: Any, path: Path, is_hostile: bool) -> None:
    def add_others(file: h5py.File) -> None:
        file["secret"] = OTHER
        file["dense/dense/group/w"] = OTHER

    second = hostile if is_hostile else b"dense/bias:0"
    names = second if isinstance(second, np.ndarray) else (b"dense/kernel:0", second)
    legacy(path, names, edit=add_others)


for _label, (_names, _outcome, _abuse) in WEIGHT_NAMES.items():
    CASES.append(Case(f"weight_names_{_label}", ".h5", functools.partial(write_weight_names, _names), _outcome,
                      "weight_names|dense", _abuse))  # fmt: skip

# Label: all of layer_names; what becomes of the file; what it abuses
LAYER_NAMES: dict[str, tuple[Any, str, str]] = {
    "missing": ((b"dense", b"conv"), REFUSED, "A layer that is not in the file."),
    "absolute": ((b"/dense",), EITHER, "A path from the root."),
    "root": ((b"dense", b"/"), REFUSED, "The root as a layer."),
    "dot": ((b"dense", b"."), REFUSED, "The root as a layer, by another name."),
    "upwards": ((b"dense", b"../dense"), REFUSED, "A path out of the file."),
    "a_dataset": ((b"dense", b"dense/dense/bias:0"), REFUSED, "A dataset in place of a group."),
    "twice": ((b"dense", b"dense"), REFUSED, "The same layer two times."),
    "numbers": (np.arange(3), EITHER, "Numbers in place of names."),
    "latin_1": ((b"dense", b"caf\xe9"), REFUSED, "Bytes that are no UTF-8."),
}


def write_layer_names(hostile: Any, path: Path, is_hostile: bool) -> None:
    legacy(path, layers=hostile if is_hostile else (b"dense",))


for _label, (_names, _outcome, _abuse) in LAYER_NAMES.items():
    CASES.append(Case(f"layer_names_{_label}", ".h5", functools.partial(write_layer_names, _names), _outcome,
                      "layer_names|layer|twice", _abuse))  # fmt: skip


@whole(".h5", outcome=HARMLESS)
def weight_names_in_parts(path: Path, is_hostile: bool) -> None:
    """Keras splits an attribute that does not fit an object header: weight_names0, weight_names1."""

    def split(file: h5py.File) -> None:
        for i, value in enumerate((b"dense/kernel:0", b"dense/bias:0")):
            file["dense"].attrs[f"weight_names{i}"] = [value]

    legacy(path, None, edit=split) if is_hostile else legacy(path)


@whole(".h5", "layer_names|layer|attribute|bytes")
def layer_names_that_share_a_heap_object(path: Path, is_hostile: bool) -> None:
    """3,500 elements of an attribute that all point at one object of 1 MB: 3.5 GB when they are read."""
    count = 3500

    def edit(file: h5py.File) -> Patch | None:
        names = np.array(["dense"] + [""] * (count - 1), object)
        if is_hostile:
            names[0] = "x" * MIB
        file.attrs.create("layer_names", names if is_hostile else names[:1], dtype=h5py.string_dtype())
        return functools.partial(repeat_heap_object, nbytes=MIB, count=count) if is_hostile else None

    legacy(path, layers=None, edit=edit)


@whole(".h5", "layer|link|external|more")
def layer_that_is_an_external_link(path: Path, is_hostile: bool) -> None:
    """keras #22899: the layer's whole group is in another file."""

    def edit(file: h5py.File) -> None:
        secret = secret_folder(path.parent) / "secret.h5"
        with h5py.File(secret, "w") as other:
            other["more/w"] = SECRET
            other["more"].attrs["weight_names"] = [b"w"]
        if is_hostile:
            file["more"] = h5py.ExternalLink(str(secret), "/more")
        else:
            file.create_group("more").attrs["weight_names"] = np.zeros(0, "S1")

    legacy(path, layers=(b"dense", b"more"), edit=edit)


@whole(".h5", "layer|link|soft|more")
def layer_that_is_a_soft_link(path: Path, is_hostile: bool) -> None:
    """A layer's group under a second name, by a soft link."""

    def edit(file: h5py.File) -> None:
        if is_hostile:
            file["more"] = h5py.SoftLink("/dense")
        else:
            file.create_group("more").attrs["weight_names"] = np.zeros(0, "S1")

    legacy(path, layers=(b"dense", b"more"), edit=edit)


@whole(".h5", outcome=HARMLESS)
def configuration_with_code_h5(path: Path, is_hostile: bool) -> None:
    """CVE-2025-1550, CVE-2025-9905: a Lambda layer's code and a module's name are run by who builds the model."""
    legacy(path, edit=lambda file: file.attrs.update(model_config=json.dumps(code_config(path, is_hostile))))


@whole(".h5", "config|JSON|nested|deep", EITHER)
def configuration_nested_deeply(path: Path, is_hostile: bool) -> None:
    """A JSON text that json.loads answers with RecursionError."""
    depth = 30_000 if is_hostile else 3
    legacy(path, edit=lambda file: file.attrs.update(model_config="[" * depth + "]" * depth))


@whole(".h5", outcome=HARMLESS)
def user_block(path: Path, is_hostile: bool) -> None:
    """HDF5 may begin at byte 512, behind anything."""
    with h5py.File(path, "w", userblock_size=512 if is_hostile else 0) as file:
        file["dense/kernel"], file["dense/bias"] = GOOD, VICTIM
    if is_hostile:
        with open(path, "r+b") as stream:
            stream.write(b"#!/bin/sh\n")


@whole(".h5", outcome=HARMLESS)
def newest_structures(path: Path, is_hostile: bool) -> None:
    """The newer headers, indices and groups of libhdf5."""
    with h5py.File(path, "w", libver="latest" if is_hostile else None) as file:
        file["dense/kernel"] = GOOD
        file.create_dataset("dense/bias", data=VICTIM, chunks=(5,), compression="gzip", maxshape=(None,))
        for i in range(20):
            file.create_dataset(f"dense/other{i}", data=GOOD)

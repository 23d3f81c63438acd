"""HDF5 attributes and names: what they hold, how many there are, how deep they lie."""

from __future__ import annotations

import numpy as np
from h5py import h5d, h5s, h5t

from .cases import EITHER, HARMLESS, VICTIM, Patch
from .hdf5 import Fault, Place, add, hdf5


@hdf5(outcome=HARMLESS)
def attribute_nan(place: Place, is_hostile: bool) -> None:
    """Numbers that JSON lacks."""
    dataset = place.put()
    for owner in (dataset, place.group, place.group.file) if is_hostile else ():
        owner.attrs["loss"] = np.nan
        owner.attrs["losses"] = np.array([np.inf, np.nan])


@hdf5(outcome=HARMLESS)
def attributes_by_the_thousand(place: Place, is_hostile: bool) -> None:
    """3,000 attributes."""
    dataset = place.put()
    for i in range(3000 if is_hostile else 3):
        dataset.attrs[f"a{i}"] = i


@hdf5(outcome=HARMLESS)
def attribute_of_60_kB(place: Place, is_hostile: bool) -> None:
    """An object header of its largest size."""
    place.put()
    place.group.file.attrs["notes"] = np.zeros(60_000 if is_hostile else 3, "u1")


@hdf5("dtype|attribute|type", EITHER, ("tree", "keras"))
def attribute_dtype_that_lies(place: Place, is_hostile: bool) -> None:
    """Keras 3 stores bfloat16 as 16-bit data with an attribute "dtype"; here the data has 32 bits."""
    place.put().attrs["dtype"] = "bfloat16" if is_hostile else "float32"


@hdf5("dtype|attribute|type", EITHER, ("tree", "keras"))
def attribute_dtype_that_names_code(place: Place, is_hostile: bool) -> None:
    """ONNX CVE-2026-34445: no attribute name ever comes from the file."""
    place.put().attrs["dtype"] = "__import__" if is_hostile else "float32"


@hdf5("dtype|attribute|type", EITHER, ("tree", "keras"))
def attribute_dtype_that_is_an_array(place: Place, is_hostile: bool) -> None:
    """An attribute of a shape that nobody writes."""
    place.put().attrs["dtype"] = np.zeros((2, 3)) if is_hostile else "float32"


# Label: the name, what it abuses
NAMES: dict[str, tuple[str | bytes, str]] = {
    "control": ("a\n\x1b[31mb\r", "Ends of lines, and a terminal's code for red."),
    "right_to_left": ("\u202eabc", "What follows is shown from right to left."),
    "dots": ("..", "The folder above."),
    "three_thousand_bytes": ("é" * 1500, "More bytes than a name in a .vqm has."),
    "latin_1": (b"caf\xe9", "Bytes that are no UTF-8."),
    "backslash": ("..\\..\\x", "The folder above, on Windows."),
    "spaces": ("  ", "Nothing that can be seen."),
    "dot_dot_in_front": ("..\x01|..|x", "The folder above, and a control character."),
    "percent": ("%s%n{0.__class__}", "What C and Python take for directives of formatting."),
}


def named(name: str | bytes) -> Fault:
    """A dataset with such a name beside VICTIM."""

    def fault(place: Place, is_hostile: bool) -> None:
        place.put()
        raw = name.encode() if isinstance(name, str) else name
        h5d.create(place.group.id, raw if is_hostile else b"odd", h5t.IEEE_F32LE, h5s.create_simple((0,)))

    return fault


for _label, (_name, _abuse) in NAMES.items():
    add(f"name_{_label}", _abuse, named(_name), text="name|odd|bytes|Unicode", outcome=EITHER, layouts=("tree",))


@hdf5("name|odd|bytes|damaged|read", EITHER, ("tree",))
def name_with_nul(place: Place, is_hostile: bool) -> Patch:
    """C ends the name at its NUL, Python does not."""
    place.put()
    place.group.create_dataset("odd_name", (0,), "<f4")
    return lambda data: data.replace(b"odd_name", b"odd\0name") if is_hostile else data


@hdf5("deep|nested|levels|long|name|more than", layouts=("tree", "keras"))
def groups_2000_deep(place: Place, is_hostile: bool) -> None:
    """huggingface.js #2028: recursion without a limit."""
    place.put()
    group = place.group
    for _ in range(2000 if is_hostile else 12):
        group = group.create_group("g")
    group["w"] = VICTIM


@hdf5(outcome=HARMLESS, layouts=("tree", "keras"))
def groups_3000_wide(place: Place, is_hostile: bool) -> None:
    """Groups without datasets."""
    place.put()
    for i in range(3000 if is_hostile else 3):
        place.group.create_group(f"g{i}")

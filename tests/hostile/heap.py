"""HDF5 heaps: what strings point at."""

from __future__ import annotations

import functools
import re
import struct

import h5py

from .cases import EITHER, MIB, Patch
from .hdf5 import Fault, Place, add, hdf5


@hdf5("string|text|length|type|object", EITHER, ("tree", "keras"))
def heap_object_shared_by_many_elements(place: Place, is_hostile: bool) -> Patch | None:
    """100,000 elements of any length that all point at one object of 1 MB: 100 GB when they are read."""
    place.put()
    if not is_hostile:
        return None
    dataset = place.group.create_dataset("odd", (100_000,), h5py.string_dtype(), chunks=None)
    dataset[0] = "x" * MIB
    return functools.partial(repeat_heap_object, nbytes=MIB, count=100_000)


# Name: where a number is that a string attribute leads to, how it is packed, the number, what it abuses
NUMBERS = {
    "heap_size_0_of_object": ("object", "<Q", 0, "An object of the heap that takes no bytes."),
    "heap_size_0_of_free": ("free", "<Q", 0, "The heap's free space takes no bytes: libhdf5 2.0 runs for ever."),
    "heap_size_that_wraps_of_free": ("free", "<Q", 0xFFFFFFFFFFFFFFF0, "A size that wraps around when it is added."),
    "string_of_4_GB_by_its_reference": (
        "reference", "<I", 0xFFFFFFF0, "A length that libhdf5 2.0 allocates before it looks at the heap."),
}  # fmt: skip


def with_number(place_of_number: str, form: str, value: int) -> Fault:
    """A string attribute, and the number changed."""

    def fault(place: Place, is_hostile: bool) -> Patch | None:
        place.put()
        place.group.file.attrs["note"] = "a string of varying length, for its very own heap"
        return patch if is_hostile else None

    def patch(data: bytes) -> bytes:
        heap = next(m.start() for m in re.finditer(b"GCOL", data) if b"very own heap" in data[m.start() :][:4096])
        text = data.index(b"a string of varying", heap)
        number = int.from_bytes(data[text - 16 : text - 14], "little")
        reference = data.index(struct.pack("<QI", heap, number)) - 4
        free = data.index(bytes(8) + struct.pack("<Q", 4096 - (text + 56 - heap)), text)  # object 0: what is left
        places = {"reference": reference, "object": text - 8, "free": free + 8}
        found = bytearray(data)
        struct.pack_into(form, found, places[place_of_number], value)
        return bytes(found)

    return fault


for _name, (*_number, _abuse) in NUMBERS.items():
    add(_name, _abuse, with_number(*_number), text="string|heap|attribute|damaged",
        hangs=_name == "heap_size_0_of_free")  # fmt: skip


def repeat_heap_object(data: bytes, nbytes: int, count: int) -> bytes:
    """Let the elements behind the first one that has so many bytes point at the same object of the global heap."""
    found = re.finditer(re.escape(struct.pack("<I", nbytes)), data)
    at = next(m.start() for m in found if data[struct.unpack_from("<Q", data, m.end())[0] :][:4] == b"GCOL")
    return data[:at] + data[at : at + 16] * count + data[at + 16 * count :]

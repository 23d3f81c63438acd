"""HDF5 datasets of types that are no numbers, or that no .vqm has."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from .cases import EITHER, GOOD, HARMLESS, VICTIM, Patch
from .hdf5 import Place, hdf5


def types(place: Place, is_hostile: bool, **dataset: Any) -> None:
    """A dataset of another type beside VICTIM's, or in its place where its name must be there."""
    place.put()
    if is_hostile:
        place.group.create_dataset("odd", **dataset)


@hdf5("compound|type|dtype|records|fields", EITHER, ("tree", "keras"))
def type_compound(place: Place, is_hostile: bool) -> None:
    """Records are no tensor."""
    types(place, is_hostile, data=np.zeros(3, [("a", "<f4"), ("b", "<i8")]))


@hdf5("string|text|type", EITHER, ("tree", "keras"))
def type_string_of_any_length(place: Place, is_hostile: bool) -> None:
    """Text is no tensor."""
    types(place, is_hostile, data=["a", "b"], dtype=h5py.string_dtype())


@hdf5("string|text|bytes|type", EITHER, ("tree", "keras"))
def type_string(place: Place, is_hostile: bool) -> None:
    """Text of fixed length is no tensor either."""
    types(place, is_hostile, data=np.array([b"abc"]))


@hdf5("vlen|length|type|object", EITHER, ("tree", "keras"))
def type_array_of_any_length(place: Place, is_hostile: bool) -> None:
    """Each element has its own length, on the heap."""
    place.put()
    if is_hostile:
        dataset = place.group.create_dataset("odd", (2,), h5py.vlen_dtype(np.dtype("<f4")))
        dataset[0] = GOOD.ravel()


@hdf5("reference|type|object", EITHER, ("tree", "keras"))
def type_reference(place: Place, is_hostile: bool) -> None:
    """References to objects and to regions of datasets."""
    dataset = place.put()
    if is_hostile:
        place.group.create_dataset("odd", data=[place.group.ref], dtype=h5py.ref_dtype)
        place.group.create_dataset("odd_region", data=[dataset.regionref[:3]], dtype=h5py.regionref_dtype)


@hdf5("opaque|void|type|bytes", EITHER, ("tree", "keras"))
def type_opaque(place: Place, is_hostile: bool) -> None:
    """Bytes without a meaning."""
    types(place, is_hostile, data=np.array([b"abcdefgh"], "V8"))


@hdf5("enum|type|integer", EITHER, ("tree", "keras"))
def type_enum(place: Place, is_hostile: bool) -> None:
    """Named integers."""
    types(place, is_hostile, data=[0, 1], dtype=h5py.enum_dtype({"A": 0, "B": 1}, "i"))


@hdf5("array|type", EITHER, ("tree", "keras"))
def type_array(place: Place, is_hostile: bool) -> None:
    """Elements that are arrays."""
    types(place, is_hostile, shape=(3,), dtype=np.dtype(("<f4", (2, 2))))


@hdf5("array|type|bytes|large", EITHER, ("tree", "keras"))
def type_array_that_is_huge(place: Place, is_hostile: bool) -> None:
    """One element of 2 GiB, never written."""
    place.put()
    if is_hostile:
        kind = h5t.array_create(h5t.IEEE_F32LE, (1 << 14, 1 << 15))
        h5d.create(place.group.id, b"odd", kind, h5s.create_simple((1,)))


@hdf5("type|float128|longdouble|bits|dtype", EITHER, ("tree", "keras"))
def type_long_double(place: Place, is_hostile: bool) -> None:
    """A float that a .vqm does not have."""
    types(place, is_hostile, data=np.ones(3, np.longdouble))


def odd(place: Place, kind: h5t.TypeID) -> None:
    """A dataset of such a type, its values written."""
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk((3,))
    dataset = h5d.create(place.group.id, b"odd", kind, h5s.create_simple((3,)), properties)
    dataset.write_direct_chunk((0,), bytes(3 * kind.get_size()))


@hdf5("type|precision|bits|dtype", EITHER, ("tree", "keras"))
def type_of_odd_precision(place: Place, is_hostile: bool) -> None:
    """Integers of 20 bits in 32."""
    place.put()
    if is_hostile:
        kind = h5t.NATIVE_INT32.copy()
        kind.set_precision(20)
        odd(place, kind)


@hdf5("type|float|bits|dtype|bytes", EITHER, ("tree", "keras"))
def type_of_odd_float(place: Place, is_hostile: bool) -> None:
    """A float of 24 bits."""
    place.put()
    if is_hostile:
        kind = h5t.IEEE_F32LE.copy()
        kind.set_fields(23, 15, 8, 0, 15)
        kind.set_size(3)
        kind.set_ebias(127)
        kind.set_precision(24)
        odd(place, kind)


@hdf5("type|committed|named|object", EITHER, ("tree", "keras"))
def type_committed(place: Place, is_hostile: bool) -> None:
    """A type as an object of its own among the weights."""
    place.put()
    if is_hostile:
        place.group["odd"] = np.dtype("<f8")


@hdf5("null|empty|space|shape", EITHER, ("tree", "keras"))
def null_space(place: Place, is_hostile: bool) -> None:
    """A dataset without a shape."""
    types(place, is_hostile, data=h5py.Empty("f4"))


@hdf5(outcome=HARMLESS)
def type_bool(place: Place, is_hostile: bool) -> None:
    """h5py's bool is an enum."""
    types(place, is_hostile, data=np.array([True, False]))


@hdf5("enum|bool|type|value", EITHER, ("tree", "keras"))
def type_bool_other_than_0_and_1(place: Place, is_hostile: bool) -> Patch:
    """A bool of value 7: a .vqm must not hold it."""
    place.put()
    place.group.create_dataset("odd", data=np.array([True, False, True] * 30))
    values = bytes([1, 0, 1] * 30)
    return lambda data: data.replace(values, b"\7" + values[1:]) if is_hostile else data


@hdf5(outcome=HARMLESS)
def type_big_endian(place: Place, is_hostile: bool) -> None:
    """The other byte order."""
    place.group[place.name] = VICTIM.astype(">f4" if is_hostile else "<f4")

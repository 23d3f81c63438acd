"""How the values of an HDF5 dataset are stored, as libhdf5 reports it: their dtype, and their place in the file."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np
from h5py import h5d, h5s, h5t

from .hdf5_chunks import ENTRY

MAX_CHUNKS = 1 << 22  # of a dataset


class RefusedError(Exception):
    """A file that is refused. The message is the reason."""


def dtype_of(kind: Any, path: str) -> np.dtype[Any] | None:
    """The NumPy dtype with the same bytes as the elements of a dataset; None if they are not numbers.

    Raises:
        RefusedError: They are numbers of a type that NumPy does not have.
    """
    if isinstance(kind, h5t.TypeOpaqueID):
        return np.dtype(f"V{kind.get_size()}")
    try:
        dtype: np.dtype[Any] = kind.dtype
    except (TypeError, ValueError, NotImplementedError):
        return None
    if dtype.kind not in "biufc":
        return None
    base = kind.get_super() if isinstance(kind, h5t.TypeEnumID) and dtype.kind != "b" else kind
    same = h5t.py_create(dtype, logical=dtype.kind == "b")
    if not base.equal(same) and not (dtype.kind == "c" and _is_pair(kind, dtype)):
        raise RefusedError(f"{path!r} has numbers of a type of {kind.get_size()} bytes that NumPy does not have; store"
                           " it as float32")  # fmt: skip
    return dtype


def _is_pair(kind: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a compound type is a complex number: two consecutive floats."""
    half = np.dtype(f"{dtype.byteorder}f{dtype.itemsize // 2}")
    return (isinstance(kind, h5t.TypeCompoundID) and kind.get_nmembers() == 2 and kind.get_size() == dtype.itemsize
            and [kind.get_member_offset(i) for i in (0, 1)] == [0, half.itemsize]
            and all(kind.get_member_type(i).equal(h5t.py_create(half)) for i in (0, 1)))  # fmt: skip


def place_of(opened: Any, dtype: np.dtype[Any], path: str) -> tuple[Any, ...]:
    """The place of a dataset's values: ``"at", offset``, ``"bytes", data`` or ``"chunks", shape, filters, table``.

    Raises:
        RefusedError: Not all values are in the file.
    """
    plan, kind, shape = opened.get_create_plist(), opened.get_type(), opened.get_space().get_simple_extent_dims()
    layout = plan.get_layout()
    if not prod(shape):
        return "bytes", b""
    if layout == h5d.CHUNKED:
        return _chunk_table(opened, plan, path, shape)
    if layout == h5d.COMPACT:
        if prod(shape) > 1 << 16:  # a header has at most 64 KiB
            raise RefusedError(f"{path!r} of shape {shape} cannot be stored in a header")
        array = np.zeros(shape, dtype)
        opened.read(h5s.ALL, h5s.ALL, array, kind)
        return "bytes", array.tobytes()
    offset = opened.get_offset()
    if offset is None or not opened.get_storage_size():
        raise RefusedError(f"{path!r} of shape {shape} was never written: its values are not stored")
    return "at", offset


def _chunk_table(opened: Any, plan: Any, path: str, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The place of a chunked dataset's values, with the table of its chunks in C order."""
    steps = plan.get_chunk()
    filters = [plan.get_filter(number) for number in range(plan.get_nfilters())]
    counts = [-(-size // step) for size, step in zip(shape, steps, strict=True)]
    found = opened.get_num_chunks()
    if found != prod(counts):
        raise RefusedError(f"{path!r} of shape {shape} has {prod(counts)} chunks, and {found} of them are stored;"
                           " write it in full")  # fmt: skip
    if found > MAX_CHUNKS:
        raise RefusedError(f"{path!r} has {found} chunks; at most {MAX_CHUNKS} are read")
    table = bytearray(ENTRY.size * found)
    places = set()

    def take(chunk: Any) -> None:
        place = 0
        for start, step, count in zip(chunk.chunk_offset, steps, counts, strict=True):
            if start % step or start // step >= count:
                raise RefusedError(f"{path!r} has a chunk at {chunk.chunk_offset}, where none can be")
            place = place * count + start // step
        places.add(place)
        ENTRY.pack_into(table, ENTRY.size * place, chunk.byte_offset or 0, chunk.size, chunk.filter_mask)

    opened.chunk_iter(take)
    if len(places) != found:
        raise RefusedError(f"{path!r} has several chunks in one place")
    if filters:
        _mark_raw_edges(opened, path, shape, steps, table)
    filters = [[code, name.decode(errors="replace"), list(parameters)] for code, _, parameters, name in filters]
    return "chunks", steps, filters, bytes(table)


def _mark_raw_edges(
    opened: Any, path: str, shape: tuple[int, ...], steps: tuple[int, ...], table: bytearray
) -> None:
    """Set the mask of skipped filters for partial chunks at the edge, if the dataset has an option that skips them.

    The option H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS (HDF5 1.10) cannot be queried. So the values that libhdf5 reads are
    compared with the raw bytes of the chunk.
    """
    kind = opened.get_type()
    raw_nbytes = prod(steps) * kind.get_size()
    starts = product(*(range(0, size, step) for size, step in zip(shape, steps, strict=True)))
    for number, start in enumerate(starts):
        count = tuple(min(step, size - first) for first, step, size in zip(start, steps, shape, strict=True))
        offset, size, mask = ENTRY.unpack_from(table, ENTRY.size * number)
        if count == steps or size != raw_nbytes or mask:
            continue
        space = opened.get_space()
        space.select_hyperslab(start, count)
        values = np.empty(count, f"V{kind.get_size()}")
        opened.read(h5s.create_simple(count), space, values, kind)
        raw = np.frombuffer(opened.read_direct_chunk(start)[1], values.dtype).reshape(steps)
        if raw[tuple(map(slice, count))].tobytes() == values.tobytes():
            ENTRY.pack_into(table, ENTRY.size * number, offset, size, 0xFFFFFFFF)

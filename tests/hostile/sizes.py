"""HDF5 datasets that declare, or expand to, far more than the file has."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from h5py import h5d, h5p, h5s, h5t

from .cases import EITHER, HARMLESS, MIB, VICTIM, Patch
from .hdf5 import Place, chunked, hdf5, zeros_deflated


@hdf5("declare|bytes|expand|large|more than|times|budget|limit|never written|not written|stor(age|ed)")
def never_written_chunks(place: Place, is_hostile: bool) -> None:
    """CVE-2026-0897: 1 TB declared, not one chunk written."""
    if is_hostile:
        place.group.create_dataset(place.name, (1 << 38,), "<f4", chunks=(1 << 18,), compression="gzip")
    else:
        place.put(chunks=(12,), compression="gzip")


@hdf5("declare|bytes|expand|large|more than|times|budget|limit|never written|not written|stor(age|ed)")
def never_written_contiguous(place: Place, is_hostile: bool) -> None:
    """CVE-2026-0897: 1 TB declared, storage never allocated."""
    if is_hostile:
        place.create(h5p.create(h5p.DATASET_CREATE), (1 << 38,))
    else:
        place.put()


@hdf5("declare|bytes|expand|large|more than|times|budget|limit|never written|not written|stor(age|ed)|shape")
def shape_of_2_80_elements(place: Place, is_hostile: bool) -> None:
    """A shape whose product does not fit 64 bits: checked in Python integers, it does not wrap to 0."""
    if is_hostile:
        place.group.create_dataset(place.name, (1 << 40, 1 << 40), "<f4", chunks=(1, 1))
    else:
        place.put(chunks=(1,))


@hdf5("declare|bytes|expand|large|more than|times|budget|limit|never written|not written|stor(age|ed)|shape|elements")
def zero_hides_a_huge_side(place: Place, is_hostile: bool) -> None:
    """A tensor of no elements whose other sides overflow; the product of those that are not 0 is limited."""
    place.put()
    sides = (0, 1 << 40, 1 << 40) if is_hostile else (0, 5)
    place.group.create_dataset("empty", sides, "<f4")


@hdf5("declare|bytes|expand|large|more than|times|budget|limit|never written|not written|stor(age|ed)")
def many_never_written(place: Place, is_hostile: bool) -> None:
    """keras #23100: every dataset below any floor for one, 128 GB together. The budget is cumulative."""
    place.put()
    if is_hostile:
        for i in range(2000):
            space = h5s.create_simple((1 << 24,))
            h5d.create(place.group.id, b"n%d" % i, h5t.IEEE_F32LE, space, chunked((1 << 16,)))


@hdf5("written|chunk|bytes", EITHER)
def partly_written(place: Place, is_hostile: bool) -> None:
    """Chunks that were never written read as zeros."""
    if is_hostile:
        dataset = place.group.create_dataset(place.name, (12,), "<f4", chunks=(4,))
        dataset[:4] = VICTIM[:4]
    else:
        place.put(chunks=(4,))


@hdf5("declare|bytes|expand|large|more than|times|budget|limit|chunk|gzip|filter|twice")
def gzip_bomb(place: Place, is_hostile: bool) -> None:
    """keras #23010: 64 chunks of 32 MiB of zeros each, from 200 bytes each by gzip of gzip."""
    if not is_hostile:
        place.put(chunks=(12,), compression="gzip")
        return
    n = 8 * MIB
    dataset = place.create(chunked((n,), 2), (64 * n,))
    for i in range(64):
        dataset.write_direct_chunk((i * n,), zeros_deflated(4 * n, 2))


@hdf5("declare|bytes|expand|large|more than|times|budget|limit|chunk|gzip|filter|twice", layouts=("tree", "keras"))
def many_gzip_bombs(place: Place, is_hostile: bool) -> None:
    """keras #23100: 300 datasets of one such chunk each."""
    place.put()
    n = 8 * MIB
    for i in range(300 if is_hostile else 0):
        space = h5s.create_simple((n,))
        dataset = h5d.create(place.group.id, b"b%d" % i, h5t.IEEE_F32LE, space, chunked((n,), 2))
        dataset.write_direct_chunk((0,), zeros_deflated(4 * n, 2))


@hdf5("declare|bytes|expand|large|more than|times|budget|limit|chunk|overlap|same", layouts=("tree", "keras"))
def overlapping_chunks(place: Place, is_hostile: bool) -> Patch | None:
    """4,000 entries of the chunk index that all point at one chunk: 4 GB from a few hundred kB."""
    if not is_hostile:
        place.put(chunks=(12,), compression="gzip")
        return None
    n, count = MIB // 4, 4000
    dataset = place.create(chunked((n,)), (count * n,))
    payload = zeros_deflated(4 * n)
    dataset.write_direct_chunk((0,), payload)
    for i in range(1, count):
        dataset.write_direct_chunk((i * n,), b"\0")
    addresses: dict[int, int] = {}
    dataset.chunk_iter(lambda chunk: addresses.update({chunk.chunk_offset[0]: chunk.byte_offset}))

    def patch(data: bytes) -> bytes:
        found = bytearray(data)
        for i in range(1, count):  # version 1 B-tree: key (nbytes, mask, offset, 0), then the address
            at = data.find(struct.pack("<IIQQQ", 1, 0, i * n, 0, addresses[i * n]))
            assert at > 0
            found[at : at + 4] = struct.pack("<I", len(payload))
            found[at + 24 : at + 32] = struct.pack("<Q", addresses[0])
        return bytes(found)

    return patch


@hdf5("declare|bytes|expand|large|more than|times|budget|limit|chunk")
def chunk_larger_than_its_dataset(place: Place, is_hostile: bool) -> None:
    """10 elements, in a chunk of 2 GiB that has to be inflated to read them."""
    if not is_hostile:
        place.put(chunks=(12,), compression="gzip", maxshape=(None,))
        return
    dataset = place.create(chunked((1 << 29,), 2), (12,), maximum=(h5s.UNLIMITED,))
    dataset.write_direct_chunk((0,), zeros_deflated(1 << 29, 2))  # a quarter of it, for the time that 2 GiB take


@hdf5("chunk|bytes|damaged")
def chunk_shorter_than_declared(place: Place, is_hostile: bool) -> None:
    """A chunk that inflates to less than its shape needs: libhdf5 2.0 gives what lies behind it on the heap."""
    data = zlib.compress(VICTIM[:4].tobytes() if is_hostile else VICTIM.tobytes())
    place.create(chunked((12,)), (12,)).write_direct_chunk((0,), data)


@hdf5("chunk|bytes|damaged")
def large_chunk_shorter_than_declared(place: Place, is_hostile: bool) -> None:
    """The same with 400 kB of the heap."""
    place.put()
    values = np.random.default_rng(0).random(500 if is_hostile else 100_000, "<f4")  # 500 could be 100,000 by deflate
    dataset = h5d.create(place.group.id, b"large", h5t.IEEE_F32LE, h5s.create_simple((100_000,)), chunked((100_000,)))
    dataset.write_direct_chunk((0,), zlib.compress(values.tobytes()))


@hdf5("chunk|bytes|damaged", EITHER, ("tree", "keras"))
def chunk_longer_than_declared(place: Place, is_hostile: bool) -> None:
    """A chunk that inflates to 32 MiB where 48 bytes are declared."""
    data = zeros_deflated(32 * MIB) if is_hostile else zlib.compress(VICTIM.tobytes())
    place.create(chunked((12,)), (12,)).write_direct_chunk((0,), data)


@hdf5(outcome=HARMLESS)
def zeros_that_compress_well(place: Place, is_hostile: bool) -> None:
    """1,000 : 1 is what gzip makes of zeros: a new embedding, say. It is allowed."""
    place.put()
    compression = "gzip" if is_hostile else None
    place.group.create_dataset("zeros", data=np.zeros(MIB, "<f4"), chunks=(MIB,), compression=compression)


@hdf5(outcome=HARMLESS, layouts=("tree",))
def compact_storage(place: Place, is_hostile: bool) -> None:
    """A dataset that lies in its object header."""
    properties = h5p.create(h5p.DATASET_CREATE)
    if is_hostile:
        properties.set_layout(h5d.COMPACT)
    place.create(properties, (12,)).write(h5s.ALL, h5s.ALL, VICTIM)


@hdf5(outcome=HARMLESS)
def zero_size(place: Place, is_hostile: bool) -> None:
    """A tensor of no elements, which a .vqm can hold."""
    place.put()
    if is_hostile:
        place.group.create_dataset("empty", (0, 5), "<f4")
        place.group.create_dataset("empty_chunks", (0, 5), "<f4", maxshape=(None, 5), compression="gzip")


@hdf5(outcome=HARMLESS)
def rank_32(place: Place, is_hostile: bool) -> None:
    """The highest rank of HDF5, NumPy before 2 and .vqm."""
    place.group[place.name] = VICTIM.reshape((1,) * 30 + (3, 4) if is_hostile else (12,))


@hdf5(outcome=HARMLESS)
def no_maximal_shape(place: Place, is_hostile: bool) -> None:
    """A dataset that can grow."""
    place.put(maxshape=(None,) if is_hostile else None)


@hdf5(outcome=HARMLESS, layouts=("tree", "legacy"))
def scalar(place: Place, is_hostile: bool) -> None:
    """A dataset of rank 0."""
    place.put()
    if is_hostile:
        place.group["iterations"] = np.float32(3)

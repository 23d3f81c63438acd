"""A program that reports the contents of an HDF5 file, as libhdf5 sees it.

Every version of libhdf5 hangs on some hostile files, and allocates gigabytes for some small ones. So this module runs
in a separate process. It walks the objects of a file, reads no values, and writes what it finds to its standard output,
as MessagePack arrays:

    ["group", path]                                             an empty group
    ["attribute", path of the owner, name, type, shape, data]   before the dataset, if that is the owner
    ["dataset", path, dtype, shape, place]                      place: ["at", offset], ["bytes", data] or
                                                                ["chunks", shape, filters, table]
    ["link", path, first path]                                  another path of an object
    ["note", text]
    ["end"], ["refused", text], ["damaged", text], ["old", version of libhdf5]

The parent process (``hdf5.py``) checks all sizes and reads the values itself. Only hard links are followed, and no
other file is opened.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import msgpack
import numpy as np
from h5py import h5d, h5i, h5l, h5o, h5s, h5t

from .file_region import Region
from .hdf5 import READY
from .hdf5_layout import ASCII, ATTRIBUTE_TYPE, MAX_LEVELS, MAX_PATH_NBYTES, UTF8
from .hdf5_storage import RefusedError, dtype_of, place_of
from .zip_archive import Archive

OLDEST_HDF5 = (1, 14, 4)  # older versions have heap overflows on hostile files (CVE-2026-26200 and others)
MAX_OBJECTS = 1 << 20  # links and attributes
MAX_ATTRIBUTE_NBYTES = 1 << 24  # of all attributes together
MEMORY_NBYTES = 1 << 29  # that libhdf5 may take


def walk(file: Any, out: BinaryIO) -> None:
    """Write the report on a file.

    Raises:
        RefusedError: The file has something that is not supported.
    """
    _Walk(file, out).run()


class _Walk:
    def __init__(self, file: Any, out: BinaryIO) -> None:
        self._file = file
        self._out = out
        self._attribute_nbytes = 0
        self._n_objects = 0
        self._seen: dict[tuple[int, int], str] = {}  # file number and address of an object -> its first path

    def run(self) -> None:
        root = h5o.open(self._file.id, b"/")
        self._remember(root, "")
        self._tell_attributes(h5py.Group(root), "")
        pending = [self._members(root, "", 0)]
        while pending:  # no recursion, so that the depth does not matter
            deeper = next(pending[-1], None)
            if deeper is None:
                pending.pop()
            else:
                pending.append(self._members(*deeper))

    def _tell(self, *fields: Any) -> None:
        self._out.write(msgpack.packb(fields))
        self._out.flush()  # the parent process kills a silent process

    def _members(self, group: Any, path: str, level: int) -> Iterator[tuple[Any, str, int]]:
        """Report the members of a group. Yields the groups among them, with path and level."""
        keys = sorted(group, key=_natural)
        if not keys and path:
            self._tell("group", path)
        for key in keys:
            try:
                name = key.decode()
            except UnicodeDecodeError:
                raise RefusedError(f"group {path or '/'!r} has a member {key!r}, whose name is not UTF-8") from None
            inner = f"{path}/{name}" if path else name
            if level >= MAX_LEVELS or len(inner.encode()) > MAX_PATH_NBYTES:
                raise RefusedError(f"{inner[:100]!r}… lies in more than {MAX_LEVELS} groups, or its path is longer than"
                                   f" {MAX_PATH_NBYTES} bytes")  # fmt: skip
            kind = group.links.get_info(key).type
            if kind != h5l.TYPE_HARD:
                what = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}.get(kind, "a link")
                raise RefusedError(f"{inner!r} is {what}; only what is in the file itself is read")
            if name in ("", ".", "..") or "/" in name:
                raise RefusedError(f"group {path or '/'!r} has a member {name!r}, a name that no HDF5 object can have")
            opened = h5o.open(group, key)
            first = self._remember(opened, inner)
            match h5i.get_type(opened):
                case h5i.GROUP:
                    if first != inner:
                        raise RefusedError(f"{inner!r} is the group {first or '/'!r} again; a group has one place")
                    self._tell_attributes(h5py.Group(opened), inner)
                    yield opened, inner, level + 1
                case h5i.DATASET if first != inner:
                    self._tell("link", inner, first)
                case h5i.DATASET:
                    self._tell_dataset(opened, inner)
                case _:
                    self._tell("note", f"left out {inner!r}: a named datatype, no tensor")

    def _remember(self, opened: Any, path: str) -> str:
        """The first path by which an object was found: this one, if it is new."""
        self._count_object()
        info = h5o.get_info(opened)
        return self._seen.setdefault((info.fileno, info.addr), path)

    def _count_object(self) -> None:
        self._n_objects += 1
        if self._n_objects > MAX_OBJECTS:
            raise RefusedError(f"it has more than {MAX_OBJECTS} objects and attributes")


    def _tell_dataset(self, opened: Any, path: str) -> None:
        plan, kind, space = opened.get_create_plist(), opened.get_type(), opened.get_space()
        layout = plan.get_layout()
        if layout == h5d.VIRTUAL:
            raise RefusedError(f"{path!r} is a virtual dataset: its values are in other files, which are not read")
        if layout != h5d.CHUNKED and plan.get_external_count():
            raise RefusedError(f"{path!r} has its values in another file, which is not read")
        if space.get_simple_extent_type() == h5s.NULL:
            self._tell("note", f"left out {path!r}: it has no values")
            return
        dtype = dtype_of(kind, path)
        if dtype is None:
            self._tell("note", f"left out {path!r}: {_what(kind)}, no numbers")
            return
        place = place_of(opened, dtype, path)
        self._tell_attributes(h5py.Dataset(opened), path)
        self._tell("dataset", path, dtype.str if dtype != np.bool_ else "bool", space.get_simple_extent_dims(), place)


    def _tell_attributes(self, owner: Any, path: str) -> None:
        for name in owner.attrs:
            self._count_object()
            if not isinstance(name, str) or not _is_unicode(name):
                self._tell("note", f"left out an attribute of {path or '/'!r}: its name {name!r} is not UTF-8")
                continue
            attribute = owner.attrs.get_id(name)
            try:
                kept = self._attribute(owner, attribute, name)
            except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as err:
                raise RefusedError(f"attribute {name!r} of {path or '/'!r} cannot be read ({err})") from err
            if kept is None:
                is_null = attribute.get_space().get_simple_extent_type() == h5s.NULL
                what = "no value" if is_null else _what(attribute.get_type())
                self._tell("note", f"left out attribute {name!r} of {path or '/'!r}: {what}")
            else:
                self._tell("attribute", path, name, *kept)

    def _attribute(self, owner: Any, attribute: Any, name: str) -> tuple[str, list[int], Any] | None:
        """Type, shape and data of an attribute; None if its type is not supported."""
        if attribute.get_space().get_simple_extent_type() == h5s.NULL:
            return None
        shape, kind = list(attribute.shape), attribute.get_type()
        self._count(prod(shape) * kind.get_size())
        if isinstance(kind, h5t.TypeStringID) and kind.is_variable_str():
            values = owner.attrs[name]
            texts = [_text(value) for value in (values.reshape(-1).tolist() if shape else [values])]
            self._count(sum(map(len, texts)))
            return UTF8 if kind.get_cset() == h5t.CSET_UTF8 else ASCII, shape, texts
        try:
            dtype = attribute.dtype
        except TypeError:
            return None
        if isinstance(kind, h5t.TypeOpaqueID) or not ATTRIBUTE_TYPE.fullmatch(dtype.newbyteorder("<").str):
            return None
        values = np.asarray(owner.attrs[name])
        if values.shape != tuple(shape):
            return None
        little = dtype.newbyteorder("<")
        return little.str, shape, values.astype(little).tobytes()

    def _count(self, nbytes: int) -> None:
        self._attribute_nbytes += nbytes
        if self._attribute_nbytes > MAX_ATTRIBUTE_NBYTES:
            raise RefusedError(f"it has more than {MAX_ATTRIBUTE_NBYTES} bytes of attributes")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any) -> str | bytes:
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        return bytes(raw)


def _what(kind: Any) -> str:
    names = {h5t.TypeStringID: "text", h5t.TypeReferenceID: "references", h5t.TypeVlenID: "lists of varying length",
             h5t.TypeCompoundID: "records of several fields", h5t.TypeOpaqueID: "bytes without a meaning",
             h5t.TypeArrayID: "arrays in arrays"}  # fmt: skip
    return names.get(type(kind), "a type that is not kept")


def _natural(key: bytes) -> list[Any]:
    """A sort key that puts ``dense_2`` before ``dense_10``."""
    return [(int(part), part) if part.isdigit() else (-1, part) for part in re.split(rb"(\d{1,18})", key)]


def main() -> None:
    """Report on an HDF5 file. Arguments: path, start and size of its region, and name of the archive member or ""."""
    path, start, size, member = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    is_compressed = bool(member) and not start
    region = Archive(path).region(member) if is_compressed else Region(path, "", start, size)
    out = sys.stdout.buffer
    out.write(READY)
    out.flush()
    _limit_memory()
    try:
        if h5py.version.hdf5_version_tuple < OLDEST_HDF5:
            raise ImportError
        with region.open() as stream, h5py.File(stream, "r") as file:
            walk(file, out)
        last = ["end"]
    except ImportError:
        last = ["old", h5py.version.hdf5_version]
    except RefusedError as err:
        last = ["refused", str(err)]
    except Exception as err:  # a damaged file makes h5py raise OSError, KeyError, RuntimeError, TypeError, …
        last = ["damaged", str(err) or type(err).__name__]
    out.write(msgpack.packb(last))
    out.flush()


def _limit_memory() -> None:
    """Limit the memory of this process on Linux. There is no limit on other systems."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as status:
            limit = int(status.read().split()[0]) * resource.getpagesize() + MEMORY_NBYTES
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, OSError, ValueError):
        return


if __name__ == "__main__":
    main()

"""Reading HDF5 files safely: the datasets of a tree, and everything that is needed to write the tree again.

libhdf5 runs in a separate process (``hdf5_walk.py``) and only reports where objects are. The report is checked against
the file, and the values are read here. A dataset is accepted only if all its bytes are in the file itself.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import prod
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from vqformat.encode.source import check_shape
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.dtypes import BY_NAME, of_array
from vqformat.format.limits import available_memory

from .file_region import Region
from .hdf5_chunks import Chunks
from .hdf5_layout import ASCII, UTF8, Attribute

READY = b"\x89walk\r\n\x1a\n"  # begins the report; code of the site may print before it
MAX_REPORT_NBYTES = 1 << 29  # output of the process
SILENCE_S = 20.0  # a process that reports nothing for so long, or at most twice as long, is killed
_PROGRAM = """import sys
sys.path[:] = sys.argv[5:]
from vqformat.converters.hdf5_walk import main
main()"""


@dataclass(frozen=True)
class Dataset:
    """A dataset of a tree.

    Attributes:
        path: Path from the root, without a leading slash.
        dtype: Name in SPEC 7.1; None for elements of two bytes of unknown meaning.
        shape: Its shape.
        first: The first path by which the object was found. It differs from ``path`` if the object has several.
        load: Reads the values.
    """

    path: str
    dtype: str | None
    shape: tuple[int, ...]
    first: str
    load: Callable[[], npt.NDArray[Any]]


@dataclass
class Tree:
    """The contents of an HDF5 file.

    Attributes:
        datasets: Datasets by path.
        groups: Paths of the empty groups.
        attributes: Attributes by the path of their owner and their name.
        notes: Notes on what was left out.
    """

    datasets: dict[str, Dataset] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    attributes: dict[tuple[str, str], Attribute] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def attribute(self, path: str, name: str) -> Any:
        """The strings of an attribute as a list, or a single string; None if it does not exist or has another type."""
        if (path, name) not in self.attributes:
            return None
        kind, shape, data = self.attributes[path, name]
        if kind.startswith("|S"):
            size = int(kind[2:])
            data = [data[start : start + size].rstrip(b"\0") for start in range(0, len(data), size)] if size else []
        elif kind not in (UTF8, ASCII):
            return [] if shape == [0] else None  # Keras writes an empty list of names as an empty array of floats
        texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in data]
        return texts if shape else texts[0] if texts else ""

    def names(self, path: str, name: str) -> list[str] | None:
        """A list of strings, which Keras may have split into attributes ``name0``, ``name1``, …; None if there is none.

        HDF5 limits an attribute to 64 KiB (Keras 2, ``load_attributes_from_hdf5_group``).
        """
        whole = self.attribute(path, name)
        if isinstance(whole, list):
            return whole
        parts: list[str] = []
        number = 0
        while isinstance(part := self.attribute(path, f"{name}{number}"), list):
            parts += part
            number += 1
        return parts if number else None


def read_tree(region: Region) -> Tree:
    """Read the tree of an HDF5 file.

    Raises:
        ConversionError: It is damaged, or has something that is refused.
        ImportError: h5py is not installed, or its libhdf5 is too old to read untrusted files safely.
    """
    if find_spec("h5py") is None:
        raise ImportError("Keras and HDF5 files need h5py; run: pip install h5py")
    tree = Tree()
    stored_nbytes = 0
    for kind, *fields in _told(region):
        match kind, fields:
            case "note", (text,):
                tree.notes.append(text)
            case "group", (path,):
                tree.groups.append(path)
            case "attribute", (owner, name, *value):
                tree.attributes[owner, name] = (value[0], value[1], value[2])
            case "dataset", (path, dtype, shape, place):
                stored_nbytes += _stored_nbytes(region, path, dtype, shape, place)
                if stored_nbytes > region.size:
                    raise ConversionError(f"{region.label}: {path!r} and the datasets before it have {stored_nbytes}"
                                          f" bytes stored, in a file of {region.size}")  # fmt: skip
                load = _loader(region, path, tuple(shape), dtype, place)
                tree.datasets[path] = Dataset(path, _dtype_name(region, tree, path, dtype), tuple(shape), path, load)
            case "link", (path, first) if first in tree.datasets:
                tree.datasets[path] = replace(tree.datasets[first], path=path)
    return tree


def _told(region: Region) -> Iterator[list[Any]]:
    """The messages of ``hdf5_walk`` about a file, up to its message "end".

    Raises:
        ConversionError: The file was refused, or libhdf5 crashed or hung.
        ImportError: libhdf5 is too old, or h5py does not work.
    """
    command = [sys.executable, "-c", _PROGRAM, str(region.path), str(region.start), str(region.size), region.member,
               *sys.path]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    heard, finished, is_late = threading.Event(), threading.Event(), False

    def watch() -> None:
        nonlocal is_late
        while not finished.wait(SILENCE_S):
            if not heard.is_set():
                is_late = True
                process.kill()
                return
            heard.clear()

    try:
        threading.Thread(target=watch, daemon=True).start()
        assert process.stdout is not None
        report_nbytes = 0
        rest: bytes | None = b""  # output before READY; None after it
        unpacker = msgpack.Unpacker(raw=False, max_buffer_size=1 << 28, use_list=True)
        while data := process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
            heard.set()
            report_nbytes += len(data)
            if report_nbytes > MAX_REPORT_NBYTES:
                what = f"its structure and attributes take more than {MAX_REPORT_NBYTES} bytes"
                raise ConversionError(f"{region.label}: {what}")
            if rest is not None:
                rest += data
                if READY not in rest:
                    continue
                data, rest = rest.partition(READY)[2], None
            unpacker.feed(data)
            for message in unpacker:
                match message:
                    case ["end"]:
                        return
                    case ["old", version]:
                        raise ImportError(f"HDF5 {version} cannot read foreign files safely (CVE-2026-26200); run:"
                                          " pip install --upgrade h5py")  # fmt: skip
                    case ["refused", text]:
                        raise ConversionError(f"{region.label}: {text}")
                    case ["damaged", text]:
                        raise _damaged(region, text)
                    case [str(), *_]:
                        yield message
                    case _:
                        raise _damaged(region, "the process that reads it sent an invalid message")
        code = process.wait()
        if rest is not None and not is_late:
            raise ImportError("h5py cannot be used; to see why, run: python -c 'import h5py'")
        what = f"reading it took more than {SILENCE_S:.0f} s" if is_late else f"libhdf5 crashed on it, exit code {code}"
        raise _damaged(region, what)
    except (msgpack.UnpackException, ValueError) as err:
        if isinstance(err, ConversionError):
            raise
        raise _damaged(region, "the process that reads it sent an invalid message") from err
    finally:
        finished.set()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _damaged(region: Region, why: str) -> ConversionError:
    return ConversionError(f"{region.label} is an HDF5 file that is damaged or cut short ({why}); fetch or save it"
                           " again")  # fmt: skip


def _dtype_name(region: Region, tree: Tree, path: str, dtype: str) -> str | None:
    if dtype == "bool":
        return "bool"
    numbers = np.dtype(dtype)
    if numbers.kind == "V":
        said = tree.attribute(path, "dtype")  # Keras stores bfloat16 as raw bytes with this attribute
        if numbers.itemsize == 2 and said in ("bfloat16", None):
            return "bf16" if said else None
        raise ConversionError(f"{region.label}: {path!r} has elements of {numbers.itemsize} bytes without a meaning;"
                              " store it as float32")  # fmt: skip
    try:
        return of_array(np.empty(0, numbers), path).name
    except EncodeError as err:
        raise ConversionError(f"{region.label}: {err}") from err


def _stored_nbytes(region: Region, path: str, dtype: str, shape: list[int], place: list[Any]) -> int:
    """Stored bytes of a dataset.

    Raises:
        ConversionError: They do not fit the shape, or are not in the file. So every value comes from the file, and the
            values are at most as large as deflate can expand the file.
    """
    try:
        check_shape(path, tuple(shape))
    except EncodeError as err:
        raise ConversionError(f"{region.label}: {err}") from err
    nbytes = prod(shape) * _storage_dtype(dtype).itemsize
    match place:
        case ["bytes", data]:
            if len(data) != nbytes:
                raise ConversionError(f"{region.label}: {path!r} needs {nbytes} bytes, and {len(data)} are stored")
            return 0
        case ["at", offset]:
            if offset + nbytes > region.size:
                raise ConversionError(f"{region.label}: {path!r} of shape {tuple(shape)} needs {nbytes} bytes at"
                                      f" {offset}, beyond the end at {region.size}")  # fmt: skip
            return nbytes
        case ["chunks", steps, filters, table]:
            chunks = Chunks(region, tuple(shape), tuple(steps), filters, table, _storage_dtype(dtype))
            try:
                return chunks.check()
            except ValueError as err:
                raise ConversionError(f"{region.label}: {path!r} {err}") from err
        case _:
            raise _damaged(region, f"{path!r} lies nowhere")


def _storage_dtype(dtype: str) -> np.dtype[Any]:
    return np.dtype(np.uint8) if dtype == "bool" else np.dtype(dtype)


def _loader(
    region: Region, path: str, shape: tuple[int, ...], dtype: str, place: list[Any]
) -> Callable[[], npt.NDArray[Any]]:
    storage = _storage_dtype(dtype)

    def load() -> npt.NDArray[Any]:
        nbytes, available = prod(shape) * storage.itemsize, available_memory()
        if nbytes > available:
            raise ConversionError(f"{region.label}: {path!r} of shape {shape} needs {nbytes} bytes of memory, and"
                                  f" {available} are available")  # fmt: skip
        try:
            match place:
                case ["bytes", data]:
                    array = np.frombuffer(bytearray(data), storage).reshape(shape)
                case ["at", offset]:
                    array = region.bytes(offset, nbytes).view(storage).reshape(shape)
                case ["chunks", steps, filters, table]:
                    array = Chunks(region, shape, tuple(steps), filters, table, storage).read()
        except ValueError as err:
            raise ConversionError(f"{region.label}: dataset {path!r} is damaged ({err}); save it again") from err
        if dtype == "bool":
            truth: npt.NDArray[Any] = array != 0
            return truth
        return array.view(BY_NAME["bf16"].numpy) if storage.kind == "V" else array

    return load

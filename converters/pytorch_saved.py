"""What ``torch.save`` wrote into a file or a part of one, read without PyTorch and without running what is in it."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import numpy.typing as npt

from .file_region import Region
from .inert_pickle import Call, PickleError, unpickle
from .pickled_tensors import Tensor, tensor_of
from .strided_storage import Strided, check_strided, read_strided

_MAX_PICKLE_NBYTES = 64 << 20
_HEADER_NBYTES = 30  # of a member in a zip archive, before its name
_PIECE = 1 << 20


class Saved:
    """A value that ``torch.save`` wrote.

    Args:
        region: The bytes; of a zip archive, since PyTorch 1.6.

    Attributes:
        value: A ``Tensor``, or a dict in which tensors are ``Tensor``, or else a placeholder of the pickle.

    Raises:
        ValueError: They are damaged, or would run code.
    """

    def __init__(self, region: Region) -> None:
        self._members = _members(region)
        pickles = [name for name in self._members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} members data.pkl")
        self._top = pickles[0].removesuffix("data.pkl")
        if self._read("byteorder", 16).strip() == b"big":
            raise ValueError("its tensors are big-endian; save it again on a little-endian machine")
        try:
            root = unpickle(io.BytesIO(self._read("data.pkl", _MAX_PICKLE_NBYTES)))
        except PickleError as err:
            raise ValueError(str(err)) from err
        items = root.items if isinstance(root, Call) and str(root.function) == "collections.OrderedDict" else root
        if isinstance(items, dict):
            self.value: Any = {key: tensor_of(item) or item for key, item in items.items()}
        else:
            self.value = tensor_of(root) or root

    def _read(self, name: str, limit: int) -> bytes:
        """A member, or nothing if there is none."""
        member = self._members.get(self._top + name)
        if member is None:
            return b""
        if member.size > limit:
            raise ValueError(f"its member {name!r} has {member.size} bytes; at most {limit} are allowed")
        with member.open() as stream:
            return stream.read()

    def check(self, tensor: Tensor) -> tuple[Strided, Region]:
        """A tensor of the value, and the storage that it lies in.

        Raises:
            ValueError: It does not lie in a storage that is there.
        """
        storage = self._members.get(f"{self._top}data/{tensor.storage.key}")
        if storage is None or tensor.storage.offset:
            raise ValueError(f"its storage {tensor.storage.key[:80]!r} is missing, or a view of another")
        flags = {"is_conj": tensor.is_conj, "is_neg": tensor.is_neg}
        return check_strided(tensor.offset, tensor.shape, tensor.stride, tensor.dtype, storage.size,
                             **flags), storage  # fmt: skip

    def load(self, tensor: Tensor) -> npt.NDArray[Any]:
        """The array of a tensor of the value."""
        return read_strided(*self.check(tensor))


def _members(region: Region) -> dict[str, Region]:
    """The members of a zip archive, where each lies; PyTorch compresses none."""
    members: dict[str, Region] = {}
    try:
        with region.open() as stream, zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                if info.filename in members or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                    raise ValueError(f"member {info.filename!r} is there twice, compressed or encrypted")
                if info.CRC:  # torch.serialization.set_crc32_options(False) writes 0
                    with archive.open(info) as member:
                        while member.read(_PIECE):
                            pass
                stream.seek(info.header_offset)
                header = stream.read(_HEADER_NBYTES)
                if len(header) < _HEADER_NBYTES:
                    raise ValueError(f"member {info.filename!r} is cut short")
                start = info.header_offset + _HEADER_NBYTES + sum(struct.unpack("<HH", header[26:30]))
                members[info.filename] = region.part(start, info.file_size, info.filename)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as err:
        raise ValueError(f"it is no zip archive of torch.save, or damaged ({err})") from err
    return members

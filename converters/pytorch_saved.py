"""What ``torch.save`` wrote into a file or a part of one, read without PyTorch and without running what is in it."""

from __future__ import annotations

import struct
import zipfile
from typing import Any

import numpy.typing as npt

from .file_region import Region
from .strided_storage import TORCH_DTYPES, Strided, check_strided, read_strided
from .torchscript_pickle import Function, PickleError, Storage, Tensor, unpickle

_MAX_PICKLE_NBYTES = 64 << 20
_UNTYPED = "untyped"  # in place of a storage's dtype: the tensor has it
_HEADER_NBYTES = 30  # of a member in a zip archive, before its name
_PIECE = 1 << 20


class Saved:
    """A value that ``torch.save`` wrote, of dicts, lists, tuples, plain values and ``Tensor``.

    Args:
        region: The bytes; of a zip archive, since PyTorch 1.6.

    Raises:
        ValueError: They are damaged, or hold what is no tensor and no plain value.
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
            self.value = unpickle(self._read("data.pkl", _MAX_PICKLE_NBYTES), known=_known)
        except MemoryError:
            raise
        except PickleError as err:
            raise ValueError(str(err)) from err
        except Exception as err:  # a damaged pickle raises anything: UnpicklingError, EOFError, KeyError, TypeError, …
            raise ValueError(f"its pickle is damaged ({type(err).__name__})") from err

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
        if not isinstance(tensor.storage, Storage):
            raise ValueError("it has no storage")
        storage = self._members.get(f"{self._top}data/{tensor.storage.key}")
        if storage is None:
            raise ValueError("its storage is missing")
        flags = {"is_conj": tensor.is_conj, "is_neg": tensor.is_neg}
        return check_strided(tensor.offset, tensor.shape, tensor.stride, tensor.storage.dtype, storage.size,
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


def _rebuild_typed(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any = False, _hooks: Any = None,
                   dtype: Any = None, *_: Any) -> Tensor:  # fmt: skip
    """A tensor of a dtype that storages of PyTorch do not have: float8 or uint16, say."""
    if not isinstance(storage, Storage) or storage.dtype != _UNTYPED or not isinstance(dtype, str):
        raise PickleError("a tensor is described in another way than PyTorch does")
    return Tensor(Storage(dtype, storage.key), offset, shape, stride, False, False)


_NAMES: dict[tuple[str, str], Any] = {
    ("torch", "Size"): Function(tuple),
    ("torch._utils", "_rebuild_tensor_v3"): Function(_rebuild_typed),
    ("torch.storage", "UntypedStorage"): _UNTYPED,
    **{("torch", theirs): ours for theirs, ours in TORCH_DTYPES.items()},
}


def _known(module: str, name: str) -> Any:
    return _NAMES.get((module, name))

"""Reading zip archives in place: nothing is unpacked to disk, and suspicious archives are refused."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from vqformat.errors import ConversionError

from .file_region import Region

MAX_INFLATED_NBYTES = 1 << 29  # of a compressed member, which is decompressed into memory
_HEADER_NBYTES = 30  # of the fixed part of a local header
_MAX_NAME_NBYTES = 0xFFFF  # limit of the zip format for the name of a member
_PIECE = 1 << 20


class Archive:
    """A zip archive with a checked directory. It is a context manager.

    Raises:
        ConversionError: It is damaged or encrypted; or a member overlaps another one, has a name that leads out of the
            archive, occurs twice, or is a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as err:
            raise ConversionError(f"{str(path)!r} is a zip archive that is damaged or cut short ({err}); fetch or save"
                                  " it again") from err  # fmt: skip
        try:
            self._members: dict[str, zipfile.ZipInfo] = {}
            end = 0
            for member in sorted(self._zip.infolist(), key=lambda member: member.header_offset):
                if member.header_offset < end:
                    raise self.refuse(member.filename, "overlaps the member before it")
                end = member.header_offset + _HEADER_NBYTES + member.compress_size
            for member in self._zip.infolist():
                self._check(member)
                self._members[member.filename] = member
        except BaseException:
            self._zip.close()
            raise

    def _check(self, member: zipfile.ZipInfo) -> None:
        name = member.orig_filename
        if member.flag_bits & 1:
            raise self.refuse(name, "is encrypted; decrypt it first")
        if member.filename in self._members:
            raise self.refuse(name, "is there twice")
        if is_unsafe(name):
            raise self.refuse(name, "has a name that leads out of the archive")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise self.refuse(name, "is a link")

    def refuse(self, name: str, why: str) -> ConversionError:
        """The error for a member, with what is wrong with it."""
        return ConversionError(f"{str(self.path)!r}: member {name!r} {why}")

    def names(self) -> list[str]:
        """Names of the members that are not folders, in the order of the archive."""
        return [name for name, member in self._members.items() if not member.is_dir()]

    def nbytes(self, name: str) -> int:
        """Uncompressed bytes of a member, as stated by the directory."""
        return self._members[name].file_size

    def read(self, name: str) -> bytes:
        """Read a whole member and check its CRC.

        Raises:
            ConversionError: It is damaged, or too large for memory.
        """
        size = self.nbytes(name)
        if size > MAX_INFLATED_NBYTES:
            raise self.refuse(name, f"has {size} bytes; at most {MAX_INFLATED_NBYTES} are read into memory: store it"
                              " uncompressed (zip -0)")  # fmt: skip
        pieces = io.BytesIO()
        self._copy(name, pieces)
        return pieces.getvalue()

    def region(self, name: str) -> Region:
        """The bytes of a member, with a checked CRC: a region of the file if it is not compressed, else in memory.

        Raises:
            ConversionError: It is damaged, or it is compressed and too large for memory.
        """
        member = self._members[name]
        label = f"{str(self.path)!r}, member {name!r}"
        if member.compress_type != zipfile.ZIP_STORED:
            data = self.read(name)
            return Region(self.path, label, 0, len(data), name, data)
        self._copy(name, None)
        return Region(self.path, label, self._start(member), member.file_size, name)

    def stored_at(self, name: str) -> int | None:
        """Where in the file a member begins that is stored as it is; None for a compressed one.

        The CRC is compared, unless it is 0: PyTorch can be told to compute none.

        Raises:
            ConversionError: The member is damaged.
        """
        member = self._members[name]
        is_stored = member.compress_type == zipfile.ZIP_STORED
        if is_stored and member.compress_size != member.file_size:
            raise self.refuse(name, f"has {member.compress_size} bytes and should have {member.file_size}")
        if member.CRC:
            self._copy(name, None)
        return self._start(member) if is_stored else None

    def _start(self, member: zipfile.ZipInfo) -> int:
        """Where the bytes of a stored member begin."""
        with open(self.path, "rb") as stream:
            stream.seek(member.header_offset + 26)  # sizes of what follows the fixed part of the local header
            sizes = stream.read(4)
            start = member.header_offset + _HEADER_NBYTES + sum(struct.unpack("<HH", sizes)) if len(sizes) == 4 else 0
            if not start or start + member.file_size > stream.seek(0, 2):
                raise self.refuse(member.filename, "runs past the end of the file")
        return start

    def open(self, name: str) -> BinaryIO:
        """A member as a seekable file; errors are those of ``region``."""
        return self.region(name).open()

    def _copy(self, name: str, target: BinaryIO | None) -> None:
        """Read a member to its end, where zipfile checks its CRC. A member longer than stated is refused."""
        nbytes = 0
        try:
            with self._zip.open(name) as source:
                while piece := source.read(_PIECE):
                    nbytes += len(piece)
                    if target is not None:
                        target.write(piece)
            if nbytes != self.nbytes(name):
                raise ValueError(f"{nbytes} bytes instead of {self.nbytes(name)}")
        except MemoryError:
            raise
        except Exception as err:  # besides BadZipFile: zlib.error, EOFError, NotImplementedError, RuntimeError, OSError
            raise self.refuse(name, f"is damaged ({err}); fetch or save the file again") from err

    def close(self) -> None:
        self._zip.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()


def is_unsafe(name: str) -> bool:
    """Whether unpacking a member of this name could write outside the target folder."""
    parts = name.removesuffix("/").split("/")  # the name of a folder ends in /
    leads_out = any(part in ("", ".", "..") for part in parts) or set(name) & set("\\\0") or ":" in parts[0]
    return bool(leads_out) or not 0 < len(name.encode(errors="replace")) <= _MAX_NAME_NBYTES


def leads_out(name: str) -> bool:
    """Whether this is an absolute name, or one with ``..``, on any system. Unlike ``is_unsafe`` it leaves ``w:0``."""
    has_drive = name[1:2] == ":" and name[:1].isalpha() and name[2:3] in ("/", "\\")
    return has_drive or name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/")

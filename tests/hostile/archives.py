"""Archives of Keras that mislead: members of the same name, links, other methods, wrong sizes and places."""

from __future__ import annotations

import functools
import struct
import zipfile
import zlib
from pathlib import Path

from .cases import CASES, EITHER, HARMLESS, VICTIM, Case, secret_folder, whole
from .keras_zip import WEIGHTS, append, central, local, put, weights_file, write_archive

# Label: the name of one more member, what it abuses
MEMBERS = {
    "upwards": ("../evil", "A path out of the folder that the archive is unpacked to."),
    "upwards_later": ("assets/../../evil", "The same behind a folder that exists."),
    "absolute": ("/tmp/evil", "A path from the root."),
    "backslash": ("..\\evil", "A path out of the folder, on Windows."),
    "drive": ("C:evil", "A path to a drive, on Windows."),
    "control": ("a\n\x1b[31m", "The end of a line, and a terminal's code for red."),
}


def write_member(name: str, path: Path, is_hostile: bool) -> None:
    write_archive(path, {})
    append(path, name if is_hostile else "assets/vocabulary.txt", b"x")


for _label, (_name, _abuse) in MEMBERS.items():
    CASES.append(Case(f"member_{_label}", ".keras", functools.partial(write_member, _name), EITHER, "name|member",
                      _abuse))  # fmt: skip


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
def many_members(path: Path, is_hostile: bool) -> None:
    """3,000 small members."""
    write_archive(path, {f"assets/{i}": b"" for i in range(3000 if is_hostile else 3)})

"""Archives of Keras, and ways to change their bytes."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py

from .cases import GOOD, VICTIM

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

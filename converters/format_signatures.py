"""Signatures of formats: how a file or a folder is recognized, before a reader of the format looks into it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vqformat.errors import ConversionError

from .model_folder import read_small

TFLITE = b"TFL3"  # at byte 4
TABLE_END = 0xDB4775248B80FB57.to_bytes(8, "little")  # ends the index of a TensorFlow checkpoint
INDEX = ".index"  # of a TensorFlow checkpoint
SAVED_MODEL = "saved_model.pb"
DISTRIBUTED = ".distcp"
DISTRIBUTED_METADATA = ".metadata"
_DATA = re.compile(r"(?P<prefix>.+)\.data-\d{5}-of-\d{5}")  # of a TensorFlow checkpoint
_MAX_STATE_NBYTES = 1 << 16  # of the file "checkpoint"


def is_msgpack(head: bytes) -> bool:
    """Whether this begins as a map in MessagePack whose first key is text, as Flax's files do."""
    if not head or not (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return False
    at = {0xDE: 3, 0xDF: 5}.get(head[0], 1)
    first = head[at : at + 1]
    if first == b"\xd9":
        size, at = int.from_bytes(head[at + 1 : at + 2], "big"), at + 2
    else:
        size, at = (first[0] & 31 if first and 0xA1 <= first[0] <= 0xBF else 0), at + 1
    key = head[at : at + size]
    return 0 < size == len(key) and key.isascii() and key.decode().isprintable()


def manifest_of(value: Any) -> list[Any] | None:
    """The weights manifest in the JSON of a TensorFlow.js model, or that is the JSON; None if there is none."""
    found = value.get("weightsManifest") if isinstance(value, dict) else value
    is_manifest = isinstance(found, list) and all(
        isinstance(group, dict) and isinstance(group.get("paths"), list) and isinstance(group.get("weights"), list)
        for group in found
    )
    return found if is_manifest and (isinstance(value, dict) or found) else None


def is_export(names: list[str]) -> bool:
    """Whether a zip archive of these members is one of ``torch.export.save``, or of AOTInductor."""
    return "serialized_exported_program.json" in names or any(
        name.split("/", 1)[-1] == "archive_format" for name in names
    )


def index_beside(path: Path) -> Path | None:
    """The index of a TensorFlow checkpoint of which a path is the prefix or a file; None if there is none.

    Raises:
        ConversionError: It is a file of data without an index.
    """
    data = _DATA.fullmatch(path.name)
    prefix = data["prefix"] if data else path.name.removesuffix(".meta")
    if prefix and (data or path.suffix == ".meta" or not path.exists()):
        index = path.with_name(prefix + INDEX)
        if index.is_file():
            return index
        if data and path.exists():
            raise ConversionError(f"{str(path)!r} is the data of a TensorFlow checkpoint, whose {index.name!r} is not"
                                  " beside it; fetch the files of the checkpoint together")  # fmt: skip
    is_index = path.suffix == INDEX and (path.name == "variables.index" or any(
        path.parent.glob(f"{glob_escape(path.stem)}.data-*-of-*")))  # fmt: skip
    return path if is_index and path.is_file() else None


def glob_escape(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def latest_index(folder: Path) -> Path | None:
    """The index of a folder's TensorFlow checkpoint: the only one, or the one that the file ``checkpoint`` names.

    Raises:
        ConversionError: There are several, and no file tells which is the latest.
    """
    found = sorted(folder.glob(f"*{INDEX}"))
    if len(found) <= 1:
        return next(iter(found), None)
    state = folder / "checkpoint"
    if state.is_file():
        text = read_small(state, _MAX_STATE_NBYTES, "the list of TensorFlow's checkpoints").decode(errors="replace")
        latest = re.search(r'^model_checkpoint_path: "(?:.*/)?([^"/]+)"', text, re.M)
        if latest and folder / (latest[1] + INDEX) in found:
            return folder / (latest[1] + INDEX)
    names = ", ".join(repr(path.name) for path in found[:8])
    raise ConversionError(f"{str(folder)!r} has several TensorFlow checkpoints, {names}; give one of them")

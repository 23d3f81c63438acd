"""Detection of the format of a file by its content. A name only says which checkpoint a file is a part of."""

from __future__ import annotations

import codecs
import json
import zipfile
from pathlib import Path
from typing import Any, Literal

from vqformat.errors import ConversionError
from vqformat.format.container import begins_like_vqm
from vqformat.format.shard_index import INDEX_SUFFIX
from vqformat.read.shards import index_of

from .format_signatures import (
    DISTRIBUTED,
    DISTRIBUTED_METADATA,
    INDEX,
    SAVED_MODEL,
    TABLE_END,
    TFLITE,
    index_beside,
    is_export,
    is_msgpack,
    latest_index,
    manifest_of,
)
from .model_folder import check_regular, open_regular, read_file
from .other_formats import is_core_ml, other_folder, other_format

Kind = Literal[
    "vqm", "pytorch", "pytorch-index", "torchscript", "safetensors", "safetensors-index", "keras", "keras-shards",
    "hdf5", "onnx", "gguf", "npz", "npy", "pytorch-distributed", "torch-export", "savedmodel", "tensorflow", "tfjs",
    "tflite", "flax", "flax-index", "vqm-index", "pickle",
]  # fmt: skip

READABLE = (
    "PyTorch checkpoints (.pt, .pth, .bin, also sharded or distributed; TorchScript, torch.export), safetensors (also"
    " sharded), Keras (.keras, .weights.h5, .h5), HDF5, TensorFlow (SavedModel, checkpoint, TensorFlow.js, .tflite),"
    " Flax .msgpack, ONNX, GGUF, NumPy .npz, .npy and .pkl, and .vqm can be read"
)
MAX_JSON_NBYTES = 100_000_000

_HDF5 = b"\x89HDF\r\n\x1a\n"
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's magic number, pickled
# Beginnings of files that users give by mistake -> what they are, and what to do
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch the file with: git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it first"),
    (b"BZh", "compressed with bzip2; decompress it first"),
    (b"\xfd7zXZ\x00", "compressed with xz; decompress it first"),
    (b"\x04\x22\x4d\x18", "compressed with lz4; decompress it first"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
)


def detect_format(path: Path) -> tuple[Kind, Path]:
    """The format of a checkpoint, and the path to read: for a folder that of a file in it.

    Raises:
        FileNotFoundError: There is no such file.
        ConversionError: It is no regular file or has no supported format. The message says what it is and what can be
            done.
    """
    if path.is_dir():
        return _in_folder(path)
    if not path.exists() and isinstance(index := index_of(path), Path):
        path = index
    whole = _whole_of(path)
    if whole is not None:
        return whole
    with open_regular(path) as stream:
        head = stream.read(512)
        size = stream.seek(0, 2)
        stream.seek(max(0, size - len(TABLE_END)))
        end = stream.read()
    if not head:
        raise ConversionError(f"{str(path)!r} is empty; {READABLE}")
    if begins_like_vqm(head):
        return "vqm", path
    if head.startswith(b"\x93NUMPY"):
        return "npy", path
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _of_zip(path), path
    if head.startswith(_TORCH_LEGACY):
        return "pytorch", path
    if head.startswith(b"GGUF"):
        return "gguf", path
    if head[4:8] == TFLITE:
        return "tflite", path
    if end == TABLE_END:
        return "tensorflow", path
    if is_msgpack(head):
        return "flax", path
    if hdf5_offset(path) is not None:
        return "hdf5", path
    if len(head) > 8 and head[8:9] in b"{ " and int.from_bytes(head[:8], "little") <= MAX_JSON_NBYTES:
        return "safetensors", path
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        kind = _of_json(path)
        if kind is not None:
            return kind, path
    if path.suffix.lower() == ".onnx" or (_is_onnx(head) and not is_core_ml(head)):
        return "onnx", path
    other = other_format(path, head)
    if other is None and _is_pickle(head):
        return "pickle", path
    raise ConversionError(f"{str(path)!r} is {other or _describe(head, size)}")


def _whole_of(path: Path) -> tuple[Kind, Path] | None:
    """The checkpoint that a file is a part of, as its name says: a folder, or an index beside it."""
    if path.name == DISTRIBUTED_METADATA or path.suffix == DISTRIBUTED:
        if (path.parent / DISTRIBUTED_METADATA).is_file():
            return "pytorch-distributed", path.parent
        if path.is_file():
            raise ConversionError(f"{str(path)!r} is a part of a PyTorch distributed checkpoint, whose"
                                  f" {DISTRIBUTED_METADATA} is not beside it; fetch the whole folder")  # fmt: skip
    if path.name == SAVED_MODEL and path.is_file():
        return "savedmodel", path.parent
    index = index_beside(path)
    return None if index is None else ("tensorflow", index)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty dict if there is none.

    Raises:
        ConversionError: It is no regular file, or too large.
    """
    value = _json(path)
    return value if isinstance(value, dict) else {}


def _json(path: Path) -> Any:
    """The value in a JSON file; None if there is none, or no such file."""
    if not path.exists():
        return None
    text = read_file(path, MAX_JSON_NBYTES)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_json(path: Path) -> Kind | None:
    """Which model a JSON file is the index of: TensorFlow.js's, or a sharded one, by the suffixes of its shards."""
    value = _json(path)
    if manifest_of(value) is not None:
        return "tfjs"
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict):
        return None
    shards = [str(shard) for place in places.values() for shard in (place if isinstance(place, list) else [place])]
    if shards and all(shard.endswith(".weights.h5") for shard in shards):
        return "keras-shards"
    if shards and all(shard.endswith((".bin", ".pt", ".pth")) for shard in shards):
        return "pytorch-index"
    if shards and all(shard.endswith(".msgpack") for shard in shards):
        return "flax-index"
    if shards and all(shard.endswith(".vqm") for shard in shards):
        return "vqm-index"
    return "safetensors-index"


# File name patterns that are searched in a folder, in this order
_IN_FOLDER: tuple[tuple[str, Kind], ...] = (
    ("*.safetensors.index.json", "safetensors-index"), ("*.safetensors", "safetensors"),
    ("*.bin.index.json", "pytorch-index"), ("pytorch_model.bin", "pytorch"),
    ("model.weights.json", "keras-shards"), ("model.weights.h5", "keras"), ("flax_model.msgpack", "flax"),
    ("*.msgpack.index.json", "flax-index"), ("*" + INDEX_SUFFIX, "vqm-index"),
)  # fmt: skip


_SUFFIXES = (".keras", ".h5", ".hdf5", ".pt", ".pth", ".th", ".ckpt", ".onnx", ".gguf", ".npz", ".npy", ".vqm",
             ".pt2", ".tflite", ".msgpack")  # fmt: skip


def _in_folder(folder: Path) -> tuple[Kind, Path]:
    for pattern, kind in _IN_FOLDER:
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            check_regular(files[0])
            if kind == "keras":  # an unpacked .keras has the configuration beside the weights
                return (kind, folder) if (folder / "config.json").is_file() else ("hdf5", files[0])
            return kind, files[0]
        if files:
            found = ", ".join(repr(file.name) for file in files[:8])
            raise ConversionError(f"{str(folder)!r} is a folder of {found}; give one of them")
    whole = _whole_folder(folder)
    if whole is not None:
        return whole
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
    if len(files) == 1:
        return detect_format(files[0])
    other = other_folder(folder)
    if other is not None:
        raise ConversionError(f"{str(folder)!r} is {other}")
    wanted = ", ".join([*(pattern for pattern, _ in _IN_FOLDER), SAVED_MODEL, DISTRIBUTED_METADATA, "*" + INDEX,
                        "model.json", *_SUFFIXES])  # fmt: skip
    raise ConversionError(f"{str(folder)!r} is a folder without a checkpoint that is known; give a file, or a folder"
                          f" with one of {wanted}")  # fmt: skip


def _whole_folder(folder: Path) -> tuple[Kind, Path] | None:
    """A checkpoint that is a folder, or that has an index in it of a name of its own."""
    if (folder / DISTRIBUTED_METADATA).is_file() and any(folder.glob("*" + DISTRIBUTED)):
        return "pytorch-distributed", folder
    if (folder / SAVED_MODEL).is_file():
        return "savedmodel", folder
    for path in (folder / "model.json", *sorted(folder.glob("*weights_manifest.json"))):
        if manifest_of(_json(path)) is not None:
            return "tfjs", path
    index = latest_index(folder)
    return None if index is None else ("tensorflow", index)


def _of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            is_encrypted = any(member.flag_bits & 1 for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as err:
        what = "its end is missing" if "not a zip file" in str(err) else err
        raise ConversionError(f"{str(path)!r} begins as a zip archive (PyTorch, Keras, NumPy), but is damaged or cut"
                              f" short: {what}; fetch or save it again") from err  # fmt: skip
    if is_encrypted:
        raise ConversionError(f"{str(path)!r} is an encrypted zip archive; decrypt it first")
    tails = {name.split("/", 1)[-1] for name in names}
    if "data.pkl" in tails:
        return "torchscript" if "constants.pkl" in tails else "pytorch"
    if is_export(names):
        return "torch-export"
    if "config.json" in names and names_of_weights(names):
        return "keras"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if not names:
        raise ConversionError(f"{str(path)!r} is a zip archive without members; {READABLE}")
    some = ", ".join(map(repr, names[:4])) + (", …" if len(names) > 4 else "")
    raise ConversionError(f"{str(path)!r} is a zip archive of {some}, which is no checkpoint; {READABLE}")


def names_of_weights(names: list[str]) -> list[str]:
    """Those names of members of a Keras archive that may have the weights."""
    return [name for name in names if name in ("model.weights.h5", "model.weights.npz", "model.weights.json")]


def hdf5_offset(path: Path) -> int | None:
    """Offset of the HDF5 signature: 0, or 512 times a power of two after a user block; None if there is none."""
    offset = 0
    with open(path, "rb") as stream:
        size = stream.seek(0, 2)
        while offset + len(_HDF5) <= size:
            stream.seek(offset)
            if stream.read(len(_HDF5)) == _HDF5:
                return offset
            offset = 2 * offset or 512
    return None


def _is_onnx(head: bytes) -> bool:
    """Whether bytes begin like a ModelProto: with ir_version, then another field of it."""
    fields = {field << 3 | kind for field, kind in ((2, 2), (3, 2), (4, 2), (5, 0), (6, 2), (7, 2), (8, 2), (14, 2))}
    return len(head) > 2 and head[0] == 0x08 and 0 < head[1] < 32 and head[2] in fields


def _is_pickle(head: bytes) -> bool:
    """Whether this begins as a pickle of protocol 2 or a later one, and as no checkpoint of PyTorch that is cut."""
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not (
        _TORCH_LEGACY.startswith(head))  # fmt: skip


def _describe(head: bytes, size: int) -> str:
    for magic, what in _OTHERS:
        if head.startswith(magic):
            return what if ";" in what else f"{what}; {READABLE}"
    if _TORCH_LEGACY.startswith(head):
        return "a PyTorch checkpoint that is cut short; fetch or save it again"
    if head[257:262] == b"ustar":
        return ("a tar archive: unpack it, or, if PyTorch before 0.4 wrote it, load it in PyTorch and save it with"
                " torch.save")  # fmt: skip
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"a web page or XML, not a checkpoint: perhaps a download that failed; {READABLE}"
    if start.startswith((b"{", b"[")):
        return f"text that looks like JSON, without the weight_map of a sharded model or a weightsManifest; {READABLE}"
    if _is_text(head):
        return f"a text file; {READABLE}"
    return f"no checkpoint that is known: {size} bytes that begin with {head[:8].hex(' ')}; {READABLE}"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as err:
        if err.start < len(head) - 3:  # more than a last character that is cut
            return False
        text = head[: err.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)

"""Which format a file has, told from its first bytes; its name says nothing."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, Literal

from vqformat.errors import ConversionError

Kind = Literal["vqm", "pytorch", "pytorch-legacy", "safetensors", "safetensors-index", "npz", "npy"]

READABLE = "PyTorch checkpoints (.pt, .pth), safetensors (also sharded), NumPy .npz and .npy, and .vqm can be read"
MAX_JSON_NBYTES = 100_000_000

_VQM = b"\x89VQM"
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's magic number, pickled
# What people hand over by mistake, and what would help
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch the file with: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"GGUF", "a GGUF file, whose weights are already quantized; start from the original checkpoint"),
    (b"\x1f\x8b", "compressed with gzip; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it first"),
    (b"BZh", "compressed with bzip2; decompress it first"),
    (b"\xfd7zXZ\x00", "compressed with xz; decompress it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
)


def detect_format(path: Path) -> tuple[Kind, Path]:
    """The format of a checkpoint, and the file to read: of a folder, the one in it.

    Raises:
        FileNotFoundError: There is no such file.
        ConversionError: It is nothing that can be read; the message says what it is and what would work.
    """
    if path.is_dir():
        return _in_folder(path)
    with open(path, "rb") as stream:
        head = stream.read(512)
        size = stream.seek(0, 2)
    if not head:
        raise ConversionError(f"{str(path)!r} is empty; {READABLE}")
    if head.startswith(_VQM):
        return "vqm", path
    if head.startswith(b"\x93NUMPY"):
        return "npy", path
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _of_zip(path), path
    if head.startswith(_TORCH_LEGACY):
        return "pytorch-legacy", path
    if len(head) > 8 and head[8:9] in b"{ " and int.from_bytes(head[:8], "little") <= MAX_JSON_NBYTES:
        return "safetensors", path
    if head.lstrip()[:1] == b"{" and is_index(path):
        return "safetensors-index", path
    raise ConversionError(f"{str(path)!r} is {_describe(head, size)}")


def is_index(path: Path) -> bool:
    """Whether a file is the index of a sharded safetensors model."""
    return isinstance(read_json(path).get("weight_map"), dict)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the file holds none."""
    with open(path, "rb") as stream:
        text = stream.read(MAX_JSON_NBYTES + 1)
    try:
        value = json.loads(text) if len(text) <= MAX_JSON_NBYTES else None
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _in_folder(folder: Path) -> tuple[Kind, Path]:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indexes) == 1:
        return "safetensors-index", indexes[0]
    if not indexes and len(files) == 1:
        return "safetensors", files[0]
    found = [file.name for file in indexes or files]
    what = f"a folder of {', '.join(map(repr, found[:8]))}" if found else "a folder without a checkpoint that is known"
    raise ConversionError(f"{str(folder)!r} is {what}; give a file, or a folder with one *.safetensors.index.json or"
                          " one *.safetensors")  # fmt: skip


def _of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as err:
        raise ConversionError(f"{str(path)!r} begins as a zip archive (PyTorch, NumPy), but is damaged or cut short:"
                              f" {err}; fetch or save it again") from err  # fmt: skip
    tails = {name.split("/", 1)[-1] for name in names}
    if "data.pkl" in tails:
        if "constants.pkl" in tails:
            raise ConversionError(f"{str(path)!r} is a TorchScript archive; load it with torch.jit.load and save its"
                                  " state dict: torch.save(model.state_dict(), …)")  # fmt: skip
        return "pytorch"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if "model.weights.h5" in names:
        raise ConversionError(f"{str(path)!r} is a Keras model; {READABLE}")
    if not names:
        raise ConversionError(f"{str(path)!r} is a zip archive without members; {READABLE}")
    some = ", ".join(map(repr, names[:4])) + (", …" if len(names) > 4 else "")
    raise ConversionError(f"{str(path)!r} is a zip archive of {some}, neither of PyTorch nor of NumPy; {READABLE}")


def _describe(head: bytes, size: int) -> str:
    for magic, what in _OTHERS:
        if head.startswith(magic):
            return what if ";" in what else f"{what}; {READABLE}"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        if _TORCH_LEGACY.startswith(head):
            return "a PyTorch checkpoint that is cut short; fetch or save it again"
        return ("a Python pickle that torch.save did not write; pickles of other programs are never loaded, since they"
                " can run code: save a state dict with torch.save, or arrays with numpy.savez")  # fmt: skip
    if head[257:262] == b"ustar":
        return ("a tar archive: unpack it, or, if PyTorch before 0.4 wrote it, load it in PyTorch and save it with"
                " torch.save")  # fmt: skip
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"a web page or XML, not a checkpoint: perhaps a download that failed; {READABLE}"
    if start.startswith((b"{", b"[")):
        return f"text that looks like JSON, without the weight_map of a safetensors index; {READABLE}"
    if _is_text(head):
        return f"a text file; {READABLE}"
    return f"no checkpoint that is known: {size} bytes that begin with {head[:8].hex(' ')}; {READABLE}"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as err:
        if err.start < len(head) - 3:  # not merely a character cut in two
            return False
        text = head[: err.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)

"""Formats that are recognized but not read: what each is, and what the user can do."""

from __future__ import annotations

from pathlib import Path

from .protobuf import BYTES, varint

_EXPORT = "export the model to ONNX, or save its weights with safetensors or numpy.savez"
_CORE_ML = ("a Core ML model, which is not read: convert the model that it was made from, or read it with coremltools"
            " and save its weights with numpy.savez")  # fmt: skip
_ORBAX = ("an Orbax checkpoint (OCDBT or Zarr), which only tensorstore reads: restore it with orbax.checkpoint, and"
          " save it with flax.serialization.to_bytes or safetensors.flax.save_file")  # fmt: skip
_ZERO = ("a checkpoint of DeepSpeed, whose weights are in parts: run zero_to_fp32.py, which DeepSpeed writes beside it,"
         " or give the file mp_rank_00_model_states.pt if it has them all")  # fmt: skip
_ORBAX_SIGNS = ("manifest.ocdbt", "_CHECKPOINT_METADATA", "_METADATA", "_sharding", ".zarray")
_NCNN_PARAM = b"7767517"
_DARKNET_VERSIONS = ((0, 1), (0, 2))

_ZLIB = ("a zlib stream, as joblib.dump writes with compression; load it in the program that wrote it and save its"
         " arrays with numpy.savez")  # fmt: skip
_ARRAYS = "save its arrays with numpy.savez"
_PICKLE = ("a Python pickle of protocol 0; pickles of other programs are never loaded, since they can run code: save a"
           " state dict with torch.save, or arrays with numpy.savez")  # fmt: skip
_NCNN = "the network of an ncnn model, without its weights; convert the model that it was made from"
# Bytes at the beginning of a file
_AT_START = (
    (_NCNN_PARAM + b"\n", _NCNN),
    *((magic, "a model of GGML from before GGUF: convert it to GGUF with the scripts of llama.cpp or whisper.cpp")
      for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg")),
    (b"ftrt", "an engine of TensorRT, made for one GPU: convert the model that it was made from"),
    (b"RKNN", "a model of RKNN, made for one chip: convert the model that it was made from"),
    (b"MATLAB 5.0", "a MATLAB file, which is not read: load it with scipy.io.loadmat, and save it with numpy.savez"),
    (b"PAR1", f"a Parquet file, which is a table and no checkpoint; {_ARRAYS}"),
    (b"ARROW1", f"an Arrow file, which is a table and no checkpoint; {_ARRAYS}"),
    *((magic, _PICKLE) for magic in (b"(dp", b"(lp", b"ccopy_reg\n", b"c__builtin__\n")),
    (b"\x12\x01\0\0\0\0\0\0", f"an MXNet .params file, which is not read: {_EXPORT}"),
    *((b"\x78" + level, _ZLIB) for level in (b"\x01", b"\x5e", b"\x9c", b"\xda")),
)
# At byte 4, where FlatBuffers name themselves
_AT_4 = (
    (b"ORTM", "an ONNX Runtime model (.ort), made for one machine from an ONNX model: convert that .onnx file"),
    (b"ET12", "an ExecuTorch program (.pte): convert the model that it was made from, saved with torch.export.save"),
)


def other_format(path: Path, head: bytes) -> str | None:
    """What a file is, if it is of a format that is known and not read: a sentence after "is"."""
    for magic, what in _AT_4:
        if head[4:8] == magic:
            return what
    for magic, what in _AT_START:
        if head.startswith(magic):
            return what
    if path.suffix.lower() == ".mlmodel" or is_core_ml(head):
        return _CORE_ML
    if _is_darknet(head):
        return ("a Darknet .weights file, which has neither names nor shapes: they are in the .cfg; convert the two to"
                " PyTorch or ONNX first")  # fmt: skip
    if head[:1] == b"\x80" and (b"joblib" in head or b"sklearn" in head):
        return ("a pickle of joblib or scikit-learn; pickles of other programs are never loaded, since they can run"
                " code: save the arrays of the model with numpy.savez")  # fmt: skip
    if path.suffix.lower() == ".bin" and _is_ncnn(path.with_suffix(".param")):
        return "the weights of an ncnn model, without names or shapes; convert the model that it was made from"
    if b"<net " in head and b"<?xml" in head:
        return f"the text of an OpenVINO model, which is not read: {_EXPORT}"
    return _protobuf_model(path, head)


def other_folder(folder: Path) -> str | None:
    """What a folder is, if it is a checkpoint of a format that is known and not read."""
    if (folder / "Data" / "com.apple.CoreML").is_dir() or folder.suffix.lower() in (".mlpackage", ".mlmodelc"):
        return _CORE_ML
    places = [folder, *(place for place in sorted(folder.iterdir())[:64] if place.is_dir())]
    if any((place / sign).exists() for place in places for sign in _ORBAX_SIGNS):
        return _ORBAX
    if any(any(place.glob("*mp_rank_*_model_states.pt")) for place in places):
        return _ZERO
    return None


def is_core_ml(head: bytes) -> bool:
    """Whether a message begins as Core ML's: a version, then a description, where ONNX has the name of a program."""
    if head[:1] != b"\x08" or len(head) < 5 or head[2] != 2 << 3 | BYTES:
        return False
    try:
        size, at = varint(head, 3)
    except ValueError:
        return False
    name = head[at : at + size]
    return bool(name) and not (name.isascii() and name.decode().isprintable())


def _is_darknet(head: bytes) -> bool:
    """Three numbers of a version, then the images seen."""
    numbers = tuple(int.from_bytes(head[at : at + 4], "little") for at in (0, 4, 8))
    return len(head) >= 16 and numbers[:2] in _DARKNET_VERSIONS and numbers[2] <= 9


def _is_ncnn(param: Path) -> bool:
    if not param.is_file():
        return False
    with open(param, "rb") as stream:
        return stream.read(len(_NCNN_PARAM)) == _NCNN_PARAM


def _protobuf_model(path: Path, head: bytes) -> str | None:
    """Graphs of TensorFlow and networks of Caffe: messages whose first field is a message or a name."""
    if head[:1] != bytes([1 << 3 | BYTES]):
        return f"a Caffe model, which is not read: {_EXPORT}" if path.suffix.lower() == ".caffemodel" else None
    try:
        size, at = varint(head, 1)
    except ValueError:
        return None
    first, after = head[at : at + size], head[at + size : at + size + 2]
    if path.suffix.lower() == ".caffemodel" or (first.isascii() and after in (b"\xa2\x06", b"\x1a\x04")):
        return f"a Caffe model, which is not read: {_EXPORT}"
    if path.suffix.lower() == ".pb" or (first[:1] == b"\x0a" and b"\x12" in first and b"Placeholder" in head):
        return ("a frozen graph of TensorFlow, which is not read: convert the SavedModel or the checkpoint that it was"
                " made from")  # fmt: skip
    return None

"""``open_source``: a checkpoint of any format, which its content tells."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from .detect import Kind, detect_format
from .source import Source

# Kind of file -> module and function that opens it
_READERS: dict[Kind, tuple[str, str]] = {
    "vqm": ("vqm", "open_vqm"),
    "vqm-index": ("vqm", "open_vqm"),
    "pytorch": ("pytorch", "open_pytorch"),
    "pytorch-index": ("pytorch", "open_sharded"),
    "torchscript": ("torchscript", "open_torchscript"),
    "safetensors": ("safetensors", "open_safetensors"),
    "safetensors-index": ("safetensors", "open_sharded"),
    "keras": ("keras", "open_keras"),
    "keras-shards": ("keras", "open_shards"),
    "hdf5": ("keras", "open_hdf5"),
    "onnx": ("onnx", "open_onnx"),
    "gguf": ("gguf", "open_gguf"),
    "npz": ("npz", "open_npz"),
    "npy": ("npz", "open_npy"),
    "pickle": ("pickled_arrays", "open_pickle"),
    "pytorch-distributed": ("distributed", "open_distributed"),
    "torch-export": ("torch_export", "open_export"),
    "savedmodel": ("tensorflow", "open_saved_model"),
    "tensorflow": ("tensorflow", "open_tensorflow"),
    "tfjs": ("tfjs", "open_tfjs"),
    "tflite": ("tflite", "open_tflite"),
    "flax": ("flax", "open_flax"),
    "flax-index": ("flax", "open_sharded"),
}
_IN_SEVERAL_FILES = ("pytorch-index", "safetensors-index", "keras-shards", "pytorch-distributed", "savedmodel",
                     "tensorflow", "tfjs", "flax-index", "vqm-index")  # fmt: skip
_WITH_OPTIMIZER = ("pytorch", "keras", "keras-shards", "hdf5", "pytorch-distributed", "savedmodel", "tensorflow",
                   "flax", "pickle")  # fmt: skip


def open_source(path: str | os.PathLike[str], *, include_optimizer: bool = False) -> Source:
    """Open a checkpoint of any supported format, which is detected from its content.

    Args:
        path: Path of a file, or of a folder that has one.
        include_optimizer: Whether the training state beside the weights is included.

    Raises:
        FileNotFoundError: There is no such file.
        ConversionError: It cannot be read. The message says what it is and what can be done.
        ImportError: A package for the format is not installed. The message says which.
    """
    kind, file = detect_format(Path(path))
    module, function = _READERS[kind]
    open_it = getattr(import_module(f".{module}", __package__), function)
    options = {"include_optimizer": include_optimizer} if kind in _WITH_OPTIMIZER else {}
    source: Source = open_it(file, **options)
    if kind not in _IN_SEVERAL_FILES and not source.has_external_data:
        source.file_nbytes = file.stat().st_size
    return source

"""vqformat: trained networks stored small, in ``.vqm`` files.

The functions are those of safetensors: ``save_file``, ``load_file``, ``save``, ``load``, ``safe_open``. For PyTorch
tensors see ``vqformat.torch``, for checkpoints of other formats ``vqformat.converters``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    ChecksumError,
    ConversionError,
    EncodeError,
    FormatError,
    LimitError,
    TensorNotFoundError,
    TruncatedError,
    UnsupportedError,
    VqmError,
)
from .native import backend
from .numpy import load, load_file, save, save_file, verify
from .read.safe_open import TensorInfo, safe_open
from .read.streaming import stream
from .version import __version__ as __version__

__all__ = [
    "ChecksumError",
    "ConversionError",
    "EncodeError",
    "FormatError",
    "LimitError",
    "Recipe",
    "TensorInfo",
    "TensorNotFoundError",
    "TruncatedError",
    "UnsupportedError",
    "VqmError",
    "backend",
    "content_digest",
    "load",
    "load_file",
    "safe_open",
    "save",
    "save_file",
    "search",
    "stream",
    "verify",
    "writer",
]


# The encoder is imported when it is first used
if TYPE_CHECKING:
    from .contents import content_digest
    from .encode.recipe import Recipe
    from .encode.writer import writer
    from .smallest import search

_LAZY = {"Recipe": "encode.recipe", "content_digest": "contents", "search": "smallest",
         "writer": "encode.writer"}  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module 'vqformat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""vqformat: trained networks stored small, in ``.vqm`` files.

The functions are those of safetensors: ``save_file``, ``load_file``, ``save``, ``load``, ``safe_open``. For PyTorch
tensors see ``vqformat.torch``, for checkpoints of other formats ``vqformat.converters``.
"""

from importlib import import_module

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


# Each is imported when it is first used: then `vqm` starts fast, and can be interrupted while it imports
TYPE_CHECKING = False  # as in typing, whose import takes a while
if TYPE_CHECKING:
    from .contents import content_digest
    from .encode.recipe import Recipe
    from .encode.writer import writer
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
    from .smallest import search

_MODULES = {
    "contents": ("content_digest",),
    "encode.recipe": ("Recipe",),
    "encode.writer": ("writer",),
    "errors": ("ChecksumError", "ConversionError", "EncodeError", "FormatError", "LimitError", "TensorNotFoundError",
               "TruncatedError", "UnsupportedError", "VqmError"),
    "native": ("backend",),
    "numpy": ("load", "load_file", "save", "save_file", "verify"),
    "read.safe_open": ("TensorInfo", "safe_open"),
    "read.streaming": ("stream",),
    "smallest": ("search",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in ("errors", "numpy"):
        return import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vqformat' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

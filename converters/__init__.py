"""Checkpoints of other formats to ``.vqm`` and back (SPEC section 18).

``convert`` compresses a checkpoint, ``extract`` writes one from a ``.vqm``, ``open_source`` opens a file of any of the
formats. ``convert_folder`` and ``extract_folder`` do so with model folders, and copy what is no weights. A package that
a format needs (torch, h5py, onnx, …) is imported when a file of that format is opened.
"""

from .conversion import convert, extract
from .folders import FolderReport, convert_folder, extract_folder
from .opening import open_source
from .source import Source

__all__ = ["FolderReport", "Source", "convert", "convert_folder", "extract", "extract_folder", "open_source"]

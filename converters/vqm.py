"""Reading a ``.vqm``, to encode it again with other options or to export it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vqformat import safe_open
from vqformat.encode.source import SourceTensor

from .source import ORIGIN_KEY, Source


def open_vqm(path: Path) -> Source:
    """Open a ``.vqm``, or the index of one in several files. Each tensor is decoded when it is needed.

    Raises:
        VqmError: The file is refused.
    """
    file = safe_open(path)
    try:
        file.check_metadata()
        metadata = file.metadata()
        origin = metadata.pop(ORIGIN_KEY, None)
        if not isinstance(origin, dict):
            origin = {}
        exact = origin.pop("exact", None)  # names, from an untrusted file
        names = {name for name in exact if isinstance(name, str)} if isinstance(exact, list) else set()
        tensors = []
        notes: list[str] = []
        for name in file:
            info = file.info(name)
            load = _loader(file, name)
            tensors.append(SourceTensor(name, info.dtype, info.shape, load, info.alias_of, is_exact=name in names))
        if origin.get("format") == "gguf":
            tensors = _with_blocks(file, tensors, origin.get("ggml_types"), notes)
    except BaseException:
        file.close()
        raise
    return Source("vqm", tensors, metadata, notes, origin, file.close)


def _with_blocks(
    file: safe_open, tensors: list[SourceTensor], types: object, notes: list[str]
) -> list[SourceTensor]:
    """The tensors, those that have blocks of GGUF as quantized ones; without the gguf package as they are.

    Args:
        types: ``ggml_types`` of SPEC section 18; anybody may have written it.
    """
    try:
        from .gguf_stored import with_blocks
    except ImportError as err:
        if types:
            notes.append(f"tensors that are blocks of a GGUF file were read as they are stored: {err}")
        return tensors
    return with_blocks(file, tensors, types)


def _loader(file: safe_open, name: str) -> Callable[[], npt.NDArray[Any]]:
    return lambda: file[name]

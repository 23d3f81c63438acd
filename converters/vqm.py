"""A .vqm as a source: to code it again with other options, or to export it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vqformat import safe_open
from vqformat.encode.source import SourceTensor

from .source import ORIGIN_KEY, Source


def open_vqm(path: Path) -> Source:
    """Open a ``.vqm``; a tensor is decoded when it is asked for.

    Raises:
        VqmError: The file is refused.
    """
    file = safe_open(path)
    try:
        tensors = []
        for name in file:
            info = file.info(name)
            tensors.append(SourceTensor(name, info.dtype, info.shape, _loader(file, name), info.alias_of))
        file.check_metadata()
        metadata = file.metadata()
    except BaseException:
        file.close()
        raise
    origin = metadata.pop(ORIGIN_KEY, None)
    return Source("vqm", tensors, metadata, [], origin if isinstance(origin, dict) else {}, file.close)


def _loader(file: safe_open, name: str) -> Callable[[], npt.NDArray[Any]]:
    return lambda: file[name]

"""``content_digest``: whether two files of any format hold the same tensors (SPEC 15.3)."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, cast

from .decode.workers import n_threads
from .encode.source import native
from .format.container import HEADER_NBYTES, begins_like_vqm
from .format.content_digest import ContentDigest
from .read.contents import read_contents
from .read.shards import index_of, opened_model

if TYPE_CHECKING:
    from .encode.source import SourceTensor


def content_digest(path: str | os.PathLike[str], *, threads: int | None = None) -> str:
    """A SHA-256 over the names, dtypes, shapes and values of all tensors of a file, in hexadecimal.

    Two files have the same digest if they hold the same tensors, whatever their formats: a ``.vqm``, and the
    ``.safetensors`` or ``.pt`` that is made from it. The order of the tensors, metadata and ties do not count.

    Args:
        path: A ``.vqm``, in one file or in several, or a checkpoint that ``vqformat.converters.convert`` reads. Of a
            ``.vqm`` every byte is checked, too, and a few blocks are in memory; of a checkpoint one tensor at a time
            is.
        threads: Threads that decode; None for the number of processors, but at most 8.

    Raises:
        VqmError: The file is refused.
        OSError: The file cannot be read.
        ImportError: A package for the format is not installed; the message says which.
    """
    if index_of(path) is not None:
        with opened_model(path) as source:
            return read_contents(source, n_threads(threads))[1]
    if not os.path.isdir(path):
        with open(path, "rb") as stream:
            if begins_like_vqm(stream.read(HEADER_NBYTES)):
                stream.seek(0)
                return read_contents(stream, n_threads(threads))[1]
    converters = import_module("vqformat.converters")
    with converters.open_source(path) as source:
        return source_digest(cast("list[SourceTensor]", source.tensors))


def source_digest(tensors: list[SourceTensor]) -> str:
    """The content digest of an opened checkpoint. One tensor at a time is loaded."""
    content = ContentDigest()
    for tensor in tensors:
        if tensor.alias_of is not None:
            content.add_alias(tensor.name, tensor.alias_of)
        else:
            content.add(tensor.name, tensor.dtype, tensor.shape, [native(tensor)])
    return content.hexdigest()

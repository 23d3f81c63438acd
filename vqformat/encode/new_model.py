"""The file, or the files, into which a model is written."""

from __future__ import annotations

import os
from typing import Any, BinaryIO, TypeAlias

from ..errors import EncodeError
from ..format.chunkwriter import ChunkWriter
from ..format.sharded_writer import ShardedWriter
from ..sizes import Size, parse_size
from .options import Options

ModelWriter: TypeAlias = ChunkWriter | ShardedWriter

_MINOR = 1  # minor version of the format of files that are not lossless


def open_writer(target: str | os.PathLike[str] | BinaryIO, metadata: dict[str, Any] | None, options: Options, *,
                overwrite: bool, max_shard_size: Size | None = None) -> ModelWriter:  # fmt: skip
    """A writer for a model with these options.

    Args:
        max_shard_size: Most bytes of a file, if the model is to be written into several; else None.

    Raises:
        EncodeError: ``max_shard_size`` is no size, or is given for a stream; or the metadata cannot be written.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    minor = 0 if options.lossless else _MINOR
    if max_shard_size is None:
        return ChunkWriter(target, metadata, overwrite=overwrite, minor=minor)
    try:
        nbytes = parse_size(max_shard_size)
    except ValueError as err:
        raise EncodeError(f"max_shard_size: {err}") from err
    if not isinstance(target, (str, os.PathLike)):
        raise EncodeError("max_shard_size is for files that have names, not for a stream")
    return ShardedWriter(target, nbytes, metadata, overwrite=overwrite, minor=minor)

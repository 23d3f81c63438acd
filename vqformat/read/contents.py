"""The content digest of a ``.vqm``, computed in one pass while all of the file is checked (SPEC 15.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy.typing as npt

from ..decode.block_groups import plain
from ..format.content_digest import ContentDigest
from ..format.records import AliasRecord, TensorRecord
from .budget import Budget
from .sequential import SequentialReader, SequentialTensor

Array = npt.NDArray[Any]


def read_contents(stream: BinaryIO, threads: int = 1) -> tuple[str, str]:
    """Read and decode a whole file and check all of it, including its SHA-256. The stream need not support ``seek``.

    A few blocks are in memory at a time; of a tensor whose blocks are not in the order of its elements, all.

    Args:
        threads: Threads that decode a tensor which is in memory as a whole.

    Returns:
        The SHA-256 that the file states, and its content digest, both in hexadecimal.

    Raises:
        VqmError: The file is refused.
    """
    reader = SequentialReader(stream, check_digest=True, keep_total=False)
    content = ContentDigest()
    for info, tensors in reader.open_layers():
        for tensor in tensors:
            record = tensor.record
            content.add(record.name, record.dtype, record.shape, _pieces(tensor, threads))
        for alias in info.records:
            if isinstance(alias, AliasRecord):
                content.add_alias(alias.name, alias.target)
    return reader.digest.hex(), content.hexdigest()


def _pieces(tensor: SequentialTensor, threads: int) -> Iterator[Array]:
    """The elements of a tensor in C order."""
    Budget().take(tensor.record)
    if not _has_blocks_in_order(tensor.record):
        yield tensor.decode_all(tensor.groups(), None, threads)
        return
    for blocks, sections in tensor.groups():
        yield from tensor.decoder.block_values(blocks, plain(sections))


def _has_blocks_in_order(record: TensorRecord) -> bool:
    """Whether the values of its blocks, one after another, are its elements in C order."""
    layout = record.layout
    # Two 4-bit elements share a byte, and a block may have an odd number of them
    return layout.axes is None and not layout.order and not layout.block_columns and record.dtype_info.bits >= 8

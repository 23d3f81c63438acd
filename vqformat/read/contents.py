"""The content digest of a ``.vqm``, computed in one pass while all of the file is checked (SPEC 15.3)."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..decode.block_groups import plain
from ..files import temporary_space
from ..format.content_digest import ContentDigest
from ..format.records import AliasRecord, TensorRecord
from .budget import Budget
from .sequential import SequentialTensor
from .sharded_sequential import sequential_reader
from .shards import Shards

Array = npt.NDArray[Any]

_IN_MEMORY_NBYTES = 1 << 24  # a larger tensor whose blocks are not in order is decoded into a temporary file
_PIECE = 1 << 20  # elements that are hashed together; an even number, so that 4-bit elements fill bytes
_ZEROS_NBYTES = 1 << 20  # that are written at once


def read_contents(source: BinaryIO | Shards, threads: int = 1) -> tuple[str, str]:
    """Read and decode a whole model and check all of it, including its SHA-256. A stream need not support ``seek``.

    A few blocks are in memory at a time. A large tensor whose blocks are not in the order of its elements is decoded
    into a temporary file.

    Args:
        threads: Threads that decode such a tensor.

    Returns:
        The SHA-256 that the file states, or that of the index of several files, and the content digest, both in
        hexadecimal.

    Raises:
        VqmError: The file is refused.
    """
    budget = Budget()
    reader = sequential_reader(source, budget, check_digest=True, keep_total=False)
    content = ContentDigest()
    for info, tensors in reader.open_layers():
        with reader.naming():
            for tensor in tensors:
                record = tensor.record
                content.add(record.name, record.dtype, record.shape, _pieces(tensor, budget, threads))
        for alias in info.records:
            if isinstance(alias, AliasRecord):
                content.add_alias(alias.name, alias.target)
    return reader.digest.hex(), content.hexdigest()


def _pieces(tensor: SequentialTensor, budget: Budget, threads: int) -> Iterator[Array]:
    """The elements of a tensor in C order.

    Args:
        budget: It has counted what is held beside the tensor.
    """
    record = tensor.record
    budget.check_size(record)
    if _has_blocks_in_order(record):
        budget.check_tables(record)
        for blocks, sections in tensor.groups():
            yield from tensor.decoder.block_values(blocks, plain(sections))
        return
    if max(record.nbytes, record.n_elements) <= _IN_MEMORY_NBYTES:
        replace(budget).take(record)
        yield tensor.decode_all(tensor.groups(), None, threads)
        return
    budget.check_tables(record)
    with temporary_space(), tempfile.TemporaryFile() as file:
        dtype = record.dtype_info.numpy
        _take_space(file, record.n_elements * dtype.itemsize)
        out = np.memmap(file, dtype, "r+", shape=record.shape)
        elements = tensor.decode_all(tensor.groups(), out, threads).reshape(-1)
        for start in range(0, elements.size, _PIECE):
            yield elements[start : start + _PIECE]


def _take_space(file: IO[bytes], nbytes: int) -> None:
    """Make a new file that has its place on the disk: a mapped file that gets none later kills the process.

    Raises:
        OSError: The disk is full.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, nbytes)
    except AttributeError:  # the system does not have it
        pass
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # the file system does not have it
            raise
    else:
        return
    zeros = bytes(_ZEROS_NBYTES)
    for start in range(0, nbytes, _ZEROS_NBYTES):
        file.write(zeros[: nbytes - start])
    file.flush()


def _has_blocks_in_order(record: TensorRecord) -> bool:
    """Whether the values of its blocks, one after another, are its elements in C order."""
    layout = record.layout
    # Two 4-bit elements share a byte, and a block may have an odd number of them
    return layout.axes is None and not layout.order and not layout.block_columns and record.dtype_info.bits >= 8

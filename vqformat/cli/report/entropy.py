"""The entropy of a tensor's codes: the bits that an ideal coder needs if it codes each by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode.block_groups import plain
from ...decode.codes import block_codes
from ...decode.lowrank import LowRankDecoder
from ...decode.trellis import TrellisDecoder
from ...read.indexed import IndexedReader
from ...read.sharded import ShardedReader

Codes = npt.NDArray[Any]

_SAMPLE = 1 << 18  # elements whose codes are counted, in blocks from all parts of the tensor


def code_entropy_bits(reader: IndexedReader | ShardedReader, name: str) -> float:
    """Bits for all codes of a tensor by their entropy; 0 without elements.

    The entropy is of order zero: codes that depend on their neighbours take less. It is estimated from some blocks.

    Raises:
        VqmError: The tensor's part of the file is refused.
    """
    stored = reader.stored(name)
    if stored is None:
        return 0.0
    decoder = stored.decoder
    n_blocks, n_elements = decoder.view.n_blocks, stored.record.n_elements
    n_wanted = min(n_blocks, -(-_SAMPLE * n_blocks // n_elements))
    numbers = sorted({i * n_blocks // n_wanted for i in range(n_wanted)})
    found: list[list[Codes]] = []  # for each stage the codes of each block
    n_seen = 0
    for blocks, sections in stored.groups(numbers):
        n_seen += sum(block.n_elements for block in blocks)
        for of_block in block_codes(decoder, blocks, plain(sections)):
            found = found or [[] for _ in of_block]
            for of_stage, more in zip(found, of_block, strict=True):
                of_stage.append(more.reshape(-1))
    total = 0.0
    for i, of_stage in enumerate(found):
        stage = decoder.stages[i] if decoder.stages else None  # a raw tensor has none, but sections
        codes: Codes = np.concatenate(of_stage)
        n_books = stage.stage.n_books if isinstance(stage, TrellisDecoder) else 1
        total += _bits(codes, n_books) * n_elements / n_seen
        if isinstance(stage, LowRankDecoder):
            total += _bits(stage.right.astype(np.int64).reshape(-1), 1)
    return total


def _bits(codes: Codes, n_books: int) -> float:
    """Entropy of all codes together. Which of the codebooks a code is of costs nothing: the codes before tell it."""
    total = _entropy(codes)
    return total - _entropy(codes % n_books) if n_books > 1 else total


def _entropy(values: Codes) -> float:
    """Bits for all values by their frequencies."""
    counts = np.unique(values, return_counts=True)[1]
    return float(counts @ np.log2(values.size / counts))

"""The codes of a tensor as arrays, for statistics. Decoding itself seldom needs them so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..format import bits
from ..format.layout import Block
from ..format.stages import CodebookStage, LowRankStage
from .codebook import CodebookDecoder
from .lowrank import LowRankDecoder
from .tensor import TensorDecoder
from .trellis import Bands, decode_together

Codes = npt.NDArray[Any]


def block_codes(
    decoder: TensorDecoder, blocks: Sequence[Block], payloads: Sequence[list[bytes]]
) -> Iterator[list[Codes]]:
    """The codes of blocks.

    Args:
        payloads: For each block, plain bytes of its payload sections.

    Yields:
        For each block the codes of each stage, those of a low-rank stage of its left factor only. A trellis stage has
        ``n_books · code + q`` of the codebook q. A raw tensor has the bytes of each payload section.

    Raises:
        FormatError: A code breaks a rule of SPEC section 10 or 12.3.
    """
    for block, sections in zip(blocks, payloads, strict=True):
        if decoder.record.is_raw:
            yield [np.frombuffer(section, np.uint8) for section in sections]
            continue
        codes: list[Codes] = []
        first = 0
        for stage in decoder.stages:
            mine = sections[first : first + stage.stage.n_payload()]
            first += len(mine)
            codes.append(_codes_of(stage, block, mine))
        yield codes


def _codes_of(decoder: Any, block: Block, sections: list[bytes]) -> Codes:
    arrays = [np.frombuffer(section, np.uint8) for section in sections]
    match decoder:
        case CodebookDecoder():
            of_codes: CodebookStage = decoder.stage
            n_codes = block.n_rows * of_codes.n_subvectors(block.n_columns)
            return bits.unpack(arrays, n_codes, of_codes.entries, of_codes.planes)
        case LowRankDecoder():
            factors: LowRankStage = decoder.stage
            return bits.unpack(arrays, block.n_rows * factors.rank, factors.entries_u, factors.planes_u)
    (codes,) = decode_together([Bands(decoder, [block], sections)])[0]
    return codes

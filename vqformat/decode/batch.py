"""Small tensors decoded side by side: with few sequences NumPy's calls cost more than their work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy.typing as npt

from ..errors import FormatError
from ..format.layout import Block
from .tensor import TensorDecoder
from .trellis import Bands, decode_together

# Of all that wait: bytes of their elements, of their tables and those joined, or of what is stored, whatever is more of
# each tensor
_MOST_NBYTES = 1 << 25
_JOB_NBYTES = 1 << 12  # that objects take for each


class _Job(NamedTuple):
    decoder: TensorDecoder
    bands: Bands
    blocks: Sequence[Block]
    payloads: Sequence[list[bytes]]
    out: npt.NDArray[Any]


class Batch:
    """Tensors that have one trellis stage each, which wait until there are enough of them."""

    def __init__(self) -> None:
        self._groups: dict[object, list[_Job]] = {}  # by what must be the same for all
        self._nbytes = 0

    def add(
        self, decoder: TensorDecoder, blocks: Sequence[Block], payloads: Sequence[list[bytes]], out: npt.NDArray[Any]
    ) -> bool:
        """Take a tensor; its array is filled when ``flush`` has been called.

        Returns:
            Whether it may wait. If not, it is to be decoded at once.

        Raises:
            FormatError: A code of one that waited breaks a rule.
        """
        bands = None if len(blocks) < decoder.view.n_blocks else decoder.bands(blocks, payloads)
        if bands is None:
            return False
        stored_nbytes = sum(len(section) for sections in payloads for section in sections)
        held_nbytes = _JOB_NBYTES + sum(map(sum, decoder.record.resident_nbytes())) + stored_nbytes
        nbytes = max(4 * decoder.record.n_elements, 2 * bands.decoder.slots.nbytes, held_nbytes)
        if nbytes > _MOST_NBYTES // 2:
            return False
        if self._nbytes + nbytes > _MOST_NBYTES:
            self.flush()
        self._groups.setdefault(bands.decoder.kind, []).append(_Job(decoder, bands, blocks, payloads, out))
        self._nbytes += nbytes
        return True

    def flush(self) -> None:
        """Decode all that wait.

        Raises:
            FormatError: A code breaks a rule; the message names the tensor.
        """
        groups, self._groups, self._nbytes = self._groups, {}, 0
        for jobs in groups.values():
            self._decode(jobs)

    def _decode(self, jobs: list[_Job]) -> None:
        try:
            codes = decode_together([job.bands for job in jobs])
        except FormatError:
            for job in jobs:  # by itself the one at fault says so
                job.decoder.decode_blocks(job.blocks, job.payloads, job.out)
            raise
        for job, of_blocks in zip(jobs, codes, strict=True):
            job.decoder.decode_blocks(job.blocks, job.payloads, job.out, of_blocks)

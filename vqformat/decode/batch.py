"""Small tensors decoded together: one NumPy call for many sequences costs hardly more than one for few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy.typing as npt

from ..errors import FormatError
from ..format.layout import Block
from .tensor import TensorDecoder
from .trellis import Bands, decode_together

_MOST_NBYTES = 1 << 25  # memory of all tensors in a batch, see ``Batch.add``
_JOB_NBYTES = 1 << 12  # memory of the Python objects of one tensor


class _Job(NamedTuple):
    decoder: TensorDecoder
    bands: Bands
    blocks: Sequence[Block]
    payloads: Sequence[list[bytes]]
    out: npt.NDArray[Any]


class Batch:
    """Collects tensors with one trellis stage each, and decodes them together when there are enough."""

    def __init__(self) -> None:
        self._groups: dict[object, list[_Job]] = {}  # by TrellisDecoder.kind
        self._nbytes = 0

    def add(
        self, decoder: TensorDecoder, blocks: Sequence[Block], payloads: Sequence[list[bytes]], out: npt.NDArray[Any]
    ) -> bool:
        """Add a tensor to the batch, if it is suited. ``flush`` fills its array; so may a later ``add``.

        Args:
            blocks: All blocks of the tensor; with fewer it is not added.
            payloads: For each block, plain bytes of its payload sections.
            out: The tensor, C-contiguous.

        Returns:
            Whether it was added. If not, the caller decodes it.

        Raises:
            FormatError: A code of a tensor added before breaks a rule.
        """
        bands = None if len(blocks) < decoder.view.n_blocks else decoder.bands(blocks, payloads)
        if bands is None:
            return False
        stored_nbytes = sum(len(section) for sections in payloads for section in sections)
        held_nbytes = _JOB_NBYTES + sum(map(sum, decoder.record.resident_nbytes())) + stored_nbytes
        # Memory while it is decoded: its elements, its tables and their copies in the joined ones, or what is held now
        nbytes = max(4 * decoder.record.n_elements, 2 * bands.decoder.slots.nbytes, held_nbytes)
        if nbytes > _MOST_NBYTES // 2:
            return False
        if self._nbytes + nbytes > _MOST_NBYTES:
            self.flush()
        self._groups.setdefault(bands.decoder.kind, []).append(_Job(decoder, bands, blocks, payloads, out))
        self._nbytes += nbytes
        return True

    def flush(self) -> None:
        """Decode all tensors of the batch, and empty it.

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
            for job in jobs:  # one by one, so that the error names the tensor
                job.decoder.decode_blocks(job.blocks, job.payloads, job.out)
            raise
        for job, of_blocks in zip(jobs, codes, strict=True):
            job.decoder.decode_blocks(job.blocks, job.payloads, job.out, of_blocks)

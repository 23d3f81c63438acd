"""The report on an encoded model, and measures of signal and noise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..format.dtypes import BY_NAME


@dataclass(frozen=True)
class TensorReport:
    """The report on one tensor.

    Attributes:
        name, dtype, shape: Of the tensor; the dtype is a name in SPEC 7.1.
        method: Its stages in words, ``"alias of …"`` or ``"copy of …"``.
        stored_nbytes: Bytes of its sections, as stored.
        sqnr_db: Signal-to-quantization-noise ratio in dB; inf if it is exact, nan if it has no elements or is an alias.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: str
    stored_nbytes: int
    sqnr_db: float

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_nbytes / self.n_elements if self.n_elements else 0.0


@dataclass
class Report:
    """The report on a model.

    Attributes:
        tensors: The reports on its tensors, in file order.
        source_nbytes: Bytes of the tensors in the source, without aliases, with copies. Tensors may be quantized there.
        file_nbytes: Bytes of the file.
        section_nbytes: Bytes of all sections; the other bytes of the file are overhead.
        sqnr_db: SQNR in dB of all tensors that were coded coarsely; inf if there are none.
        notes: Notes for the user: tensors that were left out or stored twice, a budget that was missed.
        missed: Those of the notes that say that a budget was missed.
        ruined: Those of the notes that say that the model will most likely not work any more.
        left_out: Those of the notes that say that tensors of the source are not in the file.
        grown: Those of the notes that say that the file is larger than its source.
        source_file_nbytes: Bytes of the source file; 0 if there is none, or if the model is in several files.
    """

    tensors: list[TensorReport] = field(default_factory=list)
    source_nbytes: int = 0
    file_nbytes: int = 0
    section_nbytes: int = 0
    sqnr_db: float = math.inf
    notes: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    ruined: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    source_file_nbytes: int = 0

    def note_missed(self, notes: Iterable[str]) -> None:
        """Add notes on a budget that was missed."""
        self.missed.extend(notes)
        self.notes.extend(self.missed)

    def note_ruined(self, note: str) -> None:
        """Add a note that the model will most likely not work any more."""
        self.ruined.append(note)
        self.notes.append(note)

    @property
    def ratio(self) -> float:
        return self.source_nbytes / self.file_nbytes if self.file_nbytes else 0.0

    @property
    def overhead_nbytes(self) -> int:
        return self.file_nbytes - self.section_nbytes

    @property
    def shared_nbytes(self) -> int:
        """Bytes of sections that serve several tensors: codebooks and tables of frequencies."""
        return self.section_nbytes - sum(tensor.stored_nbytes for tensor in self.tensors)


def as_decoded(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.float32]:
    """Round float32 values to the dtype of a tensor, as the decoder does (VAL-001). Returns float32."""
    info = BY_NAME[dtype]
    if info.bits >= 32:
        return values
    return np.clip(values, -info.largest, info.largest).astype(info.numpy).astype(np.float32)


def decibel(signal: float, noise: float) -> float:
    """Signal-to-noise ratio in dB, from the energies of both; inf if the noise is no more than float64 rounding."""
    if noise <= 1e-15 * signal:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def sqnr_db(original: npt.NDArray[Any], decoded: npt.NDArray[Any]) -> float:
    """Signal-to-quantization-noise ratio in dB; inf if both arrays are equal."""
    signal = noise = 0.0
    for start in range(0, original.size, 1 << 20):  # piece by piece, to save memory for float64 copies
        a = original.reshape(-1)[start : start + (1 << 20)].astype(np.float64)
        b = decoded.reshape(-1)[start : start + (1 << 20)].astype(np.float64)
        signal += float(np.vdot(a, a))
        noise += float(np.vdot(a - b, a - b))
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf

"""What became of a model."""

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
    """What became of a tensor.

    Attributes:
        method: Its stages in words, or ``"alias of …"``.
        stored_nbytes: Bytes of its sections.
        sqnr_db: Signal-to-quantization-noise ratio in dB; inf where exact, nan where it has no meaning.
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
    """What became of a model.

    Attributes:
        source_nbytes: Bytes of the tensors uncompressed, aliases not counted.
        file_nbytes: Bytes of the file.
        section_nbytes: Of these, bytes of sections; the rest is overhead.
        sqnr_db: Of all tensors together that were coded coarsely; inf where none was.
        notes: What a user should know: tensors left out, stored twice, a budget that was not met.
        missed: Those of the notes that say by how much a budget was missed.
        ruined: Those that say that the model will most likely not work any more.
        left_out: Those that say that tensors of the source are not in the file.
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

    def note_missed(self, notes: Iterable[str]) -> None:
        """Add notes about a budget."""
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


def energy(values: npt.NDArray[np.float32]) -> float:
    """The sum of the squares."""
    flat = values.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def as_decoded(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.float32]:
    """Values in float32, rounded to a tensor's dtype as a decoder does it (VAL-001)."""
    info = BY_NAME[dtype]
    if info.bits >= 32:
        return values
    return np.clip(values, -info.largest, info.largest).astype(info.numpy).astype(np.float32)


def decibel(signal: float, noise: float) -> float:
    """Signal-to-noise ratio in dB; inf where there is no noise but what float64 leaves of a difference."""
    if noise <= 1e-15 * signal:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def sqnr_db(original: npt.NDArray[Any], decoded: npt.NDArray[Any]) -> float:
    """Signal-to-quantization-noise ratio in dB; inf where equal."""
    signal = noise = 0.0
    for start in range(0, original.size, 1 << 20):  # in pieces: float64 copies of a whole tensor are large
        a = original.reshape(-1)[start : start + (1 << 20)].astype(np.float64)
        b = decoded.reshape(-1)[start : start + (1 << 20)].astype(np.float64)
        signal += float(np.vdot(a, a))
        noise += float(np.vdot(a - b, a - b))
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf

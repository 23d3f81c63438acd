"""What a survey of a damaged file finds: layers, tensors and tables, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import FormatError
from ..format.records import BookRecord, FreqRecord, Record
from ..format.sections import SectionEntry


@dataclass(frozen=True)
class SurveyedTensor:
    """A tensor of a damaged file.

    Attributes:
        record: None if it cannot be read.
        sections: Entries and offsets of its sections.
        faults: What is wrong with it; empty if it is whole.
    """

    name: str
    record: Record | None
    sections: Sequence[tuple[SectionEntry, int]]
    faults: list[FormatError]


@dataclass(frozen=True)
class SurveyedTable:
    """A BOOK or FREQ chunk that is whole."""

    number: int
    record: BookRecord | FreqRecord
    section: tuple[SectionEntry, int]


@dataclass(frozen=True)
class SurveyedLayer:
    """A LAYR chunk. If it cannot be read, its tensors have the names that the index tells."""

    name: str
    tensors: list[SurveyedTensor]


@dataclass
class Survey:
    """What is whole and what is damaged in a file.

    Attributes:
        header: The header of the file.
        has_index: Whether the index is whole, so that the names of all tensors are known.
        metadata: The user's metadata; None if it is lost.
        parts: Layers and whole tables, in file order.
        holders: For each alias that is not the same array as its target: the alias whose array it is, see ``Copies``.
        ancillary: Names of whole chunks of types that this version does not know.
        faults: Damage that belongs to no tensor, such as that of header, metadata, tables, index and footer.
    """

    header: bytes
    has_index: bool
    metadata: dict[str, Any] | None = None
    parts: list[SurveyedLayer | SurveyedTable] = field(default_factory=list)
    holders: dict[str, str] = field(default_factory=dict)
    ancillary: list[str] = field(default_factory=list)
    faults: list[FormatError] = field(default_factory=list)

    @property
    def n_whole(self) -> int:
        """Number of whole tensors, aliases included."""
        return sum(not tensor.faults for tensor in self.tensors)

    @property
    def tensors(self) -> list[SurveyedTensor]:
        """All tensors whose names are known, in file order."""
        return [tensor for part in self.parts if isinstance(part, SurveyedLayer) for tensor in part.tensors]


def joined(surveys: Sequence[Survey]) -> Survey:
    """What is whole and what is damaged in all shards of a model."""
    first = surveys[0]
    result = Survey(first.header, all(found.has_index for found in surveys), first.metadata)
    for found in surveys:
        result.parts += found.parts
        result.holders |= found.holders
        result.ancillary += found.ancillary
        result.faults += found.faults
    return result


def kept(err: FormatError) -> FormatError:
    """An error that is stored. Its traceback and causes are removed: their frames hold the bytes that were read."""
    err.__cause__ = err.__context__ = None
    return err.with_traceback(None)

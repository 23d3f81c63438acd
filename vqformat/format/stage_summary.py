"""The stages of a tensor in a few words, for tables and reports."""

from __future__ import annotations

from .records import TensorRecord
from .stages import (
    CodebookStage,
    FloatSource,
    LowRankStage,
    ProgressionSource,
    RawStage,
    SharedSource,
    Source,
    SparseStage,
    Stage,
    TransformSource,
    TrellisStage,
)


def stage_summary(record: TensorRecord) -> str:
    """The stages of a tensor in words, such as ``"codebook 256x4 by segment + codebook 16"``."""
    return " + ".join(map(_stage, record.stages)) or "empty"


def _stage(stage: Stage) -> str:
    match stage:
        case RawStage(split):
            return ("raw", "raw planes", "raw planes rotated")[split]
        case SparseStage(split):
            return ("raw planes without zeros", "raw planes rotated without zeros")[split - 1]
        case LowRankStage():
            return f"low-rank {stage.rank}"
        case CodebookStage():
            words = [_source(stage.source)]
            if not isinstance(stage.source, FloatSource):
                words.append(f"{stage.entries}x{stage.dim}" if stage.dim > 1 else str(stage.entries))
            if isinstance(stage.source, SharedSource):
                words.append(f"shared {stage.source.number}")
            if stage.book_columns:
                words.append("by segment")
            if stage.book_rows:
                words.append("by row group")
            if stage.scale is not None:
                words.append("scaled")
            return " ".join(words)
        case TrellisStage():
            words = [_source(stage.source), str(stage.entries)]
            if isinstance(stage.source, TransformSource):
                words = [f"transform {stage.source.size}", *words]
            if stage.trellis is not None:
                words = [f"trellis {stage.trellis.n_states}", *words]
            if stage.scale is not None:
                words.append("scaled")
            return " ".join([*words, "entropy-coded"])


def _source(source: Source | TransformSource) -> str:
    match source:
        case ProgressionSource() | TransformSource():
            return "grid"
        case FloatSource(_, exponent_bits, fraction_bits):
            if not exponent_bits:
                return f"fixed point of {fraction_bits} bits"
            return f"float e{exponent_bits}m{fraction_bits}"
    return "codebook"

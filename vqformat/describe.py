"""Records in a few words, for tables."""

from __future__ import annotations

from .records import CodebookStage, LowRankStage, ProgressionSource, RawStage, SharedSource, Stage, TensorRecord


def describe(record: TensorRecord) -> str:
    """The stages of a tensor: ``"codebook 256x4 by segment + codebook 16"``."""
    return " + ".join(map(_stage, record.stages)) or "empty"


def _stage(stage: Stage) -> str:
    match stage:
        case RawStage(split):
            return ("raw", "raw planes", "raw planes rotated")[split]
        case LowRankStage():
            return f"low-rank {stage.rank}"
        case CodebookStage():
            words = ["grid" if isinstance(stage.source, ProgressionSource) else "codebook",
                     f"{stage.entries}x{stage.dim}" if stage.dim > 1 else str(stage.entries)]  # fmt: skip
            if isinstance(stage.source, SharedSource):
                words.append(f"shared {stage.source.number}")
            if stage.book_columns:
                words.append("by segment")
            if stage.book_rows:
                words.append("by row group")
            if stage.scale is not None:
                words.append("scaled")
            return " ".join(words)

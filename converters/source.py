"""``Source``: an opened checkpoint of any format, whose tensors are loaded when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vqformat.encode.report import Report
from vqformat.encode.source import SourceTensor

RESERVED_PREFIX = "vqm."  # metadata keys of SPEC section 18
ORIGIN_KEY = "vqm.source"


# What became of quantized tensors -> what is said of them
_ON_FORMS = {
    "as values": "came quantized and stay so, without loss; a budget, a preset or a method codes their values anew",
    "as u8": "came quantized and stay so, as u8 tensors of their blocks: extracted to the format of the source they"
             " are these blocks, to another one float32 values; a budget, a preset or a method codes the values anew",
    "anew": "came quantized, and are coded anew from the float32 values meant, which loses more",
}  # fmt: skip


@dataclass
class Source:
    """An opened checkpoint. It is a context manager.

    Attributes:
        format: ``"vqm"``, or the field ``format`` of ``vqm.source`` (SPEC section 18).
        tensors: The tensors in file order. Each is loaded when it is needed, so that one at a time is in memory.
        metadata: The user's metadata.
        notes: Notes for the user: what was left out, and what is stored twice.
        origin: The fields of ``vqm.source`` (SPEC section 18).
        closer: A function that closes the file; None if it needs no closing.
        left_out: Those of the notes that say that tensors are left out.
        has_external_data: Whether some values lie in files beside the file, as with large models of ONNX.
        file_nbytes: Bytes of the file; 0 if the model is in several files.
    """

    format: str
    tensors: list[SourceTensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)
    closer: Callable[[], None] | None = None
    left_out: list[str] = field(default_factory=list)
    has_external_data: bool = False
    file_nbytes: int = 0

    def close(self) -> None:
        """Close the file. Its tensors cannot be loaded any more."""
        if self.closer is not None:
            self.closer()
            self.closer = None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def stored_metadata(self) -> dict[str, Any]:
        """The metadata of a ``.vqm`` that is made from this source."""
        exact = [tensor.name for tensor in self.tensors if tensor.is_exact]
        origin = {**self.origin, "exact": exact} if exact else self.origin
        return {**self.metadata, ORIGIN_KEY: origin} if origin else dict(self.metadata)


def quantized_notes(report: Report, tensors: list[SourceTensor]) -> list[str]:
    """What a user should know of tensors that came quantized."""
    kept: dict[str, list[str]] = {"as values": [], "as u8": [], "anew": []}
    for tensor, result in zip(tensors, report.tensors, strict=True):
        if tensor.form is not None and not result.method.startswith("copy of "):
            is_kept = result.method.startswith(tensor.form.name)
            what = "anew" if not is_kept else "as u8" if result.method.endswith("raw") else "as values"
            kept[what].append(tensor.form.name)
    return [f"{_counted(kept[what])} {text}" for what, text in _ON_FORMS.items() if kept[what]]


def growth_notes(report: Report, format: str) -> list[str]:
    """A note on a ``.vqm`` that is larger than its source, if that is a single file of this format."""
    before = report.source_file_nbytes
    if not 0 < before < report.file_nbytes:
        return []
    hint = ""
    if format == "vqm":
        hint = "; the source is a .vqm already: convert the checkpoint that it was made from, or ask for a smaller size"
    return [f"the .vqm is larger than the source file: {report.file_nbytes:,} bytes, not {before:,}{hint}"]


def _counted(kinds: list[str]) -> str:
    return f"{len(kinds)} tensor{'s' * (len(kinds) > 1)} ({', '.join(sorted(set(kinds)))})"


def take_metadata(metadata: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The metadata of a checkpoint without the keys that SPEC section 18 reserves, for which a note is appended."""
    reserved = [key for key in metadata if key.startswith(RESERVED_PREFIX)]
    if reserved:
        notes.append(f"left out metadata {', '.join(map(repr, reserved))}: keys that begin with 'vqm.' are reserved")
    return {key: value for key, value in metadata.items() if key not in reserved}

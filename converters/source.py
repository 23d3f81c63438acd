"""What every reader of a checkpoint gives: its tensors, loaded when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vqformat.encode.source import SourceTensor

RESERVED_PREFIX = "vqm."  # metadata keys of SPEC section 18
ORIGIN_KEY = "vqm.source"


@dataclass
class Source:
    """An opened checkpoint; a context manager.

    Attributes:
        format: ``"vqm"``, or what ``vqm.source`` of SPEC section 18 has as ``format``.
        tensors: In the file's order; each is loaded when it is asked for, so that one is in memory at a time.
        metadata: The user's metadata.
        notes: What a user should know: what was left out, what is stored twice.
        origin: ``vqm.source`` of SPEC section 18.
        left_out: Those of the notes that say that tensors are left out.
    """

    format: str
    tensors: list[SourceTensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)
    closer: Callable[[], None] | None = None
    left_out: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Close the file; its tensors cannot be loaded any more."""
        if self.closer is not None:
            self.closer()
            self.closer = None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def stored_metadata(self) -> dict[str, Any]:
        """The metadata of a ``.vqm`` made from this source."""
        exact = [tensor.name for tensor in self.tensors if tensor.is_exact]
        origin = {**self.origin, "exact": exact} if exact else self.origin
        return {**self.metadata, ORIGIN_KEY: origin} if origin else dict(self.metadata)


def take_metadata(metadata: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """A checkpoint's metadata without keys that SPEC section 18 reserves."""
    reserved = [key for key in metadata if key.startswith(RESERVED_PREFIX)]
    if reserved:
        notes.append(f"left out metadata {', '.join(map(repr, reserved))}: keys that begin with 'vqm.' are reserved")
    return {key: value for key, value in metadata.items() if key not in reserved}

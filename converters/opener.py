"""Opening a source again, in another process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vqformat.encode.source import SourceTensor
from vqformat.encode.task import SourceAbsentError

from .opening import open_source


@dataclass(frozen=True)
class SourceOpener:
    """Opens a source by its path, if it is the same there.

    Attributes:
        path: Absolute path.
        include_optimizer: See ``open_source``.
        size, modified_ns: Size of the file and time of its last change; of a folder, of the folder.
    """

    path: str
    include_optimizer: bool
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str], *, include_optimizer: bool) -> SourceOpener:
        """The opener of a source that is there.

        Raises:
            OSError: It is not there.
        """
        status = os.stat(path)
        size = 0 if os.path.isdir(path) else status.st_size  # a folder changes when a file is written beside its files
        return cls(os.path.abspath(path), include_optimizer, size, 0 if os.path.isdir(path) else status.st_mtime_ns)

    def __call__(self) -> list[SourceTensor]:
        """The tensors.

        Raises:
            SourceAbsentError: There is no source, or another one.
        """
        try:
            if SourceOpener.of(self.path, include_optimizer=self.include_optimizer) != self:
                raise SourceAbsentError
            return open_source(Path(self.path), include_optimizer=self.include_optimizer).tensors
        except FileNotFoundError as err:
            raise SourceAbsentError from err

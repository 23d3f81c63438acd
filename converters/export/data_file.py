"""The file of values beside a model: ``model.onnx.data`` for ``model.onnx``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vqformat.errors import ConversionError
from vqformat.files import NewFiles

from ..model_folder import is_plain


@dataclass(frozen=True)
class DataFile:
    """A file that is made when a model needs it, and gets its name together with the model.

    Attributes:
        model: Path of the model.
        files: The new files to which it is added.
    """

    model: Path
    files: NewFiles

    @property
    def name(self) -> str:
        """Its name, which a model has as the location of its values.

        Raises:
            ConversionError: A model cannot have this location.
        """
        name = f"{self.model.name}.data"
        if not is_plain(name):
            raise ConversionError(f"{str(self.model)!r} needs a file {name!r} beside it, and a model cannot name such a"
                                  " file; choose another name")  # fmt: skip
        return name

    def open(self) -> BinaryIO:
        """Begin the file.

        Raises:
            FileExistsError, OSError: As for ``NewFiles.open``.
        """
        return self.files.open(self.model.with_name(self.name))

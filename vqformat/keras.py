"""The format for Keras 3 models, on any backend: ``save_model`` and ``load_weights``.

Only Keras knows which variable belongs to which layer. So both functions go through files that Keras writes or reads,
on disk, with one tensor in memory at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import ConversionError, EncodeError, missing_package

try:
    import keras
except ImportError as err:
    if err.name not in (None, "keras"):
        raise ImportError(f"vqformat.keras needs a backend of Keras; run: pip install {err.name}, or set KERAS_BACKEND"
                          " to torch, tensorflow or jax, whichever is installed") from err  # fmt: skip
    raise missing_package("vqformat.keras needs", "keras", err) from err

from .files import temporary_space
from .leftovers import temporary_folder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .encode.options import SaveOptions
    from .encode.report import Report

__all__ = ["load_weights", "save_model"]

# Format of the source -> suffix with which Keras loads its weights
_SUFFIXES = {"keras": ".weights.h5", "keras-weights": ".weights.h5", "keras-legacy": ".h5"}


def save_model(model: keras.Model, filename: str | os.PathLike[str] | BinaryIO,
               metadata: Mapping[str, Any] | None = None, *, include_optimizer: bool = False, overwrite: bool = True,
               **options: Unpack[SaveOptions]) -> Report:  # fmt: skip
    """Compress the variables of a model into a ``.vqm``. Its configuration is stored as bytes that are not interpreted.

    ``vqm extract FILE -o model.keras`` writes a file for ``keras.saving.load_model``; with ``-o model.weights.h5`` it
    writes one for ``model.load_weights``.

    Args:
        model: The model. It stays as it is.
        filename: Path, or a binary stream to write to.
        metadata, overwrite, options: As for ``vqformat.save_file``.
        include_optimizer: Whether the variables of the optimizer are stored, too; they are stored exactly.

    Returns:
        A report on each variable, with names such as ``block1_conv1/kernel``.

    Raises:
        EncodeError: The model has no variables yet, or the budget cannot be met.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    from .converters import convert

    if not model.variables:
        raise EncodeError("the model has no variables yet; build it first: give it an Input, or call it on some data")
    with temporary_folder() as folder:
        unpacked = folder / "model"
        with temporary_space(folder):
            keras.saving.save_model(model, unpacked, zipped=False)
            version = {"keras_version": keras.__version__}  # without the date: the same model makes the same bytes
            (unpacked / "metadata.json").write_text(json.dumps(version))
        report: Report = convert(unpacked, filename, metadata=metadata, include_optimizer=include_optimizer,
                                 overwrite=overwrite, **options)  # fmt: skip
        return report


def load_weights(model: keras.Model, filename: str | os.PathLike[str], **keywords: Any) -> None:
    """Fill the variables of a model from a ``.vqm`` that was made by ``save_model`` or from a Keras file.

    Args:
        model: The model, built, with variables of the shapes in the file.
        filename: Path of the file.
        keywords: Passed to ``model.load_weights``, such as ``skip_mismatch``.

    Raises:
        ConversionError: The file was not made from a Keras model.
        VqmError: The file is refused.
        ValueError: Keras does not accept the file for this model.
    """
    from .converters import extract, open_source

    with open_source(filename) as source:
        kind = str(source.origin.get("format"))
    if kind not in _SUFFIXES:
        raise ConversionError(f"{os.fspath(filename)!r} did not come from Keras, so nothing tells which variable of the"
                              " model a tensor is")  # fmt: skip
    with temporary_folder() as folder:
        weights = folder / f"model{_SUFFIXES[kind]}"
        with temporary_space(folder):
            extract(filename, weights)
        model.load_weights(weights, **keywords)

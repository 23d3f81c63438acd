"""The format for Keras 3 models, on any backend: ``save_model`` and ``load_weights``.

Which variable is which is Keras's own business: both go through its files, on disk, one tensor in memory at a time.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

try:
    import keras
except ImportError as err:
    raise ImportError("vqformat.keras needs Keras 3 and a backend of it; run: pip install 'vqformat[keras]' keras, and"
                      " torch, tensorflow or jax") from err  # fmt: skip

from .errors import ConversionError, EncodeError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .encode.options import SaveOptions
    from .encode.report import Report

__all__ = ["load_weights", "save_model"]

# Format of the source -> suffix under which Keras loads its weights
_SUFFIXES = {"keras": ".weights.h5", "keras-weights": ".weights.h5", "keras-legacy": ".h5"}


def save_model(model: keras.Model, filename: str | os.PathLike[str] | BinaryIO,
               metadata: Mapping[str, Any] | None = None, *, include_optimizer: bool = False, overwrite: bool = True,
               **options: Unpack[SaveOptions]) -> Report:  # fmt: skip
    """Compress a model's variables into a ``.vqm``, and keep its configuration as opaque bytes.

    ``vqm extract FILE -o model.keras`` gives a file for ``keras.saving.load_model``, ``-o model.weights.h5`` one for
    ``model.load_weights``.

    Args:
        metadata, overwrite, options: As for ``vqformat.save_file``.
        include_optimizer: Whether the optimizer's variables are kept too, exactly.

    Returns:
        What became of each variable, by names such as ``block1_conv1/kernel``.

    Raises:
        EncodeError: The model has no variables yet, or the options cannot be met.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    from .converters import convert

    if not model.variables:
        raise EncodeError("the model has no variables yet; build it first: give it an Input, or call it on some data")
    with tempfile.TemporaryDirectory(prefix="vqm-") as folder:
        unpacked = Path(folder) / "model"
        keras.saving.save_model(model, unpacked, zipped=False)
        version = {"keras_version": keras.__version__}  # without the date: the same model makes the same bytes
        (unpacked / "metadata.json").write_text(json.dumps(version))
        report: Report = convert(unpacked, filename, metadata=metadata, include_optimizer=include_optimizer,
                                 overwrite=overwrite, **options)  # fmt: skip
        return report


def load_weights(model: keras.Model, filename: str | os.PathLike[str], **keywords: Any) -> None:
    """Fill a model's variables from a ``.vqm`` that came from Keras, by ``save_model`` or from any of its files.

    Args:
        keywords: Given to ``model.load_weights``: ``skip_mismatch``.

    Raises:
        ConversionError: The file did not come from Keras.
        VqmError: It is refused.
        ValueError: Keras finds that the file is not of this model.
    """
    from .converters import extract, open_source

    with open_source(filename) as source:
        kind = str(source.origin.get("format"))
    if kind not in _SUFFIXES:
        raise ConversionError(f"{os.fspath(filename)!r} did not come from Keras, so nothing tells which variable of the"
                              " model a tensor is")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vqm-") as folder:
        weights = Path(folder) / f"model{_SUFFIXES[kind]}"
        extract(filename, weights)
        model.load_weights(weights, **keywords)

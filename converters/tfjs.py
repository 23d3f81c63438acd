"""TensorFlow.js models as a source: ``model.json`` or a weights manifest, and the shards of bytes beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqformat.encode.source import SourceTensor, check_name, check_shape
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.dtypes import BY_NAME
from vqformat.format.limits import MAX_RANK, MAX_TENSORS

from .file_region import Region
from .format_signatures import manifest_of
from .model_folder import beside, is_plain_name, read_small
from .source import Source, take_metadata

_MAX_JSON_NBYTES = 100_000_000  # a model's topology is in it
_MAX_TEXT_NBYTES = 1 << 20
_PIECE = 1 << 20  # elements that are float64 at once
_LARGEST = 1 << 53  # size: JavaScript's integers are exact up to it

# dtype in the manifest -> SPEC name; some are only what a weight is quantized to
_DTYPES = {"float32": "f32", "int32": "i32", "bool": "bool", "complex64": "c64", "float16": "f16", "uint8": "u8",
           "uint16": "u16"}  # fmt: skip
_QUANTIZED = ("uint8", "uint16")
_DEQUANTIZED = {"float32": "f32", "int32": "i32"}


def open_tfjs(path: Path) -> Source:
    """Open a model by its JSON; names and order are those of the manifest.

    Raises:
        ConversionError: A shard is missing or short, or a weight is malformed.
    """
    return _Model(path).source()


class _Model:
    """A model whose JSON has been read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._json = json.loads(read_small(path, _MAX_JSON_NBYTES, "the JSON of a TensorFlow.js model"))
        except (ValueError, RecursionError) as err:
            if isinstance(err, ConversionError):
                raise
            raise self._refuse(f"its JSON is damaged ({err})") from err
        manifest = manifest_of(self._json)
        if manifest is None:
            raise self._refuse("it has no weightsManifest")
        self._manifest = manifest
        self._notes: list[str] = []
        self._sources: dict[str, SourceTensor] = {}
        self._taken: set[str] = set()  # shards
        self._n_dequantized = 0

    def _refuse(self, why: str) -> ConversionError:
        return ConversionError(f"{str(self._path)!r} is a TensorFlow.js model that cannot be read: {why}")

    def source(self) -> Source:
        for group in self._manifest:
            shards = _Shards(self._find(group["paths"]))
            offset = 0
            for entry in group["weights"]:
                offset = self._take(entry, shards, offset)
            if offset != shards.size:
                files = ", ".join(map(repr, shards.names))
                raise self._refuse(f"its weights take {offset} bytes, but the files {files} have {shards.size}")
        if not self._sources:
            raise self._refuse("it has no weights")
        if self._n_dequantized:
            self._notes.append(f"{self._n_dequantized} weights are quantized already: the values that they stand for"
                               " are stored, and coding those loses more")  # fmt: skip
        metadata = self._metadata()
        return Source("tfjs", list(self._sources.values()), metadata, self._notes, {"format": "tfjs"})

    def _find(self, paths: list[Any]) -> list[Path]:
        # TensorFlow.js itself writes ./ before a shard's name, its converter does not
        paths = [str(path).removeprefix("./") for path in paths]
        if len(set(paths)) < len(paths) or not self._taken.isdisjoint(paths):  # few bytes could stand for many
            raise self._refuse("it has a shard twice")
        self._taken.update(paths)
        absent = [path for path in paths if is_plain_name(path) and not self._path.with_name(path).exists()]
        if absent:
            raise self._refuse(f"it names shards that are not beside it: {', '.join(map(repr, absent[:8]))}")
        return [beside(self._path, path, "a TensorFlow.js model") for path in paths]

    def _metadata(self) -> dict[str, Any]:
        """Texts and whole numbers that tell who made the model, or that its user added."""
        if not isinstance(self._json, dict):
            return {}
        if self._json.get("modelTopology"):
            self._notes.append("left out the model's topology: its weights alone are kept")
        user = self._json.get("userDefinedMetadata")
        found = {**(user if isinstance(user, dict) else {}),
                 **{key: self._json.get(key) for key in ("format", "generatedBy", "convertedBy")}}  # fmt: skip
        plain = {key: value for key, value in found.items() if _is_plain(value)}
        return take_metadata(plain, self._notes)

    def _take(self, entry: Any, shards: _Shards, offset: int) -> int:
        """Add a weight, and say where the next one begins."""
        try:
            name, theirs, shape = entry["name"], entry["dtype"], tuple(entry["shape"])
            check_name(name)
            if len(shape) > MAX_RANK or not all(type(size) is int and 0 <= size < _LARGEST for size in shape):
                raise ValueError(f"its shape is {shape[:MAX_RANK]}")
            check_shape(name, shape)
            quantization = entry.get("quantization")
            if theirs == "string":
                self._notes.append(f"left out {name!r}: text")
                return shards.skip_texts(offset, prod(shape))
            stored = theirs if quantization is None else quantization["dtype"]
            if stored not in _DTYPES or theirs not in _DTYPES:
                raise ValueError(f"its dtype is {str(theirs)[:40]}, stored as {str(stored)[:40]}")
            nbytes = BY_NAME[_DTYPES[stored]].nbytes(prod(shape))
            if offset + nbytes > shards.size:
                raise ValueError(f"it has shape {shape} and needs {nbytes} bytes at {offset}, beyond the end at"
                                 f" {shards.size} of its shards: cut short or damaged")  # fmt: skip
            scale, least = 1.0, 0.0
            if stored in _QUANTIZED and quantization is not None:
                scale, least = float(quantization["scale"]), float(quantization["min"])
            if not (math.isfinite(scale) and math.isfinite(least)):
                raise ValueError(f"it has the scale {scale} and the minimum {least}")
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, EncodeError) as err:
            what = entry.get("name") if isinstance(entry, dict) else entry
            raise self._refuse(f"weight {str(what)[:200]!r}: {_reason(err)}") from err
        if name in self._sources or len(self._sources) == MAX_TENSORS:
            raise self._refuse(f"two weights have the name {name!r}, or there are more than {MAX_TENSORS}")
        dtype = _DTYPES[stored]
        load = _loader(shards, offset, dtype, shape)
        if stored in _QUANTIZED and quantization is not None:
            dtype = _DEQUANTIZED.get(theirs, "f32")
            load = _dequantizer(load, dtype, scale, least)
            self._n_dequantized += 1
        self._sources[name] = SourceTensor(name, dtype, shape, load, output_axis=-1)
        return offset + nbytes


class _Shards:
    """Files whose bytes follow each other, as one."""

    def __init__(self, paths: list[Path]) -> None:
        self._regions = [Region.of_file(path) for path in paths]
        self.names = [path.name for path in paths]
        self.size = sum(region.size for region in self._regions)

    def fill(self, array: npt.NDArray[np.uint8], offset: int) -> None:
        """Read the bytes at an offset."""
        done = 0
        for region in self._regions:
            if offset < region.size and done < len(array):
                count = min(region.size - offset, len(array) - done)
                region.fill(array[done : done + count], offset)
                done, offset = done + count, offset + count
            offset -= region.size
        if done < len(array):
            raise ValueError(f"{len(array) - done} bytes are missing")

    def skip_texts(self, offset: int, count: int) -> int:
        """The offset after ``count`` strings. Each string follows its length."""
        length = np.empty(4, np.uint8)
        if count > (self.size - offset) // 4:
            raise ValueError(f"{count} strings do not fit in the {self.size - offset} bytes that remain")
        for _ in range(count):
            self.fill(length, offset)
            offset += 4 + int(length.view("<u4")[0])
            if offset > self.size:
                raise ValueError("a string is longer than its shards")
        return offset


def _loader(shards: _Shards, offset: int, dtype: str, shape: tuple[int, ...]) -> Callable[[], npt.NDArray[Any]]:
    def load() -> npt.NDArray[Any]:
        data = np.empty(BY_NAME[dtype].nbytes(prod(shape)), np.uint8)
        try:
            shards.fill(data, offset)
        except ValueError as err:
            raise ConversionError(f"the shards {', '.join(map(repr, shards.names))} cannot be read: {err}") from err
        if dtype == "bool":
            data = (data != 0).view(np.uint8)
        return data.view(BY_NAME[dtype].numpy).reshape(shape)

    return load


def _dequantizer(load: Callable[[], npt.NDArray[Any]], dtype: str, scale: float,
                 least: float) -> Callable[[], npt.NDArray[Any]]:  # fmt: skip
    def dequantize() -> npt.NDArray[Any]:
        codes = load()
        whole = np.empty(codes.shape, BY_NAME[dtype].numpy)
        flat, flat_codes = whole.reshape(-1), codes.reshape(-1)
        for start in range(0, flat.size, _PIECE):
            with np.errstate(all="ignore"):  # scale and minimum may be anything
                values = flat_codes[start : start + _PIECE] * np.float64(scale) + np.float64(least)  # as in JavaScript
                if dtype == "i32":
                    values = np.floor(values + 0.5)  # Math.round
                flat[start : start + _PIECE] = values
        return whole

    return dequantize


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value.encode(errors="replace")) <= _MAX_TEXT_NBYTES
    return isinstance(value, int) and value.bit_length() < 63


def _reason(err: Exception) -> str:
    return f"it has no {err}" if isinstance(err, KeyError) else str(err)

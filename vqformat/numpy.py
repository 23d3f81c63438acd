"""The format for NumPy: the verbs of safetensors, with the same names and argument order."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .describe import describe
from .dtypes import of_array
from .errors import EncodeError
from .indexed import IndexedReader
from .layers import Budget
from .limits import DEFAULT_MAX_TENSOR_NBYTES
from .records import AliasRecord
from .sequential import SequentialReader

if TYPE_CHECKING:
    from .encode.recipe import Recipe
    from .encode.report import Report
    from .encode.source import SourceTensor

Array = npt.NDArray[Any]
Path = str | os.PathLike[str]
Progress = Callable[[str, int, int], None]


def save_file(
    tensors: Mapping[str, Array],
    filename: Path | BinaryIO,
    metadata: Mapping[str, Any] | None = None,
    *,
    recipe: Recipe | Mapping[str, str] | str | None = None,
    bits: float | None = None,
    ratio: float | None = None,
    size: float | None = None,
    sqnr: float | None = None,
    step: float | None = None,
    lossless: bool = False,
    preset: str = "default",
    seed: int = 0,
    progress: Progress | None = None,
    overwrite: bool = True,
) -> Report:
    """Compress tensors into a ``.vqm`` file.

    Without options every large float tensor is put on a grid and its codes compressed; small ones are rounded finely;
    integers and bools are kept. At most one of ``bits``, ``ratio``, ``size``, ``sqnr``, ``step`` and
    ``lossless`` says how small.

    Args:
        tensors: Arrays by name, of any strides and byte order; their order is kept. Equal views of one memory become
            aliases.
        filename: Path, or a binary stream to write to. The bytes go to a temporary file that is renamed when complete.
        metadata: Map with string keys; values are strings, integers, bools, bytes, None, lists and maps.
        recipe: Method for each name pattern, such as ``{"fc*": "pq:dim=4,entries=256"}``, or one method for all.
        bits: Bits a weight, everything counted.
        ratio: Bytes of the tensors over bytes of the file.
        size: Bytes of the file.
        sqnr: Signal-to-quantization-noise ratio in dB, of all large tensors together and about that of each.
        step: Of the grids, relative to the root mean square of all weights on them: what the others amount to.
        lossless: Keep every bit.
        preset: ``"fast"`` for codes of fixed width, which open at nearly the speed of memory, ``"default"``, or
            ``"small"`` for the smallest file, which takes longer to write and to open.
        seed: Of everything random.
        progress: Called with a tensor's name, weights done, weights in all.
        overwrite: Whether a file of that name may be replaced.

    Returns:
        What became of each tensor.

    Raises:
        EncodeError: Something cannot be written, or the budget cannot be met.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    from .encode.model import encode_model
    from .encode.options import Options

    options = Options(as_recipe(recipe), bits, ratio, size, sqnr, step, lossless, preset, seed=seed, progress=progress)
    return encode_model(source_tensors(tensors), filename, dict(metadata or {}), options, overwrite=overwrite)


def save(tensors: Mapping[str, Array], metadata: Mapping[str, Any] | None = None, **options: Any) -> bytes:
    """The bytes that ``save_file`` would write; the same options."""
    stream = io.BytesIO()
    save_file(tensors, stream, metadata, **options)
    return stream.getvalue()


def load_file(
    filename: Path | BinaryIO,
    *,
    max_tensor_bytes: int = DEFAULT_MAX_TENSOR_NBYTES,
    max_total_bytes: int | None = None,
) -> dict[str, Array]:
    """All tensors of a file, in their order; an alias is the same array as its target.

    Args:
        filename: Path, or a binary stream, which need not seek.
        max_tensor_bytes, max_total_bytes: Bounds on what is decoded; the latter is by default what memory is available.

    Raises:
        VqmError: The file is refused.
        OSError: It cannot be read.
    """
    budget = Budget(max_tensor_bytes, max_total_bytes)
    with opened(filename) as stream:
        tensors: dict[str, Array] = {}
        for info, arrays in SequentialReader(stream, budget, at_leisure=True).layers():
            for record in info.records:
                if isinstance(record, AliasRecord):
                    tensors[record.name] = tensors[record.target]
                else:
                    tensors[record.name] = arrays[record.name]
        return tensors


def load(data: bytes | bytearray | memoryview, **limits: Any) -> dict[str, Array]:
    """All tensors of a file in memory; options as for ``load_file``."""
    return load_file(io.BytesIO(data), **limits)


def verify(filename: Path | BinaryIO) -> str:
    """Read all of a file, decode it and check everything, the SHA-256 included.

    Returns:
        The file's digest, in hexadecimal.

    Raises:
        VqmError: The file is refused.
    """
    with opened(filename) as stream:
        reader = SequentialReader(stream, check_digest=True, keep_total=False, at_leisure=True)
        deque(reader.layers(), maxlen=0)  # none is kept for long
        return reader.digest.hex()


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of a tensor, without decoding it.

    Attributes:
        dtype: Name in SPEC 7.1, such as ``"f32"``.
        method: Its stages in words.
        stored_nbytes: Bytes of its sections; 0 for an alias.
        alias_of: Name of the tensor that it is an alias of.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    layer: str
    method: str
    stored_nbytes: int
    alias_of: str | None = None

    @property
    def n_elements(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_nbytes / self.n_elements if self.n_elements else 0.0


class safe_open(Mapping[str, Any]):
    """Opens a file by its index; tensors are decoded when they are asked for.

    A mapping from names to tensors, and a context manager::

        with safe_open("model.vqm", framework="np") as f:
            w = f["fc1.weight"]

    Args:
        filename: Path, or a binary file that can seek.
        framework: ``"np"`` or ``"numpy"`` for arrays, ``"pt"`` or ``"torch"`` for tensors.
        device: Where tensors go; for arrays only ``"cpu"``.
        max_tensor_bytes: Bound on what one tensor decodes to.

    Raises:
        VqmError: The file is refused.
        OSError: It cannot be read.
    """

    def __init__(self, filename: Path | BinaryIO, framework: str = "np", device: Any = "cpu", *,
                 max_tensor_bytes: int = DEFAULT_MAX_TENSOR_NBYTES) -> None:  # fmt: skip
        if framework not in ("np", "numpy", "pt", "torch"):
            raise ValueError(f"framework is {framework!r}; 'np', 'numpy', 'pt' and 'torch' are allowed")
        self._is_torch = framework in ("pt", "torch")
        if self._is_torch:
            from .torch import from_numpy  # fails here where torch is missing, not at the first tensor

            self._from_numpy = from_numpy
        if not self._is_torch and str(device) != "cpu":
            raise ValueError(f"device is {device!r}; arrays are on 'cpu'")
        self._device = device
        self._max_tensor_bytes = max_tensor_bytes
        self._opened = opened(filename)
        stream = self._opened.__enter__()
        try:
            self._reader = IndexedReader(stream)
        except BaseException:
            self._opened.__exit__(None, None, None)
            raise

    def __enter__(self) -> safe_open:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, err, trace)

    def close(self) -> None:
        """Close the file, if it was opened here."""
        self._opened.__exit__(None, None, None)

    def keys(self) -> Any:
        """Names of all tensors, in their order."""
        return list(self._reader.index.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.index.names)

    def __len__(self) -> int:
        return len(self._reader.index)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._reader.index.position(name) is not None

    def __getitem__(self, name: str) -> Any:
        return self._give(self._reader.tensor(name, self._budget()))

    def get_tensor(self, name: str) -> Any:
        """A tensor, decoded.

        Raises:
            TensorNotFoundError: There is none of that name.
            VqmError: Its part of the file is refused.
        """
        return self[name]

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor to be indexed: ``f.get_slice(name)[10:20]`` decodes the blocks that it needs."""
        self._reader.record(name)  # what the index says of it is compared with the chunk before it is believed
        return TensorSlice(self, name)

    def metadata(self) -> dict[str, Any]:
        """The user's metadata."""
        return self._reader.metadata()

    def check_metadata(self) -> None:
        """Compare the copy of the metadata in the index, which ``metadata`` gives, with the metadata itself.

        Raises:
            FormatError: They differ, or the latter is damaged.
        """
        self._reader.check_metadata()

    def info(self, name: str) -> TensorInfo:
        """What the file says of a tensor.

        Raises:
            TensorNotFoundError: There is none of that name.
        """
        entry = self._reader.entry(name)
        method = f"alias of {entry.target}" if entry.target is not None else describe(self._reader.record(name))
        return TensorInfo(name, entry.dtype, entry.shape, self._reader.layer_name(name), method,
                          self._reader.stored_nbytes(name), entry.target)  # fmt: skip

    def _budget(self) -> Budget:
        return Budget(self._max_tensor_bytes)

    def _give(self, array: Array) -> Any:
        if not self._is_torch:
            return array
        return self._from_numpy(np.asarray(array)).to(self._device)


class TensorSlice:
    """A tensor that is decoded as far as it is indexed."""

    def __init__(self, file: safe_open, name: str) -> None:
        self._file, self._name = file, name
        self._entry = file._reader.entry(name)

    def get_shape(self) -> list[int]:
        """Shape of the whole tensor."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """dtype in safetensors' spelling where that has one, such as ``"F32"`` or ``"F8_E4M3"``."""
        return {"f8_e4m3fn": "F8_E4M3"}.get(self._entry.dtype, self._entry.dtype.upper())

    def __getitem__(self, index: Any) -> Any:
        key = index if isinstance(index, tuple) else (index,)
        shape = self._entry.shape
        first = key[0] if key else slice(None)
        if not shape or isinstance(first, bool) or not isinstance(first, (int, np.integer, slice)):
            return self._file._give(self._file._reader.tensor(self._name, self._file._budget())[index])
        if isinstance(first, slice):
            rows = range(shape[0])[first]
            low, high = (min(rows[0], rows[-1]), max(rows[0], rows[-1]) + 1) if rows else (0, 0)
            inner: Any = slice(None, None, rows.step)  # from the first of the decoded rows, or back from the last
        else:
            row = range(shape[0])[first]  # an IndexError of its own where there is no such row
            low, high, inner = row, row + 1, 0
        part = self._file._reader.rows(self._name, low, high, self._file._budget())
        return self._file._give(part[(inner, *key[1:])])


class opened:
    """Context of a binary stream: a path is opened and closed, a stream left open."""

    def __init__(self, source: Path | BinaryIO) -> None:
        self._source = source
        self._own: BinaryIO | None = None

    def __enter__(self) -> BinaryIO:
        if isinstance(self._source, (str, os.PathLike)):
            self._own = open(self._source, "rb")
            return self._own
        if not hasattr(self._source, "read"):
            raise TypeError(f"a path or a binary stream is wanted, not {type(self._source).__name__}")
        return self._source

    def __exit__(self, kind: object, err: object, trace: object) -> None:
        if self._own is not None:
            self._own.close()


def as_recipe(recipe: Recipe | Mapping[str, str] | str | None) -> Recipe | None:
    """A recipe from what a caller may give for one."""
    from .encode.recipe import Recipe

    if recipe is None or isinstance(recipe, Recipe):
        return recipe
    return Recipe({}, default=recipe) if isinstance(recipe, str) else Recipe(recipe)


def source_tensors(tensors: Mapping[str, Array]) -> list[SourceTensor]:
    """Arrays as the encoder takes them; equal views of one memory as aliases (WRI-002)."""
    from .encode.source import SourceTensor

    if not isinstance(tensors, Mapping):
        raise EncodeError(f"tensors is a {type(tensors).__name__}, not a mapping from names to arrays")
    sources = []
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise EncodeError(f"the name {name!r} is a {type(name).__name__}, not a string")
        if not isinstance(value, (np.ndarray, np.generic)):
            raise EncodeError(f"tensor {name!r} is a {type(value).__name__}, not a NumPy array")
        array = np.asarray(value)
        dtype = of_array(array, name)
        key = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str, dtype.name)
        target = seen.get(key) if array.size else None
        if target is None:
            seen[key] = name
        sources.append(SourceTensor(name, dtype.name, array.shape, lambda array=array: array, target))  # type: ignore[misc]
    return sources

"""``safe_open``: a seekable file as a mapping from names to tensors, each decoded when it is accessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Literal, overload

from ..decode.workers import n_threads
from ..files import Path
from ..format.limits import DEFAULT_MAX_TENSOR_NBYTES
from ..format.stage_summary import stage_summary
from ..sizes import Size
from .budget import Budget
from .framework import Array, Framework, Index, NumPy, PyTorch, Tensor, as_output, spelled_as_safetensors
from .sharded import indexed_reader
from .shards import opened_model

if TYPE_CHECKING:
    import torch

    from .framework import Device


@dataclass(frozen=True)
class TensorInfo:
    """What a file states about a tensor. Nothing is decoded for it.

    Attributes:
        name: Name of the tensor.
        dtype: Name in SPEC 7.1, such as ``"f32"``.
        shape: Its shape.
        layer: Name of the layer that holds it.
        method: Its stages in words.
        stored_nbytes: Bytes of its sections as stored; 0 for an alias or a copy.
        alias_of: Name of the tensor that it is, if it is an alias; else None.
        copy_of: Name of the tensor whose values it has, if it is stored as a copy of that; else None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    layer: str
    method: str
    stored_nbytes: int
    alias_of: str | None = None
    copy_of: str | None = None

    @property
    def n_elements(self) -> int:
        """Number of elements, of the shape; 1 for a scalar."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def bits_per_weight(self) -> float:
        """Bits of the sections as stored, for each element; 0 for an alias, a copy, or a tensor without elements."""
        return 8 * self.stored_nbytes / self.n_elements if self.n_elements else 0.0


class safe_open(Mapping[str, Tensor]):
    """Opens a file by its index. Each tensor is decoded when it is accessed.

    It is a mapping from names to tensors, and a context manager::

        with safe_open("model.vqm", framework="np") as f:
            w = f["fc1.weight"]

    Several threads may use it, and processes that are forked while it is open. In a pickle it opens its file again: by
    its path, or as a copy of a ``BytesIO``, or as the stream itself does, such as those of fsspec.

    Args:
        filename: Path, or a binary file that can seek. For a model in several files the path of their index, or that of
            the folder, or ``model.vqm`` though only ``model.vqm.index.json`` exists. Shards are opened when they are
            needed.
        framework: ``"np"`` or ``"numpy"`` for NumPy arrays, ``"pt"`` or ``"torch"`` for PyTorch tensors.
        device: Device of PyTorch tensors. For arrays only ``"cpu"`` is allowed.
        max_tensor_bytes: Most bytes of one decoded tensor; a number, or a text such as ``"1.5MB"``.
        max_total_bytes: Most bytes that are held together: a decoded tensor until it is returned, codebooks and other
            tables. None for the memory that is available; then tables may have 256 MiB, or as many bytes as the tensor.
        threads: Threads that decode a tensor; None for the number of processors, but at most 8.

    Raises:
        VqmError: The file is refused.
        OSError: It cannot be read.
    """

    @overload
    def __init__(self: safe_open[Array], filename: Path | BinaryIO, framework: NumPy = "np",
                 device: Literal["cpu"] = "cpu", *, max_tensor_bytes: Size = ..., max_total_bytes: Size | None = ...,
                 threads: int | None = ...) -> None: ...  # fmt: skip

    @overload
    def __init__(self: safe_open[torch.Tensor], filename: Path | BinaryIO, framework: PyTorch, device: Device = "cpu",
                 *, max_tensor_bytes: Size = ..., max_total_bytes: Size | None = ..., threads: int | None = ...
                 ) -> None: ...  # fmt: skip

    @overload
    def __init__(self: safe_open[Any], filename: Path | BinaryIO, framework: str, device: Any = "cpu", *,
                 max_tensor_bytes: Size = ..., max_total_bytes: Size | None = ..., threads: int | None = ...
                 ) -> None: ...  # fmt: skip

    def __init__(self, filename: Path | BinaryIO, framework: str = "np", device: Any = "cpu", *,
                 max_tensor_bytes: Size = DEFAULT_MAX_TENSOR_NBYTES, max_total_bytes: Size | None = None,
                 threads: int | None = None) -> None:  # fmt: skip
        self._framework: Framework[Tensor] = Framework(framework, device)
        self._arguments = framework, device
        self._options = {"max_tensor_bytes": max_tensor_bytes, "max_total_bytes": max_total_bytes, "threads": threads}
        self._threads = n_threads(threads)
        self._opened = opened_model(filename, in_order=False)
        stream = self._opened.__enter__()
        try:
            self._reader = indexed_reader(stream, Budget.of(max_tensor_bytes, max_total_bytes))
        except BaseException:
            self._opened.__exit__(None, None, None)
            raise

    def __enter__(self) -> safe_open[Tensor]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the reader, and the file if ``filename`` was a path. Tensors cannot be accessed any more."""
        self._reader.close()
        self._opened.__exit__(None, None, None)

    def __reduce__(self) -> tuple[Any, ...]:
        self._reader.check_open()
        return _opened_again, (self._opened.for_other_process(), *self._arguments, self._options)

    def keys(self) -> list[str]:  # type: ignore[override]  # a list, as in safetensors
        """Names of all tensors, in file order."""
        return self._reader.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.names)

    def __len__(self) -> int:
        return len(self._reader)

    def __contains__(self, name: object) -> bool:
        return name in self._reader

    def __getitem__(self, name: str) -> Tensor:
        return self._framework.give(self._reader.tensor(name, self._threads))

    def get_tensor(self, name: str) -> Tensor:
        """Decode a tensor.

        Args:
            name: Name of the tensor.

        Returns:
            A new array or tensor of the framework, of the shape and dtype in the file, in C order.

        Raises:
            TensorNotFoundError: There is no tensor of this name.
            VqmError: Its part of the file is refused.
        """
        return self[name]

    def get_slice(self, name: str) -> TensorSlice[Tensor]:
        """A tensor that can be decoded in part: ``f.get_slice(name)[10:20]`` decodes only the blocks that it needs.

        Args:
            name: Name of the tensor.

        Raises:
            TensorNotFoundError: There is no tensor of this name.
            VqmError: What the file states about it is refused.
        """
        self._reader.record(name)  # compares the index with the chunk, before its dtype and shape are used
        return TensorSlice(self, name)

    def metadata(self) -> dict[str, Any]:
        """The user's metadata, as it was given to the encoder."""
        return self._reader.metadata()

    def check_metadata(self) -> None:
        """Compare the copy of the metadata in the index with the metadata itself. ``metadata`` reads only the copy.

        Raises:
            FormatError: They differ, or the metadata is damaged.
        """
        self._reader.check_metadata()

    def info(self, name: str) -> TensorInfo:
        """What the file states about a tensor; nothing is decoded.

        Args:
            name: Name of the tensor.

        Raises:
            TensorNotFoundError: There is no tensor of this name.
        """
        entry, record, layer, nbytes = self._reader.described(name)
        alias_of = copy_of = None
        if entry.target is None:
            assert record is not None
            method = stage_summary(record)
        elif (holder := self._reader.holder(name) or entry.target) == name:
            method, copy_of = f"copy of {entry.target}", entry.target
        else:
            method, alias_of = f"alias of {holder}", holder
        return TensorInfo(name, entry.dtype, entry.shape, layer, method, nbytes, alias_of, copy_of)


def _opened_again(filename: Any, framework: str, device: Any, options: dict[str, Any]) -> safe_open[Any]:
    """A pickled ``safe_open`` in the process that loads it."""
    return safe_open(filename, framework, device, **options)


class TensorSlice(Generic[Tensor]):
    """A tensor of which parts can be decoded. Indexing decodes only the blocks that it needs."""

    def __init__(self, file: safe_open[Tensor], name: str) -> None:
        self._file, self._name = file, name
        self._entry = file._reader.entry(name)

    def get_shape(self) -> list[int]:
        """Shape of the whole tensor."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """dtype in the spelling of safetensors, such as ``"F32"`` or ``"F8_E4M3"``."""
        return spelled_as_safetensors(self._entry.dtype)

    def __getitem__(self, index: Index) -> Tensor:
        file = self._file
        return file._framework.give(file._reader.part(self._name, index))

    def decode_into(self, out: Array | torch.Tensor) -> None:
        """Decode the whole tensor into an existing array.

        Besides the array it needs memory for a few blocks. So a tensor larger than memory can be decoded into a
        ``numpy.memmap``.

        Args:
            out: NumPy array, or PyTorch tensor on the CPU, of the tensor's shape and dtype, C-contiguous.

        Raises:
            TypeError: ``out`` is neither.
            ValueError: ``out`` has another shape or dtype, or its memory cannot be filled.
            VqmError: The tensor's part of the file is refused. A part of ``out`` may have been overwritten.
        """
        array = as_output(out, self._name, self._entry.dtype, self._entry.shape)
        self._file._reader.decode_into(self._name, array, self._file._threads)

    def blocks(self) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        """Decode the tensor block by block.

        A block has about 250,000 elements. A complex tensor is one block.

        Yields:
            For each block an index and its values, so that ``whole[index] = values`` puts them in place.
        """
        file = self._file
        for index, values in file._reader.parts(self._name, file._threads):
            yield index, file._framework.give(values)

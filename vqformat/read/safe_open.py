"""A file opened by its index: a mapping from names to tensors, which are decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Literal, overload

from ..decode.workers import n_threads
from ..files import Path, opened
from ..format.limits import DEFAULT_MAX_TENSOR_NBYTES
from ..format.stage_summary import stage_summary
from .budget import Budget
from .framework import Array, Framework, Index, NumPy, PyTorch, Tensor, as_output, spelled_as_safetensors
from .indexed import IndexedReader

if TYPE_CHECKING:
    import torch

    from .framework import Device


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


class safe_open(Mapping[str, Tensor]):
    """Opens a file by its index; tensors are decoded when they are asked for.

    A mapping from names to tensors, and a context manager::

        with safe_open("model.vqm", framework="np") as f:
            w = f["fc1.weight"]

    Args:
        filename: Path, or a binary file that can seek.
        framework: ``"np"`` or ``"numpy"`` for arrays, ``"pt"`` or ``"torch"`` for tensors.
        device: Where tensors go; for arrays only ``"cpu"``.
        max_tensor_bytes: Bound on what one tensor decodes to.
        threads: How many decode a tensor; by default as many as there are processors, 8 at most.

    Raises:
        VqmError: The file is refused.
        OSError: It cannot be read.
    """

    @overload
    def __init__(self: safe_open[Array], filename: Path | BinaryIO, framework: NumPy = "np",
                 device: Literal["cpu"] = "cpu", *, max_tensor_bytes: int = ..., threads: int | None = ...
                 ) -> None: ...  # fmt: skip

    @overload
    def __init__(self: safe_open[torch.Tensor], filename: Path | BinaryIO, framework: PyTorch, device: Device = "cpu",
                 *, max_tensor_bytes: int = ..., threads: int | None = ...) -> None: ...  # fmt: skip

    @overload
    def __init__(self: safe_open[Any], filename: Path | BinaryIO, framework: str, device: Any = "cpu", *,
                 max_tensor_bytes: int = ..., threads: int | None = ...) -> None: ...  # fmt: skip

    def __init__(self, filename: Path | BinaryIO, framework: str = "np", device: Any = "cpu", *,
                 max_tensor_bytes: int = DEFAULT_MAX_TENSOR_NBYTES, threads: int | None = None) -> None:  # fmt: skip
        self._framework: Framework[Tensor] = Framework(framework, device)
        self._threads = n_threads(threads)
        self._max_tensor_bytes = max_tensor_bytes
        self._opened = opened(filename)
        stream = self._opened.__enter__()
        try:
            self._reader = IndexedReader(stream)
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
        """Read no more, and close the file if it was opened here."""
        self._reader.close()
        self._opened.__exit__(None, None, None)

    def keys(self) -> list[str]:  # type: ignore[override]  # as safetensors has it
        """Names of all tensors, in their order."""
        return list(self._reader.index.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.index.names)

    def __len__(self) -> int:
        return len(self._reader.index)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._reader.index.position(name) is not None

    def __getitem__(self, name: str) -> Tensor:
        return self._framework.give(self._reader.tensor(name, self._budget(), self._threads))

    def get_tensor(self, name: str) -> Tensor:
        """A tensor, decoded.

        Raises:
            TensorNotFoundError: There is none of that name.
            VqmError: Its part of the file is refused.
        """
        return self[name]

    def get_slice(self, name: str) -> TensorSlice[Tensor]:
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
        method = f"alias of {entry.target}" if entry.target is not None else stage_summary(self._reader.record(name))
        return TensorInfo(name, entry.dtype, entry.shape, self._reader.layer_name(name), method,
                          self._reader.stored_nbytes(name), entry.target)  # fmt: skip

    def _budget(self) -> Budget:
        return Budget(self._max_tensor_bytes)


class TensorSlice(Generic[Tensor]):
    """A tensor that is decoded as far as it is indexed."""

    def __init__(self, file: safe_open[Tensor], name: str) -> None:
        self._file, self._name = file, name
        self._entry = file._reader.entry(name)

    def get_shape(self) -> list[int]:
        """Shape of the whole tensor."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """dtype in safetensors' spelling where that has one, such as ``"F32"`` or ``"F8_E4M3"``."""
        return spelled_as_safetensors(self._entry.dtype)

    def __getitem__(self, index: Index) -> Tensor:
        file = self._file
        return file._framework.give(file._reader.part(self._name, index, file._budget()))

    def decode_into(self, out: Array | torch.Tensor) -> None:
        """Decode the tensor into an array (or tensor on the CPU) of its shape and dtype, C-contiguous.

        Memory beside it: a few blocks. So a tensor larger than memory goes into a ``numpy.memmap``.

        Raises:
            ValueError: The array is of another kind.
            VqmError: The tensor's part of the file is refused; then some of the array is filled.
        """
        array = as_output(out, self._name, self._entry.dtype, self._entry.shape)
        self._file._reader.decode_into(self._name, array, self._file._threads)

    def blocks(self) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        """The tensor piece by piece, for each an index and its values: ``whole[index] = values`` puts it in place.

        A piece is a block of the file, some 250,000 elements (all of a complex tensor).
        """
        file = self._file
        for index, values in file._reader.parts(self._name, file._budget(), file._threads):
            yield index, file._framework.give(values)

"""Layer after layer, from any stream: with one of them in memory, or a few blocks of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Literal, overload

from ..decode.block_groups import plain
from ..decode.region import part_of
from ..decode.workers import n_threads
from ..files import Path, opened
from ..format.chunks import LayerInfo
from ..format.limits import DEFAULT_MAX_TENSOR_NBYTES
from ..format.records import AliasRecord
from .budget import Budget
from .framework import Array, Framework, NumPy, PyTorch, Tensor, as_output, spelled_as_safetensors
from .sequential import SequentialReader, SequentialTensor

if TYPE_CHECKING:
    import torch

    from .framework import Device


class stream(Iterator["Layer[Tensor]"], Generic[Tensor]):
    """The layers of a file in their order, each decoded when it is looked into; in memory is the one in hand.

    An iterator, and a context manager that closes the file::

        for layer in stream("model.vqm"):
            for name, array in layer.items():
                ...

    or, with some blocks in memory in place of a layer::

        for layer in stream(sys.stdin.buffer):
            for tensor in layer.tensors():
                tensor.decode_into(numpy.lib.format.open_memmap(...))

    Everything is checked on the way, what is not looked into too; only when the iteration has ended is the file known
    to be complete.

    Args:
        source: Path, or a binary stream, which need not seek: a pipe, a socket's file, a response.
        framework, device: As for ``safe_open``.
        max_tensor_bytes: Bound on what one tensor decodes to; not on what is decoded block by block.
        threads: How many decode a tensor; by default as many as there are processors, 8 at most.
        allow_partial: Of a file that ends early give the tensors that are there whole, with a warning at the end.
            Layers are then decoded when they are reached.

    Attributes:
        metadata: The user's metadata.

    Raises:
        VqmError: The file is refused, here or at any later step.
        OSError: It cannot be read.
    """

    @overload
    def __init__(self: stream[Array], source: Path | BinaryIO, framework: NumPy = "np",
                 device: Literal["cpu"] = "cpu", *, max_tensor_bytes: int = ..., threads: int | None = ...,
                 allow_partial: bool = ...) -> None: ...  # fmt: skip

    @overload
    def __init__(self: stream[torch.Tensor], source: Path | BinaryIO, framework: PyTorch, device: Device = "cpu", *,
                 max_tensor_bytes: int = ..., threads: int | None = ..., allow_partial: bool = ...
                 ) -> None: ...  # fmt: skip

    @overload
    def __init__(self: stream[Any], source: Path | BinaryIO, framework: str, device: Any = "cpu", *,
                 max_tensor_bytes: int = ..., threads: int | None = ..., allow_partial: bool = ...
                 ) -> None: ...  # fmt: skip

    def __init__(self, source: Path | BinaryIO, framework: str = "np", device: Any = "cpu", *,
                 max_tensor_bytes: int = DEFAULT_MAX_TENSOR_NBYTES, threads: int | None = None,
                 allow_partial: bool = False) -> None:  # fmt: skip
        self._framework: Framework[Tensor] = Framework(framework, device)
        self._threads = n_threads(threads)
        self._opened = opened(source)
        file = self._opened.__enter__()
        try:
            self._budget = Budget(max_tensor_bytes)
            self._reader = SequentialReader(file, self._budget, keep_total=False, allow_partial=allow_partial,
                                            threads=self._threads)  # fmt: skip
        except BaseException:
            self.close()
            raise
        self.metadata: dict[str, Any] = self._reader.metadata
        self._layers = self._whole_layers() if allow_partial else self._open_layers()
        self._current: Layer[Tensor] | None = None
        self._has_failed = False

    def __next__(self) -> Layer[Tensor]:
        if self._current is not None:
            self._current._pass_by()
            self._current = None
        if self._has_failed:
            raise ValueError("the stream was ended by an error: what follows is not known")
        try:
            self._current = next(self._layers)
        except BaseException as err:
            self._has_failed = not isinstance(err, StopIteration)
            self.close()
            raise
        return self._current

    def _open_layers(self) -> Iterator[Layer[Tensor]]:
        for info, tensors in self._reader.open_layers():
            given: Iterator[StreamedTensor[Tensor]]
            given = (StreamedTensor(tensor, self._framework, self._budget, self._threads) for tensor in tensors)
            yield Layer(info, self._budget, given)

    def _whole_layers(self) -> Iterator[Layer[Tensor]]:
        for info, arrays in self._reader.layers():
            yield Layer(info, self._budget, iter(()), {name: self._framework.give(a) for name, a in arrays.items()})
        if self._reader.cut_at is not None:
            warnings.warn(f"the file ends early, at byte {self._reader.cut_at}", stacklevel=3)

    def close(self) -> None:
        """Close the file, if it was opened here."""
        self._opened.__exit__(None, None, None)

    def __enter__(self) -> stream[Tensor]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Layer(Mapping[str, Tensor]):
    """A layer: a mapping from names to tensors, all of which are decoded when one of them is asked for.

    It is to be looked into before the stream goes on; what has been decoded by then stays.

    Attributes:
        name: A label for people.
        aliases: Further names of tensors, of this layer or an earlier one, by the name: ``{alias: target}``.
    """

    def __init__(self, info: LayerInfo, budget: Budget, tensors: Iterator[StreamedTensor[Tensor]],
                 arrays: dict[str, Tensor] | None = None) -> None:  # fmt: skip
        self.name = info.name
        self.aliases = {record.name: record.target for record in info.records if isinstance(record, AliasRecord)}
        self._names = [record.name for record in info.records if not isinstance(record, AliasRecord)]
        self._budget = budget
        self._tensors: Iterator[StreamedTensor[Tensor]] | None = tensors
        self._arrays = arrays
        self._has_passed = False

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if self._arrays is None:
            arrays = {}
            for tensor in self._take():
                arrays[tensor.name] = tensor._decode_within(self._budget)
            self._arrays = arrays
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def tensors(self) -> Iterator[StreamedTensor[Tensor]]:
        """The tensors in file order, each to be decoded, or not, before the next is asked for.

        Raises:
            ValueError: The layer has been looked into, or the stream has gone on.
        """
        if self._arrays is not None:
            raise ValueError(f"layer {self.name!r} is decoded already: it is a mapping from names to tensors")
        return self._take()

    def _take(self) -> Iterator[StreamedTensor[Tensor]]:
        tensors, self._tensors = self._tensors, None
        if tensors is None:
            raise self._passed()
        return self._until_passed(tensors)

    def _until_passed(self, tensors: Iterator[StreamedTensor[Tensor]]) -> Iterator[StreamedTensor[Tensor]]:
        while not self._has_passed:
            tensor = next(tensors, None)
            if tensor is None:
                return
            yield tensor
        raise self._passed()

    def _passed(self) -> ValueError:
        return ValueError(f"layer {self.name!r} has passed: look into a layer before the stream goes on, and once")

    def _pass_by(self) -> None:
        self._tensors = None
        self._has_passed = True


class StreamedTensor(Generic[Tensor]):
    """A tensor that a stream has come to, to be decoded at most once.

    Attributes:
        name, shape: Of the tensor.
        dtype: As safetensors spells it, such as ``"F32"``.
    """

    def __init__(self, tensor: SequentialTensor, framework: Framework[Tensor], budget: Budget, threads: int) -> None:
        self._tensor, self._framework, self._budget, self._threads = tensor, framework, budget, threads
        self._is_taken = False
        self.name, self.shape = tensor.record.name, tensor.record.shape
        self.dtype = spelled_as_safetensors(tensor.record.dtype)

    def decode(self) -> Tensor:
        """The tensor.

        Raises:
            VqmError: Its part of the file is refused.
            ValueError: It has been decoded, or the stream has gone on.
        """
        return self._decode_within(replace(self._budget))  # by itself: the caller may have dropped the others

    def _decode_within(self, budget: Budget) -> Tensor:
        budget.take(self._tensor.record)
        return self._framework.give(self._decode(None))

    def decode_into(self, out: Array | torch.Tensor) -> None:
        """Decode the tensor into an array (or tensor on the CPU) of its shape and dtype, C-contiguous.

        Memory beside it: a few blocks. So a tensor larger than memory goes into a ``numpy.memmap``.

        Raises:
            ValueError: The array is of another kind; or as ``decode``.
            VqmError: The tensor's part of the file is refused; then some of the array is filled.
        """
        self._decode(as_output(out, self.name, self._tensor.record.dtype, self.shape))

    def blocks(self) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        """The tensor piece by piece, for each an index and its values: ``whole[index] = values`` puts it in place.

        A piece is a block of the file, some 250,000 elements (all of a complex tensor).

        Raises:
            VqmError, ValueError: As ``decode``.
        """
        record = self._tensor.record
        if not record.n_elements:
            return
        if record.dtype_info.is_complex and not record.is_raw:  # blocks may cut a pair of reals apart
            yield (), self.decode()
            return
        self._check_first()
        decoder = self._tensor.decoder
        for blocks, sections in self._tensor.groups():
            for block, values in zip(blocks, decoder.block_values(blocks, plain(sections)), strict=True):
                index, part = part_of(decoder, block, values)
                yield index, self._framework.give(part)

    def _decode(self, out: Array | None) -> Array:
        self._check_first()
        return self._tensor.decode_all(self._tensor.groups(), out, self._threads)

    def _check_first(self) -> None:
        if self._is_taken or self._tensor.has_passed:
            raise self._tensor.passed()
        self._is_taken = True

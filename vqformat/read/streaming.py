"""``stream``: reading any stream layer by layer, with one layer, or a few blocks of it, in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Literal, overload

from ..decode.block_groups import plain
from ..decode.region import part_of
from ..decode.workers import n_threads
from ..files import Path
from ..format.chunks import LayerInfo
from ..format.limits import DEFAULT_MAX_TENSOR_NBYTES
from ..format.records import AliasRecord
from ..sizes import Size
from .budget import Budget
from .framework import Array, Framework, NumPy, PyTorch, Tensor, as_output, spelled_as_safetensors
from .sequential import SequentialTensor
from .sharded_sequential import sequential_reader
from .shards import opened_model

if TYPE_CHECKING:
    import torch

    from .framework import Device


class stream(Iterator["Layer[Tensor]"], Generic[Tensor]):
    """The layers of a file in file order. Only the current layer is in memory; it is decoded when it is accessed.

    It is an iterator, and a context manager that closes the file::

        for layer in stream("model.vqm"):
            for name, array in layer.items():
                ...

    With only some blocks in memory instead of a layer::

        for layer in stream(sys.stdin.buffer):
            for tensor in layer.tensors():
                tensor.decode_into(numpy.lib.format.open_memmap(...))

    A process that is forked during the iteration goes on from there by itself, if ``source`` is the path of a regular
    file, and the system has ``preadv``.

    The CRCs of all sections are checked, also of those that are not accessed. That the file is complete is known only
    when the iteration has ended.

    Args:
        source: Path, or a binary stream, which need not support ``seek``: a pipe, the file of a socket, an HTTP
            response. For a model in several files the path of their index, or that of the folder, or ``model.vqm``
            though only ``model.vqm.index.json`` exists; then an alias is given with its target.
        framework, device: As for ``safe_open``.
        max_tensor_bytes: Most bytes of one decoded tensor; a number, or a text such as ``"1.5MB"``. It does not limit
            tensors that are decoded block by block.
        max_total_bytes: Most bytes that are held together: the tensors of a layer, codebooks and other tables. None for
            the memory that is available; then tables may have 256 MiB, or as many bytes as the tensor.
        threads: Threads that decode a tensor; None for the number of processors, but at most 8.
        allow_partial: Accept a truncated file: give its complete tensors, then a warning. Then each layer is decoded
            when the iteration reaches it.

    Attributes:
        metadata: The user's metadata.

    Raises:
        VqmError: The file is refused. Each later step may raise it, too.
        OSError: The file cannot be read.
    """

    @overload
    def __init__(self: stream[Array], source: Path | BinaryIO, framework: NumPy = "np",
                 device: Literal["cpu"] = "cpu", *, max_tensor_bytes: Size = ..., max_total_bytes: Size | None = ...,
                 threads: int | None = ..., allow_partial: bool = ...) -> None: ...  # fmt: skip

    @overload
    def __init__(self: stream[torch.Tensor], source: Path | BinaryIO, framework: PyTorch, device: Device = "cpu", *,
                 max_tensor_bytes: Size = ..., max_total_bytes: Size | None = ..., threads: int | None = ...,
                 allow_partial: bool = ...) -> None: ...  # fmt: skip

    @overload
    def __init__(self: stream[Any], source: Path | BinaryIO, framework: str, device: Any = "cpu", *,
                 max_tensor_bytes: Size = ..., max_total_bytes: Size | None = ..., threads: int | None = ...,
                 allow_partial: bool = ...) -> None: ...  # fmt: skip

    def __init__(self, source: Path | BinaryIO, framework: str = "np", device: Any = "cpu", *,
                 max_tensor_bytes: Size = DEFAULT_MAX_TENSOR_NBYTES, max_total_bytes: Size | None = None,
                 threads: int | None = None, allow_partial: bool = False) -> None:  # fmt: skip
        self._framework: Framework[Tensor] = Framework(framework, device)
        self._threads = n_threads(threads)
        self._opened = opened_model(source, has_own_position=True)
        file = self._opened.__enter__()
        try:
            self._budget = Budget.of(max_tensor_bytes, max_total_bytes)
            self._reader = sequential_reader(file, self._budget, keep_total=False, allow_partial=allow_partial,
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
            raise ValueError("the stream was ended by an error: its further layers cannot be read")
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
            yield Layer(info, self._reader.copies.holders, self._budget, given)

    def _whole_layers(self) -> Iterator[Layer[Tensor]]:
        for info, arrays in self._reader.layers():
            given = {name: self._framework.give(a) for name, a in arrays.items()}
            yield Layer(info, self._reader.copies.holders, self._budget, iter(()), given)
        if self._reader.cut_at is not None:
            warnings.warn(f"the file ends early, at byte {self._reader.cut_at}", stacklevel=3)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a stream is read once, in order, and cannot be pickled; pickle its path, or a safe_open")

    def close(self) -> None:
        """Close the file, if ``source`` was a path."""
        self._opened.__exit__(None, None, None)

    def __enter__(self) -> stream[Tensor]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Layer(Mapping[str, Tensor]):
    """A layer of a stream: a mapping from names to tensors. The first access decodes all of them.

    The first access must come before the next layer is requested. Decoded tensors stay available after that.

    Attributes:
        name: A label for people.
        aliases: Further names of tensors of this layer or an earlier one: ``{alias: target}``. The target of a tied
            name of a copy is the copy.
        copies: Those of the aliases that are tensors of their own, with the values of their target.
    """

    def __init__(
        self, info: LayerInfo, holders: Mapping[str, str], budget: Budget, tensors: Iterator[StreamedTensor[Tensor]],
        arrays: dict[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.name = info.name
        targets = {record.name: record.target for record in info.records if isinstance(record, AliasRecord)}
        self.copies = frozenset(name for name in targets if holders.get(name) == name)
        self.aliases = {name: target if name in self.copies else holders.get(name, target)
                        for name, target in targets.items()}  # fmt: skip
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
        """The tensors in file order. Each can be decoded only before the next one is requested.

        Raises:
            ValueError: The layer has been accessed before, or the stream has moved on.
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
        return ValueError(f"layer {self.name!r} can no longer be read:"
                          " read a layer once, before the next layer is asked for")  # fmt: skip

    def _pass_by(self) -> None:
        self._tensors = None
        self._has_passed = True


class StreamedTensor(Generic[Tensor]):
    """The current tensor of a stream. It can be decoded once.

    Attributes:
        name: Name of the tensor.
        shape: Its shape.
        dtype: Its dtype in the spelling of safetensors, such as ``"F32"``.
    """

    def __init__(self, tensor: SequentialTensor, framework: Framework[Tensor], budget: Budget, threads: int) -> None:
        self._tensor, self._framework, self._budget, self._threads = tensor, framework, budget, threads
        self._is_taken = False
        self.name, self.shape = tensor.record.name, tensor.record.shape
        self.dtype = spelled_as_safetensors(tensor.record.dtype)

    def decode(self) -> Tensor:
        """Decode the tensor into a new array.

        Raises:
            VqmError: Its part of the file is refused.
            ValueError: It has been decoded before, or the stream has moved on.
        """
        return self._decode_within(replace(self._budget))  # a copy: tensors that were decoded before do not count

    def _decode_within(self, budget: Budget) -> Tensor:
        budget.take(self._tensor.record)
        return self._framework.give(self._decode(None))

    def decode_into(self, out: Array | torch.Tensor) -> None:
        """Decode the tensor into an existing array.

        Besides the array it needs memory for a few blocks. So a tensor larger than memory can be decoded into a
        ``numpy.memmap``.

        Args:
            out: NumPy array, or PyTorch tensor on the CPU, of the tensor's shape and dtype, C-contiguous.

        Raises:
            TypeError: ``out`` is neither.
            ValueError: ``out`` has another shape or dtype, or its memory cannot be filled; or as for ``decode``.
            VqmError: The tensor's part of the file is refused. A part of ``out`` may have been overwritten.
        """
        array = as_output(out, self.name, self._tensor.record.dtype, self.shape)
        self._budget.check_tables(self._tensor.record)
        self._decode(array)

    def blocks(self) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        """Decode the tensor block by block.

        A block has about 250,000 elements. A complex tensor is one block.

        Yields:
            For each block an index and its values, so that ``whole[index] = values`` puts them in place.

        Raises:
            VqmError, ValueError: As for ``decode``.
        """
        record = self._tensor.record
        if not record.n_elements:
            return
        if record.dtype_info.is_complex and not record.is_raw:  # blocks may separate real and imaginary parts
            yield (), self.decode()
            return
        self._check_first()
        self._budget.check_tables(record)
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

"""The format for PyTorch: the verbs of ``safetensors.torch``, with the same names and argument order."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

try:
    import torch
except ImportError as err:
    raise ImportError("vqformat.torch needs PyTorch; run: pip install 'vqformat[torch]'") from err

from .. import numpy as front
from ..access import safe_open
from ..bits import pack_nibbles, unpack_nibbles
from ..dtypes import DTYPES
from ..encode.calibration import Calibration as Calibration
from ..errors import EncodeError, UnsupportedError
from .calibrate import calibrate as calibrate
from .correct import Corrector

if TYPE_CHECKING:
    from ..encode.report import Report
    from ..encode.source import SourceTensor

Path = str | os.PathLike[str]
Device = str | int | torch.device

_PAIRS = "float4_e2m1fn_x2"  # PyTorch's name of f4_e2m1fn, two elements to a byte along the last axis
_TORCH_NAMES = {dtype.name: _PAIRS if dtype.name == "f4_e2m1fn" else dtype.numpy_name for dtype in DTYPES
                if dtype.name not in ("u4", "i4")}  # fmt: skip
_NAMES = {getattr(torch, torch_name): name for name, torch_name in _TORCH_NAMES.items() if hasattr(torch, torch_name)}
_WORDS = {1: (torch.uint8, np.uint8), 2: (torch.int16, np.int16)}  # carry what NumPy has no dtype of its own for


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: Path | BinaryIO,
    metadata: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = True,
    **options: Any,
) -> Report:
    """Compress tensors into a ``.vqm`` file.

    Args:
        tensors: By name, on any device and of any strides; their order is kept. Tied tensors become aliases.
        filename, metadata, overwrite, options: As for ``vqformat.save_file``.

    Returns:
        What became of each tensor; its ``notes`` name tensors that share memory otherwise.

    Raises:
        EncodeError: Something cannot be written, or the budget cannot be met.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    from ..encode.model import encode_model
    from ..encode.options import Options

    notes: list[str] = []
    sources = source_tensors(tensors, notes)
    options["recipe"] = front.as_recipe(options.get("recipe"))
    report = encode_model(sources, filename, dict(metadata or {}), Options(**options), overwrite=overwrite)
    report.notes.extend(notes)
    return report


def save(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None, **options: Any) -> bytes:
    """The bytes that ``save_file`` would write; the same options."""
    stream = io.BytesIO()
    save_file(tensors, stream, metadata, **options)
    return stream.getvalue()


def load_file(filename: Path | BinaryIO, device: Device = "cpu", **options: Any) -> dict[str, torch.Tensor]:
    """All tensors of a file, in their order; an alias is the same tensor as its target.

    Args:
        device: Where the tensors go.
        options: ``max_tensor_bytes``, ``threads`` and so on, as for ``vqformat.load_file``.

    Raises:
        VqmError: The file is refused.
        OSError: It cannot be read.
    """
    arrays = front.load_file(filename, **options)
    first: dict[int, str] = {}
    targets = {name: first.setdefault(id(array), name) for name, array in arrays.items()}
    tensors: dict[str, torch.Tensor] = {}
    for name, target in targets.items():
        array = arrays.pop(name)
        tensors[name] = from_numpy(array).to(device) if target == name else tensors[target]
    return tensors


def load(data: bytes | bytearray | memoryview, device: Device = "cpu", **options: Any) -> dict[str, torch.Tensor]:
    """All tensors of a file in memory; options as for ``load_file``."""
    return load_file(io.BytesIO(data), device, **options)


def save_model(model: torch.nn.Module, filename: Path | BinaryIO, metadata: Mapping[str, Any] | None = None, *,
               calibration: Calibration | None = None, **options: Any) -> Report:  # fmt: skip
    """Compress a model's state dict into a ``.vqm`` file; tied weights are stored once and stay tied.

    Args:
        calibration: What ``calibrate`` found. Errors of weights are then made up for by other weights, bits go where
            the model minds errors, and biases and normalizations are corrected. The preset is ``small``.
        metadata, options: As for ``vqformat.save_file``.

    Raises:
        EncodeError: Part of the state dict is no tensor, or cannot be written.
    """
    if calibration is not None and not options.get("lossless"):
        options.setdefault("preset", "small")
        options["calibration"] = calibration
        options["correct"] = Corrector(model, calibration, options.get("progress"))
    return save_file(model.state_dict(), filename, metadata, **options)


def load_model(model: torch.nn.Module, filename: Path | BinaryIO, strict: bool = True,
               device: Device = "cpu") -> tuple[list[str], list[str]]:  # fmt: skip
    """Fill a model in place from a file, one tensor in memory at a time.

    It goes through ``model.load_state_dict``, hooks included: tensors are converted to the model's dtypes and copied
    to where the model is. Parameters and buffers on the meta device are created on ``device``; those that the file
    does not have stay there.

    Args:
        filename: Path, or a binary file that can seek.
        strict: Refuse a file that has more or less than the model.

    Returns:
        Names that the model has and the file lacks (not counted: another name of a weight that was filled), and
        names that the file has and the model lacks.

    Raises:
        RuntimeError: A shape differs; or names do and ``strict`` is true.
        VqmError: The file is refused.
    """
    with safe_open(filename, framework="pt") as file:
        state = {name: _Pending.of(file, name) for name in file}
        replaced = _leave_meta(model, device)
        result = model.load_state_dict(state, strict=False)
        missing, unexpected = _really_missing(model, result.missing_keys), list(result.unexpected_keys)
        for name in missing:
            if name in replaced:
                members, key, original = replaced[name]
                members[key] = original
    if strict and (missing or unexpected):
        raise RuntimeError(_mismatch(type(model).__name__, missing, unexpected))
    return missing, unexpected


def from_numpy(array: npt.NDArray[Any]) -> torch.Tensor:
    """An array as a tensor, in the same memory where it can be.

    bf16 and f8 are views; f4 is packed two to a byte along the last axis, as PyTorch has it; u4 and i4, which PyTorch
    does not have, become uint8 and int8.

    Raises:
        UnsupportedError: This PyTorch has no such dtype.
    """
    name = array.dtype.name
    if name in ("uint4", "int4"):
        return torch.from_numpy(array.astype(name.replace("4", "8")))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    if name == "float4_e2m1fn":
        if not array.ndim or array.shape[-1] % 2:
            raise UnsupportedError(f"a tensor of dtype f4_e2m1fn and shape {array.shape}: PyTorch keeps two elements to"
                                   " a byte along the last axis, which must be even")  # fmt: skip
        packed = np.frombuffer(pack_nibbles(np.ascontiguousarray(array).view(np.uint8)), np.uint8).copy()
        pairs = torch.from_numpy(packed.reshape(*array.shape[:-1], array.shape[-1] // 2))
        return pairs.view(_torch_dtype(_PAIRS))
    if hasattr(np, name):
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    return torch.from_numpy(array.view(_WORDS[array.itemsize][1])).view(_torch_dtype(name))


def to_numpy(tensor: torch.Tensor, name: str = "") -> npt.NDArray[Any]:
    """A tensor as an array, in the same memory where it can be; the inverse of ``from_numpy``.

    Args:
        name: For error texts.

    Raises:
        EncodeError: A ``.vqm`` cannot hold it.
    """
    dtype = dtype_name(tensor, name)
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if hasattr(np, tensor_name := _TORCH_NAMES[dtype]):
        array: npt.NDArray[Any] = tensor.numpy()
        # A file may hold other bytes than 0 and 1 for a bool: whatever is not 0 is true
        return array.view(np.uint8) != 0 if dtype == "bool" else array
    info = next(info for info in DTYPES if info.name == dtype)
    if tensor_name == _PAIRS:
        packed = tensor.contiguous().view(torch.uint8).numpy()
        nibbles = unpack_nibbles(packed.reshape(-1), 2 * packed.size)
        return nibbles.view(info.numpy).reshape(logical_shape(tensor))
    word = _WORDS[info.bits // 8]
    return tensor.view(word[0]).numpy().view(info.numpy)


def dtype_name(tensor: torch.Tensor, name: str) -> str:
    """The dtype's name in SPEC 7.1.

    Raises:
        EncodeError: A ``.vqm`` cannot hold the tensor; the message says what to do.
    """
    if tensor.is_quantized:
        raise EncodeError(f"tensor {name!r} is a quantized tensor; store tensor.dequantize(), or tensor.int_repr() and"
                          " its scales")  # fmt: skip
    if tensor.layout != torch.strided:
        raise EncodeError(f"tensor {name!r} has layout {tensor.layout}; store tensor.to_dense()")
    if tensor.is_meta:
        raise EncodeError(f"tensor {name!r} is on the meta device: it has no values")
    dtype = _NAMES.get(tensor.dtype)
    if dtype is None:
        raise EncodeError(f"tensor {name!r} has dtype {tensor.dtype}, which a .vqm cannot hold; convert it with"
                          " tensor.to(…) first")  # fmt: skip
    return dtype


def logical_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape in elements: two for each that PyTorch counts along the last axis of f4."""
    shape = tuple(tensor.shape)
    return (*shape[:-1], 2 * shape[-1]) if _NAMES.get(tensor.dtype) == "f4_e2m1fn" else shape


def source_tensors(tensors: Mapping[str, torch.Tensor], notes: list[str]) -> list[SourceTensor]:
    """Tensors as the encoder takes them: tied ones as aliases (SPEC 7, "Alias").

    Args:
        notes: Gets a line for each tensor that shares memory with another in a way that no alias can tell.
    """
    from ..encode.source import SourceTensor

    sources = []
    seen: dict[tuple[Any, ...], str] = {}
    by_storage: dict[int, list[tuple[int, int, int, str]]] = {}
    for position, (name, tensor) in enumerate(tensors.items()):
        if not isinstance(name, str):
            raise EncodeError(f"the name {name!r} is a {type(name).__name__}, not a string")
        if not isinstance(tensor, torch.Tensor):
            raise EncodeError(f"{name!r} is a {type(tensor).__name__}, not a tensor; a .vqm holds tensors only")
        dtype = dtype_name(tensor, name)
        target = None
        if tensor.numel():
            target = seen.setdefault(_identity(tensor), name)
            if target == name:
                start, end = _extent(tensor)
                by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append((start, end, position, name))
        sources.append(SourceTensor(name, dtype, logical_shape(tensor), _loader(tensor, name),
                                    None if target == name else target))  # fmt: skip
    notes.extend(_overlaps(by_storage))
    return sources


def _loader(tensor: torch.Tensor, name: str) -> Callable[[], npt.NDArray[Any]]:
    return lambda: to_numpy(tensor, name)


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype,
            tensor.is_conj(), tensor.is_neg())  # fmt: skip


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first byte and of the one after its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _overlaps(by_storage: dict[int, list[tuple[int, int, int, str]]]) -> list[str]:
    """A note for each tensor whose bytes overlap those of another: start, end, position and name by storage."""
    found = []
    for extents in by_storage.values():
        reach, other = 0, ""
        for start, end, position, name in sorted(extents, key=lambda extent: (extent[0], extent[2])):
            if start < reach:
                found.append((position, f"{name!r} and {other!r} are views that overlap: each is stored on its own"))
            if end > reach:
                reach, other = end, name
    return [note for _, note in sorted(found)]


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise UnsupportedError(f"PyTorch {torch.__version__} has no dtype {name}; a newer one may")
    assert isinstance(dtype, torch.dtype)
    return dtype


# What a _Pending tells without being decoded. Whatever else is done to it decodes it.
_T: Any = torch.Tensor  # its attributes are descriptors, which the type checker does not know
_SHAPE_AND_DTYPE = frozenset({
    _T.shape.__get__, _T.dtype.__get__, _T.ndim.__get__, _T.layout.__get__, _T.requires_grad.__get__,
    _T.size, _T.dim, _T.numel, _T.is_floating_point, _T.is_complex,
})  # fmt: skip
_IS_META = _T.is_meta.__get__
_DEVICE = _T.device.__get__


class _Pending(torch.Tensor):
    """A tensor of a file that is decoded whenever an operation needs its values, and not kept.

    ``load_state_dict`` wants all tensors at once; handed these, it has one in memory at a time.
    """

    _decode: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, file: safe_open, name: str) -> torch.Tensor:
        """The tensor ``name`` of a file opened for torch."""
        info = file.get_slice(name)
        shape, dtype = tuple(info.get_shape()), info.get_dtype().lower()
        if dtype not in _TORCH_NAMES or dtype == "f4_e2m1fn":  # 4 bits: small matter, other shapes
            return file[name]  # type: ignore[no-any-return]
        hollow = torch.empty(shape, dtype=_torch_dtype(_TORCH_NAMES[dtype]), device="meta")
        pending: _Pending = torch.Tensor._make_subclass(cls, hollow)
        pending._decode = lambda: file[name]
        return pending

    @classmethod
    def __torch_function__(cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:  # fmt: skip
        if func in _SHAPE_AND_DTYPE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func == _IS_META:
            return False
        if func == _DEVICE:
            return torch.device("cpu")
        return func(*_decoded(args), **{key: _decoded(value) for key, value in (kwargs or {}).items()})


def _decoded(value: Any) -> Any:
    if isinstance(value, _Pending):
        return value._decode()
    if isinstance(value, (list, tuple)):
        items = [_decoded(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


Members = dict[str, torch.Tensor | None]


def _leave_meta(model: torch.nn.Module, device: Device) -> dict[str, tuple[Members, str, torch.Tensor]]:
    """Replace parameters and persistent buffers on the meta device by empty ones, ties kept.

    Returns:
        What was replaced: by full name, where it was, under which key, and the original.
    """
    replaced: dict[str, tuple[Members, str, torch.Tensor]] = {}
    made: dict[int, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        members: Any
        for members in (module._parameters, module._buffers):
            for key, tensor in members.items():
                if tensor is None or torch.nn.parameter.is_lazy(tensor) or key in module._non_persistent_buffers_set:
                    continue
                name = f"{prefix}.{key}" if prefix else key
                if not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty_like(tensor, device=device, requires_grad=False)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                replaced[name] = members, key, tensor
                members[key] = made[id(tensor)]
    return replaced


def _really_missing(model: torch.nn.Module, names: list[str]) -> list[str]:
    """Of the names that were not filled, those that are no other name of one that was."""
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    keys = {name: _identity(tensor) for name, tensor in tensors.items() if _has_memory(tensor)}
    filled = {key for name, key in keys.items() if name not in set(names)}
    return [name for name in names if keys.get(name) not in filled]


def _has_memory(tensor: torch.Tensor) -> bool:
    is_lazy = torch.nn.parameter.is_lazy(tensor)
    return not (is_lazy or tensor.is_meta or tensor.layout != torch.strided) and tensor.numel() > 0


def _mismatch(model: str, missing: list[str], unexpected: list[str]) -> str:
    lines = [f"Error(s) in loading state_dict for {model}:"]
    if missing:
        lines.append(f"Missing key(s): {', '.join(map(repr, missing))}")
    if unexpected:
        lines.append(f"Unexpected key(s): {', '.join(map(repr, unexpected))}")
    for prefix in ("module.", "_orig_mod."):
        for ours, theirs, side in ((missing, unexpected, "file"), (unexpected, missing, "model")):
            if theirs and {prefix + name for name in ours} & set(theirs):
                lines.append(f"The names in the {side} begin with {prefix!r}, the other ones do not.")
    return "\n    ".join(lines)

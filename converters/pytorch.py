"""PyTorch checkpoints as a source: zip files and legacy pickles, read without running anything that is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from vqformat.encode.source import SourceTensor, overlap_notes
from vqformat.errors import ConversionError
from vqformat.format.checkpoint import MAX_TEXT_NBYTES, Named, join_keys, plain_to_json, to_json
from vqformat.format.limits import MAX_NAME_NBYTES

from .detect import detect_format
from .pickled_tensors import Tensor
from .pytorch_parts import Bare, Compound, LeftOut
from .pytorch_storage import CheckpointFile
from .pytorch_training import find_training, items, tensors_in
from .pytorch_values import Interpreter
from .sharding import check_shard, read_shards
from .source import Source

_MAX_NOTES = 40  # of one kind
_FEW = 256  # values that a container without tensors keeps where the metadata has no room for more


def open_pytorch(path: Path, *, include_optimizer: bool = False) -> Source:
    """Open a checkpoint; the tensors are read when they are asked for.

    Args:
        include_optimizer: Whether the state of training, an optimizer's say, is kept too; its tensors are exact.

    Raises:
        ConversionError: It is damaged, has no tensors, or would run code.
    """
    opened = Checkpoint(CheckpointFile(path), include_optimizer=include_optimizer)
    return Source("pytorch", opened.sources(), {}, opened.notes, opened.origin, left_out=opened.left_out)


def open_sharded(index: Path) -> Source:
    """Open a sharded model by its ``*.bin.index.json``: shards in order of their names.

    Raises:
        ConversionError: A shard is missing or damaged, or does not have what the index says.
    """
    notes: list[str] = []
    left_out: list[str] = []
    sources: list[SourceTensor] = []
    for shard, placed in read_shards(index).items():
        path = index.parent / shard
        kind, _ = detect_format(path)
        if kind != "pytorch":
            raise ConversionError(f"{str(path)!r} is of format {kind}; the shard of a PyTorch checkpoint was expected")
        checkpoint = Checkpoint(CheckpointFile(path), include_optimizer=False)
        check_shard(index, shard, placed, checkpoint.named, left_out)
        sources.extend(checkpoint.sources(placed))
        notes.extend(checkpoint.notes)
        left_out.extend(checkpoint.left_out)
    return Source("pytorch", sources, {}, [*left_out, *(note for note in notes if note not in left_out)],
                  {"format": "pytorch"}, left_out=left_out)  # fmt: skip


@dataclass
class _Place:
    """A tensor, or one of several parts, where a checkpoint has it."""

    keys: list[Any]
    value: Tensor | Compound
    is_exact: bool
    names: list[str] = field(default_factory=list)

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        tensors = [self.value] if isinstance(self.value, Tensor) else self.value.parts
        yield from zip(self.names, (part for part in tensors if isinstance(part, Tensor)), strict=True)

    def node(self) -> Any:
        """The JSON of SPEC section 18."""
        if isinstance(self.value, Tensor):
            return {"tensor": self.names[0]}
        names = iter(self.names)
        return {self.value.tag: [{"tensor": next(names)} if isinstance(part, Tensor) else plain_to_json(part)
                                 for part in self.value.parts]}  # fmt: skip


class Checkpoint:
    """A checkpoint whose tensors have names.

    Attributes:
        named: Its tensors by name: those of the weights first.
        notes: What a user should know.
        left_out: Those of the notes that say that tensors are left out.
        origin: ``vqm.source`` of SPEC section 18.
    """

    def __init__(self, file: CheckpointFile, *, include_optimizer: bool) -> None:
        self._file, path = file, file.path
        interpreter = Interpreter()
        try:
            self._root = interpreter.interpret(self._file.root)
            self._file.root = None  # frees what is not needed any more
        except ConversionError as err:
            raise ConversionError(f"{str(path)!r} is a PyTorch checkpoint that cannot be read: {err}") from err
        for key, data in interpreter.arrays.items():
            self._file.add(key, data)
        self.notes = _few(interpreter.notes)
        self.left_out = [note for note in self.notes if note.startswith("left out")]
        self.named: dict[str, Tensor] = {}
        self.origin: dict[str, Any] = {"format": "pytorch"}
        self._exact: set[str] = set()
        self._training = find_training(self._root)
        self._skipped: set[int] = set() if include_optimizer else set(self._training)
        self._nesting = self._find_nesting()
        self._places: list[_Place] = []
        self._dropped: dict[str, LeftOut] = {}
        self._structure()
        if not self.named:
            raise ConversionError(f"{str(path)!r} is a PyTorch checkpoint without tensors: it holds"
                                  f" {_summary(self._root)}; save a state dict: torch.save(model.state_dict(),"
                                  " …)")  # fmt: skip
        self._note_what_is_left_out(include_optimizer=include_optimizer)

    # Names

    def _find_nesting(self) -> list[str]:
        """The keys that lead to the state dict, if there is one alone."""
        nesting: list[str] = []
        value = self._root
        while isinstance(value, dict) and len(nesting) < 64:
            branches = [key for key, item in value.items()
                        if _id(item) not in self._training and not _is_number(item) and tensors_in(item, self._training)
                        ]  # fmt: skip
            if len(branches) != 1 or not isinstance(branches[0], str) or not isinstance(value[branches[0]], dict):
                break
            nesting.append(branches[0])
            value = value[branches[0]]
        return nesting

    def _structure(self) -> None:
        """Name the tensors, and write down where each has its place."""
        text = self._write(self._collect)
        self._name()
        if len(text) > MAX_TEXT_NBYTES:
            self._skip_long()
            self._places.clear()
            self._dropped.clear()
            self.named.clear()
            self._write(self._collect)
            self._name()
        places = iter(self._places)

        def leaf(value: Any, keys: list[Any]) -> Any:
            if isinstance(value, (Tensor, Compound)):
                return next(places).node()
            return _leaf_node(value)

        text = self._write(leaf)
        if len(text) > MAX_TEXT_NBYTES:
            self.left_out.append(f"left out the structure of the checkpoint: it takes {len(text)} bytes, and at most"
                                 f" {MAX_TEXT_NBYTES} are allowed; the names of the tensors stay")  # fmt: skip
            self.notes.append(self.left_out[-1])
        elif not self._is_plain():
            self.origin["checkpoint"] = text
        if self._nesting:
            self.origin["nesting"] = self._nesting

    def _write(self, leaf: Callable[[Any, list[Any]], Any]) -> str:
        try:
            return to_json(self._root, leaf, self._skipped)
        except ConversionError as err:
            raise ConversionError(f"{str(self._file.path)!r}: {err}") from err

    def _collect(self, value: Any, keys: list[Any]) -> Any:
        if isinstance(value, LeftOut):
            self._dropped[join_keys(keys)] = value
        if isinstance(value, (Tensor, Compound)):
            is_exact = isinstance(value, Compound) and value.is_plain
            self._places.append(_Place(list(keys), value, is_exact or self._is_training(keys)))
            return {"tensor": join_keys(keys)}
        return _leaf_node(value)

    def _is_training(self, keys: list[Any]) -> bool:
        value = self._root
        for key in keys:
            value = value.value if isinstance(value, Named) else value
            if key == "_metadata" and not (isinstance(value, dict) and key in value):
                return True
            value = value[key]
            if id(value) in self._training or (isinstance(value, Named) and id(value.value) in self._training):
                return True
        return False

    def _name(self) -> None:
        if isinstance(self._root, (Tensor, Compound)):
            self.notes.append("the checkpoint is a single tensor; its name is 'tensor'")
        depth = len(self._nesting)

        def is_outside(place: _Place) -> bool:
            return place.keys[:depth] != self._nesting or place.is_exact

        taken: set[str] = set()
        for place in sorted(self._places, key=is_outside):
            keys = place.keys if place.keys[:depth] != self._nesting else place.keys[depth:]
            suffixes = [""] if isinstance(place.value, Tensor) else place.value.suffixes
            first = base = _as_name(keys)
            n = 2
            while any(f"{base}{suffix}" in taken for suffix in suffixes):
                base, n = f"{first}#{n}", n + 1
            place.names = [f"{base}{suffix}" for suffix in suffixes]
            taken.update(place.names)
            for name, tensor in place.parts():
                self.named[name] = tensor
                if place.is_exact or tensor.is_exact:
                    self._exact.add(name)
        value = self._root
        for key in self._nesting:
            value = value[key]
        parts = [_as_name([key]) for key, item in items(value)
                 if isinstance(item, (dict, list, tuple, Named)) and tensors_in(item, self._training)]  # fmt: skip
        self.notes.extend(_few([f"the names of the tensors in {part!r} begin with {part + '.'!r}" for part in parts]))

    def _is_plain(self) -> bool:
        """Whether the nesting alone tells the structure, as the names are the keys of a state dict."""
        value = self._root
        for key in self._nesting:
            if type(value) is not dict or any(id(item) not in self._skipped for other, item in value.items()
                                              if other != key):  # fmt: skip
                return False
            value = value[key]
        is_flat = isinstance(value, dict) and all(isinstance(item, Tensor) for item in value.values())
        return is_flat and not hasattr(value, "_metadata") and list(value) == list(self.named)

    def _skip_long(self) -> None:
        """Leave out containers of many plain values, since the metadata of a .vqm has no room for them."""
        pending: list[tuple[Any, list[Any]]] = [(self._root, [])]
        seen: set[int] = set()
        while pending:
            value, keys = pending.pop()
            if id(value) in seen or id(value) in self._skipped:
                continue
            seen.add(id(value))
            inner = list(items(value))
            is_long = len(inner) > _FEW or (isinstance(value, (str, bytes, set)) and len(value) > 16 * _FEW)
            if is_long and not tensors_in(value) and keys:
                self._skipped.add(id(value))
                self.left_out.append(f"left out {join_keys(keys)!r} ({_summary(value)}): the metadata of a .vqm has no"
                                     " room for it")  # fmt: skip
                self.notes.append(self.left_out[-1])
            else:
                pending.extend((item, [*keys, key]) for key, item in inner)

    # Notes

    def _note_what_is_left_out(self, *, include_optimizer: bool) -> None:
        lost = _few([f"left out {path!r}: {value.what}" for path, value in self._dropped.items()])
        self.left_out.extend(note for note, value in zip(lost, self._dropped.values(), strict=False)
                             if value.has_tensors)  # fmt: skip
        self.notes.extend(lost)
        if include_optimizer or not self._training:
            return
        for keys, value in self._outermost_training():
            note = f"left out {join_keys(keys)!r} ({_summary(value)}): {self._training[_id(value)]}"
            self.notes.append(note)
            if tensors_in(value):
                self.left_out.append(note)
        self.notes.append("--include-optimizer keeps what was left out of the state of training")

    def _outermost_training(self) -> Iterator[tuple[list[Any], Any]]:
        pending: list[tuple[list[Any], Any]] = [([], self._root)]
        seen: set[int] = set()
        while pending:
            keys, value = pending.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            for key, item in items(value):
                if _id(item) in self._training:
                    yield [*keys, key], item
                elif isinstance(item, (dict, list, tuple, Named)):
                    pending.append(([*keys, key], item))

    # Tensors

    def sources(self, wanted: set[str] | None = None) -> list[SourceTensor]:
        """The tensors for the encoder: those that share everything as aliases, with a note for those that overlap."""
        found: list[SourceTensor] = []
        first: dict[Any, str] = {}
        extents: dict[str, list[tuple[int, int, int, str]]] = {}
        for name, tensor in self.named.items():
            if wanted is not None and name not in wanted:
                continue
            self._file.check(name, tensor)
            target = name
            if prod(tensor.shape):
                target = first.setdefault(tensor.identity, name)
                if target == name:
                    key, start, end = self._file.extent(tensor)
                    extents.setdefault(key, []).append((start, end, len(found), name))
            found.append(SourceTensor(name, tensor.dtype, tensor.logical_shape, self._file.loader(name, tensor),
                                      None if target == name else target, is_exact=name in self._exact))  # fmt: skip
        self.notes.extend(_few(overlap_notes(extents)))
        return found


def _leaf_node(value: Any) -> Any:
    if isinstance(value, Bare):
        return {value.tag: value.text}
    return {"left_out": value.what} if isinstance(value, LeftOut) else {"left_out": type(value).__name__}


def _id(value: Any) -> int:
    return id(value.value) if isinstance(value, Named) else id(value)


def _is_number(value: Any) -> bool:
    """Whether this is a tensor of one element, a measure say: it does not make a checkpoint one of several parts."""
    return isinstance(value, Tensor) and isinstance(value.shape, tuple) and all(size == 1 for size in value.shape)


def _as_name(keys: list[Any]) -> str:
    """A tensor's name: keys joined by dots, with what no name may have replaced."""
    text = ".".join(str(key)[: MAX_NAME_NBYTES + 1] if not isinstance(key, int) or key.bit_length() < 256 else "…"
                    for key in keys)  # fmt: skip
    data = text.replace("\0", "?").encode("utf-8", "replace")[: MAX_NAME_NBYTES - 64]  # room for suffixes
    return data.decode("utf-8", "ignore") or "tensor"


def _few(notes: list[str]) -> list[str]:
    more = len(notes) - _MAX_NOTES
    return notes if more <= 0 else [*notes[:_MAX_NOTES], f"and {more} more of this kind"]


def _summary(value: Any) -> str:
    """A value in a few words."""
    value = value.value if isinstance(value, Named) else value
    if isinstance(value, Tensor):
        return f"tensor of shape {value.shape}"
    if isinstance(value, (dict, list, tuple)):
        kind = "dict" if isinstance(value, dict) else type(value).__name__
        count = len(tensors_in(value))
        return f"{kind} of {len(value)} with {count} tensor{'' if count == 1 else 's'}"
    if isinstance(value, LeftOut):
        return value.what
    text = repr(value) if isinstance(value, (bool, int, float, str, type(None))) else ""
    return f"{type(value).__name__} {text}" if 0 < len(text) <= 40 else type(value).__name__

"""Archives of ``torch.export.save`` (``.pt2``) as a source: the state dict and the constants, without the program."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from vqformat.encode.source import SourceTensor, check_name, check_shape
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.limits import MAX_TENSORS

from .file_region import Region
from .inert_pickle import Call
from .pickled_tensors import Tensor
from .pytorch_saved import Saved
from .source import Source
from .strided_storage import Strided, check_strided, read_strided
from .zip_archive import Archive

_MAX_CONFIG_NBYTES = 64 << 20
_STRIDED = 7  # of enum Layout in PyTorch's export schema
# Members that have tensors or describe them. _MEMBER has the names since PyTorch 2.7, in a folder; _OLD those before
_MEMBER = re.compile(r"[^/]+/data/(?P<kind>weights|constants)/(?P<model>.+?)(?:_(?:weights|constants)_config\.json"
                     r"|\.pt)")  # fmt: skip
_OLD = ("serialized_state_dict.pt", "serialized_constants.pt")

# enum ScalarType in PyTorch's export schema -> SPEC name
_DTYPES = {
    1: "u8", 2: "i8", 3: "i16", 4: "i32", 5: "i64", 6: "f16", 7: "f32", 8: "f64", 10: "c64", 11: "c128", 12: "bool",
    13: "bf16", 28: "u16", 29: "f8_e4m3fn", 30: "f8_e5m2", 31: "f8_e4m3fnuz", 32: "f8_e5m2fnuz", 33: "f8_e8m0fnu",
    34: "u32", 35: "u64",
}  # fmt: skip


def open_export(path: Path) -> Source:
    """Open an archive; names are those of the state dict, in its order, then those of the constants.

    Raises:
        ConversionError: It is damaged, or has no weights.
    """
    archive = Archive(path)
    try:
        reader = _Reader(archive)
        return reader.source()
    except BaseException:
        archive.close()
        raise


class _Part(NamedTuple):
    """A member with tensors.

    Attributes:
        prefix: What precedes their names: the model's, where there are several.
        is_exact: Whether they are constants.
    """

    member: str
    prefix: str
    is_exact: bool


class _Reader:
    """An archive and what has been found in it so far."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._names = archive.names()
        self._members = set(self._names)
        self._sources: dict[str, SourceTensor] = {}
        self._first: dict[tuple[Any, ...], str] = {}
        self._left_out: list[str] = []

    def _refuse(self, why: str) -> ConversionError:
        why = "".join(c if c.isprintable() else "?" for c in why[:500])  # foreign names have any characters
        return ConversionError(f"{str(self._archive.path)!r} is a torch.export archive that cannot be read: {why}")

    def source(self) -> Source:
        for part in self._parts():
            if part.member.endswith(".json"):
                self._read_config(part)
            else:
                self._read_saved(part)
        if not self._sources:
            if any("/data/aotinductor/" in name for name in self._names):
                raise self._refuse("it is an AOTInductor package, which has compiled code in place of weights; save the"
                                   " exported program with torch.export.save")  # fmt: skip
            raise self._refuse("it has no tensors")
        notes = ["left out the program of the archive: its tensors alone are kept", *self._left_out]
        return Source("torch-export", list(self._sources.values()), {}, notes, {"format": "torch-export"},
                      self._archive.close, self._left_out)  # fmt: skip

    def _parts(self) -> list[_Part]:
        """The members that have or describe tensors: weights of all models, then constants of all."""
        for name in self._names:
            if re.fullmatch(r"[^/]+/byteorder", name) and self._small(name).strip() == b"big":
                raise self._refuse("its tensors are big-endian; save it again on a little-endian machine")
        found = [(match, name) for name in self._names if (match := _MEMBER.fullmatch(name))]
        if not found:
            return [_Part(name, "", is_exact=name == _OLD[1]) for name in _OLD if name in self._names]
        found.sort(key=lambda item: item[0]["kind"], reverse=True)  # weights, constants
        models = {match["model"] for match, _ in found}
        return [_Part(name, f"{match['model']}." if len(models) > 1 else "", is_exact=match["kind"] == "constants")
                for match, name in found]  # fmt: skip

    def _small(self, member: str) -> bytes:
        if self._archive.nbytes(member) > _MAX_CONFIG_NBYTES:
            raise self._refuse(f"{member!r} has {self._archive.nbytes(member)} bytes; at most {_MAX_CONFIG_NBYTES} are"
                               " allowed")  # fmt: skip
        return self._archive.read(member)

    def _read_config(self, part: _Part) -> None:
        """Tensors that lie in members of their own, as the JSON beside them says."""
        folder = part.member.rpartition("/")[0] + "/"
        try:
            config = json.loads(self._small(part.member))["config"]
            items = list(config.items())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
            raise self._refuse(f"{part.member!r} is damaged ({type(err).__name__})") from err
        for fqn, entry in items:
            name = part.prefix + fqn
            try:
                path_name = entry["path_name"]
                member = folder + path_name
                if member not in self._members:
                    raise self._refuse(f"tensor {name!r} is in {member!r}, which is not there")
                if path_name.startswith(("custom_obj_", "opaque_obj_")):
                    self._left_out.append(f"left out {name!r}: a Python object")
                elif entry.get("use_pickle"):
                    self._add_saved(name, self._archive.region(member), is_exact=part.is_exact)
                else:
                    self._add(name, self._described(entry["tensor_meta"], member), member, is_exact=part.is_exact)
            except (ValueError, TypeError, KeyError, AttributeError) as err:
                if isinstance(err, ConversionError):
                    raise
                raise self._refuse(f"tensor {name!r}: {err}") from err

    def _described(self, meta: dict[str, Any], member: str) -> Strided:
        if meta["layout"] != _STRIDED:
            raise ValueError(f"it has the layout {meta['layout']}: sparse, or unknown")
        dtype = _DTYPES.get(meta["dtype"], f"number {meta['dtype']}")
        sizes, strides = ([size["as_int"] for size in meta[key]] for key in ("sizes", "strides"))
        return check_strided(meta["storage_offset"]["as_int"], sizes, strides, dtype, self._archive.nbytes(member))

    def _add(self, name: str, tensor: Strided, member: str, *, is_exact: bool) -> None:
        def load() -> npt.NDArray[Any]:
            try:
                return read_strided(tensor, self._archive.region(member))
            except ValueError as err:
                if isinstance(err, ConversionError):
                    raise
                raise self._refuse(f"tensor {name!r}: {err}") from err

        self._put(name, tensor, (member, tensor), load, is_exact=is_exact)

    def _read_saved(self, part: _Part) -> None:
        """Tensors of a member that ``torch.save`` wrote: a dict of them."""
        try:
            saved = Saved(self._archive.region(part.member))
        except ValueError as err:
            raise self._refuse(f"{part.member!r}: {err}") from err
        if not isinstance(saved.value, dict):
            what = saved.value.function if isinstance(saved.value, Call) else type(saved.value).__name__
            raise self._refuse(f"{part.member!r} holds {str(what)[:80]!r}; a dict of tensors was expected")
        for fqn, value in saved.value.items():
            if isinstance(value, Tensor):
                self._take_saved(f"{part.prefix}{fqn}", saved, value, is_exact=part.is_exact)
            else:
                self._left_out.append(f"left out {str(fqn)[:200]!r}: a Python object")

    def _add_saved(self, name: str, region: Region, *, is_exact: bool) -> None:
        saved = Saved(region)
        if not isinstance(saved.value, Tensor):
            raise ValueError("it is a tensor of a class of its own; save its parts as plain tensors")
        self._take_saved(name, saved, saved.value, is_exact=is_exact)

    def _take_saved(self, name: str, saved: Saved, value: Tensor, *, is_exact: bool) -> None:
        try:
            tensor, storage = saved.check(value)
        except ValueError as err:
            raise self._refuse(f"tensor {name!r}: {err}") from err

        def load() -> npt.NDArray[Any]:
            return read_strided(tensor, storage)

        self._put(name, tensor, (storage.label, tensor), load, is_exact=is_exact)

    def _put(self, name: str, tensor: Strided, key: tuple[Any, ...], load: Callable[[], npt.NDArray[Any]], *,
             is_exact: bool) -> None:  # fmt: skip
        try:
            check_name(name)
            check_shape(name, tensor.shape)
        except EncodeError as err:
            raise self._refuse(str(err)) from err
        if name in self._sources or len(self._sources) == MAX_TENSORS:
            raise self._refuse(f"two tensors would have the name {name!r}, or there are more than {MAX_TENSORS}")
        target = self._first.setdefault(key, name) if tensor.n_elements else name
        self._sources[name] = SourceTensor(name, tensor.dtype, tensor.shape, load, None if target == name else target,
                                           is_exact=is_exact)  # fmt: skip

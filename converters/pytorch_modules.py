"""Modules of PyTorch that were pickled whole: their state dict, and attributes beside parameters and buffers."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from vqformat.errors import ConversionError
from vqformat.format.checkpoint import MAX_DEPTH, join_keys

from .inert_pickle import Call, Global
from .pickled_tensors import attributes_of
from .pytorch_parts import LeftOut, unwrapped
from .pytorch_training import tensors_in

if TYPE_CHECKING:
    from .pytorch_values import Interpreter

_MAX_MODULES = 1 << 16  # in one checkpoint; modules that are shared could make 2^n names
# What torch.nn.Module itself keeps in a module
_INTERNAL = frozenset({
    "training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_backend", "_hooks",
    "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_compiled_call_impl",
})  # fmt: skip


def is_module(state: Any) -> bool:
    """Whether these are the attributes of a module."""
    return isinstance(state, dict) and isinstance(attributes_of(state.get("_parameters")), dict)


def module(interpreter: Interpreter, function: Global, state: dict[Any, Any], keys: list[Any]) -> Any:
    """The state dict of a module, its tensors at the names that ``state_dict()`` gives.

    ``_metadata`` has the other attributes of each module, by the module's path: ``load_state_dict`` takes no notice of
    them there.

    Args:
        function: The module's class.
        state: The module's attributes.
        keys: Keys that lead to the module in the checkpoint.
    """
    reader = _Reader(interpreter, keys)
    reader.add(function, state, "", [])
    if not reader.found and not reader.attributes:
        return LeftOut(f"a module of the class {function}, without tensors")
    kept = "its state dict"
    if reader.attributes:
        reader.found._metadata = reader.attributes  # type: ignore[attr-defined]
        kept += ", with the attributes of its modules in _metadata"
    interpreter.notes.append(f"{join_keys(keys) or 'the checkpoint'!r} is a whole module of the class {function}: kept"
                             f" {kept}, and left out the class")  # fmt: skip
    return reader.found


class _Reader:
    """What has been found in a module so far.

    Attributes:
        found: The state dict.
        attributes: By the path of a module, a dict of one key ``attributes``.
    """

    def __init__(self, interpreter: Interpreter, keys: list[Any]) -> None:
        self._interpreter, self._keys = interpreter, keys
        self.found: OrderedDict[Any, Any] = OrderedDict()
        self.attributes: dict[str, dict[str, Any]] = {}

    def add(self, function: Any, state: dict[Any, Any], prefix: str, above: list[int]) -> None:
        """Add a module and those in it.

        Args:
            prefix: The module's path and a dot, or nothing.
            above: ``id`` of the states of the modules that contain it.
        """
        interpreter = self._interpreter
        interpreter.n_modules += 1
        if interpreter.n_modules > _MAX_MODULES:
            raise ConversionError(f"it has more than {_MAX_MODULES} modules")
        if len(above) > MAX_DEPTH or id(state) in above:
            raise ConversionError(f"modules are nested deeper than {MAX_DEPTH} levels, or contain themselves")
        transient = _names_in(state.get("_non_persistent_buffers_set"))
        buffers = attributes_of(state.get("_buffers")) or {}
        for items in (attributes_of(state.get("_parameters")) or {}, buffers):
            for key, item in items.items():
                if key in transient or not isinstance(key, str):
                    continue
                value = interpreter.value(item, [*self._keys, f"{prefix}{key}"], is_inside=True)
                if value is not None:
                    self.found[f"{prefix}{key}"] = value
        others = {key: item for key, item in state.items() if key not in _INTERNAL}
        others.update((key, item) for key, item in buffers.items() if key in transient)
        self._add_attributes(function, others, prefix.removesuffix("."))
        for key, item in (attributes_of(state.get("_modules")) or {}).items():
            call = unwrapped(item) if isinstance(item, Call) else None
            inner = attributes_of(call.state) if call is not None else None
            if call is not None and isinstance(inner, dict) and isinstance(key, str):
                self.add(call.function, inner, f"{prefix}{key}.", [*above, id(state)])

    def _add_attributes(self, function: Any, items: dict[Any, Any], path: str) -> None:
        # Those of PyTorch's own modules follow from how a model is built, unless they are other tensors than parameters
        is_own = isinstance(function, Global) and function.module.startswith("torch.nn.")
        known = set(map(id, self.found.values()))
        kept = {}
        for key, item in items.items():
            if not isinstance(key, str):
                continue
            value = self._interpreter.value(item, [*self._keys, "_metadata", path, "attributes", key], is_inside=True)
            if not isinstance(value, LeftOut) and (
                not is_own or any(id(tensor) not in known for tensor in tensors_in(value))):  # fmt: skip
                kept[key] = value
        if kept:
            self.attributes[path] = {"attributes": kept}


def _names_in(value: Any) -> set[str]:
    """The texts in a pickled set."""
    if not isinstance(value, Call):
        return set()
    arguments = value.arguments if isinstance(value.arguments, tuple) else ()
    parts = [*value.elements, *(part for argument in arguments if isinstance(argument, list) for part in argument)]
    return {part for part in parts if isinstance(part, str)}

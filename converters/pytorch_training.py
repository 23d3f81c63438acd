"""Which parts of a checkpoint are the state of training, told by their structure: optimizers, schedulers, scalers,
random number generators. A name alone tells nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from typing import Any

from vqformat.format.checkpoint import Named

from .pickled_tensors import Tensor
from .pytorch_parts import Compound

# What the optimizers of PyTorch keep for each parameter, and common others
_SLOTS = frozenset({
    "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "acc_delta", "sum",
    "exp_inf", "prev", "step_size", "eta", "mu", "ax", "mu_product", "exp_avg_sq_row", "exp_avg_sq_col", "RMS",
    "exp_avg_diff", "slow_buffer", "d", "old_dirs", "old_stps", "ro", "al", "prev_flat_grad", "H_diag", "n_iter",
    "func_evals", "t", "prev_loss", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2",
})  # fmt: skip
_TELLING_SLOTS = _SLOTS - {"sum", "d", "t", "prev", "mu", "step"}  # these might be anything's
_OPTIMIZER = "the state of an optimizer"
_OF_OPTIMIZERS = ("state", "param_groups")
_GENERATOR = re.compile(r"(^|[^a-z])rng([^a-z]|$)|random_state")
_GENERATOR_NBYTES = range(16, 8193)  # 16 of a GPU's, 5056 of the CPU's


def find_training(root: Any) -> dict[int, str]:
    """The parts that are state of training: ``id`` of each, and what it is."""
    found: dict[int, str] = {}
    _visit(root, [], found, set())
    found.pop(id(root), None)
    return found


def _visit(value: Any, keys: list[str], found: dict[int, str], seen: set[int]) -> bool:
    """Add what is in a value; returns whether all that is in it, and something, is state of training."""
    if isinstance(value, Named):
        value = value.value
    if id(value) in found:
        return True
    what = _kind(value, keys)
    if what == _OPTIMIZER and _has_weights({key: item for key, item in value.items() if key not in _OF_OPTIMIZERS}):
        # What lies beside the state may be weights: a master copy in float32, say. Without groups all may be weights
        if value.get("param_groups"):
            found.update({id(_plain(value[key])): what for key in _OF_OPTIMIZERS})
    elif what:
        found[id(value)] = what
        return True
    if not isinstance(value, (dict, list, tuple)) or id(value) in seen:
        return id(value) in found
    seen.add(id(value))
    parts = [(key, item) for key, item in items(value) if isinstance(item, (dict, list, tuple, Tensor, Named))]
    results = [_visit(item, [*keys, str(key)], found, seen) for key, item in parts]
    if results and all(results) and len(parts) == len(value):
        found[id(value)] = "state of training"
        return True
    return False


def _kind(value: Any, keys: list[str]) -> str:
    """What state a value is; empty if it is none."""
    if isinstance(value, Tensor):
        says_so = any(_GENERATOR.search(key.lower()) for key in keys[-2:])
        is_state = value.dtype == "u8" and isinstance(value.shape, tuple) and len(value.shape) == 1
        return "the state of a random number generator" if says_so and is_state and (
            value.shape[0] in _GENERATOR_NBYTES) else ""  # fmt: skip
    if isinstance(value, (tuple, list)):
        is_numpy = len(value) == 5 and value[0] == "MT19937" and isinstance(value[1], Tensor)
        return "the state of a random number generator" if is_numpy else ""
    if not isinstance(value, dict):
        return ""
    if _is_optimizer(value):
        return _OPTIMIZER
    names = {key for key in value if isinstance(key, str)}
    if "last_epoch" in names and names & {"_step_count", "base_lrs", "_last_lr", "num_bad_epochs"}:
        return "the state of a scheduler" if not _has_weights(value) else ""
    if {"scale", "growth_factor", "backoff_factor"} <= names and not _has_weights(value):
        return "the state of a gradient scaler"
    return ""


def _is_optimizer(value: dict[Any, Any]) -> bool:
    state, groups = _plain(value.get("state")), _plain(value.get("param_groups"))
    if not isinstance(state, dict):
        return False
    entries = [_plain(entry) for entry in state.values()]
    groups = [_plain(group) for group in groups] if isinstance(groups, list) else []
    if groups and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        return all(isinstance(entry, dict) for entry in entries)
    # Without groups the names of the slots must tell
    slots = {key for entry in entries if isinstance(entry, dict) for key in entry}
    return bool(slots & _TELLING_SLOTS) and slots <= _SLOTS and all(isinstance(entry, dict) for entry in entries)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Named) else value


def _has_weights(value: dict[Any, Any]) -> bool:
    return any(prod(tensor.shape) > 1 for tensor in tensors_in(value) if isinstance(tensor, Tensor) and
               isinstance(tensor.shape, tuple) and all(type(n) is int for n in tensor.shape))  # fmt: skip


def items(value: Any) -> Iterator[tuple[Any, Any]]:
    """Keys and values of a container; none of another thing."""
    if isinstance(value, Named):
        value = value.value
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)


def tensors_in(root: Any, skipped: dict[int, str] | None = None) -> list[Tensor | Compound]:
    """Tensors in nested containers; each object once, so that cycles end. A list of numbers or a text is none."""
    found: list[Tensor | Compound] = []
    seen: set[int] = set()
    pending = [root]
    while pending:
        value = pending.pop()
        if id(value) in seen or (skipped and id(value) in skipped):
            continue
        if isinstance(value, (Tensor, Compound)):
            seen.add(id(value))
            if not isinstance(value, Compound) or not value.is_plain:
                found.append(value)
        elif isinstance(value, (dict, list, tuple, Named)):
            seen.add(id(value))
            pending.extend(item for _, item in items(value))
    return found

"""Names of Keras variables as users know them, from their paths in Keras files. Keras is not imported."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from vqformat.errors import ConversionError
from vqformat.format.limits import MAX_NAME_NBYTES

from .hdf5 import Dataset, Tree

OPTIMIZER = "optimizer"  # first part of the names of its variables
LEGACY_OPTIMIZER = "optimizer_weights"  # group of the optimizer in legacy files of whole models
_LEGACY_TOP = "top_level_model_weights"  # group of the model's own variables, in legacy files since TensorFlow 2.6

# Keras 3 numbers the variables of a layer. For each class, as it appears in paths and names: (name, number of axes) of
# its variables in order; None is any number. A class with optional variables has several alternatives.
_CONVOLUTION = ((("kernel", 3), ("bias", 1)), (("kernel", 4), ("bias", 1)), (("kernel", 5), ("bias", 1)),
                (("kernel", 3),), (("kernel", 4),), (("kernel", 5),))  # fmt: skip
_SEPARABLE = ("depthwise_kernel", "pointwise_kernel")
_SEPARABLE_CONVOLUTION = tuple((*((name, rank) for name in _SEPARABLE), *bias)
                               for rank in (3, 4) for bias in ((("bias", 1),), ()))  # fmt: skip
_EINSUM = ((("kernel", None), ("bias", None)), (("kernel", None),))
_RECURRENT = ((("kernel", None), ("recurrent_kernel", None), ("bias", None)),
              (("kernel", None), ("recurrent_kernel", None)))  # fmt: skip
_GAMMA_BETA = (("gamma", 1), ("beta", 1))
_MOVING = (("moving_mean", 1), ("moving_variance", 1))
_Variables = tuple[tuple[tuple[str, int | None], ...], ...]
_CLASSES: Mapping[str, _Variables] = {
    "dense": ((("kernel", 2), ("bias", 1)), (("kernel", 2),)),
    "einsum_dense": _EINSUM,
    "embedding": ((("embeddings", 2),),),
    "attention": ((("scale", 0),),),
    "additive_attention": ((("scale", 1),),),
    "separable_conv1d": _SEPARABLE_CONVOLUTION,
    "separable_conv2d": _SEPARABLE_CONVOLUTION,
    "batch_normalization": ((*_GAMMA_BETA, *_MOVING), _MOVING),
    "layer_normalization": ((("gamma", None), ("beta", None)),),
    "group_normalization": (_GAMMA_BETA,),
    "rms_normalization": ((("scale", None),),),
    "normalization": ((("mean", None), ("variance", None), ("count", 0)),),
    "p_re_lu": ((("alpha", None),),),
    "seed_generator": ((("seed_generator_state", 1),),),
    "cell": _RECURRENT,  # the attribute of an RNN that holds its cell, of any class
    **{f"{kind}_cell": _RECURRENT for kind in ("lstm", "gru", "simple_rnn", "conv_lstm")},
    **{f"{part}_dense": _EINSUM for part in ("query", "key", "value", "output")},  # of attention
    **{f"{kind}conv{axes}d{turn}": _CONVOLUTION
       for kind in ("", "depthwise_") for axes in (1, 2, 3) for turn in ("", "_transpose")},
}  # fmt: skip


def is_state(path: str) -> bool:
    """Whether a path belongs to the state of an optimizer. There may be several, such as ``generator_optimizer``."""
    top = path.split("/", 1)[0]
    return top in (OPTIMIZER, LEGACY_OPTIMIZER) or top.endswith("_" + OPTIMIZER)


def names_in_keras3(tree: Tree, where: str) -> dict[str, str]:
    """Path -> name of each dataset, for a tree in which groups ``…/vars`` have numbered variables.

    ``layers/dense_1/vars/0`` becomes ``hid/kernel`` if ``layers/dense_1/vars`` has an attribute ``name`` of value
    ``hid``; else ``dense_1/kernel`` (Keras 3, ``saving_lib._save_state``). Variables of an unknown class keep their
    numbers.

    Args:
        where: The file in error texts.

    Raises:
        ConversionError: A name is too long.
    """
    by_layer: dict[str, list[str]] = {}
    for path in tree.datasets:
        layer, _, key = path.rpartition("/")
        is_numbered = (layer == "vars" or layer.endswith("/vars")) and key.isdecimal()
        by_layer.setdefault(layer if is_numbered else path, []).append(path)
    names: dict[str, str] = {}
    for layer, paths in by_layer.items():
        if paths == [layer]:
            names[layer] = layer  # not a numbered variable
            continue
        place = layer.removesuffix("vars").rstrip("/")
        shown = _shown_layer(tree, place)
        if len(shown) > MAX_NAME_NBYTES:
            raise ConversionError(f"{where}: the layer at {place!r} has a name longer than {MAX_NAME_NBYTES} bytes")
        variables = _variables(tree, place, [tree.datasets[path] for path in paths])
        for path, variable in zip(paths, variables, strict=True):
            names[path] = f"{shown}/{variable}" if shown else path
    return _unique(names)


def _shown_layer(tree: Tree, place: str) -> str:
    """The name of a layer, after the names of the layers that contain it."""
    shown: list[str] = []
    parts = place.split("/") if place else []
    for level, part in enumerate(parts, 1):
        if level == 1 and is_state(part):
            shown.append(part)
            continue
        name = tree.attribute("/".join([*parts[:level], "vars"]), "name")
        if isinstance(name, str) and 0 < len(name) <= MAX_NAME_NBYTES:
            shown.append(name)
        elif part not in ("layers", "_layer_checkpoint_dependencies"):
            shown.append(part)
    return "/".join(shown)


def _variables(tree: Tree, place: str, datasets: Sequence[Dataset]) -> list[str]:
    """Names of the variables of a layer; their numbers if the class is unknown."""
    name = tree.attribute(f"{place}/vars", "name")
    for candidate in (place.rpartition("/")[2], name):
        if not isinstance(candidate, str):
            continue
        kind = re.sub(r"_\d+$", "", candidate[:MAX_NAME_NBYTES].lstrip("_"))
        if len({dataset.dtype for dataset in datasets}) > 1 and kind != "normalization":
            continue  # quantized: it has scales besides the usual variables
        for variables in _CLASSES.get(kind, ()):
            if len(variables) == len(datasets) and all(
                rank in (None, len(dataset.shape)) for (_, rank), dataset in zip(variables, datasets, strict=True)
            ):
                return [name for name, _ in variables]
    return [dataset.path.rpartition("/")[2] for dataset in datasets]


def names_in_legacy(tree: Tree, root: str, where: str) -> dict[str, str]:
    """Path -> name of each dataset, for a tree of Keras 1 or 2, in the order of ``layer_names`` and ``weight_names``.

    Args:
        root: Path of the group with the attribute ``layer_names``.
        where: The file in error texts.

    Raises:
        ConversionError: An attribute names an object that does not exist.
    """
    names: dict[str, str] = {}

    def take(group: str, shown: Callable[[str], str]) -> None:
        for weight in tree.names(group, "weight_names") or []:
            path = f"{group}/{weight}" if group else weight
            if path not in tree.datasets or path in names:
                what = "a second time" if path in names else "which is not there"
                raise ConversionError(f"{where}: weight_names of {group or '/'!r} has {weight!r}, {what}")
            names[path] = shown(re.sub(r":\d+$", "", weight))

    layers = tree.names(root, "layer_names") or []
    groups = _groups(tree)
    for layer in layers:
        group = f"{root}/{layer}" if root else layer
        if group not in groups:
            what = "a second time" if layers.count(layer) > 1 else "which is not there"
            raise ConversionError(f"{where}: layer_names of {root or '/'!r} has {layer!r}, {what}")
        groups.remove(group)
        take(group, lambda weight, layer=layer: _legacy_name(layer, weight))  # type: ignore[misc]
    top = f"{root}/{_LEGACY_TOP}" if root else _LEGACY_TOP
    take(top, lambda weight: weight)
    if root:
        take(LEGACY_OPTIMIZER, lambda weight: f"{OPTIMIZER}/{weight}")
    for path in tree.datasets:
        names.setdefault(path, path)
    return _unique(names)


def _groups(tree: Tree) -> set[str]:
    """Paths of all groups."""
    groups = {owner for owner, _ in tree.attributes} | set(tree.groups)
    for path in [*tree.datasets, *tree.groups]:
        while path := path.rpartition("/")[0]:
            groups.add(path)
    return groups - tree.datasets.keys()


def _legacy_name(layer: str, weight: str) -> str:
    """The name ``layer/variable`` of a weight.

    ``dense/kernel`` for ``dense_1/kernel``, ``sequential/dense/kernel`` or ``kernel``; ``dense/W`` for ``dense_W``.
    """
    for count in ("", r"_\d+"):  # TensorFlow numbers scopes of the same name: dense_1/kernel
        scoped = re.fullmatch(rf"(?:.*?/)??{re.escape(layer)}{count}/(.+)", weight, re.DOTALL)
        if scoped:
            return f"{layer}/{scoped[1]}"
    return f"{layer}/{weight if '/' in weight else weight.removeprefix(layer + '_')}"


def _unique(names: dict[str, str]) -> dict[str, str]:
    """The names, with the path instead of a name that several have."""
    while len(count := Counter(names.values())) < len(names):
        names = {path: name if count[name] == 1 else path for path, name in names.items()}
    return names

"""The files of a model folder of Hugging Face: its weights, the same weights in further formats, and all others."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from vqformat.errors import ConversionError

from .detect import detect_format
from .model_folder import check_regular, inside
from .sharding import read_shards

_MAX_DEPTH = 32
# Beginning of a name -> the part of a model whose weights such files have, in one format or another
_PARTS = {
    "model": "model", "pytorch_model": "model", "tf_model": "model", "flax_model": "model", "rust_model": "model",
    "diffusion_pytorch_model": "diffusion_pytorch_model", "diffusion_flax_model": "diffusion_pytorch_model",
    "adapter_model": "adapter_model",
}  # fmt: skip
_NAME = re.compile(
    rf"(?P<stem>{'|'.join(_PARTS)})(?P<variant>\.\w+)??(?:-\d+-of-\d+)?(?P<later>\.\w+)??"
    r"\.(?:safetensors|bin|h5|msgpack|ot|onnx|vqm|gguf|flashpack)(?:\.index(?:\.\w+)?\.json)?"
)
# The files that are read, best first; the names that have a format's weights, by part
_CHOICES = ("{part}.safetensors", "{part}.safetensors.index.json", "{torch}.bin", "{torch}.bin.index.json",
            "{flax}.msgpack", "{flax}.msgpack.index.json", "{tensorflow}.h5", "{part}.vqm",
            "{part}.vqm.index.json")  # fmt: skip
_STEMS = {
    "model": {"torch": "pytorch_model", "flax": "flax_model", "tensorflow": "tf_model"},
    "diffusion_pytorch_model": {"flax": "diffusion_flax_model"},
}
_OTHER_FORMATS = (".onnx", ".onnx_data", ".gguf", ".ot", ".tflite", ".mlmodel", ".msgpack", ".h5")
_FOLDERS_OF_OTHER_FORMATS = ("onnx", "openvino", "coreml", "tflite", "original")
_CONSOLIDATED = re.compile(r"consolidated.*\.(safetensors|pth)")  # the same weights under the names of other software
_STATE_OF_TRAINING = re.compile(r"(optimizer|scheduler|scaler|rng_state|random_states)(_\d+)*\.(pt|pth|bin|pkl)")
_MAY_BE_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", *_OTHER_FORMATS)
_SHARD = re.compile(r"-\d+-of-\d*[1-9]\d*\.")  # of a name
_CONFIGURATIONS = ("config.json", "model_index.json", "adapter_config.json", "modules.json")
_WHOLE_FOLDERS = ("pytorch-distributed", "savedmodel", "tensorflow", "tfjs")


@dataclass(frozen=True)
class Weights:
    """The weights of a model or of a part of it.

    Attributes:
        folder: Their folder, relative to that of the model; empty for the model's own.
        part: The name of the ``.vqm`` that takes their place, without its suffix.
        path: The file, or the index of the shards.
        files: Names of all files of them in the folder.
    """

    folder: str
    part: str
    path: Path
    files: tuple[str, ...]

    @property
    def vqm(self) -> str:
        """Path of the ``.vqm``, relative to the folder of the model."""
        return _joined(self.folder, f"{self.part}.vqm")


@dataclass
class Layout:
    """The files of a model folder. All paths are relative to it, with slashes.

    Attributes:
        weights: The weights that become ``.vqm`` files.
        copied: The other files.
        left_out: Lines on what is left out.
        notes: Lines on files that may be weights and are copied.
    """

    weights: list[Weights] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def files_below(root: Path, left_out: list[str]) -> list[str]:
    """The files of an untrusted folder and of those in it, each checked to be a regular file of this folder.

    Args:
        left_out: A line is appended for each folder that is not searched: hidden ones, and caches of Python.

    Raises:
        ConversionError: A file is a pipe, a device or a link that leads out of the folder.
    """
    found: list[str] = []
    folders = [("", 0)]
    while folders:
        folder, depth = folders.pop()
        for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
            path = _joined(folder, entry.name)
            if not entry.is_dir(follow_symlinks=False):
                inside(root / "model", path, f"{str(root)!r} has the file")
                check_regular(root / path)
                found.append(path)
            elif entry.name.startswith(".") or entry.name == "__pycache__":
                left_out.append(f"left out the folder {path!r}, which is no part of a model")
            elif depth == _MAX_DEPTH:
                raise ConversionError(f"{str(root)!r} has folders nested more than {_MAX_DEPTH} deep")
            else:
                folders.append((path, depth + 1))
    return found


def read_layout(root: Path, *, include_optimizer: bool) -> Layout:
    """Sort the files of a model folder.

    Args:
        include_optimizer: Whether files with the state of training are copied.

    Raises:
        ConversionError: There are no weights, or a file is none that may be opened.
    """
    layout = Layout()
    names: defaultdict[str, list[str]] = defaultdict(list)
    for path in files_below(root, layout.left_out):
        folder, _, name = path.rpartition("/")
        names[folder].append(name)
    chosen = {folder: _choose(root, folder, found) for folder, found in names.items()}
    if not any(chosen.values()):
        chosen[""] = [_only_weights(root)]
    for folder in sorted(names):
        if _says_the_same(folder, chosen):
            layout.left_out.append(f"left out the folder {folder!r}: it has the same model in another format")
            continue
        layout.weights += chosen[folder]
        _sort(folder, names[folder], chosen[folder], layout, include_optimizer)
    return layout


def files_beside(root: Path) -> list[str]:
    """A line on the files of a model folder of Hugging Face that one ``.vqm`` does not hold, if there are any.

    Files that may not be opened are no matter here.
    """
    if not (root / "config.json").is_file() and not (root / "model_index.json").is_file():
        return []
    try:
        files = read_layout(root, include_optimizer=False).copied
    except (ConversionError, OSError):
        return []
    more = f" and {len(files) - 4} more" if len(files) > 4 else ""
    return [f"left out {', '.join(map(repr, files[:4]))}{more}: a .vqm holds tensors; give a folder as the output, and"
            " they are copied"] if files else []  # fmt: skip


def is_model_folder(root: Path) -> bool:
    """Whether a folder is that of a model, by the names of its files, and no other work is done in it."""
    if not any((root / name).is_file() for name in _CONFIGURATIONS) or (root / ".git").exists():
        return False
    if Path.cwd().is_relative_to(root.resolve()):
        return False
    return any(_NAME.fullmatch(path.name) for pattern in ("*", "*/*") for path in root.glob(pattern))


def _choose(root: Path, folder: str, names: list[str]) -> list[Weights]:
    """The weights of a folder: of each part one of its formats."""
    parts = sorted({_PARTS[match["stem"]] for name in names if (match := _NAME.fullmatch(name))})
    found = []
    for part in parts:
        stems = {"torch": part, "flax": part, "tensorflow": part, **_STEMS.get(part, {})}
        choices = [choice.format(part=part, **stems) for choice in _CHOICES]
        name = next((choice for choice in choices if choice in names), None)
        if name is not None:
            found.append(_weights(root, folder, part, name))
        else:  # perhaps a single file of a variant: model.fp16.safetensors
            others = [name for name in names if name.startswith(part) and name.endswith(".safetensors")
                      and not _SHARD.search(name)]  # fmt: skip
            if len(others) == 1:
                found.append(_weights(root, folder, others[0].removesuffix(".safetensors"), others[0]))
    return found


def _weights(root: Path, folder: str, part: str, name: str) -> Weights:
    path = root / folder / name
    shards = list(read_shards(path)) if name.endswith(".json") else []
    if any("/" in shard for shard in shards):
        raise ConversionError(f"{str(path)!r} names a shard in another folder; convert the index itself, to one .vqm")
    return Weights(folder, part, path, (name, *shards))


def _only_weights(root: Path) -> Weights:
    """The one checkpoint of a folder whose weights have a name of their own."""
    kind, path = detect_format(root)
    if kind in _WHOLE_FOLDERS or path.is_dir():
        raise ConversionError(f"{str(root)!r} is a checkpoint of many files ({kind}), which becomes one .vqm; give an"
                              " output that ends in .vqm")  # fmt: skip
    if _SHARD.search(path.name):
        raise ConversionError(f"{str(path)!r} is one of several shards, whose index is not there; fetch the whole"
                              " folder")  # fmt: skip
    part = re.sub(r"(\.index)?\.json$", "", path.name).partition(".")[0]
    return _weights(root, "", part, path.name)


def _says_the_same(folder: str, chosen: dict[str, list[Weights]]) -> bool:
    """Whether a folder, or one that it is in, is for another format of the model beside it."""
    parts = folder.split("/")
    return any(name in _FOLDERS_OF_OTHER_FORMATS and chosen.get("/".join(parts[:i]))
               for i, name in enumerate(parts))  # fmt: skip


def _sort(folder: str, names: list[str], chosen: list[Weights], layout: Layout, include_optimizer: bool) -> None:
    """Sort the files of one folder that are not the chosen weights."""
    replaced = {name for weights in chosen for name in weights.files}
    parts = {weights.part.partition(".")[0] for weights in chosen}
    same, unsure = [], []
    is_pipeline = "model_index.json" in names
    for name in names:
        if name in replaced:
            continue
        match = _NAME.fullmatch(name)
        of_chosen = match is not None and _PARTS[match["stem"]] in parts
        other = bool(chosen) and (name.lower().endswith(_OTHER_FORMATS) or _CONSOLIDATED.fullmatch(name) is not None)
        if of_chosen or other or (is_pipeline and name.endswith((".safetensors", ".ckpt"))):
            same.append(name)
        elif _STATE_OF_TRAINING.fullmatch(name) and not include_optimizer:
            layout.left_out.append(f"left out {_joined(folder, name)!r}: the state of training")
        else:
            layout.copied.append(_joined(folder, name))
            if name.lower().endswith(_MAY_BE_WEIGHTS) and name != "training_args.bin":
                unsure.append(name)
    if same:
        layout.left_out.append(f"left out {_listed(folder, same)}: the same weights in another format or precision")
    if unsure:
        layout.notes.append(f"copied {_listed(folder, unsure)} as it is: no usual name of a model's weights")


def _listed(folder: str, names: list[str]) -> str:
    return ", ".join(repr(_joined(folder, name)) for name in names)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name

"""The ``.vqm`` in a model folder of Hugging Face, opened for PyTorch; what the front ends for its libraries share."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import missing_package
from .hub import local_folder
from .read.safe_open import safe_open
from .read.shards import index_of

if TYPE_CHECKING:
    import torch

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def package(name: str) -> ModuleType:
    """Import one of the libraries of Hugging Face.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as err:
        raise missing_package(f"vqformat.{name} needs", name, err) from err


def take_hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take those keyword arguments of ``from_pretrained`` out that say how a repository is fetched."""
    return {key: options.pop(key) for key in HUB_OPTIONS if options.get(key) is not None}


def find_folder(source: str | os.PathLike[str], subfolder: str, part: str, *others: str, **hub: Any) -> pathlib.Path:
    """The folder of a model, fetched if it is a repository.

    Args:
        subfolder: The folder in it that has the model; empty for itself.
        part: Name of its ``.vqm`` without the suffix.
        others: The other files that are needed.
        hub: As ``take_hub_options`` gives them.
    """
    start = f"{subfolder.strip('/')}/" if subfolder else ""
    names = (f"{part}.vqm", f"{part}-*.vqm", f"{part}.vqm.index.json", *others)
    return local_folder(source, [start + name for name in names], **hub) / subfolder


@contextlib.contextmanager
def opened_weights(folder: pathlib.Path, part: str) -> Iterator[safe_open[torch.Tensor]]:
    """Context that opens the ``.vqm`` of a folder: ``part``.vqm, its shards, or the only one there.

    Raises:
        FileNotFoundError: There is none, or there are several.
        VqmError: It is refused.
    """
    path = folder / f"{part}.vqm"
    if not path.is_file() and isinstance(index := index_of(path), pathlib.Path):
        path = index
    elif not path.is_file():
        found = sorted(folder.glob("*.vqm"))
        if len(found) != 1:
            names = ", ".join(repr(each.name) for each in found[:8]) or "none"
            raise FileNotFoundError(f"{str(folder)!r} has no {path.name!r} ({names} of that suffix); vqm convert FOLDER"
                                    " -o NEW_FOLDER makes such a folder of one with other weights")  # fmt: skip
        path = found[0]
    with safe_open(path, framework="pt") as file:
        yield file

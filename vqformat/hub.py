"""Files and repositories of the Hugging Face Hub: ``hf://`` paths, and repositories in the local cache."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import Any, BinaryIO, TypeGuard

from .errors import missing_package

_PREFIX = "hf://"


def is_hub_path(path: object) -> TypeGuard[str]:
    """Whether this is a path such as ``hf://owner/name/model.vqm`` or ``hf://owner/name@revision/model.vqm``."""
    return isinstance(path, str) and path.startswith(_PREFIX)


def open_hub_file(path: str, *, in_order: bool) -> BinaryIO:
    """Open a file of the Hub.

    Args:
        in_order: Whether it is read from its beginning to its end, by one request. Otherwise each read is a request,
            and nothing is read ahead: ``RandomInput`` reads large parts.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: There is no such file, or it cannot be reached.
    """
    files = _package().HfFileSystem()
    how = {"block_size": 0} if in_order else {"cache_type": "none"}
    stream: BinaryIO = files.open(path, "rb", **how)
    return stream


def is_hub_file(path: str) -> bool:
    """Whether there is such a file on the Hub, which one small request asks."""
    return bool(_package().HfFileSystem().isfile(path))


def local_folder(source: str | os.PathLike[str], patterns: Iterable[str], **options: Any) -> pathlib.Path:
    """A folder, or that of a repository in the local cache, with the files that are needed of it.

    Args:
        source: Path of a folder, or the name of a repository: ``owner/name`` or ``hf://owner/name``.
        patterns: The files that are fetched of a repository.
        options: Keyword arguments of ``huggingface_hub.snapshot_download``, such as ``revision`` and ``cache_dir``.

    Raises:
        ImportError: It is no folder, and huggingface_hub is not installed.
        OSError: There is no such repository, or it cannot be reached.
    """
    if not is_hub_path(source) and os.path.isdir(source):
        return pathlib.Path(source)
    name = os.fspath(source).removeprefix(_PREFIX)
    return pathlib.Path(_package().snapshot_download(name, allow_patterns=list(patterns), **options))


def _package() -> ModuleType:
    try:
        return import_module("huggingface_hub")
    except ImportError as err:
        raise missing_package("the Hugging Face Hub needs", "huggingface_hub", err) from err

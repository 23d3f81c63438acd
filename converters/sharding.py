"""The index of a sharded model, as the libraries of Hugging Face write it: which shard has which tensor."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vqformat.errors import ConversionError

from .detect import read_json
from .model_folder import check_regular, inside


def read_shards(index: Path) -> dict[str, set[str]]:
    """For each shard the names of its tensors. Shards are in the order of their names.

    Raises:
        ConversionError: A shard is missing, or is no file in the folder of the index or below it.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ConversionError(f"{str(index)!r} is no index of a sharded model: it has no weight_map")
    paths: dict[str, str] = {}  # place in the index -> path, which is the same for "a" and "./a"
    for place in places.values():
        if not isinstance(place, str) or place not in paths:
            inside(index, place, f"{str(index)!r} names the shard")
            paths[place] = posixpath.normpath(place)
    shards: dict[str, set[str]] = {shard: set() for shard in present_shards(index, set(paths.values()))}
    for name, place in places.items():
        shards[paths[place]].add(name)
    return shards


def check_shard(index: Path, shard: str, placed: set[str], found: Iterable[str], notes: list[str]) -> None:
    """Compare the tensors of a shard with the index.

    Args:
        placed: Names of the tensors that the index places in the shard.
        found: Names of the tensors in the shard.
        notes: A line is appended for each further tensor, which is left out.

    Raises:
        ConversionError: A tensor is missing.
    """
    found = list(found)
    lost = placed.difference(found)
    if lost:
        raise ConversionError(f"{str(index)!r} says that {shard!r} has tensor {min(lost)!r}, but it is missing there")
    notes.extend(f"left out {name!r} of {shard!r}: the index does not place it there"
                 for name in found if name not in placed)  # fmt: skip


def shard_name(index: Path, shard: Any) -> str:
    """The name of a shard, checked to be that of a file beside the index.

    Raises:
        ConversionError: It is not.
    """
    where = f"{str(index)!r} names the shard"
    inside(index, shard, where)
    if "/" in shard:
        raise ConversionError(f"{where} {shard[:100]!r}; a plain file name is allowed")
    return str(shard)


def present_shards(index: Path, shards: Iterable[str]) -> list[str]:
    """The shards in the order of their names.

    Raises:
        ConversionError: One does not exist, or is no regular file.
    """
    ordered = sorted(shards)
    absent = []
    for shard in ordered:
        try:
            check_regular(index.parent / shard)
        except (FileNotFoundError, NotADirectoryError):
            absent.append(shard)
    if absent:
        raise ConversionError(f"{str(index)!r} names shards that are not beside it: {', '.join(map(repr, absent))}")
    return ordered

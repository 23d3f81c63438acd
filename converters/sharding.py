"""The index of a sharded model, as the libraries of Hugging Face write it: which shard has which tensor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vqformat.errors import ConversionError

from .detect import read_json

_MAX_NAME_NBYTES = 255  # of a file, in most file systems


def read_shards(index: Path) -> dict[str, set[str]]:
    """For each shard the names of its tensors. Shards are in the order of their names.

    Raises:
        ConversionError: A shard is missing, or is not the name of a file beside the index.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ConversionError(f"{str(index)!r} is no index of a sharded model: it has no weight_map")
    shards: dict[str, set[str]] = {}
    for shard in present_shards(index, {shard_name(index, place) for place in places.values()}):
        shards[shard] = set()
    for name, shard in places.items():
        shards[shard].add(name)
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
    is_name = isinstance(shard, str) and 0 < len(shard.encode(errors="replace")) <= _MAX_NAME_NBYTES
    if not is_name or shard in (".", "..") or set(shard) & set("/\\:\0"):
        raise ConversionError(f"{str(index)!r} names the shard {str(shard)[:100]!r}; a plain file name is allowed")
    assert isinstance(shard, str)
    return shard


def present_shards(index: Path, shards: Iterable[str]) -> list[str]:
    """The shards in the order of their names.

    Raises:
        ConversionError: One does not exist.
    """
    ordered = sorted(shards)
    absent = [shard for shard in ordered if not (index.parent / shard).is_file()]
    if absent:
        raise ConversionError(f"{str(index)!r} names shards that are not beside it: {', '.join(map(repr, absent))}")
    return ordered

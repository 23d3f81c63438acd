"""Models in several files beside an index, as Hugging Face's libraries write them: which shard has which tensor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vqformat.errors import ConversionError

from .detect import read_json

_MAX_NAME_NBYTES = 255  # of a file, in most file systems


def read_shards(index: Path) -> dict[str, set[str]]:
    """The names of the tensors in each shard, shards in order of their names; each is a file beside the index.

    Raises:
        ConversionError: A shard is missing, or would lie elsewhere.
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
    """Compare the tensors that an index places in a shard with those found there; a note for each that is too many.

    Raises:
        ConversionError: One is not there.
    """
    found = list(found)
    lost = placed.difference(found)
    if lost:
        raise ConversionError(f"{str(index)!r} says that {shard!r} has tensor {min(lost)!r}, but it has not")
    notes.extend(f"left out {name!r} of {shard!r}: the index does not place it there"
                 for name in found if name not in placed)  # fmt: skip


def shard_name(index: Path, shard: Any) -> str:
    """A shard's name, if it is that of a file beside the index.

    Raises:
        ConversionError: It would lie elsewhere.
    """
    is_name = isinstance(shard, str) and 0 < len(shard.encode(errors="replace")) <= _MAX_NAME_NBYTES
    if not is_name or shard in (".", "..") or set(shard) & set("/\\:\0"):
        raise ConversionError(f"{str(index)!r} names the shard {str(shard)[:100]!r}; a plain file name is allowed")
    assert isinstance(shard, str)
    return shard


def present_shards(index: Path, shards: Iterable[str]) -> list[str]:
    """The shards in order of their names.

    Raises:
        ConversionError: One is missing.
    """
    ordered = sorted(shards)
    absent = [shard for shard in ordered if not (index.parent / shard).is_file()]
    if absent:
        raise ConversionError(f"{str(index)!r} names shards that are not beside it: {', '.join(map(repr, absent))}")
    return ordered

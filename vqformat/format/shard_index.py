"""The index of a model in several files, as the libraries of Hugging Face have it: which shard has which tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError, LimitError
from .limits import MAX_TENSORS

INDEX_SUFFIX = ".vqm.index.json"
MAX_INDEX_JSON_NBYTES = 100_000_000

_SHARD = re.compile(r"([^/\\:\0]{1,200})-(\d{5,9})-of-(\d{5,9})\.vqm")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def shard_name(stem: str, number: int, n_shards: int) -> str:
    """The name of a shard, counted from 1."""
    return f"{stem}-{number:05d}-of-{n_shards:05d}.vqm"


def is_shard_of(stem: str, name: str) -> bool:
    """Whether a file has the name of a shard of a model, of any number of shards."""
    match = _SHARD.fullmatch(name)
    return match is not None and match[1] == stem


@dataclass(frozen=True)
class ShardIndex:
    """Which shard has which tensor.

    Attributes:
        shards: Names of the files, in order.
        digests: For each the SHA-256 of its bytes before its own index, so that shards of another model are noticed.
        places: For each tensor the position of its shard in ``shards``. The order is that of the model.
        total_nbytes: Bytes of all tensors, decoded.
    """

    shards: tuple[str, ...]
    digests: tuple[bytes, ...]
    places: Mapping[str, int]
    total_nbytes: int

    def pack(self) -> bytes:
        """The bytes of the file."""
        digests = {name: digest.hex() for name, digest in zip(self.shards, self.digests, strict=True)}
        document = {"metadata": {"total_size": self.total_nbytes, "digests": digests},
                    "weight_map": {name: self.shards[at] for name, at in self.places.items()}}  # fmt: skip
        return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def parse(cls, text: bytes, label: str) -> ShardIndex:
        """Parse and check the bytes of the file.

        Args:
            label: Its name, for error texts.

        Raises:
            FormatError: It is no such index.
        """
        if len(text) > MAX_INDEX_JSON_NBYTES:
            raise LimitError(f"{label!r} has more than {MAX_INDEX_JSON_NBYTES:,} bytes")
        try:
            document = json.loads(text, object_pairs_hook=_without_doubles)
        except RecursionError as err:
            raise FormatError(f"{label!r} is no index of shards: its JSON is nested too deeply") from err
        except ValueError as err:  # no UTF-8, no JSON, or a number that is too long
            raise FormatError(f"{label!r} is no index of shards: {' '.join(str(err).split())[:200]}") from err
        weight_map, metadata = _map(document, "weight_map", label), _map(document, "metadata", label)
        if not weight_map:
            raise FormatError(f"{label!r} is no index of shards: its weight_map has no tensor")
        if len(weight_map) > MAX_TENSORS:
            raise LimitError(f"{label!r} has {len(weight_map)} tensors; at most {MAX_TENSORS} are allowed",
                             clause="LIM-001")  # fmt: skip
        shards = _shards(weight_map, label)
        digests = _map(metadata, "digests", label)
        for name in shards:
            digest = digests.get(name)
            if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
                raise FormatError(f"{label!r} has no digest of {name!r}: a SHA-256 in 64 lower-case hexadecimal digits")
        positions = {name: at for at, name in enumerate(shards)}
        total = metadata.get("total_size")
        return cls(tuple(shards), tuple(bytes.fromhex(digests[name]) for name in shards),
                   {name: positions[shard] for name, shard in weight_map.items()},
                   total if isinstance(total, int) else 0)  # fmt: skip


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{name[:100]!r} is there twice")
    return found


def _map(document: Any, key: str, label: str) -> dict[str, Any]:
    found = document.get(key) if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise FormatError(f"{label!r} is no index of shards: it has no map {key!r}")
    return found


def _shards(weight_map: dict[str, Any], label: str) -> Sequence[str]:
    """The names of the shards, in order, checked to be those of one complete set."""
    numbers: dict[int, str] = {}
    sets: set[tuple[str, int]] = set()
    for tensor, shard in weight_map.items():
        match = _SHARD.fullmatch(shard) if isinstance(shard, str) else None
        if match is None:
            raise FormatError(f"{label!r}: tensor {tensor[:100]!r} is in {str(shard)[:100]!r}; names such as"
                              " 'model-00001-of-00002.vqm' beside the index are allowed")  # fmt: skip
        if numbers.setdefault(int(match[2]), shard) != shard:
            raise FormatError(f"{label!r}: tensor {tensor[:100]!r} is in {shard!r}, others are in"
                              f" {numbers[int(match[2])]!r} of the same number")  # fmt: skip
        sets.add((match[1], int(match[3])))
        if len(sets) > 1:
            raise FormatError(f"{label!r}: tensor {tensor[:100]!r} is in {shard!r}, which is of another set than"
                              f" {next(iter(numbers.values()))!r}")  # fmt: skip
    ((stem, n_shards),) = sets
    strange = [shard for number, shard in numbers.items() if not 0 < number <= n_shards]
    if strange:
        raise FormatError(f"{label!r} names the shard {strange[0]!r}, whose number is not from 1 to {n_shards}")
    if len(numbers) < n_shards:
        first = next(number for number in range(1, n_shards + 1) if number not in numbers)
        raise FormatError(f"{label!r} names {len(numbers)} of {n_shards} shards; it has no tensor in"
                          f" {shard_name(stem, first, n_shards)!r}")  # fmt: skip
    return [numbers[number] for number in range(1, n_shards + 1)]

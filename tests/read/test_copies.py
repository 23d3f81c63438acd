"""Copies, which are stored as aliases and are tensors of their own (CPY-001, CPY-002)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import weights
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import vqformat
from vqformat import LimitError
from vqformat.format.chunkwriter import ChunkWriter, EncodedTensor
from vqformat.format.records import AliasRecord, TensorRecord
from vqformat.format.sections import Section
from vqformat.format.stages import RawStage
from vqformat.read.indexed import IndexedReader
from vqformat.read.recovery import write_whole
from vqformat.read.survey import survey

VALID = Path(__file__).resolve().parents[2] / "fixtures" / "valid"
W = weights(100, 100)


def with_copies() -> bytes:
    """Two layers: a tensor, a copy, a tied name of it; then a tied name of the copy, and a second copy."""
    stream = io.BytesIO()
    with vqformat.writer(stream, ratio=1.05) as writer:
        again = W.copy()
        writer.add_layer("one", {"a": W, "b": again, "a.tied": W})
        writer.add_alias("b.tied", "b")
        writer.add_layer("three", {"c": W.copy(), "d": weights(4)})
    return stream.getvalue()


def groups(tensors: dict[str, Any]) -> list[set[str]]:
    """The names of each array."""
    found: dict[int, set[str]] = {}
    for name, array in tensors.items():
        found.setdefault(id(array), set()).add(name)
    return list(found.values())


GROUPS = [{"a", "a.tied"}, {"b", "b.tied"}, {"c"}, {"d"}]


def test_loading_gives_an_array_for_each_copy() -> None:
    assert groups(vqformat.load(with_copies())) == GROUPS


def test_a_stream_tells_which_aliases_are_copies() -> None:
    layers = list(vqformat.stream(io.BytesIO(with_copies())))

    assert [dict(layer.aliases) for layer in layers] == [{"b": "a", "a.tied": "a"}, {"b.tied": "b"}, {"c": "a"}]
    assert [layer.copies for layer in layers] == [{"b"}, set(), {"c"}]


def test_an_open_file_tells_copies_and_decodes_them() -> None:
    with vqformat.safe_open(io.BytesIO(with_copies())) as file:
        assert [file.info(name).method for name in ("b", "a.tied", "b.tied", "c")] == [
            "copy of a", "alias of a", "alias of b", "copy of a"]  # fmt: skip
        assert file.info("b").stored_nbytes == 0
        first, second = file["b"], file["b"]
        part = np.empty_like(W)
        file.get_slice("c").decode_into(part)
    first[:] = 0
    assert np.array_equal(second, part) and np.array_equal(part, vqformat.load(with_copies())["a"])


def test_only_a_copy_counts_against_a_budget() -> None:
    data = with_copies()
    total = 3 * W.nbytes + 4 * 4

    vqformat.load(data, max_total_bytes=total)
    with pytest.raises(LimitError, match="'c'"):
        vqformat.load(data, max_total_bytes=total - 1)


def test_a_truncated_file_gives_the_copies_of_what_is_whole() -> None:
    data = with_copies()

    for n in range(len(data) - 700, len(data), 7):
        with pytest.warns(UserWarning, match="ends early"):
            found = vqformat.load(data[:n], allow_partial=True)
        assert groups(found) == [group & set(found) for group in GROUPS if group & set(found)]


def test_recovery_keeps_copies(tmp_path: Path) -> None:
    data = bytearray(with_copies())
    data[-100] ^= 1  # in the index
    write_whole([(survey(io.BytesIO(data)), io.BytesIO(data))], tmp_path / "b.vqm", overwrite=False)

    assert groups(vqformat.load_file(tmp_path / "b.vqm")) == GROUPS


def test_a_fixture_has_a_copy_and_a_tied_name_of_it() -> None:
    long = "f" * 80

    loaded = vqformat.load_file(VALID / "copies.vqm")

    assert groups(loaded) == [{"first", "c"}, {"b", "e"}, {"scalar"}, {"d"}, {long}]


@given(st.data())
@examples(50)
def test_all_readers_agree_on_which_aliases_are_copies(data: st.DataObject) -> None:
    stream, names = io.BytesIO(), ["a", "b"]
    holders: dict[str, str] = {}
    raw = [EncodedTensor(TensorRecord(name, "u8", (1,), stages=(RawStage(),)), [Section(b"1", False)])
           for name in names]  # fmt: skip
    with ChunkWriter(stream) as writer:
        writer.add_layer("", raw)
        for layer in data.draw(st.lists(st.integers(0, 3), max_size=4)):
            aliases = [AliasRecord(f"{len(names) + i}", data.draw(st.sampled_from("ab"))) for i in range(layer)]
            names += [alias.name for alias in aliases]
            said = {alias.name: data.draw(st.sampled_from(names)) for alias in aliases if data.draw(st.booleans())}
            if aliases:
                writer.add_layer("", aliases, said)
            holders |= said

    loaded = vqformat.load(stream.getvalue())

    stream.seek(0)
    found = survey(stream)
    found_holders = IndexedReader(stream).holders
    assert found.holders == found_holders and found_holders.keys() == holders.keys()
    for name, holder in found_holders.items():
        is_own = holder == name
        assert is_own == (id(loaded[name]) not in {id(loaded[other]) for other in names[: names.index(name)]})
        assert is_own or loaded[name] is loaded[holder]
        assert loaded[name].tolist() == [ord("1")]


# CPY-001
def test_what_a_copy_chunk_should_not_say_is_ignored() -> None:
    expected = {"first": None, "b": "first", "scalar": None, "s": "scalar", **dict.fromkeys("cde", "first")}
    copies = dict.fromkeys("fghi", "first")

    with vqformat.safe_open(VALID / "copies-ignored.vqm") as file:
        found = {name: file.info(name) for name in file}
    layers = list(vqformat.stream(VALID / "copies-ignored.vqm"))

    assert {name: info.copy_of for name, info in found.items() if info.copy_of} == copies
    assert {name: info.alias_of for name, info in found.items() if name in expected} == expected
    assert set().union(*(layer.copies for layer in layers)) == set(copies)
    assert vqformat.load_file(VALID / "copies-ignored.vqm")["f"].tolist() == [1, 2, 3, 4]

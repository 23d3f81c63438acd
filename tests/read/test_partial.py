"""Files that end early: the tensors that are whole, by load and by stream (REA-005)."""

from __future__ import annotations

import io
import warnings

import pytest
from arrays import same, weights
from streamed_files import layers, written

import vqformat
from vqformat import TruncatedError, VqmError, safe_open, stream


def tiny() -> bytes:
    model = {"a.weight": weights(12, 10), "a.bias": weights(12), "b.weight": weights(20, 16), "b.tied": weights(4),
             "c.weight": weights(30, 9)}  # fmt: skip
    return written(model, preset="small")


def test_a_file_cut_anywhere_gives_the_tensors_that_are_whole() -> None:
    """And says that it is cut (REA-005)."""
    data = tiny()
    expected = vqformat.load(data)
    ends = {}  # of the tensors, in the file
    with safe_open(io.BytesIO(data)) as file:
        for name in expected:
            record, layer, first = file._reader._locate(file._reader.entry(name))
            ends[name] = layer.spans[first + record.n_sections() - 1][1]
    for n in range(0, len(data), 3):
        whole = [name for name, end in ends.items() if end <= n]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = vqformat.load(data[:n], allow_partial=True)
            except TruncatedError:  # not even the metadata
                assert n < data.index(b"LAYR")
                continue
        assert [str(w.message) for w in caught] == [
            f"the file ends early, at byte {n}: {len(whole)} tensors of it are whole"
        ]
        assert list(found) == whole
        assert all(same(found[name], expected[name]) for name in whole)


def test_a_stream_cut_anywhere_gives_the_tensors_that_are_whole() -> None:
    data = tiny()
    expected = vqformat.load(data)
    for n in range(len(data) // 4, len(data), 7):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = {name: layer[name] for layer in stream(io.BytesIO(data[:n]), allow_partial=True)
                     for name in layer}  # fmt: skip
        assert [str(w.message) for w in caught] == [f"the file ends early, at byte {n}"]
        assert list(found) == list(expected)[: len(found)]
        assert all(same(found[name], expected[name]) for name in found)
        with pytest.raises(TruncatedError):
            for _ in stream(io.BytesIO(data[:n])):
                pass


def test_aliases_of_what_is_whole_are_there() -> None:
    data = written(layers())
    with safe_open(io.BytesIO(data)) as file:
        cut = data[: file._reader.index.span(file._reader.index.n_chunks - 1)[0]]  # without head.none

    with pytest.warns(UserWarning, match="6 tensors of it are whole"):
        found = vqformat.load(cut, allow_partial=True)

    assert found["head.weight"] is found["embed.weight"]


def test_a_file_that_is_damaged_is_refused_though_it_may_be_cut() -> None:
    data = tiny()
    whole = vqformat.load(data)
    for n in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[n] ^= 0x10
        with pytest.raises(VqmError):
            vqformat.load(bytes(damaged), allow_partial=True)
    assert list(vqformat.load(data, allow_partial=True)) == list(whole)  # without a warning

"""Parts of tensors: what NumPy would give, and no more blocks decoded than it takes."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
import pytest
from arrays import put_together, same, weights
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import vqformat
from vqformat import LimitError, safe_open, stream
from vqformat.decode.codebook import CodebookDecoder
from vqformat.decode.tensor import TensorDecoder
from vqformat.encode.methods import assemble
from vqformat.encode.small import small

PRESETS = ("fast", "default", "small")

CODED = {
    "fast": ({"preset": "fast"}, np.float32), "default": ({}, np.float32), "small": ({"preset": "small"}, np.float32),
    "lossless": ({"lossless": True}, np.float32), "pq": ({"recipe": "pq:dim=4,entries=16"}, np.float32),
    "by columns": ({"recipe": "pq:dim=2,entries=16,axis=columns"}, np.float32),
    "rq": ({"recipe": "rq:dim=4,entries=16,stages=2"}, np.float32),
    "svd": ({"recipe": "svd:rank=3+kmeans:entries=4"}, np.float32), "binary": ({"recipe": "binary"}, np.float32),
    "float16": ({"preset": "small"}, np.float16), "float64": ({}, np.float64), "int32": ({}, np.int32),
    "complex": ({}, np.complex64), "complex raw": ({"lossless": True}, np.complex64),
    "complex small": ({"preset": "small"}, np.complex64), "bool": ({}, np.bool_),
}  # fmt: skip
SHAPES = [(40, 64), (64, 40), (12, 6, 4, 4), (7, 300), (300, 7), (5000,), (3, 1, 50)]


def coded(case: str, shape: tuple[int, ...]) -> bytes:
    options, dtype = CODED[case]
    array = weights(*shape) * 10
    if np.dtype(dtype).kind == "c":
        array = array + 1j * weights(*shape, seed=1)  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:  # blocks so small that the tensor has several
        patch.setattr(assemble, "BLOCK_ELEMENTS", 1 << 9)
        patch.setattr(small, "BLOCK_ELEMENTS", 1 << 9)
        patch.setattr(small, "_MOST_BLOCK_ELEMENTS", 1 << 10)
        return vqformat.save({"x": array.astype(dtype)}, **options)


@pytest.mark.parametrize("case", CODED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_and_decode_into_give_the_whole(case: str, shape: tuple[int, ...]) -> None:
    data = coded(case, shape)
    expected = vqformat.load(data)["x"]

    with safe_open(io.BytesIO(data)) as file:
        part = file.get_slice("x")
        assert same(put_together(shape, expected.dtype, part.blocks()), expected)
        out = np.empty(shape, expected.dtype)
        part.decode_into(out)
    assert same(out, expected)
    tensor = next(next(stream(io.BytesIO(data))).tensors())
    assert same(put_together(shape, expected.dtype, tensor.blocks()), expected)


FILES = [(case, shape) for shape in SHAPES
         for case in ("fast", "default", "small", "by columns", "svd", "complex small", "lossless")]  # fmt: skip


@cache
def file_and_values(case: str, shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
    data = coded(case, shape)
    return data, vqformat.load(data)["x"]


def indices(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Whatever NumPy takes as an index of an array of a shape."""
    mixed = st.tuples(*(st.slices(size) | st.integers(-size, size - 1) | st.just(slice(None)) for size in shape))
    some = st.integers(-shape[0], shape[0] - 1)
    return (
        hnp.basic_indices(shape, allow_newaxis=True)
        | mixed
        | hnp.integer_array_indices(shape)
        | hnp.arrays(np.bool_, shape[:1])
        | hnp.arrays(np.bool_, shape)
        | st.lists(some, max_size=5)
        | st.tuples(st.lists(some, max_size=5), st.just(...))
    )


@given(st.data())
@examples(400)
def test_any_index_gives_what_numpy_gives(data: st.DataObject) -> None:
    file, expected = file_and_values(*data.draw(st.sampled_from(FILES)))
    index = data.draw(indices(expected.shape))
    if isinstance(index, tuple) and not any(item is ... for item in index):
        at = data.draw(st.integers(0, len(index)))
        index = data.draw(st.sampled_from([index, (*index[:at], ..., *index[at:])]))

    with safe_open(io.BytesIO(file)) as f:
        found = f.get_slice("x")[index]

    assert same(np.asarray(found), np.asarray(expected[index]))


def test_an_ellipsis_for_no_axis_keeps_arrays_apart() -> None:
    file, expected = file_and_values("default", (3, 1, 50))
    index = (slice(None), [0, 0], ..., [1, 2])

    with safe_open(io.BytesIO(file)) as f:
        assert same(f.get_slice("x")[index], expected[index])


@pytest.mark.parametrize("index", [40, -41, (0, 64), (0, 0, 0), (..., ...), [0, 40], np.ones((41,), bool),
                                   np.ones((40, 63), bool)], ids=str)  # fmt: skip
def test_positions_that_are_not_there_are_index_errors(index: Any) -> None:
    file, expected = file_and_values("default", (40, 64))
    with pytest.raises(IndexError):
        expected[index]

    with safe_open(io.BytesIO(file)) as f, pytest.raises(IndexError):
        f.get_slice("x")[index]


@pytest.mark.parametrize("index", ["x", 1.5, {}, [1.5]], ids=str)
def test_what_is_no_index_is_refused(index: Any) -> None:
    with safe_open(io.BytesIO(file_and_values("default", (40, 64))[0])) as f, pytest.raises((TypeError, IndexError)):
        f.get_slice("x")[index]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each block that is decoded."""
    rows: list[int] = []
    fill, decode_run = TensorDecoder._fill, CodebookDecoder.decode_run

    def counted(self: TensorDecoder, block: Any, of_stages: Any, out: Any) -> None:
        rows.append(block.n_rows)
        fill(self, block, of_stages, out)

    def counted_run(self: CodebookDecoder, blocks: Any, payloads: Any, out: Any) -> bool:
        rows.extend(block.n_rows for block in blocks)
        return decode_run(self, blocks, payloads, out)

    monkeypatch.setattr(TensorDecoder, "_fill", counted)
    monkeypatch.setattr(CodebookDecoder, "decode_run", counted_run)
    return rows


@pytest.fixture(scope="module")
def tables() -> dict[str, bytes]:
    """Files of a large embedding."""
    table = weights(40_000, 64)
    return {preset: vqformat.save({"embed.weight": table}, preset=preset) for preset in PRESETS}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("rows", [(0, 1), (39_999, 40_000), (5000, 5100), (100, 20_000)], ids=str)
def test_rows_of_an_embedding_decode_two_blocks_more_than_they_fill(
    tables: dict[str, bytes], preset: str, rows: tuple[int, int], decoded: list[int]
) -> None:
    with safe_open(io.BytesIO(tables[preset])) as file:
        found = file.get_slice("embed.weight")[slice(*rows)]
        n_decoded = len(decoded)
        block_rows = max(decoded)
        expected = file["embed.weight"][slice(*rows)]
    n_blocks = len(decoded) - n_decoded

    assert same(found, expected)
    assert n_blocks >= 8
    assert n_decoded <= -(-(rows[1] - rows[0]) // block_rows) + 2


@pytest.mark.parametrize("preset", PRESETS)
def test_single_rows_anywhere_decode_a_block_each(
    tables: dict[str, bytes], preset: str, decoded: list[int]
) -> None:
    with safe_open(io.BytesIO(tables[preset])) as file:
        file.get_slice("embed.weight")[[39_000, 3, 4]]

    assert len(decoded) == 2


def test_max_tensor_bytes_is_for_the_part(tables: dict[str, bytes]) -> None:
    with safe_open(io.BytesIO(tables["default"]), max_tensor_bytes=100 * 64 * 4) as file:
        part = file.get_slice("embed.weight")
        assert part[:100].shape == (100, 64)
        with pytest.raises(LimitError, match="max_tensor_bytes"):
            part[:101]


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((64, 40), np.float32), ValueError, r"shape \(40, 64\) and dtype float32, the array has \(64, 40\)"),
        (np.empty((40, 64), np.float64), ValueError, "dtype float32, the array has .* float64"),
        (np.empty((64, 40), np.float32).T, ValueError, "C-contiguous"),
        (np.frombuffer(bytes(40 * 64 * 4), np.float32).reshape(40, 64), ValueError, "writable"),
        ([0.0], TypeError, "expected an array, not a list"),
    ],
)
def test_decode_into_says_what_it_wants(out: Any, error: type[Exception], message: str) -> None:
    with safe_open(io.BytesIO(file_and_values("default", (40, 64))[0])) as file, pytest.raises(error, match=message):
        file.get_slice("x").decode_into(out)


def test_decode_into_a_torch_tensor() -> None:
    torch = pytest.importorskip("torch")
    data, expected = file_and_values("default", (40, 64))
    out = torch.empty(40, 64)

    with safe_open(io.BytesIO(data)) as file:
        file.get_slice("x").decode_into(out)
        with pytest.raises(ValueError, match="a contiguous tensor on the CPU"):
            file.get_slice("x").decode_into(torch.empty(40, 64, device="meta"))

    assert same(out.numpy(), expected)


def test_decode_into_is_seen_in_the_torch_tensor_or_refused() -> None:
    torch = pytest.importorskip("torch")
    data = vqformat.save({"mask": np.ones((4, 4), bool), "pairs": np.ones(3, np.complex64)}, lossless=True)
    mask, pairs = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(3, dtype=torch.complex64)

    with safe_open(io.BytesIO(data)) as file:
        file.get_slice("mask").decode_into(mask)
        file.get_slice("pairs").decode_into(pairs)
        with pytest.raises(ValueError, match="packed, conjugate or negative"):
            file.get_slice("pairs").decode_into(pairs.conj())

    assert mask.all()
    assert (pairs == 1).all()


def test_max_tensor_bytes_is_for_blocks_that_are_a_whole_tensor() -> None:
    data = vqformat.save({"x": np.ones((50, 50), np.complex64)})

    with safe_open(io.BytesIO(data), max_tensor_bytes=1000) as file, pytest.raises(LimitError):
        list(file.get_slice("x").blocks())


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_of_a_tensor_whose_rows_are_sorted(preset: str) -> None:
    scales = np.exp(weights(64))
    data = vqformat.save({"x": weights(64, 90) * scales[:, None]}, preset=preset)
    expected = vqformat.load(data)["x"]

    with safe_open(io.BytesIO(data)) as file:
        part = file.get_slice("x")
        for index in (slice(0, 0), [], (slice(None), []), np.zeros(64, bool), False):
            assert same(part[index], expected[index])
        assert same(part[True], expected[True])

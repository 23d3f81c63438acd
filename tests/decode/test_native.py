"""Kernels in C against their twins in NumPy: the same values and the same refusals, with every instruction set."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vqmbuilder import File, file, layr, section
from vqmtensors import Codebook, Layout, LowRank, Scale, tensor
from vqmtrellis import Freq, Trellis

import vqformat
from vqformat import VqmError, native
from vqformat.native import decoding
from vqformat.native.crc import crc32

KERNELS = [name for name in native.available() if name != "numpy"]
needs_kernels = pytest.mark.skipif(not KERNELS, reason="the kernels were not built: there was no compiler")


@pytest.fixture(autouse=True)
def same_backend_afterwards() -> Iterator[None]:
    before = native.backend()
    yield
    native.use(before)


def load(backend: str, data: bytes, **options: Any) -> dict[str, np.ndarray] | str:
    """The tensors, or the class of the refusal."""
    native.use(backend)
    try:
        return vqformat.load_file(io.BytesIO(data), **options)
    except VqmError as err:
        return err.error_class


def check_all_agree(data: bytes) -> dict[str, np.ndarray] | str:
    expected = load("numpy", data)
    for backend in KERNELS:
        found = load(backend, data)
        if isinstance(expected, str) or isinstance(found, str):
            assert found == expected, backend
        else:
            assert {name: array.tobytes() for name, array in found.items()} == {
                name: array.tobytes() for name, array in expected.items()
            }, backend
    return expected


@st.composite
def files(draw: st.DrawFn) -> File:
    """A file with a trellis stage of any shape, tile, precision, trellis and classes."""
    rows, columns = draw(st.integers(1, 30)), draw(st.integers(1, 40))
    block_rows = draw(st.sampled_from([0, *range(1, rows)]))
    height, width = draw(st.integers(1, block_rows or rows)), draw(st.integers(1, columns))
    trellis = draw(st.sampled_from([None, (11, 4), (333, 242), (511, 511)]))
    entries, precision = draw(st.sampled_from([(1, 1), (3, 4), (7, 12), (128, 12), (129, 12), (200, 13), (600, 14)]))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.RandomState(seed)
    n_classes = draw(st.integers(0, 3))
    classes = {
        name: random.randint(0, n_classes + 1, n).tolist()
        for name, n in (("row_classes", rows), ("column_classes", columns)) if draw(st.booleans())
    }  # fmt: skip
    n_tables = (1 + n_classes * len(classes)) * (2 if trellis else 1)
    weights = random.randint(1, 256, (n_tables, entries)).astype(np.uint8)
    n_down, n_across = -(-(block_rows or rows) // height), -(-columns // width)
    if height * width > 64 * n_down * n_across:
        height = width = 1
    source: dict[str, Any] = {"step": 0.37, "zero": draw(st.integers(-3, 3))}
    if draw(st.booleans()):
        source = {"table": random.standard_normal((2 if trellis else 1, entries)).astype(np.float32)}
    scale = Scale(random.standard_normal(rows).astype(np.float32), rows=1) if rows > 1 and draw(st.booleans()) else None
    freq = Freq(precision, tuple(row.tobytes() for row in weights))
    stage = Trellis(random.randint(0, entries, (rows, columns)), freq, (height, width), trellis=trellis, scale=scale,
                    **source, **classes)  # fmt: skip
    layout = Layout(n_row_axes=1, block_rows=block_rows)
    return file(freq.chunk(), layr("", tensor("a", "f32", [rows, columns], stage, layout=layout)))


@needs_kernels
@given(files())
def test_kernels_decode_the_same_values(whole: File) -> None:
    assert not isinstance(check_all_agree(whole.build()), str)


# Entries, and planes of their codes
PACKINGS = [(1, ()), (5, ()), (16, ()), (200, ()), (256, ()), (300, ()), (3, ((3, 5),)), (11, ((11, 2),)),
            (20, ((5, 3), (4, 4))), (73, ((15, 2), (5, 3))), (700, ((9, 2), (9, 2), (9, 2)))]  # fmt: skip


def numbers(draw: st.DrawFn, random: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """Values with few significant bits, of a dtype that a table may have."""
    dtype = draw(st.sampled_from([np.float32, np.float16]))
    return random.standard_normal(shape).astype(np.float16).astype(dtype)


def scales(draw: st.DrawFn, random: np.random.RandomState, rows: int, columns: int) -> Scale | None:
    if not draw(st.booleans()):
        return None
    row_size = draw(st.integers(0, rows - 1))
    column_size = draw(st.integers(0, columns - 1))
    n_groups = (-(-rows // row_size) if row_size else 1) * (-(-columns // column_size) if column_size else 1)
    return Scale(numbers(draw, random, (n_groups,)), row_size, column_size)


def codebooks(draw: st.DrawFn, random: np.random.RandomState, rows: int, columns: int) -> Codebook:
    entries, planes = draw(st.sampled_from(PACKINGS))
    source = draw(st.sampled_from(["table", "steps"]))
    dim = draw(st.integers(1, min(columns, 5))) if source == "table" else 1
    n_subvectors = -(-columns // dim)
    book_rows, book_columns = draw(st.integers(0, rows - 1)), draw(st.integers(0, n_subvectors - 1))
    n_groups = (-(-rows // book_rows) if book_rows else 1) * (-(-n_subvectors // book_columns) if book_columns else 1)
    values: dict[str, Any] = {"table": numbers(draw, random, (n_groups, entries, dim))}
    if source == "steps":
        steps = random.standard_normal(n_groups).astype(np.float32)
        values = {"steps": steps, "zero": draw(st.integers(0, entries - 1)), "entries": entries}
    return Codebook(random.randint(0, entries, (rows, n_subvectors)), **values, book_rows=book_rows,
                    book_columns=book_columns, scale=scales(draw, random, rows, columns), planes=planes)  # fmt: skip


def low_ranks(draw: st.DrawFn, random: np.random.RandomState, rows: int, columns: int) -> LowRank:
    rank = draw(st.integers(1, min(rows, columns, 6)))
    size_r, size_c = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
    of_rows = numbers(draw, random, (-(-rows // size_r) if size_r else 1,))
    of_columns = numbers(draw, random, (-(-columns // size_c) if size_c else 1,))
    return LowRank(random.randint(0, 15, (rows, rank)), random.randint(0, 15, (rank, columns)), 15, 15, of_rows,
                   of_columns, size_r, size_c)  # fmt: skip


@st.composite
def sums(draw: st.DrawFn) -> File:
    """A file with a tensor of several stages, in any layout."""
    shape = tuple(draw(st.lists(st.integers(1, 20), min_size=1, max_size=3)))
    random = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
    permutations = [axes for axes in itertools.permutations(range(len(shape))) if axes != tuple(sorted(axes))]
    layout = Layout(draw(st.sampled_from([None, *permutations])), draw(st.integers(0, len(shape))))
    rows, columns = layout.view_shape(shape)
    order = draw(st.integers(0, 3))
    axes_of_view = ((1, "row_classes", rows), (2, "column_classes", columns))
    classes = {name: random.randint(0, 4, n).tolist() for bit, name, n in axes_of_view if order & bit}
    layout = replace(layout, order=order, block_rows=draw(st.integers(0, rows - 1)))
    stages: list[Any] = [draw(st.sampled_from([codebooks, low_ranks]))(draw, random, rows, columns)
                         for _ in range(draw(st.integers(1, 2)))]  # fmt: skip
    chunks = []
    if draw(st.booleans()):
        freq = Freq(6, (random.randint(1, 9, 7).astype(np.uint8).tobytes(),) * 2)
        chunks = [freq.chunk()]
        stages.append(Trellis(random.randint(0, 7, (rows, columns)), freq, (1, min(columns, 32)), step=0.25,
                              zero=3, trellis=(11, 4), scale=scales(draw, random, rows, 1)))  # fmt: skip
    dtype = draw(st.sampled_from(["f32", "f16", "f64"]))
    return file(*chunks, layr("", tensor("a", dtype, list(shape), *stages, layout=layout, **classes)))


@needs_kernels
@given(sums())
def test_kernels_add_and_place_the_same_values(whole: File) -> None:
    expected = check_all_agree(whole.build())
    assert not isinstance(expected, str), expected
    for backend in KERNELS:
        native.use(backend)
        with vqformat.safe_open(io.BytesIO(whole.build())) as opened:
            part = opened.get_slice("a")[1:]
            assert part.tobytes() == np.ascontiguousarray(expected["a"][1:]).tobytes()


@needs_kernels
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("tile", [(1, 50), (2, 50), (1, 18), (2, 18), (3, 50), (3, 18)], ids=str)
def test_kernels_put_columns_in_their_places(tile: tuple[int, int], adds: bool) -> None:
    """The rows of a column are beside each other in the tensor. Tiles may lack rows and columns."""
    random = np.random.RandomState(0)
    rows, columns = 90, 50
    freq = Freq(12, tuple(row.tobytes() for row in random.randint(1, 256, (2, 200)).astype(np.uint8)))
    scale = Scale(random.standard_normal(rows).astype(np.float32), rows=1) if adds else None
    trellis = Trellis(random.randint(0, 200, (rows, columns)), freq, tile, step=0.37, zero=100, trellis=(333, 242),
                      scale=scale)  # fmt: skip
    one = np.ones(1, np.float32)
    low_rank = LowRank(random.randint(0, 15, (rows, 3)), random.randint(0, 15, (3, columns)), 15, 15, one, one, 0, 0)
    layout = Layout((1, 0), 1, block_rows=37)
    stages = (low_rank, trellis) if adds else (trellis,)

    whole = file(freq.chunk(), layr("", tensor("a", "f32", [columns, rows], *stages, layout=layout)))

    found = check_all_agree(whole.build())

    assert not isinstance(found, str), found


@st.composite
def runs(draw: st.DrawFn) -> File:
    """A file with a tensor of blocks that follow each other in it, and a codebook stage."""
    rows, columns = draw(st.integers(2, 30)), draw(st.integers(1, 20))
    random = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
    layout = Layout(n_row_axes=1, block_rows=draw(st.integers(1, rows - 1)))
    return file(layr("", tensor("a", "f32", [rows, columns], codebooks(draw, random, rows, columns), layout=layout)))


@needs_kernels
@given(runs())
def test_kernels_decode_blocks_that_follow_each_other(whole: File) -> None:
    assert not isinstance(check_all_agree(whole.build()), str)


@needs_kernels
def test_blocks_that_follow_each_other_are_decoded_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, table = np.arange(35).reshape(7, 5), np.arange(35, dtype=np.float32)[None, :, None] - 8
    calls = []
    decode = decoding.decode_codebook
    monkeypatch.setattr(decoding, "decode_codebook", lambda *args, **more: calls.append(1) or decode(*args, **more))
    layout = Layout(n_row_axes=1, block_rows=2)

    item = tensor("a", "f32", [7, 5], Codebook(codes, table=table), layout=layout)
    found = load(KERNELS[-1], file(layr("", item)).build())

    assert not isinstance(found, str)
    assert np.array_equal(found["a"], codes - 8)
    assert calls == [1]


@needs_kernels
@given(st.one_of(files(), sums(), runs()), st.randoms(use_true_random=False))
def test_kernels_refuse_what_numpy_refuses(whole: File, random: Any) -> None:
    """Some bytes of a section are changed; its checksum is that of the changed bytes."""
    layer = whole.chunks[-1]
    at = random.choice([i for i, item in enumerate(layer.sections) if item.stored])
    payload = bytearray(layer.sections[at].stored)
    for _ in range(random.randint(1, 3)):
        payload[random.randrange(len(payload))] = random.randrange(256)
    changed = replace(layer, sections=(*layer.sections[:at], section(payload), *layer.sections[at + 1 :]))

    check_all_agree(replace(whole, chunks=(*whole.chunks[:-1], changed)).build())


@needs_kernels
@pytest.mark.parametrize(("rank", "has_kernel"), [(64, True), (65, False)])
def test_a_product_of_high_rank_is_left_to_numpy(rank: int, has_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.RandomState(0)
    u, v = random.randint(0, 15, (70, rank)), random.randint(0, 15, (rank, 66))
    calls = []
    decode = decoding.decode_low_rank
    monkeypatch.setattr(decoding, "decode_low_rank", lambda *args, **more: calls.append(1) or decode(*args, **more))
    stages = LowRank(u, v, 15, 15), LowRank(u[::-1], v, 15, 15)

    item = tensor("a", "f32", [70, 66], *stages, layout=Layout(None, 1))
    found = check_all_agree(file(layr("", item)).build())

    assert not isinstance(found, str)
    assert np.array_equal(found["a"], (u - 7 + u[::-1] - 7) @ (v - 7))
    assert bool(calls) == has_kernel


@needs_kernels
@pytest.mark.parametrize("is_progression", [True, False])
@pytest.mark.parametrize(("entries", "planes"), [
    (2, ()), (3, ()), (4, ()), (15, ()), (16, ()), (200, ()), (256, ()),
    (2, [(2, 8)]), (2, [(2, 7)]), (2, [(2, 3)]), (3, [(3, 5)]), (3, [(3, 2)]), (4, [(4, 4)]), (5, [(5, 3)]),
    (6, [(6, 3)]), (2, [(2, 5)]), (2, [(2, 6)]), (3, [(3, 4)]), (15, [(15, 2)]), (16, [(16, 2)]), (13, [(16, 2)]),
    (31, [(31, 1)]), (32, [(32, 1)]), (64, [(64, 1)]), (127, [(127, 1)]), (128, [(128, 1)]), (129, [(129, 1)]),
    (250, [(256, 1)]), (900, [(30, 1), (30, 1)]),
])  # fmt: skip
def test_all_codes_of_a_byte_are_decoded_together(
    entries: int, planes: list[tuple[int, int]], is_progression: bool
) -> None:
    random = np.random.RandomState(entries)

    def stage(rows: int, columns: int, scale: Scale | None = None) -> Codebook:
        values: dict[str, Any] = {"table": random.standard_normal((1, entries, 1)).astype(np.float32)}
        if is_progression:
            values = {"steps": np.array([-0.3], np.float32), "zero": entries // 2, "entries": entries}
        return Codebook(random.randint(0, entries, (rows, columns)), **values, scale=scale, planes=planes)

    of_rows = Scale(random.standard_normal(37).astype(np.float32), 1, 0)
    layout = Layout(n_row_axes=1)
    tensors = [tensor("one", "f32", [1, 1], stage(1, 1), layout=layout),
               tensor("rows", "f32", [29, 601], stage(29, 601), layout=layout),
               tensor("scaled", "f32", [37, 53], stage(37, 53, of_rows), layout=layout),
               tensor("sum", "f32", [37, 53], stage(37, 53), stage(37, 53, of_rows), layout=layout)]  # fmt: skip

    assert not isinstance(check_all_agree(file(layr("", *tensors)).build()), str)


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (50, 40), (64, 16), (33, 17)])
def test_transposed_values_are_placed_wherever_a_tensor_begins(shape: tuple[int, int]) -> None:
    values = np.random.RandomState(0).standard_normal(shape).astype(np.float32)
    n_rows, n_columns = shape
    places = decoding.Places(np.arange(n_rows), np.arange(n_columns) * n_rows, n_columns)
    memory = np.empty(values.size + 32, np.float32)
    for backend in KERNELS:
        native.use(backend)
        for start in range(17):
            memory[:] = -1
            out = memory[start : start + values.size]
            decoding.scatter(values, places.addresses((0, n_rows, 0, n_columns), out))
            assert np.array_equal(out.reshape(n_columns, n_rows), values.T)
            assert np.all(memory[:start] == -1) and np.all(memory[start + values.size :] == -1)


@needs_kernels
def test_threads_give_the_same_values() -> None:
    weights = np.random.RandomState(0).standard_normal((1200, 1000)).astype(np.float32)
    data = vqformat.save({"w": weights}, preset="small", step=0.5)

    one = check_all_agree(data)
    assert not isinstance(one, str)
    for backend in KERNELS:
        many = load(backend, data, threads=3)
        assert not isinstance(many, str)
        assert many["w"].tobytes() == one["w"].tobytes()


def test_the_environment_chooses_the_backend() -> None:
    def said(backend: str) -> tuple[int, str]:
        command = [sys.executable, "-c", "import vqformat; print(vqformat.backend())"]
        environment = {**os.environ, "VQFORMAT_BACKEND": backend}
        found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        return found.returncode, found.stdout.strip() or found.stderr.strip().splitlines()[-1]

    assert said("numpy") == (0, "numpy")
    assert said("") == (0, native.available()[-1])
    code, message = said("native-mmx")
    assert code == 1
    assert "native-mmx" in message and "numpy" in message


@given(st.binary(max_size=3000), st.integers(0, 2**32 - 1))
def test_the_crc_is_that_of_zlib(data: bytes, before: int) -> None:
    for backend in native.available():
        native.use(backend)
        assert crc32(data, before) == zlib.crc32(data, before)
        assert crc32(memoryview(data * 3)[1:]) == zlib.crc32((data * 3)[1:])

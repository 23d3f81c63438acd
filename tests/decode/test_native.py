"""Kernels in C against their twins in NumPy: the same values and the same refusals, with every instruction set."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vqmbuilder import File, file, layr, section
from vqmtensors import Layout, Scale, tensor
from vqmtrellis import Freq, Trellis

import vqformat
from vqformat import VqmError, native

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


@needs_kernels
@given(files(), st.randoms(use_true_random=False))
def test_kernels_refuse_what_numpy_refuses(whole: File, random: Any) -> None:
    """Some bytes of the last payload are changed; its checksum is that of the changed bytes."""
    layer = whole.chunks[-1]
    payload = bytearray(layer.sections[-1].stored)
    for _ in range(random.randint(1, 3)):
        payload[random.randrange(len(payload))] = random.randrange(256)
    changed = replace(layer, sections=(*layer.sections[:-1], section(payload)))

    check_all_agree(replace(whole, chunks=(*whole.chunks[:-1], changed)).build())


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

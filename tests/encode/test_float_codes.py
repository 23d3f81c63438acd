"""Lossless bfloat16 as floating-point codes (SPEC 9.3)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vqformat
from vqformat import native
from vqformat.encode.methods import float_codes
from vqformat.format.bits import pack
from vqformat.format.stages import CodebookStage

BF16 = np.dtype(ml_dtypes.bfloat16)


def weights(n: int) -> np.ndarray:
    return (0.02 * np.random.default_rng(1).standard_normal(n)).astype(BF16)


def saved(array: np.ndarray) -> bytes:
    """A file that gives every bit back. All backends make the same."""
    before = native.backend()
    files = set()
    for backend in native.available():
        native.use(backend)
        file = vqformat.save({"w": array}, lossless=True)
        files.add(file)
        assert vqformat.load(file)["w"].tobytes() == array.tobytes(), backend
    native.use(before)
    assert len(files) == 1
    return files.pop()


def test_exponents_and_first_bits_of_fractions_take_fewer_bytes_than_exponents() -> None:
    array = weights(1 << 16)
    coded = float_codes.encode("w", array)
    assert coded is not None
    assert isinstance(coded.record.stages[0], CodebookStage)
    assert coded.stored_nbytes < len(saved(array)) < coded.stored_nbytes + 600
    exponents = array.view(np.uint16) >> 7 & 255
    shares = np.unique(exponents, return_counts=True)[1] / array.size
    assert coded.stored_nbytes < array.size * (8 - (shares * np.log2(shares)).sum()) / 8


@given(st.integers(1, 4099), st.integers(14, 200), st.integers(0, 30), st.randoms(use_true_random=False))
def test_planes_are_those_of_the_codes(n: int, lowest: int, octaves: int, random: Any) -> None:
    generator = np.random.default_rng(random.getrandbits(32))
    exponents = generator.integers(lowest, lowest + octaves + 1, n)
    words = (exponents << 7 | generator.integers(0, 128, n) | generator.integers(0, 2, n) << 15).astype("<u2")
    words[generator.random(n) < 0.1] &= 0x8000  # zeros of both signs
    coded = float_codes.encode("w", words.view(BF16))
    if not (words & 0x7FFF).any():
        return
    assert coded is not None
    stage = coded.record.stages[0]
    assert isinstance(stage, CodebookStage)
    first = max(14, int((words & 0x7FFF).max() >> 7) - 30)
    magnitudes = (words & 0x7FFF).astype(int) - ((first - 1) << 7)
    codes = np.maximum(magnitudes, 0) | (words >> 15).astype(int) << 12
    expected = pack(codes.astype(np.uint16), stage.entries, stage.planes)
    before = native.backend()
    for backend in native.available():
        native.use(backend)
        assert float_codes.payload(words, (first - 1) << 7) == expected
    native.use(before)


@pytest.mark.parametrize("word", [0x7F80, 0xFFC1, 0x0001, 0x8001, 0x0080, 0x7F7F])
def test_a_value_that_has_no_code_leaves_a_tensor_as_bytes(word: int) -> None:
    array = weights(1 << 14)
    array.view(np.uint16)[77] = word
    assert float_codes.encode("w", array) is None
    saved(array)


def test_zeros_of_both_signs_have_codes() -> None:
    array = weights(1 << 14)
    array.view(np.uint16)[::997] = 0
    array.view(np.uint16)[5::997] = 0x8000
    assert float_codes.encode("w", array) is not None
    saved(array)


def test_uniform_octaves_and_short_tensors_stay_bytes() -> None:
    generator = np.random.default_rng(2)
    exponents = 127 - np.minimum(generator.geometric(0.5, 1 << 15), 20)
    others = generator.integers(0, 1 << 8, exponents.size)
    uniform = (exponents << 7 | (others & 127) | others >> 7 << 15).astype("<u2")
    assert not float_codes.pays(uniform.view(BF16))
    assert not float_codes.pays(weights(1 << 10))
    assert float_codes.pays(weights(1 << 15))


def test_exponents_that_repeat_stay_bytes() -> None:
    array = weights(1 << 15)
    exponents = np.tile(array.view(np.uint16)[:256] & 0x7F80, array.size // 256)
    repeated = exponents | (array.view(np.uint16) & 0x807F)
    assert not float_codes.pays(repeated.view(BF16))

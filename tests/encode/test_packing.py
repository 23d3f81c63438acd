"""Packing and compression of codes and bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from saved_models import normal

from vqformat.encode.methods import packing
from vqformat.format import bits


def test_a_second_plane_must_save_one_percent() -> None:
    """Of codes without any structure the dense packing is best by a little, or nearly so."""
    codes = np.random.default_rng(0).integers(0, 255, 1 << 16).astype(np.uint8)
    wide = np.clip(np.rint(normal(1 << 16) * 3 + 500), 0, 999).astype(np.uint16)

    assert len(packing.choose_planes(codes, 255)) <= 1
    planes = packing.choose_planes(wide, 1000)
    assert len(planes) == 2
    two = sum(map(packing.quick_nbytes, bits.pack(wide, 1000, planes)))
    assert two <= 0.99 * packing.quick_nbytes(bits.pack(wide, 1000, ())[0])


def test_threads_compress_side_by_side() -> None:
    payloads = [np.random.default_rng(i).integers(0, 3 + i, 3000 * i).astype(np.uint8).tobytes() for i in range(1, 9)]
    expected = [packing.sections([payload]) for payload in payloads]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda payload: packing.sections([payload]), payloads * 10))

    assert found == expected * 10


def test_long_matches_are_found() -> None:
    row = np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8).tobytes()

    sections = packing.sections([row * 20, row * 20])

    assert [len(section.stored) < 3200 for section in sections] == [True, True]


def test_exponents_are_compressed_better_than_by_literals_alone() -> None:
    """Three tensors of different scale by turns, as of a cell's gates."""
    scales = np.repeat(2.0 ** np.array([0, -6, 5] * 40), 512)
    weights = (normal(len(scales)) * scales).astype(np.float32)
    exponents = ((weights.view(np.uint32) >> 23) & 255).astype(np.uint8).tobytes()

    (section,) = packing.sections([exponents])

    assert section.is_zstd and len(section.stored) < 0.5 * len(exponents)

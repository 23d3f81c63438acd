"""Valid files: the worked examples of SPEC 21."""

from __future__ import annotations

import numpy as np
from vqmbuilder import layr
from vqmtensors import Codebook, Scale, tensor
from vqmtrellis import Freq, Trellis

from fixture_cases import Case, valid
from fixture_cases.bases import ROWS
from fixture_cases.trellis_bases import model


def cases() -> list[Case]:
    return [layer_with_a_codebook(), trellis_payload()]


def layer_with_a_codebook() -> Case:
    """2 × 3 elements, subvectors of 2, three codebook entries, a scale for each row."""
    table = np.array([[[0, 0], [1, -1], [0.5, 2]]], np.float16)
    stage = Codebook(np.array([[2, 1], [0, 2]]), table, scale=Scale(np.array([1, 0.25], np.float16), rows=1))
    item = tensor("net.w", "f16", [2, 3], stage, layout=ROWS)
    return valid("worked-codebook", "the layer of SPEC 21.2", "CBK-001 COD-002 SEC-002", model(layr("net", item)))


def trellis_payload() -> Case:
    """2 × 3 elements in a tile of four and a tile of two; the first tile takes a word."""
    freq = Freq(8, (bytes([161, 97, 1]), bytes([81, 145, 33])))
    stage = Trellis(np.array([[1, 2, 0], [2, 0, 1]]), freq, (2, 2), step=0.5, zero=1, trellis=(11, 4))
    item = tensor("w", "f32", [2, 3], stage, layout=ROWS)
    file = model(freq.chunk(), layr("", item))
    return valid("worked-trellis", "the payload of SPEC 21.3", "TRL-003 ANS-001 ANS-003", file)

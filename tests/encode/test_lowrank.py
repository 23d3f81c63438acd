"""Low-rank stages: how the rank is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from saved_models import normal

from vqformat.encode.methods import quantize
from vqformat.encode.recipe import parse_method
from vqformat.errors import EncodeError
from vqformat.format.layout import Layout, make_view
from vqformat.format.stages import LowRankStage


def low_rank(matrix: np.ndarray, text: str) -> LowRankStage:
    view = make_view(matrix.shape, False, Layout(n_row_axes=1))
    stage = quantize.quantize(matrix, view, parse_method(text))[0].stage
    assert isinstance(stage, LowRankStage)
    return stage


def test_right_factors_stay_within_their_limit() -> None:
    wide = np.ones((3, 9_000_000), np.float32)

    with pytest.raises(EncodeError, match="right factor of 18000000 elements; at most 16777216"):
        low_rank(wide, "svd:rank=2")


def test_bits_choose_a_rank_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqformat.encode.methods.lowrank.MAX_RIGHT_FACTOR", 3 * 400)

    assert low_rank(normal(100, 400), "svd:bits=8").rank == 3


def test_ranks_are_at_most_the_shorter_side() -> None:
    assert low_rank(normal(20, 30), "svd:rank=50").rank == 20
    assert low_rank(normal(20, 30), "svd:bits=60").rank == 20


def test_bits_leave_small_output_layers_their_rank() -> None:
    assert low_rank(normal(10, 100), "svd:bits=1").rank == 10
    assert low_rank(normal(16, 100), "svd:bits=1").rank == 16
    assert low_rank(normal(17, 100), "svd:bits=1").rank == 1

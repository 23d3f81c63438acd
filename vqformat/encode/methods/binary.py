"""Binarization: each weight becomes its sign times a mean magnitude."""

from __future__ import annotations

import numpy as np

from ...decode import tables
from ...decode.tables import Floats
from ...format.stages import CodebookStage, Scale, TableSource
from .assemble import QuantizedStage
from .scales import encode_scales, group_size, table_dtype


def quantize_binary(matrix: Floats, scale: str = "row") -> QuantizedStage:
    """Quantize a matrix to its signs (Gong et al. 2014, section 3.2.1). 0 counts as positive.

    The paper stores +1 and −1. With the mean magnitude as a factor, the squared error is least (Rastegari et al. 2016,
    equation 6).

    Args:
        matrix: ``(R, C)``, finite.
        scale: ``row`` or ``column`` for a mean magnitude of each, ``tensor`` for one of all, ``none`` for ±1.
    """
    n_rows, n_columns = matrix.shape
    codes = (matrix >= 0).astype(np.uint8)
    points = np.array([-1.0, 1.0])
    record = None
    resident = []
    if scale in ("row", "column"):
        means = np.abs(matrix).mean(axis=1 if scale == "row" else 0, dtype=np.float64)
        dtype, section, _ = encode_scales(means)
        resident.append(section)
        record = (Scale(dtype, group_size(1, n_rows), 0) if scale == "row"
                  else Scale(dtype, 0, group_size(1, n_columns)))  # fmt: skip
    elif scale == "tensor":
        points = points * float(np.abs(matrix).mean(dtype=np.float64))
    dtype = table_dtype(points)
    stage = CodebookStage(dim=1, entries=2, source=TableSource(dtype), scale=record)
    return QuantizedStage(stage, [tables.encode(points, dtype), *resident], codes)

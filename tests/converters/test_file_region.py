"""Bytes of a file that has changed since it was opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vqformat.converters import file_region
from vqformat.errors import ConversionError


@pytest.mark.parametrize("mapped_nbytes", [1, 1 << 24], ids=["mapped", "read"])
def test_a_file_that_became_shorter_is_named(
    mapped_nbytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_region, "_MAPPED_NBYTES", mapped_nbytes)
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345678abcd")
    assert file_region.file_bytes(path, 8, 4).tobytes() == b"abcd"

    with pytest.raises(ConversionError, match=r"a\.bin' became shorter"):
        file_region.file_bytes(path, 8, 5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name")
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ConversionError, match="is a pipe"):
        file_region.file_bytes(tmp_path / "pipe", 0, 1)

"""Shards on a server, through files of fsspec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sharded_models import INDEX, arrays, assert_same, write

from vqformat import load_file, safe_open

pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'fsspec[http]'")
pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'fsspec[http]'")

MODEL = arrays()
SHARD = "model-00002-of-00005.vqm"


@pytest.fixture
def served(tmp_path: Path, server: Any, http: Any) -> Any:
    """The address of the index on a server, which notes the names of what is asked for."""
    write(tmp_path / "model.vqm")
    for path in tmp_path.iterdir():
        url = server.url(path.read_bytes(), path.name)
    server.asked = []
    server.fault = lambda n, handler: server.asked.append(handler.path[1:]) if handler.command == "GET" else None
    return url.rpartition("/")[0] + f"/{INDEX}"


def test_only_the_shards_that_are_needed_are_asked_for(served: str, server: Any, http: Any) -> None:
    with http.open(served, "rb", cache_type="none") as index, safe_open(index) as f:
        assert list(f) == list(MODEL)
        assert np.array_equal(f["layers.3.bias"], MODEL["layers.3.bias"])
        assert np.array_equal(f["layers.3.weight"], MODEL["layers.3.weight"])
        names = list(server.asked)

    assert names == [INDEX, "model-00004-of-00005.vqm"]  # a shard of less than 64 KiB is one read


def test_shards_are_read_in_order(served: str, http: Any) -> None:
    with http.open(served, "rb") as index:
        assert_same(load_file(index), MODEL)


def test_a_shard_that_is_not_on_the_server_is_named(served: str, server: Any, http: Any) -> None:
    del server.files[SHARD]

    with http.open(served, "rb") as index, safe_open(index) as f, pytest.raises(FileNotFoundError, match=SHARD):
        f["layers.1.weight"]

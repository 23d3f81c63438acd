"""Writing a model into several files."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import memory
import numpy as np
import pytest
from examples import examples, some_of
from hypothesis import given
from hypothesis import strategies as st
from sharded_models import INDEX, LIMIT, Arrays, arrays, assert_same, write

import vqformat
from vqformat import EncodeError, load_file, writer
from vqformat.encode.methods.assemble import assemble_raw
from vqformat.format import sharded_writer
from vqformat.format.chunkwriter import EncodedTensor
from vqformat.format.records import AliasRecord
from vqformat.format.sharded_writer import ShardedWriter

MODEL = arrays()
NAMES = [f"model-{number:05d}-of-00005.vqm" for number in range(1, 6)] + [INDEX]

# For each layer the sizes of its tensors; a negative number is an alias of that tensor, counted from the first
layers = st.lists(st.lists(st.one_of(st.integers(0, 300), st.integers(-6, -1)), min_size=1, max_size=4), max_size=8)


@examples(40, may_share_fixtures=True)
@given(layers=layers, limit=st.integers(1, 6_000))
def test_any_limit_gives_the_same_tensors_in_the_same_order(
    layers: list[list[int]], limit: int, tmp_path: Path
) -> None:
    expected: Arrays = {}
    originals: list[str] = []
    with ShardedWriter(tmp_path / "model.vqm", limit) as file:
        for i, sizes in enumerate(layers):
            tensors: list[EncodedTensor | AliasRecord] = []
            for j, size in enumerate(sizes):
                name = f"{i}.{j}"
                if size < 0 and -size <= len(originals):
                    tensors.append(AliasRecord(name, originals[-size - 1]))
                    expected[name] = expected[originals[-size - 1]]
                    continue
                expected[name] = np.full(abs(size), len(expected), np.float32)
                originals.append(name)
                tensors.append(assemble_raw(name, "f32", expected[name], 0, compress=False))
            file.add_layer(f"layer {i}", tensors)

    assert_same(load_file(tmp_path / "model.vqm"), expected)
    assert set(os.listdir(tmp_path)) == set(file.files)
    for name in file.files:
        if name.endswith(".vqm"):
            with vqformat.safe_open(tmp_path / name) as shard:
                originals_there = {shard.info(tensor).layer for tensor in shard if not shard.info(tensor).alias_of}
                is_small = (tmp_path / name).stat().st_size <= limit + 400 * len(shard)  # of aliases that came later
                assert is_small or len(originals_there) <= 1


def test_the_bytes_do_not_depend_on_workers(tmp_path: Path) -> None:
    for n in (1, 2):
        (tmp_path / str(n)).mkdir()
        write(tmp_path / str(n) / "model.vqm", 8_000, lossless=False, workers=n)

    assert os.listdir(tmp_path / "1")
    for name in os.listdir(tmp_path / "1"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_writer_writes_shards_layer_by_layer(tmp_path: Path) -> None:
    with writer(tmp_path / "model.vqm", lossless=True, max_shard_size="30kB") as w:
        w.add_layer("a", {"a.w": MODEL["layers.0.weight"]})
        w.add_layer("b", {"b.w": MODEL["layers.1.weight"]})
        w.add_alias("c.w", "a.w")

    assert w.report.files == ["model-00001-of-00002.vqm", "model-00002-of-00002.vqm", INDEX]
    assert w.report.file_nbytes == sum((tmp_path / name).stat().st_size for name in w.report.files[:2])
    found = load_file(tmp_path / "model.vqm")
    assert list(found) == ["a.w", "b.w", "c.w"]
    assert found["c.w"] is found["a.w"]


def test_the_name_of_the_index_names_the_model(tmp_path: Path) -> None:
    assert write(tmp_path / INDEX) == NAMES


@pytest.mark.parametrize("size", ["x", 0, -1, True, "1.2.3MB"])
def test_a_limit_that_is_no_size_is_refused(size: Any, tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="max_shard_size"):
        write(tmp_path / "model.vqm", size)
    assert not os.listdir(tmp_path)


def test_a_stream_has_no_shards(tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as stream, pytest.raises(EncodeError, match="not for a stream"):
        vqformat.save_file(MODEL, stream, max_shard_size=LIMIT)


def test_too_many_shards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_writer, "MAX_SHARDS", 4)

    with pytest.raises(EncodeError, match="more than 4 shards of 30,000 bytes"):
        write(tmp_path / "model.vqm")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["model.vqm", INDEX, NAMES[1], "model-00001-of-00009.vqm"])
def test_a_model_that_exists_is_not_replaced_unasked(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"mine")

    with pytest.raises(FileExistsError, match="was not replaced"):
        write(tmp_path / "model.vqm", overwrite=False)

    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("limit", [LIMIT, 70_000, "1GB"])
def test_an_earlier_model_is_replaced_as_a_whole(limit: int | str, tmp_path: Path) -> None:
    write(tmp_path / "model.vqm", 8_000, lossless=False)
    (tmp_path / "model.vqm").write_bytes(b"one file")
    for other in ("other-00001-of-00002.vqm", "model-1-of-2.vqm", "model.safetensors", "model.vqm.sig"):
        (tmp_path / other).write_bytes(b"another")

    files = write(tmp_path / "model.vqm", limit) or ["model.vqm"]

    assert set(os.listdir(tmp_path)) == {*files, "other-00001-of-00002.vqm", "model-1-of-2.vqm", "model.safetensors",
                                         "model.vqm.sig"}  # fmt: skip
    assert_same(load_file(tmp_path / "model.vqm"), MODEL)


@pytest.mark.parametrize("n_named", range(6))
def test_an_earlier_model_is_put_back_if_names_cannot_be_given(
    n_named: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "model.vqm", 8_000, lossless=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []
    rename_to = sharded_writer.NewShard.rename_to

    def fail(self: Any, path: pathlib.Path) -> None:
        if len(calls) == n_named:
            raise OSError(errno.EIO, "the disk is broken", str(path))
        calls.append(path)
        rename_to(self, path)

    monkeypatch.setattr(sharded_writer.NewShard, "rename_to", fail)

    with pytest.raises(OSError, match="the disk is broken"):
        write(tmp_path / "model.vqm")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).mkdir()

    with pytest.raises(FileExistsError, match="is no file, and is in the way"):
        write(tmp_path / "model.vqm")


def test_nothing_is_left_of_a_model_that_failed(tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name == "layers.4.weight":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model.vqm", progress=stop)

    assert not os.listdir(tmp_path)


KILLED = """
import os, signal, sys
from sharded_models import write

def stop(name, done, total):
    if name == "layers.4.weight":
        os.kill(os.getpid(), signal.SIGKILL)

write(sys.argv[1], progress=stop)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_no_half_set_is_left_when_the_process_is_killed(tmp_path: Path) -> None:
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "model.vqm")], env=path, check=False)

    assert killed.returncode == -signal.SIGKILL
    assert not [name for name in os.listdir(tmp_path) if name.startswith("model")]
    assert write(tmp_path / "model.vqm", overwrite=False) == NAMES


WIDTH = 1 << 11
TENSOR_MB = 4 * WIDTH * WIDTH / memory.MB  # 16.8


def _write_large(path: Path, preset: str) -> None:
    random = np.random.default_rng(0)
    with writer(path, preset=preset, max_shard_size="3MB") as w:
        for i in range(6):
            w.add_layer(str(i), {f"{i}.w": random.standard_normal((WIDTH, WIDTH), np.float32)})


@pytest.mark.skipif(not memory.IS_KNOWN, reason="memory is told by /proc/self/status, which is Linux's")
@pytest.mark.parametrize("preset", some_of(["default", "small"], ["default"]))
def test_memory_is_that_of_the_largest_tensor(preset: str, tmp_path: Path) -> None:
    found = memory.measure(_write_large, tmp_path / "model.vqm", preset)

    assert found.peak_mb <= 1.5 * TENSOR_MB + 60
    assert (tmp_path / INDEX).exists()

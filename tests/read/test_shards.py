"""Models in several files: an index, and shards that are whole files each."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sharded_models import INDEX, LIMIT, N_LAYERS, Arrays, arrays, assert_same, edit, write

import vqformat
from vqformat import FormatError, LimitError, TensorNotFoundError, load_file, safe_open, stream
from vqformat.read import sharded

MODEL = arrays()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "model.vqm")
    return tmp_path


@pytest.fixture(params=["index", "folder", "name of one file"])
def source(folder: Path, request: pytest.FixtureRequest) -> Path:
    """Each path that stands for the model."""
    return {"index": folder / INDEX, "folder": folder, "name of one file": folder / "model.vqm"}[request.param]


def test_all_functions_take_the_index_in_place_of_a_file(source: Path) -> None:
    found = load_file(source)
    assert_same(found, MODEL)
    assert found["head.tied"] is found["layers.0.weight"]
    assert found["layers.4.copy"] is not found["layers.1.weight"]
    with safe_open(source) as f:
        assert_same(dict(f.items()), MODEL)
        assert f.metadata() == {"of": "tests"}
    assert vqformat.verify(source) == hashlib.sha256((source.parent / INDEX if source.suffix else source / INDEX)
                                                     .read_bytes()).hexdigest()  # fmt: skip


@pytest.mark.parametrize("options", [
    {}, {"preset": "small"}, {"preset": "fast"}, {"recipe": {"*.weight": "kmeans:entries=16,share=all"}}],
    ids=str)  # fmt: skip
def test_tensors_are_those_of_one_file(options: dict[str, Any], tmp_path: Path) -> None:
    one = tmp_path / "one.vqm"
    vqformat.save_file(MODEL, one, **options)

    files = write(tmp_path / "model.vqm", 8_000, **{"lossless": False, **options})

    assert len(files) > 3
    assert_same(load_file(tmp_path / "model.vqm"), load_file(one))
    assert vqformat.content_digest(tmp_path / "model.vqm") == vqformat.content_digest(one)


def test_the_digest_of_the_contents_is_that_of_the_source(folder: Path) -> None:
    np.savez(folder / "source.npz", **MODEL)

    assert vqformat.content_digest(folder / "model.vqm") == vqformat.content_digest(folder / "source.npz")


def test_each_shard_is_a_whole_file_of_whole_layers(folder: Path) -> None:
    layers: list[str] = []
    for number in range(1, N_LAYERS + 1):
        shard = folder / f"model-{number:05d}-of-00005.vqm"
        vqformat.verify(shard)
        assert shard.stat().st_size <= LIMIT
        layers += [layer.name for layer in stream(shard) if layer]
    assert layers == [*(f"layers.{i}" for i in range(N_LAYERS)), "head"]
    with safe_open(folder / "model-00001-of-00005.vqm") as f:
        assert list(f) == ["layers.0.weight", "layers.0.bias", "head.tied"]  # aliases are with their targets
        assert f.metadata() == {"of": "tests"}
    with safe_open(folder / "model-00002-of-00005.vqm") as f:
        assert list(f) == ["layers.1.weight", "layers.1.bias", "layers.4.copy"]
        assert f.metadata() == {}


def test_the_index_is_that_of_hugging_face_with_digests(folder: Path) -> None:
    document = json.loads((folder / INDEX).read_text("utf-8"))

    assert list(document["weight_map"]) == list(MODEL)
    assert document["weight_map"]["layers.1.bias"] == "model-00002-of-00005.vqm"
    assert document["weight_map"]["head.tied"] == "model-00001-of-00005.vqm"
    assert document["metadata"]["total_size"] == N_LAYERS * 4 * (80 * 90 + 80)
    assert len(document["metadata"]["digests"]) == N_LAYERS


def test_a_model_that_fits_into_a_shard_is_one_plain_file(tmp_path: Path) -> None:
    assert write(tmp_path / "model.vqm", "5GB") == []
    vqformat.save_file(MODEL, tmp_path / "one.vqm", {"of": "tests"}, lossless=True)

    assert sorted(os.listdir(tmp_path)) == ["model.vqm", "one.vqm"]
    assert (tmp_path / "model.vqm").read_bytes() == (tmp_path / "one.vqm").read_bytes()


def test_layers_are_streamed_shard_by_shard(source: Path) -> None:
    found: Arrays = {}
    aliases: dict[str, str] = {}
    for layer in stream(source):
        found |= layer
        aliases |= layer.aliases

    assert aliases == {"head.tied": "layers.0.weight", "layers.4.copy": "layers.1.weight"}
    assert_same(found, {name: array for name, array in MODEL.items() if name not in aliases})


def test_parts_of_tensors_are_read(source: Path) -> None:
    with safe_open(source) as f:
        part = f.get_slice("layers.3.weight")
        assert np.array_equal(part[5:9, ::2], MODEL["layers.3.weight"][5:9, ::2])
        out = np.empty((80, 90), np.float32)
        part.decode_into(out)
        assert np.array_equal(out, MODEL["layers.3.weight"])
        whole = np.empty((80, 90), np.float32)
        for index, values in part.blocks():
            whole[index] = values
        assert np.array_equal(whole, MODEL["layers.3.weight"])
        info = f.info("layers.4.copy")
        assert (info.copy_of, info.alias_of) == ("layers.1.weight", None)
        assert f.info("head.tied").alias_of == "layers.0.weight"
        with pytest.raises(TensorNotFoundError, match=r"layers\.3\.weight"):
            f["layers.3.weigth"]


def test_a_pickle_opens_the_shards_again(folder: Path) -> None:
    with safe_open(folder) as f, pickle.loads(pickle.dumps(f)) as again:
        assert_same(dict(again.items()), MODEL)
    with pytest.raises(ValueError, match="closed"):
        f["head.tied"]


def test_only_the_shards_that_are_needed_are_opened(folder: Path) -> None:
    (folder / "model-00004-of-00005.vqm").write_bytes(b"no shard")

    with safe_open(folder) as f:
        assert len(f) == len(MODEL)
        assert "layers.3.bias" in f
        assert np.array_equal(f["layers.4.bias"], MODEL["layers.4.bias"])
        with pytest.raises(FormatError, match=r"^'model-00004-of-00005\.vqm': a file of 8 bytes is too short"):
            f["layers.3.bias"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are told by /proc")
def test_few_shards_stay_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "_MOST_OPEN", 2)
    n_before = len(os.listdir("/proc/self/fd"))

    with safe_open(folder) as f:
        blocks = f.get_slice("layers.0.weight").blocks()
        assert_same(dict(f.items()), MODEL)
        n_open = len(os.listdir("/proc/self/fd"))
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda name: np.array_equal(f[name], MODEL[name]), 4 * list(MODEL)))
        (_, values), *_ = blocks

    assert np.array_equal(values, MODEL["layers.0.weight"])
    assert n_open - n_before == 2
    del blocks
    assert len(os.listdir("/proc/self/fd")) == n_before


def test_limits_count_over_all_shards(folder: Path) -> None:
    total = sum(array.nbytes for name, array in MODEL.items() if name != "head.tied")

    assert_same(load_file(folder, max_total_bytes=total), MODEL)
    with pytest.raises(LimitError, match="max_total_bytes"):
        load_file(folder, max_total_bytes=total - 1)
    with pytest.raises(LimitError, match="max_tensor_bytes"):
        load_file(folder, max_tensor_bytes=28_000)
    for layer in stream(folder, max_total_bytes=30_000):
        dict(layer)


def test_shared_codebooks_count_as_often_as_they_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model.vqm", 8_000, lossless=False, recipe={"*.weight": "kmeans:entries=256,share=all"})
    monkeypatch.setattr(sharded, "_MOST_OPEN", 2)

    with safe_open(tmp_path, max_total_bytes=28_800 + 2 * 1024) as f:  # a tensor, and the codebooks of two shards
        for _ in range(2):
            dict(f.items())


def test_what_is_whole_of_a_truncated_shard_is_given(folder: Path) -> None:
    shard = folder / "model-00002-of-00005.vqm"
    shard.write_bytes(shard.read_bytes()[:-400])

    with pytest.raises(FormatError, match=r"^'model-00002-of-00005\.vqm': "):
        load_file(folder)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = load_file(folder, allow_partial=True)

    assert_same(found, {name: found[name] for name in MODEL if name in found})
    assert {"layers.0.weight", "layers.2.weight", "head.tied"} <= set(found)
    assert "ends early" in str(told[0].message)


def _rename(document: dict[str, Any], old: str, new: str) -> None:
    text = json.dumps(document).replace(old, new)
    document.clear()
    document.update(json.loads(text))


SHARD = "model-00002-of-00005.vqm"
BAD = {
    "a path upwards": (lambda d: _rename(d, SHARD, f"../{SHARD}"), r"tensor 'layers\.1\.weight' is in '\.\./model"),
    "an absolute path": (lambda d: _rename(d, SHARD, f"/tmp/{SHARD}"), r"is in '/tmp/model"),
    "a path below": (lambda d: _rename(d, SHARD, f"below/{SHARD}"), r"is in 'below/model"),
    "a URL": (lambda d: _rename(d, SHARD, f"http://x/{SHARD}"), r"is in 'http://x/model"),
    "no name": (lambda d: d["weight_map"].update({"layers.1.bias": 7}), r"tensor 'layers\.1\.bias' is in '7'"),
    "another suffix": (lambda d: _rename(d, SHARD, "model-00002-of-00005.pt"), r"is in 'model-00002-of-00005\.pt'"),
    "too large a number": (lambda d: _rename(d, SHARD, "model-00006-of-00005.vqm"), r"number is not from 1 to 5"),
    "another count": (lambda d: _rename(d, SHARD, "model-00002-of-00004.vqm"), r"is of another set than"),
    "another stem": (lambda d: _rename(d, SHARD, "modem-00002-of-00005.vqm"), r"is of another set than"),
    "one number twice": (lambda d: _rename(d, SHARD, "model-000002-of-00005.vqm")
                         or d["weight_map"].update({"x": SHARD}), r"of the same number"),
    "fewer than it says": (lambda d: [d["weight_map"].pop(n) for n, s in list(d["weight_map"].items()) if s == SHARD],
                           r"names 4 of 5 shards; it has no tensor in 'model-00002-of-00005\.vqm'"),
    "no tensors": (lambda d: d.update(weight_map={}), r"weight_map has no tensor"),
    "no map": (lambda d: d.update(weight_map=[]), r"has no map 'weight_map'"),
    "no metadata": (lambda d: d.pop("metadata"), r"has no map 'metadata'"),
    "no digest": (lambda d: d["metadata"]["digests"].pop(SHARD), r"no digest of 'model-00002-of-00005\.vqm'"),
    "a short digest": (lambda d: d["metadata"]["digests"].update({SHARD: "00"}), r"no digest of 'model-00002"),
}


@pytest.mark.parametrize("fault", BAD)
def test_an_index_that_breaks_a_rule_is_refused(fault: str, folder: Path) -> None:
    change, message = BAD[fault]
    edit(folder / INDEX, change)

    for read in (load_file, safe_open, stream, vqformat.verify, vqformat.content_digest):
        with pytest.raises(FormatError, match=message) as caught:
            read(folder / INDEX)
        assert INDEX in str(caught.value)


WRONG = {
    "a tensor that is not there": (lambda d: d["weight_map"].update({"layers.1.more": SHARD}),
                                   rf"{INDEX}' says that '{SHARD}' has tensor 'layers\.1\.more', which is not there"),
    "a tensor that it does not name": (lambda d: d["weight_map"].pop("layers.1.bias"),
                                       rf"'{SHARD}' has tensor 'layers\.1\.bias'; .*{INDEX}' names no such tensor"),
    "a tensor of another shard": (
        lambda d: d["weight_map"].update({"layers.1.bias": "model-00003-of-00005.vqm"}),
        rf"'{SHARD}' has tensor 'layers\.1\.bias'; .* places it in 'model-00003-of-00005\.vqm'"),
    "another digest": (lambda d: d["metadata"]["digests"].update({SHARD: 64 * "0"}),
                       rf"'{SHARD}' is of another model than .*{INDEX}'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_shard_that_is_not_as_the_index_says_is_refused(fault: str, folder: Path) -> None:
    change, message = WRONG[fault]
    edit(folder / INDEX, change)

    for read in (load_file, vqformat.verify, vqformat.content_digest, lambda path: [dict(x) for x in stream(path)]):
        with pytest.raises(FormatError, match=message):
            read(folder)
    with safe_open(folder) as f:
        assert np.array_equal(f["layers.4.bias"], MODEL["layers.4.bias"])
        with pytest.raises(FormatError, match=message):
            f["layers.1.weight"]


@pytest.mark.parametrize(("text", "message"), [
    (b"", "Expecting value"), (b"[]", "has no map"), (b"\xff\xfe", "is no index of shards"), (b"null", "has no map"),
    (b'{"weight_map": ' + 100_000 * b"[", "nested too deeply"), (b'{"a": ' + 5_000 * b"1" + b"}", "no index"),
    (b'{"metadata": {}, "weight_map": {"a": "m-00001-of-00002.vqm", "a": "m-00002-of-00002.vqm"}}', "'a' is there twi"),
])  # fmt: skip
def test_what_is_no_index_is_refused(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(text)

    with pytest.raises(FormatError, match=message) as caught:
        load_file(tmp_path)

    assert INDEX in str(caught.value)


def test_a_huge_index_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / INDEX, "wb") as file:
        file.truncate(100_000_001)

    with pytest.raises(LimitError, match="has more than 100,000,000 bytes"):
        safe_open(tmp_path)


def test_shards_of_two_conversions_are_not_mixed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write(other / "model.vqm", lossless=False, step=0.1, max_shard_size=8_000)
    assert (other / SHARD).exists()
    (folder / SHARD).write_bytes((other / SHARD).read_bytes())

    with pytest.raises(FormatError, match="is of another model"):
        load_file(folder)


def test_all_missing_shards_are_named(folder: Path) -> None:
    for number in (2, 5):
        (folder / f"model-{number:05d}-of-00005.vqm").unlink()

    for read in (load_file, safe_open, stream, vqformat.verify):
        with pytest.raises(FileNotFoundError, match=r"2 of its 5 shards .*'model-00002-of-00005\.vqm',"
                           r" 'model-00005-of-00005\.vqm'"):  # fmt: skip
            read(folder)


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="links need rights on Windows")
def test_links_that_leave_the_folder_are_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / SHARD).rename(elsewhere / SHARD)
    (folder / SHARD).symlink_to(elsewhere / SHARD)

    with pytest.raises(FormatError, match=f"the shard '{SHARD}' is a link that leads out of the folder"):
        safe_open(folder)


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="links need rights on Windows")
def test_the_links_of_a_download_cache_are_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("cache")
    (cache / "blobs").mkdir()
    snapshot = cache / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for i, path in enumerate(folder.iterdir()):
        path.rename(cache / "blobs" / str(i))
        (snapshot / path.name).symlink_to(cache / "blobs" / str(i))

    assert_same(load_file(snapshot), MODEL)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", [INDEX, SHARD])
def test_a_pipe_is_not_waited_for(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)

    with pytest.raises(FormatError, match="is no regular file"):
        load_file(folder / INDEX)


def test_one_file_is_read_where_both_are(folder: Path) -> None:
    vqformat.save_file({"x": np.ones(3, np.float32)}, folder / "model.vqm")

    assert list(load_file(folder / "model.vqm")) == ["x"]
    assert_same(load_file(folder / INDEX), MODEL)


def test_a_stream_that_is_left_early_closes_its_shard(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a file that is not closed warns
        stream(folder).close()
        with stream(folder) as layers:
            assert list(next(layers)) == ["layers.0.weight", "layers.0.bias"]
            file = layers._opened._opened._current._own
    assert file.closed

"""The command line with models in several files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cli_runs import Run
from sharded_models import INDEX, LIMIT, arrays, assert_same, write

import vqformat

SHARD = "model-00002-of-00005.vqm"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.savez(tmp_path / "model.npz", **arrays())
    return tmp_path / "model.npz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out" / "model.vqm")
    return tmp_path / "out"


@pytest.mark.parametrize("options", [(), ("--workers", "2"), ("--resume",)], ids=str)
def test_convert_writes_shards_and_their_index(source: Path, run: Run, options: tuple[str, ...]) -> None:
    result = run("convert", source, "--max-shard-size", "30kB", "--lossless", "--json", *options)

    assert result.code == 0
    files = result.json["files"]
    assert files[-1] == INDEX
    assert result.json["output"] == str(source.with_name(INDEX))
    assert result.json["file_nbytes"] == sum(source.with_name(name).stat().st_size for name in files[:-1])
    assert set(os.listdir(source.parent)) == {source.name, *files}
    assert_same(vqformat.load_file(source.with_suffix(".vqm")), arrays())


def test_an_existing_model_is_replaced_only_on_request(source: Path, run: Run) -> None:
    args = ("convert", source, "--max-shard-size", "30kB", "--lossless")
    assert "in 5 shards, ratio" in run(*args).out

    run(*args).failed_with("exists", "not replaced")
    assert run(*args, "-f").code == 0


def test_stdout_holds_no_shards(source: Path, run: Run) -> None:
    assert run("convert", source, "--max-shard-size", "30kB", "-o", "-").code == 2


@pytest.mark.parametrize("name", ["", INDEX, "model.vqm"])
def test_verbs_take_the_index_in_place_of_a_file(folder: Path, source: Path, run: Run, name: str) -> None:
    model = folder / name
    digest = vqformat.content_digest(source)

    info = run("info", model, "--digest", "--json").json
    assert (info["n_shards"], info["n_layers"], info["content_digest"]) == (5, 8, digest)
    assert [tensor["name"] for tensor in info["tensors"]] == list(arrays())
    assert info["metadata"] == {"of": "tests"}
    assert "5 shards, 8 layers" in run("info", model).out
    assert f"contents {digest}" in run("verify", model).out
    assert "same contents" in run("diff", model, source).out
    assert run("extract", model, "-o", folder.with_name("back.npz"), "-f").code == 0
    assert vqformat.content_digest(folder.with_name("back.npz")) == digest
    assert run("extract", model, "layers.3.*", "-o", folder.with_name("part.npz"), "-f").code == 0
    assert run("recover", model, "-o", folder.with_name("whole.vqm"), "-f").code == 0
    assert vqformat.content_digest(folder.with_name("whole.vqm")) == digest
    again = run("convert", model, "-o", folder.with_name("again.vqm"), "--lossless", "--max-shard-size", "60kB")
    assert (again.code, vqformat.content_digest(folder.with_name("again.vqm"))) == (0, digest)


def test_a_report_is_made_of_shards(folder: Path, run: Run) -> None:
    pytest.importorskip("matplotlib")

    assert run("report", folder, "-o", folder.with_name("page.html")).code == 0


def test_a_model_is_not_written_over_its_own_shards(folder: Path, run: Run) -> None:
    before = (folder / INDEX).read_bytes()

    result = run("convert", folder / INDEX, "-o", folder / "model.vqm", "-f", "--max-shard-size", "60kB")

    result.failed_with("is the source itself")
    assert (folder / INDEX).read_bytes() == before


def test_the_signature_of_the_index_covers_the_shards(folder: Path, run: Run) -> None:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))  # fmt: skip
    (folder / "pub.pem").write_bytes(key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))  # fmt: skip

    assert run("sign", folder / "model.vqm", "--key", folder / "key.pem").code == 0
    assert (folder / f"{INDEX}.sig").exists()
    assert "signature right" in run("verify", folder, "--key", folder / "pub.pem").out
    vqformat.save_file({"layers.1.weight": np.ones(3)}, folder / SHARD)
    result = run("verify", folder / "model.vqm", "--key", folder / "pub.pem")
    assert (result.code, "of another model" in result.err) == (1, True)
    document = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(document))
    assert "signature" in run("verify", folder, "--key", folder / "pub.pem").err


def test_damage_is_told_by_shard(folder: Path, run: Run) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[1000] ^= 1
    (folder / SHARD).write_bytes(data)

    result = run("verify", folder)

    assert result.code == 1
    assert f"'{SHARD}': block 0 of tensor 'layers.1.weight' is damaged" in result.err
    assert f"{folder / SHARD}: 1 of 3 tensors is whole" in result.out
    shards = run("verify", folder, "--json").json[0]["shards"]
    assert [shard["n_whole"] for shard in shards] == [3, 1, 2, 2, 3]
    recovered = run("recover", folder, "-o", folder.with_name("whole.vqm"))
    assert "11 of 13 tensors" in recovered.out
    assert "left out layers.4.copy" in recovered.err


def test_tensors_of_missing_shards_are_told(folder: Path, run: Run) -> None:
    (folder / "model-00001-of-00005.vqm").unlink()

    run("info", folder).failed_with("1 of its 5 shards", "model-00001-of-00005.vqm")
    result = run("recover", folder, "-o", folder.with_name("whole.vqm"))

    assert "10 of 13 tensors" in result.out
    assert "left out head.tied: its shard 'model-00001-of-00005.vqm' is missing" in result.err
    assert "left out the metadata, which is lost" in result.err


def test_a_model_folder_becomes_shards_and_comes_back(tmp_path: Path, run: Run) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    source = tmp_path / "source"
    source.mkdir()
    tensors = {name: array for name, array in arrays().items() if array.size}
    safetensors.save_file(tensors, source / "model.safetensors", {"format": "np"})
    (source / "config.json").write_text("{}")

    assert run("convert", source, "-o", tmp_path / "small", "--lossless", "--max-shard-size", str(LIMIT)).code == 0
    names = [f"model-{number:05d}-of-00003.vqm" for number in range(1, 4)]
    assert sorted(os.listdir(tmp_path / "small")) == sorted([*names, INDEX, "config.json"])
    assert run("extract", tmp_path / "small", "-o", tmp_path / "back").code == 0

    assert sorted(os.listdir(tmp_path / "back")) == ["config.json", "model.safetensors"]
    assert vqformat.content_digest(tmp_path / "back") == vqformat.content_digest(source)

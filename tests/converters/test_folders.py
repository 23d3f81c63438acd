"""Whole model folders: configuration and tokenizer go along, and all comes back (SPEC 18, ``files``)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import Run

import vqformat
from vqformat.converters import convert, convert_folder, extract_folder
from vqformat.errors import ConversionError, EncodeError

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")


def weights(path: Path, *names: str, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal((16, 8), np.float32) for name in names or ("a.weight", "b.weight")}
    safetensors.save_file(arrays, path, metadata={"format": "pt"})
    return path


def text(path: Path, content: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def index(folder: Path, places: dict[str, str], name: str = "model.safetensors.index.json") -> None:
    text(folder / name, json.dumps({"metadata": {"total_size": 1024}, "weight_map": places}))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    weights(folder / "model.safetensors")
    text(folder / "config.json", '{"model_type": "bert"}')
    text(folder / "tokenizer" / "vocab.txt", "a\nb\n")
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weights(folder / shards[0], "a.weight", "b.weight")
    weights(folder / shards[1], "c.weight", seed=1)
    index(folder, {"a.weight": shards[0], "b.weight": shards[0], "c.weight": shards[1]})
    text(folder / "config.json")
    return folder


def test_configuration_and_tokenizer_go_along(model: Path, tmp_path: Path) -> None:
    report = convert_folder(model, tmp_path / "out", lossless=True)

    assert files(tmp_path / "out") == ["config.json", "model.vqm", "tokenizer/vocab.txt"]
    assert (tmp_path / "out" / "tokenizer" / "vocab.txt").read_bytes() == b"a\nb\n"
    assert list(report.reports) == ["model.vqm"]
    assert report.copied == ["config.json", "tokenizer/vocab.txt"]
    assert report.left_out == []


@pytest.mark.parametrize("which", ["model", "sharded"])
def test_the_folder_comes_back(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    convert_folder(folder, tmp_path / "out", lossless=True)

    extract_folder(tmp_path / "out", tmp_path / "back")

    assert files(tmp_path / "back") == files(folder)
    for name in files(folder):
        before, after = folder / name, tmp_path / "back" / name
        if name.endswith(".safetensors"):
            old, new = safetensors.load_file(before), safetensors.load_file(after)
            assert old.keys() == new.keys()
            assert all(np.array_equal(old[key], new[key]) for key in old)
        elif not name.endswith(".index.json"):
            assert before.read_bytes() == after.read_bytes()


def test_the_index_of_shards_comes_back(sharded: Path, tmp_path: Path) -> None:
    convert_folder(sharded, tmp_path / "out", lossless=True)

    extract_folder(tmp_path / "out", tmp_path / "back")

    name = "model.safetensors.index.json"
    assert json.loads((tmp_path / "back" / name).read_text())["weight_map"] == json.loads(
        (sharded / name).read_text())["weight_map"]  # fmt: skip
    assert json.loads((tmp_path / "back" / name).read_text())["metadata"] == {"total_size": 3 * 16 * 8 * 4}


def test_a_pytorch_checkpoint_comes_back_as_one(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / "model"
    folder.mkdir()
    state = {"a.weight": torch.randn(16, 8), "b": torch.arange(3)}
    state["tied"] = state["a.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    text(folder / "config.json")
    convert_folder(folder, tmp_path / "out", lossless=True)

    extract_folder(tmp_path / "out", tmp_path / "back")

    back = torch.load(tmp_path / "back" / "pytorch_model.bin", weights_only=True)
    assert files(tmp_path / "back") == ["config.json", "pytorch_model.bin"]
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert back["tied"].data_ptr() == back["a.weight"].data_ptr()


def test_each_part_of_a_pipeline_is_replaced_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    text(folder / "model_index.json")
    text(folder / "unet" / "config.json")
    weights(folder / "unet" / "diffusion_pytorch_model.safetensors")
    weights(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    weights(folder / "text_encoder" / "model.safetensors")
    weights(folder / "v1-pruned.safetensors")

    report = convert_folder(folder, tmp_path / "out", preset="fast")

    assert files(tmp_path / "out") == ["model_index.json", "text_encoder/model.vqm", "unet/config.json",
                                       "unet/diffusion_pytorch_model.vqm"]  # fmt: skip
    assert report.left_out == [
        "left out 'v1-pruned.safetensors': the same weights in another format or precision",
        "left out 'unet/diffusion_pytorch_model.fp16.safetensors': the same weights in another format or precision"]
    extract_folder(tmp_path / "out", tmp_path / "back")
    assert files(tmp_path / "back") == ["model_index.json", "text_encoder/model.safetensors", "unet/config.json",
                                        "unet/diffusion_pytorch_model.safetensors"]  # fmt: skip


def test_an_adapter_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    weights(folder / "adapter_model.safetensors")
    text(folder / "adapter_config.json")

    convert_folder(folder, tmp_path / "out")

    assert files(tmp_path / "out") == ["adapter_config.json", "adapter_model.vqm"]


@pytest.mark.parametrize(("name", "why"), [
    ("pytorch_model.bin", "the same weights in another format"), ("tf_model.h5", "the same weights in another format"),
    ("flax_model.msgpack", "the same weights in another format"), ("rust_model.ot", "the same weights"),
    ("model.fp16.safetensors", "another format or precision"), ("model.onnx", "the same weights"),
    ("pytorch_model-00001-of-00002.bin", "the same weights"), ("pytorch_model.bin.index.json", "the same weights"),
    ("model.safetensors.index.fp16.json", "the same weights"), ("consolidated.safetensors", "the same weights"),
    ("q4.gguf", "the same weights"), ("onnx/model.onnx", "left out the folder 'onnx/?'"),
    ("openvino/openvino_model.bin", "left out the folder"), ("original/consolidated.00.pth", "left out the folder"),
    ("model.vqm", "the same weights"), ("optimizer.pt", "the state of training"),
    ("rng_state_0.pth", "the state of training"),
    (".git/objects/x", "which is no part of a model"), ("__pycache__/x.pyc", "which is no part of a model"),
])  # fmt: skip
def test_what_says_the_same_is_left_out_with_a_note(name: str, why: str, model: Path, tmp_path: Path) -> None:
    text(model / name, "x")

    report = convert_folder(model, tmp_path / "out")

    assert files(tmp_path / "out") == ["config.json", "model.vqm", "tokenizer/vocab.txt"]
    assert len(report.left_out) == 1
    assert why.replace("/?", "") in report.left_out[0]


@pytest.mark.parametrize("name", ["training_args.bin", "mm_projector.bin", "modeling_x.py", "README.md", "spiece.model",
                                  ".gitattributes", "vocab.json", "x.onnx.md"])  # fmt: skip
def test_other_files_are_copied(name: str, model: Path, tmp_path: Path) -> None:
    text(model / name, "x")

    report = convert_folder(model, tmp_path / "out")

    assert (tmp_path / "out" / name).read_bytes() == b"x"
    assert report.left_out == []
    assert len(report.notes) == (name == "mm_projector.bin")


def test_the_state_of_training_is_copied_on_request(model: Path, tmp_path: Path) -> None:
    text(model / "optimizer.pt", "x")

    convert_folder(model, tmp_path / "out", include_optimizer=True)

    assert (tmp_path / "out" / "optimizer.pt").exists()


def test_weights_of_another_name_are_found_if_they_are_the_only_ones(tmp_path: Path) -> None:
    weights(tmp_path / "model" / "learned_embeds.safetensors")

    convert_folder(tmp_path / "model", tmp_path / "out")
    extract_folder(tmp_path / "out", tmp_path / "back")

    assert files(tmp_path / "out") == ["learned_embeds.vqm"]
    assert files(tmp_path / "back") == ["learned_embeds.safetensors"]


def test_a_converted_folder_is_encoded_again_and_remembers_its_files(sharded: Path, tmp_path: Path) -> None:
    convert_folder(sharded, tmp_path / "once", lossless=True)
    convert_folder(tmp_path / "once", tmp_path / "twice", preset="fast")

    extract_folder(tmp_path / "twice", tmp_path / "back")

    assert files(tmp_path / "back") == files(sharded)


class TestOptions:
    @pytest.mark.parametrize(("options", "what"), [
        ({"size": 5000}, "a size"), ({"recipe": {"a*": "raw"}}, "a pattern of a recipe")])  # fmt: skip
    def test_some_are_for_one_part(self, options: Any, what: str, model: Path, tmp_path: Path) -> None:
        convert_folder(model, tmp_path / "one", **options)
        weights(model / "2_Dense" / "model.safetensors")

        with pytest.raises(EncodeError, match=f"^{what} is for one file, and this model has 2: 'model.vqm', '2"):
            convert_folder(model, tmp_path / "two", **options)

        assert not (tmp_path / "two").exists()


class TestTheNewFolder:
    def test_one_with_files_is_not_replaced(self, model: Path, tmp_path: Path) -> None:
        text(tmp_path / "out" / "model.vqm", "old")

        with pytest.raises(FileExistsError, match="is a folder that is not empty"):
            convert_folder(model, tmp_path / "out")

        assert files(tmp_path / "out") == ["model.vqm"]

    def test_an_empty_one_is(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()

        convert_folder(model, tmp_path / "out")

        assert "model.vqm" in files(tmp_path / "out")

    def test_a_model_is_replaced_as_a_whole_on_request(self, model: Path, tmp_path: Path) -> None:
        text(tmp_path / "out" / "model.safetensors", "old")
        text(tmp_path / "out" / "config.json", "old")
        text(tmp_path / "out" / "old.json")

        convert_folder(model, tmp_path / "out", overwrite=True)

        assert files(tmp_path / "out") == ["config.json", "model.vqm", "tokenizer/vocab.txt"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]

    @pytest.mark.parametrize("also", [(), ("model.vqm",), ("config.json",), ("model.vqm", "config.json", ".git/HEAD")])
    def test_no_other_folder_is(self, also: tuple[str, ...], model: Path, tmp_path: Path) -> None:
        for name in ("thesis.tex", *also):
            text(tmp_path / "out" / name, "years of work")

        with pytest.raises(FileExistsError, match="not replaced"):
            convert_folder(model, tmp_path / "out", overwrite=True)

        assert files(tmp_path / "out") == sorted(["thesis.tex", *also])

    def test_the_working_directory_is_not(self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        convert_folder(model, tmp_path / "out")
        monkeypatch.chdir(tmp_path / "out" / "tokenizer")

        with pytest.raises(FileExistsError, match="not replaced"):
            convert_folder(model, tmp_path / "out", overwrite=True)

    def test_it_is_complete_or_absent(self, model: Path, tmp_path: Path) -> None:
        (model / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")

        with pytest.raises(ConversionError):
            convert_folder(model, tmp_path / "out")

        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    @pytest.mark.parametrize("where", ["model/out", ".", "model"])
    def test_it_is_apart_from_the_source(self, where: str, model: Path, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match=r"in the other|the source itself"):
            convert_folder(model, tmp_path / where, overwrite=True)

        assert "config.json" in files(model)


class TestForeignFolders:
    def test_a_link_out_of_the_folder_is_refused(self, model: Path, tmp_path: Path) -> None:
        text(tmp_path / "secret", "x")
        (model / "README.md").symlink_to(tmp_path / "secret")

        with pytest.raises(ConversionError, match=r"'README.md', a link that leads out of the folder"):
            convert_folder(model, tmp_path / "out")

    def test_a_folder_behind_a_link_is_refused(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "secrets").mkdir()
        (model / "tokenizer2").symlink_to(tmp_path / "secrets")

        with pytest.raises(ConversionError, match="leads out of the folder"):
            convert_folder(model, tmp_path / "out")

    def test_a_pipe_is_refused(self, model: Path, tmp_path: Path) -> None:
        os.mkfifo(model / "config2.json")

        with pytest.raises(ConversionError, match="is a pipe"):
            convert_folder(model, tmp_path / "out")

    def test_the_links_of_a_download_cache_are_followed(self, tmp_path: Path) -> None:
        blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "abc"
        weights(blobs / "1234")
        text(blobs / "5678", '{"model_type": "bert"}')
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
        (snapshot / "config.json").symlink_to("../../blobs/5678")

        convert_folder(snapshot, tmp_path / "out")

        assert files(tmp_path / "out") == ["config.json", "model.vqm"]
        assert not (tmp_path / "out" / "config.json").is_symlink()

    @pytest.mark.parametrize("name", ["model-00001-of-00003.safetensors", "other-00001-of-00003.safetensors"])
    def test_a_shard_is_no_model(self, name: str, tmp_path: Path) -> None:
        weights(tmp_path / "model" / name)

        with pytest.raises(ConversionError, match="one of several shards, whose index is not there"):
            convert_folder(tmp_path / "model", tmp_path / "out")

    def test_a_folder_without_weights_is_refused(self, tmp_path: Path) -> None:
        text(tmp_path / "model" / "config.json")

        with pytest.raises(ConversionError, match="without a checkpoint"):
            convert_folder(tmp_path / "model", tmp_path / "out")

    @pytest.mark.parametrize("found", [
        [["../x.safetensors", 2]], [["/x.safetensors", 2]], [["x.safetensors", 3]], [["x.sh", 2]], [["x.exe", True]],
        [["x.safetensors", 1], ["X.safetensors", 1]], "x.safetensors", [["x.safetensors", -1], ["y.safetensors", 3]],
    ])  # fmt: skip
    def test_file_names_that_are_none_are_not_used(self, found: Any, tmp_path: Path) -> None:
        arrays = {"a": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32)}
        (tmp_path / "out").mkdir()
        vqformat.save_file(arrays, tmp_path / "out" / "model.vqm", {"vqm.source": {"format": "npz", "files": found}})

        extract_folder(tmp_path / "out", tmp_path / "back")

        assert files(tmp_path / "back") == ["model.safetensors"]
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []

    def test_weights_do_not_replace_another_file(self, model: Path, tmp_path: Path) -> None:
        convert_folder(model, tmp_path / "out")
        text(tmp_path / "out" / "model.safetensors", "x")

        with pytest.raises(ConversionError, match=r"has a file 'model\.safetensors' already"):
            extract_folder(tmp_path / "out", tmp_path / "back")

        assert not (tmp_path / "back").exists()


class TestCommand:
    def test_a_folder_becomes_a_folder_and_comes_back(self, model: Path, tmp_path: Path, run: Run) -> None:
        there = run("convert", model, "-o", tmp_path / "out")
        back = run("extract", tmp_path / "out", "-o", tmp_path / "back")

        assert (there.code, there.err, back.code, back.err) == (0, "", 0, "")
        assert "2 other files copied" in there.out
        assert "model.safetensors: 1,200 bytes" in back.out
        assert files(tmp_path / "back") == files(model)

    def test_what_is_left_out_is_said_even_quietly(self, model: Path, tmp_path: Path, run: Run) -> None:
        text(model / "pytorch_model.bin")

        result = run("convert", "-q", model, "-o", tmp_path / "out")

        assert (result.code, result.out) == (0, "")
        assert "left out 'pytorch_model.bin'" in result.err

    def test_one_vqm_says_what_it_lacks(self, model: Path, tmp_path: Path, run: Run) -> None:
        result = run("convert", "-q", model, "-o", tmp_path / "out.vqm")

        assert result.code == 0
        assert "left out 'config.json', 'tokenizer/vocab.txt': a .vqm holds tensors; give a folder" in result.err
        assert "left out 'config.json'" in convert(model, tmp_path / "again.vqm").left_out[0]

    def test_json(self, model: Path, tmp_path: Path, run: Run) -> None:
        there = run("convert", "--json", model, "-o", tmp_path / "out").json
        back = run("extract", "--json", tmp_path / "out", "-o", tmp_path / "back").json

        assert list(there["files"]) == ["model.vqm"]
        assert there["copied"] == back["copied"] == ["config.json", "tokenizer/vocab.txt"]
        assert back["written"] == ["model.safetensors"]

    def test_force_replaces_a_model(self, model: Path, tmp_path: Path, run: Run) -> None:
        run("convert", model, "-o", tmp_path / "out")

        run("convert", model, "-o", tmp_path / "out").failed_with("is a folder that is not empty")
        assert run("convert", "-f", model, "-o", tmp_path / "out").code == 0

    def test_the_name_of_another_format_is_no_folder(self, model: Path, tmp_path: Path, run: Run) -> None:
        assert run("convert", model, "-o", tmp_path / "out.safetensors").code == 2

    def test_names_of_tensors_are_for_files(self, model: Path, tmp_path: Path, run: Run) -> None:
        run("convert", model, "-o", tmp_path / "out")

        assert run("extract", tmp_path / "out", "-o", tmp_path / "back", "a*").code == 2

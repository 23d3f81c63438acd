"""Keras 3 models to .vqm and back: archives, folders, weights, shards and .h5."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from itertools import product
from pathlib import Path

import pytest
from conftest import ROOT
from examples import some_of
from hdf5_trees import WEIGHTS, arrays_of, error_of, same_bits, tree_at, tree_of_model, without
from keras_zoo import BUILDERS, FORMATS, KINDS, SUFFIXES, Zoo, expected_names, keras, state_of

import vqformat
from vqformat.converters import convert, extract, open_source

pytestmark = [
    pytest.mark.usefixtures("forked_libhdf5"),
    # Keras says that the state of an optimizer is not there
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),
    pytest.mark.filterwarnings("ignore:A total of .* objects could not be loaded"),
]


class TestThereAndBack:
    @pytest.mark.parametrize(("name", "kind"), some_of(product(BUILDERS, KINDS), [
        (name, kind) for name, kind in product(BUILDERS, KINDS)
        if kind in ("keras", "h5") or name in ("cnn", "subclassed", "many")
    ]))  # fmt: skip
    def test_names_values_and_outputs_survive(self, zoo: Zoo, tmp_path: Path, name: str, kind: str) -> None:
        model, source = zoo.model(name), zoo.file(name, kind)
        state = list(state_of(model).values())

        # the ways back of the other kinds are the same
        for lossless in (True, False) if kind in ("keras", "h5") or name == "cnn" else (True,):
            vqm = tmp_path / f"{lossless}.vqm"
            convert(source, vqm, lossless=lossless)

            stored = vqformat.load_file(vqm)
            names = expected_names(name, kind, model)
            assert sorted(stored) == sorted(names)
            for known, array in zip(names, state, strict=True):
                assert same_bits(stored[known], array) or (not lossless and error_of(stored[known], array) < 0.1)
            for suffix in {SUFFIXES.get(kind, ".weights.h5"), ".h5" if kind == "h5" else ".weights.h5"}:
                back = tmp_path / f"back{lossless}{suffix}"
                extract(vqm, back)
                if lossless and suffix == SUFFIXES.get(kind):
                    state_group = "optimizer_weights" if kind == "h5" else "optimizer"
                    assert tree_of_model(back) == without(tree_of_model(source), state_group)
                if suffix == ".h5" and name in ("subclassed", "half"):
                    continue  # Keras 3 writes these and cannot load them
                if suffix == ".weights.h5":
                    found = zoo.blank(name)
                    found.load_weights(back)
                else:
                    found = keras.saving.load_model(back)
                assert len(state_of(found)) == len(state)
                for array, before in zip(state_of(found).values(), state, strict=True):
                    assert same_bits(array, before) or (not lossless and error_of(array, before) < 0.1)
                now, before = zoo.outputs(name, found), zoo.outputs(name, model)
                assert same_bits(now, before) or (not lossless and error_of(now, before) < 0.2)

    @pytest.mark.parametrize("name", ["cnn", "subclassed"])
    def test_a_folder_comes_back_as_an_archive(self, zoo: Zoo, tmp_path: Path, name: str) -> None:
        convert(zoo.file(name, "folder"), tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.keras")

        found = keras.saving.load_model(tmp_path / "b.keras")
        assert same_bits(zoo.outputs(name, found), zoo.outputs(name, zoo.model(name)))

    @pytest.mark.parametrize("kind", ["keras", "weights", "h5"])
    def test_the_tree_is_the_same_with_the_optimizer(self, zoo: Zoo, tmp_path: Path, kind: str) -> None:
        source, suffix = zoo.file("cnn", kind), SUFFIXES[kind]
        convert(source, tmp_path / "a.vqm", lossless=True, include_optimizer=True)
        extract(tmp_path / "a.vqm", tmp_path / f"b{suffix}")

        assert tree_of_model(tmp_path / f"b{suffix}") == tree_of_model(source)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_h5_of_any_kind_has_the_tree(self, zoo: Zoo, tmp_path: Path, kind: str) -> None:
        convert(zoo.file("cnn", kind), tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.hdf5")

        found = tree_at(tmp_path / "b.hdf5")
        if kind == "h5":
            assert found == without(tree_at(zoo.file("cnn", "h5")), "optimizer_weights")
        else:
            assert found == without(tree_at(zoo.file("cnn", "weights")), "optimizer")

    @pytest.mark.parametrize("name", ["cnn", "recurrent", "many"])
    def test_there_are_several_shards(self, zoo: Zoo, name: str) -> None:
        source = zoo.file(name, "shards")

        assert len(list(source.parent.iterdir())) > 2
        assert len(arrays_of(source)) == len(state_of(zoo.model(name)))

    @pytest.mark.parametrize("kind", KINDS)
    def test_formats_are_told_by_content(self, zoo: Zoo, tmp_path: Path, kind: str) -> None:
        source = zoo.file("cnn", kind)
        if kind in ("keras", "weights", "h5"):
            source = tmp_path / "wrong.pt"
            source.write_bytes(zoo.file("cnn", kind).read_bytes())
        with open_source(source) as opened:
            assert opened.format == FORMATS[kind]


class TestArchive:
    @staticmethod
    def rewritten(source: Path, target: Path, **members: bytes) -> Path:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, members.pop(name, None) or old.read(name))
            for name, data in members.items():
                new.writestr(name, data)
        return target

    @pytest.mark.parametrize("config", [
        b"{not JSON at all", b"\xff\xfe\x00binary",
        json.dumps({"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__", "config": {
            "code": "4wEAAAAA"}}}}).encode(),
        json.dumps({"module": "os", "class_name": "system", "config": {"command": "exit 1"}}).encode(),
    ], ids=["broken", "binary", "lambda", "foreign"])  # fmt: skip
    def test_configuration_is_never_interpreted(self, zoo: Zoo, tmp_path: Path, config: bytes) -> None:
        members = {"config.json": config, "metadata.json": b"\x00", "assets/x/vocab.txt": b"a\nb\n",
                   "assets/layers/lookup/ü.bin": bytes(range(256))}  # fmt: skip
        source = self.rewritten(zoo.file("cnn", "keras"), tmp_path / "a.keras", **members)

        convert(source, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.keras")

        with zipfile.ZipFile(tmp_path / "b.keras") as archive:
            assert archive.testzip() is None
            assert {name: archive.read(name) for name in archive.namelist() if name != WEIGHTS} == members
        assert tree_at(tmp_path / "b.keras", WEIGHTS) == without(tree_at(source, WEIGHTS), "optimizer")

    def test_other_files_of_a_folder_are_not_taken(self, zoo: Zoo, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        (folder / "assets" / "x").mkdir(parents=True)
        for name in ("config.json", "metadata.json", WEIGHTS):
            (folder / name).write_bytes((zoo.file("shared", "folder") / name).read_bytes())
        (folder / "assets" / "x" / "vocab.txt").write_bytes(b"a\nb\n")
        (folder / "private.key").write_bytes(b"not of the model")

        convert(folder, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.keras")

        with zipfile.ZipFile(tmp_path / "b.keras") as archive:
            assert sorted(archive.namelist()) == ["assets/x/vocab.txt", "config.json", "metadata.json", WEIGHTS]
            assert archive.read("assets/x/vocab.txt") == b"a\nb\n"
        assert b"not of the model" not in (tmp_path / "a.vqm").read_bytes()

    def test_neither_keras_nor_torch_is_imported(self, zoo: Zoo, tmp_path: Path) -> None:
        code = """if True:
            import sys
            from pathlib import Path
            import hdf5_server
            from vqformat.converters import convert, extract, hdf5
            if hdf5_server.IS_POSSIBLE:
                hdf5.subprocess = hdf5_server.Server()
            for k, source in enumerate(sys.argv[2:]):
                vqm = Path(sys.argv[1], f"{k}.vqm")
                convert(source, vqm)
                for suffix in ((".h5",) if source.endswith("model.h5") else (".weights.h5", ".h5", ".safetensors")):
                    extract(vqm, vqm.with_suffix(suffix))
                if source.endswith(("folder", ".keras")):
                    extract(vqm, vqm.with_suffix(".keras"))
            print([name for name in ("keras", "torch", "tensorflow", "jax") if name in sys.modules])
        """
        sources = [str(zoo.file("cnn", kind)) for kind in KINDS]
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), *sources], capture_output=True, text=True,
                              cwd=ROOT / "tests", check=False)  # fmt: skip

        assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_bytes_come_out_twice(self, zoo: Zoo, tmp_path: Path, kind: str) -> None:
        suffixes = {"keras": [".keras", ".weights.h5", ".h5"], "folder": [".keras"], "h5": [".h5"]}
        made = []
        for run in ("a", "b"):
            files = [tmp_path / f"{run}.vqm"]
            convert(zoo.file("cnn", kind), files[0], include_optimizer=True)
            for suffix in suffixes.get(kind, [".weights.h5"]):
                files.append(tmp_path / f"{run}{suffix}")
                extract(files[0], files[-1])
            made.append([file.read_bytes() for file in files])
            if kind == "keras" and run == "a":
                time.sleep(2.1)  # archives keep times to two seconds

        assert made[0] == made[1]

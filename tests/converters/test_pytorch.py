"""PyTorch checkpoints to .vqm and back, and those that would run code."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import IS_ZIP, arrays_of, data_file, every_kind, save_torch, torch_equal, write_npy

import vqformat
from vqformat.converters import convert, extract, open_source
from vqformat.errors import ConversionError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")
st = pytest.importorskip("safetensors.torch", reason="not installed: pip install 'vqformat[safetensors]'")


class TestPyTorch:
    @IS_ZIP
    def test_every_dtype_and_form_survives_to_vqm_and_back(self, tmp_path: Path, is_zip: bool) -> None:
        state = every_kind()
        if not is_zip:  # torch.load cannot read these from a legacy file with weights_only
            state = {name: state[name] for name in state if name not in ("f8a", "f8b", "u16")}
        save_torch(tmp_path / "a.pt", state, is_zip)

        convert(tmp_path / "a.pt", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.pt")

        found = torch.load(tmp_path / "b.pt", weights_only=True)
        assert list(found) == list(state)
        assert all(torch_equal(found[name], state[name].resolve_conj()) for name in state)

    def test_packed_4_bit_floats_are_counted_in_elements(self, tmp_path: Path) -> None:
        packed = torch.tensor([[0x21, 0x43, 0xF5]], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        save_torch(tmp_path / "a.pt", {"w": packed})

        convert(tmp_path / "a.pt", tmp_path / "a.vqm")
        extract(tmp_path / "a.vqm", tmp_path / "b.pt")

        array = vqformat.load_file(tmp_path / "a.vqm")["w"]
        assert array.astype(np.float32).tolist() == [[0.5, 1.0, 1.5, 2.0, 3.0, -6.0]]
        found = torch.load(tmp_path / "b.pt", weights_only=True)["w"]
        assert found.dtype == torch.float4_e2m1fn_x2 and found.view(torch.uint8).tolist() == [[0x21, 0x43, 0xF5]]

    @IS_ZIP
    @pytest.mark.parametrize("keys", [["state_dict"], ["model"], ["checkpoint", "model_state_dict"]])
    def test_state_dict_is_found_inside_a_checkpoint(self, tmp_path: Path, is_zip: bool, keys: list[str]) -> None:
        checkpoint: Any = OrderedDict({"module.fc.weight": torch.ones(2, 3), "module.fc.bias": torch.zeros(2)})
        for key in reversed(keys):
            checkpoint = {"epoch": 3, key: checkpoint, "best": torch.tensor(91.7)}
            checkpoint["optimizer"] = {"state": {0: {"exp_avg": torch.ones(6)}}, "param_groups": [{"lr": 0.1}]}
            if key == "checkpoint":
                del checkpoint["optimizer"], checkpoint["best"]
        save_torch(tmp_path / "a.pt", checkpoint, is_zip)

        report = convert(tmp_path / "a.pt", tmp_path / "a.vqm")

        names = [tensor.name for tensor in report.tensors]
        assert names[:2] == ["module.fc.weight", "module.fc.bias"]
        assert [name.rpartition(".")[2] for name in names[2:]] == ["best"]
        with vqformat.safe_open(tmp_path / "a.vqm") as file:
            assert file.metadata()["vqm.source"]["nesting"] == keys
        assert len(keys) > 1 or [note for note in report.left_out if "optimizer" in note and "1 tensor" in note]

    def test_several_state_dicts_are_joined_and_a_name_alone_makes_no_optimizer(self, tmp_path: Path) -> None:
        save_torch(tmp_path / "a.pt", {"generator": {"w": torch.ones(2)}, "critic": {"w": torch.zeros(3)},
                                       "optim_g": {"m": torch.ones(2)}})  # fmt: skip

        with open_source(tmp_path / "a.pt") as source:
            assert [tensor.name for tensor in source.tensors] == ["generator.w", "critic.w", "optim_g.m"]
            assert source.left_out == []

    def test_lists_and_single_tensors_get_names(self, tmp_path: Path) -> None:
        save_torch(tmp_path / "list.pt", [torch.ones(2), torch.zeros(3)])
        save_torch(tmp_path / "one.pt", torch.ones(2))

        assert list(arrays_of(tmp_path / "list.pt")) == ["0", "1"]
        assert list(arrays_of(tmp_path / "one.pt")) == ["tensor"]

    @IS_ZIP
    def test_tied_tensors_become_aliases_and_are_tied_again(self, tmp_path: Path, is_zip: bool) -> None:
        w = torch.arange(6.0).reshape(2, 3)
        state = {"embed.weight": w, "copy": w.clone(), "head.weight": w, "view": w.view(2, 3), "t": w.t()}
        save_torch(tmp_path / "a.pt", state, is_zip)

        report = convert(tmp_path / "a.pt", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.pt")

        with vqformat.safe_open(tmp_path / "a.vqm") as file:
            aliases = {name: file.info(name).alias_of for name in file}
        assert aliases == {"embed.weight": None, "copy": None, "head.weight": "embed.weight", "view": "embed.weight",
                           "t": None}  # fmt: skip
        assert report.notes == ["'t' and 'embed.weight' are views that overlap: each is stored on its own"]
        found = torch.load(tmp_path / "b.pt", weights_only=True)
        assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr() != found["copy"].data_ptr()

    @IS_ZIP
    def test_parts_of_one_storage_are_stored_without_the_rest(self, tmp_path: Path, is_zip: bool) -> None:
        flat = torch.arange(100_000.0)
        save_torch(tmp_path / "a.pt", {"a": flat[:10], "b": flat[10:20], "c": flat[5:15]}, is_zip)

        report = convert(tmp_path / "a.pt", tmp_path / "a.vqm", lossless=True)

        assert (tmp_path / "a.vqm").stat().st_size < 2000
        assert len(report.notes) == 2 and all("overlap" in note for note in report.notes)
        assert vqformat.load_file(tmp_path / "a.vqm")["c"].tolist() == list(range(5, 15))

    @pytest.mark.parametrize("is_deflated", [False, True])
    def test_compressed_zip_members_are_read(self, tmp_path: Path, is_deflated: bool) -> None:
        save_torch(tmp_path / "a.pt", {"w": torch.arange(1000.0)})
        method = zipfile.ZIP_DEFLATED if is_deflated else zipfile.ZIP_STORED
        with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w", method) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))

        assert arrays_of(tmp_path / "b.pt")["w"].tolist() == list(range(1000))

    @IS_ZIP
    def test_what_can_be_told_of_objects_is_kept(self, tmp_path: Path, is_zip: bool) -> None:
        checkpoint = {"state_dict": {"w": torch.ones(2)}, "acc": np.float64(0.9), "args": Namespace(lr=1),
                      "log": np.arange(3), "out": Path("runs/1"), "device": torch.device("cpu")}  # fmt: skip
        save_torch(tmp_path / "a.pt", checkpoint, is_zip)

        convert(tmp_path / "a.pt", tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.pt")

        found = torch.load(tmp_path / "b.pt", weights_only=True)
        assert found.pop("state_dict")["w"].tolist() == [1, 1] and found.pop("log").tolist() == [0, 1, 2]
        assert found == {"acc": 0.9, "args": {"lr": 1}, "out": "runs/1", "device": torch.device("cpu")}

    def test_a_flipped_bit_in_a_zip_file_is_found(self, tmp_path: Path) -> None:
        save_torch(tmp_path / "a.pt", {"w": torch.ones(1000)})
        data = bytearray((tmp_path / "a.pt").read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "a.pt").write_bytes(data)

        with pytest.raises(ConversionError, match="'a/data/0' is damaged"):
            open_source(tmp_path / "a.pt")

    def test_a_zip_file_written_without_checksums_is_read(self, tmp_path: Path) -> None:
        torch.serialization.set_crc32_options(False)
        try:
            save_torch(tmp_path / "a.pt", {"w": torch.ones(5)})
        finally:
            torch.serialization.set_crc32_options(True)

        assert arrays_of(tmp_path / "a.pt")["w"].tolist() == [1] * 5

    def test_tensors_tagged_cuda_are_read_without_a_gpu(self, tmp_path: Path) -> None:
        save_torch(tmp_path / "cpu.pt", {"w": torch.arange(5.0)}, is_zip=False)
        data = (tmp_path / "cpu.pt").read_bytes()
        tag, cuda = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"  # pickled strings
        assert tag in data
        (tmp_path / "cuda.pt").write_bytes(data.replace(tag, cuda))

        assert arrays_of(tmp_path / "cuda.pt")["w"].tolist() == [0, 1, 2, 3, 4]

    def test_real_legacy_checkpoint(self, tmp_path: Path) -> None:
        source = data_file("resnet20-12fca82f.th")

        report = convert(source, tmp_path / "a.vqm", lossless=True)
        extract(tmp_path / "a.vqm", tmp_path / "b.pt")

        expected = torch.load(source, map_location="cpu", weights_only=True)["state_dict"]
        found = torch.load(tmp_path / "b.pt", weights_only=True)["state_dict"]
        assert list(found) == list(expected) and "module.conv1.weight" in found
        assert all(torch_equal(found[name], expected[name]) for name in expected)
        assert report.notes == []
        assert torch.load(tmp_path / "b.pt", weights_only=True)["best_prec1"] == 91.78000183105469

    def test_real_zip_checkpoint_loads_into_its_model(self, tmp_path: Path) -> None:
        source = data_file("lenet300_100_mnist.pt")

        report = convert(source, tmp_path / "a.vqm", ratio=12)
        extract(tmp_path / "a.vqm", tmp_path / "b.pt")

        assert report.ratio > 11.8
        expected = torch.load(source, weights_only=True)
        found = torch.load(tmp_path / "b.pt", weights_only=True)
        assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
            name: (t.shape, t.dtype) for name, t in expected.items()
        }


class Attack:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class TestHostileCheckpoints:
    @IS_ZIP
    def test_a_pickle_that_calls_something_is_refused_and_not_run(self, tmp_path: Path, is_zip: bool) -> None:
        save_torch(tmp_path / "a.pt", {"w": torch.ones(2), "x": Attack(tmp_path / "ran")}, is_zip)

        with pytest.raises(ConversionError, match=r"needs the Python object \w+\.mkdir.*state_dict"):
            open_source(tmp_path / "a.pt")

        assert not (tmp_path / "ran").exists()

    def test_another_program_s_pickle_is_refused_and_not_run(self, tmp_path: Path) -> None:
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(Attack(tmp_path / "ran")))

        with pytest.raises(ConversionError, match=r"pickle that torch\.save did not write"):
            open_source(tmp_path / "a.pkl")

        assert not (tmp_path / "ran").exists()

    def test_pickled_arrays_are_not_loaded(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.array([Attack(tmp_path / "ran")], dtype=object), w=np.ones(3))

        with open_source(tmp_path / "a.npz") as source:
            assert [tensor.name for tensor in source.tensors] == ["w"]
            assert source.notes == ["left out 'x': pickled Python objects, which are never loaded"]

        assert not (tmp_path / "ran").exists()

    def test_a_storage_that_claims_more_than_the_file_has_is_refused(self, tmp_path: Path) -> None:
        save_torch(tmp_path / "a.pt", {"w": torch.ones(1000)})
        with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("data.pkl"):  # both sizes, of the storage and of the tensor
                    content = content.replace(b"M\xe8\x03", b"J" + struct.pack("<i", 10**9))
                new.writestr(name, content)

        with pytest.raises(ConversionError, match="damaged"):
            open_source(tmp_path / "b.pt")

    def test_shared_and_cyclic_containers_are_visited_once(self, tmp_path: Path) -> None:
        nested: Any = {"w": torch.ones(1), "v": torch.ones(1)}
        nested["self"] = nested
        for _ in range(40):  # 2^40 paths to two tensors
            nested = {"a": nested, "b": nested}
        save_torch(tmp_path / "a.pt", nested)

        with open_source(tmp_path / "a.pt") as source:
            assert len(source.tensors) < 20 and source.tensors[0].name == "a." * 40 + "w"
            assert len({tensor.alias_of or tensor.name for tensor in source.tensors}) == 2

        for _ in range(30):
            nested = {"a": nested, "b": torch.ones(1)}
        save_torch(tmp_path / "a.pt", nested)
        with pytest.raises(ConversionError, match="deeper than 64 levels"):
            open_source(tmp_path / "a.pt")

    def test_an_array_header_that_claims_more_than_the_file_has_is_refused(self, tmp_path: Path) -> None:
        write_npy(tmp_path / "a.npy")
        data = (tmp_path / "a.npy").read_bytes()
        for old, new, message in ((b"(1000,), }" + b" " * 9, b"(1000000000000,), }", "needs 8000000000000 bytes"),
                                  (b"(1000,), }", b"(-100,), }", "shape"),
                                  (b"(1000,), }", b"(9**9,), }", "damaged")):  # fmt: skip
            assert data.count(old) == 1
            (tmp_path / "a.npy").write_bytes(data.replace(old, new))
            with pytest.raises(ConversionError, match=message):
                open_source(tmp_path / "a.npy")

    @pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/passwd", "..", "a\\b", "", 3])
    def test_an_index_cannot_name_a_file_elsewhere(self, tmp_path: Path, shard: Any) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))

        with pytest.raises(ConversionError, match="a plain file name is allowed"):
            open_source(tmp_path)

"""PyTorch files of every kind to .vqm and back: whole checkpoints, shards, TorchScript; and hostile ones, refused."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES, forget

import vqformat
from vqformat.converters import convert, extract, open_source
from vqformat.errors import ConversionError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning",
                                        "ignore:.*torch.jit.*:FutureWarning")  # fmt: skip
IS_ZIP = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def save(path: Path, checkpoint: Any, is_zip: bool = True) -> Path:
    torch.save(checkpoint, path, _use_new_zipfile_serialization=is_zip)
    return path


def equal(a: Any, b: Any) -> bool:
    """Whether two checkpoints have the same structure, and the same bits in their tensors."""
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        bits = [t.detach().resolve_conj().contiguous().view(-1).view(torch.uint8) for t in (a, b)]
        return bool(torch.equal(*bits))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def round_trip(source: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The checkpoint that comes back, and the notes of both ways."""
    folder = source.parent
    report = convert(source, folder / "x.vqm", overwrite=True, **options)
    notes = extract(folder / "x.vqm", folder / "x.pt", overwrite=True)
    return torch.load(folder / "x.pt", weights_only=True), report.notes, notes


def new_training() -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
    groups = [{"params": model[0].parameters(), "lr": 3e-3}, {"params": model[2].parameters()}]
    optimizer = torch.optim.Adam(groups, lr=1e-3, betas=(0.8, 0.99))
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def step(model: Any, optimizer: Any, scheduler: Any) -> None:
    x = torch.linspace(-1, 1, 40 * 8).reshape(8, 40)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        scheduler.step()


def training_checkpoint() -> dict[str, Any]:
    model, optimizer, scheduler = training = new_training()
    step(*training)
    parts = {"state_dict": model, "optimizer": optimizer, "lr_scheduler": scheduler}
    states = {name: part.state_dict() for name, part in parts.items()}
    return {"epoch": 3, **states, "rng_state": torch.get_rng_state(), "loss": float("inf")}


class TestWholeCheckpoints:
    @IS_ZIP
    @pytest.mark.parametrize("options", [{"lossless": True}, {}], ids=["lossless", "default"])
    def test_training_goes_on_where_it_was(self, tmp_path: Path, is_zip: bool, options: Any) -> None:
        checkpoint = training_checkpoint()
        save(tmp_path / "a.pt", checkpoint, is_zip)

        found, _, _ = round_trip(tmp_path / "a.pt", include_optimizer=True, **options)

        assert list(found) == list(checkpoint)
        for part in checkpoint.keys() - {"state_dict"}:  # exact even where weights are not
            assert equal(checkpoint[part], found[part]), part
        assert equal(checkpoint["state_dict"], found["state_dict"]) == bool(options)
        model, optimizer, scheduler = new_training()
        model.load_state_dict(found["state_dict"])
        optimizer.load_state_dict(found["optimizer"])
        scheduler.load_state_dict(found["lr_scheduler"])
        assert optimizer.param_groups[1]["betas"] == (0.8, 0.99) and scheduler.last_epoch == 3
        step(model, optimizer, scheduler)

    def test_weights_keep_their_names_and_the_others_are_named_by_their_keys(self, tmp_path: Path) -> None:
        save(tmp_path / "a.pt", {"state_dict": {"w": torch.ones(3), "state_dict.w": torch.ones(1)},
                                 "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}})  # fmt: skip

        with open_source(tmp_path / "a.pt", include_optimizer=True) as source:
            exact = {tensor.name: tensor.is_exact for tensor in source.tensors}
        assert exact == {"w": False, "state_dict.w": False, "optimizer.state.0.exp_avg": True}

    @IS_ZIP
    def test_without_the_option_the_training_state_is_left_out_and_said_to_be(self, tmp_path: Path,
                                                                            is_zip: bool) -> None:  # fmt: skip
        checkpoint = training_checkpoint()
        save(tmp_path / "a.pt", checkpoint, is_zip)

        found, notes, notes_back = round_trip(tmp_path / "a.pt", lossless=True)

        kept = {"epoch": 3, "state_dict": dict(checkpoint["state_dict"]), "loss": float("inf")}
        assert equal(found, kept)
        assert any("left out 'optimizer' (dict of 2 with 12 tensors)" in note for note in notes)
        assert any("--include-optimizer" in note for note in notes)
        assert notes_back == ["the state dict lies under 'state_dict', as in the source: torch.load(…)['state_dict']"]

    @pytest.mark.parametrize("value", [
        None, True, 7, -(2**80), 1.5, float("nan"), float("-inf"), "é\ud800", b"\x00\xff", [1, [2.5, None]],
        (1, (2, "x")), {1: "a", "1": "b", None: 0, 2.5: []},
    ])  # fmt: skip
    def test_plain_values_come_back(self, tmp_path: Path, value: Any) -> None:
        checkpoint = {"model": {"w": torch.ones(2)}, "value": value}
        save(tmp_path / "a.pt", checkpoint)

        found, notes, _ = round_trip(tmp_path / "a.pt", include_optimizer=True, lossless=True)

        assert equal(found, checkpoint) and notes == []

    def test_what_is_no_plain_value_is_left_out_with_a_note(self, tmp_path: Path) -> None:
        save(tmp_path / "a.pt", {"model": {"w": torch.ones(2)}, "log": [1, torch.relu, np.float64(3)], "loss": equal,
                                 "dtype": torch.float32, (1, 2): 3, "size": torch.Size([4])})  # fmt: skip

        found, notes, notes_back = round_trip(tmp_path / "a.pt", lossless=True)

        assert equal(found, {"model": {"w": torch.ones(2)}, "log": [1, None, 3.0], "dtype": torch.float32,
                             (1, 2): 3, "size": (4,)})  # fmt: skip
        assert len(notes) == 2 and all(note.startswith("left out") for note in notes) and set(notes) < set(notes_back)

    def test_shared_and_cyclic_containers_end(self, tmp_path: Path) -> None:
        nested: Any = {"n": 1}
        nested["self"] = nested
        for _ in range(40):  # 2^40 paths
            nested = {"a": nested, "b": nested}
        betas = (0.9, 0.999)
        save(tmp_path / "a.pt", {"model": {"w": torch.ones(2)}, "deep": nested, "groups": [betas, betas]})

        found, notes, _ = round_trip(tmp_path / "a.pt", include_optimizer=True, lossless=True)

        assert found["groups"] == [betas, betas] and notes == []
        deep = found["deep"]
        for _ in range(40):
            deep = deep["b"]
        assert deep["self"] is deep and deep["n"] == 1

        for _ in range(30):
            nested = {"a": nested}
        save(tmp_path / "a.pt", {"model": {"w": torch.ones(2)}, "deep": nested})
        with pytest.raises(ConversionError, match=r"a\.pt.*deeper than 64 levels"):
            open_source(tmp_path / "a.pt", include_optimizer=True)

    def test_part_of_the_tensors_and_other_formats_are_flat(self, tmp_path: Path) -> None:
        save(tmp_path / "a.pt", training_checkpoint())
        convert(tmp_path / "a.pt", tmp_path / "a.vqm", include_optimizer=True, lossless=True)

        extract(tmp_path / "a.vqm", tmp_path / "b.pt", names=["0.weight", "*.0.exp_avg"])
        extract(tmp_path / "a.vqm", tmp_path / "b.npz")

        names = ["0.weight", "optimizer.state.0.exp_avg"]
        assert list(torch.load(tmp_path / "b.pt", weights_only=True)) == names
        with np.load(tmp_path / "b.npz") as arrays:
            assert set(names) < set(arrays.files)

    def test_a_plain_state_dict_needs_no_structure(self, tmp_path: Path) -> None:
        save(tmp_path / "a.pt", {"w": torch.ones(2)})
        with open_source(tmp_path / "a.pt", include_optimizer=True) as source:
            assert source.origin == {"format": "pytorch"} and source.notes == []


W = {"tensor": "w"}
STRUCTURES = {
    "unknown tensor": (W, {"tensor": "v"}),
    "unknown tag": ({"list": [W]}, {"set": [W]}),
    "two tags": ({"list": [W]}, {"list": [W], "tuple": []}),
    "wrong content": ({"dict": [["a", W]]}, {"dict": {"a": W}}),
    "no pair": ({"dict": [["a", W]]}, {"dict": [["a"]]}),
    "key that is a list": ({"dict": [[{"float": "nan"}, W]]}, {"dict": [[{"list": []}, W]]}),
    "key that is an array": ({"dict": [["a", W]]}, {"dict": [[[], W]]}),
    "key twice": ({"dict": [[1, W], [2, W]]}, {"dict": [[1, W], [True, W]]}),
    "bare array": ({"list": [W]}, [W]),
    "no hex": ({"list": [W, {"bytes": "00"}]}, {"list": [W, {"bytes": "0g"}]}),
    "float": ({"list": [W, {"float": "inf"}]}, {"list": [W, {"float": "1e9"}]}),
    "no json": (W, '{"tensor": "w"'),
    "NaN": ('{"list": [1.0]}', '{"list": [NaN]}'),
    "too deep": ('{"list":[' * 60 + "1" + "]}" * 60, '{"list":[' * 70 + "1" + "]}" * 70),
    "far too deep": ('{"list":[1]}', "[" * 1_000_000),
    "long number": ("1" * 600, "1" * 700),
}


def with_origin(path: Path, **origin: Any) -> Path:
    source = {"format": "pytorch", **origin}
    vqformat.save_file({"w": np.ones(3, np.float32)}, path, metadata={"vqm.source": source})
    return path


class TestHostileMetadata:
    @pytest.mark.parametrize(("good", "bad"), STRUCTURES.values(), ids=STRUCTURES)
    def test_a_structure_is_checked(self, tmp_path: Path, good: Any, bad: Any) -> None:
        texts = [value if isinstance(value, str) else json.dumps(value) for value in (good, bad)]

        extract(with_origin(tmp_path / "good.vqm", checkpoint=texts[0]), tmp_path / "good.pt")
        with pytest.raises(ConversionError, match=r"structure of the PyTorch checkpoint.*\.safetensors"):
            extract(with_origin(tmp_path / "bad.vqm", checkpoint=texts[1]), tmp_path / "bad.pt")

        torch.load(tmp_path / "good.pt", weights_only=True)
        assert not (tmp_path / "bad.pt").exists()

    @pytest.mark.parametrize("bad", ["model", {"model": 1}, [1], [["model"]], [None], ["x"] * 65])
    def test_nesting_is_checked(self, tmp_path: Path, bad: Any) -> None:
        extract(with_origin(tmp_path / "good.vqm", nesting=["x"] * 64), tmp_path / "good.pt")
        with pytest.raises(ConversionError, match="nesting"):
            extract(with_origin(tmp_path / "bad.vqm", nesting=bad), tmp_path / "bad.pt")

    def test_a_structure_that_is_no_string_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match="structure"):
            extract(with_origin(tmp_path / "bad.vqm", checkpoint=["w"]), tmp_path / "bad.pt")

    def test_a_tensor_may_occur_twice(self, tmp_path: Path) -> None:
        extract(with_origin(tmp_path / "a.vqm", checkpoint='{"tuple":[{"tensor":"w"},{"tensor":"w"}]}'),
                tmp_path / "a.pt")  # fmt: skip
        first, second = torch.load(tmp_path / "a.pt", weights_only=True)
        assert first.data_ptr() == second.data_ptr()


class Attack:
    """Pickles to a call that leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def write_sharded(folder: Path, is_zip: bool = True, places: dict[str, str] | None = None) -> Path:
    w = torch.arange(6.0)
    save(folder / SHARDS[0], {"b": torch.ones(2), "a": w, "tied": w}, is_zip)
    save(folder / SHARDS[1], {"c": torch.ones(4, dtype=torch.int64), "a": torch.zeros(6)}, is_zip)
    whole = {"a": SHARDS[0], "b": SHARDS[0], "tied": SHARDS[0], "c": SHARDS[1], **(places or {})}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 88}, "weight_map": whole}))
    return index


class TestShards:
    @IS_ZIP
    def test_shards_are_read_by_their_index_or_folder(self, tmp_path: Path, is_zip: bool) -> None:
        index = write_sharded(tmp_path, is_zip)
        for path in (index, tmp_path):
            with open_source(path) as source:
                assert source.notes == [f"left out 'a' of {SHARDS[1]!r}: the index does not place it there"]
                assert {tensor.name: tensor.alias_of for tensor in source.tensors} == {
                    "b": None, "a": None, "tied": "a", "c": None}  # fmt: skip
                found = {tensor.name: tensor.load().tolist() for tensor in reversed(source.tensors)}
            assert found == {"c": [1] * 4, "a": list(range(6)), "tied": list(range(6)), "b": [1.0] * 2}

    def test_the_model_comes_back_in_one_file_and_its_ties_with_it(self, tmp_path: Path) -> None:
        found, _, _ = round_trip(write_sharded(tmp_path), lossless=True)

        assert list(found) == ["b", "a", "tied", "c"]
        assert found["a"].data_ptr() == found["tied"].data_ptr()

    @pytest.mark.parametrize("shard", ["../x.bin", "/x.bin", "sub/../../x.bin", "sub\\x.bin", "C:x.bin", "x\0.bin"])
    def test_a_shard_elsewhere_is_refused(self, tmp_path: Path, shard: str) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        save(tmp_path / "x.bin", {"z": torch.ones(1)})
        with pytest.raises(ConversionError, match="a plain file name is allowed"):
            open_source(write_sharded(folder, places={"z": shard}))

        save(folder / "x.bin", {"z": torch.ones(1)})
        with open_source(write_sharded(folder, places={"z": "x.bin"})) as source:
            assert source.tensors[-1].name == "z"

    def test_missing_shards_and_tensors_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match=r"not beside it: 'm\.bin'"):
            open_source(write_sharded(tmp_path, places={"z": "m.bin"}))
        with pytest.raises(ConversionError, match=rf"'{SHARDS[1]}' has tensor 'z', but it is missing there"):
            open_source(write_sharded(tmp_path, places={"z": SHARDS[1]}))

    @IS_ZIP
    def test_code_in_a_shard_is_not_run(self, tmp_path: Path, is_zip: bool) -> None:
        index = write_sharded(tmp_path)
        save(tmp_path / SHARDS[1], {"c": torch.ones(4), "x": Attack(tmp_path / "ran")}, is_zip)

        with pytest.raises(ConversionError, match=r"00002-of.*needs the Python object \w+\.mkdir"):
            open_source(index)
        assert not (tmp_path / "ran").exists()

    def test_a_shard_of_another_format_is_refused(self, tmp_path: Path) -> None:
        index = write_sharded(tmp_path)
        np.savez(tmp_path / "x.npz", c=np.ones(4))
        (tmp_path / "x.npz").replace(tmp_path / SHARDS[1])

        with pytest.raises(ConversionError, match="format npz"):
            open_source(index)


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        self.register_buffer("h", torch.tensor([1.5, -0.0], dtype=torch.float16))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("f8", torch.tensor([0.5, 448.0]).to(torch.float8_e4m3fn))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("conjugate", torch.tensor([1 + 2j, 3j]).conj())
        self.register_buffer("absent", None)
        self.sizes = [1, 2]
        self.more = [torch.zeros(2)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + self.more[0] + self.sizes[0]


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 3), Inner()])
        self.head = torch.nn.Linear(3, 3, bias=False)
        self.head.weight = self.layers[0].weight
        self.register_buffer("brain", torch.tensor([[1.5, -3e38]], dtype=torch.bfloat16))
        self.transposed = torch.nn.Parameter(torch.arange(12.0).reshape(4, 3).t())
        self.part = torch.nn.Parameter(torch.arange(10.0)[3:7])
        self.again = self.layers[0]
        self.plain = torch.ones(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def write_script(path: Path) -> Path:
    torch.manual_seed(0)
    torch.jit.script(Outer()).save(str(path))
    return path


def write_trace(path: Path) -> Path:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).eval()
    torch.jit.trace(model, torch.zeros(1, 1, 8, 8)).save(str(path))
    return path


def patch(path: Path, change: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED) -> Path:
    """An archive written again, its members as ``change`` says; None leaves one out."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, change(name, archive.read(name))) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            if data is not None:
                archive.writestr(name, data)
    return path


def patch_pickle(path: Path, old: bytes, new: bytes) -> Path:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("/data.pkl"):
            return data
        assert old in data
        return data.replace(old, new, 1)

    return patch(path, change)


class TestTorchScript:
    @pytest.mark.parametrize("write", [write_script, write_trace])
    def test_it_is_what_torch_jit_load_has(self, tmp_path: Path, write: Any) -> None:
        expected = torch.jit.load(str(write(tmp_path / "a.ts"))).state_dict()

        found, notes, _ = round_trip(tmp_path / "a.ts", lossless=True)

        assert equal(dict(expected), found)
        assert "left out the code of the archive: its tensors alone are kept" in notes

    def test_tied_weights_are_aliases_and_the_rest_is_said_to_be_left_out(self, tmp_path: Path) -> None:
        with open_source(write_script(tmp_path / "a.ts")) as source:
            aliases = {tensor.name: tensor.alias_of for tensor in source.tensors if tensor.alias_of}
            assert aliases == {"head.weight": "layers.0.weight", "again.weight": "layers.0.weight",
                               "again.bias": "layers.0.bias"}  # fmt: skip
            assert "left out 'plain': an attribute that is neither a parameter nor a buffer" in source.notes
            assert source.origin == {"format": "torchscript"}

    def test_without_parameters_what_it_has_is_named(self, tmp_path: Path) -> None:
        class Table(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = torch.ones(3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + self.table

        torch.jit.script(Table()).save(str(tmp_path / "a.ts"))

        with pytest.raises(ConversionError, match=r"no parameters and no buffers \(left out 'table': an attribute"):
            open_source(tmp_path / "a.ts")

    def test_compressed_members_are_read(self, tmp_path: Path) -> None:
        expected = torch.jit.load(str(write_script(tmp_path / "a.ts"))).state_dict()
        patch(tmp_path / "a.ts", lambda _, data: data, zipfile.ZIP_DEFLATED)

        found, _, _ = round_trip(tmp_path / "a.ts", lossless=True)

        assert equal(dict(expected), found)

    def test_without_the_code_every_tensor_is_taken(self, tmp_path: Path) -> None:
        patch(write_script(tmp_path / "a.ts"), lambda name, data: None if "/code/" in name else data)

        with open_source(tmp_path / "a.ts") as source:
            names = [tensor.name for tensor in source.tensors]
        assert {"plain", "layers.1.more.0", "layers.1.fc.weight"} < set(names)

    def test_nothing_is_run_and_no_torch_is_needed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        write_script(tmp_path / "a.ts")
        monkeypatch.setitem(sys.modules, "torch", None)
        forget(monkeypatch, "vqformat.converters.torchscript")

        with open_source(tmp_path / "a.ts") as source:
            assert len(source.tensors) == 15

    @pytest.mark.parametrize("hostile", [
        pickle.dumps(Attack(Path("ran")), 2), b"cos\nsystem\n(S'mkdir ran'\ntR.",
        b"\x80\x02cposix\nsystem\n(X\x09\x00\x00\x00mkdir rantR.",
        b"\x80\x02cbuiltins\neval\n.", b"\x80\x02ctorch._utils\n_rebuild_tensor\n.", b"(S'mkdir ran'\nios\nsystem\n.",
    ])  # fmt: skip
    def test_a_pickle_that_calls_something_is_refused_and_not_run(self, tmp_path: Path, hostile: bytes,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        with open_source(write_script(tmp_path / "a.ts")):
            pass
        patch(tmp_path / "a.ts", lambda name, data: hostile if name.endswith("/data.pkl") else data)

        with pytest.raises(ConversionError, match=r"a\.ts.*(can run code|holds no module)"):
            open_source(tmp_path / "a.ts")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("hostile", [
        b"\x80\x02(((((", b"\x80\x02N.", b"\x80\x02]q\x00.", b"", b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00xNsb.",  # changes the function
        b"\x80\x02ctorch.jit._pickle\nrestore_type_tag\nN}X\x05\x00\x00\x00_callNs\x86b.",
    ])  # fmt: skip
    def test_a_broken_pickle_is_refused(self, tmp_path: Path, hostile: bytes) -> None:
        write_script(tmp_path / "a.ts")
        patch(tmp_path / "a.ts", lambda name, data: hostile if name.endswith("/data.pkl") else data)

        with pytest.raises(ConversionError, match=r"a\.ts"):
            open_source(tmp_path / "a.ts")

    def test_a_storage_smaller_than_its_tensor_is_refused(self, tmp_path: Path) -> None:
        write_trace(tmp_path / "a.ts")
        patch(tmp_path / "a.ts", lambda name, data: data[:-4] if name.endswith("/data/0") else data)

        with pytest.raises(ConversionError, match=r"'0\.weight' .* shape \(2, 1, 3, 3\) and needs 72 bytes .* has 68"):
            open_source(tmp_path / "a.ts")

    @pytest.mark.parametrize(("new", "message"), [
        (b"K\x02K\x01K\x03K\x03", None),  # as it was
        (b"J\xff\xff\xff\x7fK\x01K\x03K\x03", "needs"),
        (b"J\xff\xff\xff\xffK\x01K\x03K\x03", r"shape \(-1, 1, 3, 3\)"),
        (b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01K\x01K\x03K\x03", "shape"),
        (b"\x88K\x01K\x03K\x03", "shape"),
        (b"]K\x01K\x03K\x03", "shape"),
        (b"G\x40\x00\x00\x00\x00\x00\x00\x00K\x01K\x03K\x03", "shape"),
        (b"K\x02K\x01K\x03", "shape"),
        (b"K\x01" * 40, "shape"),
    ])  # fmt: skip
    def test_shapes_are_checked(self, tmp_path: Path, new: bytes, message: str | None) -> None:
        path = patch_pickle(write_trace(tmp_path / "a.ts"), b"(K\x02K\x01K\x03K\x03t", b"(" + new + b"t")
        if message is None:
            with open_source(path) as source:
                assert source.tensors[0].load().shape == (2, 1, 3, 3)
            return
        with pytest.raises(ConversionError, match=message):
            open_source(path)

    @pytest.mark.parametrize(("new", "message"), [
        (b"K\x09K\x09K\x03K\x01", None),
        (b"J\xf7\xff\xff\xffK\x09K\x03K\x01", r"strides \(-9, 9, 3, 1\)"),
        (b"J\xff\xff\xff\x7fK\x09K\x03K\x01", "needs"),
    ])  # fmt: skip
    def test_strides_are_checked(self, tmp_path: Path, new: bytes, message: str | None) -> None:
        path = patch_pickle(write_trace(tmp_path / "a.ts"), b"(K\x09K\x09K\x03K\x01t", b"(" + new + b"t")
        if message is None:
            with open_source(path) as source:
                assert source.tensors[0].load().shape == (2, 1, 3, 3)
            return
        with pytest.raises(ConversionError, match=message):
            open_source(path)

    def test_repeated_elements_are_bounded(self, tmp_path: Path) -> None:
        huge = b"(J\xff\xff\xff\x7fK\x01K\x03K\x03t"
        path = patch_pickle(write_trace(tmp_path / "a.ts"), b"(K\x02K\x01K\x03K\x03t", huge)
        patch_pickle(path, b"(K\x09K\x09K\x03K\x01t", b"(K\x00K\x09K\x03K\x01t")

        with pytest.raises(ConversionError, match="that repeat 72"):
            open_source(path)

    @pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
    def test_a_member_that_is_there_twice_is_refused(self, tmp_path: Path) -> None:
        write_trace(tmp_path / "a.ts")
        with zipfile.ZipFile(tmp_path / "a.ts", "a") as archive:
            archive.writestr("a/extra", b"")
        with open_source(tmp_path / "a.ts"):
            pass
        with zipfile.ZipFile(tmp_path / "a.ts", "a") as archive:
            archive.writestr("a/data/0", bytes(72))

        with pytest.raises(ConversionError, match="'a/data/0' is there twice"):
            open_source(tmp_path / "a.ts")

    def test_a_missing_member_and_a_flipped_bit_are_found(self, tmp_path: Path) -> None:
        write_trace(tmp_path / "a.ts")
        data = (tmp_path / "a.ts").read_bytes()
        with zipfile.ZipFile(tmp_path / "a.ts") as archive:
            place = data.index(archive.read("a/data/0"))
        (tmp_path / "b.ts").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ConversionError, match="'a/data/0' is damaged"):
            convert(tmp_path / "b.ts", tmp_path / "b.vqm")

        patch(tmp_path / "a.ts", lambda name, data: None if name.endswith("/data/0") else data)
        with pytest.raises(ConversionError, match="'a/data/0', which is not there"):
            open_source(tmp_path / "a.ts")

    def test_a_mutated_archive_loads_or_raises_an_error_of_ours(self, tmp_path: Path) -> None:
        write_trace(tmp_path / "a.ts")
        with zipfile.ZipFile(tmp_path / "a.ts") as archive:
            original = archive.read("a/data.pkl")
        rng = np.random.default_rng(0)
        for _ in range(300):
            mutated = bytearray(original)
            mutated[rng.integers(len(mutated))] = rng.integers(256)
            patch(tmp_path / "a.ts", lambda name, data: bytes(mutated) if name == "a/data.pkl" else data)  # noqa: B023
            try:
                with open_source(tmp_path / "a.ts") as source:
                    for tensor in source.tensors:
                        assert tensor.load().shape == tensor.shape
            except ConversionError as err:
                assert "\n" not in str(err) and len(str(err)) < 900

    def test_big_endian_archives_are_refused(self, tmp_path: Path) -> None:
        write_trace(tmp_path / "a.ts")
        patch(tmp_path / "a.ts", lambda name, data: b"big" if name.endswith("/byteorder") else data)

        with pytest.raises(ConversionError, match="big-endian"):
            open_source(tmp_path / "a.ts")

    def test_modules_that_contain_themselves_end(self, tmp_path: Path) -> None:
        module = b"c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
        with zipfile.ZipFile(tmp_path / "a.ts", "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + module)
            archive.writestr("a/constants.pkl", b"\x80\x02).")

        with pytest.raises(ConversionError, match="deeper than 64 levels"):
            open_source(tmp_path / "a.ts")


def test_quantized_weights_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    storage = b"(X\x07\x00\x00\x00storagectorch\n%sStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
    pickled = b"\x80\x02c__torch__\nM\n)\x81}("
    pickled += b"X\x01\x00\x00\x00qctorch._utils\n_rebuild_qtensor\n(" + storage % b"QInt8" + b"tR"
    pickled += b"X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + storage % b"Float"
    pickled += b"K\x00K\x01\x85K\x01\x85\x89}tRub."
    with zipfile.ZipFile(tmp_path / "a.ts", "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/constants.pkl", b"\x80\x02).")
        archive.writestr("a/data/0", struct.pack("<f", 2.5))

    with open_source(tmp_path / "a.ts") as source:
        assert [tensor.name for tensor in source.tensors] == ["w"]
        assert source.tensors[0].load().tolist() == [2.5]
        assert "left out 'q': a quantized tensor" in source.notes


def test_no_text_of_a_refusal_is_long(tmp_path: Path) -> None:
    write_trace(tmp_path / "a.ts")
    patch(tmp_path / "a.ts", lambda name, data: b"\x80\x02c" + b"x" * 100_000 + b"\ny\n." if name.endswith("a/data.pkl")
          else data)  # fmt: skip

    with pytest.raises(ConversionError) as caught:
        open_source(tmp_path / "a.ts")
    assert len(re.sub(re.escape(str(tmp_path)), "", str(caught.value))) < 900


def test_the_fixture_gives_the_checkpoint_that_the_spec_says(tmp_path: Path) -> None:
    extract(FIXTURES / "valid" / "source-pytorch.vqm", tmp_path / "a.pt")

    assert torch.load(tmp_path / "a.pt", weights_only=True) == {
        "epoch": 3, "loss": float("inf"), "model": {"w": torch.tensor([1.0])},
        "optimizer": {"state": {0: {"step": torch.tensor(7.0)}}, "betas": (0.9, 0.999)}}  # fmt: skip


class TestNestedTensors:
    @pytest.mark.parametrize("layout", ["strided", "jagged"])
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
    def test_their_parts_are_kept_and_the_class_is_named(self, tmp_path: Path, layout: str) -> None:
        parts: list[Any] = [torch.ones(2, 3), torch.full((4, 3), 2.0)]
        nested = torch.nested.nested_tensor(parts, layout=getattr(torch, layout))
        torch.save({"nested": nested, "w": torch.ones(4)}, tmp_path / "a.pt")

        report = convert(tmp_path / "a.pt", tmp_path / "a.vqm", lossless=True)

        assert any("without the class" in note and "nested" in note for note in report.notes)
        stored = [array.reshape(-1) for name, array in vqformat.load_file(tmp_path / "a.vqm").items()
                  if name.startswith("nested.")]  # fmt: skip
        assert any(values.tolist() == [1.0] * 6 + [2.0] * 12 for values in stored)

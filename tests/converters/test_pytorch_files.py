"""PyTorch files of every kind to .vqm and back: whole checkpoints, shards, TorchScript; and hostile ones, refused."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import IS_ZIP, save_torch
from conftest import FIXTURES
from pytorch_files import Attack, equal, patch, round_trip, write_trace

import vqformat
from vqformat.converters import convert, extract, open_source
from vqformat.errors import ConversionError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning",
                                        "ignore:.*torch.jit.*:FutureWarning")  # fmt: skip


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
        save_torch(tmp_path / "a.pt", checkpoint, is_zip)

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
        save_torch(tmp_path / "a.pt", {"state_dict": {"w": torch.ones(3), "state_dict.w": torch.ones(1)},
                                       "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}})  # fmt: skip

        with open_source(tmp_path / "a.pt", include_optimizer=True) as source:
            exact = {tensor.name: tensor.is_exact for tensor in source.tensors}
        assert exact == {"w": False, "state_dict.w": False, "optimizer.state.0.exp_avg": True}

    @IS_ZIP
    def test_without_the_option_the_training_state_is_left_out_and_said_to_be(self, tmp_path: Path,
                                                                            is_zip: bool) -> None:  # fmt: skip
        checkpoint = training_checkpoint()
        save_torch(tmp_path / "a.pt", checkpoint, is_zip)

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
        save_torch(tmp_path / "a.pt", checkpoint)

        found, notes, _ = round_trip(tmp_path / "a.pt", include_optimizer=True, lossless=True)

        assert equal(found, checkpoint) and notes == []

    def test_what_is_no_plain_value_is_left_out_with_a_note(self, tmp_path: Path) -> None:
        log = [1, torch.relu, np.float64(3)]
        save_torch(tmp_path / "a.pt", {"model": {"w": torch.ones(2)}, "log": log, "loss": equal,
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
        save_torch(tmp_path / "a.pt", {"model": {"w": torch.ones(2)}, "deep": nested, "groups": [betas, betas]})

        found, notes, _ = round_trip(tmp_path / "a.pt", include_optimizer=True, lossless=True)

        assert found["groups"] == [betas, betas] and notes == []
        deep = found["deep"]
        for _ in range(40):
            deep = deep["b"]
        assert deep["self"] is deep and deep["n"] == 1

        for _ in range(30):
            nested = {"a": nested}
        save_torch(tmp_path / "a.pt", {"model": {"w": torch.ones(2)}, "deep": nested})
        with pytest.raises(ConversionError, match=r"a\.pt.*deeper than 64 levels"):
            open_source(tmp_path / "a.pt", include_optimizer=True)

    def test_part_of_the_tensors_and_other_formats_are_flat(self, tmp_path: Path) -> None:
        save_torch(tmp_path / "a.pt", training_checkpoint())
        convert(tmp_path / "a.pt", tmp_path / "a.vqm", include_optimizer=True, lossless=True)

        extract(tmp_path / "a.vqm", tmp_path / "b.pt", names=["0.weight", "*.0.exp_avg"])
        extract(tmp_path / "a.vqm", tmp_path / "b.npz")

        names = ["0.weight", "optimizer.state.0.exp_avg"]
        assert list(torch.load(tmp_path / "b.pt", weights_only=True)) == names
        with np.load(tmp_path / "b.npz") as arrays:
            assert set(names) < set(arrays.files)

    def test_a_plain_state_dict_needs_no_structure(self, tmp_path: Path) -> None:
        save_torch(tmp_path / "a.pt", {"w": torch.ones(2)})
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


SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def write_sharded(folder: Path, is_zip: bool = True, places: dict[str, str] | None = None) -> Path:
    w = torch.arange(6.0)
    save_torch(folder / SHARDS[0], {"b": torch.ones(2), "a": w, "tied": w}, is_zip)
    save_torch(folder / SHARDS[1], {"c": torch.ones(4, dtype=torch.int64), "a": torch.zeros(6)}, is_zip)
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
        save_torch(tmp_path / "x.bin", {"z": torch.ones(1)})
        with pytest.raises(ConversionError, match="a plain file name is allowed"):
            open_source(write_sharded(folder, places={"z": shard}))

        save_torch(folder / "x.bin", {"z": torch.ones(1)})
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
        save_torch(tmp_path / SHARDS[1], {"c": torch.ones(4), "x": Attack(tmp_path / "ran")}, is_zip)

        with pytest.raises(ConversionError, match=r"00002-of.*needs the Python object \w+\.mkdir"):
            open_source(index)
        assert not (tmp_path / "ran").exists()

    def test_a_shard_of_another_format_is_refused(self, tmp_path: Path) -> None:
        index = write_sharded(tmp_path)
        np.savez(tmp_path / "x.npz", c=np.ones(4))
        (tmp_path / "x.npz").replace(tmp_path / SHARDS[1])

        with pytest.raises(ConversionError, match="format npz"):
            open_source(index)


STORAGE = b"(X\x07\x00\x00\x00storagectorch\n%sStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"


def write_pickled_script(path: Path, attributes: bytes) -> Path:
    """A TorchScript archive with one storage, 2.5 as float32, and a module with these pickled attributes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02c__torch__\nM\n)\x81}(" + attributes + b"ub.")
        archive.writestr("a/constants.pkl", b"\x80\x02).")
        archive.writestr("a/data/0", struct.pack("<f", 2.5))
    return path


@pytest.mark.parametrize("function, more", [(b"_rebuild_tensor", b""), (b"_rebuild_tensor_v2", b"\x89}")])
def test_functions_that_rebuild_a_tensor_have_four_arguments_or_more(
    function: bytes, more: bytes, tmp_path: Path
) -> None:
    pickled = b"X\x01\x00\x00\x00wctorch._utils\n" + function + b"\n(" + STORAGE % b"Float"
    pickled += b"K\x00K\x01\x85K\x01\x85" + more + b"tR"

    with open_source(write_pickled_script(tmp_path / "a.ts", pickled)) as source:
        assert [(tensor.name, tensor.load().tolist()) for tensor in source.tensors] == [("w", [2.5])]


def test_quantized_weights_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    pickled = b"X\x01\x00\x00\x00qctorch._utils\n_rebuild_qtensor\n(" + STORAGE % b"QInt8" + b"tR"
    pickled += b"X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE % b"Float"
    pickled += b"K\x00K\x01\x85K\x01\x85\x89}tR"

    with open_source(write_pickled_script(tmp_path / "a.ts", pickled)) as source:
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

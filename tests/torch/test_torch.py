"""The verbs for torch tensors and models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import vqformat
from vqformat.errors import EncodeError, UnsupportedError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from vqformat import torch as vt  # noqa: E402


class Tied(torch.nn.Module):  # type: ignore[misc, name-defined]
    """An embedding whose weight the head shares, a normalization, a buffer that is not saved."""

    def __init__(self, is_tied: bool = True) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 10, bias=False)
        self.register_buffer("mask", torch.ones(3), persistent=False)
        if is_tied:
            self.head.weight = self.embed.weight


def seeded(seed: int, **options: Any) -> Tied:
    torch.manual_seed(seed)
    model = Tied(**options)
    model.norm.running_mean.normal_()
    return model


def same(a: Any, b: Any) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))


def test_importing_vqformat_imports_neither_torch_nor_the_encoder() -> None:
    heavy = {"torch", "safetensors", "h5py", "vqformat.encode.model"}
    code = f"import sys, vqformat; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


class Extra(torch.nn.Linear):  # type: ignore[misc, name-defined]
    def __init__(self, extra: Any) -> None:
        super().__init__(2, 2)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


class TestTensors:
    def test_save_and_load_keep_names_order_dtypes_and_bits(self, tmp_path: Path) -> None:
        tensors = {"b": torch.randn(3, 4), "a": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(7)}

        vt.save_file(tensors, tmp_path / "a.vqm", {"k": "v"}, lossless=True)
        found = vt.load_file(tmp_path / "a.vqm")

        assert list(found) == ["b", "a", "n"]
        assert all(same(found[name], tensors[name]) for name in tensors)
        assert [list(t) for t in (vt.load(vt.save(tensors)), vt.load_file(tmp_path / "a.vqm", device="meta"))] == [
            ["b", "a", "n"],
            ["b", "a", "n"],
        ]

    def test_tied_tensors_are_one_tensor_again(self) -> None:
        w = torch.randn(3, 4)
        found = vt.load(vt.save({"a": w, "b": w, "c": w.clone()}))
        assert found["a"] is found["b"] and found["c"] is not found["a"]

    def test_views_that_overlap_are_noted(self, tmp_path: Path) -> None:
        w = torch.randn(3, 4)
        report = vt.save_file({"a": w, "b": w.t(), "c": w[0]}, tmp_path / "a.vqm", lossless=True)
        assert [note.split(" are ")[0] for note in report.notes] == ["'b' and 'a'", "'c' and 'a'"]

    def test_budget_of_the_caller_is_kept(self) -> None:
        with pytest.raises(vqformat.LimitError):
            vt.load(vt.save({"a": torch.zeros(1000)}), max_tensor_bytes=3999)

    @pytest.mark.parametrize(("value", "message"), [
        (torch.eye(3).to_sparse(), "to_dense"),
        (torch.ones(2, device="meta"), "meta device"),
        (torch.zeros(2, dtype=torch.uint8).view(torch.bits8), "bits8"),
        (3.0, "float, not a tensor"),
    ])  # fmt: skip
    def test_what_cannot_be_stored_is_refused(self, value: Any, message: str) -> None:
        with pytest.raises(EncodeError, match=message):
            vt.save({"w": value})

    def test_framework_pt_gives_tensors_and_slices(self, tmp_path: Path) -> None:
        w = torch.arange(12, dtype=torch.bfloat16).reshape(4, 3)
        vt.save_file({"w": w}, tmp_path / "a.vqm", lossless=True)
        with vqformat.safe_open(tmp_path / "a.vqm", framework="pt") as file:
            assert same(file["w"], w)
            assert same(file.get_slice("w")[1:3, ::2], w[1:3, ::2])


class TestConversion:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
                                       torch.float8_e5m2fnuz, torch.float32, torch.uint16, torch.bool])  # fmt: skip
    def test_arrays_share_the_tensor_s_memory(self, dtype: Any) -> None:
        tensor = torch.tensor([[0.0, 1.0, 1.0]]).to(dtype)
        array = vt.to_numpy(tensor)
        if dtype != torch.bool:
            assert array.__array_interface__["data"][0] == tensor.data_ptr()
        back = vt.from_numpy(array)
        assert back.dtype == dtype and back.data_ptr() == array.__array_interface__["data"][0]
        assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))

    def test_bfloat16_has_its_value(self) -> None:
        array = vt.to_numpy(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
        assert array.dtype == ml_dtypes.bfloat16 and array.tolist() == [1.5, -2.0]

    def test_4_bit_integers_become_bytes(self) -> None:
        assert vt.from_numpy(np.array([-8, 7], ml_dtypes.int4)).tolist() == [-8, 7]
        assert vt.from_numpy(np.array([15], ml_dtypes.uint4)).dtype == torch.uint8

    def test_an_odd_row_of_4_bit_floats_has_no_tensor(self) -> None:
        with pytest.raises(UnsupportedError, match="even"):
            vt.from_numpy(np.ones(3, ml_dtypes.float4_e2m1fn))

    def test_read_only_and_reversed_arrays_are_copied(self) -> None:
        array = np.frombuffer(b"\1\2\3", np.uint8)
        assert vt.from_numpy(array).tolist() == [1, 2, 3]
        assert vt.from_numpy(array[::-1]).tolist() == [3, 2, 1]
        assert vt.from_numpy(np.array([1.0], ">f4")).tolist() == [1.0]


class TestModels:
    def test_a_model_is_filled_in_place(self, tmp_path: Path) -> None:
        saved, model = seeded(1), seeded(2)
        vt.save_model(saved, tmp_path / "a.vqm", lossless=True)
        weight = model.embed.weight

        assert vt.load_model(model, tmp_path / "a.vqm") == ([], [])

        assert model.embed.weight is weight is model.head.weight
        assert all(same(model.state_dict()[name], tensor) for name, tensor in saved.state_dict().items())

    def test_tied_weights_are_stored_once(self, tmp_path: Path) -> None:
        report = vt.save_model(seeded(1), tmp_path / "a.vqm")
        methods = {tensor.name: tensor.method for tensor in report.tensors}
        assert methods["head.weight"] == "alias of embed.weight"
        assert report.notes == []

    @pytest.mark.parametrize("is_tied", [True, False])
    def test_a_model_on_the_meta_device_is_filled(self, tmp_path: Path, is_tied: bool) -> None:
        saved = seeded(1)
        vt.save_model(saved, tmp_path / "a.vqm", lossless=True)
        with torch.device("meta"):
            model = Tied(is_tied)
        model.norm.weight.requires_grad_(False)

        assert vt.load_model(model, tmp_path / "a.vqm") == ([], [])

        assert all(same(model.state_dict()[name], tensor) for name, tensor in saved.state_dict().items())
        assert (model.head.weight is model.embed.weight) == is_tied
        assert isinstance(model.head.weight, torch.nn.Parameter) and model.head.weight.requires_grad
        assert not model.norm.weight.requires_grad and model.mask.is_meta

    def test_what_the_file_lacks_stays_on_the_meta_device(self, tmp_path: Path) -> None:
        state = seeded(1).state_dict()
        vt.save_file({name: state[name] for name in state if name != "norm.bias"}, tmp_path / "a.vqm")
        with torch.device("meta"):
            model = Tied()

        assert vt.load_model(model, tmp_path / "a.vqm", strict=False) == (["norm.bias"], [])

        assert model.norm.bias.is_meta and not model.norm.weight.is_meta

    def test_missing_and_unexpected_names_are_listed(self, tmp_path: Path) -> None:
        state = dict(seeded(1).state_dict())
        state["extra"] = torch.ones(1)
        del state["norm.weight"]
        vt.save_file(state, tmp_path / "a.vqm")

        message = r"for Tied:\s+Missing key\(s\): 'norm.weight'\s+Unexpected key\(s\): 'extra'"
        with pytest.raises(RuntimeError, match=message):
            vt.load_model(seeded(2), tmp_path / "a.vqm")
        assert vt.load_model(seeded(2), tmp_path / "a.vqm", strict=False) == (["norm.weight"], ["extra"])

    def test_a_prefix_that_differs_is_pointed_out(self, tmp_path: Path) -> None:
        state = {f"module.{name}": tensor for name, tensor in seeded(1).state_dict().items()}
        vt.save_file(state, tmp_path / "a.vqm")
        with pytest.raises(RuntimeError, match=r"names in the file begin with 'module\.'"):
            vt.load_model(seeded(2), tmp_path / "a.vqm")

    def test_one_name_of_a_tied_weight_is_enough(self, tmp_path: Path) -> None:
        state = seeded(1).state_dict()
        del state["head.weight"]
        vt.save_file(state, tmp_path / "a.vqm", lossless=True)
        model = seeded(2)

        assert vt.load_model(model, tmp_path / "a.vqm") == ([], [])
        assert same(model.head.weight.detach(), state["embed.weight"])

        with pytest.raises(RuntimeError, match=r"Missing key\(s\): 'head.weight'"):
            vt.load_model(seeded(2, is_tied=False), tmp_path / "a.vqm")

    def test_shapes_that_differ_are_refused(self, tmp_path: Path) -> None:
        vt.save_file({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path / "a.vqm")
        with pytest.raises(RuntimeError, match="size mismatch for weight"):
            vt.load_model(torch.nn.Linear(2, 4), tmp_path / "a.vqm")

    def test_values_take_the_dtype_of_the_model(self, tmp_path: Path) -> None:
        vt.save_file({"weight": torch.ones(3, 2, dtype=torch.bfloat16), "bias": torch.ones(3)}, tmp_path / "a.vqm")
        model = torch.nn.Linear(2, 3).double()
        vt.load_model(model, tmp_path / "a.vqm")
        assert model.weight.dtype == torch.float64 and model.weight.tolist() == [[1, 1]] * 3

    def test_batch_norm_of_old_checkpoints_needs_no_count(self, tmp_path: Path) -> None:
        state = seeded(1).state_dict()
        del state["norm.num_batches_tracked"]
        vt.save_file(state, tmp_path / "a.vqm")
        assert vt.load_model(seeded(2), tmp_path / "a.vqm") == ([], [])

    def test_hooks_that_rename_and_compute_are_run(self, tmp_path: Path) -> None:
        vt.save_file({"old": torch.full((2, 3), 2.0)}, tmp_path / "a.vqm", lossless=True)
        model = torch.nn.Linear(2, 3, bias=False)

        def hook(module: Any, state: dict[str, Any], *rest: Any) -> None:
            state["weight"] = torch.cat([state.pop("old").t() * 3])

        model.register_load_state_dict_pre_hook(hook)

        assert vt.load_model(model, tmp_path / "a.vqm") == ([], [])
        assert model.weight.tolist() == [[6, 6]] * 3

    def test_one_tensor_is_decoded_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        vt.save_model(seeded(1, is_tied=False), tmp_path / "a.vqm")
        model = seeded(2, is_tied=False)
        alive: list[int] = []
        most = 0
        decode = vt.from_numpy

        class Counted(np.ndarray):
            def __del__(self) -> None:
                alive.pop()

        def counting(array: Any) -> Any:
            nonlocal most
            alive.append(1)
            most = max(most, len(alive))
            return decode(array.view(Counted))

        monkeypatch.setattr("vqformat.read.torch_arrays.from_numpy", counting)
        vt.load_model(model, tmp_path / "a.vqm")

        assert most == 1 and not alive

    @pytest.mark.parametrize("extra", [{"step": 3, "scales": [1.5, (2, None)]}, b"x", "text", torch.arange(3.0), 7,
                                       {"table": torch.arange(4.0), "dtype": torch.int8}], ids=str)  # fmt: skip
    @pytest.mark.parametrize("load", [vt.load_model, vt.stream_model])
    def test_plain_extra_states_come_back(self, tmp_path: Path, extra: Any, load: Any) -> None:
        vt.save_model(Extra(extra), tmp_path / "a.vqm")
        model = Extra(None)
        load(model, tmp_path / "a.vqm")

        assert repr(model.extra) == repr(extra)

    def test_other_extra_states_are_left_out_and_said_to_be(self, tmp_path: Path) -> None:
        report = vt.save_model(Extra({"object": object()}), tmp_path / "a.vqm", lossless=True)
        assert report.notes == ["left out '_extra_state': a dict is no plain value"]

        model = Extra("mine")
        with pytest.warns(UserWarning, match=r"does not have '_extra_state'"):
            assert vt.load_model(model, tmp_path / "a.vqm") == ([], [])
        assert model.extra == "mine"

    @pytest.mark.parametrize("load", [vt.load_model, vt.stream_model])
    @pytest.mark.parametrize("version", [1, 5])
    def test_the_versions_of_modules_come_back(self, tmp_path: Path, load: Any, version: int) -> None:
        seen = []

        class Versioned(torch.nn.Linear):  # type: ignore[misc, name-defined]
            _version = version

            def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *rest: Any) -> None:
                seen.append(local.get("version"))
                super()._load_from_state_dict(state, prefix, local, *rest)

        vt.save_model(torch.nn.Sequential(Versioned(2, 2)), tmp_path / "a.vqm")
        load(torch.nn.Sequential(Versioned(2, 2)), tmp_path / "a.vqm")

        assert seen == [version]

    def test_of_a_converted_checkpoint_the_state_dict_is_loaded(self, tmp_path: Path) -> None:
        from vqformat.converters import convert

        saved = seeded(1)
        optimizer = torch.optim.SGD(saved.parameters(), 0.1, 0.9)
        torch.save({"epoch": 3, "model": saved.state_dict(), "best": torch.tensor(0.5), "o": optimizer.state_dict()},
                   tmp_path / "a.pt")  # fmt: skip
        convert(tmp_path / "a.pt", tmp_path / "a.vqm", lossless=True, include_optimizer=True)
        model = seeded(2)

        assert vt.load_model(model, tmp_path / "a.vqm") == ([], [])
        assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), model.parameters(), strict=True))


class _WithPositions(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.inner.register_buffer("position_ids", torch.arange(3), persistent=persistent)


@pytest.mark.parametrize("fill", [vt.load_model, vt.stream_model])
def test_a_buffer_that_is_not_persistent_any_more_is_not_unexpected(fill: Any, tmp_path: Path) -> None:
    vt.save_model(_WithPositions(True), tmp_path / "m.vqm")
    model = _WithPositions(False)
    model.inner.position_ids += 5
    with torch.device("meta"):
        empty = _WithPositions(False)

    fill(model, tmp_path / "m.vqm")
    fill(empty, tmp_path / "m.vqm")

    assert model.inner.position_ids.tolist() == [5, 6, 7]  # the model's own
    assert empty.inner.position_ids.tolist() == [0, 1, 2]
    assert "inner.position_ids" not in empty.state_dict()


def test_other_names_of_the_file_stay_unexpected(tmp_path: Path) -> None:
    vt.save_file({"inner.position_idx": torch.zeros(1), "gone.weight": torch.zeros(1)}, tmp_path / "m.vqm")

    _, unexpected = vt.load_model(_WithPositions(False), tmp_path / "m.vqm", strict=False)

    assert sorted(unexpected) == ["gone.weight", "inner.position_idx"]

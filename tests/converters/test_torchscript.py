"""TorchScript files: parameters and buffers as a state dict; hostile ones are refused."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import forget
from pytorch_files import Attack, equal, patch, patch_pickle, round_trip, write_script, write_trace

from vqformat.converters import convert, open_source
from vqformat.errors import ConversionError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning",
                                        "ignore:.*torch.jit.*:FutureWarning")  # fmt: skip


def check_weight(path: Path, message: str | None) -> None:
    """Check that the weight has its shape, or that the file is refused with a message."""
    if message is None:
        with open_source(path) as source:
            assert source.tensors[0].load().shape == (2, 1, 3, 3)
        return
    with pytest.raises(ConversionError, match=message):
        open_source(path)


class TestTorchScript:
    @pytest.mark.parametrize("write", [write_script, write_trace])
    def test_it_is_what_torch_jit_load_has(self, tmp_path: Path, write: Any) -> None:
        expected = torch.jit.load(str(write(tmp_path / "a.ts"))).state_dict()

        found, notes, _ = round_trip(tmp_path / "a.ts", lossless=True)

        assert equal(dict(expected), {name: found[name] for name in expected})
        assert "left out the code of the archive: its tensors alone are kept" in notes

    def test_tied_weights_are_aliases_and_other_tensors_are_kept(self, tmp_path: Path) -> None:
        with open_source(write_script(tmp_path / "a.ts")) as source:
            aliases = {tensor.name: tensor.alias_of for tensor in source.tensors if tensor.alias_of}
            assert aliases == {"head.weight": "layers.0.weight", "again.weight": "layers.0.weight",
                               "again.bias": "layers.0.bias"}  # fmt: skip
            assert [tensor.name for tensor in source.tensors if tensor.is_exact] == ["plain"]
            assert source.origin == {"format": "torchscript"}

    def test_tensors_that_are_neither_parameters_nor_buffers_are_kept(self, tmp_path: Path) -> None:
        class Table(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = torch.ones(3)
                self.pair = (torch.zeros(2), 5)
                self.list = [torch.ones(4)]

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + self.table + self.pair[0].sum() + self.list[0].sum()

        torch.jit.script(Table()).save(str(tmp_path / "a.ts"))

        with open_source(tmp_path / "a.ts") as source:
            assert {tensor.name: tensor.shape for tensor in source.tensors} == {
                "table": (3,), "pair.0": (2,), "list.0": (4,)}  # fmt: skip
            assert not source.left_out

    def test_a_frozen_model_has_its_weights_in_the_constants(self, tmp_path: Path) -> None:
        model = torch.nn.Linear(3, 4).eval()
        torch.jit.freeze(torch.jit.script(model)).save(str(tmp_path / "a.ts"))

        found, _, _ = round_trip(tmp_path / "a.ts", lossless=True)

        assert equal({"CONSTANTS.c0": model.weight.data, "CONSTANTS.c1": model.bias.data},
                     {name: found[name] for name in ("CONSTANTS.c0", "CONSTANTS.c1")})  # fmt: skip

    @pytest.mark.filterwarnings("ignore")
    def test_quantized_tensors_are_kept_as_integers_with_their_scales(self, tmp_path: Path) -> None:
        class Quantized(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.q = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 3, torch.quint8)
                self.c = torch.quantize_per_channel(torch.ones(2, 2), torch.tensor([1.0, 0.5]), torch.tensor([0, 1]), 0,
                                                    torch.qint8)  # fmt: skip

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + self.q.dequantize() + self.c.dequantize().sum()

        torch.jit.script(Quantized()).save(str(tmp_path / "a.ts"))

        found, _, _ = round_trip(tmp_path / "a.ts", lossless=True)

        assert found["q"].tolist() == [3, 5, 7, 9] and (found["q.scale"], found["q.zero_point"]) == (0.5, 3)
        assert found["c"].tolist() == [[1, 1], [3, 3]]
        assert found["c.scale"].tolist() == [1, 0.5] and found["c.zero_point"].tolist() == [0, 1]

    def test_compressed_members_are_read(self, tmp_path: Path) -> None:
        expected = torch.jit.load(str(write_script(tmp_path / "a.ts"))).state_dict()
        patch(tmp_path / "a.ts", lambda _, data: data, zipfile.ZIP_DEFLATED)

        found, _, _ = round_trip(tmp_path / "a.ts", lossless=True)

        assert equal(dict(expected), {name: found[name] for name in expected})

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
            assert len(source.tensors) == 17

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
        check_weight(path, message)

    @pytest.mark.parametrize(("new", "message"), [
        (b"K\x09K\x09K\x03K\x01", None),
        (b"J\xf7\xff\xff\xffK\x09K\x03K\x01", r"strides \(-9, 9, 3, 1\)"),
        (b"J\xff\xff\xff\x7fK\x09K\x03K\x01", "needs"),
    ])  # fmt: skip
    def test_strides_are_checked(self, tmp_path: Path, new: bytes, message: str | None) -> None:
        path = patch_pickle(write_trace(tmp_path / "a.ts"), b"(K\x09K\x09K\x03K\x01t", b"(" + new + b"t")
        check_weight(path, message)

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

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

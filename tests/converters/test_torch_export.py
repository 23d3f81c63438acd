"""Archives of torch.export to .vqm: what this PyTorch writes, older layouts by hand, and refusals."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not installed: pip install 'vqformat[torch]'")

import vqformat  # noqa: E402
from vqformat import ConversionError  # noqa: E402
from vqformat.converters import convert, extract, open_source  # noqa: E402


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3, bias=False)
        self.second = torch.nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.transposed = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("shift", torch.arange(3.0), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x)) @ self.transposed + self.count + self.shift.sum() + torch.tensor([1.0, 2.0])


def arrays_of(path: Path) -> dict[str, Any]:
    with open_source(path) as source:
        return {tensor.name: tensor.load() for tensor in source.tensors}


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def write(path: Path, members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "net.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of its own writer
        torch.export.save(torch.export.export(Net(), (torch.ones(2, 3),)), path)
    return path


class TestReading:
    def test_what_this_pytorch_writes(self, exported: Path, tmp_path: Path) -> None:
        convert(exported, tmp_path / "a.vqm", lossless=True)
        found = vqformat.load_file(tmp_path / "a.vqm")

        assert {"first.weight", "second.weight", "transposed", "count", "shift"} < set(found)
        assert found["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]] and found["count"] == 7
        assert found["shift"].tolist() == [0, 1, 2] and (found["first.weight"] == found["second.weight"]).all()

    def test_ties_and_constants(self, exported: Path) -> None:
        with open_source(exported) as source:
            tensors = {tensor.name: tensor for tensor in source.tensors}
            assert source.notes == ["left out the program of the archive: its tensors alone are kept"]
        assert {tensors["first.weight"].alias_of, tensors["second.weight"].alias_of} & {"first.weight", "second.weight"}
        assert [name for name in tensors if tensors[name].is_exact] == [
            name for name in tensors if name == "shift" or name.startswith("lifted_tensor")]  # fmt: skip

    @pytest.mark.parametrize("names", [
        ("serialized_state_dict.pt", "serialized_constants.pt", "serialized_exported_program.json"),
        ("top/data/weights/model.pt", "top/data/constants/model.pt", "top/archive_format"),
    ], ids=["until 2.6", "until 2.8"])  # fmt: skip
    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_older_layouts(self, tmp_path: Path, names: tuple[str, str, str], method: int) -> None:
        tied = torch.tensor([1.0, 2.0])
        state = saved({"a.w": torch.nn.Parameter(tied), "b.w": torch.nn.Parameter(tied), "n": torch.tensor(True)})
        path = write(tmp_path / "a.pt2", {names[0]: state, names[1]: saved({"c": torch.ones(1), "o": "text"}),
                                          names[2]: b"pt2"}, method=method)  # fmt: skip

        with open_source(path) as source:
            assert [(tensor.name, tensor.load().tolist(), tensor.alias_of, tensor.is_exact)
                    for tensor in source.tensors] == [
                ("a.w", [1, 2], None, False), ("b.w", [1, 2], "a.w", False), ("n", True, None, False),
                ("c", [1], None, True)]  # fmt: skip
            assert source.notes[1:] == ["left out 'o': a Python object"]

    @pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
    def test_extraction(self, exported: Path, tmp_path: Path, suffix: str) -> None:
        if suffix == ".safetensors":
            pytest.importorskip("safetensors")
        convert(exported, tmp_path / "a.vqm", lossless=True)

        extract(tmp_path / "a.vqm", tmp_path / f"b{suffix}")

        assert arrays_of(tmp_path / f"b{suffix}")["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]


def described(member: str = "weight_0", *, use_pickle: bool = False, **meta: Any) -> dict[str, Any]:
    sizes, strides = meta.pop("sizes", [2, 3]), meta.pop("strides", [3, 1])
    return {"path_name": member, "is_param": True, "use_pickle": use_pickle, "tensor_meta": {
        "dtype": 7, "sizes": [{"as_int": n} for n in sizes], "strides": [{"as_int": n} for n in strides],
        "storage_offset": {"as_int": meta.pop("offset", 0)}, "layout": 7, **meta}}  # fmt: skip


def archive(path: Path, config: Any, data: bytes = np.arange(6, dtype="<f4").tobytes(), **members: bytes) -> Path:
    text = config if isinstance(config, bytes) else json.dumps({"config": config}).encode()
    return write(path, {"net/archive_format": b"pt2", "net/data/weights/model_weights_config.json": text,
                        "net/data/weights/weight_0": data, **members})  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize(("entry", "expected"), [
        (described(), [[0, 1, 2], [3, 4, 5]]), (described(sizes=[3, 2], strides=[1, 3]), [[0, 3], [1, 4], [2, 5]]),
        (described(sizes=[2], strides=[2], offset=1), [1, 3]), (described(sizes=[], strides=[], offset=5), 5),
        (described(sizes=[2, 2], strides=[0, 1]), [[0, 1], [0, 1]]), (described(sizes=[0], strides=[1]), []),
    ], ids=str)  # fmt: skip
    def test_the_siblings_of_all_are_read(self, tmp_path: Path, entry: Any, expected: Any) -> None:
        assert arrays_of(archive(tmp_path / "a.pt2", {"w": entry}))["w"].tolist() == expected

    @pytest.mark.parametrize(("config", "complaint"), [
        ({"w": described(sizes=[7], strides=[1])}, "needs 28 bytes"), ({"w": described(offset=1)}, "needs 28 bytes"),
        ({"w": described(sizes=[2], strides=[1 << 62])}, "bytes of its storage"),
        ({"w": described(sizes=[1 << 40], strides=[0])}, "that repeat 24"),
        ({"w": described(sizes=[-1, 3])}, "negative"),
        ({"w": described(strides=[1])}, "do not fit each other"), ({"w": described(dtype=9)}, "dtype number 9"),
        ({"w": described(layout=1)}, "layout 1"), ({"w": described("weight_1")}, "is not there"),
        ({"w": described("../../byteorder")}, "is not there"), ({"w": {"path_name": "weight_0"}}, "tensor_meta"),
        ({"w": described(use_pickle=True)}, "no zip archive"), ({"w": 3}, "'w'"), ({"": described()}, "is empty"),
        ({}, "has no tensors"), ({"w": described(sizes=[1] * 40, strides=[1] * 40)}, "more than 32"),
        (b"{", "damaged"), (b"[]", "damaged"), (b"[" * 100_000, "damaged"), (b'{"config": 3}', "damaged"),
    ], ids=lambda value: str(value)[:60])  # fmt: skip
    def test_damage_is_named(self, tmp_path: Path, config: Any, complaint: str) -> None:
        path = archive(tmp_path / "a.pt2", config)

        with pytest.raises(ConversionError, match=complaint) as caught:
            arrays_of(path)

        assert "torch.export" in str(caught.value) and len(str(caught.value)) < 900

    def test_big_endian_tensors(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "a.pt2", {"w": described()}, **{"net/byteorder": b"big"})

        with pytest.raises(ConversionError, match="big-endian"):
            open_source(path)

    def test_a_package_of_compiled_code(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.pt2", {"net/archive_format": b"pt2", "net/data/aotinductor/model/a.so": b"\x7fELF"})

        with pytest.raises(ConversionError, match="AOTInductor package"):
            open_source(path)

    def test_a_pickle_that_needs_code(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.pt2", {"serialized_exported_program.json": b"{}",
                                          "serialized_state_dict.pt": saved(Path("x"))})  # fmt: skip

        with pytest.raises(ConversionError, match="pathlib"):
            open_source(path)

    def test_bytes_that_changed(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "a.pt2", {"w": described()})
        path.write_bytes(path.read_bytes().replace(np.float32(4).tobytes(), np.float32(5).tobytes(), 1))

        with pytest.raises(ConversionError, match="damaged"):
            arrays_of(path)

"""What people have in PyTorch checkpoints comes in whole and goes back whole; what cannot is said."""

from __future__ import annotations

import argparse
import collections
import io
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqformat
from vqformat.cli import main
from vqformat.converters import convert, extract, open_source
from vqformat.errors import ConversionError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

W = torch.arange(12.0).reshape(3, 4)
IS_ZIP = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def there_and_back(folder: Path, checkpoint: Any, is_zip: bool = True, **options: Any) -> tuple[Any, Any]:
    """The checkpoint that comes back, and the report."""
    torch.save(checkpoint, folder / "a.pt", _use_new_zipfile_serialization=is_zip)
    report = convert(folder / "a.pt", folder / "a.vqm", overwrite=True, lossless=True, **options)
    extract(folder / "a.vqm", folder / "b.pt", overwrite=True)
    return torch.load(folder / "b.pt", weights_only=True), report


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints have the same structure and values."""
    if isinstance(a, torch.Tensor):
        if a.layout != b.layout or a.dtype != b.dtype:
            return False
        dense = [t.dequantize() if t.is_quantized else t.to_dense() for t in (a, b)]
        return bool(torch.equal(*dense))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


@pytest.mark.parametrize("checkpoint", [
    {"model": {"w": W}, "discriminator": {"w": W + 1}},
    {"encoder": {"w": W}, "params": {"temperature": torch.ones(1)}},
    {"params": {"w": W}, "params_ema": {"w": W + 1}},
    {"state_dict": {"w": W}, "class_centers": W + 2},
    {"encoder": {"w": W}, "amplitude": {"w": W + 1}, "scaler_net": {"w": W + 2}, "rngnet": {"w": W + 3}},
    {"optim_head": {"m": W}, "scheduler": {"w": W + 1}},
    {"a": {"b": W}, "a.b": W + 1, "": W + 2, 1: W + 3, "1": W + 4, (1, "x"): W + 5},
    {"layers": [W, (W + 1, [W + 2, 3.5])], "dims": {"n": 8}, "names": {0: "cat", 1: "dog"}, "epoch": 3},
    {"w": W, "none": None, "bias": None},
    {"w": W, "device": torch.device("cuda:1"), "dtype": torch.bfloat16, "kinds": {1, 2}, "z": 1 + 2j, "inf": -np.inf},
], ids=str)  # fmt: skip
@IS_ZIP
def test_all_tensors_and_plain_values_go_back_to_their_places(tmp_path: Path, checkpoint: Any, is_zip: bool) -> None:
    found, report = there_and_back(tmp_path, checkpoint, is_zip)

    assert same(checkpoint, found) and report.left_out == []


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning", "ignore:.*TypedStorage:UserWarning")
@IS_ZIP
def test_quantized_tensors_stay_quantized(tmp_path: Path, is_zip: bool) -> None:
    scales, zero_points = torch.tensor([0.5, 1, 2]), torch.tensor([1, 2, 3])
    checkpoint = {"w": torch.quantize_per_tensor(W, 0.1, 3, torch.qint8), "v": W,
                  "c": torch.quantize_per_channel(W, scales, zero_points, 0, torch.quint8),
                  "f": torch.quantize_per_channel(W, scales, zero_points / 7, 0, torch.quint8)}  # fmt: skip

    found, report = there_and_back(tmp_path, checkpoint, is_zip)

    assert same(checkpoint, found)
    assert [tensor.name for tensor in report.tensors][:3] == ["w", "w.scale", "w.zero_point"]


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_tensors_stay_sparse(tmp_path: Path, layout: Any) -> None:
    checkpoint = {"w": (W * (W > 5)).to_sparse(layout=layout), "v": W}

    found, _ = there_and_back(tmp_path, checkpoint)

    assert found["w"].layout == layout and torch.equal(found["w"].to_dense(), W * (W > 5))


@pytest.mark.parametrize("key", ["optimizer", "anything"])
def test_an_optimizer_is_told_by_its_structure_and_left_out_aloud(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(W).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    torch.save({"model": model.state_dict(), key: optimizer.state_dict(), "s": scheduler.state_dict(),
                "rng_state": torch.get_rng_state()}, tmp_path / "a.pt")  # fmt: skip

    assert main(["convert", str(tmp_path / "a.pt"), "-q"]) == 0

    said = capsys.readouterr().err
    assert f"left out '{key}'" in said and "left out 'rng_state'" in said
    assert list(vqformat.load_file(tmp_path / "a.vqm")) == ["weight", "bias"]
    with open_source(tmp_path / "a.pt", include_optimizer=True) as source:
        assert sum(tensor.is_exact for tensor in source.tensors) == 7


def test_names_are_those_of_the_one_state_dict_or_keys_joined_by_dots(tmp_path: Path) -> None:
    def names(checkpoint: Any) -> list[str]:
        torch.save(checkpoint, tmp_path / "a.pt")
        with open_source(tmp_path / "a.pt") as source:
            return [tensor.name for tensor in source.tensors]

    assert names({"epoch": 1, "state": {"net": {"a.w": W, "b": W + 1}}}) == ["a.w", "b"]
    assert names({"state_dict": {"w": W}, "best": torch.tensor(0.5)}) == ["w", "best"]
    assert names({"net": {"w": W}, "ema": {"w": W + 1}}) == ["net.w", "ema.w"]


def test_the_versions_of_modules_come_back(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).state_dict()

    found, _ = there_and_back(tmp_path, {"epoch": 1, "model": state})

    assert found["model"]._metadata == state._metadata and found["model"]._metadata["1"] == {"version": 2}


class AttributeDict(dict):  # type: ignore[type-arg]
    """Stands for a class of a package that is not installed where the file is read."""


class Wrapper(torch.Tensor):
    """A tensor without values of its own, as those of torchao are."""

    @staticmethod
    def __new__(cls, codes: Any, scale: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Any, scale: Any) -> None:
        self.codes, self.scale = codes, scale

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        raise NotImplementedError


def with_attribute(value: Any) -> Any:
    value.more = W + 5
    return value


Point = collections.namedtuple("Point", "x y")


@pytest.fixture
def classes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("not_installed")
    for kind in (AttributeDict, Point, Wrapper):
        monkeypatch.setattr(kind, "__module__", "not_installed")
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "not_installed", module)


@IS_ZIP
@pytest.mark.parametrize(("value", "expected"), [
    (lambda: AttributeDict(lr=1e-3, w=W), {"lr": 1e-3, "w": W}),
    (lambda: with_attribute(AttributeDict(a=1)), {"a": 1, "__dict__": {"more": W + 5}}),
    (lambda: Wrapper(W.to(torch.int8), W[:, 0]), {"codes": W.to(torch.int8), "scale": W[:, 0]}),
    (lambda: collections.defaultdict(list, loss=[1.0, 0.5]), {"loss": [1.0, 0.5]}),
    (lambda: Point(1, W), (1, W)),
    (lambda: argparse.Namespace(lr=2), {"lr": 2}),
    (lambda: io.BytesIO(b"xyz"), b"xyz"),
    (lambda: np.float32(0.5), 0.5),
    (lambda: np.arange(3.0), torch.arange(3.0, dtype=torch.float64)),
    (lambda: np.array(["a", "bc"]), ["a", "bc"]),
    (lambda: Path("runs/1"), "runs/1"),
    (lambda: Path("."), "."),
    (lambda: bytearray(b"a\xff"), b"a\xff"),
    (lambda: torch.__version__, str(torch.__version__)),
    (lambda: np.array([(1, 0.5), (2, 1.5)], [("a", "<i4"), ("b", ">f8")]),
     {"a": torch.tensor([1, 2], dtype=torch.int32), "b": torch.tensor([0.5, 1.5], dtype=torch.float64)}),
], ids=lambda value: None)  # fmt: skip
def test_what_can_be_told_of_objects_is_kept(tmp_path: Path, classes: None, is_zip: bool, value: Any,
                                            expected: Any) -> None:  # fmt: skip
    found, _ = there_and_back(tmp_path, {"state_dict": {"w": W}, "more": value()}, is_zip)

    assert same(found, {"state_dict": {"w": W}, "more": expected})


@IS_ZIP
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"model": net, "epoch": 3}], ids=["module", "in a dict"])
def test_of_a_whole_module_its_state_dict_is_kept(tmp_path: Path, is_zip: bool, wrap: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.MSELoss())
    net[1].register_buffer("scratch", torch.ones(7), persistent=False)

    found, report = there_and_back(tmp_path, wrap(net), is_zip)

    assert same(dict(net.state_dict()), dict(found.get("model", found)))
    assert any("torch.nn.modules.container.Sequential" in note for note in report.notes)
    assert same(found.get("model", found)._metadata, {"1": {"attributes": {"scratch": torch.ones(7)}}})


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
        self.anchors = W + 1
        self.names, self.count = {0: "cat", 1: "dog"}, 2
        self.unregistered = [torch.nn.Linear(1, 1, bias=False), self.fc]
        self.function = len


@IS_ZIP
def test_attributes_of_a_whole_module_are_kept_beside_its_state_dict(tmp_path: Path, is_zip: bool) -> None:
    net = Net()

    found, _ = there_and_back(tmp_path, net, is_zip)

    state = {"fc.weight": net.fc.weight, "fc.bias": net.fc.bias}
    assert same(dict(found), state)
    assert same(found._metadata[""]["attributes"], {
        "anchors": W + 1, "names": {0: "cat", 1: "dog"}, "count": 2,
        "unregistered": [{"weight": net.unregistered[0].weight}, {"weight": net.fc.weight, "bias": net.fc.bias}],
    })  # fmt: skip
    assert Net().load_state_dict(found) == ([], [])


def test_parameters_that_a_module_of_pytorch_lists_again_are_no_attributes(tmp_path: Path) -> None:
    net = torch.nn.LSTM(3, 4)

    found, report = there_and_back(tmp_path, net)

    assert same(dict(found), dict(net.state_dict())) and not hasattr(found, "_metadata")
    assert len(report.tensors) == 4


def test_attributes_of_a_tensor_are_left_out_aloud(tmp_path: Path) -> None:
    _, report = there_and_back(tmp_path, {"w": with_attribute(torch.nn.Parameter(W)), "v": W})

    assert report.left_out == ["left out attributes of the tensor 'w': 'more'"]


def test_a_tensor_of_too_many_axes_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.ones([1] * 40)}, tmp_path / "a.pt")

    with pytest.raises(ConversionError, match=r"'w' has 40 axes, and a \.vqm holds at most 32"):
        open_source(tmp_path / "a.pt")


@pytest.mark.parametrize(("checkpoint", "kept"), [
    ({"model": {"state": {"0": {"exp_avg": W}}, "w": W + 1}}, {"state.0.exp_avg", "w"}),
    ({"m": {"w": W}, "o": {"state": {0: {"exp_avg": W}}, "param_groups": [{"params": [0]}], "fp32": [W + 1]}},
     {"m.w", "o.fp32.0"}),
])  # fmt: skip
def test_what_lies_beside_the_state_of_an_optimizer_is_kept(tmp_path: Path, checkpoint: Any, kept: set[str]) -> None:
    torch.save(checkpoint, tmp_path / "a.pt")

    with open_source(tmp_path / "a.pt") as source:
        names = {tensor.name for tensor in source.tensors}

    assert names == kept


def test_a_long_list_of_numbers_is_a_list_again(tmp_path: Path) -> None:
    checkpoint = {"w": W, "losses": [i / 7 for i in range(5000)], "steps": list(range(5000))}

    found, _ = there_and_back(tmp_path, checkpoint)

    assert same(found, checkpoint)


def test_plain_values_beyond_what_metadata_holds_are_left_out_aloud(tmp_path: Path) -> None:
    texts = ["x" * 1000 + str(i) for i in range(9000)]

    found, report = there_and_back(tmp_path, {"w": W, "texts": texts, "epoch": 3})

    assert same(found, {"w": W, "epoch": 3}) and "'texts'" in report.left_out[0]


@pytest.mark.parametrize("tensor", [
    torch.zeros(1).expand(3_000_000_000), torch.zeros(1).as_strided((1 << 20, 1 << 20), (0, 0)),
])  # fmt: skip
@IS_ZIP
def test_elements_beyond_the_storage_are_bounded(tmp_path: Path, tensor: Any, is_zip: bool) -> None:
    torch.save({"w": tensor}, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ConversionError, match=r"'w' of shape .* that repeat 4, and at most 67108864"):
        open_source(tmp_path / "a.pt")

    found, _ = there_and_back(tmp_path, {"w": torch.ones(1).expand(1000)}, is_zip)
    assert found["w"].tolist() == [1] * 1000


def with_pickle(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + pickled)
        archive.writestr("a/data/0", struct.pack("<f", 2.5))
    return path


@pytest.mark.parametrize("pickled", [
    b"N" + b"\x85" * 100_000 + b".",  # tuples in each other
    b"]" * 10_000 + b"a" * 9_999 + b".",
    b"}N" + b"\x85" * 100_000 + b"Ns.",  # a key whose hash takes the stack
    b"ctorch._utils\n_rebuild_parameter\n" * 10_000 + b"N" + b"\x85R" * 10_000 + b".",
    b"]q\x00" + b"](h\x00h\x00h\x00h\x00eq\x00" * 200 + b".",  # 4^200 paths
    b"Nr\xff\xff\xff\x7f.", b"]q\x00h\x00a.", b"(((((", b"}]Ns.", b"N}b.", b"cos\nsystem\n(S'mkdir ran'\ntR.",
], ids=range(11))  # fmt: skip
def test_hostile_pickles_are_refused_at_once(tmp_path: Path, pickled: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConversionError, match=r"a\.pt.*is a PyTorch checkpoint") as caught:
        open_source(with_pickle(tmp_path / "a.pt", pickled))

    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    assert not (tmp_path / "ran").exists()


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    torch.save({"w": W}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    at = data.rfind(b"PK\x01\x02", 0, data.rfind(b"a/data/0"))
    data[at + 24 : at + 28] = struct.pack("<I", 1 << 30)
    (tmp_path / "a.pt").write_bytes(data)

    with pytest.raises(ConversionError, match="'a/data/0' is damaged"):
        open_source(tmp_path / "a.pt")


def test_files_written_before_still_load(tmp_path: Path) -> None:
    """Structures as the version before wrote them."""
    text = '{"dict":[["epoch",3],["model",{"dict":[["w",{"tensor":"w"}]]}],["b",{"tuple":[0.9,null]}]]}'
    for origin, expected in (({"checkpoint": text, "nesting": ["model"]}, {"epoch": 3, "model": {"w": [1]}, "b": 1}),
                             ({"nesting": ["model"]}, {"model": {"w": [1]}}), ({}, {"w": [1]})):  # fmt: skip
        vqformat.save_file({"w": np.ones(1, np.float32)}, tmp_path / "a.vqm",
                           {"vqm.source": {"format": "pytorch", **origin}})  # fmt: skip
        extract(tmp_path / "a.vqm", tmp_path / "a.pt", overwrite=True)
        assert list(torch.load(tmp_path / "a.pt", weights_only=True)) == list(expected)

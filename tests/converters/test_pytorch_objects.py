"""Values of other classes beside the weights of a PyTorch checkpoint, and long texts: they come back."""

from __future__ import annotations

import decimal
import enum
from pathlib import Path
from typing import Any

import pytest

from vqformat.converters import convert, extract

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")


class Kind(enum.Enum):
    BASE = "base"


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    pass


class Real(float):
    pass


def there_and_back(folder: Path, checkpoint: Any) -> tuple[Any, list[str]]:
    torch.save({"w": torch.ones(3, 4), **checkpoint}, folder / "a.pt")
    report = convert(folder / "a.pt", folder / "a.vqm")
    extract(folder / "a.vqm", folder / "b.pt")
    return torch.load(folder / "b.pt", weights_only=True), report.left_out


@pytest.mark.parametrize(("value", "expected"), [
    (Kind.BASE, "base"), (Level.HIGH, 3), (Text("abc"), "abc"), (Real(0.5), 0.5), (decimal.Decimal("1.5"), "1.5"),
], ids=repr)  # fmt: skip
def test_a_value_of_another_class_comes_back_as_the_plain_value(tmp_path: Path, value: Any, expected: Any) -> None:
    found, _ = there_and_back(tmp_path, {"hparams": {"x": value}})

    assert found["hparams"]["x"] == expected and type(found["hparams"]["x"]) is type(expected)


@pytest.mark.parametrize("value", ["\U0001f600é\ud800" * 100_000, b"\0\xff" * 3_000_000], ids=["text", "bytes"])
def test_long_texts_are_kept(tmp_path: Path, value: Any) -> None:
    found, left_out = there_and_back(tmp_path, {"tokenizer": {"model": value, "again": value}})

    assert found["tokenizer"] == {"model": value, "again": value} and not left_out
    assert (tmp_path / "a.vqm").stat().st_size < 20_000


def test_dtypes_that_no_tensor_of_a_vqm_has_are_kept(tmp_path: Path) -> None:
    dtypes = {"a": torch.complex32, "b": torch.quint4x2, "c": torch.bfloat16}

    torch.save({"w": torch.ones(3, 4), **dtypes}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "a.vqm")
    extract(tmp_path / "a.vqm", tmp_path / "b.pt")

    found = torch.load(tmp_path / "b.pt", weights_only=False)
    assert {key: found[key] for key in dtypes} == dtypes

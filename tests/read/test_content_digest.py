"""The content digest (SPEC 15.3): the same in each format, and another one for any other tensors."""

from __future__ import annotations

import errno
import io
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import FIXTURES

import vqformat
from vqformat.converters import extract
from vqformat.format.content_digest import ContentDigest

ROOT = Path(__file__).parent.parent.parent
SPEC_DIGEST = "8b7c7657190da4166d4c2d6fdd1105ee3d1b54d266a47ab6a031a1e918e83ea4"


def tensors() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    tied = rng.standard_normal((600, 500)).astype(np.float32)
    return {
        "z.weight": tied,
        "a.tied": tied,
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "brain": rng.standard_normal(7).astype(ml_dtypes.bfloat16),
        "mask": np.array([True, False, True]),
        "step": np.array(7),
        "none": np.zeros((0, 3), np.float32),
    }


def test_the_example_of_the_spec() -> None:
    section = re.search(r"### 15\.3 .*?\n## 16\.", (ROOT / "SPEC.md").read_text(), re.DOTALL)
    assert section is not None
    assert SPEC_DIGEST in section[0]
    assert vqformat.content_digest(ROOT / "fixtures/valid/worked-codebook.vqm") == SPEC_DIGEST


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_it_is_the_same_in_other_formats(tmp_path: Path, suffix: str) -> None:
    given = tensors()
    if suffix == ".npz":
        del given["brain"]  # NumPy has no such dtype
    vqformat.save_file(given, tmp_path / "m.vqm", preset="fast")
    extract(tmp_path / "m.vqm", tmp_path / f"m{suffix}")

    assert vqformat.content_digest(tmp_path / f"m{suffix}") == vqformat.content_digest(tmp_path / "m.vqm")


def test_4_bit_elements_count_as_packed(tmp_path: Path) -> None:
    """Two elements are a byte, also at the borders of blocks with an odd number of elements."""
    nibbles = np.arange(15, dtype=np.uint8).astype(ml_dtypes.uint4).reshape(5, 3)
    vqformat.save_file({"n": nibbles}, tmp_path / "m.vqm")
    expected = ContentDigest()
    expected.add("n", "u4", (5, 3), [nibbles])

    assert vqformat.content_digest(tmp_path / "m.vqm") == expected.hexdigest()


def digest_of(folder: Path, given: dict[str, np.ndarray[Any, Any]], **options: Any) -> str:
    vqformat.save_file(given, folder / "m.vqm", lossless=True, **options)
    return vqformat.content_digest(folder / "m.vqm")


def test_order_ties_coding_and_metadata_do_not_count(tmp_path: Path) -> None:
    given = tensors()
    copies = {name: given[name].copy() for name in reversed(given)}

    assert digest_of(tmp_path, given) == digest_of(tmp_path, copies, metadata={"other": 1}, preset="fast")


@pytest.mark.parametrize("change", [
    lambda t: t.update(half=t["half"].reshape(5, 3)),
    lambda t: t.update(half=t["half"].view(np.int16)),
    lambda t: t.update(step=np.array(8)),
    lambda t: t.update(half2=t.pop("half")),
    lambda t: t.pop("none"),
    lambda t: t.update(none=np.zeros((3, 0), np.float32)),
])  # fmt: skip
def test_names_dtypes_shapes_and_values_count(tmp_path: Path, change: Any) -> None:
    given = tensors()
    before = digest_of(tmp_path, given)
    change(given)

    assert digest_of(tmp_path, given) != before


def test_a_damaged_file_has_no_digest(tmp_path: Path) -> None:
    vqformat.save_file(tensors(), tmp_path / "m.vqm")
    data = bytearray((tmp_path / "m.vqm").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m.vqm").write_bytes(data)

    with pytest.raises(vqformat.ChecksumError):
        vqformat.content_digest(tmp_path / "m.vqm")


def test_a_large_tensor_in_another_order_is_hashed_by_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parent.parent.parent / "fixtures/valid"
    names = ["axes-conv", "axes-and-order", "blocks-columns", "complex-c128-axes"]
    before = [vqformat.content_digest(folder / f"{name}.vqm") for name in names]
    monkeypatch.setattr("vqformat.read.contents._IN_MEMORY_NBYTES", 0)
    monkeypatch.setattr("vqformat.read.contents._PIECE", 6)

    assert [vqformat.content_digest(folder / f"{name}.vqm") for name in names] == before


@pytest.mark.parametrize("number", [None, errno.EOPNOTSUPP], ids=["no system call", "not on this file system"])
def test_a_tensor_in_another_order_needs_no_special_file_system(
    number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FIXTURES / "valid/axes-and-order.vqm"
    before = vqformat.content_digest(path)
    monkeypatch.setattr("vqformat.read.contents._IN_MEMORY_NBYTES", 0)
    monkeypatch.setattr("vqformat.read.contents._ZEROS_NBYTES", 7)
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", failing(number), raising=False)

    assert vqformat.content_digest(path) == before


@pytest.mark.parametrize("has_call", [True, False])
def test_a_full_disk_is_met_before_the_temporary_file_is_mapped(
    has_call: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqformat.read.contents._IN_MEMORY_NBYTES", 0)
    if has_call:
        monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC), raising=False)
    else:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.setattr(tempfile, "TemporaryFile", OnFullDisk)

    with pytest.raises(OSError, match="set TMPDIR") as caught:
        vqformat.content_digest(FIXTURES / "valid/axes-and-order.vqm")
    assert caught.value.errno == errno.ENOSPC


def failing(number: int) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


class OnFullDisk(io.BytesIO):
    """A file that takes one byte at its end, as a sparse file does, but no more."""

    def write(self, data: Any) -> int:
        if len(data) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)

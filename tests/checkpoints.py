"""Small checkpoints, and how what is read of them is compared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqformat.converters import open_source

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")
st = pytest.importorskip("safetensors.torch", reason="not installed: pip install 'vqformat[safetensors]'")

IS_ZIP = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def data_file(name: str) -> Path:
    """A real checkpoint; the test is skipped where there is none."""
    folder = Path(os.environ.get("VQFORMAT_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")
    if not (folder / name).is_file():
        pytest.skip(f"needs {name}; set VQFORMAT_DATA to the folder that has it")
    return folder / name


def save_torch(path: Path, checkpoint: Any, is_zip: bool = True) -> Path:
    torch.save(checkpoint, path, _use_new_zipfile_serialization=is_zip)
    return path


def arrays_of(path: Path) -> dict[str, Any]:
    with open_source(path) as source:
        return {tensor.name: tensor.load() for tensor in source.tensors}


def bits_equal(a: Any, b: Any) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape and np.array(a).tobytes() == np.array(b).tobytes())


def torch_equal(a: Any, b: Any) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool((a.contiguous().view(-1).view(torch.uint8) == b.contiguous().view(-1).view(torch.uint8)).all())


def every_kind() -> dict[str, Any]:
    """Tensors of every dtype and awkward form that a state dict can have."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    return {
        "f32": torch.tensor([[1.0, -0.0], [float("nan"), float("inf")]]),
        "f64": torch.tensor([1e300]),
        "f16": torch.tensor([1.5, 65504.0], dtype=torch.float16),
        "bf16": torch.tensor([[1.5, -3e38]], dtype=torch.bfloat16),
        "bf16.t": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t(),
        "f8a": torch.tensor([0.5, 448.0]).to(torch.float8_e4m3fn),
        "f8b": torch.tensor([0.5, -57344.0]).to(torch.float8_e5m2),
        "c64": torch.tensor([1 + 2j]),
        "c64.conj": torch.tensor([[1 + 2j, 3j]]).conj(),
        "c128": torch.tensor([1 - 2j], dtype=torch.complex128),
        "bool": torch.tensor([True, False]),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "u16": torch.tensor([65535], dtype=torch.uint16),
        "i64": torch.tensor([-(2**62)]),
        "0d": torch.tensor(3.25),
        "0d.int": torch.tensor(7),
        "empty": torch.zeros(0, 5),
        "transposed": base.permute(2, 0, 1),
        "strided": base[:, ::2, 1:],
        "expanded": torch.tensor([2.0]).expand(4, 3),
    }


def write_zip(path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, path)


def write_legacy(path: Path, dtype: Any = torch.float32) -> None:
    torch.save({"w": torch.ones(1000, dtype=dtype)}, path, _use_new_zipfile_serialization=False)


def write_safetensors(path: Path) -> None:
    st.save_file({"w": torch.ones(1000)}, path)


def write_npz(path: Path) -> None:
    with open(path, "wb") as stream:
        np.savez(stream, w=np.ones(1000))


def write_npy(path: Path) -> None:
    with open(path, "wb") as stream:
        np.save(stream, np.ones(1000))

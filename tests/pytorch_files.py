"""PyTorch files for tests: saved, changed, compared; modules for TorchScript; and an object that would run code."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vqformat.converters import convert, extract

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")


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


class Attack:
    """Pickles to a call that leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


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

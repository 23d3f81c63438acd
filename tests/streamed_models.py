"""Models of every kind of module, streamed and filled from the same file, and what is decoded while they run."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from vqformat.read import indexed, stored_tensor

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torchmodels import Calling, saved  # noqa: E402

from vqformat import torch as vt  # noqa: E402

Make = Callable[[], nn.Module]
STREAMED_NBYTES = 1 << 16


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128))


def seeded(make: Make, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = make()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    return model


@cache
def file_of(make: Make, preset: str = "default") -> bytes:
    return saved(seeded(make), preset=preset)


def filled(make: Make, data: bytes | None = None) -> nn.Module:
    model = seeded(make, 1)
    vt.load_model(model, io.BytesIO(data or file_of(make)))
    return model


def frozen(model: nn.Module) -> nn.Module:
    """With gradients only for what a streamed model has gradients for."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.nbytes < STREAMED_NBYTES)
    return model


def streamed(make: Make, data: bytes | None = None, **options: Any) -> nn.Module:
    return vt.stream_model(seeded(make, 2), io.BytesIO(data or file_of(make)), **options)


def run(model: nn.Module, *inputs: Any, **named: Any) -> list[Tensor]:
    """The tensors of a model's output."""
    torch.manual_seed(3)  # dropout
    return flat(model(*inputs, **named))


def flat(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [tensor for part in output for tensor in flat(part)]


def same(found: Any, aim: Any) -> bool:
    return len(found) == len(aim) and all(a.dtype == b.dtype and torch.equal(a, b)
                                          for a, b in zip(found, aim, strict=True))  # fmt: skip


def small(module: nn.Module) -> nn.Module:
    """With weights so small that what PyTorch takes from a row's largest norm (1e-7) is more than rounding.

    Else rows that were brought to that norm may be above it, and are brought to it again at the next look-up.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 1e-3
    return module


@dataclass
class Decoded:
    """What was decoded: the names of tensors decoded whole; for others names, numbers of blocks, bytes of blocks."""

    whole: list[str] = field(default_factory=list)
    parts: list[tuple[str, int]] = field(default_factory=list)
    block_nbytes: list[int] = field(default_factory=list)
    pools: list[ThreadPoolExecutor] = field(default_factory=list)  # that decode ahead

    def __bool__(self) -> bool:
        return bool(self.whole or self.parts)


def watch_decoding(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Note what is decoded until the end of the test."""
    found = Decoded()
    others = {*threading.enumerate()} - {threading.current_thread()}  # models of earlier tests may still decode ahead
    decode, values = indexed.IndexedReader._decode, stored_tensor.StoredTensor.values

    def counting_decode(self: Any, entry: Any, *rest: Any) -> Any:
        if threading.current_thread() not in others:
            found.whole.append(entry.name)
        return decode(self, entry, *rest)

    def counting_values(self: Any, numbers: Any) -> Any:
        found.parts.append((self.record.name, len(numbers)))
        for block, array in values(self, numbers):
            found.block_nbytes.append(array.nbytes)
            yield block, array

    def noted_pool(*args: Any) -> ThreadPoolExecutor:
        found.pools.append(ThreadPoolExecutor(*args))
        return found.pools[-1]

    monkeypatch.setattr("vqformat.torch.weight_store.ThreadPoolExecutor", noted_pool)
    monkeypatch.setattr(indexed.IndexedReader, "_decode", counting_decode)
    monkeypatch.setattr(stored_tensor.StoredTensor, "values", counting_values)
    return found


@dataclass(frozen=True)
class Case:
    make: Make
    inputs: Callable[[], tuple[Any, ...]]
    n_streamed: int
    named: dict[str, Any] = field(default_factory=dict)


def randn(*shapes: tuple[int, ...]) -> Callable[[], tuple[Any, ...]]:
    def inputs() -> tuple[Any, ...]:
        random = torch.Generator().manual_seed(5)
        return tuple(torch.randn(shape, generator=random) for shape in shapes)

    return inputs


def ids(*shape: int, below: int = 600) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.randint(below, shape, generator=torch.Generator().manual_seed(5)),)


def tied() -> nn.Module:
    model = Calling(lambda m, x: m.head(m.norm(m.embed(x))), embed=nn.Embedding(600, 64), norm=nn.LayerNorm(64),
                    head=nn.Linear(64, 600, bias=False))  # fmt: skip
    model.head.weight = model.embed.weight
    return model


def shared_by_hand() -> nn.Module:
    return Calling(lambda m, x: functional.linear(m.embed(x), m.embed.weight), embed=nn.Embedding(600, 64))


def any_way(model: Any, x: Tensor) -> list[Tensor]:
    weight = model.layer.weight
    first, second = weight.chunk(2)
    return [x @ weight.t(), x + weight[3], weight[:, :4] * 2, weight.sum(), 1 - weight, torch.cat([weight, x]),
            torch.einsum("bi,oi->bo", x, weight), first - second, weight.view(-1)[::7], weight.to(torch.float64),
            torch.stack(list(weight)[:2]), weight[weight > 0], functional.normalize(weight, dim=0)]  # fmt: skip


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Positions(nn.Module):
    """As the models of transformers: buffers of integers, one of them not saved; tied by name."""

    _tied_weights_keys = {"head.weight": "embed.weight"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(600, 64)
        self.register_buffer("position_ids", torch.arange(10_000).expand(1, -1).clone())
        self.register_buffer("mask", torch.ones(1), persistent=False)
        self.positions = nn.Embedding(10_000, 64)
        self.head = nn.Linear(64, 600, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_ids[:, 5 : 5 + ids.shape[1]]
        return self.head(self.embed(ids) * self.mask + self.positions(places))


CASES = {
    "mlp": Case(mlp, randn((5, 128)), 2),
    "nested": Case(lambda: nn.Sequential(nn.ModuleDict({"a": mlp()})["a"], nn.Sequential(mlp())), randn((5, 128)), 4),
    "conv1d": Case(lambda: nn.Conv1d(64, 128, 3), randn((2, 64, 20)), 1),
    "conv2d": Case(lambda: nn.Sequential(nn.Conv2d(32, 64, 3, padding="same", padding_mode="circular"),
                                         nn.BatchNorm2d(64), nn.ConvTranspose2d(64, 32, 3)), randn((2, 32, 6, 6)), 2),
    "conv3d": Case(lambda: nn.Conv3d(16, 64, 3), randn((2, 16, 5, 5, 5)), 1),
    "batch norm": Case(lambda: nn.BatchNorm1d(20_000), randn((3, 20_000)), 4),
    "layer norm": Case(lambda: nn.LayerNorm(20_000), randn((3, 20_000)), 2),
    "bilinear": Case(lambda: nn.Bilinear(32, 32, 32), randn((3, 32), (3, 32)), 1),
    "tied": Case(tied, ids(2, 7), 1),
    "shared by hand": Case(shared_by_hand, ids(2, 7), 1),
    "any way": Case(lambda: Calling(any_way, layer=nn.Linear(128, 256)), randn((5, 128)), 1),
    "positions": Case(Positions, ids(2, 7), 3),
    "lstm": Case(lambda: nn.LSTM(64, 128, 2, batch_first=True), randn((3, 4, 64)), 4),
    "lstm, both ways": Case(lambda: nn.LSTM(64, 128, bidirectional=True), randn((4, 3, 64)), 4),
    "gru in a module": Case(lambda: Calling(lambda m, x: m.out(m.gru(x)[0]), gru=nn.GRU(64, 128, bidirectional=True),
                                            out=nn.Linear(256, 64)), randn((4, 3, 64)), 5),
    "cells": Case(lambda: Calling(lambda m, x: (m.lstm(x), m.gru(x)), lstm=nn.LSTMCell(64, 128),
                                  gru=nn.GRUCell(64, 128)), randn((3, 64)), 4),
    "attention": Case(lambda: nn.MultiheadAttention(128, 4), randn(*[(5, 2, 128)] * 3), 2),
    "attention, batch first": Case(lambda: nn.MultiheadAttention(128, 4, batch_first=True),
                                    randn(*[(5, 2, 128)] * 3), 2),
    "attention, three weights": Case(lambda: nn.MultiheadAttention(128, 4, kdim=130, vdim=140, add_bias_kv=True),
                                     randn((5, 2, 128), (6, 2, 130), (6, 2, 140)), 4),
    "encoder layer": Case(lambda: nn.TransformerEncoderLayer(128, 4, 256, batch_first=True), randn((2, 5, 128)), 4),
    "encoder layer, norm first": Case(lambda: nn.TransformerEncoderLayer(128, 4, 256, norm_first=True, bias=False),
                                      randn((2, 5, 128)), 4),
    "encoder": Case(encoder, randn((2, 5, 128)), 8,
                    {"src_key_padding_mask": torch.tensor([[0, 0, 0, 1, 1], [0] * 5]) > 0}),
    "decoder layer": Case(lambda: nn.TransformerDecoderLayer(128, 4, 256), randn((2, 5, 128), (3, 5, 128)), 6),
    "embedding": Case(lambda: nn.Embedding(600, 64, padding_idx=3), ids(2, 7), 1),
    "embedding, max_norm": Case(lambda: small(nn.Embedding(600, 64, max_norm=0.004)), ids(2, 7), 1),
    "embedding, scaled": Case(lambda: nn.Embedding(600, 64, scale_grad_by_freq=True, padding_idx=-1), ids(2, 7), 1),
    "bag": Case(lambda: nn.EmbeddingBag(600, 64), ids(2, 7), 1),
    "bag, max_norm": Case(lambda: small(nn.EmbeddingBag(600, 64, max_norm=0.004, mode="sum")), ids(2, 7), 1),
    "weight norm": Case(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(128, 256)), randn((5, 128)), 1),
    "spectral norm": Case(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(128, 256)), randn((5, 128)), 1),
    "orthogonal": Case(lambda: nn.utils.parametrizations.orthogonal(nn.Linear(128, 256)), randn((5, 128)), 2),
}  # fmt: skip


def deep() -> nn.Module:
    """Four streamed weights."""
    return nn.Sequential(*mlp(), nn.ReLU(), *mlp())


def settle(decoded: Decoded) -> int:
    """Wait until all that was to be decoded ahead is; how many tensors were decoded."""
    for pool in decoded.pools:
        pool.submit(int).result()  # its one thread comes to this last
    return len(decoded.whole)

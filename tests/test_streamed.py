"""Models whose weights stay in the file: outputs are those of a model that is filled, in little memory."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import vqformat
from vqformat import indexed

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torchmodels import Calling, saved  # noqa: E402

from vqformat import torch as vt  # noqa: E402

Make = Callable[[], nn.Module]
STREAMED_NBYTES = 1 << 16


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


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


@dataclass
class Decoded:
    """What was decoded: the names of tensors decoded whole; for others names, numbers of blocks, bytes of blocks."""

    whole: list[str] = field(default_factory=list)
    parts: list[tuple[str, int]] = field(default_factory=list)
    block_nbytes: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.whole or self.parts)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    found = Decoded()
    decode, values = indexed.IndexedReader._decode, indexed._StoredTensor.values

    def counting_decode(self: Any, name: str, *rest: Any) -> Any:
        found.whole.append(name)
        return decode(self, name, *rest)

    def counting_values(self: Any, numbers: Any) -> Any:
        found.parts.append((self._record.name, len(numbers)))
        for block, array in values(self, numbers):
            found.block_nbytes.append(array.nbytes)
            yield block, array

    monkeypatch.setattr(indexed.IndexedReader, "_decode", counting_decode)
    monkeypatch.setattr(indexed._StoredTensor, "values", counting_values)
    return found


# Modules


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
    "embedding, max_norm": Case(lambda: nn.Embedding(600, 64, max_norm=1.0), ids(2, 7), 1),
    "embedding, scaled": Case(lambda: nn.Embedding(600, 64, scale_grad_by_freq=True, padding_idx=-1), ids(2, 7), 1),
    "bag": Case(lambda: nn.EmbeddingBag(600, 64), ids(2, 7), 1),
    "bag, max_norm": Case(lambda: nn.EmbeddingBag(600, 64, max_norm=1.0, mode="sum"), ids(2, 7), 1),
    "weight norm": Case(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(128, 256)), randn((5, 128)), 1),
    "spectral norm": Case(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(128, 256)), randn((5, 128)), 1),
    "orthogonal": Case(lambda: nn.utils.parametrizations.orthogonal(nn.Linear(128, 256)), randn((5, 128)), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
class TestModules:
    @pytest.mark.parametrize("is_training", [False, True])
    def test_outputs_are_bit_for_bit_those_of_a_filled_model(
        self, name: str, is_training: bool, decoded: Decoded
    ) -> None:
        case = CASES[name]
        aim, model = filled(case.make).train(is_training), streamed(case.make).train(is_training)
        inputs = case.inputs()
        decoded.whole.clear()
        with torch.no_grad():
            aims = [run(aim, *inputs, **case.named) for _ in range(2)]
            assert not decoded
            outputs = [run(model, *inputs, **case.named) for _ in range(2)]  # the second with what was decoded ahead
            assert decoded
        assert all(map(same, outputs, aims))

    def test_large_tensors_are_streamed_and_the_others_are_there(self, name: str) -> None:
        model = streamed(CASES[name].make)
        tensors = [*model.parameters(), *model.buffers()]
        is_streamed = [not hasattr(tensor, "untyped_storage") or type(tensor) not in (Tensor, nn.Parameter)
                       for tensor in tensors]  # fmt: skip
        assert sum(is_streamed) == CASES[name].n_streamed
        assert is_streamed == [tensor.nbytes >= STREAMED_NBYTES for tensor in tensors]

    def test_gradients_of_inputs_are_those_of_a_model_with_frozen_weights(self, name: str) -> None:
        case = CASES[name]
        if not case.inputs()[0].is_floating_point():
            pytest.skip("its inputs are ids")
        gradients = []
        for model in (frozen(filled(case.make)), streamed(case.make)):
            inputs = [tensor.requires_grad_() for tensor in case.inputs()]
            sum((out.sin().sum() for out in run(model, *inputs, **case.named)), torch.zeros(())).backward()
            small = [p.grad for p in model.parameters() if p.requires_grad]
            gradients.append([tensor.grad for tensor in inputs] + [grad for grad in small if grad is not None])
        assert same(*gradients)

    def test_the_state_dict_is_that_of_the_file(self, name: str) -> None:
        data = file_of(CASES[name].make)
        state, aim = streamed(CASES[name].make).state_dict(), vt.load(data)
        assert list(state) == list(aim) and same(list(state.values()), list(aim.values()))

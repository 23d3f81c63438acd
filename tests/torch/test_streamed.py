"""Models whose weights stay in the file: outputs are those of a model that is filled, in little memory."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import vqmbuilder
import vqmtensors

import vqformat
from vqformat.read.indexed import IndexedReader
from vqformat.read.stored_tensor import StoredTensor

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


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    found = Decoded()
    decode, values = IndexedReader._decode, StoredTensor.values

    def counting_decode(self: Any, name: str, *rest: Any) -> Any:
        found.whole.append(name)
        return decode(self, name, *rest)

    def counting_values(self: Any, numbers: Any) -> Any:
        found.parts.append((self.record.name, len(numbers)))
        for block, array in values(self, numbers):
            found.block_nbytes.append(array.nbytes)
            yield block, array

    def noted_pool(*args: Any) -> ThreadPoolExecutor:
        found.pools.append(ThreadPoolExecutor(*args))
        return found.pools[-1]

    monkeypatch.setattr("vqformat.torch.weight_store.ThreadPoolExecutor", noted_pool)
    monkeypatch.setattr(IndexedReader, "_decode", counting_decode)
    monkeypatch.setattr(StoredTensor, "values", counting_values)
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
    "embedding, max_norm": Case(lambda: small(nn.Embedding(600, 64, max_norm=0.004)), ids(2, 7), 1),
    "embedding, scaled": Case(lambda: nn.Embedding(600, 64, scale_grad_by_freq=True, padding_idx=-1), ids(2, 7), 1),
    "bag": Case(lambda: nn.EmbeddingBag(600, 64), ids(2, 7), 1),
    "bag, max_norm": Case(lambda: small(nn.EmbeddingBag(600, 64, max_norm=0.004, mode="sum")), ids(2, 7), 1),
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


class TestOptions:
    @pytest.mark.parametrize("source", ["path", "stream"])
    @pytest.mark.parametrize("keep", ["file", "memory"])
    @pytest.mark.parametrize("prefetch", [0, 1, 3])
    @pytest.mark.parametrize("threads", [1, 2])
    def test_none_changes_the_outputs(
        self, tmp_path: Path, source: str, keep: Any, prefetch: int, threads: int
    ) -> None:
        (tmp_path / "a.vqm").write_bytes(file_of(deep))
        stream = io.BytesIO(file_of(deep))
        model = vt.stream_model(seeded(deep, 2), tmp_path / "a.vqm" if source == "path" else stream, keep=keep,
                                prefetch=prefetch, threads=threads)  # fmt: skip
        if keep == "memory":
            (tmp_path / "a.vqm").write_bytes(b"")
            stream.close()
        (x,) = randn((5, 128))()
        with torch.no_grad():
            aim = run(filled(deep), x)
            assert all(same(run(model, x), aim) for _ in range(3))
        assert stream.closed == (keep == "memory")

    @pytest.mark.parametrize("prefetch", [0, 1, 3])
    def test_prefetch_is_how_many_weights_are_decoded_ahead(self, prefetch: int, decoded: Decoded) -> None:
        model = streamed(deep, prefetch=prefetch)
        (x,) = randn((5, 128))()
        with torch.no_grad():
            run(model, x)  # the order of weights is learnt
            run(model, x)
            settle(decoded)
            decoded.whole.clear()
            for layer in model:
                x = layer(x)
                settle(decoded)  # else a weight that is needed before its turn is decoded before it
        assert len(decoded.whole) == 4  # of each pass; those ahead are of the pass that follows
        assert decoded.whole == [f"{2 * ((i + prefetch) % 4)}.weight" for i in range(4)]

    def test_each_weight_is_decoded_for_each_pass(self, decoded: Decoded) -> None:
        model = streamed(deep, prefetch=0)
        (x,) = randn((5, 128))()
        decoded.whole.clear()
        with torch.no_grad():
            run(model, x)
            run(model, x)
        assert decoded.whole == ["0.weight", "2.weight", "4.weight", "6.weight"] * 2

    @pytest.mark.parametrize(("options", "message"), [
        ({"keep": "disk"}, "keep is 'disk'; 'file' and 'memory' are allowed"),
        ({"prefetch": -1}, "prefetch is -1; whole numbers from 0 are allowed"),
        ({"prefetch": 1.5}, "prefetch is 1.5"),
        ({"prefetch": True}, "prefetch is True"),
        ({"threads": 0}, "threads is 0"),
    ])  # fmt: skip
    def test_wrong_ones_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            streamed(mlp, **options)


def deep() -> nn.Module:
    """Four streamed weights."""
    return nn.Sequential(*mlp(), nn.ReLU(), *mlp())


def settle(decoded: Decoded) -> int:
    """Wait until all that was to be decoded ahead is; how many tensors were decoded."""
    for pool in decoded.pools:
        pool.submit(int).result()  # its one thread comes to this last
    return len(decoded.whole)


class TestDtypesAndDevices:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("name", ["mlp", "tied", "lstm", "attention", "encoder layer"])
    @pytest.mark.parametrize("when", ["before", "after", "on meta"])
    def test_models_of_another_dtype_are_as_if_they_were_filled(self, dtype: Any, name: str, when: str) -> None:
        case = CASES[name]
        data = file_of(case.make)
        aim = filled(case.make).to(dtype).eval()
        if when == "after":
            model = streamed(case.make).to(dtype)
        elif when == "before":
            model = vt.stream_model(seeded(case.make).to(dtype), io.BytesIO(data))
        else:
            with torch.device("meta"):
                model = vt.stream_model(case.make().to(dtype), io.BytesIO(data))
        inputs = [x.to(dtype) if x.is_floating_point() else x for x in case.inputs()]
        with torch.no_grad():
            assert same(run(model.eval(), *inputs), run(aim, *inputs))
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}

    @pytest.mark.parametrize("name", ["mlp", "tied", "positions", "batch norm", "lstm", "encoder layer"])
    def test_models_on_the_meta_device_get_their_weights(self, name: str) -> None:
        with torch.device("meta"):
            model = CASES[name].make()
        vt.stream_model(model, io.BytesIO(file_of(CASES[name].make)), device="cpu")
        inputs = CASES[name].inputs()
        if name == "positions":
            assert model.mask.is_meta  # the file does not have it
            model.mask = torch.ones(1)
        assert all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
        with torch.no_grad():
            assert same(run(model.eval(), *inputs), run(filled(CASES[name].make).eval(), *inputs))

    def test_moving_a_model_decodes_nothing(self, decoded: Decoded) -> None:
        model = streamed(tied)
        decoded.whole.clear()
        assert model.to("cpu").cpu().half().float() is model
        assert model.to("meta").head.weight.device.type == "meta"
        assert model.head.weight is model.embed.weight
        assert not decoded

    def test_a_default_device_has_no_effect_on_decoding(self) -> None:
        model = streamed(mlp)
        (x,) = randn((5, 128))()
        with torch.device("meta"):
            assert same(run(model, x), run(filled(mlp), x))

    def test_autocast_is_heeded(self) -> None:
        model, (x,) = streamed(mlp), randn((5, 128))()
        with torch.autocast("cpu", torch.bfloat16):
            found = run(model, x)
            assert found[0].dtype == torch.bfloat16 and same(found, run(filled(mlp), x))


class TestThreads:
    @pytest.mark.parametrize("name", ["mlp", "tied", "lstm", "attention", "encoder layer", "weight norm"])
    @pytest.mark.parametrize("prefetch", [0, 2])
    def test_several_may_run_a_model_at_once(self, name: str, prefetch: int) -> None:
        case = CASES[name]
        aim, model = filled(case.make).eval(), streamed(case.make, prefetch=prefetch).eval()
        inputs = case.inputs()

        def forward(_: int) -> list[Tensor]:
            with torch.no_grad():
                return flat(model(*inputs))

        with ThreadPoolExecutor(4) as pool:
            outputs = list(pool.map(forward, range(16)))
        with torch.no_grad():
            aims = flat(aim(*inputs))
        assert all(same(output, aims) for output in outputs)
        assert not any(type(p) in (Tensor, nn.Parameter) for p in model.parameters() if p.nbytes >= STREAMED_NBYTES)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    @pytest.mark.parametrize("name", ["mlp", "lstm", "attention", "embedding", "weight norm"])
    def test_any_mode_may_follow_any_other(self, mode: Any, name: str) -> None:
        model = streamed(CASES[name].make)
        inputs = CASES[name].inputs()
        aim = filled(CASES[name].make)
        for other in (mode, torch.enable_grad, mode):
            with other():
                found, expected = run(model, *inputs), run(aim, *inputs)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class TestBlocks:
    """Weights larger than ``max_weight_bytes``."""

    @pytest.mark.parametrize("preset", ["fast", "default", "small"])
    @pytest.mark.parametrize("shape", [(2500, 256), (256, 2500)])
    @pytest.mark.parametrize("bias", [True, False])
    def test_products_are_those_of_the_whole_weight_up_to_rounding(
        self, preset: str, shape: tuple[int, int], bias: bool, decoded: Decoded
    ) -> None:
        data = matrix_file(preset, shape)
        weight = vt.load(data)["weight"].double()
        model = nn.Linear(shape[1], shape[0], bias)
        vt.stream_model(model, io.BytesIO(data), max_weight_bytes=1000, strict=False)
        aim_bias = model.bias.detach().double() if bias else None
        decoded.whole.clear()
        for size in ((shape[1],), (3, shape[1]), (2, 3, shape[1]), (0, shape[1])):
            x = torch.randn(size, generator=torch.Generator().manual_seed(1))
            aim = functional.linear(x.double(), weight, aim_bias)
            with torch.no_grad():
                found = model(x)
            assert found.dtype == torch.float32 and found.shape == aim.shape
            assert torch.allclose(found.double(), aim, rtol=1e-5, atol=1e-5 * shape[1] ** 0.5)
        assert decoded.whole == []
        assert len(decoded.block_nbytes) >= 4 * 3 and max(decoded.block_nbytes) <= 1 << 20

    @pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
    def test_blocks_may_be_parts_of_rows_or_of_columns(self, axes: tuple[int, int], decoded: Decoded) -> None:
        codes = np.random.default_rng(0).integers(0, 16, (4, 5000))
        stage = vqmtensors.Codebook(codes, steps=np.ones(1, np.float32), zero=8, entries=16)
        layout = vqmtensors.Layout(None if axes == (0, 1) else axes, 1, 0, 1, 700)
        weight = torch.from_numpy(codes - 8).float().permute(axes)
        data = vqm_of(vqmtensors.tensor("weight", "f32", tuple(weight.shape), stage, layout=layout))
        model = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        vt.stream_model(model, io.BytesIO(data), max_weight_bytes=1000)
        x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(1))
        assert torch.allclose(model(x), x @ weight.T, rtol=1e-5, atol=1e-3)
        assert max(decoded.block_nbytes) == 4 * 700

    @pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "f16"), (torch.bfloat16, "bf16")])
    def test_sums_of_half_precision_are_taken_in_float32(self, dtype: Any, name: str) -> None:
        weight = torch.zeros(1, 40_000, dtype=dtype)
        one = 1 / torch.finfo(dtype).eps
        weight[0, 0], weight[0, 10_000], weight[0, 20_000] = 2 * one, 0.75, 0.75  # of three blocks; spaced by 2
        values = weight.view(torch.int16).numpy().tobytes()
        layout = vqmtensors.Layout(None, 1, 0, 1, 10_000)
        data = vqm_of(vqmtensors.raw("weight", name, (1, 40_000), values, layout=layout))
        model = nn.Linear(40_000, 1, bias=False, dtype=dtype)
        vt.stream_model(model, io.BytesIO(data), max_weight_bytes=1000)
        found = model(torch.ones(1, 40_000, dtype=dtype))
        assert found.dtype == dtype and found.item() == 2 * one + 2

    def test_gradients_of_inputs_pass(self) -> None:
        data = matrix_file("default", (2500, 256))
        model = vt.stream_model(nn.Linear(256, 2500, False), io.BytesIO(data), max_weight_bytes=1000)
        x = randn((3, 256))()[0].requires_grad_()
        model(x).sum().backward()
        assert x.grad is not None
        assert torch.allclose(x.grad, vt.load(data)["weight"].sum(0).expand(3, -1), rtol=1e-4, atol=1e-3)

    def test_weights_up_to_the_bound_are_decoded_whole(self, decoded: Decoded) -> None:
        data, nbytes = matrix_file("default", (2500, 256)), 4 * 2500 * 256
        (x,) = randn((3, 256))()
        for bound, is_whole in ((nbytes, True), (nbytes - 1, False)):
            model = vt.stream_model(nn.Linear(256, 2500, False), io.BytesIO(data), max_weight_bytes=bound)
            decoded.whole.clear()
            model(x)
            assert bool(decoded.whole) == is_whole

    @pytest.mark.parametrize("width", [2499, 2501])
    @pytest.mark.parametrize("preset", ["fast", "default", "small"])
    def test_inputs_of_another_width_are_refused(self, width: int, preset: str) -> None:
        data = matrix_file(preset, (256, 2500))
        model = vt.stream_model(nn.Linear(2500, 256, False), io.BytesIO(data), max_weight_bytes=1000)
        with pytest.raises(RuntimeError, match="multiplied"):
            model(torch.ones(3, width))

    @pytest.mark.parametrize("name", CASES)
    def test_other_modules_work_as_ever(self, name: str) -> None:
        case = CASES[name]
        inputs = case.inputs()
        with torch.no_grad():
            found = run(streamed(case.make, max_weight_bytes=0), *inputs, **case.named)
            aim = run(filled(case.make), *inputs, **case.named)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, aim, strict=True))


def matrix(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def vqm_of(tensor: vqmtensors.Tensor) -> bytes:
    return vqmbuilder.file(vqmbuilder.layr("", tensor)).build()


@cache
def matrix_file(preset: str, shape: tuple[int, int]) -> bytes:
    return vt.save({"weight": matrix(*shape)}, preset=preset)


class TestLookups:
    @pytest.fixture
    def model(self, decoded: Decoded) -> nn.Module:
        """Its weight is ten blocks."""
        data = matrix_file("fast", (10_000, 256))
        model = vt.stream_model(nn.Embedding(10_000, 256, padding_idx=3), io.BytesIO(data))
        decoded.parts.clear()
        return model

    @pytest.mark.parametrize(("ids", "n_blocks"), [([5], 1), ([[5, 7], [7, 5]], 1), ([0, 9_999, 0], 2), (3, 1)])
    def test_only_the_blocks_of_the_rows_are_decoded(
        self, model: nn.Module, decoded: Decoded, ids: Any, n_blocks: int
    ) -> None:
        found = model(torch.tensor(ids))
        assert decoded.parts == [("weight", n_blocks)] and not decoded.whole
        assert torch.equal(found, vt.load(matrix_file("fast", (10_000, 256)))["weight"][torch.tensor(ids)])

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    @pytest.mark.parametrize("shape", [(0,), (2, 0)])
    def test_no_ids_give_no_rows(self, model: nn.Module, decoded: Decoded, shape: tuple[int, ...], dtype: Any) -> None:
        assert model(torch.zeros(shape, dtype=dtype)).shape == (*shape, 256)
        assert decoded.block_nbytes == []

    @pytest.mark.parametrize("wrong", [-1, 10_000])
    def test_ids_without_a_row_are_refused_as_pytorch_does(self, model: nn.Module, wrong: int) -> None:
        for embedding in (nn.Embedding(10_000, 256), model):
            with pytest.raises(IndexError):
                embedding(torch.tensor([1, wrong]))

    @pytest.mark.parametrize("wrong", [torch.tensor([1.0]), torch.tensor([True])])
    def test_ids_that_are_no_integers_are_refused_as_pytorch_does(self, model: nn.Module, wrong: Tensor) -> None:
        for embedding in (nn.Embedding(10_000, 256), model):
            with pytest.raises(RuntimeError, match="Expected tensor for argument #1 'indices'"):
                embedding(wrong)


# What differs, what is damaged, what cannot be


def snapshot(model: nn.Module) -> list[tuple[str, Tensor, bytes | None]]:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [(name, tensor, None if tensor.is_meta else tensor.detach().numpy().tobytes()) for name, tensor in tensors]


def is_as_before(model: nn.Module, before: list[tuple[str, Tensor, bytes | None]]) -> bool:
    return all(a[0] == b[0] and a[1] is b[1] and a[2] == b[2]
               for a, b in zip(snapshot(model), before, strict=True))  # fmt: skip


class TestNames:
    @pytest.mark.parametrize("is_meta", [False, True])
    @pytest.mark.parametrize(("change", "message"), [
        (lambda state: state.pop("0.weight"), r"Missing key\(s\): '0.weight'"),
        (lambda state: state.pop("0.bias"), r"Missing key\(s\): '0.bias'"),
        (lambda state: state.update(extra=torch.ones(3)), r"Unexpected key\(s\): 'extra'"),
        (lambda state: state.update(extra=torch.ones(300, 300)), r"Unexpected key\(s\): 'extra'"),
        (lambda state: state.update({"2.weight": torch.ones(128, 255)}), r"'2.weight' has shape \(128, 255\)"),
        (lambda state: state.update({"2.bias": torch.ones(127)}), "size mismatch for 2.bias"),
    ])  # fmt: skip
    def test_a_file_that_differs_is_refused_and_the_model_is_as_before(
        self, change: Any, message: str, is_meta: bool
    ) -> None:
        state = dict(seeded(mlp).state_dict())
        change(state)
        data = io.BytesIO(vt.save(state))
        with torch.device("meta" if is_meta else "cpu"):
            model = seeded(mlp, 1)
        before = snapshot(model)
        with pytest.raises(RuntimeError, match=message):
            vt.stream_model(model, data)
        assert is_as_before(model, before)
        assert vt.stream_model(model, io.BytesIO(file_of(mlp))) is model
        (x,) = randn((5, 128))()
        assert same(run(model, x), run(filled(mlp), x))

    def test_what_the_file_lacks_is_left_where_strict_is_false(self) -> None:
        state = {name: tensor for name, tensor in seeded(mlp).state_dict().items() if not name.startswith("2.")}
        model = seeded(mlp, 1)
        weight, bias = model[2].weight, model[2].bias
        vt.stream_model(model, io.BytesIO(vt.save({**state, "extra": torch.ones(3)}, lossless=True)), strict=False)
        assert model[2].weight is weight and model[2].bias is bias
        aim = seeded(mlp)
        aim[2] = copy.deepcopy(model[2])
        (x,) = randn((5, 128))()
        assert same(run(model, x), run(aim, x))

    def test_one_name_of_a_tied_weight_is_enough(self) -> None:
        state = dict(seeded(tied).state_dict())
        del state["head.weight"]
        model = streamed(tied, vt.save(state, lossless=True))
        assert model.head.weight is model.embed.weight
        assert same(run(model, *ids(2, 7)()), run(seeded(tied), *ids(2, 7)()))

    def test_hooks_that_rename_small_tensors_are_run(self) -> None:
        state = dict(seeded(mlp).state_dict())
        state["old"] = state.pop("0.bias")
        model = seeded(mlp, 1)
        model.register_load_state_dict_pre_hook(lambda _, state, *rest: state.update({"0.bias": state.pop("old")}))
        vt.stream_model(model, io.BytesIO(vt.save(state, lossless=True)))
        assert same(run(model, *randn((5, 128))()), run(seeded(mlp), *randn((5, 128))()))


class TestDamage:
    def damaged(self, make: Make, name: str) -> bytes:
        """A file with a bit changed near the end of a tensor."""
        data = bytearray(file_of(make))
        reader = vqformat.safe_open(io.BytesIO(bytes(data)))._reader
        record, chunk, first = reader._locate(name)
        _, end = list(chunk.spans())[first + record.n_sections() - 1]
        data[end - 5] ^= 16
        return bytes(data)

    @pytest.mark.parametrize("prefetch", [0, 1])
    @pytest.mark.parametrize(("name", "tensor"), [("mlp", "2.weight"), ("embedding", "weight"),
                                                  ("lstm", "weight_hh_l1"), ("attention", "out_proj.weight"),
                                                  ("encoder layer", "linear2.weight")])  # fmt: skip
    def test_of_a_weight_is_found_by_each_pass(self, name: str, tensor: str, prefetch: int) -> None:
        case = CASES[name]
        model = streamed(case.make, self.damaged(case.make, tensor), prefetch=prefetch).eval()
        before = [*model.parameters()]
        for _ in range(3):
            with torch.no_grad(), pytest.raises(vqformat.VqmError, match=f"'{tensor}'"):
                run(model, *case.inputs())
        assert all(a is b for a, b in zip(before, model.parameters(), strict=True))

    def test_of_a_small_tensor_is_found_at_once_and_the_model_is_as_before(self) -> None:
        model = seeded(mlp, 1)
        before = snapshot(model)
        with pytest.raises((vqformat.VqmError, RuntimeError), match=r"'?2\.bias'?"):
            vt.stream_model(model, io.BytesIO(self.damaged(mlp, "2.bias")))
        assert is_as_before(model, before)
        assert run(model, *randn((5, 128))())

    def test_of_a_lookup_by_blocks_is_found(self) -> None:
        model = streamed(mlp, self.damaged(mlp, "2.weight"), max_weight_bytes=0)
        with pytest.raises(vqformat.VqmError, match=r"'2\.weight'"):
            run(model, *randn((5, 128))())

    def test_a_file_that_is_none_is_refused(self, tmp_path: Path) -> None:
        model = seeded(mlp, 1)
        before = snapshot(model)
        for data in (b"", b"no model" * 100, file_of(mlp)[:-9]):
            with pytest.raises(vqformat.VqmError):
                vt.stream_model(model, io.BytesIO(data))
        with pytest.raises(FileNotFoundError):
            vt.stream_model(model, tmp_path / "absent.vqm")
        assert is_as_before(model, before)

    def test_an_interrupted_pass_lets_go_of_its_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = streamed(CASES["attention"].make)
        weight = model.in_proj_weight
        monkeypatch.setattr(functional, "multi_head_attention_forward", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(model, *CASES["attention"].inputs())
        assert model.in_proj_weight is weight


class TestWithoutDecoding:
    """What streamed weights tell of themselves, and what is not changed."""

    @pytest.mark.parametrize("ask", [
        repr,
        lambda model: sum(p.numel() for p in model.parameters()) == 65_920 or pytest.fail(),
        lambda model: [(p.shape, p.dtype, p.device, p.requires_grad, p.grad, p.nbytes, p.ndim, p.layout, p.is_leaf,
                        p.size(0), len(p), p.stride(), p.is_contiguous(), p.is_floating_point(), p.is_cuda, p.is_cpu,
                        p.is_meta, p.is_sparse, p.is_quantized, hash(p)) for p in model.parameters()],
        lambda model: model.eval().train().zero_grad(),
        lambda model: model.requires_grad_(False),
        lambda model: [setattr(p, "requires_grad", False) or setattr(p, "grad", None) for p in model.parameters()],
        lambda model: torch.optim.AdamW(model.parameters()).zero_grad(),
        lambda model: [model.state_dict(keep_vars=True), copy.copy(model), model.half()],
    ])  # fmt: skip
    def test_it_is_told(self, ask: Any, decoded: Decoded) -> None:
        model = streamed(mlp)
        decoded.whole.clear()
        ask(model)
        assert not decoded

    def test_streamed_weights_look_like_parameters_that_are_frozen(self) -> None:
        weight, aim = streamed(mlp)[0].weight, mlp()[0].weight
        assert isinstance(weight, nn.Parameter) and not weight.requires_grad
        for name in ("shape", "dtype", "device", "nbytes", "ndim", "layout", "is_leaf", "is_cpu", "is_cuda", "is_meta",
                     "is_sparse", "itemsize"):  # fmt: skip
            assert getattr(weight, name) == getattr(aim, name)
        assert weight.stride() == aim.stride() and weight.is_contiguous() and weight.grad is None


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "copy_": (lambda model: model[0].weight.copy_(torch.ones(256, 128)), "cannot be changed"),
    "+=": (lambda model: model[0].weight.__iadd__(1), "cannot be changed"),
    "item": (lambda model: model[0].weight.__setitem__(0, 1.0), "cannot be changed"),
    "data": (lambda model: setattr(model[0].weight, "data", torch.ones(256, 128)), "cannot be changed"),
    "grad": (lambda model: setattr(model[0].weight, "grad", torch.ones(256, 128)), "or trained; load_model fills"),
    "requires_grad": (lambda model: setattr(model[0].weight, "requires_grad", True), "or trained; load_model fills"),
    "requires_grad_": (lambda model: model.requires_grad_(), "or trained; load_model fills"),
    "out": (lambda model: torch.add(torch.ones(256, 128), 1, out=model[0].weight), "cannot be changed"),
    "init": (lambda model: nn.init.normal_(model[0].weight), "cannot be changed"),
    "reset": (lambda model: model[0].reset_parameters(), "cannot be changed"),
    "load_state_dict": (lambda model: model.load_state_dict(mlp().state_dict()), "load_model fills a model that can"),
    "load_model": (lambda model: vt.load_model(model, io.BytesIO(file_of(mlp))), "load_model fills a model that can"),
    "data_ptr": (lambda model: model[0].weight.data_ptr(), "has no memory of its own"),
    "storage": (lambda model: model[0].weight.untyped_storage(), "has no memory of its own"),
    "deepcopy": (copy.deepcopy, "cannot be copied or pickled; copy it first, or save its state_dict"),
    "pickle": (pickle.dumps, "cannot be copied or pickled"),
    "save": (lambda model: torch.save(model, io.BytesIO()), "cannot be copied or pickled"),
    "average": (torch.optim.swa_utils.AveragedModel, "cannot be copied or pickled"),
    "script": (lambda model: torch.jit.script(model), "cannot become TorchScript"),
    "trace": (lambda model: torch.jit.trace(model, torch.ones(5, 128)), "'0.weight' is streamed .* trace a model that"),
    "export": (lambda model: torch.export.export(model, (torch.ones(5, 128),)), "as torch.compile and torch.export"),
    "compile": (lambda model: torch.compile(model, backend="eager")(torch.ones(5, 128)), "as torch.compile and"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_streamed_model_cannot_do_is_said_and_it_still_runs(name: str) -> None:
    act, message = REFUSED[name]
    model = streamed(mlp)
    biases = copy.deepcopy([model[0].bias, model[2].bias])
    with pytest.raises(Exception, match=message):
        act(model)
    for layer, bias in zip((model[0], model[2]), biases, strict=True):
        layer.bias = bias  # load_state_dict fills what it can
    (x,) = randn((5, 128))()
    assert same(run(model, x), run(filled(mlp), x))


def lazy_buffers() -> nn.Module:
    return nn.LazyBatchNorm1d(affine=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*[Ll]azy.*:UserWarning")
@pytest.mark.parametrize(("make", "message"), [
    (lambda: torch.jit.script(mlp()), "the model is TorchScript.*: stream the Python model"),
    (lambda: nn.Sequential(torch.jit.script(nn.Linear(2, 2))), "module '0' is TorchScript"),
    (lambda: nn.DataParallel(mlp()), "the model is a DataParallel.*: stream the model in it"),
    (lambda: torch.compile(mlp()), "the model is a OptimizedModule"),
    (lambda: nn.Sequential(nn.LazyLinear(3)), "module '0' has parameters without a shape yet"),
    (lazy_buffers, "the model has parameters without a shape yet"),
])  # fmt: skip
def test_models_that_keep_their_weights_to_themselves_are_refused(make: Make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vt.stream_model(make(), io.BytesIO(file_of(mlp)))


def prune(model: Any) -> Any:
    from torch.nn.utils import prune

    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def with_ones(model: Any) -> Any:
    model[0].weight = nn.Parameter(torch.ones(256, 128))
    return model


USES: dict[str, Callable[[Any, Tensor], Any]] = {
    "functional_call": lambda model, x: torch.func.functional_call(model, dict(model.named_parameters()), x),
    "vmap": lambda model, x: torch.func.vmap(model)(x[:, None])[:, 0],
    "grad": lambda model, x: torch.func.grad(lambda x: model(x).sin().sum())(x),
    "jacobian": lambda model, x: torch.func.jacrev(model)(x[0]),
    "forward mode": lambda model, x: torch.func.jvp(model, (x,), (x,))[1],
    "symbolic trace": lambda model, x: torch.fx.symbolic_trace(model)(x),
    "checkpoint": lambda model, x: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False),
    "DataParallel": lambda model, x: nn.DataParallel(model)(x),
    "pruning": lambda model, x: prune(model)(x),
    "modules used twice": lambda model, x: nn.Sequential(*model, *model)(x),
    "a weight replaced": lambda model, x: with_ones(model)(x),
    "vector": lambda model, x: nn.utils.parameters_to_vector(model.parameters()),
    "numpy": lambda model, x: torch.from_numpy(model[0].weight.detach().numpy() * model[0].weight.data.numpy()),
    "save and load": lambda model, x: torch.load(through_torch_save(model.state_dict()))["0.weight"],
    "saved again": lambda model, x: vt.load(saved(model, lossless=True))["2.weight"],
    "streamed again": lambda model, x: vt.stream_model(model, io.BytesIO(file_of(mlp)))(x),
    "assigned": lambda model, x: (model.load_state_dict(seeded(mlp).state_dict(), assign=True), model(x))[1],
    "SGD": lambda model, x: trained(model, x, torch.optim.SGD),
    "AdamW": lambda model, x: trained(model, x, torch.optim.AdamW),
}


def through_torch_save(state: Any) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


def trained(model: nn.Module, x: Tensor, kind: Any) -> Tensor:
    """Small tensors are trained: outputs after a step."""
    optimizer = kind(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    assert all((p.grad is None) == (p.nbytes >= STREAMED_NBYTES) for p in model.parameters())
    optimizer.step()
    return model(x)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what PyTorch itself does for torch.func.jvp
@pytest.mark.parametrize("name", USES)
def test_what_else_is_done_with_models_works(name: str) -> None:
    (x,) = randn((5, 128))()
    found, aim = (USES[name](model, x) for model in (streamed(mlp), frozen(filled(mlp))))
    assert same([found.detach()], [aim.detach()])


@pytest.mark.parametrize("name", ["lstm", "attention", "encoder layer"])
@pytest.mark.parametrize("way", ["assigned", "streamed again"])
def test_weights_that_take_the_place_of_streamed_ones_are_used(name: str, way: str) -> None:
    case = CASES[name]
    model, other = streamed(case.make).eval(), seeded(case.make, 8).eval()
    with torch.no_grad():
        run(model, *case.inputs())
        if way == "assigned":
            model.load_state_dict(other.state_dict(), assign=True)
        else:
            vt.stream_model(model, io.BytesIO(saved(other, lossless=True)))
        assert same(run(model, *case.inputs()), run(other, *case.inputs()))
        assert same([*model.state_dict().values()], [*other.state_dict().values()])


def test_a_copy_made_before_is_not_streamed() -> None:
    model = seeded(mlp)
    other = copy.deepcopy(model)
    vt.stream_model(model, io.BytesIO(file_of(mlp)))
    pickle.dumps(other)
    assert other[0].weight.data_ptr() and not isinstance(other[0].weight, type(model[0].weight))


# Memory and files


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("name", ["mlp", "lstm", "attention"])
def test_a_model_that_is_let_go_closes_its_file_and_ends_its_thread(tmp_path: Path, name: str, prefetch: int) -> None:
    make = CASES[name].make
    (tmp_path / "a.vqm").write_bytes(file_of(make))
    model = vt.stream_model(seeded(make), tmp_path / "a.vqm", prefetch=prefetch)
    run(model, *CASES[name].inputs())
    run(model, *CASES[name].inputs())
    weights = [parameter.weight for parameter in model.parameters() if parameter.nbytes >= STREAMED_NBYTES]
    opened = weights[0]._store.file._opened._own
    last = weakref.ref(weights[0]._store)
    assert not opened.closed

    del model, weights
    gc.collect()

    until = monotonic() + 300
    while monotonic() < until and (last() is not None or prefetch_threads()):
        sleep(0.01)
        gc.collect()
    assert opened.closed and not prefetch_threads()


def prefetch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vqformat-prefetch")]


def test_weights_are_let_go_after_each_operation() -> None:
    model = streamed(deep, prefetch=0)
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    store = model[0].weight.weight._store
    decode = store._decode

    def counting(name: str) -> Tensor:
        nonlocal most
        tensor = decode(name)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return tensor  # type: ignore[no-any-return]

    store._decode = counting
    with torch.no_grad():
        run(model, *randn((5, 128))())
    assert len(alive) == 4 and most == 1

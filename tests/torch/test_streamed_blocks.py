"""Streamed weights are decoded by blocks and rows, and let go of."""

from __future__ import annotations

import gc
import io
import threading
import weakref
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import vqmbuilder
import vqmtensors

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from streamed_models import CASES, STREAMED_NBYTES, Decoded, deep, file_of, filled, randn, run, seeded, streamed  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from vqformat import torch as vt  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


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


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("name", ["mlp", "lstm", "attention"])
def test_a_model_that_is_let_go_closes_its_file_and_ends_its_thread(tmp_path: Path, name: str, prefetch: int) -> None:
    make = CASES[name].make
    (tmp_path / "a.vqm").write_bytes(file_of(make))
    model = vt.stream_model(seeded(make), tmp_path / "a.vqm", prefetch=prefetch)
    run(model, *CASES[name].inputs())
    run(model, *CASES[name].inputs())
    weights = [parameter.weight for parameter in model.parameters() if parameter.nbytes >= STREAMED_NBYTES]
    opened = weights[0]._store.file._opened._opened._own
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
